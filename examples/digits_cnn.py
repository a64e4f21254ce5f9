"""A small convolutional network on scikit-learn's digits, quantized after training in several ways.

Run by `make demo`. The network is trained here, in numpy, in a few seconds; then its layers become
`qrs.nn` layers: int8 with ranges found in each call, static int8 whose layers hand on codes, with
no float between the first and the last, and fewer bits. Prints accuracy on digits held back.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_digits

import qrs
from qrs import nn
from qrs.observers import MSE

Array = NDArray[np.float32]
CHANNELS, EPOCHS, BATCH, RATE = (16, 32), 20, 64, 2e-3


def digits() -> tuple[Array, NDArray[np.int64], Array, NDArray[np.int64]]:
    """Images (n, 1, 8, 8) in [0, 1] and labels: 1,297 to train on, 500 held back."""
    data = load_digits()
    order = np.random.default_rng(0).permutation(len(data.target))
    x = (data.images[order, None] / 16).astype(np.float32)
    return x[500:], data.target[order][500:], x[:500], data.target[order][:500]


def windows(x: Array) -> Array:
    """All 3 x 3 windows of images padded by 1: (n, height * width, channels * 9)."""
    n, channels, height, width = x.shape
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    found = sliding_window_view(padded, (3, 3), axis=(2, 3)).transpose(0, 2, 3, 1, 4, 5)
    return found.reshape(n, height * width, channels * 9)


def folded(grad: Array, shape: tuple[int, ...]) -> Array:
    """The gradient of images from that of their windows."""
    n, channels, height, width = shape
    padded = np.zeros((n, channels, height + 2, width + 2), np.float32)
    parts = grad.reshape(n, height, width, channels, 3, 3).transpose(4, 5, 0, 3, 1, 2)
    for i, j in np.ndindex(3, 3):
        padded[:, :, i : i + height, j : j + width] += parts[i, j]
    return padded[:, :, 1:-1, 1:-1]


def halved(x: Array) -> Array:
    """The greatest of each 2 x 2 pixels."""
    n, channels, height, width = x.shape
    return x.reshape(n, channels, height // 2, 2, width // 2, 2).max(axis=(3, 5))


def forward(p: dict[str, Array], x: Array) -> tuple[Array, dict[str, Any]]:
    """Logits, and what the way back needs: conv, ReLU, conv, ReLU, 2 x 2 maximum, linear."""
    kept: dict[str, Any] = {"x": x}
    for name, images in (("1", x), ("2", None)):
        images = kept["y1"] if images is None else images
        columns = windows(images)
        y = np.maximum(columns @ p[f"w{name}"].T + p[f"b{name}"], 0)
        kept[f"c{name}"] = columns
        kept[f"y{name}"] = y.transpose(0, 2, 1).reshape(len(x), -1, 8, 8)
    kept["pooled"] = halved(kept["y2"])
    flat = kept["pooled"].reshape(len(x), -1)
    return flat @ p["w3"].T + p["b3"], kept | {"flat": flat}


def gradients(p: dict[str, Array], x: Array, labels: NDArray[np.int64]) -> dict[str, Array]:
    """Those of the mean cross-entropy."""
    logits, kept = forward(p, x)
    exps = np.exp(logits - logits.max(axis=1, keepdims=True))
    delta = exps / exps.sum(axis=1, keepdims=True)
    delta[np.arange(len(x)), labels] -= 1
    delta /= len(x)
    g = {"w3": delta.T @ kept["flat"], "b3": delta.sum(axis=0)}
    pooled = (delta @ p["w3"]).reshape(kept["pooled"].shape)
    spread = np.repeat(np.repeat(pooled, 2, axis=2), 2, axis=3)
    greatest = np.repeat(np.repeat(kept["pooled"], 2, axis=2), 2, axis=3)
    grad = np.where(kept["y2"] == greatest, spread, 0)
    for name in ("2", "1"):
        y = kept[f"y{name}"]
        rows = np.where(y > 0, grad, 0).reshape(len(x), y.shape[1], 64).transpose(0, 2, 1)
        columns = kept[f"c{name}"]
        g[f"w{name}"] = np.einsum("npo,npc->oc", rows, columns, optimize=True)
        g[f"b{name}"] = rows.sum(axis=(0, 1))
        if name == "2":
            grad = folded(rows @ p["w2"], kept["y1"].shape)
    return g


def trained(x: Array, labels: NDArray[np.int64]) -> dict[str, Array]:
    """Parameters after some epochs of Adam (Kingma and Ba 2015)."""
    rng = np.random.default_rng(1)
    shapes = {
        "1": (CHANNELS[0], 9),
        "2": (CHANNELS[1], CHANNELS[0] * 9),
        "3": (10, CHANNELS[1] * 16),
    }
    p: dict[str, Array] = {}
    for name, shape in shapes.items():
        p[f"w{name}"] = rng.normal(0, np.sqrt(2 / shape[1]), shape).astype(np.float32)
        p[f"b{name}"] = np.zeros(shape[0], np.float32)
    first = {name: np.zeros_like(a) for name, a in p.items()}
    second = {name: np.zeros_like(a) for name, a in p.items()}
    step = 0
    for _ in range(EPOCHS):
        order = rng.permutation(len(x))
        for start in range(0, len(x), BATCH):
            step += 1
            chosen = order[start : start + BATCH]
            for name, g in gradients(p, x[chosen], labels[chosen]).items():
                first[name] += 0.1 * (g - first[name])
                second[name] += 0.001 * (g * g - second[name])
                corrected = np.sqrt(second[name] / (1 - 0.999**step)) + 1e-8
                p[name] -= RATE * first[name] / (1 - 0.9**step) / corrected
    return p


def network(
    p: dict[str, Array], scheme: str, inputs: list[Any], outputs: list[Any], **settings: Any
) -> tuple[Callable[[Array], Array], int]:
    """The network on layers of qrs, and its bytes: what each layer takes, and what two hand on."""
    kernels = (p["w1"].reshape(-1, 1, 3, 3), p["w2"].reshape(-1, CHANNELS[0], 3, 3))
    convs = [
        nn.Conv2d.from_float(
            w, b, scheme, padding=1, relu=True, activation=given, output=handed, **settings
        )
        for w, b, given, handed in zip(kernels, (p["b1"], p["b2"]), inputs, outputs, strict=False)
    ]
    last = nn.Linear.from_float(p["w3"], p["b3"], scheme, activation=inputs[2])

    def run(x: Array) -> Array:
        y = convs[1](convs[0](x))
        if not isinstance(y, qrs.QTensor):
            return last(halved(y).reshape(len(x), -1))
        pooled = halved(y.codes).reshape(len(x), -1)  # the greatest code is that of the greatest
        range_ = outputs[1]
        codes = (pooled, range_.scale, range_.zero_point)
        return last(qrs.QTensor.from_parts(range_.scheme, pooled.shape, *codes))

    return run, sum(layer.nbytes for layer in (*convs, last))


def main() -> None:
    """Train, quantize, compare."""
    x, labels, held_x, held_labels = digits()
    p = trained(x, labels)
    _, kept = forward(p, x)
    static = [nn.Static.of(MSE().update(kept[name])) for name in ("x", "y1", "y2")]
    dynamic, floats, codes = ["uint8"] * 3, [None, None], static[1:]
    table = Table("layers", "KB", "accuracy, %")
    accuracy = {}

    def show(name: str, logits: Array, nbytes: int) -> None:
        accuracy[name] = 100 * float((logits.argmax(axis=1) == held_labels).mean())
        table.add_row(name, f"{nbytes / 1e3:.1f}", f"{accuracy[name]:.1f}")

    show("float32", forward(p, held_x)[0], sum(a.nbytes for a in p.values()))
    integers = {"requantize": "fixed-point"}
    chosen: dict[str, tuple[str, list[Any], list[Any], dict[str, str]]] = {
        "int8 dynamic": ("int8-axis0", dynamic, floats, {}),
        "int8 static, floats between layers": ("int8-axis0", static, floats, {}),
        "int8 static, codes between layers": ("int8-axis0", static, codes, {}),
        "the same in integers alone": ("int8-axis0", static, codes, integers),
        "int4 weights, codes between layers": ("int4-axis0", static, codes, {}),
        "int3 weights, codes between layers": ("int3-axis0", static, codes, {}),
    }
    for name, (scheme, inputs, outputs, settings) in chosen.items():
        run, nbytes = network(p, scheme, inputs, outputs, **settings)
        show(name, run(held_x), nbytes)
    Console(width=100).print(table)
    assert accuracy["float32"] >= 97
    for name in list(chosen)[:4]:
        assert accuracy[name] >= accuracy["float32"] - 0.5, name


if __name__ == "__main__":
    main()
