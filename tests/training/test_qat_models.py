"""Quantization-aware training of models as they are: residuals, depthwise, transformers."""

import copy

import pytest

torch = pytest.importorskip("torch", reason="needs torch: pip install 'qrs-quant[torch]'")
from torch import nn  # noqa: E402
from torch.utils.checkpoint import checkpoint as recomputed  # noqa: E402

from qrs.torch import FreezeSchedule, check_optimizer, convert, prepare_qat  # noqa: E402


class Block(nn.Module):
    """A depthwise and a pointwise convolution beside what goes around them."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.pointwise = nn.Conv2d(channels, channels, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)

    def forward(self, x: "torch.Tensor") -> "torch.Tensor":
        y = nn.functional.relu6(self.norm1(self.depthwise(x)))
        return torch.relu(x + self.norm2(self.pointwise(y)))


class Residual(nn.Module):
    """Two such blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2)
        self.blocks = nn.ModuleList([Block(8), Block(8)])
        self.head = nn.Linear(8, 5)

    def forward(self, x: "torch.Tensor") -> "torch.Tensor":
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean((2, 3)))


def batch() -> tuple["torch.Tensor", "torch.Tensor"]:
    torch.manual_seed(3)
    return torch.randn(16, 3, 16, 16), torch.arange(16) % 5


def test_residuals_and_depthwise_convolutions() -> None:
    x, labels = batch()
    model = Residual()
    layers = prepare_qat(model, "int8-static").layers
    assert layers["blocks.1.depthwise"].endswith("folds 'blocks.1.norm1'")
    assert [" folds " in how for how in layers.values()] == [False, True, True, True, True, False]
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    check_optimizer(model, optimizer)
    schedule = FreezeSchedule(model, ranges=20, norms=20)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), labels)
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    model.eval()
    expected = model(x).detach()
    convert(model)
    assert torch.allclose(model(x), expected, atol=0.05 * float(expected.abs().max()))


def test_gradient_checkpoints_copies_and_averages() -> None:
    """What training code does to models."""
    x, labels = batch()
    model = Residual()
    prepare_qat(model, "int8-static", scales="minmax")
    model(x)
    model.requires_grad_(True)
    plain, again = copy.deepcopy(model), copy.deepcopy(model)
    nn.functional.cross_entropy(plain(x), labels).backward()
    y = recomputed(again, x, use_reentrant=False)
    nn.functional.cross_entropy(y, labels).backward()
    for (name, p), q in zip(plain.named_parameters(), again.parameters(), strict=True):
        assert torch.allclose(p.grad, q.grad, atol=0.05 * float(p.grad.abs().max()) + 1e-6), name
    average = torch.optim.swa_utils.AveragedModel(model)
    average.update_parameters(model)
    assert torch.equal(average.eval()(x), model.eval()(x))
    assert model.double()(x.double()).dtype == torch.float64


def test_a_transformer_of_hugging_face() -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=100, hidden_size=64, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=128, num_labels=3,
    )  # fmt: skip
    model = transformers.BertForSequenceClassification(config)
    recipe = {"*embeddings*": "int8-axis0", "classifier": "keep", "*": "int4-g32-dynamic"}
    report = prepare_qat(model, recipe)
    assert len(report.layers) == 16 and report.left == {"classifier": "kept"}
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
    tokens, labels = torch.randint(0, 100, (16, 12)), torch.arange(16) % 3
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = model(input_ids=tokens, labels=labels).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
    model.eval()
    with torch.no_grad():
        expected = model(input_ids=tokens).logits
        convert(model)
        assert torch.allclose(model(input_ids=tokens).logits, expected, atol=1e-3)
