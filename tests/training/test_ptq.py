"""Models of torch quantized in place, against `qrs.nn` and against the float model."""

import copy
import pickle

import numpy as np
import pytest

import qrs
from qrs import nn as layers

torch = pytest.importorskip("torch", reason="needs torch: pip install 'qrs-quant[torch]'")
from torch import nn  # noqa: E402

from qrs.torch import capture, quantize_  # noqa: E402


def convolutional() -> nn.Sequential:
    torch.manual_seed(2)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding="same"), nn.ReLU(), nn.Conv2d(8, 8, 3, stride=2, groups=4),
        nn.Flatten(), nn.Linear(8 * 9, 16),
    ).eval()  # fmt: skip


def arrays(layer: nn.Module) -> tuple[np.ndarray, np.ndarray]:
    return layer.weight.detach().numpy().copy(), layer.bias.detach().numpy().copy()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("recipe", "scheme", "activation"),
    [
        ("int8-dynamic", "int8-axis0", "int8-axis0"),
        ("int4-g32-dynamic", "int4-g32", "int8-axis0"),
        ("int4-g32", "int4-g32", None),
        (qrs.NF4(double_quant=True), "nf4-g64-dq", None),
        ("kmeans4-axis0", "kmeans4-axis0", None),
    ],
)
def test_linear_is_the_layer_of_qrs(recipe, scheme, activation, dtype) -> None:
    model = nn.Sequential(nn.Linear(128, 64)).to(dtype)
    w, bias = (p.detach().float().numpy() for p in (model[0].weight, model[0].bias))
    expected = layers.Linear.from_float(w, bias, scheme, activation=activation)
    report = quantize_(model, recipe)
    x = torch.randn(4, 3, 128).to(dtype)
    y = model(x)
    assert y.dtype == dtype
    from qrs.torch.arrays import as_array

    assert np.array_equal(as_array(y), expected(as_array(x)))
    assert report.nbytes == expected.weight.nbytes
    assert report.layers == {"0": scheme + ("-dynamic" if activation else "")}


def test_convolutions_are_the_layers_of_qrs() -> None:
    model = convolutional()
    (w0, b0), (w2, b2) = arrays(model[0]), arrays(model[2])
    first = layers.Conv2d.from_float(w0, b0, padding=1)
    second = layers.Conv2d.from_float(w2, b2, stride=2, groups=4)
    x = torch.randn(2, 3, 8, 8)
    exact = model(x).detach()
    quantize_(model, "int8-dynamic")
    expected = second(np.maximum(first(x.numpy()), 0))
    assert np.array_equal(model[:3](x).numpy(), expected)
    assert torch.equal(model[0](x[0]), model[0](x[:1])[0])  # one image without a batch
    y = model(x)
    assert qrs.metrics.sqnr_db(exact.numpy(), y.numpy()) > 30


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")
def test_conv1d_and_uneven_padding() -> None:
    model = nn.Sequential(nn.Conv1d(2, 4, 4, padding="same", dilation=1)).eval()
    x = torch.randn(2, 2, 30)
    exact = model(x).detach().numpy()
    quantize_(model, "int8-dynamic")
    assert model(x).shape == exact.shape
    assert qrs.metrics.sqnr_db(exact, model(x).numpy()) > 30


def test_embeddings_are_decoded_rows() -> None:
    model = nn.Sequential(nn.Embedding(50, 64)).to(torch.bfloat16)
    quantize_(model, "int4-g32")
    tokens = torch.tensor([[3, 3], [49, 0]])
    assert torch.equal(model(tokens), model[0].weight.dequantize()[tokens])
    assert model(tokens).dtype == torch.bfloat16
    with pytest.raises(qrs.ArgValueError, match="module '0': tokens: got 50"):
        model(torch.tensor([50]))
    with pytest.raises(qrs.ArgTypeError, match=r"module '0', x: got torch\.float32"):
        model(torch.tensor([1.0]))


def test_recipes_go_by_name_before_patterns_in_order() -> None:
    model = convolutional()
    recipe = {"*": "int8-dynamic", "4": "int4-g8", "0": "keep"}
    report = quantize_(model, recipe)
    assert report.layers == {"2": "int8-axis0-dynamic", "4": "int4-g8"}
    assert report.left == {"0": "kept"}
    model = convolutional()
    report = quantize_(model, {"4": "int8-axis0"}, skip=["0"])
    assert report.left == {"0": "skipped by '0'", "2": "not among the targets"}
    model = convolutional()
    report = quantize_(model, "int4-g8")
    assert list(report.layers) == ["4"]
    assert "convolutions multiply integers" in report.left["0"]


def test_state_dict_round_trip() -> None:
    model, other = convolutional(), convolutional()
    with torch.no_grad():
        for p in other.parameters():
            p.mul_(0.5)
    x = torch.randn(2, 3, 8, 8)
    quantize_(model, "int8-dynamic")
    quantize_(other, "int8-dynamic")
    assert not torch.equal(other(x), model(x))
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(x), model(x))  # kernels pack what was loaded
    packed = [t for n, t in model.state_dict().items() if "weight" in n]
    assert {t.dtype for t in packed} == {torch.uint8}
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(copied(x), model(x))


@pytest.mark.parametrize("solver", ["gptq", "gptq-polish2", "lsq"])
def test_solvers_with_captured_moments(solver: str) -> None:
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32)).eval()
    inputs = torch.randn(500, 8) @ torch.randn(8, 64) + 0.1 * torch.randn(500, 64)
    calibration = capture(model, [inputs[:250], inputs[250:]])
    exact = model(inputs).detach().numpy()
    nearest, solved = copy.deepcopy(model), copy.deepcopy(model)
    w = model[0].weight.detach().numpy()
    quantize_(nearest, "int4-g32")
    quantize_(solved, "int4-g32", solver=solver, statistics=calibration)
    error = [qrs.metrics.mse(exact, m(inputs).numpy()) for m in (nearest, solved)]
    assert error[1] < error[0] * (0.9 if solver == "lsq" else 0.4)
    known = calibration.statistics["0"]
    if solver == "lsq":
        expected = qrs.quantize(w, "int4-g32", solver=solver, weights=known.diag)
    else:
        expected = qrs.quantize(w, "int4-g32", solver=solver, statistics=known)
    assert solved[0].weight.qtensor() == expected


def test_gptq_of_a_convolution_lessens_the_error_of_its_output() -> None:
    model = convolutional()[:1]
    x = torch.randn(16, 3, 8, 8).cumsum(-1)
    calibration = capture(model, [x])
    exact = model(x).detach().numpy()
    errors = []
    for settings in ({}, {"solver": "gptq", "statistics": calibration}):
        quantized = copy.deepcopy(model)
        quantize_(quantized, "int3-axis0-dynamic", **settings)
        errors.append(qrs.metrics.mse(exact, quantized(x).numpy()))
    assert errors[1] < 0.6 * errors[0]


class Tied(nn.Module):
    """A table whose rows are the outputs too."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(40, 64)
        self.head = nn.Linear(64, 40, bias=False)
        self.head.weight = self.table.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(self.table(tokens))


def test_shared_weights_stay_shared() -> None:
    model = Tied()
    report = quantize_(model, "int8-axis0")
    assert model.head.weight is model.table.weight
    assert report.weights == 40 * 64
    model(torch.arange(40))
    for arguments, words in (
        (("int8-axis0",), "shares its weight: 'table' keep, 'head' int8-axis0"),
        (({"head": "int8-axis0", "table": "int4-g64"},), "'table' int4-g64, 'head' int8-axis0"),
    ):
        model = Tied()
        skip = ["table"] if arguments == ("int8-axis0",) else []
        with pytest.raises(qrs.ArgValueError) as caught:
            quantize_(model, *arguments, skip=skip)
        assert words in str(caught.value)
        assert type(model.head) is nn.Linear
    calibration = capture(Tied(), [torch.arange(40)])
    model = Tied()
    quantize_(model, "int4-g32", solver="gptq", statistics=calibration)
    assert model.head.weight is model.table.weight


def test_a_module_in_two_places_is_replaced_in_both() -> None:
    shared = nn.Linear(64, 64)
    model = nn.ModuleDict({"a": shared, "b": shared})
    assert list(quantize_(model, "int8-dynamic").layers) == ["a"]
    assert model["a"] is model["b"] and model["b"] is not shared


def test_encoder_of_torch_runs_with_quantized_layers() -> None:
    layer = nn.TransformerEncoderLayer(64, 4, 128, batch_first=True)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()
    x = torch.randn(2, 5, 64)
    exact = model(x).detach()
    report = quantize_(model, "int8-dynamic")
    assert "layers.0.linear1" in report.layers
    assert "NonDynamicallyQuantizableLinear" in report.left["layers.0.self_attn.out_proj"]
    with torch.no_grad():  # torch's fused path would take the packed weight for a tensor
        y = model(x)
    assert qrs.metrics.sqnr_db(exact.numpy(), y.numpy()) > 30
    with pytest.raises(qrs.ArgTypeError, match="torch's linear was given a packed weight"):
        torch.nn.functional.linear(x, model.layers[0].linear1.weight)


def test_backward_passes_are_refused_and_forward_ones_are_not() -> None:
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 8))
    quantize_(model, "int8-dynamic", skip=["0"])
    y = model(torch.randn(2, 64))
    with pytest.raises(qrs.ArgValueError, match="module '1': is quantized for inference"):
        y.sum().backward()


def test_compiled_models_give_the_same() -> None:
    model = convolutional()
    quantize_(model, "int8-dynamic")
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(torch.compile(model, backend="eager")(x), model(x))


def with_circular_padding() -> nn.Module:
    return nn.Sequential(nn.Conv1d(2, 2, 3, padding=1, padding_mode="circular"))


@pytest.mark.parametrize(
    ("make", "arguments", "error", "words"),
    [
        (convolutional, {"recipe": "int8-dynamite"}, qrs.ArgValueError, "int8-dynamite"),
        (convolutional, {"recipe": 8}, qrs.ArgTypeError, "scheme"),
        (convolutional, {"recipe": {"5": "int8"}}, qrs.ArgValueError, "'5' matches no layer"),
        (convolutional, {"recipe": "keep"}, qrs.ArgValueError, "leaves every layer as it is"),
        (convolutional, {"recipe": {}}, qrs.ArgValueError, "has no layer to quantize"),
        (convolutional, {"recipe": "int4-g7"}, qrs.ArgValueError,
         "recipe: leaves every layer as it is; '0': convolutions multiply"),
        (convolutional, {"recipe": {"0": "int4-g9"}}, qrs.ArgValueError,
         "module '0': convolutions multiply integers"),
        (convolutional, {"recipe": "int4-g3-dynamic"}, qrs.ArgValueError, "module '0'"),
        (convolutional, {"recipe": "int8-axis0", "strict": True}, qrs.ArgValueError,
         "module '0': convolutions"),
        (convolutional, {"recipe": "int8-dynamic", "solver": "gptq"}, qrs.ArgValueError,
         "module '0': statistics: has nothing"),
        (convolutional, {"recipe": "int8-dynamic", "solver": "best"}, qrs.ArgValueError, "solver"),
        (convolutional, {"recipe": "int8-dynamic", "statistics": {"0": 3}}, qrs.ArgTypeError,
         "a Calibration: qrs.torch.capture"),
        (convolutional, {"recipe": "int8-dynamic", "statistics": {}}, qrs.ArgValueError,
         "solver 'minmax' looks at the weight alone"),
        (convolutional, {"recipe": "int8-dynamic", "solver": "lsq",
         "statistics": {"0": qrs.Statistics().update(np.ones((2, 5), np.float32))}},
         qrs.ArgValueError, "module '0': statistics: has 5 features, expected 27"),
        (with_circular_padding, {"recipe": {"0": "int8-dynamic"}}, qrs.ArgValueError,
         "module '0': padding_mode 'circular'"),
        (lambda: nn.Sequential(nn.Embedding(9, 8, max_norm=1.0)), {"recipe": {"0": "int8"}},
         qrs.ArgValueError, "module '0': max_norm"),
        (lambda: nn.Sequential(nn.LSTM(8, 8)), {"recipe": "int8-dynamic", "strict": True},
         qrs.ArgValueError, "LSTM is not supported"),
        (lambda: nn.Sequential(nn.Conv3d(1, 1, 2)), {"recipe": "int8-dynamic"}, qrs.ArgValueError,
         "has no layer to quantize"),
    ],
)  # fmt: skip
def test_quantize_refuses(make, arguments, error, words) -> None:
    model = make()
    before = repr(model)
    with pytest.raises(error) as caught:
        quantize_(model, **arguments)
    assert words in str(caught.value)
    assert repr(model) == before


def test_groups_that_do_not_divide_leave_a_layer() -> None:
    model = convolutional()
    report = quantize_(model, "int4-g8-dynamic")
    assert report.layers == {"4": "int4-g8-dynamic"}
    assert report.left["0"].startswith("group_size must divide the last axis: got group_size=8")
    with pytest.raises(qrs.ArgValueError, match="module '4': group_size must divide"):
        quantize_(convolutional(), {"4": "int4-g7"})


def test_inputs_that_do_not_fit_name_the_module() -> None:
    model = convolutional()
    quantize_(model, "int8-dynamic")
    for module, x, error, words in (
        (model[4], torch.zeros(2, 71), qrs.ArgValueError, "module '4', x: got shape (2, 71)"),
        (model[0], torch.zeros(2, 4, 8, 8), qrs.ArgValueError, "module '0': x: got shape"),
        (model[0], torch.zeros(2, 3, 8, 8, device="meta"), qrs.DeviceError, "module '0', x: is on"),
        (model[4], torch.full((1, 72), torch.nan), qrs.ArgValueError, "module '4': x: 72 non-fin"),
        (model[4], None, qrs.ArgTypeError, "module '4', x: got NoneType"),
    ):
        with pytest.raises(error) as caught:
            module(x)
        assert words in str(caught.value)
