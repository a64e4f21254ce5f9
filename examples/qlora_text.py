"""QLoRA on text: all-MiniLM-L6-v2 learns the language of Python's documentation.

Run by `make demo-train`. Words are hidden, and the network guesses them from what is around. Its 36
Linear layers are frozen and get updates of rank 8: once in float32 (LoRA), once packed in 4 bits
(QLoRA), from the same seeds and batches. Prints the loss on sentences that were not trained on, the
memory of the weights, and draws both curves to `qlora_text.png` (or the path that is given).
"""

import os
import re
import sys
import time
from collections.abc import Callable
from functools import partial
from pydoc_data.topics import topics

# Threads of torch that wait for work by spinning would take the cores from those of qrs.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import matplotlib
import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from torch import nn
from torch.nn import functional

from minilm import EPS, HEADS, load_model
from qrs.torch import lora

matplotlib.use("Agg")
from matplotlib import pyplot

STEPS, BATCH, LENGTH, RATE, RANK, EVERY = 120, 16, 48, 2e-3, 8, 10
HIDDEN, MASK, PAD = 0.15, 103, 0
"""The part of the words that are hidden, and the tokens that stand for one and for nothing."""

WITHIN = 0.02
"""How far the loss of QLoRA may be above that of LoRA."""

Batch = tuple[torch.Tensor, torch.Tensor]


class Block(nn.Module):
    """Attention, and the two layers behind it; names as in the checkpoint."""

    def __init__(self, size: int, inner: int) -> None:
        super().__init__()

        def normed(features: int) -> nn.ModuleDict:
            return nn.ModuleDict(
                {"dense": nn.Linear(features, size), "LayerNorm": nn.LayerNorm(size, EPS)}
            )

        parts = {part: nn.Linear(size, size) for part in ("query", "key", "value")}
        self.attention = nn.ModuleDict({"self": nn.ModuleDict(parts), "output": normed(size)})
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(size, inner)})
        self.output = normed(inner)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """x (batch, length, size), mask (batch, 1, 1, length), true for words."""
        layers = self.attention["self"]
        q, k, v = (
            layers[part](x).unflatten(-1, (HEADS, -1)).transpose(1, 2)
            for part in ("query", "key", "value")
        )
        mixed = functional.scaled_dot_product_attention(q, k, v, mask).transpose(1, 2).flatten(2)
        out = self.attention["output"]
        x = out["LayerNorm"](out["dense"](mixed) + x)
        y = functional.gelu(self.intermediate["dense"](x))
        return self.output["LayerNorm"](self.output["dense"](y) + x)


class Encoder(nn.Module):
    """The encoder, and as guesses of words its embeddings once more."""

    def __init__(self, tensors: dict[str, np.ndarray]) -> None:
        super().__init__()
        kinds = ("word", "position", "token_type")
        shapes = [tensors[f"embeddings.{kind}_embeddings.weight"].shape for kind in kinds]
        size, inner = shapes[0][1], tensors["encoder.layer.0.intermediate.dense.bias"].size
        tables = {
            f"{kind}_embeddings": nn.Embedding(*shape)
            for kind, shape in zip(kinds, shapes, strict=True)
        }
        norm = {"LayerNorm": nn.LayerNorm(size, EPS)}
        self.embeddings = nn.ModuleDict({**tables, **norm})
        count = 1 + max(int(n.split(".")[2]) for n in tensors if n.startswith("encoder."))
        self.encoder = nn.ModuleDict(
            {"layer": nn.ModuleList(Block(size, inner) for _ in range(count))}
        )
        known = self.state_dict().keys()
        self.load_state_dict({n: torch.tensor(t) for n, t in tensors.items() if n in known})

    def forward(self, tokens: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
        """tokens (batch, length) -> scores of all words at the places `at` (batch, length)."""
        tables = self.embeddings
        x = tables["word_embeddings"](tokens) + tables["token_type_embeddings"].weight[0]
        x = tables["LayerNorm"](x + tables["position_embeddings"].weight[: tokens.shape[1]])
        mask = (tokens != PAD)[:, None, None]
        for block in self.encoder["layer"]:
            x = block(x, mask)
        return x[at] @ tables["word_embeddings"].weight.T


def sentences() -> list[str]:
    """Sentences of the language reference, without its markup."""
    text = re.sub(r'[*"`]', "", " ".join(topics[name] for name in sorted(topics)))
    found = re.findall(r"[A-Z][a-z][^.!?|>_=:\[\]{}]{40,240}[a-z]\.", " ".join(text.split()))
    return list(dict.fromkeys(found))


def batches(encoded: list[list[int]], count: int, seed: int) -> list[Batch]:
    """Batches of sentences with hidden words: what is seen, and what is hidden (0 elsewhere)."""
    draw = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        chosen = [encoded[i][:LENGTH] for i in draw.choice(len(encoded), BATCH, replace=False)]
        tokens = np.full((BATCH, max(map(len, chosen))), PAD)
        for row, words in zip(tokens, chosen, strict=True):
            row[: len(words)] = words
        words = (tokens > 103) & (draw.random(tokens.shape) < HIDDEN)  # none of the special tokens
        seen = torch.from_numpy(np.where(words, MASK, tokens))
        made.append((seen, torch.from_numpy(np.where(words, tokens, PAD))))
    return made


def loss_of(model: Encoder, batch: Batch) -> torch.Tensor:
    """The cross entropy of the hidden words."""
    seen, hidden = batch
    at = hidden != PAD
    return functional.cross_entropy(model(seen, at), hidden[at])


def evaluated(model: Encoder, held_out: list[Batch]) -> float:
    """The mean loss over batches, without gradients."""
    with torch.no_grad():
        return float(np.mean([float(loss_of(model, batch)) for batch in held_out]))


def plain_lora(model: Encoder) -> None:
    """The same updates on float32 weights: what QLoRA is compared with."""

    class Plain(nn.Module):
        def __init__(self, layer: lora.LoraLinear, base: nn.Linear) -> None:
            super().__init__()
            self.base, self.a, self.b, self.scaling = (
                base,
                layer.lora_A,
                layer.lora_B,
                layer.scaling,
            )

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.base(x) + self.b(self.a(x)) * self.scaling

    bases = {name: m for name, m in model.named_modules() if type(m) is nn.Linear}
    lora.inject(model, RANK)
    for name, base in bases.items():
        parent, _, last = name.rpartition(".")
        holder = model.get_submodule(parent)
        holder._modules[last] = Plain(holder._modules[last], base.requires_grad_(False))


def train(
    model: Encoder, training: list[Batch], held_out: list[Batch], step: Callable[[], None]
) -> dict[int, float]:
    """Steps of AdamW with a rate that falls to 0: step -> loss on what was not trained on."""
    updates = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(updates, RATE, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    curve = {0: evaluated(model, held_out)}
    for index, batch in enumerate(training, 1):
        optimizer.zero_grad()
        loss_of(model, batch).backward()
        optimizer.step()
        schedule.step()
        if index % EVERY == 0:
            curve[index] = evaluated(model, held_out)
        step()
    return curve


def draw(curves: dict[str, dict[int, float]], path: str) -> None:
    """The losses over the steps."""
    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    for (name, curve), style in zip(curves.items(), ("-", "--"), strict=True):
        axes.plot(list(curve), list(curve.values()), style, label=name)
    axes.set(xlabel="step", ylabel="loss of hidden words, held-out sentences")
    axes.set_title("all-MiniLM-L6-v2 on Python's documentation")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)


def main() -> None:
    """Train both, print what came of it, and draw it."""
    path = sys.argv[1] if len(sys.argv) > 1 else "qlora_text.png"
    tensors, encode = load_model()
    text = sentences()
    encoded = encode(text)
    held_out = batches(encoded[::8], 6, seed=1)
    training = batches([e for i, e in enumerate(encoded) if i % 8], STEPS, seed=0)
    print(f"{len(text)} sentences, one in eight held out")
    table = Table("weights", "MB", "bits per weight", "loss before", "loss after", "seconds")
    curves: dict[str, dict[int, float]] = {}
    columns = (TextColumn("{task.description:16}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True)) as progress:
        for name in ("LoRA, float32", "QLoRA, NF4"):
            torch.manual_seed(0)
            model = Encoder(tensors)
            weights = sum(m.weight.numel() for m in model.modules() if type(m) is nn.Linear)
            nbytes = 4 * weights
            if name.startswith("Q"):
                nbytes = lora.inject(model, RANK, skip=["embeddings*"]).nbytes
            else:
                plain_lora(model)
            task = progress.add_task(name, total=STEPS)
            start = time.perf_counter()
            curves[name] = train(model, training, held_out, partial(progress.advance, task))
            seconds = time.perf_counter() - start
            first, *_, last = curves[name].values()
            sizes = f"{nbytes / 1e6:.1f}", f"{8 * nbytes / weights:.3f}"
            table.add_row(name, *sizes, f"{first:.3f}", f"{last:.3f}", f"{seconds:.0f}")
    Console(width=100).print(table)
    draw(curves, path)
    plain, packed = (curve[STEPS] for curve in curves.values())
    print(f"loss of QLoRA over that of LoRA: {packed / plain:.4f}, at most {1 + WITHIN}; {path}")
    assert packed <= plain * (1 + WITHIN)


if __name__ == "__main__":
    main()
