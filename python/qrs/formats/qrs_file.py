"""QTensors in safetensors files: how they lie there, save and load.

Every leaf of a QTensor is a tensor of the file, named by its path: the QTensor "layer.weight"
becomes "layer.weight.packed", "layer.weight.scale" and, where the scheme has one,
"layer.weight.zero_point". What they mean is said once, in the entry `qrs` of `__metadata__`, a JSON
text:

```
{"version": 1, "tensors": {"layer.weight": {
    "scheme": {"family": "int", "bits": 4, ...},   as Scheme.to_dict() gives it
    "shape": [64, 384],                            its own, whatever shape the parts have
    "dtype": "float32"}}}                          of the tensor that was quantized
```

Dtypes and shapes of the leaves follow from scheme and shape (`Scheme.part_specs`), and a file where
they differ is refused. All names that start with "layer.weight." belong to the QTensor, and its
leaves lie in one file. Other tensors are plain arrays. A file without quantized tensors has no
`qrs` entry. How codes lie in the bytes of `packed`: `qrs.schemes.int`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from ..constants import DTYPES
from ..devices import is_cupy
from ..errors import ArgTypeError, ArgValueError, DeviceError, FormatError, bad
from ..qtensor import QTensor
from ..schemes import Scheme, from_dict
from . import strict_json
from .header import Shape, TensorInfo, checked_metadata, dtype_name, nbytes
from .safetensors import SafetensorsFile, Writer
from .shards import shards
from .strict_json import is_int, quote

Array = NDArray[Any]
FileLayout = list[tuple[str, str, Shape]]
"""What a Writer needs to know: (name, dtype in the file, shape) of each tensor."""

METADATA_KEY = "qrs"
VERSION = 1


@dataclass(frozen=True)
class Entry:
    """What a file says of one quantized tensor."""

    scheme: Scheme
    shape: Shape
    dtype: str

    @classmethod
    def of(cls, qt: QTensor) -> Entry:
        """The entry of a QTensor."""
        return cls(qt.scheme, qt.shape, qt.dtype)

    def layout(self, name: str) -> FileLayout:
        """The leaves in a file, from scheme and shape alone: nothing is computed."""
        specs = self.scheme.part_specs(self.shape)
        return [(f"{name}.{path}", dtype_name(d), shape) for path, (d, shape) in specs.items()]

    def to_dict(self) -> dict[str, Any]:
        """As JSON-able values."""
        return {"scheme": self.scheme.to_dict(), "shape": list(self.shape), "dtype": self.dtype}


def qrs_metadata(entries: Mapping[str, Entry]) -> dict[str, str]:
    """The metadata of a file with these quantized tensors; empty if there are none."""
    if not entries:
        return {}
    tensors = {name: entry.to_dict() for name, entry in entries.items()}
    document = {"version": VERSION, "tensors": tensors}
    return {METADATA_KEY: json.dumps(document, ensure_ascii=False, separators=(",", ":"))}


def check_names(names: Iterable[str], quantized: Iterable[str]) -> None:
    """Raise ArgValueError where a tensor's name belongs to a quantized tensor.

    >>> check_names(["layer.weight", "layer.bias"], {"layer.weight"})
    >>> check_names(["a", "a.packed"], {"a"})
    Traceback (most recent call last):
    ...
    qrs.errors.ArgValueError: tensors: 'a.packed' belongs to the tensor 'a', expected another name
    """
    owners = frozenset(quantized)
    for name in names:
        owner = _owner(name, owners)
        if owner is not None:
            found = f"{quote(name)} belongs to the tensor {quote(owner)}"
            raise bad("tensors", found, name, "another name")


def save(
    path: str | os.PathLike[str],
    tensors: Mapping[str, QTensor | Array],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write QTensors and arrays into one safetensors file, atomically.

    Parameters
    ----------
    path : the file; it appears whole or not at all, see `qrs.formats.atomic`.
    tensors : name -> QTensor or numpy array of a dtype that safetensors has.
    metadata : further text entries of the file, such as {"format": "pt"}.

    Raises `ArgTypeError` for anything else, `ArgValueError` for names that collide or a path that
    is none, and `StorageError`.

    >>> import os, tempfile, qrs
    >>> path = os.path.join(tempfile.mkdtemp(), "w.safetensors")
    >>> qt = qrs.quantize(np.linspace(-1, 1, 64, dtype=np.float32), "int4-g32")
    >>> save(path, {"w": qt, "b": np.zeros(3)})
    >>> load(path)["w"] == qt, load(path)["b"]
    (True, array([0., 0., 0.]))
    """
    if not isinstance(tensors, Mapping):
        found, expected = f"got {quote(tensors)}", "a dictionary of QTensors and arrays"
        raise bad("tensors", found, type(tensors), expected, ArgTypeError)
    entries: dict[str, Entry] = {}
    arrays: dict[str, Array] = {}
    for name, tensor in tensors.items():
        if not isinstance(name, str):
            raise bad("tensors", f"got the name {quote(name)}", name, "a string", ArgTypeError)
        if is_cupy(tensor) or (isinstance(tensor, QTensor) and is_cupy(tensor.packed)):
            found, expected = f"{quote(name)} is on a GPU", "tensors on the host: x.to('numpy')"
            raise bad("tensors", found, type(tensor), expected, DeviceError)
        if isinstance(tensor, QTensor):
            entries[name] = Entry.of(tensor)
            arrays.update((f"{name}.{leaf}", array) for leaf, array in tensor.leaves())
        elif not isinstance(tensor, np.ndarray) or isinstance(tensor, np.ma.MaskedArray):
            found = f"{quote(name)} is a {type(tensor).__name__}"
            expected = "a QTensor or numpy.ndarray"
            raise bad("tensors", found, type(tensor), expected, ArgTypeError)
        else:
            arrays[name] = tensor
    check_names(tensors, entries)
    text = {} if metadata is None else checked_metadata(metadata)
    if METADATA_KEY in text:
        raise bad("metadata", f"the key {METADATA_KEY!r} is written by qrs", METADATA_KEY, "others")
    layout = [(name, _dtype_of(name, array), array.shape) for name, array in arrays.items()]
    with Writer(path, layout, {**text, **qrs_metadata(entries)}) as writer:
        for name in writer.tensors:
            writer.write(name, arrays[name])


def load(path: str | os.PathLike[str]) -> dict[str, QTensor | Array]:
    """Read what `save` or `qrs quantize` wrote, or any safetensors file or checkpoint folder.

    Returns QTensors and numpy arrays (ml_dtypes for bfloat16 and float8; F4 and F6 as bytes) by
    name, in the order of the file. Raises `FormatError`, `StorageError`, `QrsMemoryError`.
    """
    tensors: dict[str, QTensor | Array] = {}
    for shard in shards(path):
        with QrsFile(shard) as file:
            for name in file.names:
                if name in tensors:
                    file.fail("name: is in another shard as well", name)
                tensors[name] = file.load(name)
    return tensors


class QrsFile(SafetensorsFile):
    """A safetensors file whose leaves are read as QTensors; use it as a context manager.

    Attributes beside those of SafetensorsFile: `quantized` (name -> Entry) and `names`, the names
    of quantized and plain tensors in the order of their bytes.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        super().__init__(path)
        try:
            self.quantized = dict(self._read_entries())
            self._leaves: dict[str, dict[str, TensorInfo]] = {name: {} for name in self.quantized}
            self.names = list(dict.fromkeys(self._collect_leaves()))
            for name in self.quantized:
                self._check_leaves(name)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> QrsFile:
        return self

    def leaves(self, name: str) -> dict[str, TensorInfo]:
        """Where the leaves of a quantized tensor lie: path -> TensorInfo."""
        return self._leaves[name]

    def load(self, name: str) -> QTensor | Array:
        """One tensor by its name in `names`."""
        entry = self.quantized.get(name)
        if entry is None:
            return self.read(name)
        leaves = {path: self.read(info.name) for path, info in self._leaves[name].items()}
        try:
            return QTensor.from_leaves(entry.scheme, entry.shape, entry.dtype, leaves)
        except (ArgTypeError, ArgValueError) as error:
            self.fail(str(error), name, error.arg)

    def load_rows(self, name: str, start: int, stop: int) -> QTensor:
        """Rows of a quantized tensor of two or more axes, without reading the rest.

        `start` and `stop` are multiples of 8, but for the end: what is packed along the rows (the
        zero points of a scale per row) starts and ends on a byte there. Where rows cannot be read
        apart (`Scheme.loads_by_rows`), they are taken out of the whole tensor.
        """
        entry = self.quantized[name]
        scheme, rest = entry.scheme, entry.shape[1:]
        if not scheme.loads_by_rows:
            tensor = self.load(name)
            assert isinstance(tensor, QTensor)
            return tensor[start:stop]
        shape = (stop - start, *rest)
        whole, before = scheme.part_specs(entry.shape), scheme.part_specs((start, *rest))
        leaves: dict[str, Array] = {}
        for path, spec in scheme.part_specs(shape).items():
            leaf = self._leaves[name][path].name
            if spec == whole[path]:  # all rows, or the same for all, as the scale of a column is
                leaves[path] = self.read(leaf)
            else:
                first, count = before[path][1][0], spec[1][0]
                leaves[path] = self.read_rows(leaf, first, first + count)
        try:
            return QTensor.from_leaves(scheme, shape, entry.dtype, leaves)
        except (ArgTypeError, ArgValueError):
            self.load(name)  # fails with the indices of the whole tensor
            raise

    def fail(self, problem: str, tensor: str | None = None, field: str | None = None) -> NoReturn:
        """Raise a FormatError that names the file and the tensor."""
        place = self.path if tensor is None else f"{self.path}: tensor {quote(tensor)}"
        raise FormatError(f"{place}: {problem}", path=self.path, tensor=tensor, field=field)

    def _read_entries(self) -> Iterator[tuple[str, Entry]]:
        if METADATA_KEY not in self.metadata:
            return
        try:
            document = strict_json.loads(self.metadata[METADATA_KEY])
        except ValueError as error:
            self.fail(f"metadata {METADATA_KEY}: not JSON: {error}", field=METADATA_KEY)
        if not isinstance(document, dict) or document.keys() != {"version", "tensors"}:
            self.fail(f"metadata {METADATA_KEY}: expected version and tensors", field=METADATA_KEY)
        version, tensors = document["version"], document["tensors"]
        if not is_int(version) or version != VERSION:
            problem = f"metadata {METADATA_KEY}: version: got {quote(version)}, expected {VERSION}"
            self.fail(f"{problem}; a newer qrs may read it", field="version")
        if not isinstance(tensors, dict):
            self.fail(f"metadata {METADATA_KEY}: tensors: expected an object", field="tensors")
        for name, fields in tensors.items():
            yield name, self._entry(name, fields)

    def _entry(self, name: str, fields: Any) -> Entry:
        known = Entry.__dataclass_fields__.keys()
        if not isinstance(fields, dict) or fields.keys() != known:
            found, expected = f"got {quote(fields)}", f"expected {', '.join(known)}"
            self.fail(f"metadata {METADATA_KEY}: {found}, {expected}", name, METADATA_KEY)
        shape, dtype = fields["shape"], fields["dtype"]
        if not isinstance(shape, list) or not shape or not all(is_int(n) and n >= 0 for n in shape):
            expected = "expected one or more integers of at least 0"
            self.fail(f"shape: got {quote(shape)}, {expected}", name, "shape")
        try:
            nbytes("F64", shape)  # decoded to the widest dtype
        except ValueError as error:
            self.fail(f"shape: got {quote(shape)}: {error}", name, "shape")
        if not isinstance(dtype, str) or dtype not in DTYPES:
            expected = f"expected one of: {', '.join(DTYPES)}"
            self.fail(f"dtype: got {quote(dtype)}, {expected}", name, "dtype")
        try:
            scheme = from_dict(fields["scheme"])
        except (TypeError, ValueError, OverflowError) as error:
            self.fail(f"scheme: {error}", name, "scheme")
        return Entry(scheme, tuple(shape), dtype)

    def _collect_leaves(self) -> Iterator[str]:
        """Sort the file's tensors by the QTensor they belong to; the logical names."""
        owners = frozenset(self.quantized)
        for name, info in self.tensors.items():
            owner = _owner(name, owners)
            if owner is not None:
                self._leaves[owner][name[len(owner) + 1 :]] = info
            elif name in owners:
                self.fail("name: is both quantized and a plain tensor", name, "name")
            yield name if owner is None else owner

    def _check_leaves(self, name: str) -> None:
        """The leaves are those that scheme and shape ask for, in number, dtype and shape."""
        try:
            expected = self.quantized[name].layout(name)
        except (ArgValueError, ArgTypeError) as error:
            self.fail(f"shape: {error}", name, "shape")
        found = self._leaves[name]
        specs = {leaf[len(name) + 1 :]: (dtype, shape) for leaf, dtype, shape in expected}
        for path in sorted(found.keys() ^ specs.keys()):
            what = (
                "is missing" if path in specs else f"is not part of {self.quantized[name].scheme}"
            )
            self.fail(f"{path}: {what}", name, path)
        for path, (dtype, shape) in specs.items():
            got = (found[path].dtype, found[path].shape)
            if got != (dtype, shape):
                self.fail(f"{path}: got {got}, expected {(dtype, shape)}", name, path)


def _owner(name: str, quantized: frozenset[str]) -> str | None:
    """The quantized tensor whose name and a dot `name` starts with."""
    if not quantized:
        return None
    position = name.find(".")
    while position >= 0:
        if name[:position] in quantized:
            return name[:position]
        position = name.find(".", position + 1)
    return None


def _dtype_of(name: str, array: Array) -> str:
    try:
        return dtype_name(array.dtype)
    except ArgTypeError as error:
        problem = f"tensors: {quote(name)}: {error}"
        raise ArgTypeError(
            problem, arg="tensors", value=array.dtype, expected=error.expected
        ) from None
