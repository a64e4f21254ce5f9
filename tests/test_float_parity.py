"""The Rust backend gives the bits of the reference: the float operations, as test_parity.py has the
others.

The expected bits come from `Reference`, itself tested against numbers computed by hand in
test_reference_floats.py.
"""

from functools import cache

import pytest

from float_calls import (
    FLOAT_ARGUMENTS,
    FLOAT_RULES,
    FloatCase,
    call_float,
)
from kernel_calls import REFERENCE, bits_of
from nasty import FLOATS, faulty, nasty
from qrs.backends.rust import Rust
from test_parity import differing, rust_alone

RUST = Rust()


@cache
def cases(dtype: str) -> dict[str, FloatCase]:
    """Every nasty array with every rule, by a name to print; group sizes take turns."""
    found = {}
    for i, (name, x) in enumerate({**nasty(dtype), **faulty(dtype)}.items()):
        sizes = (max(x.shape[1], 1), 1, 7, 16, 32)
        for k, (rule_name, rule) in enumerate(FLOAT_RULES.items()):
            for size in {sizes[(i + k) % 5], sizes[(i + k // 5 + 2) % 5]}:
                found[f"{name}-g{size}-{rule_name}"] = FloatCase(x, size, rule)
    return found


@cache
def expected(op: str, dtype: str) -> dict[str, tuple]:
    return {name: bits_of(call_float(REFERENCE, op, case)) for name, case in cases(dtype).items()}


def test_most_cases_are_no_faults():
    for dtype in FLOATS:
        for op in FLOAT_ARGUMENTS:
            fine = [bits for bits in expected(op, dtype).values() if isinstance(bits[0], tuple)]
            assert len(fine) > 0.6 * len(cases(dtype)) > 1500


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("op", FLOAT_ARGUMENTS)
def test_nasty_arrays(op, dtype, level, monkeypatch):
    results = expected(op, dtype)
    with rust_alone(monkeypatch):
        wrong = differing(results, lambda name: call_float(RUST, op, cases(dtype)[name]))
    assert not wrong
