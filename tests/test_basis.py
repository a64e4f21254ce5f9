"""Weights in another basis: factors of inputs, rotations, AWQ, SmoothQuant, and what folds."""

from pathlib import Path

import numpy as np
import pytest

import qrs
from kernel_calls import LEVELS
from qrs import _qrs, nn
from qrs.checkpoint import quantize_checkpoint
from qrs.schemes.basis import hadamard, signs_like
from qrs.solvers import AWQ, find_folds, folded, output_error, smooth, smooth_scale
from refusals import refused

RNG = np.random.default_rng(11)
W = RNG.standard_normal((24, 128)).astype(np.float32)
X = RNG.standard_normal((400, 128)).astype(np.float32)
X[:, [5, 77]] *= 40
STATISTICS = qrs.Statistics().update(X)
INNER = ["int4-g32-asym-f16", "int8-axis0", "nf4-g64-dq", "kmeans4-axis0", "e4m3-g32", "mxfp4"]


@pytest.mark.parametrize("inner", INNER)
@pytest.mark.parametrize("suffix", ["-scaled", "-rot32"])
def test_strings_dictionaries_and_files(inner: str, suffix: str, tmp_path: Path) -> None:
    scheme = qrs.parse(f"{inner}{suffix}")
    assert str(scheme) == f"{inner}{suffix}" and str(scheme.inner) == inner
    assert qrs.schemes.from_dict(scheme.to_dict()) == scheme
    qt = qrs.quantize(W, scheme)
    if suffix == "-scaled":
        qt.parts["column_scale"][:] = RNG.uniform(0.5, 2, 128)
    qrs.save(tmp_path / "b.safetensors", {"w": qt})
    back = qrs.load(tmp_path / "b.safetensors")["w"]
    assert back == qt and back.dequantize().tobytes() == qt.dequantize().tobytes()
    assert np.array_equal(qt[3:9].dequantize(), qt.dequantize()[3:9])
    assert np.array_equal(qt[[5, 2]].dequantize(), qt.dequantize()[[5, 2]])
    for dtype in ("float16", "float64"):
        assert np.array_equal(qt.dequantize(dtype), qt.dequantize().astype(dtype))
    assert np.array_equal(qrs.fake_quantize(W, scheme), qrs.quantize(W, scheme).dequantize())
    out = qrs.quantize(W * 2, scheme)
    assert qrs.quantize(W, scheme, out=out) is out and out == qrs.quantize(W, scheme)


def test_factors_are_those_of_what_is_stored() -> None:
    qt = qrs.quantize(W, "int4-g32-f16", solver="awq", statistics=STATISTICS)
    stored, c = qt.scheme.tensor(qt), qt.parts["column_scale"]
    assert np.array_equal(qt.dequantize(), stored.dequantize() * c)
    assert stored.scheme == qrs.parse("int4-g32-f16") and c.shape == (128,)


@pytest.mark.parametrize("block", [2, 4, 64, 128])
def test_a_rotation_is_orthogonal_and_its_own_inverse(block: int) -> None:
    wide = X.astype(np.float64)
    matrix = hadamard(np.eye(block), block)
    assert np.allclose(matrix @ matrix.T, np.eye(block)) and np.array_equal(matrix, matrix.T)
    assert np.allclose(hadamard(hadamard(wide, block), block), wide)
    blocks = (wide.reshape(-1, block) @ matrix).reshape(wide.shape)
    assert np.allclose(hadamard(wide, block), blocks)
    assert set(signs_like(wide).tolist()) == {1.0, -1.0}
    assert np.array_equal(signs_like(wide), signs_like(np.ones(128)))


def test_a_rotation_spreads_outliers() -> None:
    w = W.copy()
    w[:, ::50] *= 30
    plain, rotated = (
        qrs.metrics.sqnr_db(w, qrs.quantize(w, scheme).dequantize())
        for scheme in ("int4-axis0", "int4-axis0-rot128")
    )
    assert rotated > plain + 3


@pytest.mark.parametrize(
    "scheme", ["int4-g32-asym-f16", "int3-g64-f16", "nf4-g64-f16", "nf4-g64-dq"]
)
def test_awq_halves_the_error_where_some_inputs_are_large(scheme: str) -> None:
    qt = qrs.quantize(W, scheme, solver="awq", statistics=STATISTICS)
    nearest = output_error(W, qrs.quantize(W, scheme).dequantize(), STATISTICS)
    found = output_error(W, qt.dequantize(), STATISTICS)
    assert found < 0.5 * nearest and 0 < qt.info["alpha"] < 1
    assert qt.info["output_error"] == pytest.approx(found, rel=1e-4)
    assert qt.info["output_error_before"] == pytest.approx(nearest, rel=1e-4)
    by_moments = qrs.quantize(W, scheme, solver="awq", statistics=STATISTICS.hessian)
    assert output_error(W, by_moments.dequantize(), STATISTICS) < 0.6 * nearest


def test_awq_is_never_worse_than_the_scheme_alone() -> None:
    for seed in range(8):
        rng = np.random.default_rng(seed)
        x = rng.standard_normal((99, 16)) * np.exp(rng.standard_normal(16))
        w, known = rng.standard_normal((5, 16)).astype(np.float32), qrs.Statistics().update(x)
        qt = qrs.quantize(w, "int3-g8", solver=AWQ(steps=3), statistics=known)
        nearest = output_error(w, qrs.quantize(w, "int3-g8").dequantize(), known)
        assert output_error(w, qt.dequantize(), known) <= nearest * (1 + 1e-6)


def test_awq_has_the_same_bits_at_every_level_and_with_any_number_of_threads() -> None:
    before, expected = (_qrs.simd_level(), qrs.num_threads()), None
    try:
        for level in LEVELS:
            for threads in (1, 3):
                _qrs.set_simd_level(level)
                qrs.set_num_threads(threads)
                qt = qrs.quantize(W, "int4-g32-f16", solver="awq", statistics=STATISTICS.hessian)
                expected = expected or qt
                assert qt == expected, (level, threads)
    finally:
        _qrs.set_simd_level(before[0])
        qrs.set_num_threads(before[1])


def test_awq_of_zeros_of_nothing_and_of_silent_inputs() -> None:
    for w in (np.zeros_like(W), W[:0], np.where(np.arange(128) < 9, 0, W).astype(np.float32)):
        qt = qrs.quantize(w, "int4-g32", solver="awq", statistics=STATISTICS)
        assert qt.dequantize().shape == w.shape and np.isfinite(qt.dequantize()).all()
    x = X.copy()
    x[:, :7] = 0
    qt = qrs.quantize(W, "int4-g32", solver="awq", statistics=qrs.Statistics().update(x))
    assert np.isfinite(qt.dequantize()).all()


@pytest.mark.parametrize("solver", ["lsq", "gptq", "gptq-polish1"])
def test_other_solvers_work_in_the_basis(solver: str) -> None:
    given = {"statistics": STATISTICS} if solver != "lsq" else {}
    plain = qrs.quantize(W, "int3-g32-rot32")
    qt = qrs.quantize(W, "int3-g32-rot32", solver=solver, **given)
    errors = [output_error(W, q.dequantize(), STATISTICS) for q in (qt, plain)]
    assert str(qt.scheme) == "int3-g32-rot32" and errors[0] < 0.9 * errors[1]


@pytest.mark.parametrize("scheme", ["int8-axis0-rot32", "int8-axis0-scaled", "int4-g32-asym-rot128",
                                    "nf4-g64-rot32", "int4-g32-scaled"])  # fmt: skip
@pytest.mark.parametrize("activation", [None, "int8-axis0"])
def test_layers_change_their_input(scheme: str, activation: str | None) -> None:
    if scheme.startswith("nf4") and activation:
        return
    solver = "awq" if scheme.endswith("scaled") else "minmax"
    given = {"statistics": STATISTICS} if solver == "awq" else {}
    qt = qrs.quantize(W, scheme, solver=solver, **given)
    layer = nn.Linear(qt, np.ones(24, np.float32), activation=activation)
    exact = X.astype(np.float64) @ qt.dequantize("float64").T + 1
    y = layer(X)
    assert np.abs(y - exact).std() < (0.02 if activation else 1e-5) * exact.std()
    again = nn.Linear.from_state(layer.state(), activation=activation)
    assert np.array_equal(again(X), y)
    assert layer(X.astype(np.float16)).dtype == np.float16


def test_what_a_basis_does_not_have() -> None:
    static = nn.Static("int8", 0.1)
    layer = nn.Linear(qrs.quantize(W, "int8-axis0-rot32"), activation=static)
    refused(layer, qrs.quantize(X[:2], "int8", scale=0.1))
    refused(nn.Conv1d.from_float, W[:, :, None], scheme="int8-axis0-scaled", arg="scheme")
    refused(qrs.quantize, W[:, :100], "int4-rot8", arg="block")
    refused(qrs.Rotated, qrs.Int(4), 12, arg="block")
    refused(qrs.Rotated, qrs.Rotated(qrs.Int(4), 8), 8, arg="inner")
    refused(qrs.ColumnScaled, "int4", error=qrs.ArgTypeError, arg="inner")
    refused(qrs.QTensor.from_parts, "int4-scaled", (1, 2), [[1, 2]], 0.5, arg="scheme")
    refused(qrs.quantize, W, "int4-rot8", weights=np.ones(128), arg="weights")
    for text in ("int4-scaled-scaled", "int4-rot", "int4-rot8-scaled", "-scaled", "x-rot8"):
        refused(qrs.parse, text, arg="scheme")
    qt = qrs.quantize(W, "int4-scaled")
    leaves = dict(qt.leaves())
    for wrong in (0.0, -1.0, np.nan, np.inf):
        leaves["column_scale"] = np.full(128, wrong, np.float32)
        refused(qrs.QTensor.from_leaves, qt.scheme, W.shape, "float32", leaves, arg="column_scale")


def test_what_awq_refuses() -> None:
    how = {"solver": "awq", "statistics": STATISTICS}
    refused(qrs.quantize, W, "int4", solver="awq", arg="statistics")
    refused(qrs.quantize, W, "kmeans4", **how, arg="solver")
    refused(qrs.quantize, W, "int4-rot8", **how, arg="solver")
    refused(qrs.quantize, W[:, :5], "int4", **how, arg="statistics")
    refused(qrs.quantize, W[0], "int4", **how)
    refused(qrs.quantize, W, "int4", **how, scale=1.0, arg="scale")
    refused(qrs.quantize, W, "int4", **how, weights=np.ones(128), arg="weights")
    refused(AWQ, 0, arg="steps")


def test_smoothing_and_rotation_beat_int8_as_it_is_and_nothing_is_an_answer() -> None:
    found = smooth(W, X)
    assert found.errors["smooth"] < 0.3 * found.errors["none"]
    assert found.errors["rotated"] < 0.5 * found.errors["none"]
    layer = nn.Linear(found.qt, activation="int8-axis0")
    exact = X.astype(np.float64) @ W.T.astype(np.float64)
    error = float(np.sum((layer(X) - exact) ** 2) / np.sum(exact**2))
    assert error == pytest.approx(found.errors[found.kind], rel=1e-3)
    even = np.sign(RNG.standard_normal((300, 128))).astype(np.float32)
    assert smooth(W, even, alphas=(1.0,), rotate=False).kind == "none"  # no better than nothing
    assert smooth(W, even, alphas=()).errors.keys() == {"none", "rotated"}


def test_smoothing_is_the_formula() -> None:
    w = np.float32([[1, -4, 0, 2], [0.5, 2, 0, 1]])
    c = smooth_scale([4.0, 1.0, 3.0, 0.0], w, 0.5)
    assert c.tolist() == [0.5, 2.0, 1.0, 1.0]
    assert smooth_scale([4.0, 1.0, 3.0, 2.0], w, 0).tolist() == [1.0] * 4
    refused(smooth_scale, [1.0], w, 0.5, arg="absmax")
    refused(smooth_scale, [1.0] * 4, w, 1.5, arg="alpha")
    refused(smooth, W, X[:, :3])
    refused(smooth, W, np.where(X > 3, np.nan, X))
    refused(smooth, W[0], X, arg="weight")


def test_folding_keeps_the_function_of_the_network() -> None:
    """A norm, two layers that read it, and a product of the two: what Llama's MLP does."""
    head = "model.layers.0."
    shapes = {"post_attention_layernorm": (16,), "mlp.gate_proj": (32, 16), "mlp.up_proj": (32, 16),
              "mlp.down_proj": (16, 32), "self_attn.v_proj": (8, 16),
              "self_attn.o_proj": (16, 16)}  # fmt: skip
    t = {f"{head}{name}.weight": RNG.standard_normal(s).astype(np.float32)
         for name, s in shapes.items()}  # fmt: skip
    folds = find_folds(t)
    assert [fold.previous.removeprefix(head) for fold in folds] == [
        "post_attention_layernorm", "mlp.up_proj",
    ]  # fmt: skip

    def network(t: dict, x: np.ndarray) -> np.ndarray:
        w = {name.removeprefix(head).removesuffix(".weight"): part for name, part in t.items()}
        y = x * w["post_attention_layernorm"]
        gated = np.tanh(y @ w["mlp.gate_proj"].T) * (y @ w["mlp.up_proj"].T)
        return gated @ w["mlp.down_proj"].T

    x, new = RNG.standard_normal((9, 16)), dict(t)
    for fold in folds:
        inputs = new[f"{fold.layers[0]}.weight"].shape[1]
        new |= folded(new, fold, RNG.uniform(0.1, 9, inputs))
    assert np.allclose(network(new, x), network(t, x), rtol=1e-4, atol=1e-4)
    assert not any(np.array_equal(new[n], t[n]) for n in t if "self_attn" not in n)
    refused(folded, t, folds[0], np.zeros(16), arg="column_scale")


def test_bert_folds_values_and_no_norm() -> None:
    names = ["attention.self.value", "attention.output.dense", "intermediate.dense",
             "attention.output.LayerNorm"]  # fmt: skip
    t = {f"encoder.layer.0.{name}.weight": np.ones((4, 4)[: 1 + (name[-4:] != "Norm")])
         for name in names}  # fmt: skip
    assert [fold.previous for fold in find_folds(t)] == ["encoder.layer.0.attention.self.value"]


def test_a_checkpoint_by_awq(tmp_path: Path) -> None:
    qrs.save(tmp_path / "m.safetensors", {"fc.weight": W, "fc.bias": np.ones(24, np.float32)})
    report = quantize_checkpoint(
        tmp_path / "m.safetensors", tmp_path / "q.safetensors", "int4-g32-f16", solver="awq",
        statistics={"fc": STATISTICS},
    )  # fmt: skip
    stored = qrs.load(tmp_path / "q.safetensors")["fc.weight"]
    assert stored == qrs.quantize(W, "int4-g32-f16", solver="awq", statistics=STATISTICS)
    assert str(report.tensors[0].plan.scheme) == "int4-g32-f16-scaled"
