"""Integer layers against the reference evaluator of ONNX: the same codes, the same sums."""

import numpy as np
import pytest

import qrs
from qrs import nn
from qrs.backends import get
from qrs.convolution import Convolution

onnx = pytest.importorskip("onnx")
evaluator = pytest.importorskip("onnx.reference").ReferenceEvaluator

BACKENDS = ("reference", "rust")
CODES = {"uint8": (0, 256), "int8": (-128, 128)}
# ONNX clips int8 to -128, as asymmetric and full-range schemes do; its zero points may be 0.
SCHEMES = {"uint8": "uint8", "int8": "int8-asym"}


def run(op: str, *inputs, **attributes):
    """What ONNX's evaluator makes of one node."""
    names = [f"x{i}" if x is not None else "" for i, x in enumerate(inputs)]
    feeds = {name: x for name, x in zip(names, inputs, strict=True) if name}
    outputs = ["y", "scale", "zero_point"][: 3 if op == "DynamicQuantizeLinear" else 1]
    node = onnx.helper.make_node(op, names, outputs, **attributes)

    def value(name, x):
        kind = onnx.helper.np_dtype_to_tensor_dtype(x.dtype)
        return onnx.helper.make_tensor_value_info(name, kind, x.shape)

    graph = onnx.helper.make_graph(
        [node], "one", [value(n, x) for n, x in feeds.items()],
        [onnx.helper.make_empty_tensor_value_info(name) for name in outputs],
    )  # fmt: skip
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)])
    results = evaluator(model).run(None, feeds)
    return results if len(outputs) > 1 else results[0]


def codes(rng, dtype: str, *shape: int) -> np.ndarray:
    return rng.integers(*CODES[dtype], shape).astype(dtype)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("w_dtype", CODES)
@pytest.mark.parametrize("x_dtype", CODES)
def test_matmul_integer(backend: str, x_dtype: str, w_dtype: str) -> None:
    rng, ops = np.random.default_rng(1), get(backend)
    x, w = codes(rng, x_dtype, 5, 70), codes(rng, w_dtype, 70, 19)
    x_zero, w_zero = codes(rng, x_dtype), codes(rng, w_dtype)
    expected = run("MatMulInteger", x, w, x_zero, w_zero)
    moved = w_dtype == "uint8"  # weights are int8 here; a code of 128 more has a zero point of such
    weights = np.ascontiguousarray((w ^ np.uint8(128)).view(np.int8).T if moved else w.T)
    z = np.full((19, 1), int(w_zero) - 128 * moved, np.int32)
    sums = ops.matmul_int8(x, ops.pack_int8(weights, z), np.full((1, 1), x_zero, np.int32))
    assert np.array_equal(sums, expected)


CONVOLUTIONS = {
    "plain": {"kernel": (3, 3)},
    "stride": {"kernel": (3, 2), "stride": (2, 3), "padding": (1, 0, 2, 1)},
    "dilation": {"kernel": (2, 3), "dilation": (3, 2), "padding": (2, 2, 2, 2)},
    "groups": {"kernel": (3, 3), "groups": 2, "padding": (1, 1, 1, 1)},
    "depthwise": {"kernel": (3, 3), "groups": 4, "padding": (1, 1, 1, 1), "stride": (2, 2)},
    "pointwise": {"kernel": (1, 1)},
}


def attributes_of(conv: Convolution) -> dict:
    return {
        "kernel_shape": conv.kernel, "strides": conv.stride, "pads": conv.padding,
        "dilations": conv.dilation, "group": conv.groups,
    }  # fmt: skip


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_conv_integer(backend: str, case: str) -> None:
    rng, ops = np.random.default_rng(2), get(backend)
    conv = Convolution(4, (11, 10), **CONVOLUTIONS[case])
    x, w = codes(rng, "uint8", 2, 4, 11, 10), codes(rng, "int8", 8, 4 // conv.groups, *conv.kernel)
    expected = run("ConvInteger", x, w, np.uint8(97), **attributes_of(conv))
    packed = ops.pack_int8(w.reshape(8, -1), None, conv.groups)
    sums = ops.conv_int8(x.reshape(8, -1), packed, conv, 97)
    assert np.array_equal(sums.reshape(expected.shape), expected)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("values", [[-1.0, 0.3, 2.5], [1.0, 2.0], [-3.0, -0.1], [0.0, 0.0]])
def test_dynamic_quantize_linear(backend: str, values: list) -> None:
    x = np.float32(values)
    y, scale, zero_point = run("DynamicQuantizeLinear", x)
    qt = qrs.quantize(x, "uint8", backend=backend)
    if x.any():  # of zeros alone, ONNX says a scale of 1 / 255
        assert qt.scale == scale
    assert (qt.zero_point, qt.codes.tolist()) == (zero_point, y.tolist())


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("out_dtype", CODES)
@pytest.mark.parametrize("x_dtype", CODES)
def test_qlinear_matmul(backend: str, x_dtype: str, out_dtype: str) -> None:
    rng = np.random.default_rng(3)
    x, w = codes(rng, x_dtype, 7, 33), codes(rng, "int8", 33, 12)
    # Scales of powers of two, and zero points that are odd: half of all results are ties.
    x_scale, w_scale, y_scale = np.float32(0.5), np.float32(0.25), np.float32(64)
    x_zero, y_zero = x.dtype.type(7), np.dtype(out_dtype).type(13)
    expected = run(
        "QLinearMatMul", x, x_scale, x_zero, w, w_scale, np.int8(0), y_scale, y_zero
    )  # fmt: skip
    weight = qrs.QTensor.from_parts("int8-full", (12, 33), w.T, w_scale)
    source = nn.Static(SCHEMES[x_dtype], x_scale, x_zero)
    target = nn.Static(SCHEMES[out_dtype], y_scale, y_zero)
    layer = nn.Linear(weight, activation=source, output=target, backend=backend)
    given = qrs.QTensor.from_parts(source.scheme, x.shape, x, x_scale, x_zero)
    result = layer(given)
    assert np.array_equal(result.codes, expected) and result.codes.dtype == expected.dtype
    # Floats that decode to the same codes give the same, and so does a bias that is added in ONNX's
    # way, to the sums.
    assert layer(given.dequantize()) == result


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", CONVOLUTIONS)
@pytest.mark.parametrize("dtype", CODES)
def test_qlinear_conv(backend: str, case: str, dtype: str) -> None:
    rng = np.random.default_rng(4)
    conv = Convolution(4, (11, 10), **CONVOLUTIONS[case])
    x = codes(rng, dtype, 2, 4, 11, 10)
    w = codes(rng, "int8", 8, 4 // conv.groups, *conv.kernel)
    w_scale = rng.uniform(0.01, 0.02, 8).astype(np.float32)
    x_scale, y_scale, zero = np.float32(0.1), np.float32(3.7), x.dtype.type(21)
    steps = rng.integers(-5000, 5000, 8).astype(np.int32)
    expected = run(
        "QLinearConv", x, x_scale, zero, w, w_scale, np.zeros(8, np.int8), y_scale, zero, steps,
        **attributes_of(conv),
    )  # fmt: skip
    scheme = qrs.Int(8, axis=0, full_range=True)
    weight = qrs.QTensor.from_parts(scheme, w.shape, w, w_scale)
    source, target = (nn.Static(SCHEMES[dtype], scale, zero) for scale in (x_scale, y_scale))
    layer = nn.Conv2d(
        weight, steps * (x_scale * w_scale), stride=conv.stride, padding=conv.padding,
        dilation=conv.dilation, groups=conv.groups, activation=source, output=target,
        backend=backend,
    )  # fmt: skip
    result = layer(qrs.QTensor.from_parts(source.scheme, x.shape, x, x_scale, zero))
    assert np.array_equal(result.codes, expected) and result.codes.dtype == expected.dtype
    relu = nn.Conv2d(
        weight, steps * (x_scale * w_scale), stride=conv.stride, padding=conv.padding,
        dilation=conv.dilation, groups=conv.groups, activation=source, output=target, relu=True,
        backend=backend,
    )  # fmt: skip
    after = relu(qrs.QTensor.from_parts(source.scheme, x.shape, x, x_scale, zero))
    assert np.array_equal(after.codes, np.maximum(expected, zero))
