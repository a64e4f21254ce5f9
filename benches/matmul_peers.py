"""Matrix products with quantized weights beside onnxruntime, in one run on the same arrays.

`python benches/matmul_peers.py [--threads 2] [--seconds 1]` needs onnxruntime and onnx. Each
takes turns with its peer and quotes medians of milliseconds, and the ratio of the peer to qrs at
each SIMD level: above 1, qrs is faster.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import onnx
import onnxruntime
from onnx import helper, numpy_helper

import qrs
from qrs import _qrs, backends, nn

N = K = 4096
GROUP = 128
RNG = np.random.default_rng(0)

Call = Callable[[], object]


def session(nodes: list, inputs: dict, weights: dict, threads: int, **imports: int) -> Call:
    """A call of onnxruntime on these arrays, with a graph of these nodes."""
    values = [
        helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
        for n, a in inputs.items()
    ]
    outputs = [helper.make_empty_tensor_value_info("y")]
    constants = [numpy_helper.from_array(a, n) for n, a in weights.items()]
    graph = helper.make_graph(nodes, "one", values, outputs, constants)
    opsets = [helper.make_opsetid("", 19), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    runner = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    binding = runner.io_binding()
    for name, array in inputs.items():
        binding.bind_cpu_input(name, array)
    binding.bind_output("y")
    return lambda: runner.run_with_iobinding(binding)


def node(op: str, *inputs: str, **attributes: object) -> onnx.NodeProto:
    domain = "" if op == "MatMulInteger" else "com.microsoft"
    return helper.make_node(op, list(inputs), ["y"], domain=domain, **attributes)


def integer_products(m: int, dtype: str, threads: int) -> tuple[Call, Call]:
    """int32 sums of codes: MatMulInteger."""
    low, high = (0, 256) if dtype == "uint8" else (-128, 128)
    x = RNG.integers(low, high, (m, K)).astype(dtype)
    w = RNG.integers(-127, 128, (N, K)).astype(np.int8)
    peer = session([node("MatMulInteger", "x", "w")], {"x": x}, {"w": np.ascontiguousarray(w.T)},
                   threads)  # fmt: skip
    ops = backends.get("rust")
    packed, out = ops.pack_int8(w), np.empty((m, N), np.int32)
    return lambda: ops.matmul_int8(x, packed, out=out), peer


def dynamic_layer(m: int, threads: int) -> tuple[Call, Call]:
    """Everything from floats to floats: DynamicQuantizeMatMul."""
    x = RNG.standard_normal((m, K)).astype(np.float32)
    w = RNG.standard_normal((N, K)).astype(np.float32)
    layer = nn.Linear.from_float(w, activation="int8-axis0")
    weights = {
        "w": np.ascontiguousarray(layer.weight.codes.T),
        "scale": np.ascontiguousarray(layer.weight.scale.reshape(-1)),
    }
    peer = session([node("DynamicQuantizeMatMul", "x", "w", "scale")], {"x": x}, weights, threads)
    return lambda: layer(x), peer


def grouped_layer(m: int, activation: str | None, threads: int) -> tuple[Call, Call]:
    """4-bit weights with a scale for each 128 inputs: MatMulNBits."""
    x = RNG.standard_normal((m, K)).astype(np.float32)
    w = RNG.standard_normal((N, K)).astype(np.float32)
    layer = nn.Linear.from_float(w, scheme=f"int4-g{GROUP}-full", activation=activation)
    codes = (layer.weight.codes.astype(np.int8) + 8).astype(np.uint8)
    packed = (codes[:, 0::2] | codes[:, 1::2] << 4).reshape(N, K // GROUP, GROUP // 2)
    weights = {"w": packed, "scale": np.ascontiguousarray(layer.weight.scale.reshape(-1))}
    attributes = {"K": K, "N": N, "bits": 4, "block_size": GROUP}
    attributes["accuracy_level"] = 4 if activation else 0
    peer = session([node("MatMulNBits", "x", "w", "scale", **attributes)], {"x": x}, weights,
                   threads)  # fmt: skip
    return lambda: layer(x), peer


def medians(calls: list[Call], seconds: float) -> list[float]:
    """Milliseconds of each call, which take turns of a fifth of a second and three calls at least.

    What went before is still in the caches, and onnxruntime's threads go on spinning for a while;
    so the first calls of a turn are not counted.
    """
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(max(2, round(seconds / 0.2))):
        for call, spent in zip(calls, times, strict=True):
            end, turn = time.perf_counter() + 0.2, []
            while time.perf_counter() < end or len(turn) < 4:
                start = time.perf_counter()
                call()
                turn.append((time.perf_counter() - start) * 1e3)
            spent += turn[len(turn) // 4 :]
    return [statistics.median(spent) for spent in times]


def at_level(level: str, call: Call) -> Call:
    """The call at a SIMD level."""

    def run() -> object:
        _qrs.set_simd_level(level)
        return call()

    return run


JOBS: dict[str, Callable[[int, int], tuple[Call, Call]]] = {
    "u8s8 -> int32": lambda m, threads: integer_products(m, "uint8", threads),
    "s8s8 -> int32": lambda m, threads: integer_products(m, "int8", threads),
    "dynamic int8": dynamic_layer,
    "int4 g128, float x": lambda m, threads: grouped_layer(m, None, threads),
    "int4 g128, int8 x": lambda m, threads: grouped_layer(m, "int8-axis0", threads),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--job", default="")
    given = parser.parse_args()
    qrs.set_num_threads(given.threads)
    levels = [level for level in qrs.backends.simd_levels() if level != "baseline"]
    print(f"K = N = {K}, {given.threads} threads, onnxruntime {onnxruntime.__version__}")
    print(f"{'':20}{'M':>5}{'GOPS':>8}{'ms':>9}{'peer ms':>9}   peer / qrs: {' '.join(levels)}")
    for name, job in JOBS.items():
        for m in (1, 16, 512):
            if given.job in name:
                ours, peer = job(m, given.threads)
                *mine, theirs = medians([*(at_level(v, ours) for v in levels), peer], given.seconds)
                ratios = " ".join(f"{theirs / ms:.2f}" for ms in mine)
                gops = 2e-6 * m * N * K / mine[-1]
                print(
                    f"{name:20}{m:5}{gops:8.0f}{mine[-1]:9.3f}{theirs:9.3f}   {ratios}", flush=True
                )


if __name__ == "__main__":
    main()
