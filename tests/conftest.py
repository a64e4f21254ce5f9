"""Fixtures that more than one test module needs."""

from collections.abc import Iterator

import pytest

import qrs


@pytest.fixture
def keep_threads() -> Iterator[None]:
    """Restore the number of threads afterwards."""
    before = qrs.num_threads()
    yield
    qrs.set_num_threads(before)


@pytest.fixture
def keep_simd_level() -> Iterator[None]:
    """Restore the SIMD level afterwards."""
    from qrs import _qrs

    before = _qrs.simd_level()
    yield
    _qrs.set_simd_level(before)
