"""What a clustering returns."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray


class KMeansResult(NamedTuple):
    """Centers and who belongs to them, with scikit-learn's names.

    `labels`: the index of the nearest center of each point, int32; `inertia`: the sum of the
    weighted squared distances to them; `n_iter`: iterations, or passes over the data, it took.
    """

    centers: NDArray[Any]
    labels: NDArray[np.int32]
    inertia: Any
    n_iter: Any
