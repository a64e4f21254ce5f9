"""A real convolutional network with its Conv and MatMul nodes on `qrs.nn`, in static int8.

Run by `make demo`, which installs onnx, scikit-learn and the wheel of rapidocr-onnxruntime, whose
text recognizer (PP-OCRv4, 10.9 MB) reads rows of handwritten digits here. The graph runs in ONNX's
own reference evaluator, once in float, once with calibrated layers; where onnxruntime is installed,
it runs too. `python examples/ocr.py cls` takes the classifier of text directions (0.6 MB), `det`
the detector (4.7 MB).
"""

import importlib.util
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun
from onnx.reference.ops.op_conv import Conv as FloatConv
from onnx.reference.ops.op_matmul import MatMul as FloatMatMul
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_digits

from qrs import nn
from qrs.observers import MSE, Observer

MODELS = {
    "rec": "ch_PP-OCRv4_rec_infer.onnx",
    "cls": "ch_ppocr_mobile_v2.0_cls_infer.onnx",
    "det": "ch_PP-OCRv4_det_infer.onnx",
}
DIGITS, CALIBRATION, EVALUATION = 5, 12, 12

# What the nodes below share with the code around the evaluator, by the name of their output.
OBSERVERS: dict[str, Observer] = {}
LAYERS: dict[str, nn.Linear | nn.Conv2d] = {}
SECONDS = [0.0]


class Normalization(OpRun):
    """BatchNormalization of a trained network; before opset 14 the evaluator's would train it."""

    op_domain = ""

    def _run(self, x: Any, scale: Any, bias: Any, mean: Any, variance: Any, **rest: Any) -> Any:
        epsilon = np.float32(rest.get("epsilon") or self.epsilon)
        axes = (-1, *[1] * (x.ndim - 2))
        factor = scale / np.sqrt(variance + epsilon)
        return (x * factor.reshape(axes) + (bias - mean * factor).reshape(axes),)


class ObservedConv(FloatConv):
    """Conv of the evaluator, whose input is observed."""

    op_domain = ""

    def _run(self, x: Any, w: Any, *rest: Any, **attributes: Any) -> Any:
        OBSERVERS.setdefault(self.onnx_node.output[0], MSE()).update(x)
        return super()._run(x, w, *rest, **attributes)


class ObservedMatMul(FloatMatMul):
    """MatMul of the evaluator, whose input is observed."""

    op_domain = ""

    def _run(self, x: Any, w: Any) -> Any:
        if w.ndim == 2:
            OBSERVERS.setdefault(self.onnx_node.output[0], MSE()).update(x)
        return super()._run(x, w)


class QuantizedConv(FloatConv):
    """The same with a layer of qrs."""

    op_domain = ""

    def _run(self, x: Any, w: Any, b: Any = None, **attributes: Any) -> Any:
        name = self.onnx_node.output[0]
        if name not in LAYERS:
            get = {key: attributes.get(key) or getattr(self, key) for key in ATTRIBUTES}
            LAYERS[name] = nn.Conv2d.from_float(
                w, b, activation=nn.Static.of(OBSERVERS[name]), stride=get["strides"] or 1,
                padding=get["pads"] or 0, dilation=get["dilations"] or 1, groups=get["group"] or 1,
            )  # fmt: skip
        return (timed(name, x),)


class QuantizedMatMul(FloatMatMul):
    """The same with a layer of qrs, where one factor is a weight."""

    op_domain = ""

    def _run(self, x: Any, w: Any) -> Any:
        name = self.onnx_node.output[0]
        if w.ndim != 2:
            return super()._run(x, w)
        if name not in LAYERS:
            static = nn.Static.of(OBSERVERS[name])
            LAYERS[name] = nn.Linear.from_float(np.ascontiguousarray(w.T), activation=static)
        return (timed(name, x),)


ATTRIBUTES = ("strides", "pads", "dilations", "group")


def replacing(conv: type, matmul: type) -> list[type]:
    """The classes under the names of the nodes that they replace."""
    found = {"Conv": conv, "MatMul": matmul, "BatchNormalization": Normalization}
    return [type(name, (kind,), {}) for name, kind in found.items()]


def timed(name: str, x: Any) -> Any:
    """The output of a layer; its time is added up."""
    start = time.perf_counter()
    y = LAYERS[name](x)
    SECONDS[0] += time.perf_counter() - start
    return y


def strips(count: int, seed: int) -> np.ndarray:
    """Rows of digits, dark on light: (count, 3, 48, 32 * DIGITS) as the network takes them."""
    rng = np.random.default_rng(seed)
    digits = load_digits().images
    chosen = digits[rng.integers(0, len(digits), (count, DIGITS))] / 16
    large = np.kron(chosen, np.ones((1, 1, 4, 4)))  # 32 pixels
    rows = np.concatenate(list(large.transpose(1, 0, 2, 3)), axis=2)
    rows = np.pad(1 - rows, ((0, 0), (8, 8), (0, 0)), constant_values=1.0)
    return np.repeat(rows[:, None], 3, axis=1).astype(np.float32) * 2 - 1


def texts(output: np.ndarray, model: onnx.ModelProto) -> list[str]:
    """What a recognizer reads: the best character of each column, without repetitions, blanks."""
    entries = {p.key: p.value for p in model.metadata_props}
    if "character" not in entries or output.ndim != 3:
        return [str(row.argmax()) for row in output.reshape(len(output), -1)]
    characters = ["", *entries["character"].splitlines(), " "]
    best = output.argmax(axis=2)
    kept = [[c for c, before in zip(r, [0, *r], strict=False) if c and c != before] for r in best]
    return ["".join(characters[c] for c in row) for row in kept]


def model_path(which: str) -> Path:
    """The file inside the installed package, which is not imported: it would ask for OpenCV."""
    spec = importlib.util.find_spec("rapidocr_onnxruntime")
    if spec is None or not spec.submodule_search_locations:
        sys.exit("install the models first: pip install --no-deps rapidocr-onnxruntime")
    return Path(spec.submodule_search_locations[0]) / "models" / MODELS[which]


def outputs_of_peer(path: Path, x: np.ndarray) -> np.ndarray | None:
    """What onnxruntime makes of the float network; None where it is not installed."""
    if importlib.util.find_spec("onnxruntime") is None:
        print("onnxruntime is not installed: not compared with it")
        return None
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    found: np.ndarray = session.run(None, {session.get_inputs()[0].name: x})[0]
    return found


def main() -> None:
    """Calibrate, run in float and in int8, compare."""
    path = model_path(sys.argv[1] if len(sys.argv) > 1 else "rec")
    model = onnx.load(str(path))
    name = model.graph.input[0].name
    observed = ReferenceEvaluator(model, new_ops=replacing(ObservedConv, ObservedMatMul))
    observed.run(None, {name: strips(CALIBRATION, 0)})
    x = strips(EVALUATION, 1)
    plain = ReferenceEvaluator(model, new_ops=replacing(FloatConv, FloatMatMul))
    reference = plain.run(None, {name: x})[0]
    quantized = ReferenceEvaluator(model, new_ops=replacing(QuantizedConv, QuantizedMatMul))
    quantized.run(None, {name: x[:1]})  # makes the layers
    SECONDS[0] = 0.0
    ours = quantized.run(None, {name: x})[0]
    outputs = {"float, reference evaluator": reference, "int8 static, qrs layers": ours}
    peer = outputs_of_peer(path, x)
    if peer is not None:
        outputs["float, onnxruntime"] = peer
    table = Table(path.name, "cosine", "max error", "same text", "text of the first image")
    cosines = {}
    expected = texts(reference, model)
    for what, y in outputs.items():
        a, b = y.astype(np.float64).reshape(-1), reference.astype(np.float64).reshape(-1)
        cosines[what] = float(a @ b / np.sqrt((a @ a) * (b @ b)))
        found = texts(y, model)
        same = sum(p == q for p, q in zip(found, expected, strict=True))
        error = f"{np.abs(a - b).max():.2e}"
        table.add_row(what, f"{cosines[what]:.5f}", error, f"{same}/{len(x)}", found[0])
    Console(width=100).print(table)
    sizes = sum(layer.nbytes for layer in LAYERS.values()) / 1e6
    before = sum(4 * layer.weight.size for layer in LAYERS.values()) / 1e6
    print(f"{len(LAYERS)} layers: {before:.1f} MB in float32, {sizes:.1f} MB in int8, ", end="")
    print(f"{1e3 * SECONDS[0] / len(x):.1f} ms an image in them")
    assert cosines["int8 static, qrs layers"] > 0.93, "int8 is far from float"


if __name__ == "__main__":
    main()
