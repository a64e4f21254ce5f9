"""The commands: quantize, dequantize, inspect, doctor; others have files of their own."""

from __future__ import annotations

import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Annotated, Any

import typer

from .. import __version__, backends, checkpoint
from ..arrays import float_dtype_name
from ..errors import ArgValueError, QrsError
from ..schemes import GRAMMAR, as_scheme
from ..solvers import SOLVERS, check_solver
from .app import Command, Group, Json, UsageError, is_of_environment, usage
from .bits import bits
from .calibrate import calibrate
from .escape import escaped
from .histogram import chart_width
from .look import show_look
from .plan import Statistics, plan
from .progress import progress
from .show import show_contents, show_facts, show_fallbacks, show_json, show_plan, show_report

app = typer.Typer(
    name="qrs",
    cls=Group,
    help="Quantize, inspect and dequantize checkpoints of neural networks.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

# Paths are strings here: a Path would drop the slash at the end, and take "" for the folder.
Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A model folder, a .safetensors file, or model.safetensors.index.json.",
        show_default=False,
    ),
]
Out = Annotated[
    str | None,
    typer.Option(
        "-o",
        "--output",
        metavar="OUT",
        help="Folder to make, or one file if it ends in .safetensors.",
        show_default=False,
    ),
]
Backend = Annotated[
    str | None,
    typer.Option(help=f"Who computes: {', '.join(backends.NAMES)}.", show_default=False),
]
Solver = Annotated[
    str | None,
    typer.Option(
        metavar="SOLVER",
        help=f"How codes are chosen: {', '.join(SOLVERS)}. Default: minmax, their range.",
        show_default=False,
    ),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is at OUT.")]
Patterns = list[str]


def print_version(wanted: bool) -> None:
    """`qrs --version`."""
    if wanted:
        print(f"qrs {__version__}")
        raise typer.Exit


@app.callback()
def qrs(
    version: Annotated[
        bool,
        typer.Option("--version", help="Print the version.", callback=print_version, is_eager=True),
    ] = False,
) -> None:
    """Quantize, inspect and dequantize checkpoints of neural networks."""


@app.command(cls=Command)
def quantize(
    model: Model,
    output: Out = None,
    scheme: Annotated[str, typer.Option(help=f"For the weights: {GRAMMAR}.")] = "int8-axis0",
    include: Annotated[
        Patterns,
        typer.Option(
            metavar="PATTERN",
            help="Quantize only tensors whose names match; repeatable.",
            show_default=False,
        ),
    ] = [],  # noqa: B006
    exclude: Annotated[
        Patterns,
        typer.Option(
            metavar="PATTERN",
            help="Keep tensors whose names match; repeatable, wins over --include.",
            show_default=False,
        ),
    ] = [],  # noqa: B006
    embeddings: Annotated[
        str | None,
        typer.Option(
            metavar="SCHEME",
            help="Quantize embeddings too; int8 is one scale per row here.",
            show_default=False,
        ),
    ] = None,
    solver: Solver = None,
    stats: Statistics = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            metavar="RECIPE",
            help="A .json file of `qrs plan`, or your own: schemes and solvers by tensor.",
            show_default=False,
        ),
    ] = None,
    backend: Backend = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the plan; compute and write nothing.")
    ] = False,
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Quantize the weights of MODEL into the checkpoint OUT.

    By default floating-point tensors with two or more axes are quantized, but not embeddings,
    norms and biases. Patterns are those of the shell: 'encoder.*', '*.query.weight'.
    """
    if dry_run and overwrite:
        raise UsageError("--dry-run and --overwrite contradict each other")
    if output is None and not dry_run:
        raise UsageError("-o OUT is missing (or use --dry-run)")
    check_values(backend, scheme, embeddings, solver=solver)
    with usage():
        path = None if output is None else checkpoint.output_path(output)
    source = checkpoint.open_checkpoint(model)
    source.check_plain()
    said = None if recipe is None else checkpoint.Recipe.load(recipe)
    known = None if stats is None else checkpoint.KnownStatistics(stats)
    with usage():
        options: dict[str, Any] = {"include": include, "exclude": exclude, "backend": backend}
        options |= {"solver": solver or "minmax", "statistics": known, "recipe": said}
        planned = checkpoint.plan_of(source, scheme, embeddings=embeddings, **options)
    destination = None if path is None else checkpoint.Output(source, path, overwrite)
    if destination is not None:
        destination.check(planned.nbytes_after)
    if dry_run or destination is None:
        show_json(planned.to_dict()) if json else show_plan(planned)
        return
    if not json:
        show_fallbacks(planned, sys.stderr)
    with progress("quantizing", planned.nbytes, quiet=json) as step:
        report = checkpoint.run_plan(source, planned, destination, step)
    show_json(report.to_dict()) if json else show_report(report)


@app.command(cls=Command)
def dequantize(
    model: Model,
    output: Out = None,
    dtype: Annotated[
        str | None,
        typer.Option(help="Of the decoded tensors; default: what they had.", show_default=False),
    ] = None,
    backend: Backend = None,
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Decode a checkpoint that `qrs quantize` wrote: original names, shapes, dtypes, metadata."""
    if output is None:
        raise UsageError("-o OUT is missing")
    check_values(backend)
    with usage():
        wanted = None if dtype is None else float_dtype_name(dtype)
        path = checkpoint.output_path(output)
    nbytes = checkpoint.inspect_checkpoint(model).nbytes
    with decoding(), progress("dequantizing", nbytes, quiet=json) as step:
        decoded = checkpoint.dequantize_checkpoint(
            model, path, dtype=wanted, overwrite=overwrite, backend=backend, progress=step
        )
    if json:
        show_json({"output": str(path), "decoded": decoded})
        return
    print(f"decoded {len(decoded)} tensors to {', '.join(sorted(set(decoded.values())))}")
    print(f"wrote {escaped(str(path))}")


@contextmanager
def decoding() -> Iterator[None]:
    """Say what helps where the source's dtype is too narrow for what is decoded."""
    try:
        yield
    except ArgValueError as error:
        if (error.arg, error.expected) != ("dtype", "float32"):
            raise
        raise ArgValueError(f"{error} (--dtype float32 decodes it)", arg="dtype") from error


@app.command(cls=Command)
def inspect(
    model: Model,
    tensor: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Look into one tensor: its parts, scales, codebook, and a histogram.",
            show_default=False,
        ),
    ] = None,
    scheme: Annotated[
        str | None,
        typer.Option(
            metavar="SCHEME",
            help="With --tensor: quantize it in memory, and look at that.",
            show_default=False,
        ),
    ] = None,
    solver: Solver = None,
    row: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="With --tensor: whose codebook to show where each row has its own. Default: 0.",
            show_default=False,
        ),
    ] = None,
    json: Json = False,
) -> None:
    """List the tensors of a checkpoint: dtype, shape, scheme, size. Reads headers only.

    With --tensor, read that one, and show what is in it.
    """
    needs = {"--scheme": (scheme, tensor), "--row": (row, tensor), "--solver": (solver, scheme)}
    for option, (given, needed) in needs.items():
        if given is not None and needed is None:
            raise UsageError(f"{option} needs {'--tensor' if tensor is None else '--scheme'}")
    if tensor is None:
        contents = checkpoint.inspect_checkpoint(model)
        show_json(contents.to_dict()) if json else show_contents(contents)
        return
    check_values(None, scheme, solver=solver)
    source = checkpoint.open_checkpoint(model)
    with usage():
        subject = checkpoint.subject_of(
            source, tensor, scheme=scheme, solver=solver or "minmax", row=row
        )
    look = checkpoint.look_at(subject) if json else checkpoint.look_at(subject, chart_width())
    show_json(look.to_dict()) if json else show_look(look)


# A word that starts with a minus and is no option is a number.
app.command(cls=Command, context_settings={"ignore_unknown_options": True})(bits)

app.command(cls=Command)(calibrate)
app.command(cls=Command)(plan)


@app.command(cls=Command)
def doctor(json: Json = False) -> None:
    """Say what works on this machine, what does not, why, and what would fix it.

    Exit code 1 if commands would fail: a broken installation, or variables that ask for too much.
    """
    facts = diagnose()
    show_json(facts) if json else show_facts(facts)
    if facts["problems"]:
        raise typer.Exit(1)


def diagnose() -> dict[str, Any]:
    """The facts of `qrs doctor`; SIMD and threads are None where the extension does not load."""
    facts: dict[str, Any] = {
        "version": __version__,
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
        "simd_level": None,
        "simd_levels": [],
        "threads": None,
        "backends": backends.describe(),
        "problems": problems(),
    }
    with suppress(QrsError):  # then it is one of the problems
        facts["simd_level"] = backends.simd_level()
        facts["simd_levels"] = backends.simd_levels()
        facts["threads"] = backends.num_threads()
    return facts


def problems() -> list[dict[str, str]]:
    """What keeps commands from running as they are: each with what would fix it."""
    # The backend for numpy arrays, and the one that QRS_BACKEND asks for instead.
    found = {**problem_of(None, "QRS_BACKEND"), **problem_of("rust", None)}
    return [{"problem": problem, "fix": fix} for problem, fix in found.items()]


def problem_of(backend: str | None, variable: str | None) -> dict[str, str]:
    """What a backend lacks -> its fix; `variable` is the one of the environment that names it."""
    try:
        backends.resolve(backend)
    except QrsError as error:
        if is_of_environment(error):
            variable = error.arg
        return {str(error): f"unset {variable}" if variable else str(error.expected)}
    return {}


def check_values(backend: str | None, *schemes: str | None, solver: str | None = None) -> None:
    """Bad names are usage errors, found before a file is opened, as a missing backend is."""
    with usage():
        check_solver(solver or "minmax")
        for scheme in schemes:
            if scheme is not None:
                as_scheme(scheme)
        backends.resolve(backend)
