"""safetensors files: read tensor by tensor with pread, written atomically.

```
offset      bytes  content
0           8      n, the length of the header: unsigned 64-bit integer, little-endian
8           n      the header: JSON, UTF-8, starting with "{", padded with spaces
8 + n       ...    the data: the tensors one after another, C order, little-endian
```

The header is one object, `{"name": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}}`
with as many entries as there are tensors, offsets counted from the start of the data, and
optionally `"__metadata__": {text: text}`. The tensors cover the data without hole or overlap; a
tensor may have no axis or no element. F4 and F6 elements follow each other without padding, and a
tensor of them ends on a byte.

Reading is strict (see `qrs.formats.header`) and never maps the file: a file that somebody truncates
while it is read is a FormatError, not a SIGBUS. Writing gives the bytes of the official library for
the same tensors and metadata. What QTensors look like in such a file: `qrs.formats.qrs_file`.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ArgTypeError, FormatError, QrsMemoryError, bad
from .atomic import as_path, atomic_file, storage_errors, write_all
from .header import (
    HEADER_LIMIT,
    STORED_DTYPES,
    TensorInfo,
    build_header,
    decode_header,
    dtype_name,
    parse_header,
)
from .strict_json import quote

Array = NDArray[Any]
CHUNK = 1 << 24
"""Bytes of a piece where a tensor is read or written in pieces (16 MiB)."""


class SafetensorsFile:
    """An open safetensors file; use it as a context manager.

    Attributes: `path`, `metadata` (text -> text), `tensors` (name -> TensorInfo, in the order of
    their bytes). Any number of threads may read at once. Raises FormatError for what is not a
    safetensors file and StorageError where the system cannot open or read it.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = str(as_path(path))
        self._fd = -1
        with storage_errors(self.path):
            # Without O_NONBLOCK the open of a named pipe would wait for a writer.
            self._fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            self.metadata, self.tensors = self._read_header()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> SafetensorsFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        fd, self._fd = getattr(self, "_fd", -1), -1
        if fd >= 0:
            os.close(fd)

    def read(self, name: str) -> Array:
        """The tensor as a new array; F4 and F6 tensors as their bytes, uint8 of shape (nbytes,).

        Raises ArgValueError for a name that is not there, QrsMemoryError if it does not fit.
        """
        info = self._info(name)
        shape = (info.nbytes,) if info.numpy_dtype is None else info.shape
        return self._read_array(info, shape, info.start)

    def read_rows(self, name: str, start: int, stop: int) -> Array:
        """`tensor[start:stop]` without reading the rest; 0 <= start <= stop <= shape[0]."""
        info = self._info(name)
        if info.numpy_dtype is None or not info.shape:
            found = f"{quote(name)} is {info.dtype} of shape {info.shape}, and has no rows"
            raise bad("name", found, name, "a tensor of one or more axes and whole bytes")
        if not 0 <= start <= stop <= info.shape[0]:
            rows = (start, stop)
            raise bad("start, stop", f"got {rows}", rows, f"0 <= start <= stop <= {info.shape[0]}")
        row_bytes = info.nbytes // info.shape[0] if info.shape[0] else 0
        shape = (stop - start, *info.shape[1:])
        return self._read_array(info, shape, info.start + start * row_bytes)

    def chunks(self, name: str, size: int = CHUNK) -> Iterator[memoryview]:
        """The bytes of a tensor in pieces of at most `size`, to copy it without looking at it."""
        info = self._info(name)
        for start in range(info.start, info.stop, size):
            buffer = _allocate((min(size, info.stop - start),), np.dtype(np.uint8), name)
            self._fill(info, buffer, start)
            yield buffer.data

    def _info(self, name: str) -> TensorInfo:
        if name not in self.tensors:
            raise bad("name", f"got {quote(name)}", name, f"a tensor of {self.path}")
        return self.tensors[name]

    def _read_array(self, info: TensorInfo, shape: tuple[int, ...], offset: int) -> Array:
        dtype = info.numpy_dtype or np.dtype(np.uint8)
        try:
            array = _allocate(shape, dtype, info.name)
        except ValueError as error:  # more axes than numpy has
            problem = f"{self.path}: tensor {quote(info.name)}: shape: {error}"
            raise FormatError(problem, path=self.path, tensor=info.name, field="shape") from None
        self._fill(info, array, offset)
        return array

    def _fill(self, info: TensorInfo, array: Array, offset: int) -> None:
        got = self._read_into(array, offset)
        if got != array.nbytes:
            problem = f"the file ends at {offset + got}, it was truncated while open"
            raise FormatError(
                f"{self.path}: tensor {quote(info.name)}: {problem}",
                path=self.path,
                offset=offset + got,
                tensor=info.name,
                field="data_offsets",
            )

    def _read_into(self, array: Array, offset: int) -> int:
        """Fill a C-contiguous array from the file; the bytes that were there."""
        if self._fd < 0:
            raise bad("file", f"{self.path} is closed", self.path, "an open file")
        if not array.nbytes:
            return 0
        view = array.reshape(-1).view(np.uint8).data
        done = 0
        with storage_errors(self.path):
            # A call may read less than asked (at most 2 GiB on Linux); EINTR is Python's (PEP 475).
            while done < len(view) and (got := os.preadv(self._fd, [view[done:]], offset + done)):
                done += got
        return done

    def _read_header(self) -> tuple[dict[str, str], dict[str, TensorInfo]]:
        with storage_errors(self.path):
            status = os.fstat(self._fd)
        if not stat.S_ISREG(status.st_mode):
            raise FormatError(f"{self.path}: not a regular file", path=self.path)
        length = np.zeros(8, np.uint8)
        if self._read_into(length, 0) != 8:
            self._bad_length(f"header too small: the file has {status.st_size} bytes")
        size = int.from_bytes(length.tobytes(), "little")
        if not 2 <= size <= HEADER_LIMIT:
            self._bad_length(f"header length: got {size}, expected 2 to {HEADER_LIMIT}")
        if 8 + size > status.st_size:
            self._bad_length(f"header length: got {size}, the file has {status.st_size} bytes")
        try:
            text = self._read_text(size)
            return parse_header(text, 8 + size, status.st_size - 8 - size, self.path)
        except MemoryError as error:
            found = f"no memory for the header of {self.path}"
            raise bad("path", found, size, f"{size} bytes free", QrsMemoryError) from error

    def _read_text(self, size: int) -> str:
        raw = np.empty(size, np.uint8)
        if self._read_into(raw, 8) != size:
            self._bad_length("header: the file was truncated while open")
        return decode_header(raw.tobytes(), self.path)

    def _bad_length(self, problem: str) -> None:
        raise FormatError(f"{self.path}: {problem}", path=self.path, offset=0, field="header")


def _allocate(shape: tuple[int, ...], dtype: np.dtype[Any], name: str) -> Array:
    try:
        return np.empty(shape, dtype)
    except MemoryError as error:
        size = int(np.prod([*shape, dtype.itemsize], dtype=object))
        found = f"no memory for {quote(name)}, {dtype} of shape {shape}"
        raise bad("name", found, size, f"{size} bytes free", QrsMemoryError) from error


class Writer:
    """Write a safetensors file atomically; use it as a context manager.

    `layout` lists every tensor as (name, safetensors dtype, shape). The header is written first,
    then each tensor exactly once, in any order and from any thread. When the block ends the file
    appears at `path`; after any exception `path` is what it was (see `qrs.formats.atomic`).

    Raises ArgValueError or ArgTypeError for what cannot be stored; entering the block raises
    StorageError if the folder is missing, not writable or full, before anything is computed.

    >>> import os, tempfile
    >>> path = os.path.join(tempfile.mkdtemp(), "model.safetensors")
    >>> with Writer(path, [("w", "F32", (2, 3))], {"format": "pt"}) as writer:
    ...     writer.write("w", np.ones((2, 3), np.float32))
    >>> with SafetensorsFile(path) as file:
    ...     print(file.metadata, file.read("w")[0])
    {'format': 'pt'} [1. 1. 1.]
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        layout: Sequence[tuple[str, str, Sequence[int]]],
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        self.path = str(as_path(path))
        self._header, self.tensors = build_header(layout, metadata or {})
        self.nbytes = max((info.stop for info in self.tensors.values()), default=len(self._header))
        self._missing = set(self.tensors)
        self._fd = -1

    def __enter__(self) -> Writer:
        with ExitStack() as stack:
            self._fd = stack.enter_context(atomic_file(self.path, self.nbytes))
            with storage_errors(self.path):
                write_all(self._fd, self._header, 0)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._fd = -1
        if error is not None:
            self._stack.__exit__(kind, error, trace)
            return
        with self._stack:  # a tensor left out fails the file like any other error
            if self._missing:
                some = ", ".join(quote(name) for name in sorted(self._missing)[:5])
                found = f"{len(self._missing)} tensors were not written: {some}"
                raise bad("layout", found, len(self._missing), "every tensor once")

    def write(self, name: str, array: Array) -> None:
        """Write one tensor: any strides and byte order, the dtype and shape of the layout.

        F4 and F6 tensors are given as their bytes, a uint8 array of shape (nbytes,).
        """
        info = self._claim(name)
        if not isinstance(array, np.ndarray) or isinstance(array, np.ma.MaskedArray):
            found = f"got {type(array).__name__} for {quote(name)}"
            raise bad("array", found, type(array), "numpy.ndarray", ArgTypeError)
        expected = (info.dtype, info.shape)
        if info.numpy_dtype is None:
            expected = ("U8", (info.nbytes,))
        got = (dtype_name(array.dtype), array.shape)
        if got != expected:
            raise bad("array", f"tensor {quote(name)} is {got}", got, expected)
        self._write(info, _pieces(array))

    def write_chunks(self, name: str, chunks: Iterable[Any]) -> None:
        """Write one tensor from buffers that hold its bytes in order, as `chunks` yields them."""
        self._write(self._claim(name), chunks)

    def _claim(self, name: str) -> TensorInfo:
        if name not in self._missing:
            what = "was written already" if name in self.tensors else "is not in the layout"
            raise bad("name", f"{quote(name)} {what}", name, "one that is still to be written")
        if self._fd < 0:
            raise bad("writer", f"{self.path} is not open", self.path, "`with Writer(...)`")
        return self.tensors[name]

    def _write(self, info: TensorInfo, chunks: Iterable[Any]) -> None:
        position = info.start
        for chunk in chunks:
            size = memoryview(chunk).nbytes
            if position + size > info.stop:
                position += size
                break
            with storage_errors(self.path):
                position = write_all(self._fd, chunk, position)
        if position != info.stop:
            count = position - info.start
            more = " or more" if count > info.nbytes else ""
            found = f"tensor {quote(info.name)}: got {count}{more} bytes"
            raise bad("chunks", found, count, info.nbytes)
        self._missing.discard(info.name)


def _pieces(array: Array) -> Iterator[memoryview]:
    """The bytes of an array as a file holds them: C order, little-endian.

    An array that lies so already is passed on as it is; any other is copied a few rows at a time.
    """
    array = np.atleast_1d(np.asarray(array))
    little = STORED_DTYPES[dtype_name(array.dtype)]
    if not array.size:
        return
    if array.flags.c_contiguous and array.dtype == little:
        yield array.reshape(-1).view(np.uint8).data
        return
    rows = max(1, CHUNK * len(array) // array.nbytes)
    for start in range(0, len(array), rows):
        block = np.ascontiguousarray(array[start : start + rows], dtype=little)
        yield block.reshape(-1).view(np.uint8).data
