"""Arrays that users may pass by mistake or on purpose: rows A01-A16 of the table of bad inputs.

Rows A17-A28 are in test_array_kinds.py; what needs other threads, other processes or much memory
is in test_arrays_under_load.py.
"""

import math

import numpy as np
import pytest

import qrs
from nasty import FLOATS, nasty, same_bits
from refusals import CALLS, CODEBOOKS, SCHEMES, every_call, every_dtype, noise, refused

F32_MAX = float(np.finfo(np.float32).max)
LEAST = 2.0**-149


@pytest.mark.parametrize("shape", [(0,), (0, 32), (32, 0), (2, 0, 3), (0, 0)], ids=str)
@pytest.mark.parametrize("scheme", ["int8", "uint4-axis0", "int4-axis-1-f16", "uint3-g16-ragged"])
def test_A01_empty(shape, scheme, backend):
    qt = qrs.quantize(np.zeros(shape, np.float32), scheme, backend=backend)
    specs = qt.scheme.part_specs(shape)
    assert {path: (a.dtype.name, a.shape) for path, a in qt.leaves()} == specs
    assert qt.codes.shape == shape
    assert qt.dequantize(backend=backend).shape == shape
    assert qrs.fake_quantize(np.zeros(shape, np.float16), scheme).shape == shape
    assert qt.copy() == qt


@every_call
@pytest.mark.parametrize("x", [np.float32(1), np.array(1.5), 2.5, 3], ids=repr)
def test_A02_no_dimension(call, x):
    assert refused(call, x, "int8") == "x: ndim 0, expected >= 1"


@pytest.mark.parametrize("size", [1, 2, 15, 16, 17, 31, 32, 33, 63, 64, 65])
def test_A03_one_element_short_of_a_block_or_over(size, level):
    x = noise(3, size)
    for scheme in ("int4-g16-ragged", "uint4-g32-f16-ragged"):
        assert qrs.quantize(x, scheme) == qrs.quantize(x, scheme, backend="reference")
    codes = qrs.quantize(x[0, :1], "int8").codes
    assert codes.tolist() == [127 * int(np.sign(x[0, 0]))]


@every_dtype
def test_A04_nan_in_each_lane(dtype, level):
    for lane in (*range(64), 129):
        x = noise(1, 130, dtype=dtype)
        x[0, lane] = np.nan
        for call in CALLS.values():
            message = refused(call, x, "int4-g16-ragged")
            assert message == f"x: 1 non-finite value, first nan at (0, {lane})"


def test_A04_nan_is_counted_and_located(backend):
    x = noise(3, 5, 7)
    x[1, 2, 3], x[1, 2, 4], x[2, 0, 0] = np.nan, np.inf, np.nan
    for scheme in ("int8", "int8-axis0", "int8-axis1", "int8-axis-1", "int8-g7"):
        message = refused(qrs.quantize, x, scheme, backend=backend)
        assert message == "x: 3 non-finite values, first nan at (1, 2, 3)"
        strided = np.asfortranarray(x)
        assert refused(qrs.quantize, strided, scheme, backend=backend) == message


def test_A04_nan_with_known_scales(backend):
    x = np.array([1, np.nan], np.float32)
    message = refused(qrs.quantize, x, "int8", scale=np.float32(1), backend=backend)
    assert message == "x: 1 non-finite value, first nan at (1,)"


@pytest.mark.parametrize(
    ("dtype", "pattern"),
    [("float32", 0x7F800001), ("float32", 0x7FA00000), ("float32", 0xFFC12345),
     ("float32", 0xFF800001), ("float16", 0x7C01), ("float16", 0xFE00), ("float16", 0xFC01),
     ("bfloat16", 0x7F81), ("bfloat16", 0xFFC1)],
    ids=lambda value: hex(value) if isinstance(value, int) else value,
)  # fmt: skip
def test_A05_every_kind_of_nan(dtype, pattern, level):
    x = noise(2, 40, dtype=dtype)
    x.view(np.uint32 if dtype == "float32" else np.uint16)[1, 33] = pattern
    with np.errstate(all="raise"):
        for call in CALLS.values():
            for scheme in ("int8-axis0", *CODEBOOKS):
                assert "1 non-finite value, first nan at (1, 33)" in refused(call, x, scheme)
    assert x.view(np.uint32 if dtype == "float32" else np.uint16)[1, 33] == pattern


@every_dtype
@pytest.mark.parametrize("value", [np.inf, -np.inf])
def test_A06_infinities(dtype, value, backend):
    x = noise(2, 40, dtype=dtype)
    x[0, 39], x[1, 0] = value, -value
    for call in CALLS.values():
        message = refused(call, x, "int8", backend=backend)
        assert message == f"x: 2 non-finite values, first {value} at (0, 39)"


@every_dtype
@pytest.mark.parametrize("scheme", SCHEMES)
def test_A07_negative_zero(dtype, scheme, level):
    zeros = np.zeros((2, 35), FLOATS[dtype])
    for x in (-zeros, np.where(np.arange(35) % 2, zeros, -zeros)):
        qt = qrs.quantize(x, scheme)
        assert qt == qrs.quantize(zeros, scheme)
        x_hat = qt.dequantize(dtype)
        assert same_bits(x_hat, zeros), "+0.0"
        assert same_bits(qrs.fake_quantize(x, scheme), zeros)


def test_A08_subnormals_are_kept(level):
    x = np.float32([127 * LEAST, -3 * LEAST, LEAST, 0])
    qt = qrs.quantize(x, "int8")
    assert qt.codes.tolist() == [127, -3, 1, 0]
    assert float(qt.scale) == LEAST
    assert same_bits(qt.dequantize(), x)
    assert qt.info["underflow_groups"] == 0


def test_A08_groups_that_underflow_are_counted(level):
    x = np.zeros((2, 64), np.float32)
    x[0, :32], x[1, 32:] = 1e-9, -60 * LEAST
    assert qrs.quantize(x, "int8-g32").info["underflow_groups"] == 1
    qt = qrs.quantize(x, "int8-g32-f16")  # 1e-9 / 127 is below half of 2^-24
    assert qt.info["underflow_groups"] == 2
    assert qt.scale.tolist() == [[1, 1], [1, 1]]
    assert not qt.dequantize().any()
    assert qrs.quantize(np.ones((2, 64), np.float32), "int2-g32").info["underflow_groups"] == 0


def test_A10_scales_that_float16_cannot_hold(backend):
    x = np.ones((4, 64), np.float32)
    x[2, 40] = 127 * 65520.0
    message = refused(qrs.quantize, x, "int8-g32-f16", arg="scale_dtype", backend=backend)
    assert message.startswith("scale_dtype: float16 overflows in group (2, 1): ")
    assert "8.32104e+06" in message and "65520" in message
    assert float(qrs.quantize(x - 127, "int8-g32-f16").scale[2, 1]) == 65504
    assert float(qrs.quantize(x, "int8-g32-bf16").scale[2, 1]) == 65536


@pytest.mark.parametrize(
    ("values", "scheme"),
    [
        ([-F32_MAX, F32_MAX], "uint8-g2"),
        ([0, F32_MAX], "int8-g2"),
        ([-1, F32_MAX], "int8-g2-full"),
        ([0, F32_MAX], "uint8-g2-bf16"),
    ],
)
def test_A11_ranges_that_decode_to_infinity(values, scheme, backend):
    x = np.float32([[1, 1], values])
    for call in CALLS.values():
        message = refused(call, x, scheme, backend=backend)
        assert "the extreme codes of group (1, 0) would decode to infinity" in message
        assert "3.40282e+38" in message


def test_A11_a_range_that_just_fits(backend):
    """-128 steps of f32max / 128, a power of two, are f32max again."""
    qt = qrs.quantize(np.float32([-F32_MAX, 1]), "int8-full", backend=backend)
    assert qt.dequantize().tolist() == [-F32_MAX, 0]


def test_A11_a_range_wider_than_float32(backend):
    x = np.float32([-(2.0**127), 0, 2.0**126, 2.0**127])
    qt = qrs.quantize(x, "uint8", backend=backend)
    assert math.isfinite(float(qt.scale)) and float(qt.scale) == 2 * float(
        np.float32(2.0**127 / 255)
    )
    assert qt.codes.tolist() == [0, 127, 191, 254]
    assert np.isfinite(qt.dequantize(backend=backend)).all()


@every_call
def test_A12_float64_beyond_float32(call):
    x = np.ones((3, 4))
    x[1, 2] = -3.5e38
    message = refused(call, x, "int8")
    assert message == "x: -3.5e+38 at (1, 2) overflows float32, expected at most 3.4028235e+38"
    x[1, 2] = F32_MAX / 3
    call(x, "uint8")


@every_dtype
@pytest.mark.parametrize("scheme", SCHEMES)
def test_A13_zeros(dtype, scheme, backend):
    x = np.zeros((4, 35), FLOATS[dtype])
    qt = qrs.quantize(x, scheme, backend=backend)
    assert (qt.scale == 1).all()
    assert not qt.dequantize(backend=backend).any()
    x[0] = 3
    x_hat = qrs.quantize(x, "int4-axis0", backend=backend).dequantize()
    assert (x_hat[0] == 3).all() and not x_hat[1:].any()


@pytest.mark.parametrize(("scale_dtype", "half_ulp"), [("float32", 0), ("float16", 2**-11),
                                                       ("bfloat16", 2**-8)])  # fmt: skip
@pytest.mark.parametrize("constant", [1, -2.7, 1e-3, 3e4, -1 / 3, 7e-5])
def test_A14_constants(constant, scale_dtype, half_ulp, backend):
    c = np.float32(constant)
    for bits in (2, 3, 4, 8):
        for signed in (True, False):
            scheme = qrs.Int(bits, signed=signed, symmetric=False, scale_dtype=scale_dtype)
            x_hat = qrs.fake_quantize(np.full(70, c), scheme, backend=backend)
            # A float16 scale may be subnormal here, where half an ulp is 2^-25 a step.
            steps = (2**bits - 1) * 2.0**-25 if scale_dtype == "float16" else 0
            error = np.abs(x_hat.astype(np.float64) - float(c))
            assert (error <= np.spacing(abs(c)) + max(abs(float(c)) * half_ulp, steps)).all()


def test_A15_ties_go_to_even(level):
    k = np.arange(-127, 127)
    even = np.where(k % 2 == 0, k, k + 1)
    for scale in (1.0, 2.0**-9, 2.0**40, 2.0**-126, 2.0**-140):
        x = ((k + 0.5) * scale).astype(np.float32)
        assert np.array_equal(qrs.quantize(x, "int8", scale=np.float32(scale)).codes, even)
        absmax = np.append(x, np.float32(127 * scale))  # makes `scale` the scale
        assert np.array_equal(qrs.quantize(absmax, "int8").codes[:-1], even)
        assert np.array_equal(qrs.fake_quantize(absmax, "int8")[:-1], np.float32(even * scale))


@every_call
@pytest.mark.parametrize(("cols", "group_size"), [(100, 32), (31, 32), (33, 32), (7, 2)])
def test_A16_groups_that_do_not_divide(call, cols, group_size):
    x = noise(4, cols)
    message = refused(call, x, qrs.Int(4, group_size=group_size), arg="group_size")
    assert message.startswith(
        f"group_size must divide the last axis: got group_size={group_size}, shape=(4, {cols})"
    )
    assert "ragged=True" in message
    ragged = qrs.quantize(x, qrs.Int(4, group_size=group_size, ragged=True))
    assert ragged.scale.shape == (4, -(-cols // group_size))
    last = cols // group_size * group_size
    assert same_bits(
        ragged.dequantize()[:, last:], qrs.quantize(x[:, last:], "int4-axis0").dequantize()
    )


@pytest.mark.parametrize("name", nasty("float32"))
def test_A00_every_nasty_array_through_the_api(name, backend):
    """The whole table: a result with the bits of the reference, or its error."""
    x = nasty("float32")[name]

    def outcome(scheme: str, name: str) -> qrs.QTensor | str:
        try:
            return qrs.quantize(x, scheme, backend=name)
        except qrs.ArgValueError as error:
            return str(error)

    for scheme in (*SCHEMES, *CODEBOOKS):
        assert outcome(scheme, backend) == outcome(scheme, "reference")
