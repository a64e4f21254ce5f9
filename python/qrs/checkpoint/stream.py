"""Run a plan: tensor by tensor, in blocks of rows, and nothing is seen until all is written.

Where rows have scales of their own, a tensor is read and quantized a block of rows at a time, and
only its parts are held; where a scale spans rows (one per tensor, or per column), it is read whole.
Kept tensors are copied in pieces, decoding works in blocks. So the peak stays below three times the
largest tensor + 256 MiB (with the reference backend only where rows have their own scales: a whole
tensor at once costs it several float32 copies).
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import api, backends
from ..arrays import float_dtype_name
from ..constants import DTYPES
from ..errors import ArgValueError, QrsError
from ..formats.header import dtype_name
from ..formats.header import nbytes as file_nbytes
from ..formats.qrs_file import Entry, Layout, QrsFile, qrs_metadata
from ..formats.safetensors import Writer
from ..formats.strict_json import quote
from ..qtensor import QTensor
from ..schemes import Scheme
from .output import Output
from .plan import BLOCK_BYTES, Plan, TensorPlan, make_plan
from .report import ErrorSums, Report, TensorReport
from .source import Checkpoint, Shard, open_checkpoint

Array = NDArray[Any]
PathLike = str | os.PathLike[str]
Progress = Callable[[str, int], None]
"""Called as `progress(tensor name, bytes of the source that are done since the last call)`."""
Content = tuple[Layout, dict[str, Entry]]
"""What comes of a shard: every stored tensor, and the entries of the quantized ones."""


def plan_checkpoint(
    model: PathLike,
    scheme: Scheme | str = "int8-axis0",
    *,
    embeddings: Scheme | str | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
) -> Plan:
    """What `quantize_checkpoint` would do, from headers alone; see `qrs.checkpoint.make_plan`.

    `model` is a folder, a .safetensors file, or an index. Raises FormatError, StorageError, and
    ArgValueError for options that do not fit the model.
    """
    return plan_of(
        open_checkpoint(model), scheme, embeddings=embeddings, include=include, exclude=exclude
    )


def plan_of(source: Checkpoint, scheme: Scheme | str, **options: Any) -> Plan:
    """`plan_checkpoint` of a checkpoint that is open."""
    if source.is_quantized:
        count = sum(len(shard.quantized) for shard in source.shards)
        raise ArgValueError(
            f"model: {source.path} holds {count} quantized tensors already; dequantize it first",
            arg="model",
            value=str(source.path),
            expected="a checkpoint that is not quantized",
        )
    return make_plan(source.tensors, scheme, **options)


def quantize_checkpoint(
    model: PathLike,
    output: PathLike,
    scheme: Scheme | str = "int8-axis0",
    *,
    embeddings: Scheme | str | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    overwrite: bool = False,
    backend: str | None = None,
    progress: Progress | None = None,
) -> Report:
    """Quantize a checkpoint into another one, tensor by tensor.

    Parameters
    ----------
    model : a folder, a .safetensors file, or a model.safetensors.index.json.
    output : a folder to make, or one file if it ends in .safetensors; see `qrs.checkpoint.output`.
    scheme, embeddings, include, exclude : what happens to which tensor, see
        `qrs.checkpoint.make_plan`.
    overwrite : replace what is at `output`.
    backend : as in `qrs.quantize`; the files written are the same bytes with each.
    progress : called after every tensor, and for large kept ones in between.

    Returns a Report. Raises ArgValueError for NaN and infinities, naming tensor and index;
    FormatError, StorageError, QrsMemoryError. After an error `output` is what it was.
    """
    source = open_checkpoint(model)
    plan = plan_of(source, scheme, embeddings=embeddings, include=include, exclude=exclude)
    return run_plan(source, plan, Output(source, Path(output), overwrite), backend, progress)


def run_plan(
    source: Checkpoint,
    plan: Plan,
    output: Output,
    backend: str | None = None,
    progress: Progress | None = None,
) -> Report:
    """Do what a plan of this source says."""
    started = time.perf_counter()
    report = Report(plan, str(output.path), skipped=output.skipped)
    by_name = {t.name: t for t in plan.tensors}

    def write(file: QrsFile, name: str, writer: Writer) -> None:
        t = by_name[name]
        if t.scheme is None:
            copy_tensor(file, name, writer, progress)
            return
        report.tensors.append(quantize_tensor(file, t, writer, backend, progress))

    def layout(shard: Shard) -> Content:
        plans = [by_name[name] for name in shard.names]
        entries = {t.name: t.entry for t in plans if t.entry is not None}
        return [part for t in plans for part in t.layout], entries

    backends.resolve(backend)  # a missing one is known before any work
    write_checkpoint(source, output, layout, write)
    report.seconds = time.perf_counter() - started
    return report


def quantize_tensor(
    file: QrsFile, t: TensorPlan, writer: Writer, backend: str | None, progress: Progress | None
) -> TensorReport:
    """Quantize one tensor of `file` and write its parts."""
    started = time.perf_counter()
    assert t.scheme is not None
    errors = ErrorSums()
    # Each part as the pieces that the blocks give. Blocks start at multiples of 8 rows, so that
    # zero points packed along the rows (a scale per row) meet on a byte.
    pieces: dict[str, list[Array]] = {}
    for rows in row_blocks(t.stored_shape, 8) if t.is_rowwise else [slice(0, t.shape[0])]:
        x = file.read_rows(t.name, rows.start, rows.stop).reshape(-1, *t.stored_shape[1:])
        try:
            qt = api.quantize(x, t.scheme, backend=backend)
        except ArgValueError as error:
            raise explain(file, t, error, backend) from None
        for leaf, array in qt.leaves():
            pieces.setdefault(leaf, []).append(array)
        for part in row_blocks(qt.shape):
            errors.add(x[part], qt[part].dequantize(backend=backend))
        if progress is not None:
            progress(t.name, x.nbytes)
    for leaf, arrays in pieces.items():
        writer.write_chunks(f"{t.name}.{leaf}", map(as_bytes, arrays))
    return TensorReport(t, errors, time.perf_counter() - started)


def explain(file: QrsFile, t: TensorPlan, error: QrsError, backend: str | None) -> QrsError:
    """The error of the whole tensor: one of a block of rows has neither its indices nor counts."""
    assert t.scheme is not None
    try:
        api.quantize(file.read(t.name).reshape(t.stored_shape), t.scheme, backend=backend)
    except QrsError as whole:
        error = whole
    as_stored = "" if t.stored_shape == t.shape else f" as {t.stored_shape}"
    return _of_tensor(error, f"{quote(t.name)}{as_stored}")


def dequantize_checkpoint(
    model: PathLike,
    output: PathLike,
    *,
    dtype: str | None = None,
    overwrite: bool = False,
    backend: str | None = None,
    progress: Progress | None = None,
) -> dict[str, str]:
    """Decode what `quantize_checkpoint` wrote: the original names, shapes, dtypes and metadata.

    `dtype` is for the quantized tensors, by default what each had before; the others stay as they
    are. Parameters and errors otherwise as in `quantize_checkpoint`. Returns the dtype of each
    tensor that was decoded. A value that overflows the dtype is an error that names the tensor.
    """
    source = open_checkpoint(model)
    if not source.is_quantized:
        raise ArgValueError(
            f"model: {source.path} holds no quantized tensors", arg="model", value=str(model)
        )
    wanted = None if dtype is None else float_dtype_name(dtype)
    decoded: dict[str, str] = {}

    def layout(shard: Shard) -> Content:
        parts: Layout = []
        for name in shard.names:
            entry = shard.quantized.get(name)
            if entry is None:
                info = shard.tensors[name]
                parts.append((name, info.dtype, info.shape))
                continue
            decoded[name] = wanted or entry.dtype
            stored = dtype_name(DTYPES[decoded[name]])
            parts.append((name, stored, entry.source_shape or entry.shape))
        return parts, {}

    def write(file: QrsFile, name: str, writer: Writer) -> None:
        if name not in file.quantized:
            copy_tensor(file, name, writer, progress)
            return
        qt = file.load(name)
        assert isinstance(qt, QTensor)
        writer.write_chunks(name, _decoded(name, qt, decoded[name], backend))
        if progress is not None:
            progress(name, qt.nbytes)

    backends.resolve(backend)
    write_checkpoint(source, Output(source, Path(output), overwrite), layout, write)
    return decoded


def write_checkpoint(
    source: Checkpoint,
    output: Output,
    convert: Callable[[Shard], Content],
    write: Callable[[QrsFile, str, Writer], None],
) -> None:
    """Write every tensor of every shard: `convert` says what comes of a shard, `write` does it."""
    contents = {shard.path: convert(shard) for shard in source.shards}
    layout = [part for parts, _ in contents.values() for part in parts]
    total = sum(file_nbytes(dtype, shape) for _, dtype, shape in layout)
    output.check(total)
    with output.files() as files:
        for path, shards in files:
            with new_file(path, shards, [contents[shard.path] for shard in shards]) as writer:
                for shard in shards:
                    with shard.open() as file:
                        for name in file.names:
                            write(file, name, writer)
        if source.is_sharded and not output.is_file:
            stored = [(path.name, contents[shard.path][0]) for path, (shard,) in files]
            weight_map = {name: file_name for file_name, parts in stored for name, *_ in parts}
            output.write_index(files[0][0].parent, weight_map, total)


def new_file(path: Path, shards: Sequence[Shard], contents: Sequence[Content]) -> Writer:
    """The writer of one file that takes the contents of these shards, and their metadata."""
    layout = [part for parts, _ in contents for part in parts]
    entries = {name: entry for _, some in contents for name, entry in some.items()}
    metadata: dict[str, str] = {}
    for shard in shards:
        metadata = {**shard.own_metadata, **metadata}
    return Writer(path, layout, {**metadata, **qrs_metadata(entries)})


def copy_tensor(file: QrsFile, name: str, writer: Writer, progress: Progress | None) -> None:
    """Pass the bytes of a tensor on as they are, a piece at a time."""

    def pieces() -> Iterator[memoryview]:
        for piece in file.chunks(name, BLOCK_BYTES):
            yield piece
            if progress is not None:
                progress(name, len(piece))

    writer.write_chunks(name, pieces())


def row_blocks(shape: Sequence[int], least: int = 1) -> Iterator[slice]:
    """Slices of the leading axis that cut an array of `shape` into blocks of some MiB.

    Each starts at a multiple of `least` rows.

    >>> list(row_blocks((20, 100_000), least=8))
    [slice(0, 16, None), slice(16, 20, None)]
    """
    row_bytes = 4 * math.prod(shape[1:])
    step = max(1, BLOCK_BYTES // max(1, row_bytes) // least) * least
    for start in range(0, shape[0], step):
        yield slice(start, min(start + step, shape[0]))


def as_bytes(array: Array) -> Array:
    """The bytes of an array in C order."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def _decoded(name: str, qt: QTensor, dtype: str, backend: str | None) -> Iterator[Array]:
    for rows in row_blocks(qt.shape):
        try:
            block = qt[rows].dequantize(dtype, backend=backend)
        except QrsError as error:
            raise _of_tensor(error, quote(name)) from error
        yield as_bytes(block)


def _of_tensor(error: QrsError, tensor: str) -> QrsError:
    """The same error with the tensor in front: "x" means nothing to who quantizes a file."""
    message = f"tensor {tensor}: {str(error).removeprefix('x: ')}"
    where: dict[str, Any] = {"arg": error.arg, "value": error.value, "expected": error.expected}
    return type(error)(message, **where)
