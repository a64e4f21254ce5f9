"""safetensors files: round trips, the official library as oracle, and mutated headers."""

import os
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from qrs.errors import ArgTypeError, ArgValueError, FormatError, StorageError
from qrs.formats.header import BITS, STORED_DTYPES, build_header, dtype_name, nbytes
from qrs.formats.safetensors import SafetensorsFile
from raw_safetensors import entry, raw_file, write, write_all

NUMPY_DTYPES = {name: dtype for name, dtype in STORED_DTYPES.items() if dtype is not None}
QUICK = settings(
    deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


@st.composite
def arrays(draw: st.DrawFn) -> np.ndarray[Any, Any]:
    """An array of any storable dtype, shape and bit pattern, laid out in any way."""
    dtype = draw(st.sampled_from(list(NUMPY_DTYPES.values())))
    shape = tuple(draw(st.lists(st.integers(0, 5), max_size=4)))
    count = int(np.prod(shape)) * dtype.itemsize
    raw = np.frombuffer(draw(st.binary(min_size=count, max_size=count)), np.uint8)
    array = (raw & 1 if dtype.kind == "b" else raw).view(dtype).reshape(shape)
    layout = draw(st.sampled_from(["C", "F", "reversed", "strided", "swapped"]))
    if layout == "F":
        return np.asfortranarray(array)
    if layout == "reversed":
        return array[::-1].copy()[::-1] if shape else array
    if layout == "strided":
        return np.repeat(array, 2, axis=-1)[..., ::2] if shape else array
    if layout == "swapped" and dtype.kind in "iufc":
        return array.astype(dtype.newbyteorder(">"))
    return array


def bytes_of(array: np.ndarray[Any, Any]) -> bytes:
    """What a file holds of an array, without this package's code."""
    return array.astype(array.dtype.newbyteorder("<")).tobytes(order="C")


TENSORS = st.dictionaries(st.text(max_size=8).filter(lambda n: n != "__metadata__"), arrays())
METADATA = st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=3)


@QUICK
@given(TENSORS, METADATA)
def test_round_trip(tmp_path: Path, tensors: dict[str, Any], metadata: dict[str, str]) -> None:
    path = tmp_path / "x"
    write_all(path, tensors, metadata)
    with SafetensorsFile(path) as file:
        assert file.metadata == metadata
        assert file.tensors.keys() == tensors.keys()
        for name, array in tensors.items():
            back = file.read(name)
            assert back.shape == array.shape
            assert back.dtype == array.dtype.newbyteorder("<")
            assert back.tobytes() == bytes_of(array)
            assert b"".join(file.chunks(name, 7)) == bytes_of(array)
            if array.ndim:
                start = len(array) // 3
                assert file.read_rows(name, start, len(array)).tobytes() == bytes_of(array[start:])


@QUICK
@given(TENSORS, st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=1))
def test_the_official_library_writes_the_same_bytes(
    tmp_path: Path, tensors: dict[str, Any], metadata: dict[str, str]
) -> None:
    path = tmp_path / "x"
    write_all(path, tensors, metadata)
    if all(array.dtype.name in OFFICIAL_NAMES for array in tensors.values()):
        plain = {  # the official writer takes contiguous arrays only
            name: np.frombuffer(bytes_of(a), a.dtype.newbyteorder("<")).reshape(a.shape)
            for name, a in tensors.items()
        }
        assert path.read_bytes() == safetensors.numpy.save(plain, metadata or None)
    found = safetensors.deserialize(path.read_bytes())
    assert {name: bytes(info["data"]) for name, info in found} == {
        name: bytes_of(array) for name, array in tensors.items()
    }
    assert all(info["dtype"] == dtype_name(tensors[name].dtype) for name, info in found)


OFFICIAL_NAMES = {
    *("bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"),
    *("float16", "bfloat16", "float32", "float64"),
}


def test_names_and_bits_agree_with_numpy() -> None:
    assert all(dtype_name(dtype) == name for name, dtype in NUMPY_DTYPES.items())
    assert dtype_name(ml_dtypes.float8_e4m3fn) == "F8_E4M3"
    assert dtype_name(ml_dtypes.float8_e5m2fnuz) == "F8_E5M2FNUZ"
    assert (BITS["F4"], BITS["F6_E2M3"], BITS["BF16"], BITS["C64"]) == (4, 6, 16, 64)
    assert nbytes("F4", (3, 2)) == 3
    for unknown in (object, "U3", np.longdouble, ml_dtypes.int4, "M8[s]"):
        with pytest.raises(ArgTypeError, match="safetensors cannot store"):
            dtype_name(unknown)


# ---- Mutated headers: FormatError or what the official library reads, and nothing else

BASE = build_header(
    [("w", "F32", (2, 3)), ("b", "BF16", (3,)), ("e", "F16", (0, 7)), ("s", "F64", ())], {"k": "v"}
)[0][8:]
DATA = bytes(24 + 6 + 8)
TOKENS = [
    *(
        b"-0",
        b"-1",
        b"1e1",
        b"1.0",
        b"true",
        b"null",
        b"NaN",
        b"0",
        b"00",
        b"01",
        b"18446744073709551616",
    ),
    *(
        b"\\u0077",
        b"\\ud800",
        b"\\u0000",
        b"\\x",
        b'"',
        b"{",
        b"}",
        b"[",
        b"]",
        b",",
        b":",
        b" ",
        b"\n",
    ),
    *(
        b"\t",
        b"\xff",
        b"\xc3\xa9",
        b"\xef\xbb\xbf",
        b"\0",
        b'"w"',
        b'"dtype"',
        b"F32",
        b"U8",
        b"F4",
    ),
]


@st.composite
def mutations(draw: st.DrawFn) -> bytes:
    header = BASE
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(header)))
        stop = min(len(header), start + draw(st.integers(0, 6)))
        new = draw(st.one_of(st.sampled_from(TOKENS), st.binary(max_size=3)))
        if draw(st.booleans()):  # a piece of the header itself, in another place
            other = draw(st.integers(0, len(header)))
            new = header[other : other + draw(st.integers(0, 50))]
        header = header[:start] + new + header[stop:]
    return header


def official(raw: bytes) -> dict[str, tuple[str, list[int], bytes]]:
    return {
        name: (info["dtype"], list(info["shape"]), bytes(info["data"]))
        for name, info in safetensors.deserialize(raw)
    }


def check_against_official(path: Path, raw: bytes) -> bool:
    """Whether the file was accepted; then it says what it says to the official library."""
    path.write_bytes(raw)
    try:
        file = SafetensorsFile(path)
    except FormatError:
        return False
    with file:
        ours = {
            name: (info.dtype, list(info.shape), b"".join(file.chunks(name)))
            for name, info in file.tensors.items()
        }
        assert ours == official(raw)
        with safetensors.safe_open(path, "numpy") as handle:
            assert (handle.metadata() or {}) == file.metadata
    return True


@settings(QUICK, max_examples=1500)
@given(mutations())
@example(BASE)
@example(BASE.replace(b'"w"', b'"\\u0077"'))
@example(BASE.replace(b"[2,3]", b"[2,3,1]"))
@example(BASE.replace(b"[0,7]", b"[-0,7]"))
@example(BASE.replace(b'"__metadata__":{"k":"v"}', b'"__metadata__":{}'))
@example(BASE.replace(b'"k":"v"', b'"dtype":"","shape":"","data_offsets":""'))
def test_mutated_header_bytes(tmp_path: Path, header: bytes) -> None:
    check_against_official(tmp_path / "x", raw_file(header, DATA))


@settings(QUICK, max_examples=300)
@given(st.binary(max_size=200), st.booleans())
def test_arbitrary_files(tmp_path: Path, raw: bytes, framed: bool) -> None:
    check_against_official(tmp_path / "x", raw_file(raw, b"") if framed else raw)


@settings(QUICK, max_examples=300)
@given(st.data())
def test_changed_length_or_data(tmp_path: Path, data: st.DataObject) -> None:
    raw = bytearray(raw_file(BASE, DATA))
    raw[data.draw(st.integers(0, 7))] = data.draw(st.integers(0, 255))
    del raw[data.draw(st.integers(0, len(raw))) :]
    check_against_official(tmp_path / "x", bytes(raw))


def test_mutations_are_not_all_refused(tmp_path: Path) -> None:
    path = tmp_path / "x"
    assert check_against_official(path, raw_file(BASE, DATA))
    assert check_against_official(path, raw_file(BASE.replace(b'"w"', b'"\\u0078"'), DATA))
    assert check_against_official(path, raw_file(BASE.replace(b",", b" ,\n"), DATA))
    assert not check_against_official(path, raw_file(BASE.replace(b'"F32"', b'"F64"'), DATA))


# ---- Reader


def test_tensors_come_in_the_order_of_their_bytes(tmp_path: Path) -> None:
    header = {"z": entry(8, 12, [1]), "m": entry(0, 4, [1]), "a": entry(4, 8, [1])}
    with SafetensorsFile(write(tmp_path, header, bytes(12))) as file:
        assert list(file.tensors) == ["m", "a", "z"]


def test_rows_and_names_that_are_not_there(tmp_path: Path) -> None:
    path = tmp_path / "x"
    write_all(path, {"w": np.arange(12.0).reshape(4, 3), "s": np.array(1.0)})
    with SafetensorsFile(path) as file:
        assert file.read_rows("w", 1, 3).tolist() == [[3, 4, 5], [6, 7, 8]]
        assert file.read_rows("w", 4, 4).shape == (0, 3)
        for start, stop in [(-1, 2), (0, 5), (3, 2)]:
            with pytest.raises(ArgValueError, match="expected 0 <= start <= stop <= 4"):
                file.read_rows("w", start, stop)
        with pytest.raises(ArgValueError, match="no rows"):
            file.read_rows("s", 0, 1)
        for read in (file.read, file.chunks):
            with pytest.raises(ArgValueError, match="got 'nope', expected a tensor of"):
                list(read("nope"))  # type: ignore[call-overload]
    with pytest.raises(ArgValueError, match="closed"):
        file.read("w")
    file.close()


def test_more_axes_than_numpy_has(tmp_path: Path) -> None:
    path = write(tmp_path, {"w": entry(0, 4, [1] * 100)}, bytes(4))
    with SafetensorsFile(path) as file:
        with pytest.raises(FormatError) as caught:
            file.read("w")
        assert (caught.value.tensor, caught.value.field) == ("w", "shape")
        assert b"".join(file.chunks("w")) == bytes(4)


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, Path("/dev/zero")):
        with pytest.raises(FormatError, match="not a regular file"):
            SafetensorsFile(path)
    with pytest.raises(StorageError) as caught:
        SafetensorsFile(tmp_path / "nope")
    assert caught.value.errno == 2 and caught.value.filename == str(tmp_path / "nope")


def test_short_reads_and_read_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x"
    array = np.arange(1000.0)
    write_all(path, {"w": array})
    real = os.preadv
    monkeypatch.setattr(os, "preadv", lambda fd, views, at: real(fd, [views[0][:13]], at))
    with SafetensorsFile(path) as file:
        assert np.array_equal(file.read("w"), array)

        def broken(*_: object) -> int:
            raise OSError(5, "Input/output error")

        monkeypatch.setattr(os, "preadv", broken)
        with pytest.raises(StorageError, match="Input/output error") as caught:
            file.read("w")
        assert (caught.value.errno, caught.value.filename) == (5, str(path))


def test_no_descriptor_is_left_open(tmp_path: Path) -> None:
    bad = write(tmp_path, b"nonsense")
    good = tmp_path / "y"
    before = set(os.listdir("/proc/self/fd"))
    for _ in range(3):
        write_all(good, {"w": np.ones(3)})
        with SafetensorsFile(good):
            pass
        with pytest.raises(FormatError):
            SafetensorsFile(bad)
    assert len(os.listdir("/proc/self/fd")) <= len(before)
