"""Call the steps of Lloyd's k-means, of any backend, with the same arguments."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from kernel_calls import REFERENCE
from qrs.backends.reference import Reference


@dataclass(frozen=True)
class KmeansCase:
    """Points with ties and duplicates, as many centers, and weights or none."""

    n: int
    d: int
    k: int
    weighted: bool

    @cached_property
    def points(self) -> np.ndarray:
        """(n, d): every third number is a multiple of 1/2, and the last point is the first."""
        x = np.random.default_rng((self.n, self.d)).standard_normal(self.n * self.d) * 3
        x[::3] = np.round(x[::3] * 2) / 2
        x = x.reshape(self.n, self.d).astype(np.float32)
        x[-1] = x[0]
        return x

    @cached_property
    def weights(self) -> np.ndarray | None:
        if not self.weighted:
            return None
        weights = np.random.default_rng(self.n).random(self.n, np.float32)
        weights[1::5] = 0
        return weights

    @cached_property
    def centers(self) -> np.ndarray:
        rows = np.random.default_rng(self.k).integers(0, self.n, self.k)
        return np.sort(self.points[rows], axis=0) if self.d == 1 else self.points[rows]

    @cached_property
    def assigned(self) -> tuple[np.ndarray, np.ndarray]:
        return REFERENCE.kmeans_assign(self.points, self.centers)


# op -> arguments
KMEANS_ARGUMENTS = {
    "kmeans_assign": lambda c: (c.points, c.centers),
    "kmeans_update": lambda c: (c.points, c.assigned[0], c.weights, c.k),
    "kmeans_potentials": lambda c: (c.points, c.centers[:9], c.assigned[1] * 2, c.weights),
}
# One point, tiles that are not full, few and many midpoints, several blocks.
SHAPES = (
    (1, 1, 1), (1, 3, 1), (33, 2, 5), (100, 17, 7), (7, 8, 7), (1000, 1, 2), (40_001, 1, 16),
    (33_000, 1, 300), (17_000, 8, 9), (20_000, 2, 1100),
)  # fmt: skip
KMEANS_CASES = [KmeansCase(*shape, weighted) for shape in SHAPES for weighted in (False, True)]


def call_kmeans(backend: Reference, op: str, case: KmeansCase) -> tuple:
    result = getattr(backend, op)(*KMEANS_ARGUMENTS[op](case))
    return result if isinstance(result, tuple) else (result,)
