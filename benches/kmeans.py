"""Exact 1-D k-means against scikit-learn and kmeans1d, in the same run.

    python benches/kmeans.py [--threads N] [--rounds N] [--case NAME ...]

The contenders take turns, round after round, and a ratio is the median over the rounds of peer time
/ qrs time. scikit-learn runs with n_init=1 (a heuristic; the table shows how far its inertia is
above the optimum), row after row, with as many threads; kmeans1d is exact and has one thread. A
peer that is not installed is left out; one that is slow is run on some of the rows, and its time
multiplied.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import ml_dtypes
import numpy as np

import qrs

# Name -> shape, dtype, k, and how many of the rows (or values) a peer runs on.
CASES: dict[str, tuple[tuple[int, ...], Any, int, int]] = {
    "256x4096-k16": ((256, 4096), np.float32, 16, 16),
    "256x4096-k256": ((256, 4096), np.float32, 256, 2),
    "1M-k16": ((1 << 20,), np.float32, 16, 1),
    "1M-k256": ((1 << 20,), np.float32, 256, 0),
    "16M-bf16-k16": ((1 << 24,), ml_dtypes.bfloat16, 16, 0),
    "16M-bf16-valued-float32-k16": ((1 << 24,), np.float32, 16, 0),
}


def sklearn_rows(rows: np.ndarray, k: int) -> float:
    """The inertia that scikit-learn finds, all rows together."""
    from sklearn.cluster import KMeans

    return sum(float(KMeans(k, n_init=1, random_state=0).fit(r[:, None]).inertia_) for r in rows)


def kmeans1d_rows(rows: np.ndarray, k: int) -> float:
    import kmeans1d

    total = 0.0
    for row in rows.astype(np.float64):
        labels, centers = kmeans1d.cluster(row, k)
        total += float(((row - np.array(centers)[labels]) ** 2).sum())
    return total


PEERS: dict[str, Callable[[np.ndarray, int], float]] = {
    "scikit-learn": sklearn_rows,
    "kmeans1d": kmeans1d_rows,
}


def seconds(call: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = call()
    return time.perf_counter() - start, result


def installed() -> list[str]:
    modules = {"scikit-learn": "sklearn", "kmeans1d": "kmeans1d"}
    missing = [peer for peer in PEERS if importlib.util.find_spec(modules[peer]) is None]
    print("".join(f"{peer} is not installed\n" for peer in missing), end="")
    return [peer for peer in PEERS if peer not in missing]


def run(name: str, rounds: int, peers: list[str]) -> None:
    shape, dtype, k, sample = CASES[name]
    x = np.random.default_rng(7).standard_normal(shape, np.float32).astype(dtype)
    if name == "16M-bf16-valued-float32-k16":
        x = x.astype(ml_dtypes.bfloat16).astype(np.float32)
    rows = np.atleast_2d(x)[:sample]
    qrs.kmeans_1d(x, k)
    ours, ratios, worse = [], {peer: [] for peer in peers}, {}
    for _ in range(rounds):
        took, result = seconds(lambda: qrs.kmeans_1d(x, k))
        ours.append(took)
        for peer in peers if sample else []:
            theirs, inertia = seconds(lambda peer=peer: PEERS[peer](rows, k))
            ratios[peer].append(theirs * (len(np.atleast_2d(x)) / len(rows)) / took)
            worse[peer] = inertia / float(np.sum(np.atleast_1d(result.inertia)[:sample])) - 1
    line = f"{name:28} {1e3 * median(ours):9.1f} ms"
    for peer, each in ratios.items():
        if each:
            line += f"   {peer} {median(each):6.1f}x the time, inertia {worse[peer]:+.1e}"
    print(line, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--case", action="append", choices=CASES)
    options = parser.parse_args()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.threads])
    qrs.set_num_threads(options.threads)
    print(f"{options.threads} threads, {qrs.simd_level()}, {options.rounds} rounds")
    peers = installed()
    for name in options.case or CASES:
        run(name, options.rounds, peers)


if __name__ == "__main__":
    main()
