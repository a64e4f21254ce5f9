"""The bits of this machine against those of emulated older CPUs, and the SIMD level each one uses.

`make test-cpus` runs this; it needs an x86-64 Linux and qemu-x86_64, 7.2 or later (older ones have
no AVX2). CPUs without SSE4.2 are not here, because numpy's own wheels do not start there: `cargo
test` covers them.
"""

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

DIGESTS = Path(__file__).with_name("digests.py")

pytestmark = pytest.mark.cpus


@cache
def digests(*emulator: str) -> dict:
    """What digests.py prints, on this CPU or on an emulated one."""
    # What qrs or numpy's OpenBLAS is told about the CPU would hide what they find by themselves.
    told = ("QRS_", "OPENBLAS_", "NPY_")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(told)}
    command = [*emulator, sys.executable, str(DIGESTS)]
    result = subprocess.run(command, capture_output=True, env=environment, check=False, text=True)
    assert result.returncode == 0, f"exit status {result.returncode}: {result.stderr[-2000:]}"
    return json.loads(result.stdout)


@pytest.mark.parametrize(("cpu", "level"), [("Nehalem", "baseline"), ("Haswell", "avx2")])
def test_B01_old_cpus_give_the_same_bits(cpu: str, level: str) -> None:
    here, there = digests(), digests("qemu-x86_64", "-cpu", cpu)
    assert there["level"] == level
    assert here["digests"].keys() == there["digests"].keys()
    assert [k for k, v in here["digests"].items() if there["digests"][k] != v] == []
    assert len(here["digests"]) > 1000
