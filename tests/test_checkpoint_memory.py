"""What a run holds at its peak, measured in a process of its own, against what its plan says."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import qrs
from checkpoints import normal
from qrs.checkpoint.plan import PROCESS_BYTES

MEASURE = """
import sys
from qrs import checkpoint
source, output, scheme, backend, solver = sys.argv[1:]
report = checkpoint.quantize_checkpoint(source, output, scheme, backend=backend, solver=solver)
assert len(report.tensors) == 1 and report.errors.sqnr_db > 15
checkpoint.dequantize_checkpoint(output, output + ".back.safetensors", backend=backend)
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(int(peak.split()[1]) * 1024, report.plan.memory_bound, report.plan.memory_estimate)
"""

DECODE = """
import sys
from qrs import checkpoint
checkpoint.dequantize_checkpoint(*sys.argv[1:])
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(int(peak.split()[1]) * 1024)
"""


@pytest.mark.parametrize(
    ("dtype", "scheme", "backend", "solver"),
    [
        (np.float32, "int8-axis0", "rust", "minmax"),
        (np.float32, "int8", "rust", "minmax"),
        (np.float32, "int8-asym", "rust", "lsq"),
        (np.float32, "int8-axis1", "rust", "lsq"),
        (np.float32, "int4-g128-asym-f16", "reference", "minmax"),
        (np.float32, "int4-g128-asym-f16", "rust", "lsq"),
        (ml_dtypes.bfloat16, "int8-axis1", "rust", "minmax"),
        (ml_dtypes.bfloat16, "int4-g128-asym-f16", "rust", "minmax"),
        (np.float32, "int7-axis1", "reference", "minmax"),
        (np.float64, "int8", "reference", "minmax"),
        (ml_dtypes.bfloat16, "int8", "reference", "minmax"),
    ],
)
def test_peak_memory(tmp_path: Path, dtype: Any, scheme: str, backend: str, solver: str) -> None:
    """At most 3 x the largest tensor + 256 MiB, everything counted, for a tensor of 192 MB.

    The reference, and the scale search, take more where scales span rows, as their plan says.
    """
    rows = 48_000_000 // 8192 * 4 // np.dtype(dtype).itemsize
    w = np.tile(normal((8, 8192), dtype), (rows // 8, 1))
    qrs.save(tmp_path / "m.safetensors", {"w": w, "b": normal((3,))})
    arguments = [tmp_path / "m.safetensors", tmp_path / "q.safetensors", scheme, backend, solver]
    run = subprocess.run(
        [sys.executable, "-c", MEASURE, *map(str, arguments)], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    peak, bound, estimate = map(int, run.stdout.split())
    assert w.nbytes > 190e6
    assert peak <= bound
    if (backend == "rust" and solver == "minmax") or scheme == "int4-g128-asym-f16":
        assert bound == 3 * w.nbytes + (256 << 20)
    assert peak <= 1.2 * estimate, "the estimate of the plan is too low"
    shutil.rmtree(tmp_path)


@pytest.mark.parametrize("scheme", ["int4-g1-asym", "int4-g2-asym"])
def test_peak_memory_of_decoding_many_scales(tmp_path: Path, scheme: str) -> None:
    """Scales and zero points are checked and decoded in blocks too: they outweigh the codes."""
    w = np.tile(normal((8, 8192), np.float16), (256, 1))
    qrs.save(tmp_path / "q.safetensors", {"w": qrs.quantize(w, scheme)})
    arguments = [tmp_path / "q.safetensors", tmp_path / "back.safetensors"]
    run = subprocess.run(
        [sys.executable, "-c", DECODE, *map(str, arguments)], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    stored = (tmp_path / "q.safetensors").stat().st_size
    assert int(run.stdout) < PROCESS_BYTES + stored, "not even all that is stored is held at once"
    back = qrs.load(tmp_path / "back.safetensors")["w"]
    assert np.array_equal(back, qrs.quantize(w, scheme).dequantize("float16"))
    shutil.rmtree(tmp_path)
