"""Print the SIMD level that runs here and a digest of what every operation gives, as JSON.

compare.py runs this on the real CPU and under emulated ones. It uses the Rust kernels through
their Python backend, and one thread and two, so that the same lines must come out everywhere.
"""

import hashlib
import inspect
import json
import sys
from collections.abc import Iterator

import ml_dtypes
import numpy as np

import qrs
from qrs.backends.reference import OPERATIONS, Reference
from qrs.backends.rust import Rust

SHAPES = ((0, 5), (3, 0), (1, 1), (2, 31), (5, 67), (3, 257), (70, 1031))
DTYPES = (np.float32, np.float16, ml_dtypes.bfloat16)
INT4, UINT4, INT8, UINT8 = (4, -7, 7), (4, 0, 15), (8, -127, 127), (8, 0, 255)
UINT3, INT5 = (3, 0, 7), (5, -16, 15)


def arrays() -> Iterator[tuple[str, np.ndarray]]:
    """Random values over many magnitudes, ties, subnormals, both zeros, constant rows."""
    random = np.random.default_rng(7)
    for dtype in DTYPES:
        info = ml_dtypes.finfo(dtype)
        for rows, cols in SHAPES:
            wide = random.normal(size=(rows, cols)) * 2.0 ** random.integers(-20, 8, (rows, 1))
            wide[:, 1::7] = 0.0
            wide[:, 2::11] = -0.0
            wide[:, 3::13] = float(info.smallest_subnormal)
            wide[:, 4::29] = float(info.smallest_normal)
            yield f"wide-{rows}x{cols}", wide.astype(dtype)
        ties = np.arange(-254, 256).reshape(2, 255) / 2
        yield "ties", ties.astype(dtype)
        yield "zeros", np.zeros((2, 40), dtype)
        yield "constant", np.full((3, 40), -2.7, dtype)
        yield "subnormal", np.full((3, 40), float(info.smallest_subnormal), dtype)
        yield "large", np.full((2, 40), float(info.max) / 4, dtype)


def results(backend: Reference, x: np.ndarray) -> Iterator[tuple[str, object]]:
    """Every operation with its usual parameters: group sizes, bits, signedness, scale dtypes."""
    cols = x.shape[1]
    for bits, qmin, qmax in (INT4, UINT4, INT8, UINT8, UINT3, INT5):
        for group_size in {max(cols, 1), 32, 7}:
            symmetric, scale_dtype = qmin < 0, "bfloat16" if bits == 5 else "float32"
            lo, hi = backend.group_range(x, group_size)
            yield "group_range", (lo, hi)
            scale, zero = backend.choose_qparams_affine(lo, hi, qmin, qmax, symmetric, scale_dtype)
            yield "choose_qparams_affine", (scale, zero)
            codes = backend.quantize_affine(x, group_size, scale, zero, qmin, qmax)
            yield "quantize_affine", codes
            packed = backend.pack_bits(codes, bits)
            yield "pack_bits", packed
            yield "unpack_bits", backend.unpack_bits(packed, bits, cols, symmetric)
            yield (
                "dequantize_affine",
                backend.dequantize_affine(codes, group_size, scale, zero, x.dtype.name),
            )
            yield (
                "quantize_affine_packed",
                backend.quantize_affine_packed(
                    x, group_size, bits, qmin, qmax, symmetric, scale_dtype
                ),
            )
            yield (
                "dequantize_affine_packed",
                backend.dequantize_affine_packed(
                    packed, cols, group_size, bits, symmetric, scale, zero, x.dtype.name
                ),
            )
            yield (
                "fake_quantize_affine",
                backend.fake_quantize_affine(x, group_size, qmin, qmax, symmetric, scale_dtype),
            )


def digest(result: object) -> bytes:
    parts = result if isinstance(result, tuple) else (result,)
    text = [f"{a.dtype}{a.shape}".encode() + a.tobytes() for a in parts if a is not None]
    return hashlib.sha256(b"".join(text)).digest()


def digests(backend: Reference) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, x in arrays():
        running = {operation: hashlib.sha256() for operation in OPERATIONS}
        for operation, result in results(backend, x):
            running[operation].update(digest(result))
        found |= {f"{op} {x.dtype} {name}": h.hexdigest()[:16] for op, h in running.items()}
    return found


def main() -> None:
    own = {name for name, f in vars(Rust).items() if inspect.isfunction(f)}
    if missing := set(OPERATIONS) - own:
        sys.exit(f"these would not run the Rust kernels: {missing}")
    qrs.set_num_threads(1)
    one = digests(Rust())
    qrs.set_num_threads(2)
    if digests(Rust()) != one:
        sys.exit("the number of threads changed the bits")
    json.dump({"level": qrs.simd_level(), "digests": one}, sys.stdout)


if __name__ == "__main__":
    main()
