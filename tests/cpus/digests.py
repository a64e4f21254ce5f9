"""Print the SIMD level that runs here and a digest of what every operation gives, as JSON.

test_cpus.py runs this on the real CPU and under emulated ones. The arrays and calls are those of
test_parity.py, in which the Rust kernels are compared with the reference; one thread and three.
"""

import hashlib
import inspect
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import qrs
from codebook_calls import BOOK_ARGUMENTS, BOOK_RULES, BookCase, call_book
from float_calls import FLOAT_ARGUMENTS, FLOAT_RULES, FloatCase, call_float
from kernel_calls import RULES, Case, bits_of, call
from nasty import FLOATS, faulty, nasty
from qrs.backends.reference import OPERATIONS
from qrs.backends.rust import Rust

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
            for op in OPERATIONS:
                if op in BOOK_ARGUMENTS:
                    results = repr([bits_of(call_book(backend, op, case)) for case in books])
                elif op in FLOAT_ARGUMENTS:
                    results = repr([bits_of(call_float(backend, op, case)) for case in floats])
                else:
                    results = repr([bits_of(call(backend, op, case)) for case in cases])
                digest = hashlib.sha256(results.encode()).hexdigest()
                found[f"{op} {dtype} {name}"] = digest[:16]
    return found


def main() -> None:
    own = {name for name, f in vars(Rust).items() if inspect.isfunction(f)}
    if missing := set(OPERATIONS) - own:
        sys.exit(f"these would not run the Rust kernels: {missing}")
    one = digests(threads=1)
    if digests(threads=3) != one:
        sys.exit("the number of threads changed the bits")
    json.dump({"level": qrs.simd_level(), "digests": one}, sys.stdout)


if __name__ == "__main__":
    main()
