"""The public API under pytest-benchmark: backend x job x size, fresh outputs and `out=`.

Run by `make bench`; the table has one line for each, the JSON goes where --benchmark-json says.
Fresh outputs pay for the page faults of their memory; `out=` reuses it.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest

import qrs

QUICK = os.environ.get("QRS_BENCH_QUICK") == "1"
SHAPES = {"1KB": (1, 256), "1MB": (256, 1024), "64MB": (4096, 4096)}
BACKENDS = [name for name in ("rust", "reference") if name in qrs.available_backends()]
SCHEMES = {"int8-axis0": "int8-axis0", "int8-tensor": "int8", "int4-g128-asym": "int4-g128-asym"}


@pytest.fixture(params=SHAPES)
def x(request: pytest.FixtureRequest) -> Any:
    if QUICK and request.param == "64MB":
        pytest.skip("a smoke test takes small arrays")
    return np.random.default_rng(0).standard_normal(SHAPES[request.param], dtype=np.float32)


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest, x: Any) -> str:
    if request.param == "reference" and x.nbytes > 1 << 20:
        pytest.skip("the reference is the definition, not a competitor: seconds a round")
    return str(request.param)


def run(benchmark: Any, x: Any, function: Any) -> None:
    """Times `function`, in bytes of the float32 array per second."""
    benchmark.extra_info["float32_bytes"] = x.nbytes
    if x.nbytes < 1 << 16:
        benchmark(function)
    else:
        benchmark.pedantic(function, rounds=5 if QUICK else 30, warmup_rounds=2)
    benchmark.extra_info["gb_per_s"] = x.nbytes / benchmark.stats.stats.median / 1e9


@pytest.mark.parametrize("reuse", [False, True], ids=["fresh", "out="])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_quantize(benchmark: Any, x: Any, backend: str, scheme: str, reuse: bool) -> None:
    name = SCHEMES[scheme]
    out = qrs.quantize(x, name, backend=backend) if reuse else None
    run(benchmark, x, lambda: qrs.quantize(x, name, out=out, backend=backend))


@pytest.mark.parametrize("reuse", [False, True], ids=["fresh", "out="])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_dequantize(benchmark: Any, x: Any, backend: str, scheme: str, reuse: bool) -> None:
    qt = qrs.quantize(x, SCHEMES[scheme])
    out = np.zeros_like(x) if reuse else None
    run(benchmark, x, lambda: qrs.dequantize(qt, out=out, backend=backend))


@pytest.mark.parametrize("kind", ["read", "copy in place", "copy fresh"])
def test_memory(benchmark: Any, x: Any, kind: str) -> None:
    """What numpy reaches without quantizing anything, for scale."""
    out = np.zeros_like(x)
    functions = {"read": x.max, "copy in place": lambda: np.copyto(out, x), "copy fresh": x.copy}
    run(benchmark, x, functions[kind])
