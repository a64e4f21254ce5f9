"""`qrs plan`: a scheme for each tensor under a budget of bits, as a recipe for `qrs quantize`."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from .. import checkpoint
from ..checkpoint.budget import CANDIDATES, Budget, checked_target
from ..schemes import as_scheme
from ..solvers import check_solver
from .app import Json, UsageError, usage
from .escape import escaped
from .progress import progress
from .show import show_json, show_left_out
from .table import LEFT, RIGHT, show_table

Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A model folder, a .safetensors file, or model.safetensors.index.json.",
        show_default=False,
    ),
]
Statistics = Annotated[
    str | None,
    typer.Option(
        "--stats",
        metavar="FILE",
        help="Statistics of the layers' inputs, from `qrs calibrate --hessian`.",
        show_default=False,
    ),
]


def plan(
    model: Model,
    target_bits: Annotated[
        float,
        typer.Option(
            metavar="BITS", help="Per weight, scales and tables counted.", show_default=False
        ),
    ],
    output: Annotated[
        str | None,
        typer.Option(
            "-o", "--output", metavar="RECIPE", help="The .json file to write.", show_default=False
        ),
    ] = None,
    candidates: Annotated[
        str, typer.Option(metavar="SCHEMES", help="To choose from, separated by commas.")
    ] = ",".join(CANDIDATES),
    solver: Annotated[str, typer.Option(metavar="SOLVER", help="For all of them.")] = "lsq",
    stats: Statistics = None,
    include: Annotated[
        list[str],
        typer.Option(metavar="PATTERN", help="Only tensors that match.", show_default=False),
    ] = [],  # noqa: B006
    exclude: Annotated[
        list[str],
        typer.Option(metavar="PATTERN", help="Not tensors that match.", show_default=False),
    ] = [],  # noqa: B006
    json: Json = False,
) -> None:
    """Choose a scheme for each tensor of MODEL so that all take at most BITS per weight.

    Each candidate is tried on each tensor, and what it loses weighed: of the output of the layer
    with --stats, of the weight without. Write the choice to RECIPE for `qrs quantize --recipe`.
    """
    names = [text.strip() for text in candidates.split(",") if text.strip()]
    with usage():
        checked_target(target_bits)
        check_solver(solver)
        for text in names:
            as_scheme(text)
    if output is not None and not output.endswith(".json"):
        raise UsageError(f"RECIPE has to end in .json: {output}")
    source = checkpoint.open_checkpoint(model)
    options = {"include": include, "exclude": exclude, "statistics": stats}
    with usage():
        tried = checkpoint.budget.candidate_plans(source, names, solver, options)
        checkpoint.budget.check_reachable(tried, target_bits)
    total = sum(t.nbytes for plans in tried.values() for _, t in plans)
    with progress("measuring", total, quiet=json) as step:
        budget = checkpoint.plan_bits(
            source, target_bits, names, solver=solver, progress=step, **options
        )
    if output is not None:
        budget.recipe.save(output)
    if json:
        show_json({**budget.to_dict(), "output": output})
        return
    show_budget(budget)
    if output is not None:
        print(f"wrote {escaped(output)}")


def show_budget(budget: Budget) -> None:
    """Each tensor with its scheme, and what the next cheaper and dearer ones would lose."""
    columns = (
        ("tensor", LEFT), ("scheme", LEFT), ("bits/weight", RIGHT), ("lost", RIGHT),
        ("cheaper", RIGHT), ("dearer", RIGHT),
    )  # fmt: skip
    rows = []
    for choice, measured in zip(budget.chosen, budget.measured, strict=True):
        hull = checkpoint.budget.lower_hull(measured)
        at = hull.index(choice)
        beside = [hull[k].loss if 0 <= k < len(hull) else None for k in (at - 1, at + 1)]
        losses = ("-" if loss is None else f"{loss:.2e}" for loss in (choice.loss, *beside))
        scheme = str(choice.plan.scheme)
        rows.append((choice.plan.name, scheme, f"{choice.bits_per_weight:.3f}", *losses))
    bits = f"{budget.bits_per_weight:.4f}"
    total = (f"total: {len(rows)} tensors", "", bits, f"{budget.loss:.2e}", "", "")
    show_left_out(show_table(columns, rows, total, ["cheaper", "dearer", "scheme", "lost"]))
    target = f"{budget.bits_per_weight:.4f} bits per weight, at most {budget.target_bits}"
    print(f"{target}; solver: {budget.solver}", file=sys.stdout)
