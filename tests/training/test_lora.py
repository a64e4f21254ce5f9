"""Frozen packed weights with trainable updates, against plain ones of decoded weights."""

import copy
import pickle
import tracemalloc
from itertools import pairwise

import numpy as np
import pytest

import qrs

torch = pytest.importorskip("torch", reason="needs torch: pip install 'qrs-quant[torch]'")
from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from qrs.torch import lora, packed  # noqa: E402

SCHEMES = ["nf4-g64-dq", "nf4-g32-f16", "fp4-g64", "int4-g32-asym", "int8-axis0", "kmeans3-axis0",
           "e4m3-g32", "nvfp4", "mxfp4"]  # fmt: skip


def model_of(*sizes: int, dtype=torch.float32) -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Linear(a, b) for a, b in pairwise(sizes)]
    return nn.Sequential(*(part for layer in layers for part in (layer, nn.Tanh()))).to(dtype)


def decoded(model: nn.Module, dtype=torch.float32) -> dict[str, torch.Tensor]:
    return {n: m.weight.dequantize(dtype) for n, m in lora.injected(model).items()}


class PlainLora(nn.Module):
    """Low-rank adaptation as the paper writes it, on a float weight that is frozen."""

    def __init__(self, layer: lora.LoraLinear, weight: torch.Tensor) -> None:
        super().__init__()
        self.weight, self.bias, self.scaling = weight, layer.bias, layer.alpha / layer.rank
        self.a = nn.Parameter(layer.lora_A.weight.detach().clone())
        self.b = nn.Parameter(layer.lora_B.weight.detach().clone())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        update = (x.to(self.a.dtype) @ self.a.T) @ self.b.T * self.scaling
        return F.linear(x, self.weight, self.bias) + update.to(x.dtype)


def randomized(model: nn.Module) -> nn.Module:
    """With updates that are not zero."""
    for layer in lora.injected(model).values():
        nn.init.normal_(layer.lora_B.weight, std=0.02)
    return model


@pytest.mark.parametrize("tile", [1, 1000, packed.TILE])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_gradients_are_those_of_a_plain_lora(scheme: str, tile: int, monkeypatch) -> None:
    monkeypatch.setattr(packed, "TILE", tile)
    model = model_of(128, 96)
    lora.inject(model, rank=4, scheme=scheme, alpha=8)
    layer = randomized(model)[0]
    w = layer.weight.dequantize()
    plain = PlainLora(layer, w)
    x = torch.randn(3, 5, 128, requires_grad=True)
    x_plain = x.detach().clone().requires_grad_()
    y, y_plain = layer(x), plain(x_plain)
    dy = torch.randn(3, 5, 96)
    y.backward(dy), y_plain.backward(dy)
    # Sums of n products in any order differ by at most 2 n 2^-24 times the sum of magnitudes.
    eps, a, b = 2.0**-23, plain.a.detach(), plain.b.detach()
    reach = x.detach().abs() @ w.abs().T + layer.bias.abs()
    reach += 2 * 4 * (x.detach().abs() @ a.abs().T) @ b.abs().T
    assert ((y - y_plain).abs() <= (128 + 8) * eps * reach).all()
    back = dy.abs() @ w.abs() + 2 * 4 * (dy.abs() @ b.abs()) @ a.abs()
    assert ((x.grad - x_plain.grad).abs() <= (96 + 8) * eps * back).all()
    for mine, theirs in ((layer.lora_A, plain.a), (layer.lora_B, plain.b)):
        assert torch.equal(mine.weight.grad, theirs.grad)  # the same operations on the same numbers


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_within_its_rounding(dtype, monkeypatch) -> None:
    monkeypatch.setattr(packed, "TILE", 1000)
    model = model_of(128, 96, dtype=dtype)
    lora.inject(model, rank=4)
    layer = model[0]
    w = layer.weight.dequantize(dtype)
    x = torch.randn(7, 128, dtype=dtype, requires_grad=True)
    y = layer(x)
    assert y.dtype == dtype
    dy = torch.randn(7, 96, dtype=dtype)
    y.backward(dy)
    assert x.grad.dtype == dtype and layer.lora_B.weight.grad.dtype == torch.float32
    bound = 2.0**-7 if dtype == torch.bfloat16 else 2.0**-10
    exact_y = x.detach().double() @ w.double().T + layer.bias.double()
    reach = x.detach().double().abs() @ w.double().abs().T + layer.bias.double().abs()
    assert ((y.double() - exact_y).abs() <= bound * reach).all()
    exact = dy.double() @ w.double()
    assert ((x.grad.double() - exact).abs() <= bound * (dy.double().abs() @ w.double().abs())).all()


def test_finite_differences_agree_in_float64() -> None:
    model = model_of(16, 8, dtype=torch.float64)
    lora.inject(model, rank=2, scheme="nf4-g16")
    model = randomized(model).double()
    x = torch.randn(3, 16, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(model, (x,))


def test_training_learns_what_a_plain_lora_learns() -> None:
    model = model_of(64, 128, 32)
    lora.inject(model, rank=4)
    plain = copy.deepcopy(model)
    for name, w in decoded(model).items():
        plain[int(name)] = PlainLora(plain[int(name)], w)
    x, target = torch.randn(64, 64), torch.randn(64, 32)
    losses = []
    for network in (model, plain):
        optimizer = torch.optim.Adam([p for p in network.parameters() if p.requires_grad], 1e-2)
        for _ in range(30):
            optimizer.zero_grad()
            loss = F.mse_loss(network(x), target)
            loss.backward()
            optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[0] < 0.9 * float(target.square().mean())
    # Adam divides by magnitudes that rounding reaches: the same path to four digits.
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_nothing_decoded_is_kept_for_the_backward_pass() -> None:
    model = model_of(1024, 1024)
    lora.inject(model, rank=4)
    kept: list[torch.Tensor] = []
    x = torch.randn(2, 1024, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        y = model[0](x)
    own = {p.data_ptr() for p in model.parameters()}
    # x, what A makes of it, and the update before its scale; weights of the update are there anyway
    numbers = sum(t.numel() for t in kept if t.data_ptr() not in own)
    assert numbers <= 2 * (1024 + 4 + 1024)
    assert y.grad_fn is not None


class Allocations(torch.utils._python_dispatch.TorchDispatchMode):
    """The bytes of each storage that operations of torch return."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes: dict[int, int] = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor):
            storage = out.untyped_storage()
            self.bytes[storage.data_ptr()] = storage.nbytes()
        return out


def test_memory_of_a_step_is_a_tile_and_not_a_weight() -> None:
    model = model_of(2048, 2048)
    lora.inject(model, rank=4)
    x = torch.randn(2, 2048, requires_grad=True)
    tracemalloc.start()
    with Allocations() as allocations:
        model[0](x).sum().backward()
    arrays = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    own = {buffer.untyped_storage().data_ptr() for buffer in model.buffers()}
    tensors = [n for at, n in allocations.bytes.items() if at not in own]
    assert max(tensors) == packed.TILE * 4  # the largest that torch allocated
    assert arrays < 2048 * 2048 * 4 / 8  # numpy's: one scale in float32 for 64 weights, twice


def test_base_is_4_127_bits_per_weight() -> None:
    model = model_of(4096, 1024)
    report = lora.inject(model, rank=8)
    assert round(report.bits_per_weight, 3) == 4.127
    base = [b for n, b in model.named_buffers() if ".weight." in n]
    assert 8 * sum(b.nbytes for b in base) / (4096 * 1024) == report.bits_per_weight
    assert {b.dtype for b in base} == {torch.uint8}
    expected = qrs.quantize(np.asarray(model_of(4096, 1024)[0].weight.detach()), "nf4-g64-dq")
    assert model[0].weight.qtensor() == expected


def test_only_the_update_is_trained_and_nothing_else_is_touched() -> None:
    model = nn.Sequential(
        nn.Embedding(10, 64), nn.LayerNorm(64), nn.Linear(64, 32), nn.Conv1d(3, 3, 1)
    )
    before = {n: p.detach().clone() for n, p in model.named_parameters() if not n.startswith("2")}
    report = lora.inject(model, rank=2, dropout=0.1)
    trained = [n for n, p in model.named_parameters() if p.requires_grad]
    assert trained == ["2.lora_A.weight", "2.lora_B.weight"]
    assert all(torch.equal(model.state_dict()[n], p) for n, p in before.items())
    assert list(report.layers) == ["2"] and set(report.left) == {"0", "3"}
    assert "Embedding is not supported" in report.left["0"]
    assert "0 left alone: Embedding is not supported" in str(report)
    x = torch.randn(4, 64)
    model.train()
    torch.nn.init.ones_(model[2].lora_B.weight)
    assert not torch.equal(model[2](x), model[2](x))  # dropout
    model.eval()
    assert torch.equal(model[2](x), model[2](x))


def test_update_begins_as_nothing() -> None:
    model = model_of(64, 32)
    w, bias = model[0].weight.detach().clone(), model[0].bias
    lora.inject(model, rank=8)
    layer = model[0]
    bound = (6 / ((1 + 5) * 64)) ** 0.5  # kaiming-uniform with a = sqrt(5)
    assert layer.lora_A.weight.abs().max() <= bound and layer.lora_A.weight.std() > bound / 3
    assert not layer.lora_B.weight.any()
    x_hat = torch.from_numpy(qrs.quantize(w.numpy(), "nf4-g64-dq").dequantize())
    x = torch.randn(5, 64)
    assert torch.allclose(layer(x), F.linear(x, x_hat, bias), atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_merge_is_the_sum(dtype) -> None:
    model = randomized_model = model_of(64, 32, dtype=dtype)
    lora.inject(model, rank=2, alpha=6)
    layer = randomized(randomized_model)[0]
    expected = (
        layer.weight.dequantize(torch.float32) + 3 * layer.lora_B.weight @ layer.lora_A.weight
    )
    x = torch.randn(5, 64, dtype=dtype)
    with torch.no_grad():
        before = model(x)
    assert lora.merge(model) == ["0"]
    assert type(model[0]) is nn.Linear and model[0].weight.dtype == dtype
    ulp = 2.0**-22 if dtype == torch.float32 else 2.0**-8
    assert torch.allclose(model[0].weight.float(), expected, rtol=ulp, atol=ulp / 4)
    assert torch.allclose(model(x), before, atol=1e-5 if dtype == torch.float32 else 3e-2)


def test_merge_quantizes_again() -> None:
    model = model_of(64, 32)
    lora.inject(model, rank=2)
    randomized(model)
    w = model[0].merged()
    lora.merge(model, "int8-axis0")
    assert model[0].weight.qtensor() == qrs.quantize(w.detach().numpy(), "int8-axis0")


def test_state_dict_round_trip_and_other_schemes_are_refused() -> None:
    model, other = model_of(64, 32), model_of(64, 32)
    lora.inject(model, rank=2)
    randomized(model)
    with torch.no_grad():
        other[0].weight.mul_(0.5)
    lora.inject(other, rank=2)
    state = model.state_dict()
    assert {"0.weight.packed", "0.weight.scale.packed", "0.weight._extra_state"} <= set(state)
    other.load_state_dict(state)
    x = torch.randn(3, 64)
    assert torch.equal(other(x), model(x))
    fp4 = model_of(64, 32)
    lora.inject(fp4, rank=2, scheme="fp4-g64-dq")  # parts of the same shapes
    before = {n: t.clone() for n, t in fp4.state_dict().items() if n.startswith("0.weight.")}
    with pytest.raises(RuntimeError, match=r"0\.weight: got .*nf4|0\.weight: got"):
        fp4.load_state_dict(state)
    assert all(torch.equal(fp4.state_dict()[n], t) for n, t in before.items())


def test_casts_of_the_model_do_not_change_the_base() -> None:
    model = model_of(64, 32)
    lora.inject(model, rank=2)
    before = model[0].weight.qtensor().copy()
    model.to(torch.bfloat16)
    assert model[0].weight.qtensor() == before
    assert model(torch.randn(2, 64, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_autocast_computes_in_its_dtype() -> None:
    model = model_of(64, 32)
    lora.inject(model, rank=2)
    with torch.autocast("cpu", torch.bfloat16):
        y = model[0](torch.randn(2, 64))
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert model[0].lora_B.weight.grad.dtype == torch.float32


def test_checkpointing_and_copies() -> None:
    from torch.utils.checkpoint import checkpoint

    model = model_of(64, 32)
    lora.inject(model, rank=2)
    randomized(model)
    x = torch.randn(3, 64, requires_grad=True)
    model(x).sum().backward()
    expected = x.grad.clone()
    x.grad = None
    checkpoint(model, x, use_reentrant=False).sum().backward()
    assert torch.equal(x.grad, expected)
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(copied(x), model(x))


def test_compiled_models_give_the_same() -> None:
    model = model_of(64, 32)
    lora.inject(model, rank=2)
    randomized(model)
    x = torch.randn(3, 64)
    compiled = torch.compile(model, backend="eager")
    assert torch.equal(compiled(x), model(x))


def test_second_derivatives_are_refused() -> None:
    model = model_of(64, 32)
    lora.inject(model, rank=2)
    x = torch.randn(3, 64, requires_grad=True)
    (grad,) = torch.autograd.grad(model(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()
