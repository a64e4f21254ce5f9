"""The CUDA kernels of number formats give the bits of the reference; see test_cuda_kernels.py.

In the reference they are tested against numbers worked out by hand, and against ml_dtypes.
"""

from functools import cache
from zlib import crc32

import numpy as np
import pytest

from cuda_machines import GPU, ORDERS, SHARE, differing, machine, reference_call
from nasty import FLOATS, every_finite, faulty, float32_sample, misaligned, nasty
from qrs.float_formats import FORMATS

SCALE_DTYPES = ("float32", "float16", "bfloat16", "e8m0")
HALVES = [name for name in FORMATS if FORMATS[name].bits <= 16]
Call = tuple[str, tuple]

on_every_machine = pytest.mark.parametrize("there", [*ORDERS, GPU])


def edges(format: str) -> np.ndarray:
    """Numbers around those where something changes, and what is no finite number."""
    f = FORMATS[format]
    ends = [f.largest, f.largest * (1 + f.epsilon / 4), f.smallest_normal, f.smallest_subnormal]
    with np.errstate(all="ignore"):
        ends = np.float32([*ends, f.smallest_subnormal / 2, 1, 1 + f.epsilon / 2, 3e38, 0])
        around = [np.nextafter(ends, np.float32(to)) for to in (-np.inf, np.inf)]
    values = np.concatenate([ends, *around, np.float32([np.inf, np.nan])])
    return np.concatenate([values, -values])[None]


def conversions(x: np.ndarray, format: str) -> list[Call]:
    """To a format and, of what it holds, back."""
    code = FORMATS[format].code_dtype
    codes = np.arange(x.size, dtype=np.uint32).astype(code).reshape(x.shape)
    calls: list[Call] = [("encode_float", (x, format, saturate)) for saturate in (True, False)]
    calls += [("decode_float", (codes, format, dtype)) for dtype in FLOATS]
    calls.append(("quantize_float", (x, 7, format, None)))
    return [*calls, ("quantize_float_packed", (x, 7, format, None))]


def scaled(x: np.ndarray, group_size: int, format: str, scale_dtype: str) -> list[Call]:
    """Choosing scales, and all that is done with them."""
    calls: list[Call] = [("quantize_float_packed", (x, group_size, format, scale_dtype))]
    ranges = reference_call("group_range", x, group_size)
    if len(ranges) == 3:  # a fault
        return calls
    calls.append(("choose_scale_float", (*ranges, format, scale_dtype)))
    calls += [("choose_scale_float_nested", (*ranges, format, s)) for s in ("e4m3", "bf16")]
    scale, *rest = reference_call("choose_scale_float", *ranges, format, scale_dtype)
    if rest:  # a fault
        return calls
    (codes,) = reference_call("quantize_float", x, group_size, format, scale)
    packed, _ = reference_call("quantize_float_packed", x, group_size, format, None, scale)
    other = np.float32(-0.37) * scale
    back = (format, scale, x.dtype.name)
    return [
        *calls,
        ("quantize_float", (x, group_size, format, scale)),
        ("quantize_float", (x, group_size, format, other)),
        ("quantize_float_packed", (x, group_size, format, None, other)),
        ("dequantize_float", (codes, group_size, *back)),
        ("dequantize_float_packed", (packed, x.shape[1], group_size, *back)),
    ]


@cache
def cases(dtype: str, share: int) -> list[Call]:
    """Some of the nasty arrays in each format, with each kind of scale."""
    found: list[Call] = []
    for name, x in {**nasty(dtype), **faulty(dtype)}.items():
        for format in FORMATS:
            if crc32(f"{name} {format} {dtype}".encode()) % share == 0:
                found += conversions(x, format)
            for group_size in sorted({max(x.shape[1], 1), 7, 16, 32}):
                for scale_dtype in SCALE_DTYPES:
                    key = f"{name} {format} {dtype} {group_size} {scale_dtype}"
                    if crc32(key.encode()) % (2 * share) == 0:
                        found += scaled(x, group_size, format, scale_dtype)
    return found


@on_every_machine
@pytest.mark.parametrize("dtype", FLOATS)
def test_nasty_arrays(dtype, there, monkeypatch):
    some = cases(dtype, SHARE)
    assert {a for _, args in some for a in args if isinstance(a, str)} >= {*FORMATS, *SCALE_DTYPES}
    assert not differing(machine(there), some, monkeypatch)


def test_nasty_arrays_as_ptx(monkeypatch):
    """The formats of eight bits and fewer, from float16, whose NaN lose their sign on a GPU."""
    x = nasty("float16")["primes-2x1031"]
    some = conversions(x, "e2m1")
    some += [call for format in ("e2m1", "e4m3") for call in scaled(x, 16, format, "float16")]
    special = np.array([[np.inf, -np.inf, np.nan, -np.nan, -0.0]], np.float16)
    some += [("encode_float", (special, "e4m3", saturate)) for saturate in (True, False)]
    assert not differing(machine("ptx"), some, monkeypatch)


@on_every_machine
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("format", FORMATS)
def test_edges(format, dtype, there, monkeypatch):
    with np.errstate(all="ignore"):
        x = edges(format).astype(FLOATS[dtype])
    finite = np.where(np.isfinite(x.astype(np.float32)), x, FLOATS[dtype].type(1))
    some = [*conversions(x, format), *conversions(finite, format)]
    assert not differing(machine(there), some, monkeypatch)


@on_every_machine
@pytest.mark.parametrize("format", HALVES)
def test_every_code(format, there, monkeypatch):
    """All codes to all dtypes; those of infinities and NaN too."""
    f = FORMATS[format]
    codes = np.arange(1 << f.bits, dtype=f.code_dtype).reshape(-1, 16)
    some = [("decode_float", (codes, format, dtype)) for dtype in FLOATS]
    scale = np.float32(2.0) ** np.arange(-140, 116, dtype=np.float32)
    rows = codes[: 16 * len(scale)] if len(codes) > 16 else np.repeat(codes, 16, axis=0)
    scales = np.resize(scale, (len(rows), 1))
    some += [("dequantize_float", (rows, 16, format, scales, dtype)) for dtype in FLOATS]
    assert not differing(machine(there), some, monkeypatch)


@pytest.mark.parametrize("format", FORMATS)
def test_every_16_bit_value(format, monkeypatch):
    """All of float16 and bfloat16 to a format; e2m1 has no NaN to make of one."""
    for dtype in ("float16", "bfloat16"):
        x = np.arange(1 << 16, dtype=np.uint16).view(FLOATS[dtype]).reshape(64, 1024)
        some = [("encode_float", (every_finite(dtype), format, False))]
        if FORMATS[format].nan_code is not None:
            some += [("encode_float", (x, format, saturate)) for saturate in (True, False)]
        assert not differing(machine("order-0"), some, monkeypatch)


@pytest.mark.parametrize("format", FORMATS)
def test_many_float32_patterns(format, monkeypatch):
    """One pattern of each of 2^17 equal strata, plain and divided by scales at both ends."""
    x = float32_sample(1 << 17).reshape(64, 2048)
    some = [("encode_float", (x, format, saturate)) for saturate in (True, False)]
    ends = np.array([-149, -126, -101, -100, -61, -60, -59, 0, 59, 60, 61, 100, 101, 126])
    scale = np.resize(np.float32(1.37) * np.float32(2.0) ** ends, (64, 1)).astype(np.float32)
    some.append(("quantize_float", (x, 2048, format, scale)))
    assert not differing(machine("order-0"), some, monkeypatch)


@pytest.mark.parametrize("offset", [1, 2, 4, 8])
def test_misaligned_arrays(offset, monkeypatch):
    """Codes and values that start anywhere that their own size divides."""
    here = machine("order-2")
    x = nasty("float16")["primes-2x1031"][:, :1024]
    for format in HALVES:
        f = FORMATS[format]
        wanted, _ = reference_call("quantize_float_packed", x, 32, format, "float32")
        values = here.xp.ndarray(misaligned(np.ascontiguousarray(x), max(offset, 2)))
        out = here.xp.ndarray(misaligned(wanted ^ 0xFF, max(offset, f.code_dtype.itemsize)))
        here.raw_call("quantize_float_packed", values, 32, format, "float32", None, out)
        assert np.array_equal(out.get(), wanted), format


def test_nan_in_e2m1_is_a_fault():
    here = machine("order-2")
    for value in (np.nan, -np.nan):
        x = np.full((70, 33), value, np.float32)
        assert here.call("encode_float", x, "e2m1", True) == ("fault", "nan", 0)
        assert here.call("quantize_float", x, 33, "e2m1", None) == ("fault", "nonfinite", 0)
