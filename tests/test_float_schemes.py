"""Float schemes: as values, with numbers worked out by hand, and what is stored of an array."""

import copy
import json
import pickle

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import qrs
from nasty import FLOATS, layouts
from qrs.schemes import from_dict, parse
from strategies import arrays, float_schemes, granularities

NAMED = ("nvfp4", "mxfp4", "mxfp8")
SCALED = ("e4m3-tensor", "e4m3-axis0", "e2m1-axis1", "bf16-axis1", "e2m1-g7-f16-ragged",
          "e5m2-g16", "f16-g16-bf16", "e5m2-g32-e8m0", *NAMED)  # fmt: skip
E4M3_TENSOR = qrs.Float("e4m3", granularity=qrs.PerTensor())
PLAIN = ("bf16", "f16", "e4m3", "e5m2", "e2m1")


def weights(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


# ---- As values -----------------------------------------------------------------------------------


@given(float_schemes())
def test_schemes_are_values(scheme):
    assert parse(str(scheme)) == scheme
    again = from_dict(json.loads(json.dumps(scheme.to_dict())))
    for other in (again, pickle.loads(pickle.dumps(scheme)), copy.deepcopy(scheme)):
        assert other == scheme and hash(other) == hash(scheme)


@pytest.mark.parametrize(
    ("text", "scheme"),
    [
        ("bf16", qrs.Float("bf16")),
        ("f16-strict", qrs.Float("f16", saturate=False)),
        ("e4m3-tensor", qrs.Float("e4m3", granularity=qrs.PerTensor())),
        ("e4m3-g32", qrs.Float("e4m3", group_size=32)),
        ("e5m2-axis-1-f16", qrs.Float("e5m2", axis=-1, scale_dtype="float16")),
        ("nvfp4", qrs.NVFP4()),
        ("nvfp4-flat-ragged", qrs.NVFP4(flat=True, ragged=True)),
        ("mxfp4", qrs.MXFP4()),
        ("mxfp4", qrs.Float("e2m1", group_size=32, scale_dtype="e8m0")),
        ("mxfp8", qrs.MXFP8()),
        ("e5m2-g32-e8m0", qrs.MXFP8("e5m2")),
        (
            "e2m1-g32-(e5m2-tensor)",
            qrs.Float(
                "e2m1", group_size=32, scale_dtype=qrs.Float("e5m2", granularity=qrs.PerTensor())
            ),
        ),
    ],
)
def test_spelling(text, scheme):
    assert str(scheme) == text
    assert parse(text) == scheme


@pytest.mark.parametrize(
    "text",
    ["fp8", "e4m3-", "e4m3-g", "e4m3-g32-f32", "nvfp4-g16x", "mxfp6", "E4M3", "e4m3 ",
     "e2m1-g16-()", "e2m1-g16-(int8)", "e3m2", "bf16-asym", "tensor", "e4m3-ragged-g3"],
)  # fmt: skip
def test_what_is_no_scheme(text):
    with pytest.raises(qrs.ArgValueError, match="scheme: cannot read"):
        parse(text)


@pytest.mark.parametrize(
    ("fields", "arg"),
    [
        ({"format": "e3m4"}, "format"),
        ({"format": "f32"}, "format"),
        ({"format": None}, "format"),
        ({"scale_dtype": "float32"}, "scale_dtype"),
        ({"group_size": 4, "scale_dtype": "float64"}, "scale_dtype"),
        ({"group_size": 4, "scale_dtype": qrs.Int(8)}, "scale_dtype"),
        ({"group_size": 4, "scale_dtype": qrs.Float("e4m3")}, "scale_dtype"),
        ({"group_size": 4, "scale_dtype": qrs.Float("e4m3", group_size=4)}, "scale_dtype"),
        ({"group_size": 4, "scale_dtype": qrs.Float("f16", axis=0)}, "scale_dtype"),
        ({"granularity": qrs.PerTensor(), "scale_dtype": E4M3_TENSOR}, "scale_dtype"),
        ({"group_size": 4, "saturate": False}, "saturate"),
        ({"axis": 0, "group_size": 4}, "group_size"),
        ({"ragged": True}, "ragged"),
        ({"group_size": 0}, "group_size"),
    ],
)
def test_fields_that_contradict(fields, arg):
    with pytest.raises(qrs.ArgValueError) as caught:
        qrs.Float(**{"format": "e4m3", **fields})
    assert caught.value.arg == arg and caught.value.expected


@pytest.mark.parametrize("name", ["saturate", "ragged", "flat"])
def test_flags_are_booleans(name):
    with pytest.raises(qrs.ArgTypeError) as caught:
        qrs.Float("e4m3", **{name: 1})
    assert caught.value.arg == name


# ---- Numbers worked out by hand ------------------------------------------------------------------


def test_a_plain_cast_keeps_minus_zero_and_saturates(backend):
    """e4m3: 0.1 = 1.6 * 2^-4 lies between 1.5 and 1.625 * 2^-4; 465 is beyond 448."""
    qt = qrs.quantize([0.1, -0.0, 465.0, -1e30], "e4m3", backend=backend)
    x_hat = qt.dequantize(backend=backend)
    assert x_hat.tolist() == [0.1015625, 0.0, 448.0, -448.0]
    assert np.signbit(x_hat).tolist() == [False, True, False, True]
    assert qt.codes.dtype == ml_dtypes.float8_e4m3fn and qt.scale is None
    assert [*dict(qt.leaves())] == ["packed"] and qt.bits_per_weight == 8


def test_strict_casts_name_what_is_too_large(backend):
    """Half of the way from 448 to the next step, 480, is 464: a tie, which goes to the even 448."""
    x = np.array([[1, 464], [-300, 2]], np.float32)
    scheme = qrs.Float("e4m3", saturate=False)
    assert qrs.quantize(x, scheme, backend=backend).dequantize().tolist() == [[1, 448], [-288, 2]]
    x[1, 0] = np.nextafter(np.float32(-464), np.float32(-465))
    with pytest.raises(qrs.ArgValueError, match=r"x: -464\.0000\d* at \(1, 0\) overflows e4m3"):
        qrs.quantize(x, scheme, backend=backend)
    # In the others the largest number is odd, and the tie goes on to infinity.
    for name, end in (("f16", 65520), ("e5m2", 61440)):
        strict = qrs.Float(name, saturate=False)
        below = np.nextafter(np.float32(end), np.float32(0))
        assert qrs.quantize([below], strict).dequantize()[0] < end
        with pytest.raises(qrs.ArgValueError, match="overflows"):
            qrs.quantize([float(end)], strict, backend=backend)


def test_scales_are_absmax_over_largest(backend):
    """e2m1: 0 0.5 1 1.5 2 3 4 6. absmax 12 -> scale 2; 5 / 2 = 2.5 is a tie of 2 (even) and 3."""
    qt = qrs.quantize([[12.0, 5.0, -1.0, 0.4]], "e2m1-g4", backend=backend)
    assert qt.scale.tolist() == [[2.0]]
    assert qt.codes.astype(np.float32).tolist() == [[6.0, 2.0, -0.5, 0.0]]
    assert qt.dequantize(backend=backend).tolist() == [[12.0, 4.0, -1.0, 0.0]]
    # Codes 7 4 | 9 0, the first of each byte in its lower half.
    assert qt.packed.tolist() == [[0x47, 0x09]]


def test_mxfp4_by_hand(backend):
    """absmax 7 = 1.75 * 2^2: scale 2^(2 - 2) = 1 and 7 saturates to 6; 0.01 = 1.28 * 2^-7: 2^-9."""
    x = np.zeros((1, 64), np.float32)
    x[0, :3], x[0, 32:35] = [7, -2.5, 0.2], [0.01, -0.005, 0.0004]
    qt = qrs.quantize(x, "mxfp4", backend=backend)
    assert qt.parts["scale"].tolist() == [[127, 118]] and qt.scale.tolist() == [[1, 2.0**-9]]
    # 0.01 * 512 = 5.12 -> 6 (above 5); 2.56 -> 3; 0.2048 -> 0.
    assert qt.dequantize()[0, :3].tolist() == [6, -2, 0]
    assert qt.dequantize()[0, 32:35].tolist() == [6 / 512, -3 / 512, 0]
    assert qt.bits_per_weight == 4.25


def test_nvfp4_by_hand(backend):
    """absmax 2688 = 6 * 448: the one scale is 1, those of groups are absmax / 6 in e4m3."""
    x = np.zeros((2, 32), np.float32)
    x[0, 0], x[0, 16], x[1, 0] = 2688, -60, 0.001
    qt = qrs.quantize(x, "nvfp4", backend=backend)
    assert [path for path, _ in qt.leaves()] == ["packed", "scale.packed", "scale.scale"]
    assert qt.parts["scale"].scale == 1
    # 60 / 6 = 10 = 1.25 * 2^3; zeros and 0.001 / 6, less than half of 2^-9, get the scale 1.
    assert qt.scale.tolist() == [[448, 10], [1, 1]]
    assert qt.dequantize()[0, [0, 16]].tolist() == [2688, -60]
    assert not qt.dequantize()[1].any()
    assert qt.info["underflow_groups"] == 1
    assert qrs.quantize(weights(64, 256), "nvfp4").bits_per_weight == 4.5 + 32 / (64 * 256)


@pytest.mark.parametrize("factor", [2.0**-140, 1e-30, 1.0, 1e30, 2.0**123])
@pytest.mark.parametrize("scheme", [s for s in SCALED if "f16" not in s])
def test_any_magnitude(scheme, factor, backend):
    x = (weights(3, 64) * np.float64(factor)).astype(np.float32)
    qt = qrs.quantize(x, scheme, backend=backend)
    if factor > 1e-37:
        assert qrs.metrics.sqnr_db(x, qt.dequantize(backend=backend)) > 15
    assert np.isfinite(qt.dequantize(backend=backend)).all()


# ---- Arrays --------------------------------------------------------------------------------------


@st.composite
def fitting(draw: st.DrawFn):
    x = draw(arrays(dtype=draw(st.sampled_from(["float32", "float16", "bfloat16"])), greatest=400))
    scheme = draw(float_schemes(granularities(x.shape)))
    if not scheme.saturate and scheme.format == "e2m1":
        scheme = qrs.Float("e2m1")
    return x, scheme


@given(fitting())
def test_every_way_gives_the_same(case):
    """Backends, fake_quantize, rows, parts made elsewhere, pickles, and another `out`."""
    x, scheme = case
    qt = qrs.quantize(x, scheme)
    assert qt == qrs.quantize(x, scheme, backend="reference")
    x_hat = qt.dequantize()
    assert np.array_equal(x_hat, qt.dequantize(backend="reference"))
    narrow = qt.dequantize(x.dtype)
    assert np.array_equal(qrs.fake_quantize(x, scheme), narrow)
    scale = qt.parts.get("scale")
    given_scale = scale if isinstance(scale, qrs.QTensor) else qt.scale
    assert qrs.QTensor.from_parts(scheme, x.shape, qt.codes, given_scale).packed.tobytes() == (
        qt.packed.tobytes()
    )
    assert pickle.loads(pickle.dumps(qt)) == qt
    assert qrs.QTensor.from_leaves(scheme, x.shape, qt.dtype, dict(qt.leaves())) == qt
    out = qt.copy()
    out.packed[...] = 0xA5
    assert qrs.quantize(x, scheme, out=out) is out and out == qt
    if x.ndim > 1:
        assert np.array_equal(qt[::-1].dequantize(), x_hat[::-1])


@given(fitting())
def test_values_are_the_nearest_of_the_format(case):
    """No number of the format, times the scale, is nearer to x than what was stored.

    Two roundings of float32 allow for an error of 2^-22 of the value.
    """
    x, scheme = case
    qt = qrs.quantize(x, scheme)
    if scheme.bits > 8 or not x.size:
        return
    f = scheme.float_format
    codes = np.arange(1 << f.bits, dtype=np.uint8)
    codes = codes[(codes & (f.sign_bit - 1)) <= f.max_code]
    values = codes.view(f.dtype).astype(np.float64)
    ones = qrs.QTensor.from_parts(scheme.format, x.shape, qt.codes, None).dequantize()
    x_hat = qt.dequantize().astype(np.float64)
    scale = np.divide(x_hat, ones, out=np.full(x.shape, np.nan), where=ones != 0)
    x = x.astype(np.float64)
    nearest = np.min(np.abs(x[..., None] - scale[..., None] * values), axis=-1)
    known = ~np.isnan(scale)
    assert (np.abs(x - x_hat) <= nearest + np.abs(x) * 2.0**-22 + 2.0**-149)[known].all()


@pytest.mark.parametrize("scheme", [*PLAIN, *SCALED])
def test_A17_every_layout_gives_the_bits_of_its_contiguous_copy(scheme):
    for dtype in FLOATS:
        x = weights(3, 8, 64).astype(FLOATS[dtype])
        expected = qrs.quantize(x, scheme)
        for name, other in layouts(x):
            assert qrs.quantize(other, scheme) == expected, name


@pytest.mark.parametrize("shape", [(0,), (0, 32), (32, 0), (2, 0, 64)])
@pytest.mark.parametrize("scheme", [*PLAIN, *SCALED])
def test_A01_arrays_without_elements(scheme, shape, backend):
    parsed = parse(scheme)
    if isinstance(parsed.granularity, qrs.PerAxis) and parsed.granularity.axis >= len(shape):
        return
    qt = qrs.quantize(np.zeros(shape, np.float32), scheme, backend=backend)
    assert qt.dequantize(backend=backend).shape == shape and qt.codes.shape == shape
    assert qrs.QTensor.from_leaves(scheme, shape, "float32", dict(qt.leaves())) == qt


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("scheme", [*PLAIN, *SCALED])
def test_A04_nan_and_infinities_are_named(scheme, bad, backend):
    for at in ((0, 0), (1, 37), (4, 63)):
        x = weights(5, 64)
        x[at] = bad
        with pytest.raises(qrs.ArgValueError) as caught:
            qrs.quantize(x, scheme, backend=backend)
        assert f"1 non-finite value, first {bad} at {at}" in str(caught.value)


def test_A08_groups_that_underflow_are_counted(backend):
    x = np.zeros((4, 32), np.float32)
    x[0], x[1], x[2] = 2.0**-149, 2.0**-140, 1
    qt = qrs.quantize(x, "e4m3-g32", backend=backend)
    assert qt.info["underflow_groups"] == 1 and not qt.dequantize()[0].any()
    # Powers of two end at 2^-127: a quarter of that is a tie, and rounds to the even 0 in e2m1.
    x[0], x[1] = 2.0**-129, np.nextafter(np.float32(2.0**-129), np.float32(1))
    qt = qrs.quantize(x, "mxfp4", backend=backend)
    assert qt.info["underflow_groups"] == 1
    assert not qt.dequantize()[0].any() and qt.dequantize()[1].all()


def test_A10_scales_that_overflow(backend):
    x = weights(4, 64)
    x[2, 40] = 1e6
    with pytest.raises(qrs.ArgValueError, match=r"float16 overflows in group \(2, 1\)") as caught:
        qrs.quantize(x, qrs.Float("e2m1", group_size=32, scale_dtype="float16"), backend=backend)
    assert caught.value.arg == "scale_dtype" and "166667" in str(caught.value)


def test_A11_codes_that_would_decode_to_infinity(backend):
    x = weights(4, 64)
    x[3, 1] = 3.4028235e38
    with pytest.raises(qrs.ArgValueError, match=r"extreme codes of group \(3, 0\)"):
        qrs.quantize(x, "e2m1-g32-bf16", backend=backend)
    assert np.isfinite(qrs.quantize(x, "mxfp4", backend=backend).dequantize()).all()


def test_decoding_that_overflows_float16(backend):
    qt = qrs.quantize([[57344.0, 1.0], [3.0, 5e7]], "e5m2-axis0")  # the first scale is 1
    with pytest.raises(qrs.ArgValueError, match=r"value at \(1, 1\) overflows float16"):
        qt.dequantize("float16", backend=backend)
    assert qt[:1].dequantize("float16", backend=backend).tolist() == [[57344.0, 1.0]]


def test_groups_along_flattened_axes(backend):
    """A convolution's weight: groups run along (in, kh, kw), and packed rows too."""
    x = weights(4, 5, 3, 3)
    for scheme in ("mxfp4-flat-ragged", "nvfp4-flat-ragged", "e4m3-g16-flat-ragged"):
        qt = qrs.quantize(x, scheme, backend=backend)
        flat = qrs.quantize(x.reshape(4, 45), scheme.replace("-flat", ""), backend=backend)
        assert qt.packed.tobytes() == flat.packed.tobytes()
        assert np.array_equal(qt.dequantize(), flat.dequantize().reshape(x.shape))
        assert np.array_equal(qt.codes, flat.codes.reshape(x.shape))


@pytest.mark.parametrize("scheme", [*PLAIN, *SCALED])
def test_files_round_trip(scheme, tmp_path):
    qt = qrs.quantize(weights(8, 64), scheme)
    qrs.save(tmp_path / "w.safetensors", {"w": qt, "b": np.ones(3, np.float32)})
    assert qrs.load(tmp_path / "w.safetensors")["w"] == qt
