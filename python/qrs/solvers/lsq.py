"""The scale search: scales of least squared error instead of scales that cover the range.

For the codes q of a group and its values x, the best scale is sum(w x q) / sum(w q q); for a scale
the best codes are the nearest. The search goes back and forth between the two from many starts, of
both signs, and keeps the best; ggml's make_qx_quants is a small version of it. A negative scale
gives the extra code of [-8, 7] to the longer tail.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..backends.reference import Reference
from ..codebooks import LSQ_FACTORS
from ..devices import library_of, moved
from ..errors import bad
from ..qtensor import QTensor
from ..schemes import Codebook, Int, Offset, Scheme
from ..schemes.layout import layout_of
from . import affine_lsq, offset_lsq


def lsq(
    x: Any,
    scheme: Scheme,
    backend: Reference,
    scale: Any = None,
    zero_point: Any = None,
    weights: Any = None,
    out: QTensor | None = None,
) -> QTensor:
    """Quantize with the scales that the search finds; for no group worse than with min/max.

    For integers and codebooks with scales; zero points are searched too. Scales may be negative
    where the levels are not symmetric, beside zero points never. Where scales are quantized
    themselves (`-dq`), that comes after the search, and a group may get worse by it. Beside a
    negative scale zeros decode to -0.0. Sums of squares are float32: groups of magnitudes whose
    squares, times `weights`, are beyond it (about 1e19, or 1e-19) keep what they have. Class A.

    >>> import numpy as np, qrs
    >>> w = np.random.default_rng(7).standard_normal((8, 1024), np.float32)
    >>> s = qrs.Int(4, group_size=64, full_range=True)
    >>> error = [qrs.metrics.mse(w, qrs.quantize(w, s, solver=by).dequantize())
    ...          for by in ("minmax", "lsq")]
    >>> error[1] < 0.8 * error[0]
    True
    """
    for name, value in {"scale": scale, "zero_point": zero_point}.items():
        if value is not None:
            raise bad(name, "given beside solver='lsq', which finds scales", type(value), "None")
    check_scheme(scheme)
    if isinstance(scheme, Offset):
        return offset_lsq.quantize(x, scheme, backend, weights, out)
    if isinstance(scheme, Int) and not scheme.symmetric:
        return affine_lsq.quantize(x, scheme, backend, weights, out)
    values = scheme.value_set()
    if values is None:
        return scheme.quantize(x, backend, out=out, weights=weights)
    start = scheme.quantize(x, backend)
    if x.size == 0:
        return start if out is None else out.overwrite(start)
    layout = layout_of(scheme, x.shape)
    first_scale = start.scale.reshape(layout.rows, layout.groups)
    del start  # its codes are not needed
    rows = scheme.granularity.to_rows(x)
    if weights is not None:
        weights = scheme.granularity.to_rows(weights)
    # With levels as many below zero as above, a negative scale is a positive one.
    mirrored = np.array_equal(values.levels, -values.levels[::-1])
    factors = LSQ_FACTORS if mirrored else np.concatenate([LSQ_FACTORS, -LSQ_FACTORS])
    library = library_of(x).__name__
    levels, thresholds, factors = (moved(part, library) for part in (*values, factors))
    found, _ = backend.choose_scale_lsq(
        rows, layout.group_size, weights, levels, thresholds, factors, first_scale,
        scheme.scale_dtype if isinstance(scheme.scale_dtype, str) else "float32",
    )  # fmt: skip
    return scheme.quantize_with(x, backend, found, out)


def check_scheme(scheme: Scheme) -> None:
    """Raise where the search does not fit a scheme; learned tables search by themselves."""
    learned = isinstance(scheme, Codebook) and scheme.is_learned and scheme.scale_dtype is not None
    if not isinstance(scheme, Int | Offset) and not learned and scheme.value_set() is None:
        expected = "an integer scheme or a codebook with scales"
        raise bad("solver", f"got 'lsq' for {scheme}", "lsq", expected)
