"""Parameters out of their range, of other types, or in contradiction: rows P of bad inputs.

P13's other half, options of the command line, is with the tests of the command line.
"""

import numpy as np
import pytest

import qrs
from kernel_calls import LEVELS
from nasty import misaligned, same_bits
from processes import run
from refusals import noise, refused

X = noise(4, 64)
EVERY_LEVEL = ("baseline", "avx2", "avxvnni", "avx512", "amx")


@pytest.mark.parametrize("bits", [0, 1, 9, -4, 2**70, np.int64(16)])
def test_P01_bits_out_of_range(bits):
    message = refused(qrs.Int, bits, arg="bits")
    assert message == f"bits: got {int(bits)}, expected 2, 3, 4, 5, 6, 7 or 8"


@pytest.mark.parametrize(
    "bits", [3.5, 4.0, True, np.True_, "4", None, [4], np.float32(4)], ids=repr
)
def test_P01_bits_of_other_types(bits):
    message = refused(qrs.Int, bits, error=qrs.ArgTypeError, arg="bits")
    assert message == f"bits: got {bits!r}, expected an integer"


@pytest.mark.parametrize("kind", [np.int64, np.int8, np.uint8, int])
def test_P01_bits_of_numpy(kind):
    scheme = qrs.Int(kind(4))
    assert scheme == qrs.Int(4) and type(scheme.bits) is int
    assert str(scheme) == "int4" and scheme.to_dict()["bits"] == 4


@pytest.mark.parametrize("group_size", [0, -1, -128, 2**63, 2**64])
def test_P02_group_sizes_out_of_range(group_size):
    message = refused(qrs.Int, 4, group_size=group_size, arg="group_size")
    assert message.startswith(f"group_size: got {group_size}, expected 1 or more")


@pytest.mark.parametrize("group_size", [1.0, True, "32", [32], np.float64(32)], ids=repr)
def test_P02_group_sizes_of_other_types(group_size):
    refused(qrs.Int, 4, group_size=group_size, error=qrs.ArgTypeError, arg="group_size")
    refused(qrs.PerGroup, group_size, error=qrs.ArgTypeError, arg="group_size")


@pytest.mark.parametrize("group_size", [65, 128, 2**31, 2**63 - 1, 3, 48])
def test_P02_group_sizes_that_do_not_divide(group_size, backend):
    message = refused(
        qrs.quantize, X, qrs.Int(4, group_size=group_size), arg="group_size", backend=backend
    )
    assert f"got group_size={group_size}, shape=(4, 64)" in message
    qt = qrs.quantize(X, qrs.Int(4, group_size=group_size, ragged=True), backend=backend)
    assert qt.scale.shape == (4, -(-64 // group_size))


@pytest.mark.parametrize("group_size", [1, 2, 4, 8, 16, 32, 64])
def test_P02_any_divisor_is_fine(group_size, backend):
    qt = qrs.quantize(X, qrs.Int(4, group_size=group_size), backend=backend)
    assert qt.scale.shape == (4, 64 // group_size)
    assert np.abs(qt.dequantize() - X).max() <= qt.scale.max() / 2 * 1.001


SCALE_SHAPES = {"int8": (), "int8-axis0": (4,), "int8-axis-1": (64,), "int8-g16": (4, 4)}


@pytest.mark.parametrize("scheme", SCALE_SHAPES)
@pytest.mark.parametrize("shape", [(), (1,), (3,), (4,), (4, 1), (64,), (4, 4), (1, 4), (4, 4, 1)])
def test_P03_shapes_of_scales(scheme, shape, backend):
    scale, expected = np.ones(shape, np.float32), SCALE_SHAPES[scheme]
    if shape == expected:
        assert qrs.quantize(X, scheme, scale=scale, backend=backend).scale.shape == shape
        return
    message = refused(qrs.quantize, X, scheme, scale=scale, arg="scale", backend=backend)
    assert message == f"scale: got shape {shape}, expected {expected}"
    codes = np.zeros(X.shape, np.int8)
    assert refused(qrs.QTensor.from_parts, scheme, X.shape, codes, scale, arg="scale") == message


@pytest.mark.parametrize("dtype", [np.int32, bool, complex, "U3", object, np.longdouble])
def test_P03_dtypes_of_scales(dtype):
    scale = np.ones(4).astype(dtype)
    message = refused(
        qrs.quantize, X, "int8-axis0", scale=scale, error=qrs.ArgTypeError, arg="scale"
    )
    assert "float32, float16, bfloat16, float64" in message


@pytest.mark.parametrize(
    "scale", ["text", {}, object(), [[1.0], [1.0, 2.0]]], ids=lambda scale: type(scale).__name__
)
def test_P03_scales_that_are_no_arrays(scale):
    refused(qrs.quantize, X, "int8-axis0", scale=scale, error=qrs.ArgTypeError, arg="scale")


def test_P03_scales_of_any_layout(backend):
    scale = np.abs(noise(4, 4)) + 1
    zero_point = np.arange(16, dtype=np.int64).reshape(4, 4)
    expected = qrs.quantize(X, "uint4-g16", scale=scale, zero_point=zero_point, backend=backend)
    wide = np.repeat(scale, 2, axis=1)
    for other in (np.asfortranarray(scale), wide[:, ::2], misaligned(scale), scale.tolist(),
                  scale.astype(np.float64), scale[::-1].copy()[::-1]):  # fmt: skip
        for z in (zero_point, np.asfortranarray(zero_point), zero_point.tolist(),
                  zero_point.astype(np.uint8)):  # fmt: skip
            qt = qrs.quantize(X, "uint4-g16", scale=other, zero_point=z, backend=backend)
            assert qt == expected
            again = qrs.QTensor.from_parts(qt.scheme, X.shape, qt.codes, other, z)
            assert same_bits(again.dequantize(), expected.dequantize())


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_P04_scales_that_are_not_finite(value, backend):
    scale = np.ones((4, 4), np.float32)
    scale[2, 1] = value
    message = refused(qrs.quantize, X, "int4-g16", scale=scale, arg="scale", backend=backend)
    assert message == f"scale: {value} at (2, 1), expected finite values"
    refused(qrs.QTensor.from_parts, "int4-g16", X.shape, np.zeros(X.shape, int), scale, arg="scale")


@pytest.mark.parametrize("value", [2.0**-149, 2.0**-127, 3e-41])
def test_P04_subnormal_scales(value, level):
    x = (np.arange(-4, 4) * np.float32(value)).astype(np.float32)
    qt = qrs.quantize(x, "int4-full", scale=np.float32(value))
    assert qt.codes.tolist() == list(range(-4, 4))
    assert same_bits(qt.dequantize(), np.where(x == 0, np.float32(0), x))


def test_P04_scales_of_zero():
    """Nothing can be divided by 0; stored ones are legal where all codes mean 0."""
    scale = np.float32([1, 0, 1, 1])
    message = refused(qrs.quantize, X, "int8-axis0", scale=scale, arg="scale")
    assert message == "scale: 0.0 at (1,), expected values other than 0"
    codes = np.ones(X.shape, np.int8)
    message = refused(qrs.QTensor.from_parts, "int8-axis0", X.shape, codes, scale, arg="scale")
    assert "0.0 at (1,)" in message
    codes[1] = 0
    qt = qrs.QTensor.from_parts("int8-axis0", X.shape, codes, scale)
    assert qt.dequantize()[:, 0].tolist() == [1, 0, 1, 1]
    z = np.array([0, 1, 0, 0])
    qt = qrs.QTensor.from_parts("uint4-axis0", X.shape, np.ones(X.shape, int), scale, z)
    assert qt.dequantize()[:, 0].tolist() == [1, 0, 1, 1]
    refused(qrs.QTensor.from_parts, "uint4-axis0", X.shape, codes, scale, z, arg="scale")


def test_P04_scales_that_become_zero_or_infinite_when_stored():
    """Rounded to float16 first: 1e-9 is 0 there, and 1e6 is infinite."""
    message = refused(qrs.quantize, X, "int8-f16", scale=np.float32(1e-9), arg="scale")
    assert message.startswith("scale: 9.9999997") and message.endswith("that is 0 in float16")
    message = refused(qrs.quantize, X, "int8-f16", scale=np.float32(1e6), arg="scale")
    assert "1000000.0 at ()" in message and "float16" in message


def test_P04_negative_scales(backend):
    """Legal in symmetric schemes; beside a zero point they are an error."""
    qt = qrs.quantize(X, "int8", scale=np.float32(-0.05), backend=backend)
    plain = qrs.quantize(X, "int8", scale=np.float32(0.05), backend=backend)
    assert np.array_equal(qt.codes, -plain.codes)
    assert np.array_equal(qt.dequantize(backend=backend), plain.dequantize(backend=backend))
    message = refused(qrs.quantize, X, "uint8", scale=np.float32(-0.05), zero_point=3, arg="scale")
    assert "-0.0" in message and "zero point" in message


def test_P04_scales_that_decode_to_infinity():
    message = refused(qrs.quantize, X, "int8", scale=np.float32(3e38), arg="scale")
    assert "decode" in message and "finite" in message


@pytest.mark.parametrize(
    ("zero_point", "error"),
    [
        (16, qrs.ArgValueError),
        (-1, qrs.ArgValueError),
        (2**40, qrs.ArgValueError),
        (3.0, qrs.ArgTypeError),
        (np.nan, qrs.ArgTypeError),
        ("3", qrs.ArgTypeError),
        (True, qrs.ArgTypeError),
        ([3], qrs.ArgValueError),
        (None, qrs.ArgValueError),
    ],
    ids=repr,
)
def test_P05_zero_points(zero_point, error):
    message = refused(
        qrs.quantize, X, "uint4", scale=np.float32(1), zero_point=zero_point, error=error,
        arg="zero_point",
    )  # fmt: skip
    if error is qrs.ArgValueError and isinstance(zero_point, int):
        assert message == f"zero_point: {zero_point} at (), expected [0, 15] for uint4"
    if zero_point is not None:
        refused(
            qrs.QTensor.from_parts, "uint4", (1,), [0], 1.0, zero_point, error=error,
            arg="zero_point",
        )  # fmt: skip


def test_P05_the_first_wrong_zero_point_is_named():
    z = np.zeros((4, 4), int)
    z[2, 3], z[3, 0] = 8, -9
    message = refused(
        qrs.quantize, X, "int4-g16-asym", scale=np.ones((4, 4)), zero_point=z, arg="zero_point"
    )
    assert message == "zero_point: 8 at (2, 3), expected [-8, 7] for int4-g16-asym"


def test_P05_zero_points_without_scales_or_use():
    refused(qrs.quantize, X, "uint4", zero_point=3, arg="scale")
    refused(qrs.quantize, X, "int4", scale=1.0, zero_point=0, arg="zero_point")
    refused(qrs.QTensor.from_parts, "int4", (1,), [0], None, arg="scale")


@pytest.mark.parametrize(
    ("scheme", "code"), [("int4", 8), ("int4", -8), ("int4-full", -9), ("uint2", 4), ("int8", 200)]
)
def test_P06_codes_out_of_range(scheme, code):
    codes = np.zeros((2, 3), np.int16)
    codes[1, 2] = code
    scale, zero_point = 1.0, 0 if scheme[0] == "u" else None
    message = refused(qrs.QTensor.from_parts, scheme, (2, 3), codes, scale, zero_point, arg="codes")
    assert message.startswith(f"codes: {code} at (1, 2), expected [")
    for wrong, error in ((codes.astype(float), qrs.ArgTypeError), (codes[:1], qrs.ArgValueError)):
        refused(
            qrs.QTensor.from_parts, scheme, (2, 3), wrong, scale, zero_point, arg="codes",
            error=error,
        )  # fmt: skip


@pytest.mark.parametrize("axis", [2, -3, 64, 2**40])
def test_P09_axes_out_of_bounds(axis, backend):
    message = refused(qrs.quantize, X, qrs.Int(8, axis=axis), arg="axis", backend=backend)
    assert message.startswith(f"axis: got {axis}, out of bounds for shape {X.shape}")


@pytest.mark.parametrize("axis", [0.0, True, "0", [0], None], ids=repr)
def test_P09_axes_of_other_types(axis):
    refused(qrs.PerAxis, axis, error=qrs.ArgTypeError, arg="axis")


def test_P09_negative_axes(backend):
    for axis in (0, 1):
        a, b = (
            qrs.quantize(X, qrs.Int(8, axis=each), backend=backend) for each in (axis, axis - 2)
        )
        assert same_bits(a.packed, b.packed) and same_bits(a.scale, b.scale)


@pytest.mark.parametrize("n", [0, -1, 10**6, 2**63, -(2**70)])
def test_P10_numbers_of_threads_out_of_range(n):
    before = qrs.num_threads()
    assert str(n) in refused(qrs.set_num_threads, n, arg="n")
    assert qrs.num_threads() == before


@pytest.mark.parametrize("n", [True, "4", 2.0, None])
def test_P10_numbers_of_threads_of_other_types(n):
    refused(qrs.set_num_threads, n, error=qrs.ArgTypeError, arg="n")


# At first use, and again; what needs no kernel works all the same.
FIRST_USE = """
import sys, qrs
for call in (lambda: qrs.quantize([1.0], "int8"), qrs.simd_level, qrs.num_threads,
             lambda: qrs.quantize([1.0], "int8")):
    try:
        call()
    except qrs.QrsError as error:
        assert isinstance(error, ValueError), type(error)
        assert error.arg == sys.argv[1], error.arg
        print(error)
    else:
        print("no error")
print(qrs.fake_quantize([15.0], "uint4", backend="reference").tolist())
"""


def refusal_of(variable: str, value: str) -> str:
    *messages, last = run(FIRST_USE, variable, **{variable: value}).splitlines()
    assert last == "[15.0]"
    assert len(messages) == 4 and len(set(messages)) == 1
    return messages[0]


@pytest.mark.parametrize("value", ["abc", "0", "-1", "1000000", "4.0", " ", "99999999999999999999"])
def test_P10_the_variable(value):
    message = refusal_of("QRS_NUM_THREADS", value)
    assert "QRS_NUM_THREADS" in message and value in message and "1024" in message


def test_P10_an_empty_variable_is_none():
    code = "import qrs; print(qrs.num_threads() >= 1, qrs.simd_level())"
    assert run(code, QRS_NUM_THREADS="", QRS_SIMD="").split() == ["True", LEVELS[-1]]


@pytest.mark.parametrize("value", ["nonsense", "AVX2", "avx10", "0", " "])
def test_P11_levels_that_there_are_not(value):
    message = refusal_of("QRS_SIMD", value)
    assert "QRS_SIMD" in message and value in message and "avx2" in message


@pytest.mark.parametrize("name", [name for name in EVERY_LEVEL if name not in LEVELS])
def test_P11_levels_that_this_cpu_has_not(name):
    message = refusal_of("QRS_SIMD", name)
    assert "QRS_SIMD" in message and name in message


@pytest.mark.parametrize("name", LEVELS)
def test_P11_the_variable_lowers_the_level(name):
    code = "import qrs; print(qrs.simd_level(), qrs.quantize([1.0, -0.5], 'int8').codes.tolist())"
    assert run(code, QRS_SIMD=name).strip() == f"{name} [127, -64]"


@pytest.mark.parametrize(
    "call",
    [
        lambda: qrs.quantize(X, "int8", axis=0),
        lambda: qrs.quantize(X, "int8", "minmax"),
        lambda: qrs.dequantize(qrs.quantize(X, "int8"), dtyp="float16"),
        lambda: qrs.fake_quantize(X, "int8", solver="minmax"),
        lambda: qrs.Int(8, group=32),
        lambda: qrs.Int(8, False),
        lambda: qrs.PerAxis(axes=0),
        lambda: qrs.quantize(),
    ],
)
def test_P13_unknown_keywords(call):
    """Python's own TypeError names the keyword; nothing is guessed or ignored."""
    with pytest.raises(TypeError, match=r"argument"):
        call()
