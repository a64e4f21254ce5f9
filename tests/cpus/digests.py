"""Print the SIMD level that runs here and a digest of what every operation gives, as JSON.

test_cpus.py runs this on the real CPU and under emulated ones. The arrays and calls are those of
test_parity.py, in which the Rust kernels are compared with the reference; one thread and three.
"""

import hashlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import qrs
from codebook_calls import BOOK_ARGUMENTS, BOOK_RULES, BookCase, call_book
from float_calls import FLOAT_ARGUMENTS, FLOAT_RULES, FloatCase, call_float
from gradient_calls import GRADIENTS, clip_calls, step_calls
from kernel_calls import RULES, Case, bits_of, call
from kmeans_calls import KMEANS_ARGUMENTS, KMEANS_CASES, call_kmeans
from nasty import FLOATS, faulty, nasty
from product_calls import PRODUCT_OPERATIONS, SOLVING, grouped_calls, int8_calls, plain_calls
from qrs.backends.reference import OPERATIONS, Reference
from qrs.backends.rust import Rust
from solving_calls import problem, solved

# Emulation is slow, and so is the reference, which makes the arguments: nearly every format once.
SOME_FLOAT_RULES = [*FLOAT_RULES.values()][::7]
SOME_BOOK_RULES = [*BOOK_RULES.values()][::4]


def digests(threads: int) -> dict[str, str]:
    """A digest of each operation on each array, over rules and group sizes; faults count too."""
    qrs.set_num_threads(threads)
    backend, found = Rust(), {}
    for dtype in FLOATS:
        for name, x in {**nasty(dtype), **faulty(dtype)}.items():
            sizes = sorted({max(x.shape[1], 1), 7, 32})
            cases = [Case(x, size, rule) for size in sizes for rule in RULES.values()]
            floats = [FloatCase(x, size, rule) for size in sizes[:2] for rule in SOME_FLOAT_RULES]
            books = [BookCase(x, size, rule) for size in sizes[1:] for rule in SOME_BOOK_RULES]
            others = {*KMEANS_ARGUMENTS, "kmeans_1d", *PRODUCT_OPERATIONS, *SOLVING, *GRADIENTS}
            for op in set(OPERATIONS) - others:
                if op in BOOK_ARGUMENTS:
                    results = repr([bits_of(call_book(backend, op, case)) for case in books])
                elif op in FLOAT_ARGUMENTS:
                    results = repr([bits_of(call_float(backend, op, case)) for case in floats])
                else:
                    results = repr([bits_of(call(backend, op, case)) for case in cases])
                found[f"{op} {dtype} {name}"] = digest(results)
        clipped = [backend.clip_gradient_affine(*case) for case in clip_calls(dtype)]
        found[f"clip_gradient_affine {dtype}"] = digest(repr(bits_of(tuple(clipped))))
        steps = [bits_of(backend.step_gradients_affine(*case)) for case in step_calls(dtype)]
        found[f"step_gradients_affine {dtype}"] = digest(repr(steps))
    rows = [x for dtype in FLOATS for x in nasty(dtype).values() if x.shape[1]]
    results = repr([bits_of(backend.kmeans_1d(x, 3, None, True)) for x in rows])
    found["kmeans_1d"] = digest(results)
    for op in KMEANS_ARGUMENTS:
        results = repr([bits_of(call_kmeans(backend, op, case)) for case in KMEANS_CASES])
        found[op] = digest(results)
    for op, results in product_results(backend):
        found[op] = digest(found.get(op, "") + results)
    results = repr([bits_of(solved(backend, problem(*shape))) for shape in ((3, 5), (25, 49))])
    return found | {"solving": digest(results)}


def product_results(backend: Rust) -> Iterator[tuple[str, str]]:
    """What the operations of layers give on a few shapes."""
    x = np.random.default_rng(0).standard_normal((5, 70)).astype(np.float32)
    calls = [*plain_calls(x), *plain_calls(x.astype(np.float16))]
    for shape in ((1, 17, 70), (7, 34, 65)):
        calls += int8_calls(backend.pack_int8, *shape)
        calls += grouped_calls(backend.pack_grouped, backend.pack_bits, *shape, np.float32)
    for op, args in calls:
        yield op, repr(bits_of((getattr(backend, op)(*args),)))


def digest(results: str) -> str:
    return hashlib.sha256(results.encode()).hexdigest()[:16]


def main() -> None:
    if missing := {op for op in OPERATIONS if getattr(Rust, op) is getattr(Reference, op)}:
        sys.exit(f"these would not run the Rust kernels: {missing}")
    one = digests(threads=1)
    if digests(threads=3) != one:
        sys.exit("the number of threads changed the bits")
    json.dump({"level": qrs.simd_level(), "digests": one}, sys.stdout)


if __name__ == "__main__":
    main()
