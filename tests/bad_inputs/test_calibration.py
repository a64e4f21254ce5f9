"""Calibrations, observers and statistics: what is refused, and that a refusal changes nothing."""

import numpy as np
import pytest

import qrs
from qrs import nn
from qrs import observers as ob
from refusals import refused

ONES = np.ones((2, 3), np.float32)
EACH = [{"fc": ONES}]


def calibration(**layers: np.ndarray) -> qrs.Calibration:
    return qrs.calibrate([layers], hessian=True)


def test_a_batch_of_other_features_changes_nothing() -> None:
    for hessian in (False, True):
        c = qrs.calibrate(EACH, hessian=hessian)
        before = c["fc"].state()
        other = np.full((2, 4), 99, np.float32)
        refused(c.update, {"fc": other}, ob.MSE, hessian, 7, arg="layer 'fc', batch 7")
        assert c.tokens["fc"] == 2 and c.batches["fc"] == 1
        assert all(np.array_equal(c["fc"].state()[name], before[name]) for name in before)
        refused(qrs.calibrate, [*EACH, {"fc": other}], arg="layer 'fc', batch 1")


def test_a_new_layer_at_fault_does_not_appear() -> None:
    c = calibration(fc=ONES)
    refused(c.update, {"new": ONES * np.nan}, ob.MSE, True, 1, arg="layer 'new', batch 1")
    assert list(c) == ["fc"] == list(c.statistics)


def test_a_merge_is_of_all_layers_or_of_none() -> None:
    c, other = calibration(a=ONES, b=ONES), calibration(a=ONES, b=np.ones((2, 4), np.float32))
    with pytest.raises(qrs.ArgValueError, match="layer 'b'"):
        c.merge(other)
    assert c.tokens == {"a": 2, "b": 2} and c.statistics["a"].n_tokens == 2
    refused(c.merge, {}, error=qrs.ArgTypeError, arg="other")


@pytest.mark.parametrize("name", ["enc.observer.fc", "a.statistics.b", "x.calibration.counts", "."])
def test_layers_may_be_called_by_any_word(name: str, tmp_path) -> None:
    c = calibration(**{name: ONES})
    c.save(tmp_path / "c.safetensors")
    again = qrs.Calibration.load(tmp_path / "c.safetensors")
    assert list(again) == [name] == list(again.statistics)
    assert again.tokens == c.tokens and again.features == {name: 3}


@pytest.mark.parametrize(
    ("change", "value"),
    [
        ("fc.statistics.diag", np.ones(4)), ("fc.statistics.hessian", np.ones((3, 2))),
        ("fc.statistics.absmax", np.array([1, np.nan, 1])),
        ("fc.calibration.counts", np.ones(1, np.int64)),
        ("fc.observer.counts", np.ones(7, np.int64)),
        ("fc.observer.counts", np.full(4096, -1, np.int64)),
        ("fc.observer.counts", np.ones(4096)), ("fc.observer.lo", np.ones(2, np.float32)),
        ("fc.observer.settings", np.frombuffer(b"[" * 9999, np.uint8)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_a_file_that_was_tampered_with(change: str, value: np.ndarray, tmp_path) -> None:
    path = tmp_path / "c.safetensors"
    calibration(fc=ONES).save(path)
    tensors = qrs.load(path)
    assert change in tensors
    qrs.save(path, {**tensors, change: value})
    with pytest.raises(qrs.FormatError, match="layer 'fc'"):
        qrs.Calibration.load(path)


def test_parts_of_a_calibration_that_are_missing(tmp_path) -> None:
    path = tmp_path / "c.safetensors"
    calibration(fc=ONES).save(path)
    tensors = qrs.load(path)
    for gone in ("fc.observer.lo", "fc.statistics.n_tokens", "fc.calibration.counts",
                 "fc.statistics.abs_sum", "fc.observer.settings"):  # fmt: skip
        qrs.save(path, {name: part for name, part in tensors.items() if name != gone})
        with pytest.raises(qrs.FormatError, match="layer 'fc'"):
            qrs.Calibration.load(path)


@pytest.mark.parametrize("state", [{}, None, {"n_tokens": "x"}, {"n_tokens": 1, "diag": 3.0}])
def test_what_is_no_state(state) -> None:
    refused(ob.from_state, state, arg="state")
    refused(qrs.Statistics.from_state, state, arg="state")


def test_states_are_copies() -> None:
    for observer in (ob.MinMax(), ob.Histogram(), ob.MSE()):
        observer.update([1.0, 2.0])
        state = observer.state()
        observer.update([1.5, 9.0])
        assert float(ob.from_state(state).hi) == 2.0
        if "counts" in state:
            assert ob.from_state(state).counts.sum() == 2
    statistics = qrs.Statistics().update(ONES)
    state = statistics.state()
    state["hessian"][...] = 0
    assert statistics.hessian.all()
    layer = nn.Linear.from_float(ONES, [1.0, 2.0])
    layer.state()["bias"][:] = 5
    assert layer.state()["bias"].tolist() == [1.0, 2.0]


@pytest.mark.parametrize("path", ["missing.npz", "missing.safetensors", "folder.npz"])
def test_files_that_are_not_there(path: str, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.npz").mkdir()
    with pytest.raises(qrs.StorageError, match=path):
        qrs.calibrate(path)


@pytest.mark.parametrize("observer", [ob.MSE(), "mse", None, lambda: 3])
def test_what_makes_no_observer(observer) -> None:
    refused(qrs.calibrate, EACH, observer=observer, error=qrs.ArgTypeError, arg="observer")


def test_one_name_is_no_list_of_names() -> None:
    refused(qrs.calibrate, EACH, layers="fc", error=qrs.ArgTypeError, arg="layers")


@pytest.mark.parametrize("scheme", ["kmeans4", "bf16"])
def test_schemes_without_scales_have_no_parameters(scheme: str) -> None:
    refused(ob.MSE().update([1.0]).qparams, scheme, arg="scheme")
    with pytest.raises(qrs.ArgValueError, match="layer 'fc': scheme"):
        calibration(fc=ONES).activation_parameters(scheme)


def test_P15_columns_of_zeros_and_few_tokens_are_told() -> None:
    x = np.ones((2, 5), np.float32)
    x[:, [1, 4]] = 0
    found = calibration(fc=x).warnings()
    assert found == ["fc: 2 tokens for 5 features, the Hessian is singular",
                     "fc: 2 of 5 features always zero in the Hessian"]  # fmt: skip


def test_P15_batches_of_nothing_do_not_count() -> None:
    c = qrs.calibrate([{"fc": ONES}, {"fc": np.zeros((0, 3), np.float32)}])
    assert (c.batches["fc"], c.tokens["fc"]) == (1, 2)
    assert qrs.Statistics().update(np.zeros((3, 0), np.float32)).features == 0


@pytest.mark.parametrize(
    "change",
    [
        {"lo": np.float32(-np.inf)}, {"hi": np.float32(np.inf)}, {"lo": np.float32(1)},
        {"exponent": np.array(10**9)}, {"exponent": np.array(-5000)},
        {"exponent": np.array(np.inf)}, {"counts": np.zeros(4096, np.int64)},
        {"counts": np.full(4096, 2**62, np.int64)},
    ],
    ids=range(8),
)  # fmt: skip
def test_states_of_observers_that_cannot_be(change: dict) -> None:
    state = ob.Histogram().update([1.0, 2.0]).state()
    refused(ob.from_state, {**state, **change}, arg="state")


@pytest.mark.parametrize(
    "change",
    [
        {"n_tokens": np.array(-3)}, {"n_tokens": np.array(0)}, {"n_tokens": np.array(np.inf)},
        {"diag": np.array([-1.0, 1, 1])}, {"absmax": np.array([-1.0, 1, 1])},
        {"hessian": np.triu(np.ones((3, 3)))},
    ],
    ids=range(6),
)  # fmt: skip
def test_states_of_statistics_that_cannot_be(change: dict) -> None:
    state = qrs.Statistics().update(ONES).state()
    refused(qrs.Statistics.from_state, {**state, **change}, arg="state")


def test_statistics_without_data_stay_what_they_are() -> None:
    for hessian in (False, True):
        empty = qrs.Statistics(hessian=hessian)
        assert qrs.Statistics.from_state(empty.state()).keeps_hessian == hessian


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("fc", np.array([-3, -4, 2])),
        ("ghost", np.array([1, 1, 1])),
        ("fc", np.array([np.inf, 1, 1])),
    ],
    ids=range(3),
)
def test_counts_that_cannot_be(name: str, value: np.ndarray, tmp_path) -> None:
    path = tmp_path / "c.safetensors"
    calibration(fc=ONES).save(path)
    qrs.save(path, {**qrs.load(path), f"{name}.calibration.counts": value})
    with pytest.raises(qrs.FormatError, match=f"layer '{name}'"):
        qrs.Calibration.load(path)


@pytest.mark.parametrize("layers", [5, b"fc", [3], ["fc", 3], [["fc"]]], ids=str)
def test_what_are_no_names_of_layers(layers) -> None:
    refused(qrs.calibrate, EACH, layers=layers, error=qrs.ArgTypeError, arg="layers")


def test_ragged_lists_name_layer_and_batch() -> None:
    with pytest.raises(qrs.QrsError, match="layer 'fc', batch 0"):
        qrs.calibrate([{"fc": [[1.0, 2.0], [3.0]]}])


def test_sums_cannot_be_written_to() -> None:
    statistics = qrs.Statistics().update(ONES)
    for part in (statistics.hessian, statistics.diag, statistics.absmax):
        with pytest.raises(ValueError, match="read-only"):
            part[0] = 7


def test_ranges_are_copies() -> None:
    observer = ob.MinMax().update([1.0])
    observer.range()[1][...] = 99
    other = ob.MinMax().merge(observer)
    other.hi[...] = 7
    assert float(observer.hi) == 1.0
