"""The reference against numbers computed by hand. Everything else is compared with the reference.

Packing by hand is in test_packing.py.
"""

from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest

import qrs
from qrs.backends.reference import Reference
from qrs.errors import KernelFault

REFERENCE = Reference()
F32_MAX = float(np.finfo(np.float32).max)
LEAST = 2.0**-149
WORKED = [1.6, -0.7, -3.4, 1.7, -2.9, 0.5, 2.3, 6.2]


def f32(*rows) -> np.ndarray:
    return np.array(rows, np.float32)


def choose(lo, hi, qmin, qmax, symmetric, scale_dtype="float32"):
    """Scale and zero point of one range, as numbers."""
    scale, zero_point = REFERENCE.choose_qparams_affine(
        f32([lo]), f32([hi]), qmin, qmax, symmetric, scale_dtype
    )
    return float(scale[0, 0]), None if zero_point is None else int(zero_point[0, 0])


def encode(values, scale, zero_point, qmin, qmax):
    zero_points = None if zero_point is None else np.array([[zero_point]], np.int32)
    codes = REFERENCE.quantize_affine(
        f32(values), len(values), f32([scale]), zero_points, qmin, qmax
    )
    assert codes.dtype == (np.int8 if qmin < 0 else np.uint8)
    return codes[0].tolist()


def reported(operation, *arguments):
    with pytest.raises(KernelFault) as caught:
        operation(*arguments)
    return caught.value.reason, caught.value.group


# ---- group_range ---------------------------------------------------------------------------------


def test_ranges_hold_zero_and_the_last_group_is_shorter():
    lo, hi = REFERENCE.group_range(f32([1, -2, 3, 0.5, -7], [4, 5, -6, -1, -0.0]), 2)
    assert lo.tolist() == [[-2, 0, -7], [0, -6, 0]]
    assert hi.tolist() == [[1, 3, 0], [5, 0, 0]]
    assert lo.dtype == hi.dtype == np.float32


def test_ranges_have_no_negative_zero():
    lo, hi = REFERENCE.group_range(f32([-0.0, -0.0, 1.0, -0.0]), 2)
    assert not np.signbit(lo).any() and not np.signbit(hi).any()


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_narrow_floats_widen_exactly(dtype):
    lo, hi = REFERENCE.group_range(np.array([[0.1, -0.3]], dtype), 2)
    assert (lo.dtype, hi.dtype) == (np.float32, np.float32)
    assert (float(lo[0, 0]), float(hi[0, 0])) == (float(dtype(-0.3)), float(dtype(0.1)))


@pytest.mark.parametrize(
    ("shape", "groups"), [((0, 5), (0, 2)), ((3, 0), (3, 0)), ((0, 0), (0, 0))]
)
def test_ranges_of_nothing(shape, groups):
    lo, hi = REFERENCE.group_range(np.zeros(shape, np.float32), 4)
    assert lo.shape == hi.shape == groups


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nonfinite_values_are_a_fault(value):
    x = f32([1, 2, 3], [4, 5, value])
    assert reported(REFERENCE.group_range, x, 2) == ("nonfinite", 0)
    scale = np.ones((2, 2), np.float32)
    assert reported(REFERENCE.quantize_affine, x, 2, scale, None, -127, 127) == ("nonfinite", 0)


# ---- choose_qparams_affine -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lo", "hi", "qmin", "qmax", "scale"),
    [
        (-3, 2, -127, 127, np.float32(3) / np.float32(127)),
        (-254, 127, -127, 127, 2.0),
        (-1, 3.5, -7, 7, 0.5),
        (-4, 3, -8, 7, 0.5),  # full range: -lo / 8 = 0.5 is above hi / 7
        (-4, 7, -8, 7, 1.0),  # full range: hi / 7 = 1 is above -lo / 8
        (-0.25, 0, -1, 1, 0.25),
    ],
)
def test_symmetric_scales(lo, hi, qmin, qmax, scale):
    assert choose(lo, hi, qmin, qmax, True) == (scale, None)


@pytest.mark.parametrize(
    ("lo", "hi", "qmin", "qmax", "scale", "zero_point"),
    [
        (0, 2, 0, 255, np.float32(2) / np.float32(255), 0),
        (-0.5, 1.5, 0, 255, np.float32(2) / np.float32(255), 64),  # 63.75 rounds to 64
        (-2, 0, 0, 255, np.float32(2) / np.float32(255), 255),
        (-1, 2, 0, 3, 1.0, 1),
        (-1.5, 1.5, 0, 3, 1.0, 2),  # 1.5 is a tie: to even
        (-0.5, 2.5, 0, 3, 1.0, 0),  # 0.5 is a tie: to even
        (-1.5, 1.5, -2, 1, 1.0, 0),  # -2 + 1.5 = -0.5 is a tie: to even
        (0, 15, -8, 7, 1.0, -8),
        (-30, 0, -8, 7, 2.0, 7),
        # -128 + 0.50000006 is -127.5 in float32: the sum is rounded before the tie is
        (-0.50000006, 254.5, -128, 127, 1.0, -128),
    ],
)
def test_asymmetric_scales_and_zero_points(lo, hi, qmin, qmax, scale, zero_point):
    assert choose(lo, hi, qmin, qmax, False) == (scale, zero_point)


@pytest.mark.parametrize(
    ("scale_dtype", "scale"),
    [
        ("float32", float(np.float32(1) / np.float32(7))),
        ("float16", 1170 / 8192),  # 1/7 = (1024 + 146.29) / 8192, 10 bits behind the point
        ("bfloat16", 146 / 1024),  # 1/7 = (128 + 18.29) / 1024, 7 bits behind the point
    ],
)
def test_scales_are_rounded_to_their_dtype(scale_dtype, scale):
    assert choose(-1, 0.5, -7, 7, True, scale_dtype) == (scale, None)


def test_codes_use_the_rounded_scale():
    """0.4999 is 3.4993, 3.5001 and 3.5061 steps; 0.4995 is 3.4965, 3.4973 and 3.5033."""
    codes = {}
    for scale_dtype in ("float32", "float16", "bfloat16"):
        scheme = qrs.Int(4, scale_dtype=scale_dtype)
        x = np.float32([1, 0.4999, 0.4995])
        codes[scale_dtype] = qrs.quantize(x, scheme, backend="reference").codes.tolist()
    assert codes == {"float32": [7, 3, 3], "float16": [7, 4, 3], "bfloat16": [7, 4, 4]}


def test_zero_points_use_the_rounded_scale():
    """[-1, 6.5] in 4 bits: scale 0.5; in 3 bits 7.5 / 7, which bfloat16 rounds to 137/128."""
    assert choose(-1, 6.5, 0, 15, False, "bfloat16") == (0.5, 2)
    # 1.071428 = 137.14 / 128 and 3.75 / 1.0714 = 3.50001 but 3.75 / (137/128) = 3.5036
    assert choose(-3.75, 3.75, 0, 7, False, "bfloat16") == (137 / 128, 4)


@pytest.mark.parametrize("symmetric", [True, False])
def test_a_scale_of_zero_becomes_one(symmetric):
    qmin = -127 if symmetric else 0
    zero_point = None if symmetric else 0
    assert choose(0, 0, qmin, 127 if symmetric else 255, symmetric) == (1, zero_point)
    assert choose(0, 60 * LEAST, qmin, 127, symmetric) == (1, zero_point)  # 60/127 of the least


def test_subnormal_scales_are_kept():
    assert choose(0, 64 * LEAST, -127, 127, True) == (LEAST, None)  # 64/127 of it rounds up
    assert choose(0, 255 * LEAST, 0, 255, False) == (LEAST, 0)
    assert encode([64 * LEAST, -3 * LEAST], LEAST, None, -127, 127) == [64, -3]


def test_float16_scales_underflow_to_zero_at_the_tie():
    at_tie, above = 127 * 2.0**-25, 127 * 2.0**-25 * 1.001
    assert choose(0, at_tie, -127, 127, True, "float16") == (1, None)
    assert choose(0, above, -127, 127, True, "float16") == (2.0**-24, None)


def test_a_range_wider_than_float32_divides_before_it_subtracts():
    """2^127 + 2^127 overflows; the scale is 2 * (2^127 / 255), rounded up by 5.9e-8 of itself.

    So 2^127 is 127.49999 steps, not a tie, and rounds to 127.
    """
    half_scale = float(np.float32(2.0**127 / 255))
    assert choose(-(2.0**127), 2.0**127, 0, 255, False) == (2 * half_scale, 127)


@pytest.mark.parametrize(
    ("lo", "hi", "qmin", "qmax", "symmetric", "scale_dtype", "reason"),
    [
        (0, 127 * 65520, -127, 127, True, "float16", "scale_overflow"),  # 65520 is a tie
        (0, F32_MAX, -127, 127, True, "float16", "scale_overflow"),
        (-F32_MAX, F32_MAX, 0, 255, False, "float32", "decode_overflow"),
        (0, F32_MAX, -127, 127, True, "float32", "decode_overflow"),
        (0, F32_MAX, 0, 255, False, "bfloat16", "decode_overflow"),  # bfloat16 rounds it up
        (0, F32_MAX, -1, 1, True, "bfloat16", "scale_overflow"),
    ],
)
def test_overflow_is_a_fault(lo, hi, qmin, qmax, symmetric, scale_dtype, reason):
    ranges = f32([0, lo, lo]), f32([1, hi, hi])
    fault = reported(REFERENCE.choose_qparams_affine, *ranges, qmin, qmax, symmetric, scale_dtype)
    assert fault == (reason, 1)


def test_float32_max_fits_where_the_division_does_not_round_up():
    """f32max = (2^24 - 1) * 2^104 and 2^24 - 1 = 3^2 * 5 * 7 * 13 * 17 * 241: 7 and 15 divide it.

    127 does not, the quotient rounds up, and 127 steps of it are infinite: see the faults above.
    """
    assert choose(0, F32_MAX, -7, 7, True) == (F32_MAX / 7, None)
    assert choose(0, F32_MAX, 0, 15, False) == (F32_MAX / 15, 0)


def test_just_below_the_float16_overflow():
    assert choose(0, 127 * 65519, -127, 127, True, "float16") == (65504, None)


# ---- quantize_affine -----------------------------------------------------------------------------


def test_worked_absmax_example():
    scale, _ = choose(-3.4, 6.2, -127, 127, True)
    assert encode(WORKED, scale, None, -127, 127) == [33, -14, -70, 35, -59, 10, 47, 127]


def test_ties_go_to_even():
    values = [0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 125.5, 126.5, -126.5]
    assert encode(values, 1, None, -127, 127) == [0, 2, 2, 0, -2, -2, 126, 126, -126]
    quarter = [v / 4 for v in values]
    assert encode(quarter, 0.25, None, -127, 127) == [0, 2, 2, 0, -2, -2, 126, 126, -126]


def test_ties_are_to_even_before_the_zero_point_is_added():
    """0.5 is 0 steps and -0.5 too, whatever the parity of the zero point."""
    for zero_point in (1, 2):
        codes = encode([0.5, -0.5, 1.5, -1.5], 1, zero_point, 0, 15)
        assert codes == [zero_point, zero_point, zero_point + 2, max(zero_point - 2, 0)]


def test_codes_saturate():
    assert encode([1e30, -1e30, 127.5, 128, -128], 1, None, -127, 127) == [
        127,
        -127,
        127,
        127,
        -127,
    ]
    assert encode([300, -1, 254.5], 1, 0, 0, 255) == [255, 0, 254]
    assert encode([9, -9], 1, 2, -8, 7) == [7, -7]
    huge, tiny = F32_MAX, 2.0**-126
    assert encode([huge, -huge], tiny, None, -127, 127) == [127, -127]  # the quotient is infinite


def test_zero_encodes_to_the_zero_point():
    assert encode([0.0, -0.0], 0.1, 77, 0, 255) == [77, 77]
    assert encode([0.0, -0.0], 0.1, None, -7, 7) == [0, 0]


def test_negative_scales_mirror_the_codes():
    assert encode([3, -2, 0], -1, None, -8, 7) == [-3, 2, 0]


def test_encode_is_the_correctly_rounded_division():
    """Against exact rationals; multiplying by the reciprocal would fail here."""
    random = np.random.default_rng(1)
    scale = random.uniform(0.001, 0.1, 50).astype(np.float32)
    steps = random.integers(-126, 126, 50).astype(np.float32) + np.float32(0.5)
    near = np.nextafter(steps * scale, np.float32([[-9], [0], [9]])).T
    exact = [
        [round(Fraction(float(np.float32(float(Fraction(float(x)) / Fraction(float(s)))))))
         for x in row]
        for row, s in zip(near, scale, strict=True)
    ]  # fmt: skip
    codes = REFERENCE.quantize_affine(near, 3, scale[:, None], None, -127, 127)
    assert codes.tolist() == exact
    by_reciprocal = np.rint(near * (np.float32(1) / scale[:, None]))
    assert (by_reciprocal != codes).any(), "these values tell the two apart"


def test_each_group_has_its_scale():
    codes = REFERENCE.quantize_affine(
        f32([1, 2, 3, 4, 5], [6, 7, 8, 9, 10]), 2, f32([1, 0.5, 5], [2, 1, 10]), None, -127, 127
    )
    assert codes.tolist() == [[1, 2, 6, 8, 1], [3, 4, 8, 9, 1]]  # 3.5 -> 4 is a tie as well


# ---- dequantize_affine ---------------------------------------------------------------------------


def test_decode():
    codes = np.array([[0, 128, 255]], np.uint8)
    zero_point = np.array([[128]], np.int32)
    x_hat = REFERENCE.dequantize_affine(codes, 3, f32([0.5]), zero_point, "float32")
    assert x_hat.tolist() == [[-64, 0, 63.5]]


@pytest.mark.parametrize(
    ("dtype", "bits"),
    [("float32", 0x3E99999A), ("float16", 0x34CD), ("bfloat16", 0x3E9A)],
)
def test_decoded_values_are_rounded_once(dtype, bits):
    """3 * 0.1f = 0.3000000119 = 0x3e99999a; cut to 10 and to 7 bits, to nearest."""
    codes = np.array([[3]], np.int8)
    x_hat = REFERENCE.dequantize_affine(codes, 1, f32([0.1]), None, dtype)
    assert x_hat.dtype.name == dtype
    assert x_hat.view(np.uint32 if dtype == "float32" else np.uint16)[0, 0] == bits


def test_zeros_decode_to_positive_zero():
    codes = np.array([[5, 0]], np.uint8)
    x_hat = REFERENCE.dequantize_affine(codes, 2, f32([0.1]), np.array([[5]]), "float32")
    assert x_hat[0, 0] == 0 and not np.signbit(x_hat[0, 0])


def test_float16_decode_overflows_to_infinity_in_the_kernel():
    """The API turns this into an error; see test_qtensor.py."""
    codes = np.array([[127]], np.int8)
    assert np.isinf(REFERENCE.dequantize_affine(codes, 1, f32([1000]), None, "float16")).all()


# ---- Fused operations ----------------------------------------------------------------------------


def test_quantize_packed_is_the_worked_example():
    packed, scale, zero_point = REFERENCE.quantize_affine_packed(
        f32(WORKED), 8, 8, -127, 127, True, "float32"
    )
    assert packed.view(np.int8).tolist() == [[33, -14, -70, 35, -59, 10, 47, 127]]
    assert scale.tolist() == [[float(np.float32(6.2) / np.float32(127))]]
    assert zero_point is None


def test_quantize_packed_in_four_bits():
    """[-1, 14] -> scale 1, zero point -8 + 1 = -7; codes -8, -7, 7, then 0 steps -> -7."""
    packed, scale, zero_point = REFERENCE.quantize_affine_packed(
        f32([-1, 0, 14, 0.5]), 4, 4, -8, 7, False, "float16"
    )
    assert (scale.tolist(), zero_point.tolist()) == ([[1]], [[-7]])
    assert packed.tolist() == [[0x98, 0x97]]
    x_hat = REFERENCE.dequantize_affine_packed(packed, 4, 4, 4, True, scale, zero_point, "float32")
    assert x_hat.tolist() == [[-1, 0, 14, 0]]


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_fake_quantize_keeps_the_dtype(dtype):
    x = np.array([[127, 1.5, -0.4]], dtype)
    x_hat = REFERENCE.fake_quantize_affine(x, 3, -127, 127, True, "float32")
    assert x_hat.dtype == dtype
    assert x_hat.astype(np.float32).tolist() == [[127, 2, 0]]


# ---- Worked numbers of the public API, on both backends ------------------------------------------


@pytest.mark.parametrize("backend", ["reference", "rust"])
class TestWorkedNumbers:
    def test_absmax(self, backend):
        codes = qrs.quantize(WORKED, "int8", backend=backend).codes
        assert codes.tolist() == [33, -14, -70, 35, -59, 10, 47, 127]

    def test_zero_point_of_a_positive_range(self, backend):
        assert qrs.quantize([0.0, 2.0], "uint8", backend=backend).zero_point == 0

    def test_zero_lies_on_an_integer(self, backend):
        qt = qrs.quantize([-0.5, 0.0, 1.5], "uint8", backend=backend)
        assert qt.zero_point == 64
        assert qt.codes[1] == 64
        assert qt.dequantize(backend=backend)[1] == 0

    def test_four_and_a_half_bits(self, backend):
        x = np.ones((8, 64), np.float32)
        qt = qrs.quantize(x, "int4-g32-f16", backend=backend)
        assert qt.nbytes == 8 * 32 + 8 * 2 * 2
        assert qt.bits_per_weight == 4.5
