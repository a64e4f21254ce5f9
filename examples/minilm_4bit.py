"""Few bits with calibration: all-MiniLM-L6-v2 by rounding to nearest, scale search and GPTQ.

Run by `make errors`. The second moments of the inputs of all layers are collected on technical
prose, the 36 weights of the encoder are quantized with them, and everyday sentences are embedded.
Prints how far the embeddings move, and compares with the figures that are to be reached. Layers are
calibrated in parallel, all on the float model, or one after the other (`sequential`): a layer then
sees what the quantized ones before it make of the text.
"""

import re
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np
from rich.console import Console
from rich.table import Table

import qrs
from minilm import Array, MiniLM, calibrated, embed, float_layer, load_model, prose, texts

MODULES = [
    "email.message", "unittest", "logging", "threading", "tarfile", "http.client", "csv", "sqlite3",
    "asyncio", "multiprocessing", "subprocess", "typing", "zipfile", "collections", "pathlib",
    "inspect", "ctypes", "ssl", "urllib.request", "turtle", "calendar", "locale", "statistics",
]  # fmt: skip
INT4, INT3, NF4, KMEANS = "int4-g128-asym-f16", "int3-g128-asym-f16", "nf4-g64-f16", "kmeans4-axis0"
VARIANTS = [
    (INT4, "minmax", "parallel"),
    (INT4, "lsq", "parallel"),
    (INT4, "gptq-inorder", "parallel"),
    (INT4, "gptq-group", "parallel"),
    (INT4, "gptq", "parallel"),
    (INT4, "gptq-polish2", "parallel"),
    (INT4, "gptq-polish2", "sequential"),
    (INT4, "awq", "parallel"),
    (NF4, "minmax", "parallel"),
    (NF4, "gptq", "parallel"),
    (KMEANS, "minmax", "parallel"),
    (KMEANS, "gptq", "parallel"),
    (INT3, "minmax", "parallel"),
    (INT3, "gptq-polish2", "parallel"),
]
TARGETS = [
    ((INT4, "gptq", "parallel"), INT4, 0.52),
    ((INT4, "gptq-polish2", "parallel"), INT4, 0.49),
    ((NF4, "gptq", "parallel"), INT4, 0.37),
    ((KMEANS, "gptq", "parallel"), INT4, 0.38),
    ((INT3, "gptq-polish2", "parallel"), INT3, 0.46),
]
"""What the drift of the first may be at most, of that of rounding to nearest with the second."""

Variant = tuple[str, str, str]
Statistics = dict[str, qrs.Statistics]


def sentences(text: str) -> list[str]:
    """The whole sentences of a text without markup in them."""
    found = re.findall(r"[A-Z][a-z][^.!?`|>_=()*:\[\]]{30,160}[a-z]\.", " ".join(text.split()))
    return list(dict.fromkeys(found))


def technical_prose() -> list[str]:
    """Descriptions of data, of the Python language, and of its library: 532 sentences."""
    spec = find_spec("sklearn")
    if spec is None or spec.origin is None:
        sys.exit("minilm_4bit.py: scikit-learn is missing: make demo, or pip install it")
    data = sorted(Path(spec.origin).parent.glob("datasets/descr/*.rst"))
    described = sentences(" ".join(path.read_text("utf-8") for path in data))
    reference = sentences(" ".join(topics[name] for name in sorted(topics)))
    return described[:150] + reference[:200] + prose(MODULES, 250)


def quantized(
    tensors: dict[str, Array], names: list[str], variant: Variant, known: qrs.Statistics
) -> dict[str, Array]:
    """The tensors with the weights of these layers quantized and decoded."""
    scheme, solver, _ = variant
    statistics = None if solver in ("minmax", "lsq") else known
    found = {
        f"{name}.weight": qrs.quantize(
            tensors[f"{name}.weight"], scheme, solver=solver, statistics=statistics
        ).dequantize()
        for name in names
    }
    return tensors | found


def sources(tensors: dict[str, Array]) -> dict[str, list[str]]:
    """Joined layer -> the layers in it, in the order in which the network runs."""
    found: dict[str, list[str]] = {}
    for block in range(6):
        layer = f"encoder.layer.{block}"
        parts = [f"{layer}.attention.self.{part}" for part in ("query", "key", "value")]
        found[f"{layer}.attention.self"] = parts
        for name in ("attention.output.dense", "intermediate.dense", "output.dense"):
            found[f"{layer}.{name}"] = [f"{layer}.{name}"]
    return found


def solve(
    tensors: dict[str, Array], variant: Variant, parallel: Statistics, encoded: list[list[int]]
) -> dict[str, Array]:
    """The model with all 36 weights quantized."""
    now = tensors
    for layer, names in sources(tensors).items():
        known = parallel[layer]
        if variant[2] == "sequential":
            known = calibrated(now, encoded, hessian=True, layers=[layer]).statistics[layer]
        now = quantized(now, names, variant, known)
    return now


def measured(progress: Callable[[str], None] = print) -> dict[Variant, float]:
    """1 - mean cosine of the embeddings of each variant."""
    tensors, encode = load_model()
    evaluated, others = encode(texts()[0]), encode(technical_prose())
    parallel = calibrated(tensors, others, hessian=True).statistics
    tokens = parallel["encoder.layer.0.attention.self"].n_tokens
    progress(f"{len(evaluated)} sentences; calibrated on {len(others)} others of {tokens} tokens")
    reference = embed(MiniLM(tensors, float_layer), evaluated)
    table = Table("scheme", "solver", "calibration", "1 - cosine, x 1e3", "least cosine", "s")
    drift: dict[Variant, float] = {}
    for variant in VARIANTS:
        start = time.perf_counter()
        model = solve(tensors, variant, parallel, others)
        seconds = time.perf_counter() - start
        embedded = embed(MiniLM(model, float_layer), evaluated)
        cosines = np.sum(embedded * reference, axis=1, dtype=np.float64)
        drift[variant] = float(1 - cosines.mean())
        figures = f"{1e3 * drift[variant]:.2f}", f"{cosines.min():.4f}", f"{seconds:.1f}"
        table.add_row(*variant, *figures)
    Console(width=100).print(table)
    return drift


def missed(drift: dict[Variant, float]) -> int:
    """Print each ratio to rounding to nearest beside its target; how many are missed."""
    wrong = 0
    for variant, base, most in TARGETS:
        ratio = drift[variant] / drift[base, "minmax", "parallel"]
        wrong += ratio > most
        mark = "" if ratio <= most else "  MISSED"
        print(f"{' '.join(variant[:2])}: {ratio:.3f} of rounding to nearest, at most {most}{mark}")
    return wrong


if __name__ == "__main__":
    sys.exit(missed(measured()) > 0)
