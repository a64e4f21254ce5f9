"""all_conversions.py BACKEND FORMAT COUNT FIRST LAST: convert float32, print digests of codes.

A block holds COUNT of the 2^23 patterns that share a sign and an exponent, that of NaN and
infinities included. The digests of the blocks FIRST to LAST - 1 come out as a JSON list. BACKEND is
reference, rust, or numpy, which stands for ml_dtypes too; NaN that it makes are replaced by the
canonical ones. test_all_floats.py runs this at each SIMD level.
"""

import hashlib
import json
import sys
from pathlib import Path

import numpy as np

from qrs.backends.reference import Reference
from qrs.backends.rust import Rust
from qrs.float_formats import FORMATS

sys.path.insert(0, str(Path(__file__).parent.parent))
from slow.all_floats import patterns

BLOCKS = 2 * 256  # both signs, every exponent
PIECE = 1 << 18  # what is worked on at a time


class Numpy:
    """The conversions of numpy and ml_dtypes."""

    def encode_float(self, x: np.ndarray, format: str, saturate: bool) -> np.ndarray:
        f = FORMATS[format]
        assert not saturate
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            numbers = x.astype(f.dtype)
        codes = numbers.view(f.code_dtype)
        nan = np.isnan(numbers)
        codes[nan] = codes[nan] & f.sign_bit | f.nan_code
        return codes


def digest(backend: Reference | Numpy, format: str, index: int, count: int) -> str:
    x, found = patterns(index, count).reshape(1, -1), hashlib.sha256()
    for start in range(0, count, PIECE):
        piece = np.ascontiguousarray(x[:, start : start + PIECE])
        found.update(backend.encode_float(piece, format, False))
    return found.hexdigest()


if __name__ == "__main__":
    name, format, *numbers = sys.argv[1:]
    count, first, last = map(int, numbers)
    backend = {"reference": Reference, "rust": Rust, "numpy": Numpy}[name]()
    json.dump([digest(backend, format, index, count) for index in range(first, last)], sys.stdout)
