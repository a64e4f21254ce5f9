"""QTensors in files: saved, loaded, and refused where the file and the scheme disagree."""

import json
import os
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

import qrs
from qrs.errors import ArgTypeError, ArgValueError, FormatError, StorageError
from qrs.formats.qrs_file import Entry, QrsFile, load, qrs_metadata, save
from raw_safetensors import write_all

SCHEMES = ["int8", "int8-axis0", "int4-g32-asym-f16", "uint3-g16", "int2-axis1-full-bf16"]


def weight(rows: int = 6, cols: int = 64) -> np.ndarray[Any, Any]:
    return np.random.default_rng(1).standard_normal((rows, cols), dtype=np.float32)


def quantized(scheme: str = "int4-g32-asym-f16", array: Any = None) -> qrs.QTensor:
    return qrs.quantize(weight() if array is None else array, scheme)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_round_trip(tmp_path: Path, scheme: str, dtype: Any) -> None:
    qt = quantized(scheme, weight().astype(dtype))
    tensors = {"layer.weight": qt, "layer.bias": np.arange(6, dtype=dtype), "n": np.array(3)}
    save(tmp_path / "x", tensors, {"format": "pt"})
    back = load(tmp_path / "x")
    assert back.keys() == tensors.keys()
    assert back["layer.weight"] == qt
    assert back["layer.weight"].info == {}
    assert np.array_equal(back["layer.bias"], tensors["layer.bias"])
    assert back["n"].shape == ()
    with QrsFile(tmp_path / "x") as file:
        assert file.metadata["format"] == "pt"
        assert file.quantized == {"layer.weight": Entry(qt.scheme, (6, 64), np.dtype(dtype).name)}
        assert file.leaves("layer.weight").keys() == dict(qt.leaves()).keys()


ROWS = [*SCHEMES, "int2-axis0-asym", "uint3-axis0", "int3-axis1-asym", "int4-g1-asym", "e4m3-axis0",
        "int5-g7-ragged", "nvfp4", "mxfp8", "bf16"]  # fmt: skip


@pytest.mark.parametrize("scheme", ROWS)
def test_rows_are_read_alone(tmp_path: Path, scheme: str) -> None:
    qt = quantized(scheme, weight(21, 64))
    save(tmp_path / "x", {"w": qt})
    with QrsFile(tmp_path / "x") as file:
        for start, stop in [(0, 21), (0, 8), (8, 16), (8, 21), (16, 21)]:
            assert file.load_rows("w", start, stop) == qt[start:stop]


def test_rows_that_the_scheme_refuses_have_their_index_in_the_whole(tmp_path: Path) -> None:
    qt = quantized("int4-g32", weight(21, 64))
    qt.parts["scale"][17, 1] = np.nan
    save(tmp_path / "x", {"w": qt})
    with QrsFile(tmp_path / "x") as file:
        assert file.load_rows("w", 0, 16) == qt[:16]
        with pytest.raises(FormatError, match=r"tensor 'w': scale: .*\(17, 1\)"):
            file.load_rows("w", 16, 21)


@pytest.mark.parametrize("shape", [(1,), (0,), (0, 32), (4, 0), (3, 2, 5, 32)])
def test_any_shape(tmp_path: Path, shape: tuple[int, ...]) -> None:
    qt = quantized("int8", np.ones(shape, np.float32))
    save(tmp_path / "x", {"w": qt})
    assert load(tmp_path / "x")["w"] == qt


def test_what_another_reader_sees(tmp_path: Path) -> None:
    qt = quantized("int4-g32-asym-f16")
    save(tmp_path / "x", {"w": qt})
    with safetensors.safe_open(tmp_path / "x", "numpy") as file:
        assert sorted(file.keys()) == ["w.packed", "w.scale", "w.zero_point"]
        assert np.array_equal(file.get_tensor("w.packed"), qt.packed)
        assert json.loads(file.metadata()["qrs"]) == {
            "version": 1,
            "tensors": {"w": {"scheme": qt.scheme.to_dict(), "shape": [6, 64], "dtype": "float32"}},
        }


def test_a_file_without_quantized_tensors_is_a_plain_one(tmp_path: Path) -> None:
    tensors = {"b": np.ones(3, np.float32), "a": np.zeros((2, 2), np.int64)}
    save(tmp_path / "x", tensors)
    assert (tmp_path / "x").read_bytes() == safetensors.numpy.save(tensors)
    save(tmp_path / "y", {})
    assert load(tmp_path / "y") == {}


def test_the_layout_is_known_before_anything_is_computed() -> None:
    entry = Entry(qrs.parse("int4-g32-asym-f16"), (6, 64), "float32")
    assert entry.layout("w") == [
        ("w.packed", "U8", (6, 32)),
        ("w.scale", "F16", (6, 2)),
        ("w.zero_point", "U8", (6, 1)),
    ]


def test_groups_along_flattened_axes_keep_the_shape(tmp_path: Path) -> None:
    qt = quantized("int4-g32-asym-f16-flat", weight().reshape(6, 16, 2, 2))
    save(tmp_path / "x", {"w": qt})
    back = load(tmp_path / "x")["w"]
    assert back == qt and back.shape == (6, 16, 2, 2) and back.info == {}
    with QrsFile(tmp_path / "x") as file:
        assert file.tensors["w.packed"].shape == (6, 32)


# ---- What cannot be saved


@pytest.mark.parametrize(
    ("other", "array"),
    [("w.packed", True), ("w.scale", True), ("w.bias", True), ("w.scale.x", True), ("w.x", False)],
)
def test_names_that_collide(tmp_path: Path, other: str, array: bool) -> None:
    tensors = {other: np.ones(3) if array else quantized(), "w": quantized()}
    with pytest.raises(ArgValueError, match=rf"'{other}' belongs to the tensor 'w'"):
        save(tmp_path / "x", tensors)
    assert os.listdir(tmp_path) == []


def test_names_that_only_look_alike(tmp_path: Path) -> None:
    tensors = {"w": quantized(), "w_packed": np.ones(1), "": np.ones(2), "v.w": quantized("int8")}
    save(tmp_path / "x", tensors)
    assert load(tmp_path / "x").keys() == tensors.keys()


@pytest.mark.parametrize(
    ("tensor", "words"),
    [
        ([1.0], "'w' is a list"),
        (1.0, "'w' is a float"),
        (np.ma.masked_array([1.0], [True]), "'w' is a MaskedArray"),
        (np.array(["text"]), "'w': dtype: safetensors cannot store <U4"),
        (np.array([None]), "'w': dtype: safetensors cannot store object"),
        (np.ones(2, np.longdouble), "'w': dtype: safetensors cannot store"),
        (np.ones(2, ml_dtypes.int4), "'w': dtype: safetensors cannot store int4"),
        (np.zeros(2, "f4,i4"), "'w': dtype: safetensors cannot store"),
    ],
)
def test_what_is_no_tensor(tmp_path: Path, tensor: Any, words: str) -> None:
    with pytest.raises(ArgTypeError, match=words):
        save(tmp_path / "x", {"w": tensor})
    assert os.listdir(tmp_path) == []


def test_names_and_metadata_that_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ArgTypeError, match="the name 3"):
        save(tmp_path / "x", {3: np.ones(1)})  # type: ignore[dict-item]
    with pytest.raises(ArgValueError, match="reserved"):
        save(tmp_path / "x", {"__metadata__": np.ones(1)})
    with pytest.raises(ArgValueError, match="'qrs' is written by qrs"):
        save(tmp_path / "x", {}, {"qrs": "mine"})
    assert os.listdir(tmp_path) == []


# ---- What is refused on loading


def parts() -> tuple[dict[str, Any], dict[str, Any]]:
    """The arrays of a good file with one QTensor `w`, and its `qrs` document."""
    qt = quantized()
    document = json.loads(qrs_metadata({"w": Entry.of(qt)})["qrs"])
    return {f"w.{path}": array for path, array in qt.leaves()}, document


def refused(path: Path, arrays: dict[str, Any], document: Any) -> FormatError:
    text = document if isinstance(document, str) else json.dumps(document)
    write_all(path, arrays, {"qrs": text})
    with pytest.raises(FormatError) as caught:
        load(path)
    assert caught.value.path == str(path) and str(path) in str(caught.value)
    return caught.value


def test_the_good_file_is_good(tmp_path: Path) -> None:
    arrays, document = parts()
    write_all(tmp_path / "x", arrays, {"qrs": json.dumps(document)})
    assert load(tmp_path / "x")["w"] == quantized()


@pytest.mark.parametrize(
    "document",
    [
        *("", "[]", "nonsense", "[" * 10_000, '{"version": 1}', '{"version": NaN, "tensors": {}}'),
        *('{"version": 1, "tensors": []}', '{"version": 1, "version": 1, "tensors": {}}'),
        '{"version": 1, "tensors": {}, "more": 1}',
    ],
)
def test_a_document_that_is_no_document(tmp_path: Path, document: str) -> None:
    assert refused(tmp_path / "x", {}, document).field in ("qrs", "tensors")


@pytest.mark.parametrize("version", [0, 2, "1", 1.0, True, None])
def test_another_version(tmp_path: Path, version: Any) -> None:
    error = refused(tmp_path / "x", {}, {"version": version, "tensors": {}})
    assert error.field == "version" and "expected 1" in str(error)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("scheme", None),
        ("scheme", "int8"),
        ("scheme", {}),
        ("scheme", {"family": "nope"}),
        ("scheme", {"family": "int"}),
        ("scheme", {"family": "int", "bits": 99}),
        ("scheme", {"family": "int", "bits": 4, "unheard_of": 1}),
        ("shape", None),
        ("shape", 64),
        ("shape", [6, -64]),
        ("shape", [6.0, 64]),
        ("shape", [True, 64]),
        ("shape", []),
        ("shape", [6, 65]),
        ("shape", [6, 2**63]),
        ("shape", [6, 10**4000]),
        ("shape", [0, 2**62]),
        ("shape", [1] * 1000),
        ("scheme", {"family": "int", "bits": 10**4000}),
        ("scheme", {"family": "int", "bits": 4, "group_size": 2**70}),
        ("scheme", {"family": "int", "bits": 4, "axis": [0]}),
        ("scheme", {"family": ["int"]}),
        ("dtype", None),
        ("dtype", "float99"),
    ],
)
def test_wrong_fields(tmp_path: Path, field: str, value: Any) -> None:
    arrays, document = parts()
    document["tensors"]["w"][field] = value
    error = refused(tmp_path / "x", arrays, document)
    assert (error.tensor, error.field) == ("w", field)


@pytest.mark.parametrize("entry", [None, [], {}, {"scheme": {}}, "int8"])
def test_wrong_entries(tmp_path: Path, entry: Any) -> None:
    arrays, document = parts()
    document["tensors"]["w"] = entry
    assert refused(tmp_path / "x", arrays, document).tensor == "w"
    document = parts()[1]
    document["tensors"]["w"]["more"] = 1
    assert refused(tmp_path / "x", arrays, document).tensor == "w"


@pytest.mark.parametrize("leaf", ["packed", "scale", "zero_point"])
def test_leaves_that_are_missing_or_wrong(tmp_path: Path, leaf: str) -> None:
    arrays, document = parts()
    name = f"w.{leaf}"
    array = arrays.pop(name)
    error = refused(tmp_path / "x", arrays, document)
    assert (error.tensor, error.field) == ("w", leaf) and "missing" in str(error)
    wrong = np.float32 if array.dtype != np.float32 else np.float16
    for other in (array.astype(wrong), array[1:], array[:, :0], array.reshape(-1)):
        error = refused(tmp_path / "x", {**arrays, name: other}, document)
        assert (error.tensor, error.field) == ("w", leaf) and "expected" in str(error)


@pytest.mark.parametrize("leaf", ["codebook", "packed.packed", "", "scale.scale"])
def test_leaves_that_are_left_over(tmp_path: Path, leaf: str) -> None:
    arrays, document = parts()
    error = refused(tmp_path / "x", {**arrays, f"w.{leaf}": np.ones(3)}, document)
    assert (error.tensor, error.field) == ("w", leaf) and "not part of" in str(error)


def test_a_zero_point_that_the_scheme_does_not_have(tmp_path: Path) -> None:
    arrays, document = parts()
    document["tensors"]["w"]["scheme"] = qrs.parse("int4-g32-f16").to_dict()
    error = refused(tmp_path / "x", arrays, document)
    assert (error.tensor, error.field) == ("w", "zero_point")


def test_a_plain_tensor_of_the_same_name(tmp_path: Path) -> None:
    arrays, document = parts()
    assert refused(tmp_path / "x", {**arrays, "w": np.ones(3)}, document).tensor == "w"


def test_a_quantized_tensor_that_is_not_there(tmp_path: Path) -> None:
    error = refused(tmp_path / "x", {}, parts()[1])
    assert (error.tensor, error.field) == ("w", "packed")


def test_values_that_the_scheme_refuses(tmp_path: Path) -> None:
    arrays, document = parts()
    arrays["w.scale"] = np.full_like(arrays["w.scale"], np.nan)
    error = refused(tmp_path / "x", arrays, document)
    assert (error.tensor, error.field) == ("w", "scale")


# ---- Checkpoint folders


def sharded(folder: Path, **changes: Any) -> dict[str, Any]:
    """A folder of two shards and an index, with changes to the map."""
    save(folder / "model-00001-of-00002.safetensors", {"w": quantized(), "b": np.ones(3)})
    save(folder / "model-00002-of-00002.safetensors", {"c": np.zeros(2)})
    one, two = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
    weight_map = {"w.packed": one, "w.scale": one, "w.zero_point": one, "b": one, "c": two}
    weight_map = {tensor: file for tensor, file in (weight_map | changes).items() if file}
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return index


def test_a_folder_of_shards(tmp_path: Path) -> None:
    sharded(tmp_path)
    back = load(tmp_path)
    assert list(back) == ["b", "w", "c"]
    assert back["w"] == quantized()
    assert [path.name[6:11] for path in qrs.formats.shards.shards(tmp_path)] == ["00001", "00002"]


def test_a_folder_of_one_file(tmp_path: Path) -> None:
    save(tmp_path / "model.safetensors", {"w": quantized()})
    (tmp_path / "model.safetensors.index.json").write_text("a stale index is not read")
    assert load(tmp_path)["w"] == quantized()


def folder_refused(folder: Path, words: str) -> FormatError:
    with pytest.raises(FormatError, match=words) as caught:
        load(folder)
    return caught.value


def test_folders_that_are_no_checkpoint(tmp_path: Path) -> None:
    folder_refused(tmp_path, "no model.safetensors and no model.safetensors.index.json")
    with pytest.raises(StorageError, match="No such file"):
        load(tmp_path / "nope")


@pytest.mark.parametrize(
    "file",
    [
        *("/etc/passwd", "/etc/x.safetensors", "../x.safetensors", "..", ".", "a/b.safetensors"),
        *("a\\b.safetensors", "C:x.safetensors", "x\0.safetensors", "pytorch_model.bin", "\n"),
        *(".safetensors", 3, ["x.safetensors"]),
    ],
)
def test_shard_names_that_leave_the_folder(tmp_path: Path, file: Any) -> None:
    sharded(tmp_path, b=file)
    error = folder_refused(tmp_path, "expected the name of a file in this folder")
    assert (error.tensor, error.field) == ("b", "weight_map")
    assert str(error).isprintable()


def test_shards_that_are_missing_or_no_files(tmp_path: Path) -> None:
    sharded(tmp_path, d="nope.safetensors")
    assert folder_refused(tmp_path, "1 shards are missing: 'nope.saf").field == "weight_map"
    os.mkfifo(tmp_path / "nope.safetensors")
    folder_refused(tmp_path, "not a regular file")


def test_an_index_that_disagrees_with_the_shards(tmp_path: Path) -> None:
    two = "model-00002-of-00002.safetensors"
    sharded(tmp_path, d=two)
    folder_refused(tmp_path, "1 tensors of the index are not in this shard: 'd'")
    sharded(tmp_path, b=two)
    folder_refused(tmp_path, "'b'")
    sharded(tmp_path, b=None)
    folder_refused(tmp_path, "1 tensors of this shard are elsewhere, or nowhere, in the index: 'b'")


def test_a_tensor_in_two_shards(tmp_path: Path) -> None:
    sharded(tmp_path)
    save(tmp_path / "model-00002-of-00002.safetensors", {"c": np.zeros(2), "b": np.ones(3)})
    folder_refused(tmp_path, "'b'")


@pytest.mark.parametrize(
    "text",
    [
        *("", "[]", "{}", "nonsense", '{"weight_map": {}}', '{"weight_map": []}', "[" * 10_000),
        '{"weight_map": {"a": "x.safetensors", "a": "x.safetensors"}}',
    ],
)
def test_an_index_that_is_no_index(tmp_path: Path, text: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(text)
    assert folder_refused(tmp_path, "index.json: ").path.endswith("index.json")
    (tmp_path / "model.safetensors.index.json").write_bytes(b"\xff")
    folder_refused(tmp_path, "not UTF-8")


def test_descriptions_are_checked_before_any_tensor_is_read(tmp_path: Path) -> None:
    arrays, document = parts()
    for field, value in [("dtype", "float99"), ("shape", [6, 65]), ("scheme", {})]:
        changed = {**document["tensors"]["w"], field: value}
        text = json.dumps({"version": 1, "tensors": {"w": changed}})
        write_all(tmp_path / "x", arrays, {"qrs": text})
        with pytest.raises(FormatError) as caught:
            QrsFile(tmp_path / "x")
        assert (caught.value.tensor, caught.value.field) == ("w", field)
