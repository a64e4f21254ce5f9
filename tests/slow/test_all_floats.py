"""Every float32 pattern: finite ones through int8 encode, each SIMD level against the reference
rule; all of them through the conversions to other formats, against numpy and ml_dtypes too.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import qrs
from slow.all_conversions import BLOCKS as ALL_BLOCKS
from slow.all_floats import BLOCKS

HERE = Path(__file__).parent
CONVERSIONS = ("f16", "bf16", "e5m2", "e4m3")
# Not every CPU with a level has those below: AVX-512 came long before AVX-VNNI.
LEVELS = qrs.backends.simd_levels()


def start(script: str, *arguments: object, level: str = "") -> subprocess.Popen:
    command = [sys.executable, str(HERE / script), *map(str, arguments)]
    environment = dict(os.environ) | ({"QRS_SIMD": level} if level else {})
    return subprocess.Popen(command, stdout=subprocess.PIPE, env=environment)


def in_two_halves(script: str, backend: str, *arguments: object, blocks: int) -> list[str]:
    """numpy uses one core, so two processes share the work."""
    half = blocks // 2
    ends = ((0, half), (half, blocks))
    processes = [start(script, backend, *arguments, first, last) for first, last in ends]
    return [digest for process in processes for digest in digests(process)]


def digests(process: subprocess.Popen) -> list[str]:
    out, _ = process.communicate()
    assert process.returncode == 0
    return json.loads(out)


def check_all_levels(count: int) -> None:
    """`count` values of each sign and exponent."""
    expected = in_two_halves("all_floats.py", "reference", count, blocks=BLOCKS)
    assert len(expected) == BLOCKS
    for level in LEVELS:
        found = digests(start("all_floats.py", "rust", count, 0, BLOCKS, level=level))
        differs = [divmod(i, 255) for i in range(BLOCKS) if found[i] != expected[i]]
        assert not differs, f"{level}: codes differ in the blocks (sign, exponent) {differs}"


def check_conversions(format: str, count: int) -> None:
    """`count` values of each sign and exponent, NaN and infinities among them."""
    script = "all_conversions.py"
    expected = in_two_halves(script, "numpy", format, count, blocks=ALL_BLOCKS)
    assert len(expected) == ALL_BLOCKS
    found = {"reference": in_two_halves(script, "reference", format, count, blocks=ALL_BLOCKS)}
    for level in LEVELS:
        found[level] = digests(start(script, "rust", format, count, 0, ALL_BLOCKS, level=level))
    for name, digest in found.items():
        differs = [divmod(i, 256) for i in range(ALL_BLOCKS) if digest[i] != expected[i]]
        assert not differs, f"{name}: codes differ in the blocks (sign, exponent) {differs}"


def test_a_million_floats() -> None:
    check_all_levels(1 << 11)


@pytest.mark.parametrize("format", CONVERSIONS)
def test_a_million_conversions(format: str) -> None:
    check_conversions(format, 1 << 11)


@pytest.mark.slow
def test_all_floats() -> None:
    check_all_levels(1 << 23)


@pytest.mark.slow
@pytest.mark.parametrize("format", CONVERSIONS)
def test_all_conversions(format: str) -> None:
    check_conversions(format, 1 << 23)
