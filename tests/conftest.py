"""Fixtures that more than one test module needs."""

import os
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

import qrs
from kernel_calls import LEVELS
from qrs import _qrs

# No deadlines: a busy machine is no failure. QRS_EXAMPLES asks for a longer search.
settings.register_profile(
    "qrs",
    max_examples=int(os.environ.get("QRS_EXAMPLES", "100")),
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("qrs")


@pytest.fixture
def keep_threads() -> Iterator[None]:
    """Restore the number of threads afterwards."""
    before = qrs.num_threads()
    yield
    qrs.set_num_threads(before)


@pytest.fixture(params=LEVELS)
def level(request) -> Iterator[str]:
    """Each SIMD level of this CPU in turn, forced, and still in use at the end."""
    before = _qrs.simd_level()
    _qrs.set_simd_level(request.param)
    assert qrs.simd_level() == request.param
    yield request.param
    assert qrs.simd_level() == request.param
    _qrs.set_simd_level(before)


@pytest.fixture(params=["reference", "rust"])
def backend(request) -> str:
    """The name of each backend that works here."""
    return request.param
