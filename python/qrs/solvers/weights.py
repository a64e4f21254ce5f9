"""The importance of each element: what users pass as `weights=`."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..arrays import as_input, as_kernel_float, first_index
from ..devices import library_of, moved, on_host
from ..errors import bad


def checked_weights(weights: Any, x: Any, name: str = "weights") -> NDArray[np.float32]:
    """`weights=` for an array `x`: finite float32 of 0 or more, in its shape, where it is.

    They are looked at on the host.
    """
    array = as_kernel_float(on_host(as_input(weights, name, min_ndim=0)), name)
    wrong = ~np.isfinite(array) | (array < 0)
    if wrong.any():
        at, where = first_index(wrong)
        found = f"{float(array[at])}{where}"
        raise bad(name, found, float(array[at]), "finite numbers of 0 or more")
    try:
        wide = np.broadcast_to(array.astype(np.float32, copy=False), x.shape)
    except ValueError:
        expected = f"a shape that broadcasts to {x.shape}"
        raise bad(name, f"got shape {array.shape}", array.shape, expected) from None
    result: NDArray[np.float32] = moved(np.ascontiguousarray(wide), library_of(x).__name__)
    return result
