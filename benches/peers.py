"""qrs against other libraries: the same array, the same threads, in the same run.

    python benches/peers.py [--threads N] [--quick] [--job JOB ...]

The contenders of a job take turns, round after round, so that a slow second of the machine hits
all of them; a ratio is the median over the rounds of peer time / qrs time. Threads are set by
binding the process to as many CPUs before anything is imported. What a library took to compile is
not counted. A library that is not installed is listed with the reason.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

RESULTS = Path(__file__).parent / "results"
SETTLE = 0.01  # seconds
PACKAGES = ["qrs-quant", "numpy", "torch", "torchao", "bitsandbytes", "onnxruntime", "gguf"]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument(
        "--quick", action="store_true", help="a smoke test: small array, few rounds"
    )
    parser.add_argument("--job", action="append", help="only this job; may be repeated")
    parser.add_argument("--seconds", type=float, default=8.0, help="time for each job")
    return parser.parse_args()


def versions() -> dict[str, str]:
    """Version of each package; "missing" where it is not installed."""
    installed = {d.metadata["Name"]: d.version for d in importlib.metadata.distributions()}
    return {package: installed.get(package, "missing") for package in PACKAGES}


def cpu_name() -> str:
    """What /proc/cpuinfo calls the CPU."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()


def reason(error: BaseException) -> str:
    """One short line for an error."""
    first = str(error).strip().split("\n")[0]
    return f"{type(error).__name__}: {first}"[:100]


def measure(contenders: list[Any], seconds: float, rounds: int) -> list[list[float]]:
    """Seconds of each contender in each round. The first round is warm-up and not kept."""
    times: list[list[float]] = [[] for _ in contenders]
    start = time.perf_counter()
    done = -1
    while done < rounds or (time.perf_counter() - start < seconds and done < 200):
        for contender, kept in zip(contenders, times, strict=True):
            # Thread pools spin for a while when their work is done, on the next one's CPUs.
            time.sleep(SETTLE)
            before = time.perf_counter()
            contender.run()
            if done >= 0:
                kept.append(time.perf_counter() - before)
        done += 1
    return times


def ratio(peer: list[float], ours: list[float]) -> float:
    """Median over the rounds of peer / ours."""
    return median(p / o for p, o in zip(peer, ours, strict=True))


def target_of(job: str, library: str, best: bool, targets: Any) -> float | None:
    """The ratio that qrs wants over this library in this job."""
    if (job, library) in targets:
        return targets[job, library]
    if best and (job, "best") in targets:
        return targets[job, "best"]
    return targets.get((job, "own scale"))


def contenders_of(name: str, library: Any, job: str, data: Any) -> list[tuple[str, Any, float]]:
    """Contenders of one library for one job, each checked, with its relative RMSE."""
    from jobs import check

    if isinstance(library, str):
        raise ImportError(library)
    made = getattr(library, job)()
    return [(name, contender, check(data, job, contender)) for contender in made]


def attempt(function: Any, *args: Any) -> tuple[Any, str]:
    """The result, or None and why not. A contender that does another job is a bug of ours."""
    try:
        return function(*args), ""
    except AssertionError:
        raise
    except Exception as error:
        return None, reason(error)


def run_job(job: str, data: Any, libraries: Any, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Lines of the table for one job: measured contenders, then what is missing and why."""
    from jobs import TARGETS

    entries: list[tuple[str, Any, float]] = []
    missing: list[dict[str, Any]] = []
    for name, library in libraries:
        if not isinstance(library, str) and not hasattr(library, job):
            continue
        made, problem = attempt(contenders_of, name, library, job, data)
        if made is None:
            missing.append({"job": job, "library": name, "missing": problem})
        else:
            entries += made
    times = measure([c for _, c, _ in entries], args.seconds, 3 if args.quick else 9)
    ours = {c.in_place: t for (name, c, _), t in zip(entries, times, strict=True) if name == "qrs"}
    peers = [median(t) for (name, _, _), t in zip(entries, times, strict=True) if name != "qrs"]
    lines = []
    for (name, contender, error), seconds in zip(entries, times, strict=True):
        line: dict[str, Any] = {
            "job": job,
            "library": name,
            "label": contender.label,
            "in_place": contender.in_place,
            "ms": median(seconds) * 1e3,
            "gb_per_s": data.x.nbytes / median(seconds) / 1e9,
            "relative_rmse": error,
        }
        if name != "qrs" and ours:
            line["qrs_out_ratio"] = ratio(seconds, ours[True])
            line["qrs_fresh_ratio"] = ratio(seconds, ours[False])
            line["target"] = target_of(job, name, median(seconds) == min(peers), TARGETS)
        lines.append(line)
    return lines + missing


def text(line: dict[str, Any]) -> str:
    """One line of the table."""
    if "missing" in line:
        return f"  {line['library']:<34} missing: {line['missing']}"
    where = "in place" if line["in_place"] else "fresh"
    row = f"  {line['label']:<34} {where:<8} {line['ms']:>8.2f} {line['gb_per_s']:>6.1f}"
    if "qrs_out_ratio" in line:
        row += f" {line['qrs_out_ratio']:>9.2f} {line['qrs_fresh_ratio']:>9.2f}"
        if line["target"]:
            met = line["qrs_out_ratio"] >= line["target"]
            row += f"  {line['target']:>5.2f} {'met' if met else 'MISSED'}"
    return row


def main() -> None:
    args = arguments()
    # Before numpy and torch count the CPUs.
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.threads])
    from codebook_libraries import BitsAndBytes, Numpy, OnnxRuntime, Qrs
    from float_libraries import Gguf, TorchAO
    from jobs import TITLES, make_data
    from libraries import Torch, TorchCompile

    data = make_data(*((256, 1024) if args.quick else (4096, 4096)))
    libraries: list[Any] = []
    for kind in (Qrs, TorchCompile, Torch, TorchAO, BitsAndBytes, OnnxRuntime, Gguf, Numpy):
        made, problem = attempt(kind, data, args.threads)
        libraries.append((kind.name, made or problem))
    machine = f"{cpu_name()}, {args.threads} threads, {platform.platform()}"
    print(machine)
    print(", ".join(f"{name} {version}" for name, version in versions().items()))
    rows, cols = data.x.shape
    print(f"{rows} x {cols} float32; GB/s of that array; right: how many times as fast qrs is")
    print(f"  {'':<34} {'output':<8} {'ms':>8} {'GB/s':>6} {'qrs out=':>9} {'qrs':>9}  target")
    lines = []
    for job, title in TITLES.items():
        if args.job and job not in args.job:
            continue
        print(f"\n{title}  [{job}]")
        for line in run_job(job, data, libraries, args):
            lines.append(line)
            print(text(line), flush=True)
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"peers-{args.threads}.json"
    result = {"machine": machine, "versions": versions(), "shape": data.x.shape, "lines": lines}
    path.write_text(json.dumps(result, indent=1))
    print(f"\nwritten: {path}")


if __name__ == "__main__":
    if os.environ.get("OPENBLAS_CORETYPE") or os.environ.get("OPENBLAS_L2_SIZE"):
        sys.exit("unset OPENBLAS_CORETYPE and OPENBLAS_L2_SIZE: they change what numpy does")
    main()
