"""onnxruntime's part of `libraries.py`: a graph for each job, outputs bound to reused memory."""

from __future__ import annotations

from typing import Any

import numpy as np

from jobs import GROUP, Array, Contender, Data


class OnnxRuntime:
    """Operators of onnxruntime, and its weight quantizer."""

    name = "onnxruntime"

    def __init__(self, data: Data, threads: int) -> None:
        import onnx
        import onnxruntime

        self.onnx, self.ort, self.threads, self.data = onnx, onnxruntime, threads, data

    def _run(
        self,
        label: str,
        nodes: list[tuple[str, list[str], list[str], dict[str, Any]]],
        outputs: dict[str, tuple[str, tuple[int, ...]]],
        x_hat: Any,
        feeds: dict[str, Array],
        constants: list[Any] = (),  # type: ignore[assignment]
    ) -> list[Contender]:
        """A contender that runs a graph of `nodes` on `feeds`, with its outputs in place."""
        helper, kinds = self.onnx.helper, self.onnx.TensorProto
        value = helper.make_tensor_value_info
        types = {np.dtype(np.float32): kinds.FLOAT, np.dtype(np.int8): kinds.INT8}
        graph = helper.make_graph(
            [helper.make_node(kind, *ends, **options) for kind, *ends, options in nodes],
            "job",
            [value(name, types[array.dtype], array.shape) for name, array in feeds.items()],
            [value(name, getattr(kinds, t), shape) for name, (t, shape) in outputs.items()],
            initializer=list(constants),
        )
        opsets = [helper.make_opsetid("", 21)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
        options = self.ort.SessionOptions()
        options.intra_op_num_threads = self.threads
        # Nothing to fuse here, and a DequantizeLinear of constants would be folded away.
        options.graph_optimization_level = self.ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        session = self.ort.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        binding = session.io_binding()
        for name, array in feeds.items():
            binding.bind_ortvalue_input(name, self.ort.OrtValue.ortvalue_from_numpy(array))
        results = {}
        for name, (kind, shape) in outputs.items():
            dtype = {"FLOAT": np.float32, "INT8": np.int8, "UINT8": np.uint8}[kind]
            results[name] = self.ort.OrtValue.ortvalue_from_numpy(np.zeros(shape, dtype))
            binding.bind_ortvalue_output(name, results[name])

        def run() -> dict[str, Any]:
            session.run_with_iobinding(binding)
            return results

        def decoded(results: dict[str, Any]) -> Array:
            return np.asarray(x_hat(**{name: value.numpy() for name, value in results.items()}))

        return [Contender(label, run, decoded, in_place=True)]

    def _constant(self, name: str, array: Array) -> Any:
        return self.onnx.numpy_helper.from_array(np.asarray(array), name)

    def int8_axis0(self) -> list[Contender]:
        rows, cols = self.data.x.shape
        return self._run(
            "Abs ReduceMax Div QuantizeLinear",
            [
                ("Abs", ["x"], ["abs"], {}),
                ("ReduceMax", ["abs", "axis"], ["absmax"], {"keepdims": 0}),
                ("Div", ["absmax", "n"], ["scale"], {}),
                ("QuantizeLinear", ["x", "scale", "zero"], ["q"], {"axis": 0}),
            ],
            {"q": ("INT8", (rows, cols)), "scale": ("FLOAT", (rows,))},
            lambda q, scale: q * scale[:, None],
            {"x": self.data.x},
            [
                self._constant("axis", np.array([1])),
                self._constant("n", np.float32(127)),
                self._constant("zero", np.zeros(rows, np.int8)),
            ],
        )

    def int8_tensor(self) -> list[Contender]:
        shape = self.data.x.shape
        dynamic = self._run(
            "DynamicQuantizeLinear (uint8)",
            [("DynamicQuantizeLinear", ["x"], ["q", "scale", "zero"], {})],
            {"q": ("UINT8", shape), "scale": ("FLOAT", ()), "zero": ("UINT8", ())},
            lambda q, scale, zero: (q.astype(np.float32) - np.float32(zero)) * scale,
            {"x": self.data.x},
        )[0]
        # It is asymmetric, so its step is another one.
        return [Contender(dynamic.label, dynamic.run, dynamic.x_hat, True, other_grid=True)]

    def int8_given(self) -> list[Contender]:
        scale = self.data.s8_tensor
        return self._run(
            "QuantizeLinear",
            [("QuantizeLinear", ["x", "scale", "zero"], ["q"], {})],
            {"q": ("INT8", self.data.x.shape)},
            lambda q: q * scale,
            {"x": self.data.x},
            [self._constant("scale", scale), self._constant("zero", np.int8(0))],
        )

    def int4_g128(self) -> list[Contender]:
        from onnxruntime.capi._pybind_state import quantize_matmul_4bits

        # It takes the weight as (in, out) and cuts its groups down the columns.
        x, (rows, cols) = np.ascontiguousarray(self.data.x.T), self.data.x.shape
        groups = cols // GROUP
        packed = np.zeros((rows, groups, GROUP // 2), np.uint8)
        scale = np.zeros(rows * groups, np.float32)
        zero = np.zeros((rows, (groups + 1) // 2), np.uint8)

        def run() -> Array:
            quantize_matmul_4bits(packed, x, scale, zero.reshape(-1), GROUP, rows, cols, False)
            return packed

        def x_hat(packed: Array) -> Array:
            q = np.stack([packed & 15, packed >> 4], axis=3).reshape(rows, groups, GROUP)
            zeros = np.stack([zero & 15, zero >> 4], axis=2).reshape(rows, -1)[:, :groups, None]
            values = (q.astype(np.float32) - zeros) * scale.reshape(rows, groups, 1)
            return values.astype(np.float32).reshape(rows, cols)

        return [Contender("quantize_matmul_4bits", run, x_hat, in_place=True)]

    def dequantize_int8(self) -> list[Contender]:
        return self._run(
            "DequantizeLinear",
            [("DequantizeLinear", ["q", "scale"], ["x_hat"], {"axis": 0})],
            {"x_hat": ("FLOAT", self.data.x.shape)},
            lambda x_hat: x_hat,
            {"q": self.data.q8},
            [self._constant("scale", self.data.s8)],
        )

    def dequantize_int4(self) -> list[Contender]:
        data, kind = self.data, self.onnx.TensorProto.UINT4
        zero = data.z4.astype(np.uint8)
        packed_zero = zero[:, 0::2] | (zero[:, 1::2] << 4)
        make = self.onnx.helper.make_tensor
        return self._run(
            "DequantizeLinear block 128",
            [
                (
                    "DequantizeLinear",
                    ["q", "scale", "zero"],
                    ["x_hat"],
                    {"axis": 1, "block_size": GROUP},
                )
            ],
            {"x_hat": ("FLOAT", data.x.shape)},
            lambda x_hat: x_hat,
            {},
            [
                make("q", kind, data.q4.shape, data.packed4.tobytes(), raw=True),
                self._constant("scale", data.s4),
                make("zero", kind, zero.shape, packed_zero.tobytes(), raw=True),
            ],
        )
