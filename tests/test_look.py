"""One tensor from inside: statistics, scales, codebooks, histograms, in blocks of rows."""

import json
import math
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import qrs
from checkpoints import learned_tensors, normal, save_sharded, small_model
from qrs import checkpoint
from qrs.checkpoint import Look, look_into
from qrs.checkpoint.distribution import Histogram, Statistics
from qrs.errors import ArgValueError


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """8 rows of 64 values at a time."""
    monkeypatch.setattr(checkpoint.stream, "BLOCK_BYTES", 8 * 64 * 4)


def look(tmp_path: Path, tensor: Any, **options: Any) -> Look:
    """Into the tensor "w" of a file with this one; what it says is JSON-able."""
    qrs.save(tmp_path / "m.safetensors", {"w": tensor})
    found = look_into(tmp_path / "m.safetensors", "w", **options)
    json.dumps(found.to_dict(), allow_nan=False)
    return found


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16, np.float64])
@pytest.mark.parametrize("shape", [(83, 64), (5, 4, 4, 2), (3000,), ()])
def test_a_plain_tensor(tmp_path: Path, dtype: Any, shape: tuple[int, ...]) -> None:
    w = np.asarray(normal(shape, dtype))
    found, x = look(tmp_path, w, bins=20), w.astype(np.float64)
    values = found.values
    assert (values.min, values.max, values.count) == (x.min(), x.max(), x.size)
    assert values.mean == pytest.approx(x.mean(), abs=1e-12)
    assert values.std == pytest.approx(x.std(), abs=1e-12)
    assert values.absmax == np.abs(x).max()
    assert (found.scheme, found.codebook, found.scale, found.marks) == (None, None, None, [])
    assert found.histogram is not None
    counts, edges = np.histogram(x, 20, (found.histogram.low, found.histogram.high))
    assert found.histogram.counts == tuple(counts)
    assert found.histogram.edges == pytest.approx(edges)


def test_zeros_and_what_is_not_finite_are_counted(tmp_path: Path) -> None:
    w = normal((64, 64))
    w[3, 5], w[60, 1], w[0, 0], w[1] = np.nan, np.inf, -np.inf, 0
    found = look(tmp_path, w, bins=7)
    assert (found.values.nonfinite, found.values.zeros) == (3, 64)
    assert found.values.max == w[np.isfinite(w)].max()
    assert found.histogram is not None and sum(found.histogram.counts) == 64 * 64 - 3
    assert found.histogram.below == found.histogram.above == 0


@pytest.mark.parametrize("value", [0.0, -3.5, 1e-45, 3.4e38])
def test_one_value_alone_is_in_the_middle(tmp_path: Path, value: float) -> None:
    found = look(tmp_path, np.full((4, 8), value, np.float32), bins=9)
    assert found.histogram is not None and found.histogram.counts[4] == 32
    assert found.values.std == 0


@pytest.mark.parametrize(
    "w",
    [
        np.zeros((0, 4), np.float32),
        np.full((4, 4), np.nan, np.float32),
        np.array([[1.7e308, -1.7e308]]),
        qrs.quantize(np.zeros((0, 64), np.float32), "nf4-g64"),
    ],
)
def test_without_a_range_there_is_no_histogram(tmp_path: Path, w: Any) -> None:
    assert look(tmp_path, w).histogram is None


def test_a_long_tail_is_cut_and_counted(tmp_path: Path) -> None:
    w = normal((64, 64))
    w[5, 5], w[6, 6], w[7, 7] = 1000, -900, -900
    found = look(tmp_path, w).histogram
    assert found is not None and (found.below, found.above) == (2, 1)
    assert -900 < found.low < -5 and 5 < found.high < 1000


def test_statistics_and_histograms_of_subnormals() -> None:
    x = np.array([1e-45, 2.8e-45, 4.2e-45], np.float32)
    found = Histogram.of([x], Statistics.of([x]).range(), 3)
    assert found is not None and found.counts == (1, 1, 1)
    wide = Statistics.of([np.array([1e300, -1e300])])
    assert wide.std == math.inf and wide.range() == (-1e300, 1e300)
    assert wide.to_dict()["std"] is None


@pytest.mark.parametrize("scheme", ["nf4-g32", "nf4-g16-dq", "fp4-g32-f16"])
def test_a_codebook_with_scales(tmp_path: Path, scheme: str) -> None:
    qt = qrs.quantize(normal((83, 64)), scheme)
    found = look(tmp_path, qt)
    assert (found.scheme, found.nbytes, found.dtype) == (scheme, qt.nbytes, "F32")
    assert found.bits_per_weight == qt.bits_per_weight
    leaves = {leaf: (array.shape, array.nbytes) for leaf, array in qt.leaves()}
    assert {part.name: (part.shape, part.nbytes) for part in found.parts} == leaves
    assert found.scale is not None and found.scale.count == qt.scale.size
    assert found.scale.median == np.median(qt.scale.astype(np.float64))
    assert (found.scale.min, found.scale.max) == (qt.scale.min(), qt.scale.max())
    book = found.codebook
    assert book is not None and book.tables == 1
    assert np.array_equal(book.levels, qt.codebook)
    assert np.array_equal(book.counts, np.bincount(qt.codes.reshape(-1), minlength=16))
    # Decoded values over the absmax of their group are levels.
    assert found.drawn == "decoded values / absmax of their group"
    assert found.marks == book.levels.tolist() and found.histogram is not None
    drawn = found.histogram
    marked = {drawn.place(mark) for mark in found.marks}
    assert all(place in marked for place, count in enumerate(drawn.counts) if count)
    assert sum(drawn.counts) == qt.size


@pytest.mark.parametrize("scheme", ["nf4-g32", "nf4-g64-dq", "int4-g32-asym", "int8", "int8-axis1",
                                    "kmeans4", "learned4-g32-s6"])  # fmt: skip
@pytest.mark.parametrize("shape", [(83, 64), (16, 32, 3, 3)])
def test_a_plain_tensor_quantized_in_memory(
    tmp_path: Path, scheme: str, shape: tuple[int, ...]
) -> None:
    w = normal(shape, ml_dtypes.bfloat16)
    found = look(tmp_path, w, scheme=scheme)
    assert found.scheme is not None and found.errors is not None
    assert bool(found.fallback) == (len(shape) == 4 and "-g" in scheme)
    qt = qrs.quantize(w, found.scheme)
    assert (found.nbytes, found.dtype) == (qt.nbytes, "BF16")
    assert found.errors.sqnr_db == pytest.approx(qrs.metrics.sqnr_db(w, qt.dequantize()))
    assert found.values.max == w.max(), "the true values"
    assert (found.scale is None) == (qt.scale is None)
    if found.scale is not None:
        assert found.scale.count == qt.scale.size
    if qt.zero_point is not None:
        assert found.zero_point is not None
        assert found.zero_point.max == qt.zero_point.max()
    if qt.codebook is not None:
        assert found.codebook is not None and found.histogram is not None
        assert np.array_equal(found.codebook.counts, np.bincount(qt.codes.reshape(-1)))
        assert sum(found.histogram.counts) == w.size
        if qt.scale is not None:
            assert found.drawn == "values / scale of their group"
            assert max(abs(found.histogram.low), found.histogram.high) < 1.2


def test_a_solver_is_asked(tmp_path: Path) -> None:
    w = normal((16, 64))
    plain, searched = (
        look(tmp_path, w, scheme="int3-g32", solver=by).errors for by in ("minmax", "lsq")
    )
    assert plain is not None and searched is not None
    assert searched.sqnr_db > plain.sqnr_db + 1


@pytest.mark.parametrize("text", learned_tensors())
@pytest.mark.parametrize("shape", [(20, 64), (9, 4, 32), (64,)])
def test_learned_tables(tmp_path: Path, text: str, shape: tuple[int, ...]) -> None:
    tensors = learned_tensors(shape)
    if text not in tensors:
        return
    qt = tensors[text]
    found, book = look(tmp_path, qt), qt.codebook
    assert found.codebook is not None and book is not None
    tables = book.reshape(-1, book.shape[-1])
    assert found.codebook.tables == len(tables)
    assert np.array_equal(found.codebook.levels, tables[0])
    assert np.array_equal(found.codebook.low, tables.min(axis=0))
    assert np.array_equal(found.codebook.high, tables.max(axis=0))
    sparse = dict(qt.leaves()).get("sparse_values")
    assert found.outliers == (None if sparse is None else len(sparse))
    if len(tables) == 1:
        counts = np.bincount(qt.codes.reshape(-1), minlength=len(tables[0]))
        assert np.array_equal(found.codebook.counts, counts)
    if qt.scale is not None:
        assert found.scale is not None and found.scale.negative == (qt.scale < 0).sum() > 0


def test_the_table_of_a_row(tmp_path: Path) -> None:
    tensors = learned_tensors()
    for text, row, table, values in (
        ("kmeans2-axis0", 17, 17, np.s_[17]),
        ("kmeans4-axis1-f32", 40, 40, np.s_[:, 40]),
        ("kmeans2-g16", 9, (9, 0), np.s_[9, :16]),
    ):
        qt, found = tensors[text], look(tmp_path, tensors[text], row=row, bins=10)
        assert found.codebook is not None and qt.codebook is not None
        levels, codes = qt.codebook[table], qt.codes[values]
        assert np.array_equal(found.codebook.levels, levels)
        assert np.array_equal(found.codebook.counts, np.bincount(codes, minlength=len(levels)))
        assert found.histogram is not None and str(row) in found.drawn
        x = qt.dequantize()[values]
        assert sum(found.histogram.counts) == x.size
        assert (found.histogram.low, found.histogram.high) == (x.min(), x.max())
        assert found.values.count == qt.size, "those of the whole tensor"


def test_rows_of_more_axes_are_counted_through(tmp_path: Path) -> None:
    qt = learned_tensors((11, 4, 32))["kmeans2-g16"]
    found, book = look(tmp_path, qt, row=43), qt.codebook
    assert found.codebook is not None and book is not None
    assert np.array_equal(found.codebook.levels, book.reshape(44, 2, 4)[43, 0])


def test_shards_are_looked_through(tmp_path: Path) -> None:
    model = save_sharded(tmp_path / "m")
    for name, tensor in small_model().items():
        if tensor.dtype in (np.float32, np.float64) and tensor.size:
            assert look_into(model, name).values.count == tensor.size


def test_nonfinite_values_are_refused_by_a_scheme(tmp_path: Path) -> None:
    w = normal((64, 64))
    w[20, 7] = np.nan
    with pytest.raises(ArgValueError, match=r"tensor 'w': 1 non-finite value, .* \(20, 7\)"):
        look(tmp_path, w, scheme="nf4-g32")


@pytest.mark.parametrize(
    ("tensor", "options", "message"),
    [
        ("layer.0.mlp.weigth", {}, r"tensor: .* has no .*, such as 'layer\.0\.mlp\.weight'"),
        ("zzz", {}, r"tensor: .* has no 'zzz', expected one of its 15 tensors$"),
        ("counts", {}, "tensor: 'counts' has I64 values, expected a tensor of F32, F16, BF16"),
        ("layer.0.fp8.weight", {}, "has F8_E4M3 values"),
        ("layer.0.attention.bias", {"scheme": "nf4"}, "which is a vector"),
        ("nothing", {"scheme": "nf4"}, "which is empty"),
        ("embed_tokens.weight", {"scheme": "int8-axis2"}, "'embed_tokens.weight': axis: got 2"),
        ("embed_tokens.weight", {"scheme": "int8", "row": 0}, "have no codebooks of their own"),
        ("embed_tokens.weight", {"scheme": "kmeans4", "solver": "lsq"}, "solver: got 'lsq' for k"),
        ("embed_tokens.weight", {"scheme": "kmeans2-axis0", "row": 100}, "row: .* 0 to 99"),
        ("embed_tokens.weight", {"scheme": "kmeans2-axis0", "row": -1}, "row: got -1"),
        ("embed_tokens.weight", {"row": 0}, "row: got 0"),
    ],
)
def test_what_cannot_be_looked_at(
    tmp_path: Path, tensor: str, options: dict[str, Any], message: str
) -> None:
    qrs.save(tmp_path / "m.safetensors", dict(small_model()))
    with pytest.raises(ArgValueError, match=message):
        look_into(tmp_path / "m.safetensors", tensor, **options)


def test_what_is_quantized_is_not_quantized_again(tmp_path: Path) -> None:
    qt = qrs.quantize(normal((8, 64)), "nf4-g64")
    with pytest.raises(ArgValueError, match="got int8 for 'w', which is nf4-g64 already"):
        look(tmp_path, qt, scheme="int8")
