"""The figures of benches/expected_errors.json for normal numbers; `make errors` has them all."""

import json
from pathlib import Path

import numpy as np
import pytest

import qrs

TABLE = Path(__file__).parent.parent / "benches" / "expected_errors.json"
ROWS = json.loads(TABLE.read_text("utf-8"))["synthetic"]["rows"]


@pytest.mark.parametrize(
    ("scheme", "solver", "bits", "decibels"), [row[:4] for row in ROWS], ids=[r[0] for r in ROWS]
)
def test_expected_errors(scheme, solver, bits, decibels):
    x = np.random.default_rng(7).standard_normal((64, 4096)).astype(np.float32)
    qt = qrs.quantize(x, scheme, solver=solver)
    assert qrs.metrics.sqnr_db(x, qt.dequantize()) > decibels - 0.05
    assert qt.bits_per_weight < bits + 0.001
