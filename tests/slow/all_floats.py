"""all_floats.py BACKEND COUNT FIRST LAST: encode many float32 values, print digests of the codes.

A block holds COUNT of the 2^23 values that share a sign and an exponent. The digests of the blocks
FIRST to LAST - 1 come out as a JSON list. test_all_floats.py runs this at each SIMD level and
compares with what the reference rule gives.
"""

import hashlib
import json
import sys
from collections.abc import Iterable, Iterator

import numpy as np

from qrs.backends.reference import Reference
from qrs.backends.rust import Rust

COLS = 1 << 11
BLOCKS = 2 * 255  # both signs, every exponent but that of NaN and infinity
# scale, zero point, qmin, qmax: an ordinary one, both ends of the scales for which a multiplication
# with a correction may stand for the division, a subnormal, a huge and an asymmetric one.
RULES = (
    (np.float32(6.2) / np.float32(127), None, -127, 127),
    (np.float32(1.3 * 2.0**-100), None, -128, 127),
    (np.float32(1.7 * 2.0**99), None, -127, 127),
    (np.float32(3e-41), None, -127, 127),
    (np.float32(2.6e36), None, -127, 127),
    (np.float32(1 / 3), 77, 0, 255),
)


def block(index: int, count: int) -> np.ndarray:
    """`count` values of one sign and exponent, as rows."""
    sign, exponent = divmod(index, 255)
    return patterns(sign << 8 | exponent, count).reshape(-1, COLS)


def patterns(sign_and_exponent: int, count: int) -> np.ndarray:
    """`count` float32 with these upper nine bits."""
    # An odd factor makes this a permutation of the mantissas: a part of it is spread over all bits.
    mantissas = np.arange(count, dtype=np.uint32) * np.uint32(2654435761) & np.uint32(0x7FFFFF)
    return (mantissas | np.uint32(sign_and_exponent << 23)).view(np.float32)


def encode(backend: Reference, x: np.ndarray, rule: tuple) -> np.ndarray:
    scale, zero_point, qmin, qmax = rule
    scales = np.full((len(x), 1), scale, np.float32)
    zeros = None if zero_point is None else np.full((len(x), 1), zero_point, np.int32)
    return backend.quantize_affine(x, x.shape[1], scales, zeros, qmin, qmax)


def digests(backend: Reference, count: int, blocks: Iterable[int]) -> Iterator[str]:
    for index in blocks:
        x = block(index, count)
        codes = b"".join(encode(backend, x, rule).tobytes() for rule in RULES)
        yield hashlib.sha256(codes).hexdigest()


if __name__ == "__main__":
    name, *numbers = sys.argv[1:]
    count, first, last = map(int, numbers)
    backend = {"reference": Reference, "rust": Rust}[name]()
    json.dump(list(digests(backend, count, range(first, last))), sys.stdout)
