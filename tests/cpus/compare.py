"""The bits of this machine against those of emulated older CPUs, and the SIMD level each one uses.

Needs qemu-x86_64 (7.2 or later: older ones have no AVX2) and an x86-64 Linux. The CPUs without
SSE4.2 are not here, because numpy's own wheels do not start there: `cargo test` covers them.
"""

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

DIGESTS = Path(__file__).with_name("digests.py")
# CPU model of QEMU -> the level that must have run
CPUS = {"Nehalem": "baseline", "Haswell": "avx2"}


def run(*command: str) -> dict:
    # A forced level would hide what the CPU's own detection does.
    environment = {k: v for k, v in os.environ.items() if not k.startswith("QRS_")}
    result = subprocess.run(
        [*command, sys.executable, str(DIGESTS)],
        stdout=subprocess.PIPE,
        env=environment,
        check=False,
        text=True,
    )
    if result.returncode:
        sys.exit(f"{' '.join(command) or 'natively'}: exit status {result.returncode}")
    return json.loads(result.stdout)


def main() -> None:
    if platform.machine() != "x86_64":
        sys.exit("the emulated CPUs are x86-64: run this on an x86-64 machine")
    native = run()
    expected = native["digests"]
    print(f"this machine: {native['level']}, {len(expected)} results")
    for cpu, level in CPUS.items():
        emulated = run("qemu-x86_64", "-cpu", cpu)
        if emulated["level"] != level:
            sys.exit(f"{cpu} ran at {emulated['level']}, expected {level}")
        different = [k for k, v in expected.items() if emulated["digests"].get(k) != v]
        if different or emulated["digests"].keys() != expected.keys():
            sys.exit(f"{cpu} differs in {len(different)} results: {', '.join(different[:10])}")
        print(f"cpus: {cpu} ({level}) gives the same {len(expected)} results")


if __name__ == "__main__":
    main()
