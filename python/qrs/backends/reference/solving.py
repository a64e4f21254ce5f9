"""What solvers that look at second moments repeat: factors, and rounding with feedback.

All arithmetic is float64, and of a weight (n, k) each output is on its own. A sum over inputs is a
chain of fused multiply-adds in the order of the inputs (`rust/solving.rs` has the same chains);
here it is a product of numpy, which differs in the last bits: class B.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ...errors import KernelFault
from .arrays import Bytes, Float32, Float64
from .grouped_matmul import GroupedMatmulOperations

Int32 = NDArray[np.int32]


class SolvingOperations(GroupedMatmulOperations):
    """Frantar et al., "GPTQ", 2023; Chee et al., "QuIP", 2023, for the form that is used here.

    What codes stand for: `scale` (n, G), of which input j takes column group_of[0, j], times
    lowest[i, g] + code for integers, with codes below `count`; or, where `lowest` is None, times
    levels[i or 0, code], which ascend. Codes are counted from the lowest level.
    """

    def cholesky(self, h: Float64, out: Float64 | None = None) -> Float64:
        """R, upper triangular with positive diagonal and zeros below, with h = R R^T. Class B.

        Cholesky's factorization from the last column to the first; of `h` (k, k) the upper triangle
        is read. A pivot that is not positive is a fault ("not_positive", column).

        >>> from qrs.backends.reference import Reference
        >>> Reference().cholesky(np.array([[5.0, 2.0], [2.0, 1.0]])).tolist()
        [[1.0, 2.0], [0.0, 1.0]]
        """
        k = len(h)
        factor = np.zeros((k, k)) if out is None else out
        factor[...] = 0
        for j in reversed(range(k)):
            later = factor[: j + 1, j + 1 :]
            column = h[: j + 1, j] - later @ later[j]
            if not column[j] > 0 or not np.isfinite(column[j]):
                raise KernelFault("not_positive", j)
            factor[j, j] = np.sqrt(column[j])
            factor[:j, j] = column[:j] / factor[j, j]
        return factor

    def matmul_float64(self, a: Float64, b: Float64, out: Float64 | None = None) -> Float64:
        """a (n, k) times b (k, m). Class B."""
        return np.matmul(a, b, out=out)

    def round_with_feedback(
        self,
        w: Float32,
        factor: Float64,
        scale: Float32,
        group_of: Int32,
        levels: Float32 | None = None,
        lowest: Int32 | None = None,
        count: int = 0,
        out: Bytes | None = None,
    ) -> Bytes:
        """Codes (n, k) of `w` (n, k), one input after the other. Class B.

        With R = `factor` and the errors d = w - w_hat, input j is rounded to the level nearest to
        w_j + sum over i < j of d_i R_ij / R_jj: the least of |d R|^2 = d h d^T that is left to
        choose. That is GPTQ, without the inverse of h.

        >>> from qrs.backends.reference import Reference
        >>> w, one = np.float32([[0.4, 0.4, 0.4]]), np.ones((1, 1), np.float32)
        >>> r = Reference().cholesky(np.full((3, 3), 4.0) + np.eye(3))
        >>> places, zero = np.zeros((1, 3), np.int32), np.zeros((1, 1), np.int32)
        >>> Reference().round_with_feedback(w, r, one, places, None, zero, 4).tolist()
        [[0, 1, 0]]
        """
        codes = np.empty(w.shape, np.uint8) if out is None else out
        errors = np.zeros(w.shape)
        for j in range(w.shape[1]):
            target = w[:, j] + errors[:, :j] @ factor[:j, j] / factor[j, j]
            g = group_of[0, j]
            codes[:, j], near = _nearest(
                target, scale[:, g], levels, None if lowest is None else lowest[:, g], count
            )
            errors[:, j] = w[:, j].astype(np.float64) - near
        return codes

    def descend(
        self,
        w: Float32,
        h: Float64,
        w_hat: Float32,
        scale: Float32,
        group_of: Int32,
        levels: Float32 | None = None,
        lowest: Int32 | None = None,
        count: int = 0,
        out: Bytes | None = None,
    ) -> Bytes:
        """Codes (n, k) after one round of coordinate descent from `w_hat` (n, k). Class B.

        One input after the other takes the level nearest to w_j + sum over i != j of
        d_i h_ij / h_jj, where d h d^T, h = `h` (k, k) symmetric, is least while the others stay; an
        input with h_jj = 0 the one nearest to w_j.
        """
        codes = np.empty(w.shape, np.uint8) if out is None else out
        errors = w.astype(np.float64) - w_hat
        for j in range(w.shape[1]):
            errors[:, j] = 0
            pull = errors @ h[:, j] / h[j, j] if h[j, j] > 0 else 0.0
            g = group_of[0, j]
            codes[:, j], near = _nearest(
                w[:, j] + pull, scale[:, g], levels, None if lowest is None else lowest[:, g], count
            )
            errors[:, j] = w[:, j].astype(np.float64) - near
        return codes


def _nearest(
    target: Float64,
    scale: Float32,
    levels: Float32 | None,
    lowest: Int32 | None,
    count: int,
) -> tuple[Bytes, Float64]:
    """The codes of the levels nearest to target (n,), the even or lower one of two, and what they
    decode to in float32. Where the scale is 0, the target counts as 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        x = np.where(scale == 0, 0.0, target / scale)
    if lowest is not None:
        value = np.rint(np.clip(x, lowest, lowest + (count - 1)))
        return (value - lowest).astype(np.uint8), (value.astype(np.float32) * scale).astype(float)
    assert levels is not None
    wide = levels.astype(np.float64)
    middles = (wide[:, :-1] + wide[:, 1:]) / 2
    codes = (x[:, None] > middles).sum(axis=1).astype(np.uint8)
    rows = np.arange(len(x)) if len(levels) > 1 else 0
    level = levels[rows, codes]
    return codes, (level * scale).astype(float)
