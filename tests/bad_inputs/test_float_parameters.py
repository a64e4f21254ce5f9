"""Parameters of float schemes that are wrong, the rows P of the list of bad inputs."""

import numpy as np
import pytest

import qrs
from nasty import misaligned, same_bits
from refusals import refused

X = np.random.default_rng(5).standard_normal((4, 64), np.float32)
CODES = qrs.quantize(X, "e4m3").codes
SHAPES = {"e4m3-tensor": (), "e4m3-axis0": (4,), "e2m1-axis-1": (64,), "mxfp8": (4, 2)}


@pytest.mark.parametrize("group_size", [65, 128, 2**63 - 1, 3, 48])
def test_P02_group_sizes_that_do_not_divide(group_size, backend):
    scheme = qrs.Float("e4m3", group_size=group_size)
    message = refused(qrs.quantize, X, scheme, arg="group_size", backend=backend)
    assert f"group_size={group_size}" in message and "(4, 64)" in message


@pytest.mark.parametrize("scheme", SHAPES)
@pytest.mark.parametrize("shape", [(), (1,), (4,), (64,), (4, 1), (4, 2), (2, 4)])
def test_P03_shapes_of_scales(scheme, shape, backend):
    scale, expected = np.ones(shape, np.float32), SHAPES[scheme]
    if shape == expected:
        assert qrs.quantize(X, scheme, scale=scale, backend=backend).scale.shape == shape
        return
    message = refused(qrs.quantize, X, scheme, scale=scale, arg="scale", backend=backend)
    assert message == f"scale: got shape {shape}, expected {expected}"


@pytest.mark.parametrize("dtype", [np.int32, bool, complex, "U3", object])
def test_P03_dtypes_of_scales(dtype):
    scale = np.ones(4).astype(dtype)
    refused(qrs.quantize, X, "e4m3-axis0", scale=scale, error=qrs.ArgTypeError, arg="scale")


def test_P03_scales_of_any_layout(backend):
    scale = np.arange(1, 17, dtype=np.float32).reshape(4, 4)
    expected = qrs.quantize(X, "e2m1-g16", scale=scale, backend=backend)
    wide = np.repeat(scale, 2, axis=1)
    for other in (np.asfortranarray(scale), wide[:, ::2], misaligned(scale), scale.tolist(),
                  scale.astype(">f4"), scale.astype(np.float16)):  # fmt: skip
        assert qrs.quantize(X, "e2m1-g16", scale=other, backend=backend) == expected


@pytest.mark.parametrize("scheme", ["bf16", "e4m3", "nvfp4"])
def test_P03_scales_where_none_can_be_given(scheme, backend):
    message = refused(qrs.quantize, X, scheme, scale=1.0, arg="scale", backend=backend)
    assert scheme in message and message.endswith("expected None")
    refused(qrs.quantize, X, scheme, scale=1.0, zero_point=0, arg="zero_point", backend=backend)
    refused(qrs.quantize, X, "mxfp4", zero_point=0, arg="zero_point", backend=backend)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("scheme", ["e4m3-g32", "mxfp8"])
def test_P04_scales_that_are_not_finite(scheme, value, backend):
    scale = np.ones((4, 2), np.float32)
    scale[2, 1] = value
    message = refused(qrs.quantize, X, scheme, scale=scale, arg="scale", backend=backend)
    assert message.startswith(f"scale: {value} at (2, 1), expected ")


@pytest.mark.parametrize("value", [2.0**-149, 2.0**-127, 3e-41])
def test_P04_subnormal_scales(value, backend):
    """The numbers of e2m1, times a subnormal scale, come back as they are."""
    x = (np.float32([0, 1, 2, 3, 4, 6, -4]) * np.float32(value)).astype(np.float32)
    qt = qrs.quantize(x, "e2m1-tensor", scale=np.float32(value), backend=backend)
    assert same_bits(qt.dequantize(backend=backend), x)


def test_P04_scales_of_zero():
    scale = np.float32([1, 0, 1, 1])
    assert "0.0 at (1,)" in refused(qrs.quantize, X, "e4m3-axis0", scale=scale, arg="scale")
    codes = CODES.copy()
    assert "0.0 at (1,)" in refused(
        qrs.QTensor.from_parts, "e4m3-axis0", X.shape, codes, scale, arg="scale"
    )
    codes[1] = 0
    assert not qrs.QTensor.from_parts("e4m3-axis0", X.shape, codes, scale).dequantize()[1].any()


def test_P04_negative_scales(backend):
    qt = qrs.quantize(X, "e4m3-tensor", scale=np.float32(-0.05), backend=backend)
    plain = qrs.quantize(X, "e4m3-tensor", scale=np.float32(0.05), backend=backend)
    assert np.array_equal(qt.dequantize(backend=backend), plain.dequantize(backend=backend))


@pytest.mark.parametrize("value", [3.0, -1.0, 0.0, 2.0**-128, 1.0000001])
def test_P04_scales_that_are_no_powers_of_two(value):
    scale = np.ones((4, 2), np.float32)
    scale[1, 1] = value
    message = refused(qrs.quantize, X, "mxfp8", scale=scale, arg="scale")
    assert "at (1, 1), expected powers of two from 2**-127 to 2**127" in message


def test_P04_scales_that_do_not_fit_or_decode_to_infinity():
    scheme = qrs.Float("e4m3", axis=0, scale_dtype="float16")
    assert "float16" in refused(qrs.quantize, X, scheme, scale=np.full(4, 1e6), arg="scale")
    message = refused(qrs.quantize, X, "e4m3-tensor", scale=np.float32(1e36), arg="scale")
    assert "decode every code to a finite number" in message


@pytest.mark.parametrize(("scheme", "code"), [("e2m1-g32", 16), ("e4m3", 256), ("bf16", -1)])
def test_P06_codes_out_of_range(scheme, code):
    codes = np.zeros(X.shape, np.int32)
    codes[1, 2] = code
    scale = np.ones((4, 2)) if "-g" in scheme else None
    message = refused(qrs.QTensor.from_parts, scheme, X.shape, codes, scale, arg="codes")
    assert message.startswith(f"codes: {code} at (1, 2), expected [0, ")


@pytest.mark.parametrize(
    ("scheme", "code"), [("e4m3", 0x7F), ("e5m2", 0xFC), ("bf16", 0x7F80), ("f16", 0x7E00)]
)
def test_P06_codes_that_are_no_finite_numbers(scheme, code):
    codes = np.zeros(X.shape, np.int64)
    codes[3, 5] = code
    message = refused(qrs.QTensor.from_parts, scheme, X.shape, codes, None, arg="packed")
    assert f"{code} at (3, 5)" in message and "finite" in message


def test_P06_codes_of_other_dtypes_and_shapes():
    make = qrs.QTensor.from_parts
    refused(make, "e4m3", X.shape, X, None, error=qrs.ArgTypeError, arg="codes")
    refused(make, "e5m2", X.shape, CODES, None, error=qrs.ArgTypeError, arg="codes")
    refused(make, "e4m3", (4, 63), CODES, None, arg="codes")


def test_P06_foreign_parts_of_nested_scales():
    qt = qrs.quantize(X, "nvfp4")
    make, scale = qrs.QTensor.from_parts, qt.parts["scale"]
    assert make("nvfp4", X.shape, qt.codes, scale) == qt
    refused(make, "nvfp4", X.shape, qt.codes, qt.scale, error=qrs.ArgTypeError, arg="scale")
    refused(make, "nvfp4", X.shape, qt.codes, scale[:2], arg="scale")
    leaves = dict(qt.leaves())
    wrong = leaves["scale.packed"].copy()
    wrong[2, 1] = 0x7F
    broken = {**leaves, "scale.packed": wrong}
    message = refused(qrs.QTensor.from_leaves, "nvfp4", X.shape, "float32", broken, arg="packed")
    assert "127 at (2, 1)" in message
    for part in ("scale.packed", "scale.scale"):
        rest = {path: leaf for path, leaf in leaves.items() if path != part}
        refused(qrs.QTensor.from_leaves, "nvfp4", X.shape, "float32", rest, arg=part)


def test_P06_exponents_that_are_nan():
    leaves = dict(qrs.quantize(X, "mxfp4").leaves())
    leaves["scale"] = leaves["scale"].copy()
    leaves["scale"][1, 0] = 255
    message = refused(qrs.QTensor.from_leaves, "mxfp4", X.shape, "float32", leaves, arg="scale")
    assert "255 at (1, 0)" in message


def test_P06_bits_behind_a_row():
    leaves = dict(qrs.quantize(X[:, :33], "e2m1").leaves())
    leaves["packed"] = leaves["packed"] | np.uint8(0xF0)
    shape = (4, 33)
    message = refused(qrs.QTensor.from_leaves, "e2m1", shape, "float32", leaves, arg="packed")
    assert "bits behind the last code of row 0" in message


@pytest.mark.parametrize("axis", [2, -3, 2**40])
def test_P09_axes_out_of_bounds(axis, backend):
    refused(qrs.quantize, X, qrs.Float("e4m3", axis=axis), arg="axis", backend=backend)
