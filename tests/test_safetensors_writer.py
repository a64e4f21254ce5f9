"""Writing safetensors files: what the layout promises is what the file holds."""

import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qrs.errors import ArgTypeError, ArgValueError
from qrs.formats.safetensors import CHUNK, SafetensorsFile, Writer
from raw_safetensors import write_all


def test_many_threads_read_and_write(tmp_path: Path) -> None:
    arrays = {f"t{i}": np.full((50, 40), i, np.float32) for i in range(16)}
    layout = [(name, "F32", array.shape) for name, array in arrays.items()]
    with Writer(tmp_path / "x", layout) as writer:
        work = [threading.Thread(target=writer.write, args=item) for item in arrays.items()]
        for thread in work:
            thread.start()
        for thread in work:
            thread.join()
    with SafetensorsFile(tmp_path / "x") as file:
        results: dict[str, Any] = {}
        work = [
            threading.Thread(target=lambda n=name: results.update({n: file.read(n)}))
            for name in arrays
        ]
        for thread in work:
            thread.start()
        for thread in work:
            thread.join()
    assert all(np.array_equal(results[name], array) for name, array in arrays.items())


def test_layout_that_cannot_be_written(tmp_path: Path) -> None:
    path = tmp_path / "x"
    for layout, words in [
        ([("a", "F32", (1,)), ("a", "F32", (1,))], "'a' occurs twice"),
        ([("__metadata__", "F32", (1,))], "reserved"),
        ([("\ud800", "F32", (1,))], "no text"),
        ([("a", "float32", (1,))], "dtype 'float32', expected one of: BOOL"),
        ([("a", "F4", (3,))], "do not end on a byte"),
        ([("a", "F32", (2**62, 2))], "too many elements"),
    ]:
        with pytest.raises(ArgValueError, match=words) as caught:
            Writer(path, layout)
        assert caught.value.arg == "layout"
        assert caught.value.value is not None and caught.value.expected is not None
    assert not path.exists()


def test_tensors_that_the_layout_does_not_have(tmp_path: Path) -> None:
    path = tmp_path / "x"
    good = np.ones((2, 3), np.float32)
    cases: list[tuple[Any, type[Exception], str]] = [
        (lambda w: w.write("b", good), ArgValueError, "'b' is not in the layout"),
        (lambda w: (w.write("a", good), w.write("a", good)), ArgValueError, "written already"),
        (lambda w: w.write("a", good.T), ArgValueError, r"is \('F32', \(3, 2\)\), expected"),
        (lambda w: w.write("a", good.astype(np.float64)), ArgValueError, r"is \('F64', "),
        (lambda w: w.write("a", [[1.0]]), ArgTypeError, "expected numpy.ndarray"),
        (lambda w: w.write("a", np.ma.masked_array(good)), ArgTypeError, "MaskedArray"),
        (lambda w: w.write_chunks("a", [b"x" * 23]), ArgValueError, "got 23 bytes, expected 24"),
        (lambda w: w.write_chunks("a", [b"x" * 20, b"x" * 5]), ArgValueError, "got 25 or more"),
        (lambda w: None, ArgValueError, "1 tensors were not written: 'a'"),
    ]
    for act, kind, words in cases:
        with (
            pytest.raises(kind, match=words) as caught,
            Writer(path, [("a", "F32", (2, 3))]) as writer,
        ):
            act(writer)
        error: Any = caught.value
        assert error.arg is not None and error.value is not None and error.expected is not None
        assert os.listdir(tmp_path) == []
    with pytest.raises(ArgValueError, match="expected `with"):
        Writer(path, [("a", "F32", (2, 3))]).write("a", good)


def test_strided_arrays_are_written_a_few_rows_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wide = np.arange(3 * CHUNK // 4, dtype=np.float32).reshape(-1, 1024)
    sizes: list[int] = []
    real = np.ascontiguousarray

    def spy(*args: Any, **kwargs: Any) -> Any:
        sizes.append(args[0].nbytes)
        return real(*args, **kwargs)

    monkeypatch.setattr(np, "ascontiguousarray", spy)
    write_all(tmp_path / "x", {"w": wide.T, "v": wide[::-1]})
    assert sizes and max(sizes) <= CHUNK
    monkeypatch.undo()
    with SafetensorsFile(tmp_path / "x") as file:
        assert np.array_equal(file.read("w"), wide.T)
        assert np.array_equal(file.read("v"), wide[::-1])


def test_chunks_may_be_any_buffer(tmp_path: Path) -> None:
    path = tmp_path / "x"
    pieces = [b"\0\0\x80\x3f", bytearray(b"\0\0\0\x40"), np.float32([3, 4]), memoryview(b"")]
    with Writer(path, [("a", "F32", (4,))]) as writer:
        writer.write_chunks("a", pieces)
    with SafetensorsFile(path) as file:
        assert file.read("a").tolist() == [1, 2, 3, 4]


def test_an_empty_file(tmp_path: Path) -> None:
    with Writer(tmp_path / "x", []):
        pass
    assert (tmp_path / "x").read_bytes() == b"\x08" + bytes(7) + b"{}      "
    with SafetensorsFile(str(tmp_path / "x")) as file:
        assert (file.tensors, file.metadata) == ({}, {})
