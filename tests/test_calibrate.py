"""Calibration: what is kept does not depend on how activations arrive, and goes through files."""

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import qrs
from qrs import nn
from qrs.calibration import Calibration
from qrs.cli.commands import app
from qrs.observers import MSE, Entropy, Histogram, MinMax, MovingAverage, Percentile, from_state

RNG = np.random.default_rng(21)
X = RNG.standard_t(4, (60, 7)).astype(np.float32)
KINDS = [
    MinMax, MovingAverage, Histogram, MSE, Entropy, lambda: Percentile(99.0),
    lambda: MinMax(axis=-1), lambda: Histogram(axis=-1), lambda: MSE(axis=-1),
    lambda: Percentile(95.0, axis=1), lambda: Entropy(axis=-1),
    lambda: MovingAverage(axis=1, momentum=0.25),
]  # fmt: skip


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("make", KINDS, ids=range(len(KINDS)))
def test_an_observer_goes_on_where_it_was(make, tmp_path: Path) -> None:
    observer, there = make().update(X[:40]), make().update(X[:40])
    qrs.save(tmp_path / "o.safetensors", there.state())
    back = from_state(qrs.load(tmp_path / "o.safetensors"))
    assert same(back.state(), observer.state()) and repr(back) == repr(observer)
    assert same(back.update(X[40:]).state(), observer.update(X[40:]).state())
    scheme = "int8" if observer.axis is None else "int8-axis0"
    assert np.array_equal(back.qparams(scheme)[0], observer.qparams(scheme)[0])
    assert same(from_state(make().state()).state(), make().state())  # without data


@pytest.mark.parametrize("make", KINDS[7:11], ids=range(4))
def test_channels_are_observers_of_their_own(make) -> None:
    """A power of two between channels: bins of one width cost the smaller ones nothing."""
    x = X * np.float32([1, 1, 1, 1, 1, 1, 1])
    together = make().update(x[:20]).update(x[20:])
    merged = make().update(x[30:]).merge(make().update(x[:30]))
    assert same(together.state(), merged.state())
    scale, zero_point = together.qparams("uint8-axis0")
    for channel in range(7):
        alone = type(together)() if not hasattr(together, "percent") else Percentile(95.0)
        # Bins are as wide as the widest channel needs, so its extremes are shown to the others too.
        alone.update(x[:, channel])
        alone._grow(together.exponent)
        assert (scale[channel], zero_point[channel]) == alone.qparams("uint8")


def test_calibration_does_not_depend_on_the_split() -> None:
    whole = qrs.calibrate([{"a": X, "b": X[:, :3]}], hessian=True)
    parts = qrs.calibrate(
        lambda: ({"a": X[i : i + 7], "b": X[i : i + 7, :3]} for i in range(0, 60, 7)), hessian=True
    )
    assert whole.keys() == parts.keys() == {"a", "b"}
    for layer in whole:
        assert same(whole[layer].state(), parts[layer].state())
        assert np.allclose(whole.statistics[layer].hessian, parts.statistics[layer].hessian)
    assert (parts.batches["a"], parts.tokens["a"]) == (9, 60)
    statistics = whole.statistics["a"]
    x = X.astype(np.float64)
    assert np.allclose(statistics.hessian, x.T @ x) and statistics.n_tokens == 60
    assert np.allclose(statistics.diag, (x**2).sum(axis=0))
    assert np.allclose(statistics.absmean, abs(x).mean(axis=0))
    assert np.array_equal(statistics.absmax, abs(x).max(axis=0))


def test_machines_merge_and_files_carry_on(tmp_path: Path) -> None:
    first = qrs.calibrate([{"a.b": X[:30]}], hessian=True)
    second = qrs.calibrate([{"a.b": X[30:], "c": X}], hessian=True)
    first.save(tmp_path / "one.safetensors")
    back = Calibration.load(tmp_path / "one.safetensors")
    for calibration in (first, back):
        calibration.merge(second)
        whole = qrs.calibrate([{"a.b": X}])
        assert same(calibration["a.b"].state(), whole["a.b"].state())
        assert calibration.tokens == {"a.b": 60, "c": 60}
    assert np.array_equal(first.statistics["a.b"].hessian, back.statistics["a.b"].hessian)


def test_ranges_go_into_the_checkpoint_of_layers(tmp_path: Path) -> None:
    calibration = qrs.calibrate([{"fc": X}])
    w = RNG.standard_normal((5, 7)).astype(np.float32)
    tensors = {"fc.weight": qrs.quantize(w, "int8-axis0")}
    qrs.save(tmp_path / "m", tensors | calibration.activation_parameters("uint8"))
    state = qrs.load(tmp_path / "m")
    layer = nn.Linear.from_state(state, "fc.", activation="uint8")
    by_hand = nn.Linear(tensors["fc.weight"], activation=nn.Static.of(calibration["fc"], "uint8"))
    assert np.array_equal(layer(X), by_hand(X))


def test_files_are_batches(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", **{"enc.fc": X[:30]})
    qrs.save(tmp_path / "b.safetensors", {"enc.fc": X[30:]})
    found = qrs.calibrate([tmp_path / "a.npz", str(tmp_path / "b.safetensors")], observer=MinMax)
    assert same(found["enc.fc"].state(), MinMax().update(X).state())
    output = tmp_path / "stats.safetensors"
    files = [str(tmp_path / "a.npz"), str(tmp_path / "b.safetensors")]
    run = CliRunner().invoke(app, ["calibrate", *files, "-o", str(output), "--hessian", "--json"])
    assert run.exit_code == 0, run.output
    (row,) = json.loads(run.stdout)["layers"]
    scale, zero_point = MSE().update(X).qparams("uint8")
    assert (row["layer"], row["tokens"], row["batches"]) == ("enc.fc", 60, 2)
    assert (row["scale"], row["zero_point"]) == (float(scale), int(zero_point))
    assert Calibration.load(output).statistics["enc.fc"].n_tokens == 60
    table = CliRunner().invoke(app, ["calibrate", *files, "-o", str(output)])
    assert table.exit_code == 0 and "enc.fc" in table.stdout and "zero_point" in table.stdout


def test_p15_what_calibration_refuses(tmp_path: Path) -> None:
    nan = X.copy()
    nan[3, 2] = np.nan
    with pytest.raises(qrs.ArgValueError, match=r"layer 'b', batch 1: 1 non-finite .* at \(3, 2\)"):
        qrs.calibrate([{"a": X, "b": X}, {"a": X, "b": nan}])
    for empty in ([], [{}], lambda: iter(())):
        with pytest.raises(qrs.ArgValueError, match="batches: are empty"):
            qrs.calibrate(empty)
    with pytest.raises(qrs.ArgValueError, match="batches: have no missing"):
        qrs.calibrate([{"a": X}], layers=["a", "missing"])
    for wrong in (3, [X], ["a.txt"]):
        with pytest.raises(qrs.QrsError, match="batch"):
            qrs.calibrate(wrong)
    with pytest.raises(qrs.ArgValueError, match=r"layer 'a', batch 1.*has 3 feat"):
        qrs.calibrate([{"a": X}, {"a": X[:, :3]}], hessian=True)
    (tmp_path / "bad.npz").write_bytes(b"no zip")
    with pytest.raises(qrs.FormatError, match=r"bad\.npz: is no \.npz file"):
        qrs.calibrate(tmp_path / "bad.npz")
    with pytest.raises(qrs.ArgValueError, match="is no state of an observer"):
        from_state({"lo": X})
    with pytest.raises(qrs.ArgValueError, match="has seen no data"):
        qrs.Statistics().diag  # noqa: B018
    with pytest.raises(qrs.ArgTypeError, match="other: got"):
        Histogram().merge(Histogram(axis=0))
    with pytest.raises(qrs.ArgValueError, match="no common order"):
        MovingAverage().merge(MovingAverage())


def test_p15_what_is_reported() -> None:
    zeros = np.zeros((3, 7), np.float32)
    found = qrs.calibrate([{"silent": zeros, "few": X[:2]}], hessian=True)
    text = "\n".join(found.warnings())
    assert "silent: the input always zero, scale 1" in text
    assert "few: 2 tokens for 7 features, the Hessian is singular" in text
    assert found.qparams("uint8")["silent"][0] == 1
    by_channel = qrs.calibrate([{"a": X * (np.arange(7) > 1)}], observer=lambda: MinMax(axis=1))
    assert by_channel.warnings() == ["a: 2 of 7 channels always zero, scale 1"]
    one = qrs.calibrate([{"a": X[0]}])  # one row is a calibration
    assert one.tokens["a"] == 1 and not one.warnings()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "-o OUT is missing"),
        (("-o", "x.bin"), "OUT has to end in .safetensors"),
        (("-o", "x.safetensors", "--observer", "best"), "--observer: got 'best'"),
        (("-o", "x.safetensors", "--scheme", "int99"), "bits: got 99"),
    ],
    ids=range(4),
)
def test_the_command_refuses(arguments: tuple, message: str) -> None:
    run = CliRunner().invoke(app, ["calibrate", "a.npz", *arguments])
    assert run.exit_code == 2 and message in run.output


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (("--scheme", "kmeans4"), 2, "scheme: got kmeans4, expected one with scales"),
        (("--scheme", "int8-axis0"), 2, "expected one that is PerTensor"),
        (("-o", "missing/c.safetensors"), 1, "No such file or directory: 'missing'"),
        (("--observer", "histogram"), 0, ""),
    ],
    ids=range(4),
)
def test_what_the_command_cannot_do_is_known_before_any_work(
    options: tuple[str, ...], code: int, words: str, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    np.savez("a.npz", fc=X)
    given = options if "-o" in options else ("-o", "c.safetensors", *options)
    result = CliRunner().invoke(app, ["calibrate", "a.npz", *given])
    assert result.exit_code == code and words in result.output, result.output
    assert Path("c.safetensors").exists() == (code == 0)
