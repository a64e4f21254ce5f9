"""Whole checkpoints: quantize, load, inspect, dequantize; layouts, dtypes, memory."""

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import qrs
from checkpoints import (
    INDEX,
    assert_same,
    digests,
    normal,
    save_model,
    save_sharded,
    small_model,
)
from qrs import checkpoint
from qrs.checkpoint import dequantize_checkpoint, inspect_checkpoint, quantize_checkpoint
from qrs.checkpoint.report import ErrorSums
from qrs.errors import ArgValueError, FormatError
from qrs.formats.header import STORED_DTYPES
from qrs.formats.safetensors import SafetensorsFile, Writer

SCHEMES = ["int8-axis0", "int8", "int8-axis1", "uint8-axis0", "int4-g32", "int4-g32-asym-f16",
           "uint3-g32-bf16", "int5-axis0-asym", "int2-g32-full",
           "bf16", "e4m3", "e4m3-g32", "e5m2-axis1-f16", "e2m1-tensor",
           "nvfp4", "mxfp4"]  # fmt: skip


def expected_qtensors(tensors: dict[str, Any], plan: checkpoint.Plan) -> dict[str, Any]:
    """What quantizing each tensor in memory gives."""
    return {
        t.name: tensors[t.name] if t.scheme is None else qrs.quantize(tensors[t.name], t.scheme)
        for t in plan.tensors
    }


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_checkpoint_holds_what_quantize_gives(tmp_path: Path, scheme: str) -> None:
    model = save_model(tmp_path / "m")
    report = quantize_checkpoint(model, tmp_path / "q", scheme, embeddings=scheme)
    stored = qrs.load(tmp_path / "q")
    expected = expected_qtensors(small_model(), report.plan)
    assert_same(stored, expected)
    with SafetensorsFile(tmp_path / "q" / "model.safetensors") as file:
        assert sum(info.nbytes for info in file.tensors.values()) == report.plan.nbytes_after
        assert file.metadata.keys() == {"format", "qrs"}


@pytest.mark.parametrize("scheme", ["int8-axis0", "uint4-axis0-f16", "int4-g32-asym-f16", "int8",
                                    "bf16", "e2m1", "e4m3-axis0", "nvfp4", "mxfp4"])  # fmt: skip
def test_blocks_of_rows_give_the_bits_of_the_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    tensors = {"w": normal((83, 64)), "conv": normal((19, 4, 4, 2), np.float16)}
    qrs.save(tmp_path / "m.safetensors", tensors)
    monkeypatch.setattr(checkpoint.stream, "BLOCK_BYTES", 10 * 64 * 4)  # 8 rows of w at a time
    report = quantize_checkpoint(tmp_path / "m.safetensors", tmp_path / "q.safetensors", scheme)
    stored = qrs.load(tmp_path / "q.safetensors")
    assert_same(stored, expected_qtensors(tensors, report.plan))
    for t in report.tensors:
        x_hat = stored[t.plan.name].dequantize()
        assert t.errors.sqnr_db == pytest.approx(qrs.metrics.sqnr_db(tensors[t.plan.name], x_hat))


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("layout", ["folder", "shards"])
def test_dequantize_restores_names_shapes_dtypes_and_metadata(
    tmp_path: Path, scheme: str, layout: str
) -> None:
    model = (save_model if layout == "folder" else save_sharded)(tmp_path / "m")
    quantize_checkpoint(model, tmp_path / "q", scheme, embeddings="int8")
    decoded = dequantize_checkpoint(tmp_path / "q", tmp_path / "back")
    stored, back, source = qrs.load(tmp_path / "q"), qrs.load(tmp_path / "back"), small_model()
    assert back.keys() == source.keys()
    for name, x in source.items():
        tensor = stored[name]
        if isinstance(tensor, qrs.QTensor):
            assert decoded[name] == str(x.dtype)
            tensor = tensor.dequantize(str(x.dtype))
        assert (back[name].dtype, back[name].shape) == (x.dtype, x.shape)
        assert back[name].tobytes() == tensor.tobytes(), name
    assert inspect_checkpoint(tmp_path / "back").metadata == {"format": "pt"}
    assert inspect_checkpoint(tmp_path / "back").quantized == ()
    assert digests(tmp_path / "back").keys() == digests(model).keys()


def test_lossless_where_every_value_is_a_code(tmp_path: Path) -> None:
    w = np.random.default_rng(0).integers(-127, 128, (64, 64)).astype(ml_dtypes.bfloat16)
    w[:, 0] = 127
    model = save_model(tmp_path / "m", {"w": w, "b": normal((3,))}, author="me")
    quantize_checkpoint(model, tmp_path / "q")
    dequantize_checkpoint(tmp_path / "q", tmp_path / "back")
    assert_same(qrs.load(tmp_path / "back"), {"w": w, "b": normal((3,))})
    assert digests(tmp_path / "back") == digests(model)


def test_dequantize_into_another_dtype(tmp_path: Path) -> None:
    model = save_model(tmp_path / "m")
    quantize_checkpoint(model, tmp_path / "q")
    dequantize_checkpoint(tmp_path / "q", tmp_path / "back", dtype="bfloat16")
    stored, back = qrs.load(tmp_path / "q"), qrs.load(tmp_path / "back")
    for name, tensor in back.items():
        if isinstance(stored[name], qrs.QTensor):
            assert tensor.dtype == ml_dtypes.bfloat16
        else:
            assert tensor.dtype == small_model()[name].dtype


@pytest.mark.parametrize("scheme", ["int8", "uint4", "int4-g32-asym-f16", "int3-axis0"])
def test_dequantize_of_vectors_that_save_wrote(tmp_path: Path, scheme: str) -> None:
    qt = qrs.quantize(normal((64,)), scheme)
    qrs.save(tmp_path / "q.safetensors", {"v": qt, "w": qrs.quantize(normal((4, 32)), scheme)})
    dequantize_checkpoint(tmp_path / "q.safetensors", tmp_path / "b.safetensors")
    assert np.array_equal(qrs.load(tmp_path / "b.safetensors")["v"], qt.dequantize())


def test_dequantize_of_nothing_of_any_length(tmp_path: Path) -> None:
    # A row count of 2^40 costs a file nothing where rows are empty.
    array = np.empty((2**40, 0), np.uint8)
    scheme = qrs.parse("int8")
    qt = qrs.QTensor(scheme, array.shape, "float32", {"packed": array, "scale": np.float32(1)})
    qt.parts["scale"] = np.array(1, np.float32)
    qrs.save(tmp_path / "q.safetensors", {"w": qt})
    dequantize_checkpoint(tmp_path / "q.safetensors", tmp_path / "b.safetensors")
    assert qrs.load(tmp_path / "b.safetensors")["w"].shape == array.shape


def test_the_report_tells_what_overflows_the_dtype_it_had(tmp_path: Path) -> None:
    w = normal((8, 8), np.float16)
    w[0, 0] = 65504  # a scale of 515.78 rounds up to 516, and 127 x 516 is infinite in float16
    qrs.save(tmp_path / "m.safetensors", {"w": w, "other": normal((8, 8), np.float16)})
    report = quantize_checkpoint(tmp_path / "m.safetensors", tmp_path / "q.safetensors", "int8-f16")
    assert {t.plan.name: t.overflows for t in report.tensors} == {"w": True, "other": False}
    with pytest.raises(ArgValueError, match="tensor 'w'"):
        dequantize_checkpoint(tmp_path / "q.safetensors", tmp_path / "b.safetensors")


def test_dequantize_refuses_what_overflows(tmp_path: Path) -> None:
    qrs.save(tmp_path / "m.safetensors", {"layer.weight": normal((8, 8)) * np.float32(1e6)})
    quantize_checkpoint(tmp_path / "m.safetensors", tmp_path / "q.safetensors")
    with pytest.raises(ArgValueError, match=r"tensor 'layer\.weight': .*float16"):
        dequantize_checkpoint(
            tmp_path / "q.safetensors", tmp_path / "back.safetensors", dtype="float16"
        )
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.safetensors", "q.safetensors"]


def test_what_overflows_has_its_index_in_the_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint.stream, "BLOCK_BYTES", 8 * 64 * 4)
    w = normal((64, 64))
    w[33, 40] = 1e9
    qrs.save(tmp_path / "q.safetensors", {"layer.weight": qrs.quantize(w, "int4-g32")})
    with pytest.raises(ArgValueError, match=r"'layer\.weight': dtype: .* \(33, 40\) overflows"):
        dequantize_checkpoint(tmp_path / "q.safetensors", tmp_path / "b", dtype="float16")


def test_shards_stay_shards_with_an_index(tmp_path: Path) -> None:
    model = save_sharded(tmp_path / "m")
    report = quantize_checkpoint(model, tmp_path / "q", "int4-g32-asym-f16")
    index = json.loads((tmp_path / "q" / INDEX).read_text())
    assert index["metadata"] == {"author": "me", "total_size": report.plan.nbytes_after}
    assert set(index["weight_map"].values()) == {p.name for p in model.glob("*.safetensors")}
    source = json.loads((model / INDEX).read_text())["weight_map"]
    for name, shard in index["weight_map"].items():
        owner = next(n for n in source if name == n or name.startswith(f"{n}."))
        assert source[owner] == shard
    assert index["weight_map"]["layer.0.half.weight.packed"]
    # The index itself is a way to name a checkpoint, and one file can take all shards.
    quantize_checkpoint(model / INDEX, tmp_path / "q.safetensors", "int4-g32-asym-f16")
    assert_same(qrs.load(tmp_path / "q.safetensors"), qrs.load(tmp_path / "q"))


def test_an_index_beside_a_single_file_is_ambiguous(tmp_path: Path) -> None:
    model = save_sharded(tmp_path / "m")
    qrs.save(model / "model.safetensors", small_model())
    with pytest.raises(ArgValueError, match=r"has model\.safetensors as well"):
        checkpoint.open_checkpoint(model / INDEX)


def test_companions_come_along_and_other_weights_do_not(tmp_path: Path) -> None:
    model = save_model(tmp_path / "m")
    (model / "pytorch_model.bin").write_bytes(b"pickle")
    (model / "pytorch_model.bin.index.json").write_text("{}")
    (model / "onnx").mkdir()
    (model / "onnx" / "model.onnx").write_bytes(b"onnx")
    (model / "onnx" / "config.json").write_text("{}")
    (model / "other.safetensors").write_bytes(b"x")
    (model / ".git").mkdir()
    (model / ".git" / "HEAD").write_text("ref")
    (model / "linked.txt").symlink_to(model / "config.json")
    (model / "nowhere.txt").symlink_to(model / "missing")
    (model / "loop").symlink_to(model)
    with open(model / "huge.txt", "wb") as file:
        file.truncate(checkpoint.source.CARRIED_LIMIT + 1)
    report = quantize_checkpoint(model, tmp_path / "q")
    assert set(digests(tmp_path / "q")) == {
        "model.safetensors", "config.json", "tokenizer.json", "1_Pooling/config.json",
        "onnx/config.json", "linked.txt",
    }  # fmt: skip
    assert (tmp_path / "q" / "linked.txt").read_text() == '{"hidden_size": 64}'
    assert not (tmp_path / "q" / "linked.txt").is_symlink()
    assert set(report.skipped) == {
        "pytorch_model.bin", "pytorch_model.bin.index.json", "onnx/model.onnx", "huge.txt",
        "other.safetensors", "nowhere.txt", "loop",
    }  # fmt: skip


def test_a_single_file_goes_into_a_folder_or_a_file(tmp_path: Path) -> None:
    qrs.save(tmp_path / "x.safetensors", small_model(), {"format": "pt"})
    report = quantize_checkpoint(tmp_path / "x.safetensors", tmp_path / "folder")
    assert [p.name for p in (tmp_path / "folder").iterdir()] == ["model.safetensors"]
    assert report.skipped == []
    quantize_checkpoint(tmp_path / "x.safetensors", tmp_path / "y.safetensors")
    assert (tmp_path / "y.safetensors").read_bytes() == (
        tmp_path / "folder" / "model.safetensors"
    ).read_bytes()


@pytest.mark.parametrize("scheme", ["int8-axis0", "int8", "int8-axis1", "int4-g128-asym-f16", "f16",
                                    "e4m3-axis1", "nvfp4", "mxfp8"])  # fmt: skip
def test_backends_write_the_same_bytes(tmp_path: Path, scheme: str) -> None:
    model = save_sharded(tmp_path / "m")
    for backend in ("reference", "rust"):
        quantize_checkpoint(model, tmp_path / backend, scheme, embeddings="int8", backend=backend)
        dequantize_checkpoint(tmp_path / backend, tmp_path / f"{backend}.back", backend=backend)
    assert digests(tmp_path / "reference") == digests(tmp_path / "rust")
    assert digests(tmp_path / "reference.back") == digests(tmp_path / "rust.back")


def test_the_backend_asked_for_computes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("the rust backend was asked")

    monkeypatch.setattr(qrs.backends.get("rust").__class__, "quantize_affine_packed", refuse)
    model = save_model(tmp_path / "m")
    quantize_checkpoint(model, tmp_path / "q", backend="reference")
    with pytest.raises(AssertionError, match="rust backend was asked"):
        quantize_checkpoint(model, tmp_path / "q2", backend="rust")


def test_report(tmp_path: Path) -> None:
    model = save_model(tmp_path / "m")
    report = quantize_checkpoint(model, tmp_path / "q", "int4-g32-asym-f16")
    stored, source = qrs.load(tmp_path / "q"), small_model()
    signal = noise = 0.0
    for t in report.tensors:
        x = source[t.plan.name].astype(np.float64)
        x_hat = stored[t.plan.name].dequantize()
        assert t.errors.sqnr_db == pytest.approx(qrs.metrics.sqnr_db(x, x_hat))
        assert t.errors.max_abs_error == qrs.metrics.max_abs_error(x, x_hat)
        assert t.bits_per_weight == stored[t.plan.name].bits_per_weight
        signal, noise = signal + float((x**2).sum()), noise + float(((x - x_hat) ** 2).sum())
    assert len(report.tensors) == 5
    assert report.errors.sqnr_db == pytest.approx(10 * np.log10(signal / noise))
    assert 0 < sum(t.seconds for t in report.tensors) <= report.seconds
    document = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert document["total"]["nbytes_after"] == report.plan.nbytes_after
    assert len(document["tensors"]) + len(document["kept"]) == len(source)


def test_error_sums_of_one_long_row() -> None:
    x = normal((1, 1_000_003))
    x_hat = x + np.float32(0.5)
    sums = ErrorSums()
    sums.add(x, x_hat)
    assert sums.sqnr_db == pytest.approx(qrs.metrics.sqnr_db(x, x_hat))
    assert sums.max_abs_error == qrs.metrics.max_abs_error(x, x_hat)
    assert (sums + sums).sqnr_db == pytest.approx(sums.sqnr_db)


def test_nothing_to_lose_is_infinite_and_json_has_none(tmp_path: Path) -> None:
    qrs.save(tmp_path / "m.safetensors", {"zeros": np.zeros((8, 8), np.float32)})
    report = quantize_checkpoint(tmp_path / "m.safetensors", tmp_path / "q.safetensors")
    assert report.errors.sqnr_db == np.inf
    assert report.to_dict()["tensors"][0]["sqnr_db"] is None


def test_inspect(tmp_path: Path) -> None:
    model = save_sharded(tmp_path / "m")
    quantize_checkpoint(model, tmp_path / "q", "int4-g32")
    contents = inspect_checkpoint(tmp_path / "q")
    by_name = {t.name: t for t in contents.tensors}
    assert by_name.keys() == small_model().keys()
    conv = by_name["layer.0.conv.weight"]
    assert (conv.scheme, conv.shape, conv.dtype) == ("int4-g32-flat", (16, 32, 3, 3), "F32")
    assert conv.bits_per_weight == 5.0
    assert by_name["layer.0.fp8.weight"].dtype == "F8_E4M3"
    assert by_name["layer.0.fp8.weight"].scheme is None
    assert contents.nbytes == sum(
        info.nbytes
        for path in (tmp_path / "q").glob("*.safetensors")
        for info in SafetensorsFile(path).tensors.values()
    )
    json.dumps(contents.to_dict(), allow_nan=False)


def test_progress_counts_every_byte_of_the_source(tmp_path: Path) -> None:
    model = save_model(tmp_path / "m")
    done: dict[str, int] = {}
    quantize_checkpoint(
        model, tmp_path / "q", progress=lambda name, n: done.update({name: done.get(name, 0) + n})
    )
    assert done == {name: x.nbytes for name, x in small_model().items() if x.nbytes}
    done.clear()
    dequantize_checkpoint(
        tmp_path / "q", tmp_path / "b", progress=lambda name, n: done.update({name: n})
    )
    assert sum(done.values()) == inspect_checkpoint(tmp_path / "q").nbytes


def test_every_other_dtype_passes_through_untouched(tmp_path: Path) -> None:
    layout = [(f"t.{dtype}", dtype, (8, 8)) for dtype in STORED_DTYPES]
    path, data = tmp_path / "m.safetensors", {}
    with Writer(path, layout) as writer:
        for name, info in writer.tensors.items():
            data[name] = np.random.default_rng(len(data)).bytes(info.nbytes)
            if info.dtype in ("F32", "F16", "BF16", "F64"):
                data[name] = normal((8, 8), info.numpy_dtype).tobytes()
            writer.write_chunks(name, [data[name]])
    report = quantize_checkpoint(path, tmp_path / "q.safetensors")
    assert {t.plan.dtype for t in report.tensors} == {"F16", "BF16", "F32", "F64"}
    dequantize_checkpoint(tmp_path / "q.safetensors", tmp_path / "back.safetensors")
    kept = data.keys() - {t.plan.name for t in report.tensors}
    assert len(kept) == len(STORED_DTYPES) - 4
    for place in ("q.safetensors", "back.safetensors"):
        with SafetensorsFile(tmp_path / place) as file:
            for name in kept:
                assert file.tensors[name].dtype == name[2:]
                assert b"".join(file.chunks(name)) == data[name]


def test_quantizing_twice_is_an_error(tmp_path: Path) -> None:
    quantize_checkpoint(save_model(tmp_path / "m"), tmp_path / "q")
    with pytest.raises(ArgValueError, match="holds 5 quantized tensors already"):
        quantize_checkpoint(tmp_path / "q", tmp_path / "q2")
    with pytest.raises(ArgValueError, match="holds no quantized tensors"):
        dequantize_checkpoint(tmp_path / "m", tmp_path / "b")


def test_nothing_to_quantize_is_a_copy(tmp_path: Path) -> None:
    model = save_model(tmp_path / "m")
    report = quantize_checkpoint(model, tmp_path / "q", exclude=["*"])
    assert report.tensors == [] and report.plan.kept_share == 1.0
    assert digests(tmp_path / "q") == digests(model)


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16, np.float16, np.float64])
@pytest.mark.parametrize("scheme", ["int8-axis0", "int4-g32", "int8"])
def test_nonfinite_values_name_tensor_index_and_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: Any, scheme: str
) -> None:
    monkeypatch.setattr(checkpoint.stream, "BLOCK_BYTES", 8 * 64 * 4)  # several blocks of rows
    w = normal((64, 64), dtype)
    w[20, 17], w[40, 1], w[63, 63] = np.nan, np.inf, -np.inf
    qrs.save(tmp_path / "m.safetensors", {"a.weight": normal((8, 32)), "layer.weight": w})
    with pytest.raises(ArgValueError) as caught:
        quantize_checkpoint(tmp_path / "m.safetensors", tmp_path / "q", scheme)
    message = "tensor 'layer.weight': 3 non-finite values, first nan at (20, 17)"
    assert str(caught.value) == message
    assert [p.name for p in tmp_path.iterdir()] == ["m.safetensors"]


def test_overflow_names_tensor_and_group_of_the_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint.stream, "BLOCK_BYTES", 8 * 64 * 4)
    w = normal((64, 64))
    w[33, 40] = 1e9
    qrs.save(tmp_path / "m.safetensors", {"layer.weight": w})
    with pytest.raises(ArgValueError, match=r"'layer\.weight': scale_dtype: .* group \(33, 1\)"):
        quantize_checkpoint(tmp_path / "m.safetensors", tmp_path / "q", "int4-g32-f16")


def test_nonfinite_in_a_flattened_tensor_has_its_own_index(tmp_path: Path) -> None:
    w = normal((4, 32, 3, 3))
    w[2, 0, 1, 1] = np.nan
    qrs.save(tmp_path / "m.safetensors", {"conv": w})
    with pytest.raises(ArgValueError, match=r"'conv': 1 non-.* nan at \(2, 0, 1, 1\)"):
        quantize_checkpoint(tmp_path / "m.safetensors", tmp_path / "q", "int4-g32")


def test_a_source_that_changes_after_the_plan_is_refused(tmp_path: Path) -> None:
    model = save_model(tmp_path / "m")
    source = checkpoint.open_checkpoint(model)
    plan = checkpoint.plan_of(source, "int8-axis0")
    qrs.save(model / "model.safetensors", {"w": normal((4, 4))})
    with pytest.raises(FormatError, match="changed while it was in use"):
        checkpoint.run_plan(source, plan, checkpoint.Output(source, tmp_path / "q"))
    assert not (tmp_path / "q").exists()
