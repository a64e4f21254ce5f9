"""Calls of the operations of solvers, for any backend: a problem, and what comes of it."""

import numpy as np

SIZES = [(1, 1), (3, 5), (24, 8), (25, 23), (2, 24), (50, 25), (7, 70), (49, 200), (3, 257)]


def problem(n: int, k: int) -> dict:
    """A weight (n, k), the moments of its inputs, integers and tables; with a scale of 0."""
    rng = np.random.default_rng((n, k))
    # Whole numbers: their products are exact with every BLAS.
    x = rng.integers(-9, 10, (2 * k + 3, k)) * rng.integers(1, 9, k).astype(np.float64)
    groups = max(1, k // 16)
    scale = rng.uniform(0.1, 0.5, (n, groups)).astype(np.float32)
    scale[0, 0] = 0
    return {
        "w": rng.standard_normal((n, k)).astype(np.float32),
        "h": x.T @ x,
        "scale": scale,
        "group_of": rng.integers(0, groups, (1, k), dtype=np.int32),
        "lowest": rng.integers(-15, 1, (n, groups), dtype=np.int32),
        "levels": np.sort(rng.standard_normal((n, 16)).astype(np.float32), axis=1),
    }


def solved(backend, p: dict) -> list[np.ndarray]:
    """What every operation makes of it."""
    factor = backend.cholesky(p["h"])
    w_hat = (p["w"] * 0.9).astype(np.float32)
    grid = (p["scale"], p["group_of"])
    found = [factor, backend.matmul_float64(p["h"], np.ascontiguousarray(p["h"][:, ::2]))]
    for values in ((None, p["lowest"], 16), (p["levels"],), (p["levels"][:1],)):
        found.append(backend.round_with_feedback(p["w"], factor, *grid, *values))
        found.append(backend.descend(p["w"], p["h"], w_hat, *grid, *values))
    return found
