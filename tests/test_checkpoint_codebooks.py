"""Codebooks and solvers in whole checkpoints: there and back, in blocks of rows, and the plan."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

import qrs
from checkpoints import (
    assert_same,
    learned_tensors,
    normal,
    save_model,
    small_model,
    with_outliers,
)
from qrs import checkpoint
from qrs.checkpoint import dequantize_checkpoint, make_plan, quantize_checkpoint
from qrs.checkpoint.plan import fit
from qrs.errors import ArgValueError
from qrs.formats.header import TensorInfo
from qrs.formats.qrs_file import QrsFile
from qrs.schemes.sparse import columns_of_outliers

FIXED = ["nf4-g64", "nf4-g64-dq", "fp4-g64-dq-ragged", "nf4-g32-flat", "nf4-g16-bf16"]
LEARNED = ["kmeans4", "kmeans2-axis0", "kmeans3-g16", "kmeans3-sparse0.05", "learned4-g16-s6"]
MIB = 1 << 20


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """8 rows of 64 values at a time."""
    monkeypatch.setattr(checkpoint.stream, "BLOCK_BYTES", 8 * 64 * 4)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("scheme", [*FIXED, *LEARNED])
def test_there_and_back(tmp_path: Path, scheme: str) -> None:
    model, source = save_model(tmp_path / "m"), small_model()
    report = quantize_checkpoint(model, tmp_path / "q", scheme, embeddings=scheme)
    assert len(report.tensors) == 6
    stored = qrs.load(tmp_path / "q")
    assert_same(
        stored,
        {
            t.name: source[t.name] if t.scheme is None else qrs.quantize(source[t.name], t.scheme)
            for t in report.plan.tensors
        },
    )
    dequantize_checkpoint(tmp_path / "q", tmp_path / "back")
    back = qrs.load(tmp_path / "back")
    for t in report.tensors:
        x, qt = source[t.plan.name], stored[t.plan.name]
        assert isinstance(qt, qrs.QTensor)
        assert back[t.plan.name].tobytes() == qt.dequantize(str(x.dtype)).tobytes()
        assert t.errors.sqnr_db == pytest.approx(qrs.metrics.sqnr_db(x, qt.dequantize()))


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("shape", [(20, 64), (9, 4, 32), (64,)])
def test_learned_tables_there_and_back(tmp_path: Path, shape: tuple[int, ...]) -> None:
    tensors = learned_tensors(shape)
    path = tmp_path / "q.safetensors"
    qrs.save(path, tensors)
    assert_same(qrs.load(path), tensors)
    dequantize_checkpoint(path, tmp_path / "back.safetensors")
    back = qrs.load(tmp_path / "back.safetensors")
    for text, qt in tensors.items():
        assert np.array_equal(back[text], qt.dequantize()), text


def test_rows_are_read_apart_or_taken_out_of_the_whole(tmp_path: Path) -> None:
    tensors = learned_tensors()
    w = normal((20, 128))
    tensors |= {text: qrs.quantize(w, text) for text in ("nf4-g64", "nf4-g64-dq", "nvfp4")}
    qrs.save(tmp_path / "q.safetensors", tensors)
    with QrsFile(tmp_path / "q.safetensors") as file:
        for text, qt in tensors.items():
            for start, stop in ((0, 8), (8, 20), (0, 20)):
                part = file.load_rows(text, start, stop)
                assert np.array_equal(part.dequantize(), qt.dequantize()[start:stop]), text
                assert part.scheme.granularity == qt.scheme.granularity


def test_scales_that_are_quantized_are_decoded_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_blocks: None
) -> None:
    scheme = qrs.parse("nf4-g64-dq")
    inner, calls = type(scheme).dequantize, []

    def counted(self, qt, *args):
        calls.append(qt.scheme)
        return inner(self, qt, *args)

    qrs.save(tmp_path / "q.safetensors", {"w": qrs.quantize(normal((80, 64)), scheme)})
    with QrsFile(tmp_path / "q.safetensors") as file:
        whole = file.load("w")
    monkeypatch.setattr(type(scheme), "dequantize", counted)
    assert isinstance(whole, qrs.QTensor)
    blocks = list(checkpoint.stream.blocks_of(whole, 8))
    assert len(blocks) == 10 and calls == [scheme.scale_dtype]


@pytest.mark.parametrize(
    ("shape", "scheme", "stored"),
    [
        ((16, 32, 3, 3), "kmeans2-g32", "kmeans2-g32-flat"),
        ((64, 100), "kmeans2-g32-bf16", "kmeans2-g32-bf16-ragged"),
        ((64, 100), "nf4-dq", "nf4-g64-dq-ragged"),
        ((16, 3, 7, 7), "learned4-g32-s6", "learned4-g32-s6-flat-ragged"),
        ((16, 3, 7, 7), "kmeans4", "kmeans4"),
    ],
)
def test_fallbacks(shape: tuple[int, ...], scheme: str, stored: str) -> None:
    got, why = fit(qrs.parse(scheme), shape)
    assert got == qrs.parse(stored)
    assert bool(why) == (stored != scheme)


def test_embeddings_keep_the_one_table_that_was_asked_for() -> None:
    plan = make_plan([info("embed.weight", (100, 64))], embeddings="kmeans4")
    assert [str(t.scheme) for t in plan.quantized] == ["kmeans4"]


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("scheme", ["int4-g32", "int4-axis0-full", "nf4-g32", "nf4-g64-dq", "int4"])
def test_a_solver_chooses_the_scales(tmp_path: Path, scheme: str) -> None:
    source = {"w": normal((40, 64)), "conv": normal((16, 4, 4, 4), np.float16)}
    qrs.save(tmp_path / "m.safetensors", dict(source))
    output = tmp_path / "q.safetensors"
    report = quantize_checkpoint(tmp_path / "m.safetensors", output, scheme, solver="lsq")
    expected = {t.plan.name: qrs.quantize(source[t.plan.name], t.plan.scheme, solver="lsq")
                for t in report.tensors if t.plan.scheme}  # fmt: skip
    assert_same(qrs.load(output), expected)
    assert report.plan.to_dict()["solver"] == report.to_dict()["solver"] == "lsq"
    plain = quantize_checkpoint(tmp_path / "m.safetensors", tmp_path / "p.safetensors", scheme)
    assert report.errors.sqnr_db > plain.errors.sqnr_db


@pytest.mark.parametrize("scheme", ["nvfp4", "bf16", "kmeans4"])
def test_a_scheme_that_the_solver_does_not_fit_names_the_tensor(scheme: str) -> None:
    with pytest.raises(ArgValueError, match=r"tensor 'a\.weight': solver: got 'lsq' for "):
        make_plan([info("a.weight", (8, 32))], scheme, solver="lsq")
    with pytest.raises(ArgValueError, match="solver: got 'best', expected one of: minmax, lsq"):
        make_plan([info("a.weight", (8, 32))], solver="best")


def test_sizes_of_learned_tables_are_exact() -> None:
    for text, qt in learned_tensors().items():
        plan = make_plan([info("a.weight", qt.shape)], text)
        assert plan.nbytes_after == qt.nbytes
        json.dumps(plan.to_dict(), allow_nan=False)


def info(name: str, shape: tuple[int, ...], dtype: str = "F32") -> TensorInfo:
    return TensorInfo(name, dtype, shape, 0, math.prod(shape) * (4 if dtype == "F32" else 2))


def test_memory_counts_what_tables_are_learned_from() -> None:
    size = 4096 * 8192

    def plan(scheme: str, dtype: str = "F32") -> checkpoint.Plan:
        return make_plan([info("w", (4096, 8192), dtype)], scheme, backend="rust")

    whole = plan("kmeans4")
    assert whole.memory_bound > 64 * size and whole.memory_bound > whole.streaming_bound
    # Rows are worked on a block at a time, and 16 bits tell few values apart.
    for scheme, dtype in (("kmeans4-axis0", "F32"), ("kmeans4-g128", "F32"), ("kmeans4", "BF16")):
        found = plan(scheme, dtype)
        assert found.memory_bound == found.streaming_bound, scheme
        assert found.memory_estimate < found.memory_bound, scheme
    learned = plan("learned4-g32-s6")
    assert whole.memory_bound > learned.memory_bound > 32 * size
    for scheme in ("nf4-g64", "nf4-g64-dq"):
        found = plan(scheme)
        assert found.memory_bound == found.streaming_bound == 3 * 4 * size + 256 * MIB


def test_short_rows_have_no_outliers(tmp_path: Path) -> None:
    assert columns_of_outliers(normal((5, 3)), 0).shape == (5, 0)
    codes, book = np.arange(80).reshape(5, 4, 4) % 8, np.linspace(-1, 1, 8)
    plain = qrs.QTensor.from_parts("kmeans3", codes.shape, codes, None, codebook=book)
    qt = with_outliers(plain, 0.05)
    qrs.save(tmp_path / "q.safetensors", {"w": qt})
    assert_same(qrs.load(tmp_path / "q.safetensors"), {"w": qt})
    assert dict(qt.leaves())["sparse_values"].size == 0
    assert np.array_equal(qt[2:].dequantize(), qt.dequantize()[2:])
