"""Results as tables for people and as JSON for machines, on stdout."""

from __future__ import annotations

import json
import math
import sys
from collections import Counter
from collections.abc import Sequence
from typing import Any

from ..checkpoint import Contents, Plan, Report, TensorPlan
from ..solvers import GPTQ
from .escape import escaped
from .table import LEFT, RIGHT, show_table

USUAL_DAMPING = GPTQ().damping


def show_json(document: Any) -> None:
    """One JSON document; numbers that JSON lacks were replaced by null before."""
    json.dump(document, sys.stdout, indent=2, allow_nan=False)
    sys.stdout.write("\n")


def show_plan(plan: Plan) -> None:
    """Every tensor with what happens to it, the fallbacks, the sizes, the memory."""
    columns = (
        ("tensor", LEFT),
        ("dtype", LEFT),
        ("shape", LEFT),
        ("scheme", LEFT),
        ("before", RIGHT),
        ("after", RIGHT),
        ("why", LEFT),
    )
    optional = ["scheme", "shape", "after", "before", "dtype", "why"]
    left_out = show_table(columns, map(_plan_row, plan.tensors), optional=optional)
    if "why" in left_out:
        show_reasons(plan)
    show_left_out(left_out)
    show_fallbacks(plan)
    print(size_line(plan))
    why = "3 x the largest tensor + 256 MiB"
    if plan.memory_bound > plan.streaming_bound:
        why = f"the {plan.backend} backend copies whole tensors where a scale spans rows"
        if plan.backend != "reference":
            why = "several times a tensor where a scale or a table that is learned spans its rows"
    about = size(plan.memory_estimate)
    print(f"memory: at most {size(plan.memory_bound)} ({why}), about {about} expected")


def _plan_row(t: TensorPlan) -> tuple[str, ...]:
    scheme = "-" if t.scheme is None else str(t.scheme)
    return (
        t.name,
        t.dtype,
        shape(t.shape),
        scheme,
        size(t.nbytes),
        size(t.nbytes_after),
        t.reason,
    )


def show_reasons(plan: Plan) -> None:
    """Why tensors are quantized or stay, counted."""
    for what, chosen in (("quantized", True), ("kept", False)):
        counts = Counter(t.reason for t in plan.tensors if (t.scheme is not None) == chosen)
        if counts:
            reasons = (f"{count} x {escaped(reason)}" for reason, count in counts.most_common())
            print(f"{what}: {', '.join(reasons)}")


def show_left_out(titles: Sequence[str]) -> None:
    """Which columns the terminal has no room for."""
    if titles:
        print(f"no room for: {', '.join(titles)} (a wider terminal, a pipe and --json have all)")


def show_fallbacks(plan: Plan, file: Any = None) -> None:
    """The tensors that do not get exactly the scheme that was asked for."""
    if not plan.fallbacks:
        return
    print(f"{len(plan.fallbacks)} tensors do not fit the scheme as it is:", file=file)
    for t in plan.fallbacks:
        print(f"  {escaped(t.name)} {shape(t.shape)}: {t.fallback} ({t.scheme})", file=file)


def show_report(report: Report) -> None:
    """Each quantized tensor with its error, and the totals."""
    if report.plan.solver != "minmax":
        print(f"solver: {report.plan.solver}")
    columns = (
        ("tensor", LEFT),
        ("shape", LEFT),
        ("scheme", LEFT),
        ("SQNR dB", RIGHT),
        ("gap dB", RIGHT),
        ("output lost", RIGHT),
        ("max abs error", RIGHT),
        ("bits/weight", RIGHT),
        ("seconds", RIGHT),
    )
    rows = [
        (
            t.plan.name,
            shape(t.plan.shape),
            str(t.plan.scheme),
            f"{t.errors.sqnr_db:.2f}",
            f"{t.gap_db:.2f}",
            "-" if t.errors.output_error is None else f"{t.errors.output_error:.2e}",
            f"{t.errors.max_abs_error:.3g}",
            f"{t.bits_per_weight:.3f}",
            f"{t.seconds:.3f}",
        )
        for t in report.tensors
    ]
    total = (
        f"total: {len(rows)} tensors",
        f"{sum(t.plan.size for t in report.tensors) / 1e6:.1f} M",
        "",
        f"{report.errors.sqnr_db:.2f}" if rows else "-",
        "",
        "",
        f"{report.errors.max_abs_error:.3g}",
        f"{report.plan.bits_per_weight:.3f}" if rows else "-",
        f"{report.seconds:.3f}",
    )
    optional = ["SQNR dB", "scheme", "bits/weight", "output lost", "shape", "max abs error"]
    optional += ["gap dB", "seconds"]
    show_left_out(show_table(columns, rows, total, optional))
    print(size_line(report.plan))
    show_remarks(report)
    if report.skipped:
        print(f"not carried along: {', '.join(map(escaped, report.skipped))}")
    print(f"wrote {escaped(report.output)}")


def show_remarks(report: Report) -> None:
    """What a user should know of single tensors."""
    for t in report.tensors:
        name = escaped(t.plan.name)
        if t.overflows:
            print(f"{name}: some values decode beyond {t.plan.dtype}; dequantize with --dtype")
        for warning in t.warnings:
            print(f"warning: {name}: {escaped(warning)}")
        if t.info.get("damping", USUAL_DAMPING) != USUAL_DAMPING:
            print(f"{name}: took a damping of {t.info['damping']}")


def show_contents(contents: Contents) -> None:
    """Every tensor of a checkpoint as it is stored."""
    columns = (
        ("tensor", LEFT),
        ("dtype", LEFT),
        ("shape", LEFT),
        ("scheme", LEFT),
        ("size", RIGHT),
        ("bits/weight", RIGHT),
    )
    rows = [
        (
            t.name,
            t.dtype,
            shape(t.shape),
            t.scheme or "-",
            size(t.nbytes),
            "-" if math.isnan(t.bits_per_weight) else f"{t.bits_per_weight:.3f}",
        )
        for t in contents.tensors
    ]
    show_left_out(
        show_table(columns, rows, optional=["scheme", "shape", "dtype", "size", "bits/weight"])
    )
    count = f"{len(contents.tensors)} tensors, {len(contents.quantized)} of them quantized"
    print(f"{count}, {size(contents.nbytes)}")
    for key, text in contents.metadata.items():
        print(f"metadata {escaped(key)}: {escaped(text)}")


def show_facts(facts: dict[str, Any]) -> None:
    """What `qrs doctor` found; texts may come from the environment."""
    print(f"qrs {facts['version']}, Python {facts['python']}, {facts['machine']}")
    if facts["simd_level"] is not None:
        print(f"SIMD level: {facts['simd_level']}, available: {', '.join(facts['simd_levels'])}")
        print(f"threads: {facts['threads']}")
    for backend in facts["backends"]:
        if backend["available"]:
            print(f"backend {backend['name']}: available")
            print(f"  operations: {', '.join(backend['operations'])}")
        else:
            print(f"backend {backend['name']}: missing: {escaped(backend['reason'])}")
            print(f"  to fix it: {escaped(backend['fix'])}")
    for problem in facts["problems"]:
        print(f"problem: {escaped(problem['problem'])}")
        print(f"  to fix it: {escaped(problem['fix'])}")


def size_line(plan: Plan) -> str:
    """Sizes before and after, and what stays."""
    line = f"size: {size(plan.nbytes)} -> {size(plan.nbytes_after)}"
    if plan.nbytes_after:
        line += f" ({plan.nbytes / plan.nbytes_after:.2f}x smaller)"
    kept = len(plan.tensors) - len(plan.quantized)
    line += f"; {kept} tensors stay as they are, {100 * plan.kept_share:.1f} % of the source"
    if plan.quantized:
        line += f"; quantized ones take {plan.bits_per_weight:.3f} bits per weight"
    return line


def size(nbytes: int) -> str:
    """Bytes for people, in powers of 1000.

    >>> size(999), size(1536), size(90_866_404)
    ('999 B', '1.5 kB', '90.9 MB')
    """
    if nbytes < 1000:
        return f"{nbytes} B"
    power = min(int(math.log10(nbytes) / 3), 4)
    return f"{nbytes / 1000**power:.1f} {' kMGT'[power]}B"


def shape(dims: Sequence[int]) -> str:
    """As in 384x1536; a single value has no dimensions: "()"."""
    return "x".join(map(str, dims)) or "()"
