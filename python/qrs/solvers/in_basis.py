"""Solving for schemes that store a weight in another basis of its inputs."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..backends.reference import Reference
from ..errors import bad
from ..qtensor import QTensor
from ..schemes.basis import InBasis, as_float32
from .hessian import checked_hessian


def in_basis(
    solver: Any,
    x: Any,
    scheme: InBasis,
    backend: Reference,
    scale: Any,
    zero_point: Any,
    weights: Any,
    statistics: Any,
    out: QTensor | None,
) -> QTensor:
    """What `solver` makes of the changed weight, with the moments of the changed inputs."""
    if weights is not None:
        raise bad("weights", f"given for {scheme}", type(weights), "statistics of the inputs")
    own = scheme.default_parts(x)
    changed = scheme.weight_into(as_float32(x), own)
    moments = None
    if statistics is not None:
        h = checked_hessian(statistics, x.shape[-1])
        once = np.ascontiguousarray(scheme.input_into(h, own).T)
        moments = scheme.input_into(once, own)
    stored = solver(changed, scheme.inner, backend, scale, zero_point, None, moments, None)
    qt = scheme.of(stored, own)
    qt.dtype = x.dtype.name
    return qt if out is None else out.overwrite(qt)
