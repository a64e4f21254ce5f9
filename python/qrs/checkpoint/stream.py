"""Run a plan: tensor by tensor, in blocks of rows, and nothing is seen until all is written.

Where rows have scales of their own, a tensor is read and quantized a block of rows at a time, and
only its parts are held; where a scale or a table spans rows (one per tensor, or per column), it is
read whole. Kept tensors are copied in pieces, decoding works in blocks. So the peak stays below
three times the largest tensor + 256 MiB, but for the reference backend where a scale spans rows,
which makes copies of a whole tensor, and for k-means of many values: the plan counts what they take
(`Plan.memory_bound`).
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
from ..arrays import as_kernel_float
from ..devices import moved, on_host
from ..errors import ArgValueError, QrsError
from ..formats.header import nbytes as file_nbytes
from ..formats.qrs_file import Entry, FileLayout, QrsFile, qrs_metadata
from ..formats.safetensors import Writer
from ..formats.strict_json import quote
from ..qtensor import QTensor
from ..schemes import Scheme
from ..statistics import Statistics
from .known import takes_statistics
from .output import Output, output_path
from .plan import BLOCK_BYTES, Plan, TensorPlan, make_plan
from .recipe import Recipe
from .report import ErrorSums, Report, TensorReport
from .source import Checkpoint, Shard, open_checkpoint

Array = NDArray[Any]
SOLVED = ("damping", "dead_inputs", "polish_rounds", "underflow_groups")
"""What is reported of `QTensor.info`."""
PathLike = str | os.PathLike[str]
Progress = Callable[[str, int], None]
"""Called as `progress(tensor name, bytes)` with the bytes of the file that is read which were done
since the last call: after each block of rows that is quantized, each piece that is copied, and each
tensor that is decoded (with the bytes of all its parts). They add up to the bytes of all tensors of
the source."""
Content = tuple[FileLayout, dict[str, Entry]]
"""What comes of a shard: every stored tensor, and the entries of the quantized ones."""


def plan_checkpoint(
    model: PathLike,
    scheme: Scheme | str = "int8-axis0",
    *,
    embeddings: Scheme | str | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    solver: str = "minmax",
    statistics: Any = None,
    recipe: Recipe | None = None,
    backend: str | None = None,
) -> Plan:
    """What `quantize_checkpoint` would do, from headers alone; see `qrs.checkpoint.make_plan`.

    `model` is a folder, a .safetensors file, or an index. Raises FormatError, StorageError,
    DeviceError, and ArgValueError for options that do not fit the model.
    """
    options: dict[str, Any] = {"include": include, "exclude": exclude}
    options |= {"solver": solver, "backend": backend}
    options |= {"statistics": statistics, "recipe": recipe, "embeddings": embeddings}
    return plan_of(open_checkpoint(model), scheme, **options)


def plan_of(source: Checkpoint, scheme: Scheme | str, **options: Any) -> Plan:
    """`plan_checkpoint` of a checkpoint that is open."""
    source.check_plain()
    return make_plan(source.tensors, scheme, **options)


def quantize_checkpoint(
    model: PathLike,
    output: PathLike,
    scheme: Scheme | str = "int8-axis0",
    *,
    embeddings: Scheme | str | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    solver: str = "minmax",
    statistics: Any = None,
    recipe: Recipe | None = None,
    overwrite: bool = False,
    backend: str | None = None,
    progress: Progress | None = None,
) -> Report:
    """Quantize a checkpoint into another one, tensor by tensor.

    Parameters
    ----------
    model : a folder, a .safetensors file, or a model.safetensors.index.json.
    output : a folder to make, or one file if it ends in .safetensors; see `qrs.checkpoint.output`.
    scheme, embeddings, include, exclude, solver, statistics, recipe : what happens to which
        tensor, see `qrs.checkpoint.make_plan`.
    overwrite : replace what is at `output`.
    backend : as in `qrs.quantize`; the files written are the same bytes with each.
    progress : see `Progress`.

    Returns a Report. Raises ArgValueError for NaN and infinities, naming tensor and index;
    FormatError, StorageError, QrsMemoryError. After an error `output` is what it was.
    """
    source = open_checkpoint(model)
    options: dict[str, Any] = {"include": include, "exclude": exclude}
    options |= {"solver": solver, "backend": backend}
    options |= {"statistics": statistics, "recipe": recipe, "embeddings": embeddings}
    plan = plan_of(source, scheme, **options)
    return run_plan(source, plan, Output(source, output_path(output), overwrite), progress)


def run_plan(
    source: Checkpoint,
    plan: Plan,
    output: Output,
    progress: Progress | None = None,
) -> Report:
    """Do what a plan of this source says, with its solver and its backend."""
    started = time.perf_counter()
    report = Report(plan, str(output.path), skipped=output.skipped)
    by_name = {t.name: t for t in plan.tensors}

    def write(file: QrsFile, name: str, writer: Writer) -> None:
        t = by_name[name]
        if t.scheme is None:
            copy_tensor(file, name, writer, progress)
            return
        report.tensors.append(quantize_tensor(file, t, writer, plan, progress))

    def layout(shard: Shard) -> Content:
        plans = [by_name[name] for name in shard.names]
        entries = {t.name: t.entry for t in plans if t.entry is not None}
        return [part for t in plans for part in t.layout], entries

    write_checkpoint(source, output, layout, write)
    report.seconds = time.perf_counter() - started
    return report


def quantize_tensor(
    file: QrsFile, t: TensorPlan, writer: Writer, plan: Plan, progress: Progress | None
) -> TensorReport:
    """Quantize one tensor of `file` and write its parts."""
    started = time.perf_counter()
    errors = ErrorSums()
    pieces: dict[str, list[Array]] = {}  # each part as the blocks give it
    known = plan.statistics.of(t.layer) if plan.statistics is not None and t.layer else None
    info: dict[str, Any] = {}
    for x, qt in quantized_blocks(file, t, plan.backend, known):
        for leaf, array in qt.to("numpy").leaves():
            pieces.setdefault(leaf, []).append(array)
        add_errors(errors, x, qt, plan.backend)
        info |= {key: part for key, part in qt.info.items() if key in SOLVED}
        add_output(errors, x, qt, t, plan.backend, known)
        if progress is not None:
            progress(t.name, x.nbytes)
    for leaf, arrays in pieces.items():
        writer.write_chunks(f"{t.name}.{leaf}", map(as_bytes, arrays))
    if known is not None:
        info |= {"tokens": known.n_tokens, "inputs": known.features}
    return TensorReport(t, errors, time.perf_counter() - started, info)


def quantized_blocks(
    file: QrsFile, t: TensorPlan, backend: str, statistics: Statistics | None = None
) -> Iterator[tuple[Array, QTensor]]:
    """A tensor as it is and quantized: blocks of rows, or all of it where scales span rows.

    Blocks start at multiples of 8 rows, so that zero points packed along the rows (a scale per row)
    meet on a byte.
    """
    assert t.scheme is not None
    for rows in row_blocks(t.shape, 8) if t.is_rowwise else [slice(0, t.shape[0])]:
        x = file.read_rows(t.name, rows.start, rows.stop)
        try:
            qt = quantized(x, t, backend, statistics)
        except ArgValueError as error:
            raise explain(file, t, error, backend, statistics) from None
        yield x, qt


def add_errors(errors: ErrorSums, x: Array, qt: QTensor, backend: str) -> None:
    """Count in what quantizing `x` to `qt` lost."""
    for rows, part in zip(row_blocks(qt.shape), blocks_of(qt), strict=True):
        errors.add(x[rows], on_host(part.dequantize(backend=backend)))


def add_output(
    errors: ErrorSums, x: Array, qt: QTensor, t: TensorPlan, backend: str, known: Statistics | None
) -> None:
    """Count in what is lost in the output of the layer, where second moments are known."""
    if known is None or known.hessian is None:
        return
    try:
        errors.add_output(x, on_host(qt.dequantize(backend=backend)), known)
    except ArgValueError as error:
        raise of_tensor(error, t.name) from None


def sent(x: Array, backend: str) -> Array:
    """An array where the backend computes. float64 narrows before: a GPU takes none."""
    library = backends.get(backend).library
    return x if library == "numpy" else moved(as_kernel_float(x), library)


def quantized(x: Array, t: TensorPlan, backend: str, statistics: Statistics | None) -> QTensor:
    """Rows of a tensor, or all of it, as its plan says."""
    assert t.scheme is not None
    taken = statistics if takes_statistics(t.scheme, t.solver) else None
    return api.quantize(
        sent(x, backend), t.scheme, solver=t.solver, statistics=taken, backend=backend
    )


def explain(
    file: QrsFile, t: TensorPlan, error: QrsError, backend: str, statistics: Statistics | None
) -> QrsError:
    """The error of the whole tensor: one of a block of rows has neither its indices nor counts."""
    try:
        quantized(file.read(t.name), t, backend, statistics)
    except QrsError as whole:
        error = whole
    return of_tensor(error, t.name)


def whole(file: QrsFile, name: str) -> QTensor:
    """A quantized tensor of a file."""
    qt = file.load(name)
    assert isinstance(qt, QTensor)
    return qt


def stored_blocks(file: QrsFile, name: str) -> Iterator[QTensor]:
    """A quantized tensor in blocks of rows; whole where it has one axis.

    A tensor with many scales takes several times its bytes while it is checked and decoded, so that
    only a block of it is ever read, where what is stored of rows can be read apart.
    """
    shape, scheme = file.quantized[name].shape, file.quantized[name].scheme
    if len(shape) == 1:
        yield whole(file, name)
    elif not scheme.loads_by_rows:
        yield from blocks_of(whole(file, name), 8)
    else:
        for rows in row_blocks(shape, 8):
            yield file.load_rows(name, rows.start, rows.stop)


def blocks_of(qt: QTensor, least: int = 1) -> Iterator[QTensor]:
    """A quantized tensor of two or more axes in the blocks of `row_blocks`."""
    if not qt.scheme.loads_by_rows:
        qt = qt[:]  # scales that are quantized are decoded once, and not for each block
    for rows in row_blocks(qt.shape, least):
        yield qt[rows]


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

    Each starts at a multiple of `least` rows. There is none where there are no elements.

    >>> list(row_blocks((20, 100_000), least=8))
    [slice(0, 16, None), slice(16, 20, None)]
    """
    row_bytes = 4 * math.prod(shape[1:])
    if not row_bytes:
        return
    step = max(1, BLOCK_BYTES // row_bytes // least) * least
    for start in range(0, shape[0], step):
        yield slice(start, min(start + step, shape[0]))


def as_bytes(array: Array) -> Array:
    """The bytes of an array in C order."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def of_tensor(error: QrsError, name: str) -> QrsError:
    """The same error with the tensor in front: "x" means nothing to who quantizes a file."""
    message = f"tensor {quote(name)}: {str(error).removeprefix('x: ')}"
    where: dict[str, Any] = {"arg": error.arg, "value": error.value, "expected": error.expected}
    return type(error)(message, **where)
