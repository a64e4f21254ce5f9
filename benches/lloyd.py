"""`qrs.kmeans` against scikit-learn: the same points, iterations and threads, in the same run.

    python benches/lloyd.py [--threads N] [--rounds N] [--quick]

Both take turns, round after round; a ratio is the median over the rounds of their time / our time.
With "start" both begin at the same centers and move them `ITERATIONS` times; with "k-means++" they
choose them first, each in its own way and with its own random numbers.
"""

from __future__ import annotations

import argparse
import os
import time
import warnings
from collections.abc import Callable
from statistics import median
from typing import Any

# Settings that may be there for another reason, and slow numpy down.
for name in ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE"):
    os.environ.pop(name, None)

ITERATIONS = 10
# Points, columns, clusters, whether from centers that are given. k-means++ for 256 clusters of a
# million numbers is left out: it takes scikit-learn minutes.
JOBS = (
    (1_000_000, 1, 16, True),
    (1_000_000, 1, 16, False),
    (1_000_000, 1, 256, True),
    (200_000, 8, 256, True),
    (200_000, 8, 256, False),
)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="a smoke test: a tenth of the points")
    return parser.parse_args()


def seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def measure(n: int, d: int, k: int, given: bool, rounds: int) -> tuple[float, float, float, float]:
    """Medians of our time, their time and the ratio; our inertia / theirs."""
    import numpy as np
    from sklearn.cluster import KMeans

    import qrs

    x = np.random.default_rng(0).standard_normal((n, d), np.float32)
    start: Any = x[:k].copy() if given else "k-means++"
    options: dict[str, Any] = {"init": start, "n_init": 1, "max_iter": ITERATIONS, "tol": 0}
    peer = KMeans(k, random_state=0, copy_x=False, algorithm="lloyd", **options)

    def ours() -> Any:
        return qrs.kmeans(x, k, seed=0, **options)

    found, theirs = ours(), peer.fit(x)
    # Theirs is a sum in float32, so both are summed again.
    exact = [
        np.square(x - centers[labels], dtype=np.float64).sum()
        for centers, labels in (found[:2], (theirs.cluster_centers_, theirs.labels_))
    ]
    pairs = [(seconds(ours), seconds(lambda: peer.fit(x))) for _ in range(rounds)]
    our_times, their_times = zip(*pairs, strict=True)
    ratio = median(t / m for m, t in pairs)
    return median(our_times), median(their_times), ratio, exact[0] / exact[1]


def main() -> None:
    options = arguments()
    # Before anything that has threads is imported.
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.threads])
    warnings.simplefilter("ignore")  # that the iterations did not suffice
    import sklearn

    import qrs

    print(
        f"qrs {qrs.__version__} ({qrs.simd_level()}), scikit-learn {sklearn.__version__}, ", end=""
    )
    print(f"{qrs.num_threads()} threads, {options.rounds} rounds, {ITERATIONS} iterations")
    print("   points  d    k  from             qrs   sklearn  ratio  inertia")
    for n, d, k, given in JOBS:
        n = n // 10 if options.quick else n
        mine, theirs, ratio, inertia = measure(n, d, k, given, options.rounds)
        kind = "start" if given else "k-means++"
        times = f"{mine * 1e3:>6.0f} ms {theirs * 1e3:>6.0f} ms"
        print(f"{n:>9} {d:>2} {k:>4}  {kind:<10} {times} {ratio:>5.1f}x  {inertia:.4f}", flush=True)


if __name__ == "__main__":
    main()
