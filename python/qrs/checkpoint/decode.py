"""From a quantized checkpoint back to arrays: a block of rows of a tensor at a time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

from .. import backends
from ..arrays import float_dtype_name
from ..constants import DTYPES
from ..devices import on_host
from ..errors import ArgTypeError, ArgValueError, QrsMemoryError, bad
from ..formats.header import dtype_name
from ..formats.qrs_file import FileLayout, QrsFile
from ..formats.safetensors import Writer
from ..qtensor import QTensor
from .output import Output, output_path
from .source import Shard, open_checkpoint
from .stream import (
    PathLike,
    Progress,
    as_bytes,
    copy_tensor,
    of_tensor,
    stored_blocks,
    whole,
    write_checkpoint,
)

Array = NDArray[Any]


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
        found = f"{source.path} holds no quantized tensors"
        raise bad("model", found, str(source.path), "a checkpoint that qrs quantized")
    computing = backends.resolve(backend).name  # a missing one is known before any work
    wanted = None if dtype is None else float_dtype_name(dtype)
    entries = {name: entry for shard in source.shards for name, entry in shard.quantized.items()}
    decoded = {name: wanted or entry.dtype for name, entry in entries.items()}

    def write(file: QrsFile, name: str, writer: Writer) -> None:
        if name in decoded:
            decode_tensor(file, name, writer, decoded[name], computing, progress)
        else:
            copy_tensor(file, name, writer, progress)

    write_checkpoint(
        source,
        Output(source, output_path(output), overwrite),
        lambda shard: (decoded_layout(shard, decoded), {}),
        write,
    )
    return decoded


def decoded_layout(shard: Shard, dtypes: Mapping[str, str]) -> FileLayout:
    """Every tensor of a shard once the quantized ones are arrays of these dtypes."""
    layout: FileLayout = []
    for name in shard.names:
        if name in shard.quantized:
            stored = dtype_name(DTYPES[dtypes[name]])
            layout.append((name, stored, shard.quantized[name].shape))
        else:
            info = shard.tensors[name]
            layout.append((name, info.dtype, info.shape))
    return layout


def decode_tensor(
    file: QrsFile,
    name: str,
    writer: Writer,
    dtype: str,
    backend: str,
    progress: Progress | None,
) -> None:
    """Write a quantized tensor of `file` as an array of `dtype`."""

    def values(part: QTensor) -> Array:
        library = backends.get(backend).library
        if library == "numpy":
            return part.dequantize(dtype, backend=backend)
        there = "float32" if dtype == "float64" else dtype  # float32 holds every decoded value
        x_hat = on_host(part.to(library).dequantize(there, backend=backend))
        return x_hat.astype(DTYPES[dtype], copy=False)

    def decoded(part: QTensor) -> Array:
        try:
            return as_bytes(values(part))
        except ArgValueError:
            values(whole(file, name))  # fails with its own indices
            raise

    try:
        writer.write_chunks(name, map(decoded, stored_blocks(file, name)))
    except (ArgTypeError, ArgValueError, QrsMemoryError) as error:
        raise of_tensor(error, name) from error
    if progress is not None:
        progress(name, sum(info.nbytes for info in file.leaves(name).values()))
