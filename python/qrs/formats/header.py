"""The header of a safetensors file: parsed strictly, built as the official writer builds it.

A header decides where bytes are read, so nothing in it is taken on trust: sizes are multiplied as
Python integers, the tensors must cover the data without hole or overlap, and a key that occurs
twice is refused. Byte layout: see `qrs.formats.safetensors`. No file is opened here.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, Final, NoReturn

import ml_dtypes
import numpy as np

from ..errors import ArgTypeError, FormatError, bad
from . import strict_json
from .strict_json import quote

Shape = tuple[int, ...]

STORED_DTYPES: Final[dict[str, np.dtype[Any] | None]] = {
    "BOOL": np.dtype(np.bool_),
    "F4": None,
    "F6_E2M3": None,
    "F6_E3M2": None,
    "U8": np.dtype(np.uint8),
    "I8": np.dtype(np.int8),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E8M0": np.dtype(ml_dtypes.float8_e8m0fnu),
    "F8_E4M3FNUZ": np.dtype(ml_dtypes.float8_e4m3fnuz),
    "F8_E5M2FNUZ": np.dtype(ml_dtypes.float8_e5m2fnuz),
    "I16": np.dtype("<i2"),
    "U16": np.dtype("<u2"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I32": np.dtype("<i4"),
    "U32": np.dtype("<u4"),
    "F32": np.dtype("<f4"),
    "C64": np.dtype("<c8"),
    "F64": np.dtype("<f8"),
    "I64": np.dtype("<i8"),
    "U64": np.dtype("<u8"),
}
"""Name in the file -> numpy dtype, in the official order; None for elements of less than a byte."""

_SUB_BYTE: Final = {"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6}
BITS: Final[dict[str, int]] = {
    name: _SUB_BYTE[name] if dtype is None else 8 * dtype.itemsize
    for name, dtype in STORED_DTYPES.items()
}
"""Bits per element."""

_NAMES: Final = {dtype: name for name, dtype in STORED_DTYPES.items() if dtype is not None}
_RANK: Final = {name: rank for rank, name in enumerate(STORED_DTYPES)}
_FIELDS: Final = dict.fromkeys(("dtype", "shape", "data_offsets")).keys()

HEADER_LIMIT: Final = 100_000_000
"""Longest JSON header, in bytes, as in the official reader."""
METADATA_LIMIT: Final = 1 << 26
"""Most characters that keys and values of `__metadata__` may have together (64 Mi)."""
_SIZE_LIMIT: Final = 1 << 63


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """What a header says of one tensor; `start` and `stop` are offsets from the start of the file.

    >>> info = TensorInfo("w", "BF16", (2, 3), 80, 92)
    >>> info.nbytes, str(info.numpy_dtype)
    (12, 'bfloat16')
    """

    name: str
    dtype: str
    shape: Shape
    start: int
    stop: int

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return self.stop - self.start

    @property
    def numpy_dtype(self) -> np.dtype[Any] | None:
        """The numpy (or ml_dtypes) dtype; None for F4 and F6, which are read as raw bytes."""
        return STORED_DTYPES[self.dtype]


def dtype_name(dtype: Any) -> str:
    """The safetensors name of a numpy dtype of any byte order.

    >>> dtype_name(np.dtype(">f4")), dtype_name("bfloat16")
    ('F32', 'BF16')
    """
    try:
        return _NAMES[np.dtype(dtype).newbyteorder("<")]
    except (KeyError, TypeError):
        found, known = f"safetensors cannot store {dtype}", ", ".join(map(str, _NAMES))
        raise bad("dtype", found, dtype, f"one of: {known}", ArgTypeError) from None


def nbytes(dtype: str, shape: Iterable[int]) -> int:
    """Bytes of a tensor in a file; ValueError where there is no such number of bytes.

    >>> nbytes("F6_E2M3", (4, 3)), nbytes("F32", ())
    (9, 4)
    """
    bits, empty = BITS[dtype], False
    for n in shape:
        # An axis of 0 must not hide that the others overflow: readers multiply in different orders.
        bits, empty = bits * (n or 1), empty or n == 0
        if bits >= 8 * _SIZE_LIMIT:
            raise ValueError("too many elements for 63-bit sizes")
    if bits % 8 and not empty:
        raise ValueError(f"{bits} bits do not end on a byte")
    return 0 if empty else bits // 8


def decode_header(raw: bytes, path: str) -> str:
    """The text of a header. Raises FormatError."""
    # Neither a byte order mark nor leading spaces: the first byte is "{".
    if not raw.startswith(b"{"):
        _fail(path, f"header: starts with {raw[:4]!r}, expected b'{{'", field="header", offset=8)
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        _fail(path, f"header: not UTF-8: {error.reason}", field="header", offset=8 + error.start)


def parse_header(
    text: str, data_start: int, data_size: int, path: str
) -> tuple[dict[str, str], dict[str, TensorInfo]]:
    """Metadata, and the tensors in the order of their bytes. Raises FormatError.

    A million tensors take seconds and less than 1 GB: entries become tuples while the text is
    parsed, and each is replaced by its TensorInfo in place.
    """
    fields = _parse_json(text, path)
    metadata = _check_metadata(fields.pop("__metadata__", {}), path)
    for name, entry in fields.items():
        fields[name] = _tensor_info(name, entry, data_start, path)
    # By start, then by stop: two sorts by integers take half the time of one by pairs.
    tensors = sorted(sorted(fields.values(), key=attrgetter("stop")), key=attrgetter("start"))
    _check_cover(tensors, data_start, data_size, path)
    return metadata, {info.name: info for info in tensors}


def _fail(path: str, problem: str, tensor: str | None = None, **where: Any) -> NoReturn:
    place = path if tensor is None else f"{path}: tensor {quote(tensor)}"
    raise FormatError(f"{place}: {problem}", path=path, tensor=tensor, **where)


def _parse_json(text: str, path: str) -> dict[str, Any]:
    try:
        fields = strict_json.loads(text, _compact)
    except json.JSONDecodeError as error:
        offset = 8 + len(text[: error.pos].encode())
        _fail(path, f"header: not JSON: {error}", field="header", offset=offset)
    except strict_json.DuplicateKeyError as error:
        if error.key in _FIELDS:
            _fail(path, f"header: {error}", field=error.key)
        _fail(path, f"header: {error}", tensor=error.key, field="header")
    except ValueError as error:
        _fail(path, f"header: not JSON: {error}", field="header", offset=8)
    if not isinstance(fields, dict):  # one entry and no name around it
        _fail(path, "header: got an entry, expected an object of entries", field="header", offset=8)
    return fields


def _compact(pairs: strict_json.Pairs) -> Any:
    """An entry as a tuple of its values and tuples: less than half the memory of a dictionary and
    lists, and nothing for the garbage collector to follow. Other objects are dictionaries."""
    fields = strict_json.unique(pairs)
    if fields.keys() != _FIELDS:
        return fields
    shape, offsets = fields["shape"], fields["data_offsets"]
    return (
        fields["dtype"],
        tuple(shape) if type(shape) is list else shape,
        tuple(offsets) if type(offsets) is list else offsets,
    )


def _check_metadata(metadata: Any, path: str) -> dict[str, str]:
    if isinstance(metadata, tuple):  # its keys happen to be those of an entry
        metadata = dict(zip(_FIELDS, metadata, strict=True))
    if not isinstance(metadata, dict):
        problem = f"__metadata__: got {quote(metadata)}, expected an object"
        _fail(path, problem, field="__metadata__")
    for key, value in metadata.items():
        if not isinstance(value, str):
            problem = f"__metadata__[{quote(key)}]: got {quote(value)}, expected a string"
            _fail(path, problem, field="__metadata__")
        if not _is_text(key) or not _is_text(value):
            problem = f"__metadata__[{quote(key)}]: holds half a surrogate pair, which is not text"
            _fail(path, problem, field="__metadata__")
    size = sum(len(key) + len(value) for key, value in metadata.items())
    if size > METADATA_LIMIT:
        problem = f"__metadata__: {size} characters, at most {METADATA_LIMIT} are accepted"
        _fail(path, problem, field="__metadata__")
    return metadata


def _is_text(text: str) -> bool:
    """Whether `text` can be written as UTF-8; JSON can escape halves of surrogate pairs."""
    try:
        text.isascii() or text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _tensor_info(name: str, entry: Any, data_start: int, path: str) -> TensorInfo:
    if not isinstance(entry, tuple):
        got = list(entry) if isinstance(entry, dict) else entry
        _fail(path, f"entry: got {quote(got)}, expected {list(_FIELDS)}", name, field="header")
    if not _is_text(name):
        _fail(path, "name: holds half a surrogate pair, which is not text", name, field="header")
    dtype, shape, offsets = entry
    if not isinstance(dtype, str) or dtype not in STORED_DTYPES:
        known = ", ".join(STORED_DTYPES)
        _fail(path, f"dtype: got {quote(dtype)}, expected one of: {known}", name, field="dtype")
    if not _are_sizes(shape):
        problem = f"shape: got {_listed(shape)}, expected integers of at least 0"
        _fail(path, problem, name, field="shape")
    if not _are_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        problem = f"data_offsets: got {_listed(offsets)}, expected [begin, end], 0 <= begin <= end"
        _fail(path, problem, name, field="data_offsets")
    begin, end = offsets
    try:
        size = nbytes(dtype, shape)
    except ValueError as error:
        _fail(path, f"shape: {_listed(shape)} of {dtype}: {error}", name, field="shape")
    if size != end - begin:
        problem = f"data_offsets: hold {end - begin} bytes, {dtype} {_listed(shape)} has {size}"
        _fail(path, problem, name, field="data_offsets", offset=data_start + begin)
    return TensorInfo(name, dtype, shape, data_start + begin, data_start + end)


def _are_sizes(values: Any) -> bool:
    if not isinstance(values, tuple):
        return False
    for n in values:  # noqa: SIM110  three times as fast as all(), for a million short shapes
        if type(n) is not int or not 0 <= n < _SIZE_LIMIT:  # as is_int, without the call
            return False
    return True


def _listed(values: Any) -> str:
    """As the file spells it: the tuple was a JSON array."""
    return quote(list(values) if isinstance(values, tuple) else values)


def _check_cover(tensors: list[TensorInfo], data_start: int, data_size: int, path: str) -> None:
    """Every byte of the data belongs to exactly one tensor."""
    position = data_start
    for number, info in enumerate(tensors):
        if info.start != position:
            before = f"tensor {quote(tensors[number - 1].name)}" if number else "the header"
            what = "a gap after" if info.start > position else "overlaps"
            begin, end = info.start - data_start, info.stop - data_start
            problem = f"data_offsets: [{begin}, {end}]: {what} {before}"
            _fail(path, problem, info.name, field="data_offsets", offset=info.start)
        position = info.stop
    if position != data_start + data_size:
        last = tensors[-1].name if tensors else None
        problem = f"data_offsets: end at {position - data_start}, the file holds {data_size} bytes"
        _fail(path, problem + " of data", last, field="data_offsets", offset=position)


def build_header(
    layout: Sequence[tuple[str, str, Sequence[int]]], metadata: Mapping[str, str]
) -> tuple[bytes, dict[str, TensorInfo]]:
    """The first bytes of a file, and where its tensors lie. Raises ArgValueError or ArgTypeError.

    Order as in the official writer: widest dtype first, so that every tensor is aligned, then by
    name. The JSON is padded with spaces so that the data starts at a multiple of 8.

    >>> raw, tensors = build_header([("w", "F32", (2,))], {})
    >>> len(raw), tensors["w"].start, raw[8:]
    (64, 64, b'{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}  ')
    """
    for name, dtype, _ in layout:
        if dtype not in STORED_DTYPES:
            found, known = f"tensor {quote(name)} of dtype {dtype!r}", ", ".join(STORED_DTYPES)
            raise bad("layout", found, dtype, f"one of: {known}")
    ordered = sorted(layout, key=lambda entry: (-_RANK[entry[1]], entry[0]))
    header: dict[str, Any] = {"__metadata__": checked_metadata(metadata)} if metadata else {}
    position = 0
    for name, dtype, shape in ordered:
        if name in header or name == "__metadata__" or not _is_text(name):
            found = f"name {quote(name)} occurs twice, is reserved or is no text"
            raise bad("layout", found, name, "another name")
        sizes = [int(n) for n in shape]
        try:
            end = position + nbytes(dtype, sizes)
        except ValueError as error:
            found = f"tensor {quote(name)}: {error}"
            raise bad("layout", found, shape, "fewer elements, that end on a byte") from None
        header[name] = {"dtype": dtype, "shape": sizes, "data_offsets": [position, end]}
        position = end
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > HEADER_LIMIT:
        found = f"the header takes {len(text)} bytes"
        raise bad("layout", found, len(text), f"at most {HEADER_LIMIT}")
    raw = len(text).to_bytes(8, "little") + text
    return raw, _placed(header, len(raw))


def checked_metadata(metadata: Mapping[str, str]) -> dict[str, str]:
    """Text entries that a header can hold. Raises ArgTypeError or ArgValueError."""
    if not isinstance(metadata, Mapping):
        found, expected = f"got {quote(metadata)}", "a dictionary of strings"
        raise bad("metadata", found, type(metadata), expected, ArgTypeError)
    for key, value in metadata.items():
        if not isinstance(key, str) or not isinstance(value, str):
            found = f"got {quote(key)}: {quote(value)}"
            raise bad("metadata", found, value, "strings", ArgTypeError)
        if not _is_text(key) or not _is_text(value):
            raise bad("metadata", f"{quote(key)} has half a surrogate pair", value, "text")
    size = sum(len(key) + len(value) for key, value in metadata.items())
    if size > METADATA_LIMIT:
        raise bad("metadata", f"{size} characters", size, f"at most {METADATA_LIMIT}")
    return dict(metadata)


def _placed(header: dict[str, Any], data_start: int) -> dict[str, TensorInfo]:
    """The entries of a header just built, as absolute offsets."""
    tensors = {}
    for name, entry in header.items():
        if name != "__metadata__":
            start, stop = (data_start + offset for offset in entry["data_offsets"])
            tensors[name] = TensorInfo(name, entry["dtype"], tuple(entry["shape"]), start, stop)
    return tensors
