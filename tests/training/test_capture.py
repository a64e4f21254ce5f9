"""What is captured of a model that runs, against sums over inputs found in other ways."""

import sys
from pathlib import Path

import numpy as np
import pytest

import qrs
from qrs.observers import MinMax, Percentile

torch = pytest.importorskip("torch", reason="needs torch: pip install 'qrs-quant[torch]'")
from torch import nn  # noqa: E402

from qrs.torch import capture, quantize_  # noqa: E402

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


class Masked(nn.Module):
    """A network that pads."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.table = nn.Embedding(20, 8)
        self.up = nn.Linear(8, 16)
        self.pool = nn.Linear(16, 4)

    def forward(self, tokens: torch.Tensor, attention_mask: torch.Tensor | None = None):
        return self.pool(torch.tanh(self.up(self.table(tokens)))[:, 0])


def has_hooks(model: nn.Module) -> bool:
    return any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())


BATCHES = [torch.randint(0, 20, (3, 5)), torch.randint(0, 20, (2, 7))]


@pytest.mark.parametrize(
    "batches",
    [
        BATCHES,
        [(b,) for b in BATCHES],
        [{"tokens": b} for b in BATCHES],
        lambda: iter(BATCHES),
        torch.utils.data.DataLoader([(b,) for b in BATCHES], collate_fn=lambda samples: samples[0]),
    ],
    ids=["tensors", "tuples", "mappings", "callable", "loader"],
)
def test_batches_of_every_kind(batches) -> None:
    model = Masked()
    calibration = capture(model, batches, observer=MinMax)
    x = torch.cat([model.table(b).reshape(-1, 8) for b in BATCHES]).detach().numpy()
    assert set(calibration) == {"up", "pool"}
    expected = qrs.Statistics()
    for batch in BATCHES:
        expected.update(model.table(batch).detach().numpy())
    assert np.array_equal(calibration.statistics["up"].hessian, expected.hessian)
    assert calibration.tokens == {"up": 29, "pool": 5}
    assert calibration.batches == {"up": 2, "pool": 2}
    assert float(calibration["up"].hi) == x.max()
    assert not has_hooks(model)


def test_padding_does_not_count() -> None:
    model = Masked()
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 1, 1]])
    batch = {"tokens": BATCHES[0], "attention_mask": mask}
    rows = model.table(BATCHES[0]).detach().numpy()[mask.numpy() == 1]
    expected = qrs.Statistics().update(rows)
    for how in ("attention_mask", lambda batch: batch["attention_mask"].bool()):
        calibration = capture(model, [batch], mask=how)
        assert calibration.tokens == {"up": 10, "pool": 3}  # the pooled rows are no positions
        assert np.array_equal(calibration.statistics["up"].hessian, expected.hessian)
    flat = nn.Sequential(nn.Flatten(0, 1), nn.Linear(8, 4))
    x = model.table(BATCHES[0]).detach()
    calibration = capture(flat, [x], mask=lambda _: mask)
    assert np.array_equal(calibration.statistics["1"].hessian, expected.hessian)


@pytest.mark.parametrize(
    "conv",
    [
        lambda: nn.Conv2d(3, 4, (2, 3), stride=(1, 2), padding=(0, 1), dilation=(2, 1)),
        lambda: nn.Conv2d(3, 4, 3, padding="same", padding_mode="reflect"),
        lambda: nn.Conv1d(3, 4, 3, stride=2, padding=2),
        lambda: nn.Conv1d(3, 4, 3, padding="same", dilation=2),
    ],
    ids=["2d", "2d-reflect", "1d", "1d-same"],
)
def test_windows_of_convolutions_are_what_the_weight_multiplies(conv) -> None:
    from qrs.torch.capture import windows

    module = conv().double()
    x = torch.randn(2, 3, *(8,) * (module.weight.ndim - 2), dtype=torch.float64)
    model = nn.Sequential(module)
    calibration = capture(model, [x, x[0]], hessian=True)  # the second is an image without a batch
    rows = torch.cat([windows(module, image) for image in x])
    y = rows.double() @ module.weight.flatten(1).T + module.bias
    expected = module(x).movedim(1, -1).reshape(-1, 4)
    assert torch.allclose(y, expected, atol=1e-6)
    h = (
        torch.cat([rows, windows(module, x[0])]).double().T
        @ torch.cat([rows, windows(module, x[0])]).double()
    )
    assert np.allclose(calibration.statistics["0"].hessian, h.detach().numpy(), atol=1e-6)
    positions = int(np.prod(x.shape[2:]))
    assert (calibration.features["0"], calibration.tokens["0"]) == (3, 3 * positions)
    without = capture(model, [x], patches=False)
    assert not without.statistics and len(without) == 1


def test_images_of_several_sizes_and_groups() -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3, groups=2))
    calibration = capture(model, [torch.randn(1, 4, 8, 8), torch.randn(1, 4, 9, 6)])
    assert set(calibration.statistics) == {"0"} and set(calibration) == {"0", "1"}


def test_layers_by_pattern_and_by_name() -> None:
    model = Masked()
    assert set(capture(model, BATCHES, layers=["u*"])) == {"up"}
    model.norm = nn.LayerNorm(8)
    model.up = nn.Sequential(model.norm, model.up)
    calibration = capture(
        model, BATCHES, layers=["norm", "up.1"], observer=lambda: Percentile(99.0)
    )
    assert set(calibration) == {"norm", "up.1"}
    assert isinstance(calibration["norm"], Percentile)
    assert not capture(model, BATCHES, hessian=False).statistics


def test_modes_and_hooks_come_back_after_errors_too() -> None:
    model = Masked()
    model.train()
    model.pool.eval()
    kept = model.up.register_forward_pre_hook(lambda *_: None)
    with pytest.raises(IndexError):
        capture(model, [torch.tensor([[99]])])
    with pytest.raises(ZeroDivisionError):
        capture(model, (1 / 0 for _ in range(2)))
    assert (model.training, model.up.training, model.pool.training) == (True, True, False)
    assert list(model.up._forward_pre_hooks) == [kept.id]
    assert not model.pool._forward_pre_hooks
    capture(model, BATCHES)
    assert model.training and not model.pool.training


def test_runs_of_the_callers_own() -> None:
    pairs = [(batch, torch.zeros(1)) for batch in BATCHES]
    calibration = capture(Masked(), pairs, run=lambda model, pair: model(pair[0]))
    assert calibration.tokens["up"] == 29


def test_half_precision_is_observed_as_it_is() -> None:
    model = nn.Sequential(nn.Linear(8, 4)).to(torch.bfloat16)
    x = torch.randn(5, 8).to(torch.bfloat16)
    calibration = capture(model, [x])
    expected = qrs.Statistics().update(x.float().numpy())
    assert np.array_equal(calibration.statistics["0"].hessian, expected.hessian)


class Forgetful(Masked):
    """Never runs one of its layers."""

    def __init__(self) -> None:
        super().__init__()
        self.never = nn.Linear(8, 8)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"model": "model"}, qrs.ArgTypeError, "model: got str"),
        ({"model": nn.ReLU()}, qrs.ArgValueError, "model: has no layer to observe"),
        ({"batches": []}, qrs.ArgValueError, "batches: never ran up, pool, never"),
        ({"batches": BATCHES[0]}, qrs.ArgTypeError, "batches: got Tensor"),
        ({"batches": {"tokens": BATCHES[0]}}, qrs.ArgTypeError, "batches: got dict"),
        ({"batches": 3}, qrs.ArgTypeError, "batches: got int"),
        ({"layers": "up"}, qrs.ArgTypeError, "layers: got 'up'"),
        ({"layers": ["down"]}, qrs.ArgValueError, "layers: 'down' matches no layer"),
        ({"layers": ["up", "never"]}, qrs.ArgValueError, "batches: never ran never"),
        ({"layers": ["table"]}, qrs.ArgTypeError, "layer 'table', batch 0: its input is torch.int"),
        ({"observer": 3}, qrs.ArgTypeError, "observer: got 3"),
        ({"observer": lambda: 3}, qrs.ArgTypeError, "observer: made 3"),
        ({"mask": 3}, qrs.ArgTypeError, "mask: got 3"),
        ({"mask": "attention_mask"}, qrs.ArgValueError, "mask, batch 0: got Tensor"),
        ({"mask": lambda b: b[0]}, qrs.ArgValueError, "mask, batch 0: got shape (5,)"),
        ({"mask": lambda b: b * 0.5 + 2}, qrs.ArgValueError, "booleans, or 0 and 1"),
    ],
)
def test_capture_refuses(arguments, error, words) -> None:
    model = Forgetful()
    settings = {"model": model, "batches": BATCHES} | arguments
    with pytest.raises(error) as caught:
        capture(**settings)
    assert words in str(caught.value)
    assert not has_hooks(model)


def test_values_that_are_not_finite_name_layer_and_batch() -> None:
    model = Masked()
    batches = [BATCHES[0], BATCHES[1]]
    with torch.no_grad():
        model.table.weight[int(BATCHES[1][1, 2]), 3] = torch.nan
    seen = [bool(torch.isnan(model.table(b)).any()) for b in batches]
    with pytest.raises(qrs.ArgValueError, match=f"layer 'up', batch {seen.index(True)}"):
        capture(model, batches)


def test_a_transformers_model_from_a_config() -> None:
    transformers = pytest.importorskip("transformers", reason="needs transformers, the subject")
    torch.manual_seed(5)
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=64, max_position_embeddings=16,
    )  # fmt: skip
    model = transformers.BertModel(config)
    mask = torch.tensor([[1] * 6, [1] * 4 + [0] * 2])
    batch = {"input_ids": torch.randint(0, 50, (2, 6)), "attention_mask": mask}
    found: list[torch.Tensor] = []
    dense = model.encoder.layer[1].intermediate.dense
    handle = dense.register_forward_hook(lambda module, args, out: found.append(args[0]))
    calibration = capture(model, [batch], mask="attention_mask")
    handle.remove()
    assert len(calibration) == 2 * 6 + 1
    name = "encoder.layer.1.intermediate.dense"
    expected = qrs.Statistics().update(found[0][mask.bool()].detach().numpy())
    assert np.array_equal(calibration.statistics[name].hessian, expected.hessian)
    report = quantize_(
        model, {"encoder.*": "int4-g32"}, solver="gptq", statistics=calibration, skip=["pooler*"]
    )
    assert len(report.layers) == 12
    assert model(**batch).last_hidden_state.isfinite().all()


def test_minilm_gives_what_its_own_example_captures(monkeypatch) -> None:
    transformers = pytest.importorskip("transformers", reason="needs transformers, the subject")
    pytest.importorskip("tokenizers", reason="needs tokenizers, which the example reads texts with")
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.delitem(sys.modules, "minilm", raising=False)
    minilm = pytest.importorskip("minilm")
    try:
        folder = minilm.find_model()
    except SystemExit as error:
        pytest.skip(str(error))
    tensors, encode = minilm.load_model()
    encoded = encode(minilm.prose(["email.message", "threading"], 40))
    expected = minilm.calibrated(tensors, encoded, hessian=True, observer=MinMax)
    model = transformers.BertModel.from_pretrained(str(folder))
    batches = [
        {"input_ids": torch.from_numpy(tokens), "attention_mask": torch.from_numpy(mask).long()}
        for _, tokens, mask in minilm.batches(encoded)
    ]
    found = capture(model, batches, layers=["encoder.*"], observer=MinMax, mask="attention_mask")
    assert len(found) == 36
    for name in found:
        joined = name.rpartition(".self.")[0] + ".self" if ".self." in name else name
        mine, theirs = found.statistics[name], expected.statistics[joined]
        assert mine.n_tokens == theirs.n_tokens
        # float32 products of up to 1536 terms, in other orders, through six layers
        scale = np.sqrt(np.outer(theirs.diag, theirs.diag))
        assert (np.abs(mine.hessian - theirs.hessian) <= 1e-4 * scale + 1e-9).all()
        for mine_end, their_end in ((found[name].lo, expected[joined].lo),
                                    (found[name].hi, expected[joined].hi)):  # fmt: skip
            assert float(mine_end) == pytest.approx(float(their_end), rel=1e-4)
