"""Every finite float32 pattern through int8 encode: each SIMD level against the reference rule."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import qrs
from slow.all_floats import BLOCKS

SCRIPT = Path(__file__).with_name("all_floats.py")
ALL_LEVELS = ("baseline", "avx2", "avxvnni", "avx512", "amx")
LEVELS = ALL_LEVELS[: ALL_LEVELS.index(qrs.simd_level()) + 1]


def start(
    backend: str, count: int, first: int = 0, last: int = BLOCKS, level: str = ""
) -> subprocess.Popen:
    command = [sys.executable, str(SCRIPT), backend, str(count), str(first), str(last)]
    environment = dict(os.environ) | ({"QRS_SIMD": level} if level else {})
    return subprocess.Popen(command, stdout=subprocess.PIPE, env=environment)


def digests(process: subprocess.Popen) -> list[str]:
    out, _ = process.communicate()
    assert process.returncode == 0
    return json.loads(out)


def check_all_levels(count: int) -> None:
    """`count` values of each sign and exponent; numpy uses one core, so two processes share it."""
    half = BLOCKS // 2
    halves = [start("reference", count, 0, half), start("reference", count, half, BLOCKS)]
    expected = [digest for process in halves for digest in digests(process)]
    assert len(expected) == BLOCKS
    for level in LEVELS:
        found = digests(start("rust", count, level=level))
        differs = [divmod(i, 255) for i in range(BLOCKS) if found[i] != expected[i]]
        assert not differs, f"{level}: codes differ in the blocks (sign, exponent) {differs}"


def test_a_million_floats() -> None:
    check_all_levels(1 << 11)


@pytest.mark.slow
def test_all_floats() -> None:
    check_all_levels(1 << 23)
