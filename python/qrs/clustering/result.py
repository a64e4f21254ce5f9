"""What k-means returns."""

from __future__ import annotations

from typing import Any, NamedTuple

from numpy.typing import NDArray


class KMeansResult(NamedTuple):
    """Centers, and which of them each point belongs to, in the words of scikit-learn."""

    centers: NDArray[Any]
    """float32 (k, d)."""
    labels: NDArray[Any]
    """int32 (n,): the index of the nearest center."""
    inertia: float
    """The sum of weight * squared distance of each point to its center."""
    n_iter: int
    """How often the centers were moved."""
