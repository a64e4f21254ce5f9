"""Quantization-aware training on scikit-learn's digits, against quantization after training.

Run by `make demo-train`. A network of three layers and a small convolutional one, each trained in
float32 and then quantized with 8-bit inputs and weights of 8, 4, 3 and 2 bits: right away (PTQ, the
ranges of weights, and inputs observed on the training set), and after some epochs of training on
(QAT: learned steps). Prints the accuracy on 540 images held back, the mean of five seeds; what is
measured of QAT are the integer layers that `convert` makes.
"""

import copy
import os
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context

# Threads of torch that wait for work by spinning would take the cores from those of qrs.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional

import qrs
from qrs.torch import FreezeSchedule, capture, convert, prepare_qat, quantize_

SEEDS, HELD_OUT, BATCH = 5, 540, 64
FLOAT_EPOCHS, QAT_EPOCHS, FLOAT_RATE, QAT_RATE = 60, 40, 5e-3, 5e-3
RECIPES = {
    8: "int8-axis0-static", 4: "int4-axis0-static", 3: "int3-axis0-static",
    2: "int2-axis0-full-static",
}  # fmt: skip

LEAST, WITHIN = 95.7, 0.6
"""Percent that the first network has to reach with 2 bits, and how far any may be below float."""

Data = tuple[torch.Tensor, torch.Tensor]


def mlp() -> nn.Module:
    """64-32-32-10."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 10)
    )


def cnn() -> nn.Module:
    """Two convolutions with batch norms, which training quantized folds into them."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
        nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16 * 16, 10),
    )  # fmt: skip


NETWORKS = {"MLP": mlp, "CNN": cnn}


def digits(seed: int) -> tuple[Data, Data]:
    """Images (n, 1, 8, 8) in [0, 1] and labels: to train on, and held back."""
    known = load_digits()
    order = np.random.default_rng(seed).permutation(len(known.target))
    x = torch.from_numpy((known.images[order, None] / 16).astype(np.float32))
    labels = torch.from_numpy(known.target[order])
    return (x[HELD_OUT:], labels[HELD_OUT:]), (x[:HELD_OUT], labels[:HELD_OUT])


def train(model: nn.Module, data: Data, epochs: int, rate: float, seed: int) -> None:
    """Adam with a rate that falls to 0; for a prepared model, what is observed stays at the end."""
    x, labels = data
    updates = epochs * (len(x) // BATCH)
    optimizer = torch.optim.Adam(model.parameters(), rate)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, updates)
    prepared = any(hasattr(module, "quantizer") for module in model.modules())
    end = int(0.8 * updates)
    freezing = FreezeSchedule(model, ranges=end, norms=end) if prepared else None
    draw = torch.Generator().manual_seed(seed)
    model.train()
    for _ in range(epochs):
        for chosen in torch.randperm(len(x), generator=draw).split(BATCH)[: len(x) // BATCH]:
            optimizer.zero_grad()
            functional.cross_entropy(model(x[chosen]), labels[chosen]).backward()
            optimizer.step()
            cosine.step()
            if freezing is not None:
                freezing.step()
    model.eval()


def accuracy(model: nn.Module, data: Data) -> float:
    """Percent."""
    with torch.no_grad():
        return 100 * float((model(data[0]).argmax(dim=1) == data[1]).float().mean())


def folded(model: nn.Module) -> nn.Module:
    """The model for inference, with batch norms in the convolutions before them."""
    for i in [i for i, module in enumerate(model) if isinstance(module, nn.Conv2d)]:
        fused = torch.nn.utils.fuse_conv_bn_eval(model[i], model[i + 1])
        model[i], model[i + 1] = fused, nn.Identity()
    return model


def measured(name: str, seed: int) -> dict[str, float]:
    """The accuracy of one network in all ways, on one thread."""
    torch.set_num_threads(1)
    qrs.set_num_threads(1)
    torch.manual_seed(seed)
    training, held_out = digits(seed)
    model = NETWORKS[name]()
    train(model, training, FLOAT_EPOCHS, FLOAT_RATE, seed)
    found = {"float32": accuracy(model, held_out)}
    for bits, recipe in RECIPES.items():
        after = folded(copy.deepcopy(model))
        quantize_(after, recipe, statistics=capture(after, [(training[0],)]))
        found[f"PTQ {bits}"] = accuracy(after, held_out)
        aware = copy.deepcopy(model)
        prepare_qat(aware, recipe)
        train(aware, training, QAT_EPOCHS, QAT_RATE, seed)
        convert(aware)
        found[f"QAT {bits}"] = accuracy(aware, held_out)
    return found


def all_measured() -> dict[str, dict[str, np.ndarray]]:
    """Network -> way -> accuracy by seed; a process for each core trains one at a time."""
    columns = (TextColumn("{task.description:16}"), BarColumn(), MofNCompleteColumn())
    found: dict[str, list[dict[str, float]]] = {name: [] for name in NETWORKS}
    with (
        Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True)) as progress,
        ProcessPoolExecutor(mp_context=get_context("spawn")) as pool,
    ):
        jobs = {pool.submit(measured, n, seed): n for n in NETWORKS for seed in range(SEEDS)}
        tasks = {name: progress.add_task(name, total=SEEDS) for name in NETWORKS}
        for job in as_completed(jobs):
            found[jobs[job]].append(job.result())
            progress.advance(tasks[jobs[job]])
    return {
        name: {way: np.array([each[way] for each in seeds]) for way in seeds[0]}
        for name, seeds in found.items()
    }


def main() -> None:
    """Train all, print the table, check it."""
    table = Table("weights", "MLP, PTQ", "MLP, QAT", "CNN, PTQ", "CNN, QAT")
    found = all_measured()

    def cell(name: str, way: str) -> str:
        values = found[name][way]
        return f"{values.mean():.2f} +- {values.std(ddof=1):.2f}"

    table.add_row("float32", *(cell(name, "float32") for name in ("MLP", "MLP", "CNN", "CNN")))
    for bits in RECIPES:
        ways = [(name, f"{way} {bits}") for name in found for way in ("PTQ", "QAT")]
        table.add_row(f"{bits} bits", *(cell(*each) for each in ways))
    Console(width=100).print(table)
    assert found["MLP"]["QAT 2"].mean() >= LEAST
    for bits in RECIPES:
        gap = found["MLP"]["float32"].mean() - found["MLP"][f"QAT {bits}"].mean()
        assert gap <= WITHIN, f"{bits} bits: {gap:.2f} points below float32"


if __name__ == "__main__":
    main()
