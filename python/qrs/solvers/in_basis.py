"""Solving for schemes that store a weight in another basis of its inputs."""

from __future__ import annotations

from typing import Any

from ..backends.reference import Reference
from ..errors import bad
from ..qtensor import QTensor
from ..schemes.basis import InBasis, as_float32, refuse_on_gpus
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
    refuse_on_gpus(x, scheme)
    own = scheme.default_parts(x)
    changed = scheme.weight_into(as_float32(x), own)
    moments = None
    if statistics is not None:
        moments = scheme.moments_into(checked_hessian(statistics, x.shape[-1]), own)
    stored = solver(changed, scheme.inner, backend, scale, zero_point, None, moments, None)
    qt = scheme.of(stored, own)
    qt.dtype = x.dtype.name
    return qt if out is None else out.overwrite(qt)
