"""Adapters in files: PEFT reads what qrs writes, and the other way round."""

import json

import numpy as np
import pytest

import qrs

torch = pytest.importorskip("torch", reason="needs torch: pip install 'qrs-quant[torch]'")
from torch import nn  # noqa: E402

from qrs.torch import lora  # noqa: E402


class Network(nn.Module):
    """Two layers are called `up`; PEFT takes the name of one for both."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.block = nn.ModuleDict({"up": nn.Linear(64, 128), "down": nn.Linear(128, 64)})
        self.up = nn.Linear(64, 64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.up(self.block["down"](torch.tanh(self.block["up"](x))))


def adapted(**settings) -> Network:
    model = Network()
    lora.inject(model, 4, **settings)
    for layer in lora.injected(model).values():
        nn.init.normal_(layer.lora_B.weight, std=0.1)
    return model


def with_decoded_weights(model: nn.Module) -> Network:
    """The network in float, with what the packed weights stand for."""
    plain = Network()
    for name, layer in lora.injected(model).items():
        plain.get_submodule(name).weight.data = layer.weight.dequantize()
    return plain


@pytest.mark.parametrize("targets", [["*"], ["block.*"], ["up"]])
def test_peft_loads_what_is_saved(targets, tmp_path) -> None:
    peft = pytest.importorskip("peft", reason="needs peft, the oracle of this test")
    model = adapted(alpha=12, targets=targets)
    lora.save(model, tmp_path / "adapter", base_model="network")
    loaded = peft.PeftModel.from_pretrained(with_decoded_weights(model), str(tmp_path / "adapter"))
    adapters = [n for n, m in loaded.named_modules() if isinstance(m, peft.tuners.lora.LoraLayer)]
    assert adapters == [f"base_model.model.{name}" for name in lora.injected(model)]
    x = torch.randn(5, 64)
    assert torch.allclose(loaded(x), model(x), atol=1e-5)


def test_what_peft_saves_is_loaded(tmp_path) -> None:
    peft = pytest.importorskip("peft", reason="needs peft, the oracle of this test")
    config = peft.LoraConfig(r=3, lora_alpha=5, target_modules=["down", "block.up"])
    trained = peft.get_peft_model(Network(), config)
    for name, part in trained.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(part, std=0.1)
    trained.save_pretrained(str(tmp_path / "adapter"))
    model = Network()
    lora.load(model, tmp_path / "adapter", scheme="int8-axis0")
    assert set(lora.injected(model)) == {"block.up", "block.down"}
    reference = peft.PeftModel.from_pretrained(
        with_decoded_weights(model), str(tmp_path / "adapter")
    )
    x = torch.randn(5, 64)
    assert torch.allclose(model(x), reference(x), atol=1e-5)


def test_the_file_has_the_adapters_alone(tmp_path) -> None:
    model = adapted(targets=["up"])
    lora.save(model, tmp_path / "adapter")
    tensors = qrs.load(tmp_path / "adapter" / "adapter_model.safetensors")
    prefix = "base_model.model.up."
    assert list(tensors) == [f"{prefix}lora_A.weight", f"{prefix}lora_B.weight"]
    expected = model.up.lora_B.weight.detach().numpy()
    assert np.array_equal(tensors[f"{prefix}lora_B.weight"], expected)
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (config["peft_type"], config["r"], config["lora_alpha"]) == ("LORA", 4, 16)
    assert config["target_modules"] == "up"  # a regular expression: block.up ends with the name too


@pytest.mark.parametrize("injected", [False, True])
def test_round_trip(injected: bool, tmp_path) -> None:
    model = adapted(dropout=0.25)
    lora.save(model, tmp_path / "adapter")
    other = Network()
    if injected:
        lora.inject(other, 4, dropout=0.25)
    lora.load(other, tmp_path / "adapter")
    assert other.up.dropout.p == 0.25
    x = torch.randn(5, 64)
    assert torch.equal(other.eval()(x), model.eval()(x))


def changed(folder, **fields) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def rewritten(folder, change) -> None:
    path = folder / "adapter_model.safetensors"
    tensors = qrs.load(path)
    change(tensors)
    qrs.save(path, tensors)


A, B = "base_model.model.up.lora_A.weight", "base_model.model.up.lora_B.weight"


@pytest.mark.parametrize(
    ("spoil", "error", "words"),
    [
        (lambda f: changed(f, use_dora=True), qrs.FormatError, "use_dora is True, expected False"),
        (lambda f: changed(f, use_rslora=True), qrs.FormatError, "use_rslora"),
        (lambda f: changed(f, rank_pattern={"up": 2}), qrs.FormatError, "rank_pattern"),
        (lambda f: changed(f, peft_type="IA3"), qrs.FormatError, "peft_type is 'IA3'"),
        (lambda f: changed(f, modules_to_save=["head"]), qrs.FormatError, "modules_to_save"),
        (lambda f: changed(f, r=0), qrs.FormatError, "r is 0"),
        (lambda f: changed(f, r="4"), qrs.FormatError, "r is '4'"),
        (lambda f: changed(f, lora_alpha=0), qrs.FormatError, "lora_alpha is 0"),
        (lambda f: changed(f, lora_dropout=2), qrs.FormatError, "lora_dropout is 2"),
        (lambda f: changed(f, r=5), qrs.ArgValueError, "lora_A and lora_B of (4, 64) and (64, 4)"),
        (lambda f: (f / "adapter_config.json").write_text("[]"), qrs.FormatError, "an object"),
        (lambda f: (f / "adapter_config.json").write_text("{"), qrs.FormatError, "config.json"),
        (lambda f: (f / "adapter_config.json").unlink(), qrs.StorageError, "config.json"),
        (lambda f: (f / "adapter_model.safetensors").unlink(), qrs.StorageError, "safetensors"),
        (lambda f: rewritten(f, lambda t: t.pop(A)), qrs.FormatError, "'up' has lora_B alone"),
        (lambda f: rewritten(f, dict.clear), qrs.FormatError, "has no adapters"),
        (lambda f: rewritten(f, lambda t: t.update({"x.weight": t[A]})), qrs.FormatError,
         "'x.weight' is no lora_A"),
        (lambda f: rewritten(f, lambda t: t[B].fill(np.nan)), qrs.FormatError, "NaN"),
        (lambda f: rewritten(f, lambda t: t.update({A.replace("up", "left"): t[A],
         B.replace("up", "left"): t[B]})), qrs.ArgValueError, "'left', which is no module"),
        (lambda f: rewritten(f, lambda t: t.update({A.replace("up", "block"): t[A],
         B.replace("up", "block"): t[B]})), qrs.ArgValueError, "'block', which is ModuleDict"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("injected", [False, True])
def test_load_refuses(spoil, error, words, injected: bool, tmp_path) -> None:
    lora.save(adapted(targets=["up"]), tmp_path / "adapter")
    spoil(tmp_path / "adapter")
    model = Network()
    if injected:
        lora.inject(model, 4, targets=["up"])
    before = {name: t.clone() for name, t in model.state_dict().items()}
    with pytest.raises(error) as caught:
        lora.load(model, tmp_path / "adapter")
    assert words in str(caught.value)
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_other_layers_ranks_and_alphas_are_refused(tmp_path) -> None:
    lora.save(adapted(targets=["up"]), tmp_path / "adapter")
    for settings, words in (
        ({"targets": ["block.up"]}, "has adapter at 'block.up'"),
        ({"targets": ["up", "block.up"]}, "has adapter at 'block.up'"),
        ({"targets": ["up"], "alpha": 3}, "has rank and alpha (4, 3"),
    ):
        model = Network()
        lora.inject(model, 4, **settings)
        with pytest.raises(qrs.ArgValueError) as caught:
            lora.load(model, tmp_path / "adapter")
        assert words in str(caught.value)


def test_a_folder_that_is_there_is_kept(tmp_path) -> None:
    model = adapted()
    lora.save(model, tmp_path / "adapter")
    with pytest.raises(qrs.StorageError, match="exists"):
        lora.save(model, tmp_path / "adapter")
    with pytest.raises(qrs.ArgValueError, match="has no adapters"):
        lora.save(Network(), tmp_path / "other")
    assert not (tmp_path / "other").exists()
