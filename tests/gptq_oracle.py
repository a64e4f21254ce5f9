"""GPTQ as the paper has it (Frantar et al., 2023, algorithm 1), in plain numpy and float64.

With the Cholesky factor of the inverse, which qrs does without; one column at a time.
"""

import numpy as np


def gptq_oracle(
    w: np.ndarray, h: np.ndarray, damping: float, order: np.ndarray, levels_of
) -> np.ndarray:
    """W_hat (n, k) in float64. `levels_of(j)` are the levels (n, count) of input j, scaled."""
    w, h = w.astype(np.float64).copy(), h.astype(np.float64).copy()
    dead = np.diagonal(h) == 0
    mean = np.diagonal(h).mean()
    h[dead, dead] = mean
    h += damping * mean * np.eye(len(h))
    w, h = w[:, order], h[np.ix_(order, order)]
    upper = np.linalg.cholesky(np.linalg.inv(h)).T
    w_hat = np.empty_like(w)
    for j in range(w.shape[1]):
        levels = levels_of(order[j]).astype(np.float64)
        nearest = np.abs(w[:, [j]] - levels).argmin(axis=1)
        w_hat[:, j] = np.take_along_axis(levels, nearest[:, None], 1)[:, 0]
        error = (w[:, j] - w_hat[:, j]) / upper[j, j]
        w[:, j:] -= np.outer(error, upper[j, j:])
    found = np.empty_like(w_hat)
    found[:, order] = w_hat
    return found


def levels_of(qt):
    """For each input of a QTensor (n, k) all that its codes can decode to: (n, count)."""
    from qrs import Int

    n = qt.shape[0]
    if isinstance(qt.scheme, Int):
        codes = np.arange(qt.scheme.qmin, qt.scheme.qmax + 1, dtype=np.float32)
        zero = np.zeros_like(qt.scale) if qt.zero_point is None else qt.zero_point
        zero = zero.reshape(n, -1).astype(np.float32)
        table = lambda g: codes[None] - zero[:, [g]]  # noqa: E731
    else:
        book = np.atleast_2d(qt.codebook)
        table = lambda g: np.broadcast_to(book, (n, book.shape[1]))  # noqa: E731
    scale = np.ones((n, 1), np.float32) if qt.scale is None else qt.scale.reshape(n, -1)
    size = qt.shape[1] // scale.shape[1]
    return lambda j: table(j // size) * scale[:, [j // size]]
