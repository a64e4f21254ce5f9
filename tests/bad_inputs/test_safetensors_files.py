"""Rows S01 to S13 of the table of bad inputs: safetensors files."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from qrs.errors import ArgTypeError, ArgValueError, FormatError
from qrs.formats.header import METADATA_LIMIT, STORED_DTYPES
from qrs.formats.qrs_file import load, save
from qrs.formats.safetensors import SafetensorsFile, Writer
from raw_safetensors import entry, raw_file, write


def refused(path: Path) -> FormatError:
    """The error of opening `path`, which names the file in words and as an attribute."""
    with pytest.raises(FormatError) as caught, SafetensorsFile(path):
        pass
    assert caught.value.path == str(path)
    assert str(caught.value).startswith(str(path))
    return caught.value


@pytest.mark.parametrize("size", [0, 1, 7])
def test_S01_shorter_than_a_length(tmp_path: Path, size: int) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"\x02" * size)
    error = refused(path)
    assert "header too small" in str(error) and f"{size} bytes" in str(error)
    assert (error.field, error.offset) == ("header", 0)


@pytest.mark.parametrize("length", [0, 1, 3, 2**31, 2**63, 2**64 - 1, 100_000_001])
def test_S02_impossible_header_length(tmp_path: Path, length: int) -> None:
    error = refused(write(tmp_path, b"{}", length=length))
    assert (error.field, error.offset) == ("header", 0)
    assert f"header length: got {length}, " in str(error)


def test_S02_nothing_is_allocated_for_an_impossible_length(tmp_path: Path) -> None:
    path = write(tmp_path, b"{}", length=100_000_001)
    os.truncate(path, 1 << 33)  # sparse: the header would be there, were it legal
    code = (
        "import resource, sys\n"
        "from qrs.errors import FormatError\nfrom qrs.formats.safetensors import SafetensorsFile\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try: SafetensorsFile(sys.argv[1])\n"
        "except FormatError: print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    out = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True)
    assert int(out.stdout) < 20_000, out.stderr


S03 = {
    "not-utf8": b'{"\xff": 1}',
    "not-json": b'{"a": }',
    "empty": b"  ",
    "deep-array": b"[" * 100_000,
    "deep-in-object": b'{"a":' * 100_000,
    "deep-entry": b'{"a":' + b"[" * 700 + b"]" * 700 + b"}",
    "nan": b'{"__metadata__": NaN}',
    "infinity": b'{"a": -Infinity}',
    "bom": b"\xef\xbb\xbf{}",
    "trailing-comma": b'{"__metadata__": {"a": "b"},}',
    "two-documents": b"{}{}",
    "leading-space": b" {}",
    "array": b"[]",
    "raw-control-character": b'{"a\n": 1}',
    "huge-number": b'{"a": ' + b"9" * 5000 + b"}",
    "half-a-surrogate-pair": b'{"\\ud800": {"dtype":"U8","shape":[0],"data_offsets":[0,0]}}',
    "single-quotes": b"{'a': 1}",
    "nul-padded": b"{}\0\0\0\0\0\0",
}


@pytest.mark.parametrize("header", S03.values(), ids=S03.keys())
def test_S03_header_is_no_json_object(tmp_path: Path, header: bytes) -> None:
    assert refused(write(tmp_path, header)).field == "header" or b"NaN" in header


def test_S03_offset_of_the_first_wrong_byte(tmp_path: Path) -> None:
    assert refused(write(tmp_path, b'{"\xff": 1}')).offset == 8 + 2
    assert refused(write(tmp_path, b'{"a": }')).offset == 8 + 6


ONE = '{"dtype":"U8","shape":[1],"data_offsets":[0,1]}'
TWO = '{"dtype":"U8","shape":[1],"data_offsets":[1,2]}'


@pytest.mark.parametrize("second", [ONE, TWO], ids=["identical", "different"])
def test_S04_duplicate_tensor(tmp_path: Path, second: str) -> None:
    header = f'{{"a":{ONE},"a":{second}}}'.encode()
    error = refused(write(tmp_path, header, b"\0" * (1 if second == ONE else 2)))
    assert error.tensor == "a"
    assert "'a' occurs twice" in str(error)


@pytest.mark.parametrize("field", ["dtype", "shape", "data_offsets"])
def test_S04_duplicate_field_in_an_entry(tmp_path: Path, field: str) -> None:
    extra = json.dumps({field: entry(0, 1, [1], "U8")[field]})[1:]
    error = refused(write(tmp_path, f'{{"a":{ONE[:-1]},{extra}}}'.encode(), b"\0"))
    assert error.field == field


S05 = {
    "overlapping": (
        {"a": entry(0, 8, [2]), "b": entry(4, 12, [2])},
        12,
        "b",
        "overlaps tensor 'a'",
    ),
    "inside": ({"a": entry(0, 12, [3]), "b": entry(4, 8, [1])}, 12, "b", "overlaps tensor 'a'"),
    "same-bytes": ({"a": entry(0, 4, [1]), "b": entry(0, 4, [1])}, 4, "b", "overlaps tensor 'a'"),
    "gap": ({"a": entry(0, 4, [1]), "b": entry(8, 12, [1])}, 12, "b", "a gap after tensor 'a'"),
    "gap-first": ({"a": entry(4, 8, [1])}, 8, "a", "a gap after the header"),
    "reversed": ({"a": entry(4, 0, [1])}, 4, "a", "got [4, 0]"),
    "negative": ({"a": entry(-4, 0, [1])}, 4, "a", "got [-4, 0]"),
    "out-of-file": ({"a": entry(0, 8, [2])}, 4, "a", "end at 8, the file holds 4"),
    "far-out-of-file": ({"a": entry(2**62, 2**62 + 4, [1])}, 4, "a", "a gap after the header"),
    "trailing-bytes": ({"a": entry(0, 4, [1])}, 5, "a", "end at 4, the file holds 5"),
    "empty-tensor-in-a-gap": (
        {"a": entry(0, 4, [1]), "b": entry(9, 9, [0])},
        4,
        "b",
        "a gap after",
    ),
    "empty-tensor-inside": ({"a": entry(0, 4, [1]), "b": entry(2, 2, [0])}, 4, "b", "overlaps"),
    "three-offsets": ({"a": {**entry(0, 4, [1]), "data_offsets": [0, 4, 4]}}, 4, "a", "[0, 4, 4]"),
    "no-offsets": ({"a": {**entry(0, 4, [1]), "data_offsets": None}}, 4, "a", "got None"),
    "float-offset": ({"a": entry(0, 4.0, [1])}, 4, "a", "got [0, 4.0]"),
    "bool-offset": ({"a": entry(False, True, [1], "U8")}, 1, "a", "got [False, True]"),
    "huge-offset": ({"a": entry(0, 2**64, [1])}, 4, "a", "data_offsets: got [0, "),
}


@pytest.mark.parametrize("case", S05.values(), ids=S05.keys())
def test_S05_offsets_that_do_not_cover_the_data(
    tmp_path: Path, case: tuple[dict[str, Any], int, str, str]
) -> None:
    header, size, tensor, words = case
    error = refused(write(tmp_path, header, b"\0" * size))
    assert (error.tensor, error.field) == (tensor, "data_offsets")
    assert words in str(error)


def test_S05_bytes_without_any_tensor(tmp_path: Path) -> None:
    assert "the file holds 3 bytes" in str(refused(write(tmp_path, b"{}", b"\0" * 3)))


S06 = {
    "product-overflow": ([2**32, 2**32], "too many elements"),
    "product-wraps-to-4-bytes": ([2**62 + 1, 4], "too many elements"),
    "zero-first": ([0, 2**62, 2**62], "too many elements"),
    "zero-last": ([2**62, 2**62, 0], "too many elements"),
    "many-axes": ([9] * 100_000, "too many elements"),
    "too-small": ([2], "hold 4 bytes, F32 [2] has 8"),
    "no-axis-is-one-element": ([], None),
    "too-large": ([0], "hold 4 bytes, F32 [0] has 0"),
    "float": ([1.0], "got [1.0]"),
    "exponent": ([1e0], "got [1.0]"),
    "string": (["1"], "got ['1']"),
    "bool": ([True], "got [True]"),
    "negative": ([-1], "got [-1]"),
    "two-negatives": ([-1, -1], "got [-1, -1]"),
    "above-63-bits": ([2**63], "shape: got"),
    "number": (1, "got 1"),
    "null": (None, "got None"),
}


@pytest.mark.parametrize("case", S06.values(), ids=S06.keys())
def test_S06_shape_disagrees(tmp_path: Path, case: tuple[Any, str | None]) -> None:
    shape, words = case
    path = write(tmp_path, {"a": entry(0, 4, shape)}, b"\0" * 4)
    if words is None:
        with SafetensorsFile(path) as file:
            assert file.read("a").shape == ()
        return
    error = refused(path)
    assert error.tensor == "a" and error.field in ("shape", "data_offsets")
    assert words in str(error)


def test_S06_minus_zero_is_no_integer(tmp_path: Path) -> None:
    header = b'{"a":{"dtype":"F32","shape":[-0],"data_offsets":[0,0]}}'
    assert refused(write(tmp_path, header)).field == "shape"


@pytest.mark.parametrize("dtype", ["F128", "f32", "", "\x1b[2J", None, 1, ["F32"], {}])
def test_S07_unknown_dtype(tmp_path: Path, dtype: Any) -> None:
    error = refused(write(tmp_path, {"a": entry(0, 4, [1], dtype)}, b"\0" * 4))
    assert (error.tensor, error.field) == ("a", "dtype")
    assert all(name in str(error) for name in STORED_DTYPES)
    assert "\x1b" not in str(error)


@pytest.mark.parametrize(("dtype", "count"), [("F4", 3), ("F6_E2M3", 3), ("F6_E3M2", 5)])
def test_S07_elements_that_do_not_end_on_a_byte(tmp_path: Path, dtype: str, count: int) -> None:
    size = -(-count * (4 if dtype == "F4" else 6) // 8)
    error = refused(write(tmp_path, {"a": entry(0, size, [count], dtype)}, b"\0" * size))
    assert (error.tensor, error.field) == ("a", "shape")
    assert "bits do not end on a byte" in str(error)


S08_READ = """
import json, sys, time
from qrs.formats.safetensors import SafetensorsFile
start = time.process_time()
with SafetensorsFile(sys.argv[1]) as file:
    count = len(file.tensors)
seconds = time.process_time() - start
# Not ru_maxrss, which starts with what the parent had.
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
kilobytes = peak.split()[1]
del file
raw = open(sys.argv[1], "rb").read()
text = raw[8 : 8 + int.from_bytes(raw[:8], "little")].decode()
start = time.process_time()
json.loads(text)
print(count, seconds, time.process_time() - start, kilobytes)
"""


def test_S08_a_million_tensors(tmp_path: Path) -> None:
    """In less than 1 GB, and 10 times what the standard parser takes (it is about twice)."""
    path = tmp_path / "x.safetensors"
    text = ",".join(
        f'"model.layers.{i}.mlp":{{"dtype":"U8","shape":[1,1],"data_offsets":[{i},{i + 1}]}}'
        for i in range(1_000_000)
    )
    path.write_bytes(raw_file(f"{{{text}}}".encode(), b"\0" * 1_000_000))
    out = subprocess.run([sys.executable, "-c", S08_READ, path], capture_output=True, text=True)
    count, seconds, of_json, kilobytes = map(float, out.stdout.split())
    print(f"S08: {seconds:.2f} s, json {of_json:.2f} s, {kilobytes / 1024:.0f} MiB")
    assert count == 1_000_000
    assert seconds < 10 * of_json
    assert kilobytes * 1024 < 1_000_000_000


def test_S08_writing_many_tensors_is_not_quadratic(tmp_path: Path) -> None:
    """Eight times as many take eight times as long, where a square would take 64 times."""
    one = np.ones(1, np.uint8)

    def seconds(count: int) -> float:
        start = time.process_time()
        with Writer(tmp_path / "x", [(f"t{i}", "U8", (1,)) for i in range(count)]) as writer:
            for i in range(count):
                writer.write(f"t{i}", one)
        return time.process_time() - start

    few, many = (min(seconds(count) for _ in range(3)) for count in (5_000, 40_000))
    assert many < 24 * few
    with SafetensorsFile(tmp_path / "x") as file:
        assert len(file.tensors) == 40_000


S09 = {
    "empty": "",
    "1-MB": "w" * 1_000_000,
    "nul": "a\0b",
    "newline": "a\nb",
    "ansi": "\x1b[31mred\x1b[0m",
    "path": "../x",
    "absolute": "/etc/passwd",
    "right-to-left": "a\u202eb",
    "twin": "caf\u00e9",
    "other-twin": "cafe\u0301",
    "emoji": "\U0001f600",
    "reserved-lookalike": "__metadata",
}


def test_S09_any_name_is_data(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    tensors = {name: np.full(3, i, np.float32) for i, name in enumerate(S09.values())}
    save(path, tensors)
    back = load(path)
    assert back.keys() == tensors.keys()
    assert all(np.array_equal(back[name], tensors[name]) for name in tensors)
    assert os.listdir(tmp_path) == ["x.safetensors"]


@pytest.mark.parametrize("name", S09.values(), ids=S09.keys())
def test_S09_names_are_escaped_in_messages(tmp_path: Path, name: str) -> None:
    error = refused(write(tmp_path, {name: entry(0, 4, [7])}, b"\0" * 4))
    assert error.tensor == name
    message = str(error)
    assert message.isprintable() and len(message) < 1000


@pytest.mark.parametrize("value", [1, None, True, ["a"], {"a": "b"}])
def test_S10_metadata_that_is_no_text(tmp_path: Path, value: Any) -> None:
    error = refused(write(tmp_path, {"__metadata__": {"key": value}}))
    assert error.field == "__metadata__" and "'key'" in str(error)
    assert refused(write(tmp_path, {"__metadata__": [value]})).field == "__metadata__"


def test_S10_metadata_of_90_MB(tmp_path: Path) -> None:
    error = refused(write(tmp_path, {"__metadata__": {"key": "x" * 90_000_000}}))
    assert error.field == "__metadata__" and str(METADATA_LIMIT) in str(error)
    with pytest.raises(ArgValueError, match="metadata"):
        Writer(tmp_path / "y", [], {"key": "x" * 90_000_000})


def test_S10_duplicate_metadata(tmp_path: Path) -> None:
    assert "twice" in str(refused(write(tmp_path, b'{"__metadata__":{"a":"1","a":"1"}}')))
    assert "twice" in str(refused(write(tmp_path, b'{"__metadata__":{},"__metadata__":{}}')))


def test_S10_metadata_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(ArgTypeError, match="metadata"):
        Writer(tmp_path / "y", [], {"epoch": 3})  # type: ignore[dict-item]
    with pytest.raises(ArgValueError, match="surrogate"):
        Writer(tmp_path / "y", [], {"epoch": "\ud800"})


def test_S11_truncated_while_open(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save(path, {"a": np.ones(1000, np.float32), "b": np.ones(1000, np.float32)})
    with SafetensorsFile(path) as file:
        stop = file.tensors["a"].stop
        os.truncate(path, stop + 100)
        assert file.read("a").sum() == 1000
        for read in (lambda: file.read("b"), lambda: list(file.chunks("b", 512))):
            with pytest.raises(FormatError, match="truncated while open") as caught:
                read()
            assert (caught.value.tensor, caught.value.offset) == ("b", stop + 100)
        with pytest.raises(FormatError):
            file.read_rows("b", 500, 1000)
        assert file.read_rows("b", 0, 25).sum() == 25


def test_S11_modified_while_open(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save(path, {"a": np.ones(1000, np.float32)})
    with SafetensorsFile(path) as file:
        path.write_bytes(b"\xff" * os.path.getsize(path))
        assert file.read("a").shape == (1000,)  # other values, the shape and dtype of the header


def test_S12_save_over_the_file_being_read(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save(path, {"a": np.arange(100_000.0), "b": np.arange(7)})
    with SafetensorsFile(path) as file:
        layout = [(info.name, info.dtype, info.shape) for info in file.tensors.values()]
        with Writer(path, layout) as writer:
            for name in file.tensors:
                writer.write_chunks(name, file.chunks(name, 4096))
        assert np.array_equal(file.read("a"), np.arange(100_000.0))  # the old one is still whole
    back = load(path)
    assert np.array_equal(back["a"], np.arange(100_000.0))
    assert np.array_equal(back["b"], np.arange(7))


NUMPY_DTYPES = {name: dtype for name, dtype in STORED_DTYPES.items() if dtype is not None}


def every_bit_pattern(dtype: np.dtype[Any], shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    count = int(np.prod(shape)) * dtype.itemsize
    raw = np.random.default_rng(0).integers(0, 2 if dtype.kind == "b" else 256, count, np.uint8)
    return raw.view(dtype).reshape(shape)


@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 5), (1,), (257,), (3, 5, 7)], ids=str)
@pytest.mark.parametrize("dtype", NUMPY_DTYPES.values(), ids=NUMPY_DTYPES.keys())
def test_S13_round_trip_is_bit_exact(
    tmp_path: Path, dtype: np.dtype[Any], shape: tuple[int, ...]
) -> None:
    array = every_bit_pattern(dtype, shape)
    save(tmp_path / "x", {"first": np.zeros(3, np.uint8), "a": array})
    back = load(tmp_path / "x")["a"]
    assert (back.dtype, back.shape) == (dtype, shape)
    assert back.tobytes() == array.tobytes()
    assert back.flags.writeable and back.flags.owndata


def test_S13_data_that_starts_at_an_odd_offset(tmp_path: Path) -> None:
    array = np.arange(6, dtype=ml_dtypes.bfloat16).reshape(2, 3)
    header = json.dumps({"a": entry(0, 12, [2, 3], "BF16")}).encode()
    for padding in range(8):
        path = write(tmp_path, header + b" " * padding, array.tobytes())
        with SafetensorsFile(path) as file:
            back = file.read("a")
            assert back.flags.aligned
            assert back.tobytes() == array.tobytes()


@pytest.mark.parametrize(("dtype", "shape", "size"), [("F4", (3, 2), 3), ("F6_E2M3", (4,), 3)])
def test_S13_sub_byte_tensors_are_bytes(
    tmp_path: Path, dtype: str, shape: tuple[int, ...], size: int
) -> None:
    raw = np.arange(size, dtype=np.uint8)
    with Writer(tmp_path / "x", [("a", dtype, shape)]) as writer:
        writer.write("a", raw)
    with SafetensorsFile(tmp_path / "x") as file:
        assert (file.tensors["a"].dtype, file.tensors["a"].shape) == (dtype, shape)
        assert np.array_equal(file.read("a"), raw)
        with pytest.raises(ArgValueError, match="no rows"):
            file.read_rows("a", 0, 1)
