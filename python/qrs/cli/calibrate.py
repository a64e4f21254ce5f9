"""`qrs calibrate`: the ranges and statistics of captured activations, in a file for later."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from typing import Annotated, Any

import typer

from .. import observers
from ..calibration import Calibration, read_activations
from ..calibration import calibrate as run_calibration
from ..errors import FormatError, StorageError
from ..schemes import as_scheme
from .app import Json, UsageError, usage
from .escape import escaped
from .progress import Step, progress
from .show import show_json
from .table import LEFT, RIGHT, show_table

OBSERVERS = {
    "mse": observers.MSE,
    "minmax": observers.MinMax,
    "histogram": observers.Histogram,
    "percentile": observers.Percentile,
    "entropy": observers.Entropy,
    "average": observers.MovingAverage,
}


def calibrate(
    activations: Annotated[
        list[str],
        typer.Argument(
            metavar="FILE...",
            help=".npz or .safetensors files, each a batch: layer name -> array (..., features).",
            show_default=False,
        ),
    ],
    output: Annotated[
        str | None,
        typer.Option(
            "-o", "--output", metavar="OUT", help="The .safetensors file to write.",
            show_default=False,
        ),
    ] = None,
    observer: Annotated[
        str, typer.Option(help=f"How ranges are chosen: {', '.join(OBSERVERS)}.")
    ] = "mse",
    hessian: Annotated[
        bool, typer.Option("--hessian", help="Keep X^T X of each layer too, for solvers.")
    ] = False,
    scheme: Annotated[
        str, typer.Option(help="Whose scale and zero point to print: per tensor.")
    ] = "uint8",
    json: Json = False,
) -> None:  # fmt: skip
    """Observe captured activations of layers, and write what solvers and static layers need."""
    if output is None:
        raise UsageError("-o OUT is missing")
    if not output.endswith(".safetensors"):
        raise UsageError(f"OUT has to end in .safetensors: {output}")
    if observer not in OBSERVERS:
        raise UsageError(f"--observer: got {observer!r}, expected one of: {', '.join(OBSERVERS)}")
    with usage():
        wanted = as_scheme(scheme)
        observers.MinMax().update([0.0]).qparams(wanted)  # whether it fits, before any work
    folder = os.path.dirname(output) or "."
    if not os.path.isdir(folder):
        raise StorageError(errno.ENOENT, os.strerror(errno.ENOENT), folder)
    total = sum(_size(path) for path in activations)
    with progress("calibrating", total, quiet=json) as step:
        calibration = run_calibration(
            _read(activations, step), observer=OBSERVERS[observer], hessian=hessian
        )
    rows = [_row(calibration, layer, wanted) for layer in calibration]
    calibration.save(output)
    if json:
        document = {"output": output, "layers": rows, "warnings": calibration.warnings()}
        show_json(document)
        return
    _show(rows)
    for warning in calibration.warnings():
        print(f"warning: {escaped(warning)}", file=sys.stderr)
    print(f"wrote {escaped(output)}")


def _read(paths: list[str], step: Step | None) -> Iterator[dict[str, Any]]:
    """The batches, file by file."""
    for path in paths:
        yield read_activations(path)
        if step is not None:
            step(path, _size(path))


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError as error:
        raise StorageError(error.errno or 0, error.strerror or str(error), path) from None
    except ValueError as error:  # a zero byte in the path
        raise FormatError(f"{path!r}: {error}", path=path) from None


def _row(calibration: Calibration, layer: str, scheme: Any) -> dict[str, Any]:
    """What is told of a layer."""
    observer = calibration[layer]
    if observer.lo is None or observer.hi is None:
        return {"layer": layer, "batches": calibration.batches[layer], "tokens": 0}
    scale, zero_point = observer.qparams(scheme)
    return {
        "layer": layer,
        "batches": calibration.batches[layer],
        "tokens": calibration.tokens[layer],
        "lo": float(observer.lo),
        "hi": float(observer.hi),
        "scale": float(scale),
        "zero_point": None if zero_point is None else int(zero_point),
    }


def _show(rows: list[dict[str, Any]]) -> None:
    titles = ("layer", "batches", "tokens", "lo", "hi", "scale", "zero_point")
    columns = [(name, LEFT if name == "layer" else RIGHT) for name in titles]

    def cell(value: Any) -> str:
        return f"{value:.5g}" if isinstance(value, float) else str("-" if value is None else value)

    show_table(columns, ([cell(row.get(name)) for name in titles] for row in rows))
