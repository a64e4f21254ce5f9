"""Layers against what their arithmetic says, on the reference and the Rust backend."""

import copy
import pickle

import numpy as np
import pytest

import qrs
from qrs import nn
from qrs.observers import MinMax

BACKENDS = ("reference", "rust")
RNG = np.random.default_rng(11)
W = RNG.standard_normal((24, 96)).astype(np.float32)
BIAS = RNG.standard_normal(24).astype(np.float32)
X = RNG.standard_normal((2, 5, 96)).astype(np.float32)


def relative(y: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(y - expected) / np.linalg.norm(expected))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize(
    "scheme",
    [
        "int8-axis0", "uint8", "int4-g32", "int4-g32-asym-f16", "uint4-g96", "int3-g16", "int2-g8",
        "int5-axis0-asym", "int4-g40-ragged", "nf4-g32", "nf4-g32-dq", "fp4-g32", "kmeans4-axis0",
        "kmeans3", "e2m1-g32", "e4m3-axis0", "nvfp4", "mxfp4", "mxfp8",
    ],
)  # fmt: skip
def test_weight_only_is_the_product_with_the_decoded_weight(
    scheme: str, relu: bool, backend: str
) -> None:
    layer = nn.Linear.from_float(W, BIAS, scheme, relu=relu, backend=backend)
    w = layer.weight.dequantize().astype(np.float64)
    exact = X.astype(np.float64) @ w.T + BIAS
    bound = (200 * 2.0**-24) * (abs(X).astype(np.float64) @ abs(w).T + abs(BIAS))
    y = layer(X)
    assert y.dtype == np.float32 and y.shape == (2, 5, 24)
    assert (abs(y - (np.maximum(exact, 0) if relu else exact)) <= bound).all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("activation", ["int8-axis0", "int8", "uint8", "uint8-axis0", "int8-asym"])
@pytest.mark.parametrize("scheme", ["int8-axis0", "int8", "uint8-axis0", "int4-axis0"])
def test_dynamic_is_the_product_of_what_was_quantized(
    scheme: str, activation: str, backend: str
) -> None:
    layer = nn.Linear.from_float(W, BIAS, scheme, activation=activation, backend=backend)
    rows = X.reshape(-1, 96)
    x = qrs.quantize(rows, activation)
    zx = 0 if x.zero_point is None else x.zero_point.astype(np.int64).reshape(-1, 1)
    w = layer.weight
    zw = 0 if w.zero_point is None else w.zero_point.astype(np.int64).reshape(-1, 1)
    sums = (x.codes.astype(np.int64) - zx) @ (w.codes.astype(np.int64) - zw).T
    scale = x.scale.reshape(-1, 1) * w.scale.reshape(1, -1)
    assert scale.dtype == np.float32
    assert np.array_equal(layer(rows), sums.astype(np.float32) * scale + BIAS)
    assert np.array_equal(layer(X).reshape(-1, 24), layer(rows))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("scheme", ["int4-g32", "uint4-g32", "int8-g16-asym", "int3-g40-ragged"])
def test_groups_with_int8_activations(scheme: str, backend: str) -> None:
    layer = nn.Linear.from_float(W, BIAS, scheme, activation="int8-axis0", backend=backend)
    x_hat = qrs.fake_quantize(X.reshape(-1, 96), "int8-axis0").reshape(X.shape)
    expected = x_hat.astype(np.float64) @ layer.weight.dequantize().astype(np.float64).T + BIAS
    assert relative(layer(X), expected) < 1e-6


@pytest.mark.parametrize("backend", BACKENDS)
def test_outlier_columns_stay_float(backend: str) -> None:
    x = X.copy()
    x[..., 7] *= 40
    x[0, 1, 50] = -25
    plain = nn.Linear.from_float(W, BIAS, activation="int8-axis0", backend=backend)
    mixed = nn.Linear.from_float(W, BIAS, activation=nn.Outliers(), backend=backend)
    columns = np.flatnonzero((abs(x) > 6).any(axis=(0, 1)))
    assert 2 <= len(columns) < 10
    w = plain.weight.dequantize()
    rest = x.copy()
    rest[..., columns] = 0
    expected = plain(rest) + x[..., columns] @ w[:, columns].T
    assert np.allclose(mixed(x), expected, rtol=0, atol=2e-4)  # float32 sums of up to 160
    exact = x @ W.T + BIAS
    assert relative(mixed(x), exact) < relative(plain(x), exact) / 3
    # 0 is no threshold at all, and what is below it changes nothing.
    for threshold in (0, 1e9):
        layer = nn.Linear(mixed.weight, BIAS, activation=nn.Outliers(threshold), backend=backend)
        assert np.array_equal(layer(x), plain(x))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("requantize", ["float", "fixed-point"])
def test_layers_hand_on_codes(requantize: str, backend: str) -> None:
    w2 = RNG.standard_normal((10, 24)).astype(np.float32)
    hidden = np.maximum(X @ W.T + BIAS, 0)
    source = nn.Static.of(MinMax().update(X), "uint8")
    middle = nn.Static.of(MinMax().update(hidden), "uint8")
    settings = {"requantize": requantize, "backend": backend}
    first = nn.Linear.from_float(W, BIAS, activation=source, output=middle, relu=True, **settings)
    second = nn.Linear.from_float(w2, activation=middle, backend=backend)
    codes = first(X)
    assert isinstance(codes, qrs.QTensor) and codes.shape == (2, 5, 24)
    assert (codes.codes >= middle.zero_point).all()
    y = second(codes)
    assert np.array_equal(y, second(codes.dequantize()))
    assert relative(y, hidden @ w2.T) < 0.02
    other = nn.Linear.from_float(W, BIAS, activation=source, output=middle, relu=True,
                                 requantize="float", backend="reference")  # fmt: skip
    assert abs(codes.codes.astype(int) - other(X).codes).max() <= (requantize != "float")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", ["plain", "depthwise", "1d"])
def test_convolutions_are_near_the_float_ones(kind: str, backend: str) -> None:
    groups = {"depthwise": 6}.get(kind, 1)
    w = RNG.standard_normal((12, 6 // groups, 3, 3)).astype(np.float32)
    x = RNG.standard_normal((2, 6, 9, 8)).astype(np.float32)
    settings = {"padding": 1, "stride": 2, "groups": groups, "relu": True, "backend": backend}
    bias = BIAS[:12]
    if kind == "1d":
        w, x = w[:, :, 0], x[:, :, 0]
        layer = nn.Conv1d.from_float(w, bias, **settings)
        wide = nn.Conv2d.from_float(w[:, :, None], bias, **{**settings, "padding": (0, 1)},
                                    activation="uint8")  # fmt: skip
        assert wide.stride == (2, 2)
        assert np.array_equal(layer(x), wide(x[:, :, None])[:, :, 0])
        x, w = x[:, :, None], w[:, :, None]
    else:
        layer = nn.Conv2d.from_float(w, bias, **settings)
    y = layer(x[:, :, 0] if kind == "1d" else x)
    y = y[:, :, None] if kind == "1d" else y
    expected = np.zeros(y.shape)
    rows = 0 if kind == "1d" else 1
    padded = np.pad(x, ((0, 0), (0, 0), (rows, rows), (1, 1)))
    for o, i, j in np.ndindex(12, *y.shape[2:]):
        part = slice(o // (12 // groups) * (6 // groups), None)
        window = padded[:, part, 2 * i :, 2 * j :][:, : w.shape[1], : w.shape[2], :3]
        expected[:, o, i, j] = (window * w[o]).sum(axis=(1, 2, 3)) + bias[o]
    assert relative(y, np.maximum(expected, 0)) < 0.02


@pytest.mark.parametrize("scheme", ["int8-axis0", "int4-g32", "nf4-g32-dq", "e4m3-axis0"])
def test_embeddings_are_decoded_rows(scheme: str) -> None:
    table = RNG.standard_normal((50, 32)).astype(np.float32)
    layer = nn.Embedding.from_float(table, scheme)
    tokens = np.array([[3, 3, 49], [0, 17, 3]])
    assert np.array_equal(layer(tokens), layer.weight.dequantize()[tokens])
    assert layer(np.zeros((0, 2), int)).shape == (0, 2, 32)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
@pytest.mark.parametrize("activation", [None, "int8-axis0", nn.Outliers(1.0)])
def test_results_have_the_dtype_of_the_input(activation: object, dtype: str) -> None:
    x = qrs.floats.decode(qrs.floats.encode(X, "bf16")).astype(qrs.constants.DTYPES[dtype])
    layer = nn.Linear.from_float(W, BIAS, activation=activation)
    y = layer(x)
    assert y.dtype == x.dtype
    assert np.array_equal(y, layer(x.astype(np.float32)).astype(x.dtype))


@pytest.mark.parametrize("activation", [None, "int8-axis0", "uint8", nn.Outliers()])
def test_no_rows_give_none(activation: object) -> None:
    layer = nn.Linear.from_float(W, BIAS, activation=activation)
    assert layer(np.zeros((3, 0, 96), np.float32)).shape == (3, 0, 24)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda v: pickle.loads(pickle.dumps(v))])
def test_layers_are_copied_and_pickled(copied) -> None:
    source = nn.Static("uint8", 0.03, 128)
    for layer in (
        nn.Linear.from_float(W, BIAS, "int4-g32", relu=True),
        nn.Linear.from_float(W, BIAS, activation=source, output=nn.Static("int8", 0.2)),
        nn.Linear.from_float(W, activation=nn.Outliers(2.0), backend="reference"),
        nn.Embedding.from_float(W),
    ):
        x = np.arange(3) if isinstance(layer, nn.Embedding) else X
        back, expected = copied(layer)(x), layer(x)
        assert repr(copied(layer)) == repr(layer)
        assert back == expected if isinstance(back, qrs.QTensor) else np.array_equal(back, expected)
    image = RNG.standard_normal((1, 6, 8, 30)).astype(np.float32)
    conv = nn.Conv2d.from_float(W.reshape(4, 6, 4, 24), BIAS[:4], stride=2, padding=(0, 1))
    assert np.array_equal(copied(conv)(image), conv(image))


def test_a_layer_goes_through_a_file(tmp_path) -> None:
    source, target = nn.Static("uint8", 0.03, 128), nn.Static("int8-asym", 0.2, -5)
    layers = {
        "fc.": nn.Linear.from_float(W, BIAS, activation=source, output=target),
        "head.": nn.Linear.from_float(W, None, "nf4-g32"),
        "conv.": nn.Conv2d.from_float(W.reshape(4, 6, 4, 24), activation=source),
        "table.": nn.Embedding.from_float(W),
    }
    tensors = {}
    for prefix, layer in layers.items():
        tensors |= layer.state(prefix)
    assert {"fc.weight", "fc.bias", "fc.input_scale", "fc.output_zero_point"} <= tensors.keys()
    path = tmp_path / "layers.safetensors"
    qrs.save(path, tensors)
    state = qrs.load(path)
    fc = nn.Linear.from_state(state, "fc.", activation="uint8", output="int8-asym")
    assert fc(X) == layers["fc."](X)
    head = nn.Linear.from_state(state, "head.")
    assert np.array_equal(head(X), layers["head."](X))
    conv = nn.Conv2d.from_state(state, "conv.", activation="uint8")
    image = RNG.standard_normal((1, 6, 8, 30)).astype(np.float32)
    assert np.array_equal(conv(image), layers["conv."](image))
    table = nn.Embedding.from_state(state, "table.")
    assert np.array_equal(table([3, 1]), layers["table."]([3, 1]))
