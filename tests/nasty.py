"""Arrays that break kernels. One table for all tests, and the layouts an array may arrive in.

`nasty(dtype)` gives finite arrays of (rows, cols), `faulty(dtype)` those that must be refused,
`layouts(x)` the same values with every kind of strides. No expected results are kept here.
"""

from collections.abc import Iterator
from functools import cache

import ml_dtypes
import numpy as np

FLOATS = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}
# Around the lanes of every vector width, and around the 64 codes that make whole bytes at any bits.
COLS = (1, 2, 3, 7, 8, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129)
PRIMES = ((2, 1031), (5, 67), (7, 31), (3, 257), (13, 11))


def _noise(rows: int, cols: int, spread: int = 0) -> np.ndarray:
    """Normal values, each row of another magnitude within 2^-spread .. 2^spread."""
    random = np.random.default_rng((rows, cols, spread))
    magnitude = 2.0 ** random.integers(-spread, spread + 1, (rows, 1))
    return random.standard_normal((rows, cols)) * magnitude


def _ties(greatest: int) -> np.ndarray:
    """Rows of (k + 1/2) * scale, with the greatest element that makes `scale` the scale."""
    ties = np.append(np.arange(-greatest, greatest) + 0.5, greatest)
    return np.stack([ties * 2.0**exponent for exponent in (-7, 0, 3)])


def _around_ties() -> np.ndarray:
    """Neighbours of (k + 1/2) * scale in float32, for scales that are no powers of two."""
    scales = np.float32([1 / 3, 0.1, 1.1, 6.2 / 127, 1.9999999])[:, None]
    ties = (np.arange(-127, 127, dtype=np.float32) + np.float32(0.5)) * scales
    below, above = np.nextafter(ties, np.float32(-1e9)), np.nextafter(ties, np.float32(1e9))
    return np.concatenate([below, ties, above, 127 * scales], axis=1)


def _float32_edges() -> dict[str, np.ndarray]:
    """What only a float32 can hold: scales at the ends of the exponents, and subnormal ones."""
    ends = np.array([-126, -120, -101, -100, -99, 99, 100, 101, 119, 120])[:, None]
    tiny = np.arange(1, 66, dtype=np.uint32).view(np.float32)
    return {
        "scales-at-the-ends": _noise(10, 67) * 2.0**ends,
        "scale-underflows": np.stack([tiny, -tiny, tiny * np.float32(40)]),
        "scale-is-subnormal": _noise(3, 67) * 2.0**-126,
        "max-in-one-half": np.outer([1, -1], np.full(33, 3.4e38 / 1.01)),
    }


@cache
def nasty(dtype: str) -> dict[str, np.ndarray]:
    """Finite arrays of (rows, cols) by name; read-only, in C order."""
    info = ml_dtypes.finfo(FLOATS[dtype])
    least, normal, greatest = map(float, (info.smallest_subnormal, info.tiny, info.max))
    outlier = np.full((3, 70), 1e-3)
    outlier[0, 0], outlier[1, 69], outlier[2, 33] = 1000, -1000, 30000
    arrays = {
        "no-rows": np.zeros((0, 5)),
        "no-columns": np.zeros((3, 0)),
        "nothing": np.zeros((0, 0)),
        "one": np.full((1, 1), -1.7),
        "absmax-of-the-paper": np.array([[1.6, -0.7, -3.4, 1.7, -2.9, 0.5, 2.3, 6.2]]),
        **{f"{cols}-columns": _noise(3, cols, 3) for cols in COLS},
        **{f"primes-{rows}x{cols}": _noise(rows, cols, 9) for rows, cols in PRIMES},
        "many-rows": _noise(301, 3),
        "zeros": np.zeros((2, 67)),
        "negative-zeros": np.full((2, 67), -0.0),
        "both-zeros": np.tile([0.0, -0.0, 1.0, -0.0], (2, 17)),
        "a-zero-group": np.repeat([[1.0, 0.0, -2.0]], 32, axis=1),
        "constant": np.outer([-2.7, 2.7, 1e-3], np.ones(65)),
        "positive": np.abs(_noise(3, 67)) + 1,
        "negative": -np.abs(_noise(3, 67)) - 1,
        "ties-8-bits": _ties(127),
        "ties-4-bits": _ties(7),
        "around-ties": _around_ties(),
        "outlier": outlier,
        "least-subnormal": np.tile([least, -least], (2, 40)),
        "subnormals": least * np.arange(-30, 37).reshape(1, 67),
        "around-the-least-normal": _noise(3, 67) * normal * 8,
        "greatest-quarter": np.tile([greatest / 4, -greatest / 4], (2, 40)),
        "greatest": np.outer([greatest, -greatest], np.ones(33)),
        "both-greatest": np.tile([greatest, -greatest, 1], (1, 11)),
        **(_float32_edges() if dtype == "float32" else {}),
    }
    return {name: _frozen(values, dtype) for name, values in arrays.items()}


@cache
def faulty(dtype: str) -> dict[str, np.ndarray]:
    """Arrays of (rows, cols) with NaN or infinities, by name."""
    arrays = {}
    values = {"nan": np.nan, "negative-nan": -np.nan, "inf": np.inf, "negative-inf": -np.inf}
    for name, value in values.items():
        for at in (0, 31, 64, 1030):
            x = _noise(2, 1031)
            x[1, at] = value
            arrays[f"{name}-at-{at}"] = x
    arrays["all-nan"] = np.full((3, 5), np.nan)
    arrays["infinities"] = np.tile([np.inf, -np.inf], (1, 40))
    return {name: _frozen(values, dtype) for name, values in arrays.items()}


def _frozen(values: np.ndarray, dtype: str) -> np.ndarray:
    with np.errstate(over="ignore", under="ignore"):
        array = np.ascontiguousarray(values.astype(FLOATS[dtype]))
    array.flags.writeable = False
    return array


def every_finite(dtype: str) -> np.ndarray:
    """All finite values of a 16-bit dtype, as 256 rows or fewer of one exponent and sign each."""
    values = np.arange(1 << 16, dtype=np.uint16).view(FLOATS[dtype])
    rows = values.reshape(-1, 1 << ml_dtypes.finfo(FLOATS[dtype]).nmant)
    return np.ascontiguousarray(rows[np.isfinite(rows.astype(np.float32)).all(axis=1)])


def float32_sample(count: int) -> np.ndarray:
    """`count` finite float32 patterns, one from each of as many equal strata of all of them."""
    per_sign = 0x7F800000
    stratum = 2 * per_sign // count
    inside = np.random.default_rng(count).integers(0, stratum, count)
    index = np.arange(count, dtype=np.int64) * stratum + inside
    negative, pattern = np.divmod(index, per_sign)
    return (pattern | negative << 31).astype(np.uint32).view(np.float32)


def layouts(x: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """`x` itself in other memory: name, array equal to `x` value for value."""
    yield "C", x
    yield "Fortran", np.asfortranarray(x)
    yield "transposed", np.ascontiguousarray(x.T).T
    yield (
        "negative-strides",
        np.ascontiguousarray(x[(slice(None, None, -1),) * x.ndim])[
            (slice(None, None, -1),) * x.ndim
        ],
    )
    wide = np.repeat(x, 2, axis=-1)
    yield "every-second", wide[..., ::2]
    yield "every-third-row", np.repeat(x, 3, axis=0)[::3]
    padded = np.pad(x, [(1, 2)] * x.ndim, constant_values=9)
    yield "offset-slice", padded[tuple(slice(1, 1 + n) for n in x.shape)]
    yield "byte-swapped", _swapped(x)
    yield "misaligned", misaligned(x)


def _swapped(x: np.ndarray) -> np.ndarray:
    if x.dtype.kind == "V" or x.dtype == FLOATS["bfloat16"]:  # ml_dtypes has no byte order
        return x.copy()
    return x.astype(x.dtype.newbyteorder(">"))


def misaligned(x: np.ndarray, offset: int = 1) -> np.ndarray:
    """A copy whose address is `offset` bytes beyond an aligned one."""
    buffer = np.zeros(x.nbytes + 64 + offset, np.uint8)
    start = -buffer.ctypes.data % 64 + offset
    copy = np.ndarray(x.shape, x.dtype, buffer.data, start)
    copy[...] = x
    return copy


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether dtype, shape and every byte agree (+0 and -0 differ)."""
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
