"""Safetensors files made by hand, right and wrong, and by the Writer."""

import json
import struct
from pathlib import Path
from typing import Any

from qrs.formats.header import dtype_name
from qrs.formats.safetensors import Writer


def raw_file(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    """The bytes of a file; `header` is JSON-able or bytes, `length` overrides its length."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(begin: Any, end: Any, shape: Any, dtype: Any = "F32") -> dict[str, Any]:
    """A header's entry for one tensor."""
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def write(folder: Path, header: Any, data: bytes = b"", length: int | None = None) -> Path:
    """A file of these bytes."""
    path = folder / "x.safetensors"
    path.write_bytes(raw_file(header, data, length))
    return path


def write_all(path: Path, tensors: dict[str, Any], metadata: dict[str, str] | None = None) -> None:
    """A file of these arrays."""
    layout = [(name, dtype_name(array.dtype), array.shape) for name, array in tensors.items()]
    with Writer(path, layout, metadata) as writer:
        for name, array in tensors.items():
            writer.write(name, array)
