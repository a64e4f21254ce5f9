"""Second moments: the same bits at every level and with any number of threads."""

import numpy as np

import qrs
from kernel_calls import LEVELS
from qrs import _qrs


def test_bits_depend_neither_on_level_nor_on_threads() -> None:
    x = np.random.default_rng(0).standard_normal((5000, 37)).astype(np.float32)
    before, expected = (_qrs.simd_level(), qrs.num_threads()), None
    try:
        for level in LEVELS:
            for threads in (1, 3):
                _qrs.set_simd_level(level)
                qrs.set_num_threads(threads)
                state = qrs.Statistics().update(x).state()
                bits = {name: part.tobytes() for name, part in state.items()}
                expected = expected or bits
                assert bits == expected, (level, threads)
    finally:
        _qrs.set_simd_level(before[0])
        qrs.set_num_threads(before[1])


def test_they_are_the_moments_and_symmetric() -> None:
    x = np.random.default_rng(0).standard_normal((500, 37)).astype(np.float32)
    s = qrs.Statistics().update(x[:123]).update(x[123:])
    wide = x.astype(np.float64)
    assert np.allclose(s.hessian, wide.T @ wide, rtol=1e-12, atol=1e-10)
    assert np.array_equal(s.hessian, s.hessian.T)
    assert np.allclose(s.diag, s.hessian.diagonal(), rtol=1e-12)
    assert np.allclose(s.absmean, abs(wide).mean(axis=0)) and s.n_tokens == 500
