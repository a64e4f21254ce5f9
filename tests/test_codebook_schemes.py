"""Codebook schemes: as values, with numbers worked out by hand, and what is stored of an array."""

import copy
import json
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import qrs
from nasty import FLOATS, layouts
from qrs import codebooks
from qrs.schemes import codebook_learning, from_dict, parse
from strategies import arrays, codebook_schemes, granularities

FIXED = ("nf4-g16", "nf4-g16-f16", "fp4-g8-bf16-ragged", "nf4-g16-dq", "fp4-g32-dq")
LEARNED = ("kmeans2", "kmeans4-axis0", "kmeans3-axis1-f32", "kmeans2-g16-bf16",
           "kmeans2-axis0-sparse0.05", "learned4-g16-s6", "learned2-g8-s8-f32-ragged")  # fmt: skip
ALL = (*FIXED, *LEARNED)


def weights(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


# ---- As values -----------------------------------------------------------------------------------


@given(codebook_schemes())
def test_schemes_are_values(scheme):
    again = from_dict(json.loads(json.dumps(scheme.to_dict())))
    for other in (again, pickle.loads(pickle.dumps(scheme)), copy.deepcopy(scheme)):
        assert other == scheme and hash(other) == hash(scheme)
    assert str(again) == str(scheme)


@pytest.mark.parametrize(
    ("text", "scheme"),
    [
        ("nf4-g64", qrs.NF4()),
        ("nf4-g64-dq", qrs.NF4(double_quant=True)),
        ("nf4-g32-f16", qrs.NF4(32, scale_dtype="float16")),
        ("nf4-g64", qrs.Codebook(codebooks.NF4, group_size=64)),
        ("fp4-g128-bf16-flat-ragged", qrs.FP4(128, scale_dtype="bfloat16", ragged=True, flat=True)),
        ("fp4-g64-dq-ragged", qrs.FP4(double_quant=True, ragged=True)),
        ("kmeans4", qrs.KMeans(4)),
        ("kmeans4", qrs.Codebook(16, scale_dtype=None)),
        ("kmeans3-axis-1-f32", qrs.KMeans(3, axis=-1, book_dtype="float32")),
        ("kmeans2-g128-ragged", qrs.KMeans(2, group_size=128, ragged=True)),
        ("kmeans4-sparse0.123456789", qrs.KMeans(4, outlier_fraction=0.123456789)),
        ("kmeans4-axis0-sparse0.0045", qrs.KMeans(4, axis=0, outlier_fraction=0.0045)),
        ("learned4-g32-s6", qrs.LearnedCodebook()),
        ("learned4-g32-s16", qrs.Codebook(16, group_size=32, scale_dtype="float16")),
        ("learned3-g64-s8-f32", qrs.LearnedCodebook(3, 64, 8, book_dtype="float32")),
    ],
)
def test_spelling(text, scheme):
    assert str(scheme) == text
    assert parse(text) == scheme


def test_a_name_without_a_group_is_the_default():
    assert parse("nf4") == qrs.NF4() and parse("fp4-dq") == qrs.FP4(double_quant=True)


@pytest.mark.parametrize(
    "text",
    ["nf4-axis0", "nf3-g64", "nf4-g64-dq-dq", "NF4-g64", "kmeans", "kmeans4-axis0-g32",
     "kmeans4-sparse", "learned4", "learned4-g32", "learned4-g32-s", "fp4-g", "dynamic8-g256"],
)  # fmt: skip
def test_what_is_no_scheme(text):
    with pytest.raises(qrs.ArgValueError, match="scheme: cannot read"):
        parse(text)


# ---- Numbers worked out by hand ------------------------------------------------------------------


def test_nf4_by_hand(backend):
    """absmax 4. -1/4 is between -0.284 and -0.185, whose middle is -0.2346: the code 4."""
    qt = qrs.quantize([[4.0, -1.0, 0.0, 0.159]], "nf4-g4", backend=backend)
    assert qt.scale.tolist() == [[4.0]] and qt.codes.tolist() == [[15, 4, 7, 7]]
    assert qt.packed.tolist() == [[0x4F, 0x77]]
    assert qt.dequantize(backend=backend).tolist() == [[4.0, 4 * codebooks.NF4[4], 0.0, 0.0]]
    assert [*dict(qt.leaves())] == ["packed", "scale"] and qt.codebook.tolist() == [*codebooks.NF4]


def test_ties_go_to_the_lower_level(backend):
    """The middle of 0 and 0.0796 is 0.0398; of -0.091 and 0 it is -0.0455."""
    middle = np.float32(codebooks.NF4[8]) / 2
    below = np.float32(codebooks.NF4[6]) / 2
    after = np.nextafter(middle, np.float32(1))
    x = np.array([[1, middle, after, below, np.nextafter(below, np.float32(0))]])
    assert qrs.quantize(x, "nf4-g5", backend=backend).codes.tolist() == [[15, 7, 8, 6, 7]]
    # Twelfths of 2.5 and -2.5: between 2 (code 6) and 3 (code 7), and the same below zero.
    middle = (np.float32(codebooks.FP4[6]) + np.float32(codebooks.FP4[7])) / 2
    x = np.array([[1, middle, -middle]])
    assert qrs.quantize(x, "fp4-g3", backend=backend).codes.tolist() == [[3, 6, 15]]


@pytest.mark.parametrize(
    ("table", "codes"),
    [
        ((0.0, 1.0, 2.0, 3.0), [0, 1, 2]),  # ties go to the lower code
        ((3.0, 2.0, 1.0, 0.0), [2, 1, 0]),
        ((1.0, 0.0, 3.0, 2.0), [0, 0, 2]),
        ((0.0, 1.0, 1.0, 3.0), [0, 1, 3]),  # of equal levels, the lowest code
        ((3.0, 3.0, 1.0, 0.0), [2, 2, 0]),
    ],
)
def test_tables_of_any_order(table, codes, backend):
    scheme = qrs.Codebook(table, group_size=4)
    qt = qrs.quantize([[0.5, 1.5, 2.5, 3.0]], scheme, backend=backend)
    assert qt.codes[0, :3].tolist() == codes
    assert qt.scale.tolist() == [[1.0]]


def test_tables_that_do_not_reach_below_zero(backend):
    scheme = qrs.Codebook((0.0, 0.25, 0.5, 1.0), axis=0)
    qt = qrs.quantize([[-8.0, 2.0, 1.0], [-1.0, -2.0, -3.0]], scheme, backend=backend)
    assert qt.scale.tolist() == [2.0, 0.0]
    assert qt.dequantize(backend=backend).tolist() == [[0.0, 2.0, 1.0], [0.0, 0.0, 0.0]]


def test_double_quantization_by_hand(backend):
    """Scales 1 2 3 6: mean 3, centred -2 -1 0 3, of which 3 is the largest."""
    x = np.zeros((2, 4), np.float32)
    x[0, 0], x[0, 2], x[1, 1], x[1, 3] = 1, -2, 3, 6
    qt = qrs.quantize(x, "nf4-g2-dq", backend=backend)
    nested = qt.parts["scale"]
    assert [path for path, _ in qt.leaves()] == [
        "packed", "scale.packed", "scale.scale", "scale.offset",
    ]  # fmt: skip
    assert nested.shape == (4,) and float(nested.parts["offset"]) == 3.0
    assert nested.parts["scale"].tolist() == [3.0]
    table = np.array(codebooks.DYNAMIC8, np.float32)
    expected = [int(np.argmin(np.abs(table - v))) for v in (-2 / 3, -1 / 3, 0, 1)]
    assert nested.codes.tolist() == expected
    assert qt.scale.reshape(-1).tolist() == (table[expected] * np.float32(3) + 3).tolist()
    # Codes follow the scales as they were before.
    assert qt.codes.tolist() == qrs.quantize(x, "nf4-g2", backend=backend).codes.tolist()


def test_bits_per_weight_counts_everything():
    x = weights(64, 4096)
    for scheme, bits in [
        ("nf4-g64", 4.5),
        ("nf4-g64-f16", 4.25),
        ("nf4-g64-dq", 4 + 8 / 64 + 32 / (64 * 256) + 32 / x.size),
        ("kmeans4", 4 + 16 * 16 / x.size),
        ("kmeans4-axis0", 4 + 16 * 16 / 4096),
        ("learned4-g32-s6", 4 + 6 / 32 + 32 / (32 * 256) + 16 * 16 / x.size),
        ("kmeans4-axis0-sparse0.0045", 4.0625 + 18 * 6 * 8 / 4096 + 65 * 64 / x.size),
    ]:
        specs = parse(scheme).part_specs(x.shape).values()
        sizes = (np.dtype(dtype).itemsize * int(np.prod(shape)) for dtype, shape in specs)
        assert 8 * sum(sizes) / x.size == pytest.approx(bits, abs=1e-9), scheme
    assert qrs.quantize(x, "nf4-g64-dq").bits_per_weight == pytest.approx(4.127, abs=1e-3)


# ---- K-means and learned tables ------------------------------------------------------------------


def test_kmeans_keeps_what_fits_the_table(backend):
    """Four values in a row, four levels: nothing is lost. The table is padded with its last."""
    x = np.float32([[0.5, -1, 3, 2], [7, 7, -7, 7], [0, 0, 0, 0]])
    qt = qrs.quantize(x, qrs.KMeans(2, axis=0, book_dtype="float32"), backend=backend)
    assert qt.codebook.tolist() == [[-1, 0.5, 2, 3], [-7, 7, 7, 7], [0, 0, 0, 0]]
    assert qt.codes.tolist() == [[1, 0, 3, 2], [1, 1, 0, 1], [0, 0, 0, 0]]
    assert np.array_equal(qt.dequantize(backend=backend), x)


def test_weights_draw_the_levels(backend):
    x = np.float32([[0, 1, 10, 11, 20, 21, 30, 31, 40]])
    scheme = qrs.KMeans(2, axis=0, book_dtype="float32")
    important = np.float32([1e6, 1e6, 1e-3, 1e-3, 1e-3, 1e-3, 1e-3, 1e-3, 1e-3])
    qt = qrs.quantize(x, scheme, weights=important, backend=backend)
    assert {0.0, 1.0} <= set(qt.codebook[0].tolist())
    assert qrs.quantize(x, scheme, weights=np.zeros(9), backend=backend) == qrs.quantize(x, scheme)


def test_outliers_are_stored_apart(backend):
    x = weights(4, 40)
    x[:, 3], x[1, 7] = 100, -300
    scheme = qrs.KMeans(3, axis=0, outlier_fraction=0.05)
    qt = qrs.quantize(x, scheme, backend=backend)
    columns = qt.parts["sparse_indices"].reshape(4, 2)
    assert (columns == 3).any(axis=1).all() and 7 in columns[1]
    assert qt.parts["sparse_indptr"].tolist() == [0, 2, 4, 6, 8]
    plain = qrs.quantize(x, qrs.KMeans(3, axis=0), backend=backend)
    x_hat = qt.dequantize(backend=backend)
    assert abs(float(x_hat[1, 7]) + 300) < 0.2 and np.abs(x_hat[:, 3] - 100).max() < 0.1
    assert qrs.metrics.mse(x, x_hat) < qrs.metrics.mse(x, plain.dequantize())
    assert np.array_equal(qt[[2, 1]].dequantize(), x_hat[[2, 1]])


@pytest.mark.parametrize("scale_bits", [6, 8])
def test_learned_tables_beat_fixed_ones(scale_bits):
    x = weights(32, 2048)
    learned = qrs.quantize(x, qrs.LearnedCodebook(4, 64, scale_bits))
    fixed = qrs.quantize(x, "nf4-g64-dq", solver="lsq")
    gain = qrs.metrics.sqnr_db(x, learned.dequantize()) - qrs.metrics.sqnr_db(x, fixed.dequantize())
    assert gain > (0.05 if scale_bits == 6 else 0.15)
    table = learned.codebook
    assert (np.diff(table) >= 0).all() and np.abs(table).max() == 1
    assert (learned.scale < 0).any()


def test_tables_may_be_learned_from_a_part(monkeypatch, backend):
    """Of large tensors every so many groups; the result is nearly as good."""
    x = weights(32, 1024)
    scheme = qrs.LearnedCodebook(4, 32, 8)
    whole = qrs.quantize(x, scheme, backend=backend)
    monkeypatch.setattr(codebook_learning, "SAMPLE", x.size // 7)
    part = qrs.quantize(x, scheme, weights=np.ones(1024), backend=backend)
    assert part != whole
    error = [qrs.metrics.mse(x, qt.dequantize()) for qt in (whole, part)]
    assert error[1] < 1.05 * error[0]


# ---- Arrays --------------------------------------------------------------------------------------


@st.composite
def fitting(draw: st.DrawFn):
    shapes = hnp.array_shapes(min_dims=1, max_dims=3, min_side=1, max_side=6)
    dtype = draw(st.sampled_from(["float32", "float16", "bfloat16"]))
    x = draw(arrays(shapes, dtype=dtype, greatest=400))
    return x, draw(codebook_schemes(granularities(x.shape)))


@given(fitting())
def test_every_way_gives_the_same(case):
    """Backends, fake_quantize, rows, parts made elsewhere, pickles, and another `out`."""
    x, scheme = case
    qt = qrs.quantize(x, scheme)
    assert qt == qrs.quantize(x, scheme, backend="reference")
    x_hat = qt.dequantize()
    assert np.array_equal(x_hat, qt.dequantize(backend="reference"))
    assert np.array_equal(qrs.fake_quantize(x, scheme), qt.dequantize(x.dtype))
    if not scheme.outlier_fraction:
        part = qt.parts.get("scale")
        given_scale = part if isinstance(part, qrs.QTensor) else qt.scale
        book = qt.codebook if scheme.is_learned else None
        made = qrs.QTensor.from_parts(scheme, x.shape, qt.codes, given_scale, codebook=book)
        assert dict(made.leaves()).keys() == dict(qt.leaves()).keys()
        assert np.array_equal(made.dequantize(), x_hat)
    assert pickle.loads(pickle.dumps(qt)) == qt
    assert qrs.QTensor.from_leaves(scheme, x.shape, qt.dtype, dict(qt.leaves())) == qt
    out = qt.copy()
    out.packed[...] = 0xA5
    assert qrs.quantize(x, scheme, out=out) is out and out == qt
    if x.ndim > 1:
        assert np.array_equal(qt[::-1].dequantize(), x_hat[::-1])


@given(fitting())
def test_values_are_the_nearest_level(case):
    """No level, times the scale, is nearer than what was stored, but for two roundings."""
    x, scheme = case
    if isinstance(scheme.scale_dtype, qrs.schemes.Scheme) or scheme.outlier_fraction:
        return  # codes follow scales that are not stored, and outliers are something else
    qt = qrs.quantize(x, scheme)
    rows = scheme.granularity.to_rows(x).astype(np.float64)
    layout = qrs.schemes.layout.layout_of(scheme, x.shape)
    spread = lambda a: np.repeat(a, layout.group_size, axis=1)[:, : layout.cols]  # noqa: E731
    scale = 1.0
    if qt.scale is not None:
        scale = spread(qt.scale.reshape(layout.rows, layout.groups).astype(np.float64))
    book = qt.codebook.astype(np.float64)
    shared = book.ndim == 1 or scheme.book_granularity is None
    levels = book.reshape(1, 1, -1) if shared else spread(
        book.reshape(layout.rows, layout.groups, -1))  # fmt: skip
    candidates = levels * np.asarray(scale)[..., None]
    x_hat = scheme.granularity.to_rows(qt.dequantize()).astype(np.float64)
    nearest = np.min(np.abs(rows[..., None] - candidates), axis=-1)
    slack = np.abs(rows) * 2.0**-21 + np.abs(candidates).max(initial=0) * 2.0**-21
    assert (np.abs(rows - x_hat) <= nearest + slack + 2.0**-120).all()


@pytest.mark.parametrize("scheme", ALL)
def test_A17_every_layout_gives_the_bits_of_its_contiguous_copy(scheme):
    for dtype in FLOATS:
        x = weights(3, 8, 32).astype(FLOATS[dtype])
        expected = qrs.quantize(x, scheme)
        for name, other in layouts(x):
            assert qrs.quantize(other, scheme) == expected, name


@pytest.mark.parametrize("shape", [(0,), (0, 32), (32, 0), (2, 0, 64)])
@pytest.mark.parametrize("scheme", ALL)
def test_A01_arrays_without_elements(scheme, shape, backend):
    parsed = parse(scheme)
    if isinstance(parsed.granularity, qrs.PerAxis) and parsed.granularity.axis >= len(shape):
        return
    qt = qrs.quantize(np.zeros(shape, np.float32), scheme, backend=backend)
    assert qt.dequantize(backend=backend).shape == shape and qt.codes.shape == shape
    specs = parsed.part_specs(shape)
    assert {path: (a.dtype.name, a.shape) for path, a in qt.leaves()} == specs
    assert qrs.QTensor.from_leaves(scheme, shape, "float32", dict(qt.leaves())) == qt


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("scheme", ALL)
def test_A04_nan_and_infinities_are_named(scheme, bad, backend):
    for at in ((0, 0), (1, 37), (4, 63)):
        x = weights(5, 64)
        x[at] = bad
        with pytest.raises(qrs.ArgValueError) as caught:
            qrs.quantize(x, scheme, backend=backend)
        assert f"1 non-finite value, first {bad} at {at}" in str(caught.value)


@pytest.mark.parametrize("scheme", ALL)
def test_A07_A13_zeros_decode_to_zeros(scheme, backend):
    zeros = np.zeros((4, 32), np.float32)
    qt = qrs.quantize(zeros, scheme, backend=backend)
    assert not qt.dequantize(backend=backend).any()
    assert qrs.quantize(-zeros, scheme, backend=backend) == qt
    x = np.concatenate([zeros, np.ones((4, 32), np.float32)])
    x_hat = qrs.quantize(x, scheme, backend=backend).dequantize(backend=backend)
    if "dq" not in scheme and scheme != "kmeans3-axis1-f32":
        assert not x_hat[:4].any()
    assert np.abs(x_hat[4:] - 1).max() < 0.05


@pytest.mark.parametrize("factor", [2.0**-140, 1e-30, 1.0, 1e30, 2.0**123])
@pytest.mark.parametrize("scheme", [s for s in ALL if "-f32" in s or s.startswith("nf4")])
def test_any_magnitude(scheme, factor, backend):
    if "f16" in scheme and "bf16" not in scheme:
        return
    x = (weights(3, 64) * np.float64(factor)).astype(np.float32)
    x_hat = qrs.quantize(x, scheme, backend=backend).dequantize(backend=backend)
    assert np.isfinite(x_hat).all()
    if factor > 1e-37:
        assert qrs.metrics.sqnr_db(x, x_hat) > 8


def test_A08_groups_that_underflow_are_counted(backend):
    x = np.zeros((4, 32), np.float32)
    x[0], x[1], x[2] = 1e-9, 2.0**-140, 1
    qt = qrs.quantize(x, "nf4-g32-f16", backend=backend)
    assert qt.info["underflow_groups"] == 2 and not qt.dequantize()[:2].any()
    assert qrs.quantize(x, "nf4-g32", backend=backend).info["underflow_groups"] == 0


def test_A10_A11_overflow(backend):
    x = weights(4, 64)
    x[2, 40] = 1e6
    for scheme, arg, words in [
        ("nf4-g32-f16", "scale_dtype", r"float16 overflows in group \(2, 1\)"),
        ("kmeans4-axis0", "book_dtype", "float16 overflows: a level is"),
    ]:
        with pytest.raises(qrs.ArgValueError, match=words) as caught:
            qrs.quantize(x, scheme, backend=backend)
        assert caught.value.arg == arg
    x[3, 1] = 3.4e38
    with pytest.raises(qrs.ArgValueError, match=r"extreme codes of group \(3, 0\)"):
        scheme = qrs.Codebook((-2.0, 0.0, 0.5, 1.0), group_size=32)
        qrs.quantize(x, scheme, backend=backend)


def test_tables_of_numbers_too_small_are_counted(backend):
    x = weights(4, 64)
    x[1:3] *= 1e-8
    assert qrs.quantize(x, "kmeans2-axis0", backend=backend).info == {"subnormal_tables": 2}
    assert qrs.quantize(x, "kmeans2-axis0-f32", backend=backend).info == {"subnormal_tables": 0}


@pytest.mark.parametrize("factor", [1e8, 3e37])
def test_learned_scales_that_overflow(factor, backend):
    x = (weights(8, 64) * np.float64(factor)).astype(np.float32)
    with pytest.raises(qrs.ArgValueError, match=r"float16 overflows in group \(0, 0\)"):
        qrs.quantize(x, "learned2-g32-s16", backend=backend)


@pytest.mark.parametrize("scheme", ALL)
def test_files_round_trip(scheme, tmp_path):
    qt = qrs.quantize(weights(8, 64), scheme)
    qrs.save(tmp_path / "w.safetensors", {"w": qt, "b": np.ones(3, np.float32)})
    assert qrs.load(tmp_path / "w.safetensors")["w"] == qt


def test_the_part_learned_from_meets_all_columns(monkeypatch):
    """A fixed step through the groups would meet the columns of zeros alone."""
    monkeypatch.setattr(codebook_learning, "SAMPLE", 1 << 13)
    x = weights(64, 1024)
    x[:, np.arange(1024) % 128 < 32] = 0
    x_hat = qrs.quantize(x, "learned4-g32-s8").dequantize()
    assert qrs.metrics.sqnr_db(x, x_hat) > 22
    x[::2] = 0
    x_hat = qrs.quantize(x, "learned4-g1024-s16").dequantize()
    assert qrs.metrics.sqnr_db(x, x_hat) > 19


def test_groups_whose_scales_become_zero_are_counted(backend):
    x = weights(64, 1024)
    x[5, 7] = 300
    qt = qrs.quantize(x, "learned4-g32-s6", backend=backend)
    assert qt.info["underflow_groups"] == np.count_nonzero(qt.scale == 0) > 200
    tiny = x * np.float32(1e-9)
    for scheme in ("learned4-g32-s16", "nf4-g32-f16", "int4-g32-f16"):
        solver = "minmax" if scheme.startswith("learned") else "lsq"
        qt = qrs.quantize(tiny, scheme, solver=solver, backend=backend)
        assert qt.info["underflow_groups"] >= 2047, scheme


def test_scales_that_overflow_when_they_are_quantized(backend):
    x = weights(4, 64)
    x[2, 40] = np.finfo(np.float32).max
    with pytest.raises(qrs.ArgValueError, match="x: scales overflow as int8-g256-ragged"):
        qrs.quantize(x, "learned4-g32-s8", backend=backend)
