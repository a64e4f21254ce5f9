"""What adapters refuse; after each refusal the model is what it was."""

import math

import numpy as np
import pytest

import qrs

torch = pytest.importorskip("torch", reason="needs torch: pip install 'qrs-quant[torch]'")
from torch import nn  # noqa: E402

from qrs.torch import lora  # noqa: E402


def two() -> nn.ModuleDict:
    return nn.ModuleDict({"up": nn.Linear(64, 128), "down": nn.Linear(128, 64)})


def tied() -> nn.ModuleDict:
    model = nn.ModuleDict({"table": nn.Embedding(100, 64), "head": nn.Linear(64, 100)})
    model["head"].weight = model["table"].weight
    return model


def with_nan() -> nn.ModuleDict:
    model = two()
    model["down"].weight.data[3, 5] = math.nan
    return model


def on_meta() -> nn.ModuleDict:
    return nn.ModuleDict({"up": nn.Linear(64, 8, device="meta")})


def hooked() -> nn.ModuleDict:
    model = two()
    model["up"].register_forward_hook(lambda *_: None)
    return model


@pytest.mark.parametrize(
    ("make", "arguments", "error", "words"),
    [
        (two, {"rank": 0}, qrs.ArgValueError, "rank: got 0, expected 1 or more"),
        (two, {"rank": 65}, qrs.ArgValueError, "rank: got 65 for module 'up' of (128, 64)"),
        (two, {"rank": 2.5}, qrs.ArgTypeError, "rank: got 2.5"),
        (two, {"rank": True}, qrs.ArgTypeError, "rank: got True"),
        (two, {"alpha": 0}, qrs.ArgValueError, "alpha: got 0"),
        (two, {"alpha": math.inf}, qrs.ArgValueError, "alpha: got inf"),
        (two, {"dropout": 1.0}, qrs.ArgValueError, "dropout: got 1.0"),
        (two, {"dropout": -0.5}, qrs.ArgValueError, "dropout: got -0.5"),
        (two, {"scheme": "nf4-g48"}, qrs.ArgValueError, "module 'up': group_size must divide"),
        (two, {"scheme": "nf5"}, qrs.ArgValueError, "'nf5'"),
        (two, {"scheme": 4}, qrs.ArgTypeError, "scheme"),
        (two, {"solver": "best"}, qrs.ArgValueError, "solver: got 'best'"),
        (two, {"targets": "up"}, qrs.ArgTypeError, "targets: got 'up', expected patterns: ['up']"),
        (two, {"targets": ["left.*"]}, qrs.ArgValueError, "targets: 'left.*' matches no layer"),
        (two, {"skip": ["left"]}, qrs.ArgValueError, "skip: 'left' matches no layer"),
        (two, {"targets": [3]}, qrs.ArgTypeError, "targets: has 3"),
        (two, {"skip": ["*"]}, qrs.ArgValueError, "model: has no layer to quantize"),
        (tied, {}, qrs.ArgValueError, "module 'head': its weight is that of 'table' too"),
        (tied, {"targets": ["table"]}, qrs.ArgValueError, "Embedding is not supported"),
        (tied, {"strict": True}, qrs.ArgValueError, "module 'table': Embedding is not supported"),
        (with_nan, {}, qrs.ArgValueError, "module 'down': x: 1 non-finite value"),
        (on_meta, {"targets": ["up"]}, qrs.ArgValueError, "module 'up': its weight is on 'meta'"),
        (hooked, {"strict": True}, qrs.ArgValueError, "module 'up': has hooks"),
        (lambda: nn.Linear(64, 64), {}, qrs.ArgValueError, "model: is a Linear itself"),
        (lambda: nn.Sequential(nn.ReLU()), {}, qrs.ArgValueError, "has no layer to quantize"),
        (lambda: nn.Sequential(nn.LazyLinear(4)), {"strict": True}, qrs.ArgValueError,
         "LazyLinear is not supported"),
        (lambda: "model", {}, qrs.ArgTypeError, "model: got str"),
    ],
)  # fmt: skip
def test_inject_refuses(make, arguments, error, words) -> None:
    model = make()
    before = repr(model)
    with pytest.raises(error) as caught:
        lora.inject(model, **({"rank": 4, "scheme": "nf4-g32"} | arguments))
    assert words in str(caught.value)
    assert repr(model) == before
    if isinstance(model, nn.Module):
        assert all(p.requires_grad for p in model.parameters())


def test_a_second_adapter_is_refused() -> None:
    model = two()
    lora.inject(model, 4)
    with pytest.raises(qrs.ArgValueError, match="module 'up' has an adapter"):
        lora.inject(model, 4)
    lora.merge(model)
    lora.inject(model, 4)  # after a merge it is a model as any other
    with pytest.raises(qrs.ArgValueError, match="has no adapters"):
        lora.merge(two())


@pytest.mark.parametrize(
    ("x", "error", "words"),
    [
        (torch.zeros(2, 65), qrs.ArgValueError, "got shape (2, 65), expected (..., 64)"),
        (torch.zeros(2, 64, dtype=torch.int64), qrs.ArgTypeError, "got torch.int64"),
        (torch.zeros(()), qrs.ArgValueError, "got shape ()"),
        (np.zeros((2, 64)), qrs.ArgTypeError, "got ndarray"),
        (torch.zeros(2, 64, device="meta"), qrs.DeviceError, "is on 'meta', expected 'cpu'"),
    ],
)
def test_inputs_that_do_not_fit_name_the_module(x, error, words) -> None:
    model = two()
    lora.inject(model, 4)
    with pytest.raises(error) as caught:
        model["up"](x)
    assert words in str(caught.value) and "module 'up'" in str(caught.value)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_gradients_that_are_not_finite_name_the_module(value) -> None:
    model = two()
    lora.inject(model, 4)
    y = model["up"](torch.ones(2, 64, requires_grad=True))
    dy = torch.ones_like(y)
    dy[1, 3] = value
    words = (
        r"module 'up', gradient of the output: has 1 NaN or infinite values, the first at \(1, 3\)"
    )
    with pytest.raises(qrs.ArgValueError, match=words):
        y.backward(dy)


def test_float16_leaves_infinities_to_loss_scaling() -> None:
    model = two()
    lora.inject(model, 4)
    x = torch.ones(2, 64, requires_grad=True, dtype=torch.float16)
    model["up"](x).backward(torch.full((2, 128), math.inf, dtype=torch.float16))
    assert not torch.isfinite(x.grad).all()


def test_layers_without_rows_are_no_error() -> None:
    model = two()
    lora.inject(model, 4)
    x = torch.zeros(0, 64, requires_grad=True)
    model["up"](x).sum().backward()
    assert x.grad.shape == (0, 64)


def test_subclasses_are_left_alone() -> None:
    attention = nn.MultiheadAttention(64, 4, batch_first=True)
    model = nn.ModuleDict({"attention": attention, "up": nn.Linear(64, 64)})
    report = lora.inject(model, 4)
    why = report.left["attention.out_proj"]
    assert "NonDynamicallyQuantizableLinear is not supported" in why
    attention(*[torch.randn(2, 3, 64)] * 3)  # reads out_proj.weight itself
