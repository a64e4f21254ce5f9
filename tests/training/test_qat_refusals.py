"""What quantization-aware training refuses, and freezing."""

import copy

import pytest

import qrs
from refusals import refused

torch = pytest.importorskip("torch", reason="needs torch: pip install 'qrs-quant[torch]'")
from torch import nn  # noqa: E402

from qrs.torch import (  # noqa: E402
    FreezeSchedule,
    check_optimizer,
    checkpoint,
    convert,
    freeze,
    prepare_qat,
)


def model_of(*modules: nn.Module) -> nn.Sequential:
    return nn.Sequential(*modules)


def unchanged(model: nn.Module, call, *arguments, **options) -> str:
    """The message of an error after which the model is what it was."""
    kinds = [type(m) for m in model.modules()]
    state = copy.deepcopy(model.state_dict())
    with pytest.raises(qrs.QrsError) as caught:
        call(model, *arguments, **options)
    assert [type(m) for m in model.modules()] == kinds
    assert all(torch.equal(a, b) for a, b in zip(state.values(), model.state_dict().values(),
                                                 strict=True))  # fmt: skip
    return str(caught.value)


@pytest.mark.parametrize(
    ("model", "arguments", "options", "words"),
    [
        (lambda: model_of(nn.ReLU()), (), {}, "model: has no layer to quantize"),
        (lambda: nn.Linear(4, 4), (), {}, "model: is a Linear itself"),
        (lambda: model_of(nn.Linear(4, 4), nn.Bilinear(2, 2, 2)), (), {"strict": True},
         "module '1': Bilinear is not supported"),
        (lambda: model_of(nn.Linear(4, 4)), ("int9-static",), {}, "bits: got 9"),
        (lambda: model_of(nn.Linear(4, 4)), ("int8-axis1-static",), {}, "module '0'"),
        (lambda: model_of(nn.Linear(4, 4)), ("int4-g2-static",), {}, "module '0': activation"),
        (lambda: model_of(nn.Linear(4, 4)), ("nf4-g2-dynamic",), {}, "module '0'"),
        (lambda: model_of(nn.Linear(4, 4)), ("keep",), {}, "recipe: leaves every layer"),
        (lambda: model_of(nn.Conv2d(1, 1, 1)), ("int8-axis0",), {}, "recipe: leaves every layer"),
        (lambda: model_of(nn.Linear(4, 4)), ("nf4-g2",), {"scales": "learned"}, "scheme: got nf4"),
        (lambda: model_of(nn.Linear(4, 4)), (), {"scales": "gptq"}, "scales: got 'gptq'"),
        (lambda: model_of(nn.Linear(4, 4)), (), {"inputs": "int8-axis0"}, "inputs: got int8-axis0"),
        (lambda: model_of(nn.Linear(4, 4)), (), {"inputs": "nf4"}, "inputs: got nf4"),
        (lambda: model_of(nn.Linear(4, 4)), (), {"observer": dict}, "observer: got"),
        (lambda: model_of(nn.Linear(4, 4).half()), (), {}, "module '0', weight: is torch.float16"),
        (lambda: model_of(nn.Embedding(4, 4, sparse=True)), (), {}, "module '0': has sparse"),
        (lambda: model_of(nn.Linear(4, 4)), (), {"fold": {"0": "1"}}, "fold: has '0'"),
        (lambda: model_of(nn.Linear(4, 4)), (), {"fold": {"9": "1"}}, "fold: has '9'"),
        (lambda: model_of(nn.Linear(4, 4)), (), {"fold": 1}, "fold: got 1"),
    ],
)  # fmt: skip
def test_what_cannot_be_prepared(model, arguments, options, words) -> None:
    assert words in unchanged(model(), prepare_qat, *arguments, **options)


def test_weights_that_are_not_finite() -> None:
    model = model_of(nn.Linear(4, 4), nn.Linear(4, 4))
    with torch.no_grad():
        model[1].weight[2, 1] = float("nan")
    for scales in ("learned", "minmax"):
        with pytest.raises(qrs.ArgValueError, match="module '1'"):
            prepare_qat(model, "int8-static", scales=scales)
        assert type(model[0]) is nn.Linear


def test_folds_that_do_not_fit() -> None:
    def model() -> nn.Sequential:
        return model_of(nn.Conv2d(1, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1))

    assert "'1', which has 4 features" in unchanged(model(), prepare_qat, fold={"2": "1"})
    found = unchanged(model(), prepare_qat, fold={"0": "1", "2": "1"})
    assert "fold: " in found
    shared = nn.ModuleDict({"a": nn.Conv2d(1, 4, 1), "b": nn.Conv2d(1, 4, 1)})
    shared["n"] = nn.BatchNorm2d(4)
    shared["b"].weight = shared["a"].weight
    assert "whose weight is shared" in unchanged(shared, prepare_qat, fold={"a": "n"})

    class Untraceable(nn.Sequential):
        def forward(self, x: "torch.Tensor") -> "torch.Tensor":
            return super().forward(x) if x.sum() > 0 else x

    untraceable = Untraceable(nn.Conv2d(1, 4, 1), nn.BatchNorm2d(4))
    assert "cannot be traced" in unchanged(untraceable, prepare_qat)
    assert prepare_qat(untraceable, fold=False).layers == {"0": "int8-axis0-static, learned steps"}


def test_weights_that_are_shared_with_others() -> None:
    model = nn.ModuleDict({"a": nn.Linear(4, 4), "b": nn.Linear(4, 4)})
    model["b"].weight = model["a"].weight
    assert "shares its weight" in unchanged(model, prepare_qat, skip=["b"])
    assert "shares its weight" in unchanged(
        model, prepare_qat, {"a": "int8-static", "b": "int4-axis0-static"}
    )


def test_what_is_prepared_already_or_not_yet() -> None:
    model = model_of(nn.Linear(4, 4))
    for call in (convert, freeze, FreezeSchedule):
        refused(call, model, arg="model")
    prepare_qat(model)
    assert "is prepared already" in unchanged(model, prepare_qat)
    assert "module '0' is prepared" in unchanged(model, checkpoint)
    assert "module '0': inputs: have not been seen" in unchanged(model, convert)
    for call in (prepare_qat, convert, checkpoint, freeze):
        refused(call, 3, arg="model", error=qrs.ArgTypeError)


def test_inputs_that_do_not_fit() -> None:
    model = model_of(nn.Linear(4, 4))
    prepare_qat(model)
    arg = "module '0', x"
    refused(model, [1.0], arg=arg, error=qrs.ArgTypeError)
    refused(model, torch.ones(2, 4).half(), arg=arg, error=qrs.ArgTypeError)
    refused(model, torch.ones(2, 4).int(), arg=arg, error=qrs.ArgTypeError)
    refused(model, torch.ones(2, 4, device="meta"), arg=arg, error=qrs.DeviceError)
    refused(model, torch.ones(2, 3), arg=arg)
    with pytest.raises(qrs.ArgValueError, match=r"module '0': x: 1 non-finite"):
        model(torch.tensor([[1.0, float("nan"), 2.0, 3.0]]))
    assert model[0].inputs.observer.lo is None
    model.eval()
    with pytest.raises(qrs.ArgValueError, match="have not been seen yet"):
        model(torch.ones(2, 4))
    folded = model_of(nn.Linear(4, 4), nn.BatchNorm1d(4))
    prepare_qat(folded, "int8-axis0")
    refused(folded, torch.ones(2, 4, 4), arg=arg)


def test_gradients_that_are_nan_are_found_in_the_next_pass() -> None:
    for parameter in ("0.weight", "0.quantizer.step", "0.bias"):
        model = model_of(nn.Linear(4, 4))
        prepare_qat(model, "int8-axis0")
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        model(torch.ones(2, 4)).sum().backward()
        model.get_parameter(parameter).grad.view(-1)[0] = float("nan")
        optimizer.step()
        name = parameter.removeprefix("0.")
        if name == "bias":
            with pytest.raises(qrs.ArgValueError, match="module '0'"):
                convert(model)
            continue
        with pytest.raises(qrs.ArgValueError, match="has NaN or infinite values, and so") as caught:
            model(torch.ones(2, 4))
        assert caught.value.arg == f"module '0', {name}"


def test_an_optimizer_of_before() -> None:
    """It trains the weights and not their steps: found by name, and after some updates anyway."""
    model = model_of(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    prepare_qat(model, "int4-static")
    message = refused(check_optimizer, model, optimizer, arg="optimizer")
    assert "lacks 0.quantizer.step, 2.quantizer.step" in message
    refused(check_optimizer, model, "SGD", arg="optimizer", error=qrs.ArgTypeError)
    with pytest.raises(qrs.ArgValueError, match=r"module '0', optimizer: has moved the weight 20"):
        for _ in range(30):
            optimizer.zero_grad()
            model(torch.randn(4, 4)).square().sum().backward()
            optimizer.step()
    freeze(model, ranges=False, steps=True)
    check_optimizer(model, optimizer)
    for _ in range(30):  # steps that are not to be trained are no fault
        optimizer.zero_grad()
        model(torch.randn(4, 4)).square().sum().backward()
        optimizer.step()
    fresh = torch.optim.SGD(model.parameters(), 0.1)
    convert(model)
    assert "the model has no more" in refused(check_optimizer, model, fresh, arg="optimizer")


def test_a_schedule() -> None:
    model = model_of(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2))
    prepare_qat(model)
    schedule = FreezeSchedule(model, inputs=1, ranges=2, norms=3, steps=4)
    layer, seen = model[0], []
    for _ in range(5):
        flags = layer.inputs.quantizing, layer.inputs.observing, layer.norm_frozen == 0
        seen.append([*map(bool, flags), layer.quantizer.step.requires_grad])
        model(torch.randn(2, 1, 3, 3))
        schedule.step()
    assert seen == [
        [False, True, True, True], [True, True, True, True], [True, False, True, True],
        [True, False, False, True], [True, False, False, False],
    ]  # fmt: skip
    other = model_of(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2))
    prepare_qat(other)
    again = FreezeSchedule(other, inputs=1, ranges=2, norms=3, steps=4)
    again.load_state_dict(schedule.state_dict())
    assert bool(other[0].norm_frozen) and not other[0].quantizer.step.requires_grad
    refused(FreezeSchedule, model, ranges=-1, arg="ranges")
    refused(FreezeSchedule, model, norms=1.5, arg="norms", error=qrs.ArgTypeError)
    refused(again.load_state_dict, {}, arg="state", error=qrs.ArgTypeError)


def test_states_that_are_none() -> None:
    model = model_of(nn.Linear(4, 4))
    prepare_qat(model)
    model(torch.ones(2, 4))
    state = model.state_dict()
    key = "0.inputs._extra_state"
    for wrong in (torch.zeros(3, dtype=torch.uint8), torch.zeros(0, dtype=torch.uint8)):
        with pytest.raises(qrs.ArgValueError, match="no state of an observer"):
            model.load_state_dict(state | {key: wrong})
