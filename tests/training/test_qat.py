"""Quantization-aware training: what is trained is what is stored and what integer layers run."""

import copy
import io
import pickle

import numpy as np
import pytest

import qrs
from qrs import nn as layers
from qrs import observers

torch = pytest.importorskip("torch", reason="needs torch: pip install 'qrs-quant[torch]'")
from torch import nn  # noqa: E402

from qrs.torch import checkpoint, convert, freeze, lora, prepare_qat  # noqa: E402
from qrs.torch.arrays import as_array  # noqa: E402
from qrs.torch.qat.layers import QATLayer  # noqa: E402


class Network(nn.Module):
    """All kinds of layers, with batch norms."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(10, 12, padding_idx=0)
        self.conv1 = nn.Conv1d(12, 8, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm1d(8)
        self.conv2 = nn.Conv2d(1, 6, (3, 2), stride=2, padding="valid")
        self.norm2 = nn.BatchNorm2d(6)
        self.fc = nn.Linear(6 * 3 * 4, 16)
        self.norm3 = nn.BatchNorm1d(16)
        self.out = nn.Linear(16, 4)

    def forward(self, tokens: "torch.Tensor") -> "torch.Tensor":
        """(batch, 8) -> (batch, 4)."""
        x = self.table(tokens).transpose(1, 2)
        x = torch.relu(self.norm1(self.conv1(x)))
        x = torch.relu(self.norm2(self.conv2(x[:, None]))).flatten(1)
        return self.out(torch.relu(self.norm3(self.fc(x))))


def tokens(count: int = 32, seed: int = 0) -> "torch.Tensor":
    return torch.randint(0, 10, (count, 8), generator=torch.Generator().manual_seed(seed))


def network(train: int = 5) -> Network:
    """With batch norms that have seen something."""
    torch.manual_seed(0)
    model = Network()
    with torch.no_grad():
        for seed in range(train):
            model(tokens(seed=seed))
    return model


def mlp() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 4))


def trained(model: nn.Module, updates: int = 10, make=None) -> list[float]:
    """The losses of some updates towards fixed labels."""
    optimizer = (make or (lambda p: torch.optim.Adam(p, 1e-2)))(model.parameters())
    losses = []
    is_network = isinstance(model, Network)
    x = tokens() if is_network else torch.randn(32, 32, generator=torch.Generator().manual_seed(2))
    labels = torch.arange(32) % 4
    for _ in range(updates):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def prepared(model: nn.Module) -> dict[str, QATLayer]:
    return {name: m for name, m in model.named_modules() if isinstance(m, QATLayer)}


def seen_by(model: nn.Module, x: "torch.Tensor") -> dict[str, tuple]:
    """Input and output of each prepared layer, in evaluation mode."""
    seen: dict[str, tuple] = {}
    hooks = [
        layer.register_forward_hook(
            lambda m, args, out, name=name: seen.__setitem__(name, (args[0], out))
        )
        for name, layer in prepared(model).items()
    ]
    model.eval()
    with torch.no_grad():
        model(x)
    for hook in hooks:
        hook.remove()
    return seen


@pytest.mark.parametrize(
    ("recipe", "options"),
    [
        ("int8-static", {}),
        ("int4-axis0-static", {"scales": "minmax"}),
        ("int2-axis0-full-static", {"scales": "learned"}),
        ("uint4-axis0-static", {"inputs": "int8"}),  # learned zero points
        ("int8-axis0-asym-static", {"scales": "lsq", "inputs": "uint4"}),
        ("int8-dynamic", {}),
        ({"table": "nf4-g4", "fc": "int4-g12", "out": "e4m3-axis0", "conv*": "int3-static"}, {}),
        ("int8-static", {"fold": False, "observer": observers.Percentile}),
    ],
)
def test_what_was_trained_is_stored_and_run(recipe, options) -> None:
    """Codes are equal; layers, given the same input, differ by roundings of float32 alone."""
    model = network()
    before = {id(p) for p in model.parameters()}
    report = prepare_qat(model, recipe, **options)
    assert set(report.layers) == {"table", "conv1", "conv2", "fc", "out"}
    assert before <= {id(p) for p in model.parameters()}  # the norms' and the weights' are there
    losses = trained(model)
    assert losses[-1] < losses[0]
    seen = seen_by(model, tokens(seed=9))
    fakes = {}
    for name, layer in prepared(model).items():
        weight, _ = layer.folded()
        fakes[name] = as_array(layer.quantizer(weight).detach()).copy()
    whole = model(tokens(seed=9)).detach()
    done = convert(model)
    assert set(done.layers) == set(report.layers) and done.nbytes == report.nbytes
    for name, (x, y) in seen.items():
        layer = model.get_submodule(name)
        stored = layer.weight.qtensor()
        assert stored.dequantize().tobytes() == fakes[name].tobytes()
        with torch.no_grad():
            again = layer(x)
        assert torch.allclose(again, y, rtol=1e-5, atol=1e-5 * float(y.abs().max()))
    # Over layers a code here and there is the neighbour.
    assert torch.allclose(model(tokens(seed=9)), whole, atol=0.1 * float(whole.abs().max()))


def test_the_checkpoint_makes_the_layers_of_qrs(tmp_path) -> None:
    """What is saved, loaded without torch, computes the same bits."""
    model = network()
    prepare_qat(model, "int8-static", skip=["table"])
    trained(model)
    model.eval()
    convert(model)
    state = checkpoint(model)
    qrs.save(tmp_path / "model.safetensors", state)
    loaded = qrs.load(tmp_path / "model.safetensors")
    assert set(loaded) == set(state) and loaded["table.weight"].shape == (10, 12)
    fc = layers.Linear.from_state(loaded, "fc.", activation="uint8")
    x = torch.randn(5, 72)
    assert np.array_equal(fc(x.numpy()), model.fc(x).detach().numpy())
    conv = layers.Conv1d.from_state(loaded, "conv1.", activation="uint8", padding=1)
    x = torch.randn(2, 12, 8)
    assert np.array_equal(conv(x.numpy()), model.conv1(x).detach().numpy())


def test_the_checkpoint_has_packed_weights_of_adapters_and_plain_ones_too(tmp_path) -> None:
    model = nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 4))
    lora.inject(model, 2, "nf4-g32", targets=["0"])
    state = checkpoint(model)
    names = {"0.weight", "0.bias", "0.lora_A.weight", "0.lora_B.weight", "2.weight", "2.bias"}
    assert set(state) == names and state["0.weight"] == model[0].weight.qtensor()
    qrs.save(tmp_path / "model.safetensors", state)
    assert qrs.load(tmp_path / "model.safetensors")["0.weight"] == state["0.weight"]


def test_the_state_dict_goes_on_where_it_was() -> None:
    """Through bytes, into a model that was prepared in the same way."""
    model, other = network(), network(train=0)
    for each in (model, other):
        prepare_qat(each, "int4-static", fold={"conv1": "norm1"}, observer=observers.MSE)
    trained(model)
    freeze(model, ranges=False)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    for each in (model, other):
        each.eval()
    assert torch.equal(model(tokens()), other(tokens()))
    assert bool(other.conv1.norm_frozen) and other.out.inputs.observer.lo is not None
    assert trained(model.train(), 3) == trained(other.train(), 3)
    convert(model), convert(other)
    assert torch.equal(model(tokens()), other(tokens()))
    for fresh in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        assert torch.equal(fresh(tokens()), model(tokens()))


def test_the_state_dict_of_a_converted_model_loads() -> None:
    model, other = mlp(), mlp()
    for each in (model, other):
        prepare_qat(each, "int8-static")
        trained(each, 3 if each is model else 1)
        each.eval()
        convert(each)
    x = torch.randn(4, 32)
    assert not torch.equal(model(x), other(x))
    other.load_state_dict(model.state_dict())
    assert torch.equal(model(x), other(x))
    half = copy.deepcopy(model).half()
    assert half[0].layer().activation.scale == model[0].layer().activation.scale
    assert half(x.half()).dtype == torch.float16


@pytest.mark.parametrize("fold", [True, {"conv1": "norm1", "conv2": "norm2", "fc": "norm3"}])
def test_batch_norms_are_folded(fold) -> None:
    """With 8 bits nearly nothing changes, in training mode and in evaluation mode."""
    model = network()
    expected, x = copy.deepcopy(model), tokens(seed=7)
    report = prepare_qat(model, "int8-static", scales="minmax", fold=fold)
    assert report.layers["conv1"] == "int8-axis0-static, minmax, folds 'norm1'"
    assert all(type(getattr(model, f"norm{i}")) is nn.Identity for i in (1, 2, 3))
    with torch.no_grad():
        y, z = model(x), expected(x)
        assert torch.allclose(y, z, atol=0.05 * float(z.abs().max()))
        for i, layer in enumerate((model.conv1, model.conv2, model.fc), 1):
            norm = getattr(expected, f"norm{i}")
            assert torch.allclose(layer.norm.running_var, norm.running_var, rtol=0.1)
            assert torch.allclose(layer.norm.running_mean, norm.running_mean, atol=0.1)
        assert torch.allclose(model.eval()(x), expected.eval()(x), atol=0.05 * float(z.abs().max()))
    kept = copy.deepcopy(model.conv1.norm.running_var)
    freeze(model.train(), ranges=False)
    with torch.no_grad():
        frozen = model(x)
    assert torch.equal(model.conv1.norm.running_var, kept)
    assert torch.equal(frozen, model.eval()(x))


def test_a_norm_whose_factor_is_0_still_sees_its_layer() -> None:
    model = network()
    with torch.no_grad():
        model.norm1.weight[2] = 0.0
        model.norm1.bias.fill_(1.0)  # above the ReLU
    expected = copy.deepcopy(model)
    prepare_qat(model, "int8-static", scales="minmax")
    model(tokens()), expected(tokens())
    close = torch.allclose(model.conv1.norm.running_var, expected.norm1.running_var, rtol=0.1)
    assert close
    model(tokens()).square().sum().backward()
    gradient = model.conv1.norm.weight.grad
    assert bool(torch.isfinite(gradient).all()) and gradient[2] != 0
    assert bool(torch.isfinite(model.conv1.weight.grad).all())


def test_norms_that_do_not_follow_alone_are_left() -> None:
    class Branched(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 4, 3)
            self.norm = nn.BatchNorm2d(4)
            self.again = nn.BatchNorm2d(4, track_running_stats=False)

        def forward(self, x: "torch.Tensor") -> "torch.Tensor":
            y = self.conv(x)
            return self.again(self.norm(y) + y)

    model = Branched()
    report = prepare_qat(model, "int8-static")
    assert report.layers == {"conv": "int8-axis0-static, learned steps"}
    assert type(model.norm) is nn.BatchNorm2d


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.SGD(p, 0.05, momentum=0.9),
        lambda p: torch.optim.AdamW(p, 1e-2, foreach=True),
        lambda p: torch.optim.RMSprop(p, 1e-3),
        lambda p: torch.optim.Adagrad(p, 1e-2),
    ],
)
def test_any_optimizer_trains_weights_steps_and_biases(make) -> None:
    model = mlp()
    prepare_qat(model, "int4-static")
    before = copy.deepcopy(model.state_dict())
    losses = trained(model, 30, make)
    assert losses[-1] < 0.9 * losses[0]
    for name in ("0.weight", "0.bias", "0.quantizer.step", "2.weight", "2.quantizer.step"):
        assert not torch.equal(model.state_dict()[name], before[name])


def test_gradients_reach_master_weights_as_they_pass_the_codes() -> None:
    """dW of a Linear is dy^T x_hat where the weight is within its codes, and 0 outside."""
    model = nn.Sequential(nn.Linear(8, 4))
    prepare_qat(model, "int4-axis0-dynamic")
    layer = model[0]
    with torch.no_grad():
        layer.weight[1, 2] = 9.0  # far outside of the learned range
    x = torch.randn(5, 8)
    upstream = torch.randn(5, 4)
    (model(x) * upstream).sum().backward()
    x_hat = torch.from_numpy(qrs.fake_quantize(x.numpy(), "int8-axis0"))
    expected = upstream.T @ x_hat
    v = layer.weight / layer.quantizer.scale()[:, None]
    expected[(v <= -7) | (v >= 7)] = 0
    assert expected[1, 2] == 0 and torch.allclose(layer.weight.grad, expected, atol=1e-5)
    assert layer.weight.dtype == torch.float32


def test_a_copy_in_bfloat16_is_trained() -> None:
    """The weight is rounded to bfloat16 on the way; what comes out is a layer of torch."""
    model = mlp()
    report = prepare_qat(model, {"0": "bf16", "2": "int8-static"})
    assert report.layers["0"] == "bf16, minmax" and report.nbytes == 2 * 512 + 64 + 16
    losses = trained(model, 20)
    assert losses[-1] < losses[0]
    x = torch.randn(3, 32)
    rounded = model[0].weight.to(torch.bfloat16).float()
    expected = nn.functional.linear(x, rounded, model[0].bias)
    model.eval()
    assert torch.equal(model[0](x), expected)
    convert(model)
    assert type(model[0]) is nn.Linear and torch.equal(model[0](x), expected)


def test_layers_that_share_a_weight_share_its_codes() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(10, 16)
            self.head = nn.Linear(16, 10, bias=False)
            self.head.weight = self.table.weight

        def forward(self, x: "torch.Tensor") -> "torch.Tensor":
            return self.head(self.table(x))

    model = Tied()
    prepare_qat(model, "int4-axis0")
    assert model.head.quantizer is model.table.quantizer
    assert model.head.weight is model.table.weight
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    model(torch.arange(10)).square().sum().backward()
    optimizer.step()
    model.eval()
    expected = model(torch.arange(10)).detach()
    convert(model)
    assert model.head.weight is model.table.weight
    assert torch.allclose(model(torch.arange(10)), expected, atol=1e-5)


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # which torch itself looks at
def test_it_trains_under_torch_compile() -> None:
    """The graph breaks at each quantization; gradients and values are the same."""
    model = mlp()
    prepare_qat(model, "int4-static")
    other = copy.deepcopy(model)
    assert trained(torch.compile(model, backend="aot_eager"), 5) == pytest.approx(
        trained(other, 5), rel=1e-4
    )
    for mine, theirs in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.allclose(mine, theirs, atol=1e-4)


def test_it_trains_under_autocast() -> None:
    model = mlp()
    prepare_qat(model, "int4-static")
    with torch.autocast("cpu", torch.bfloat16):
        losses = trained(model, 10)
    assert losses[-1] < losses[0] and model[0].weight.grad.dtype == torch.float32


def test_empty_batches_and_other_shapes() -> None:
    for recipe in ("int8-static", "int8-dynamic", "int8-axis0"):
        model = nn.Sequential(nn.Linear(8, 4))
        prepare_qat(model, recipe)
        model(torch.randn(2, 3, 8))
        assert model(torch.zeros(0, 8)).shape == (0, 4)
        assert model(torch.zeros(8)).shape == (4,)
        convert(model)
