"""all-MiniLM-L6-v2 beside onnxruntime: sentences per second, and how far int8 moves embeddings.

`python benches/minilm_peers.py [--threads 2]` needs onnxruntime, onnx, tokenizers and the model of
`make demo`. The network of examples/minilm.py is written as a float32 ONNX graph, which
onnxruntime's `quantize_dynamic` turns into int8. Both take the same batches, in turns.
"""

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnxruntime
from onnx import TensorProto, checker, helper, numpy_helper, save
from onnxruntime.quantization import QuantType, quantize_dynamic

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples"))

import minilm
import qrs
from qrs import nn


class Graph:
    """Nodes and constants, added one by one."""

    def __init__(self) -> None:
        self.nodes: list = []
        self.constants: list = []

    def add(self, op: str, *inputs: object, **attributes: object) -> str:
        """A node; arrays among its inputs become constants."""
        names = [x if isinstance(x, str) else self.constant(x) for x in inputs]
        output = f"{op}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, names, [output], **attributes))
        return output

    def constant(self, array: object) -> str:
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(array), name))
        return name


def graph_of(model: minilm.MiniLM) -> Graph:
    """The network, layer by layer as `MiniLM` has it."""
    g, t = Graph(), model.tensors
    features = t["embeddings.word_embeddings.weight"].shape[1]
    width = features // minilm.HEADS

    def norm(name: str, x: str) -> str:
        weight, bias = (t[f"{name}.LayerNorm.{part}"] for part in ("weight", "bias"))
        return g.add("LayerNormalization", x, weight, bias, axis=-1, epsilon=minilm.EPS)

    def linear(name: str, x: str) -> str:
        w = np.ascontiguousarray(t[f"{name}.weight"].T)
        return g.add("Add", g.add("MatMul", x, w), t[f"{name}.bias"])

    def heads(name: str, x: str, order: list[int]) -> str:
        split = g.add("Reshape", linear(name, x), np.int64([0, 0, minilm.HEADS, width]))
        return g.add("Transpose", split, perm=order)

    x = g.add("Gather", t["embeddings.word_embeddings.weight"], "tokens")
    places = g.add("Gather", t["embeddings.position_embeddings.weight"], "positions")
    x = g.add("Add", g.add("Add", x, places), t["embeddings.token_type_embeddings.weight"][0])
    x = norm("embeddings", x)
    for block in range(model.blocks):
        name = f"encoder.layer.{block}."
        q = heads(f"{name}attention.self.query", x, [0, 2, 1, 3])
        k = heads(f"{name}attention.self.key", x, [0, 2, 3, 1])
        v = heads(f"{name}attention.self.value", x, [0, 2, 1, 3])
        scores = g.add("Mul", g.add("MatMul", q, k), np.float32(width**-0.5))
        weights = g.add("Softmax", g.add("Add", scores, "hidden"), axis=-1)
        mixed = g.add("Transpose", g.add("MatMul", weights, v), perm=[0, 2, 1, 3])
        mixed = g.add("Reshape", mixed, np.int64([0, 0, features]))
        attended = linear(f"{name}attention.output.dense", mixed)
        x = norm(f"{name}attention.output", g.add("Add", attended, x))
        wide = g.add("Gelu", linear(f"{name}intermediate.dense", x))
        x = norm(f"{name}output", g.add("Add", linear(f"{name}output.dense", wide), x))
    g.nodes.append(helper.make_node("Identity", [x], ["y"]))
    return g


def sessions(model: minilm.MiniLM, threads: int) -> dict[str, onnxruntime.InferenceSession]:
    """onnxruntime with the network in float32, and quantized by it."""
    g = graph_of(model)
    shapes = {
        "tokens": (TensorProto.INT64, ["b", "t"]),
        "positions": (TensorProto.INT64, ["t"]),
        "hidden": (TensorProto.FLOAT, ["b", 1, 1, "t"]),
    }
    inputs = [helper.make_tensor_value_info(n, kind, shape) for n, (kind, shape) in shapes.items()]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["b", "t", "f"])]
    graph = helper.make_graph(g.nodes, "minilm", inputs, outputs, g.constants)
    written = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    checker.check_model(written)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        plain, int8 = Path(folder, "float.onnx"), Path(folder, "int8.onnx")
        save(written, plain)
        quantize_dynamic(plain, int8, weight_type=QuantType.QInt8, per_channel=True,
                         op_types_to_quantize=["MatMul"])  # fmt: skip
        for name, path in (("onnxruntime float32", plain), ("onnxruntime int8 dynamic", int8)):
            found[name] = onnxruntime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
    return found


def pooled(x: np.ndarray, mask: np.ndarray) -> np.ndarray:
    total = np.einsum("btf,bt->bf", x, mask.astype(np.float32))
    return total / np.linalg.norm(total, axis=1, keepdims=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9)
    given = parser.parse_args()
    qrs.set_num_threads(given.threads)
    from tokenizers import Tokenizer

    folder = minilm.find_model()
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tensors = {n: t.astype(np.float32) for n, t in qrs.load(folder).items() if t.dtype.kind == "f"}
    encoded = [e.ids for e in tokenizer.encode_batch(minilm.texts()[0])]
    plain = minilm.MiniLM(tensors, minilm.float_layer)

    def of(scheme: str, activation: object) -> minilm.MiniLM:
        return minilm.MiniLM(
            tensors, lambda _, w, b: nn.Linear.from_float(w, b, scheme, activation=activation)
        )

    def of_session(session: onnxruntime.InferenceSession) -> object:
        def run(tokens: np.ndarray, mask: np.ndarray) -> np.ndarray:
            hidden = np.where(mask, np.float32(0), np.float32(-1e9))[:, None, None, :]
            feeds = {"tokens": tokens, "positions": np.arange(tokens.shape[1]), "hidden": hidden}
            return pooled(session.run(None, feeds)[0], mask)

        return run

    models = {
        "qrs float32 (numpy)": plain,
        "qrs int8 dynamic, per token": of("int8-axis0", "int8-axis0"),
        "qrs int8 dynamic, per tensor": of("int8-axis0", "uint8"),
    } | {name: of_session(session) for name, session in sessions(plain, given.threads).items()}
    reference = minilm.embed(plain, encoded)
    times: dict[str, list[float]] = {name: [] for name in models}
    drift = {}
    for _ in range(given.rounds):
        for name, model in models.items():
            minilm.embed(model, encoded[:32])
            start = time.perf_counter()
            found = minilm.embed(model, encoded)
            times[name].append(time.perf_counter() - start)
            drift[name] = 1e3 * (1 - float(np.sum(found * reference, axis=1).mean()))
    print(
        f"{len(encoded)} sentences, {given.threads} threads, onnxruntime {onnxruntime.__version__}"
    )
    for name, spent in times.items():
        speed = len(encoded) / statistics.median(spent)
        print(f"{name:32}{speed:8.0f} sentences/s   1 - cosine, x 1e3: {drift[name]:7.2f}")


if __name__ == "__main__":
    main()
