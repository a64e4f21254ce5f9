"""Recipes, statistics by layer, and budgets of bits, for whole checkpoints."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import qrs
from qrs import checkpoint
from qrs.checkpoint import KnownStatistics, Recipe, Rule, quantize_checkpoint
from qrs.checkpoint.budget import Choice, choose, lower_hull
from qrs.checkpoint.plan import TensorPlan
from qrs.cli.commands import app
from refusals import refused

RNG = np.random.default_rng(3)
NAMES = ["a.weight", "b.weight", "c.weight"]
WEIGHTS = {name: RNG.standard_normal((24, 32)).astype(np.float32) for name in NAMES}
MODEL = {**WEIGHTS, "a.bias": np.ones(24, np.float32)}


def statistics(*layers: str, features: int = 32, tokens: int = 200) -> qrs.Calibration:
    mixed = RNG.standard_normal((features, features)) + 2 * np.eye(features)
    x = RNG.standard_normal((tokens, features)) @ mixed
    return qrs.calibrate([dict.fromkeys(layers, x.astype(np.float32))], hessian=True)


def run(*arguments: object, code: int = 0):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return result


@pytest.fixture
def model(tmp_path: Path) -> Path:
    qrs.save(tmp_path / "m.safetensors", dict(MODEL))
    return tmp_path / "m.safetensors"


@pytest.fixture
def stats(tmp_path: Path) -> Path:
    statistics("a", "b", "c").save(tmp_path / "stats.safetensors")
    return tmp_path / "stats.safetensors"


def test_a_checkpoint_by_gptq_is_its_tensors_by_gptq(model: Path, stats: Path) -> None:
    known = qrs.Calibration.load(stats).statistics
    out = model.with_name("q.safetensors")
    report = quantize_checkpoint(
        model, out, "int4-g32-asym-f16", solver="gptq-polish1", statistics=stats
    )
    stored = qrs.load(out)
    for t in report.tensors:
        w, layer = WEIGHTS[t.plan.name], t.plan.name.removesuffix(".weight")
        qt = qrs.quantize(w, "int4-g32-asym-f16", solver="gptq-polish1", statistics=known[layer])
        assert stored[t.plan.name] == qt
        expected = qrs.solvers.output_error(w, qt.dequantize(), known[layer])
        assert t.errors.output_error == pytest.approx(expected)
        assert t.info["damping"] == 0.01 and t.info["tokens"] == 200
        assert t.gap_db == pytest.approx(6.0206 * t.bits_per_weight - t.errors.sqnr_db)
        rms = np.sqrt(np.mean(w.astype(np.float64) ** 2))
        assert t.errors.outlier_ratio == pytest.approx(abs(w).max() / rms)


def test_statistics_are_what_they_are_from_files_calibrations_and_mappings(stats: Path) -> None:
    loaded = qrs.Calibration.load(stats)
    for source in (stats, str(stats), loaded, loaded.statistics):
        known = KnownStatistics(source)
        assert known.layers == ["a", "b", "c"] and known.features("b") == 32
        assert known.layer_of("b.weight") == known.layer_of("b") == "b"
        assert known.layer_of("b.bias") is None
        assert np.array_equal(known.of("b").hessian, loaded.statistics["b"].hessian)


def test_statistics_that_do_not_fit(model: Path, stats: Path, tmp_path: Path) -> None:
    out = tmp_path / "x.safetensors"
    how = {"solver": "gptq", "scheme": "int4-g32"}
    message = refused(quantize_checkpoint, model, out, **how, arg="statistics")
    assert "3 tensors" in message and "'a.weight'" in message
    some = statistics("a", "b")
    message = refused(quantize_checkpoint, model, out, **how, statistics=some, arg="statistics")
    assert "1 tensors that gptq quantizes: 'c.weight'" in message
    quantize_checkpoint(model, out, **how, statistics=some, exclude=["c.*"])
    other = statistics("a", "b", "c", features=31)
    message = refused(quantize_checkpoint, model, out, **how, statistics=other, arg="statistics")
    assert "tensor 'a.weight'" in message and "31 inputs, expected 32" in message
    message = refused(
        quantize_checkpoint, model, out, "int4-g32", statistics=statistics("z"), arg="statistics"
    )
    assert "no tensor takes any" in message
    for empty in ({}, {"a": 3}, {"a": qrs.Statistics()}):
        refused(KnownStatistics, empty, arg="statistics")
    refused(KnownStatistics, 3, error=qrs.ArgTypeError, arg="statistics")
    with pytest.raises(qrs.FormatError, match="has no statistics"):
        KnownStatistics(model)
    with pytest.raises(qrs.StorageError):
        KnownStatistics(tmp_path / "missing.safetensors")


def test_a_hessian_at_fault_names_the_tensor(model: Path, tmp_path: Path) -> None:
    c = statistics("a", "b", "c")
    c.statistics["b"]._hessian[0, 0] = -1
    out = tmp_path / "x.safetensors"
    message = refused(
        quantize_checkpoint, model, out, "int4-g32", solver="gptq", statistics=c, arg="statistics"
    )
    assert "tensor 'b.weight'" in message and "the diagonal is -1.0" in message
    assert not out.exists()


def test_few_tokens_are_told(model: Path, tmp_path: Path) -> None:
    few = statistics("a", "b", "c", tokens=9)
    report = quantize_checkpoint(
        model, tmp_path / "q.safetensors", "int4-g32", solver="gptq", statistics=few
    )
    assert report.tensors[0].warnings == ["9 tokens for 32 inputs of layer a"]


def test_a_recipe_says_what_each_tensor_gets(model: Path, tmp_path: Path) -> None:
    rules = {"b.*": Rule("nf4-g32", "lsq"), "c.*": Rule("int4"), "c.weight": Rule("keep")}
    recipe = Recipe(Rule("int8-axis0"), rules)
    recipe.save(tmp_path / "r.json")
    assert Recipe.load(tmp_path / "r.json") == recipe
    out = tmp_path / "q.safetensors"
    quantize_checkpoint(model, out, "int2", recipe=Recipe.load(tmp_path / "r.json"))
    stored = qrs.load(out)
    assert stored["a.weight"] == qrs.quantize(WEIGHTS["a.weight"], "int8-axis0")
    assert stored["b.weight"] == qrs.quantize(WEIGHTS["b.weight"], "nf4-g32", solver="lsq")
    assert np.array_equal(stored["c.weight"], WEIGHTS["c.weight"])
    quantize_checkpoint(
        model, out, "int2", recipe=Recipe(tensors={"a.*": Rule("int8")}), overwrite=True
    )
    assert str(qrs.load(out)["b.weight"].scheme) == "int2"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "line 1"), ("[]", "expected an object"),
        ('{"scheme": 3}', "the recipe, scheme: got 3"),
        ('{"tensors": []}', "tensors: got []"), ('{"tensors": {"a": 3}}', "tensors, 'a': got 3"),
        ('{"tensors": {"a": {"scheme": "int9"}}}', "tensors, 'a': bits: got 9"),
        ('{"tensors": {"a": {"solver": "best"}}}', "tensors, 'a': solver: got 'best'"),
        ('{"tensors": {"a": {}, "a": {}}}', "key 'a' occurs twice"),
        ('{"colour": "red"}', "unknown key 'colour', expected scheme, solver, tensors"),
        ('{"scheme": "int4"} x', "Extra data"), (b'{"scheme": "\xff"}', "utf-8"),
    ],
    ids=range(11),
)  # fmt: skip
def test_recipes_that_are_none(text, words: str, tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(qrs.FormatError, match=r"r\.json: ") as caught:
        Recipe.load(path)
    assert words in str(caught.value)


def test_rules_that_match_nothing(model: Path, tmp_path: Path) -> None:
    recipe = Recipe(tensors={"d.*": Rule("int8")})
    message = refused(
        quantize_checkpoint, model, tmp_path / "q.safetensors", recipe=recipe, arg="recipe"
    )
    assert "'d.*' matches no tensor" in message
    with pytest.raises(qrs.StorageError):
        Recipe.load(tmp_path / "missing.json")


def choices(costs: list[list[tuple[int, float]]]) -> list[list[Choice]]:
    """Tensors of 8 weights, candidates of so many bytes and such a loss."""
    return [
        [
            Choice(TensorPlan(f"t{i}", "F32", (2, 4), 32, None, size, ""), loss)
            for size, loss in tensor
        ]
        for i, tensor in enumerate(costs)
    ]


def test_the_hull_leaves_out_what_a_mixture_beats() -> None:
    (tensor,) = choices([[(4, 0.1), (2, 1.0), (3, 0.9), (8, 0.05), (6, 0.2), (4, 0.3)]])
    assert [(c.plan.nbytes_after, c.loss) for c in lower_hull(tensor)] == [
        (2, 1.0), (4, 0.1), (8, 0.05),
    ]  # fmt: skip


@pytest.mark.parametrize("seed", range(20))
def test_the_choice_is_the_best_up_to_one_step(seed: int) -> None:
    """Against all combinations: no better one has as few bits as those that are used."""
    rng = np.random.default_rng(seed)
    measured = choices(
        [[(int(s), float(rng.exponential())) for s in rng.integers(1, 30, 4)] for _ in range(4)]
    )
    least = sum(lower_hull(tensor)[0].bits for tensor in measured)
    for target in np.linspace(least / 32, 30, 7):
        chosen = choose(measured, target)
        bits, cost = sum(c.bits for c in chosen), sum(c.cost for c in chosen)
        assert bits <= target * 32 + 1e-9
        all_of_them = list(itertools.product(*measured))
        best = min(sum(c.cost for c in some) for some in all_of_them
                   if sum(c.bits for c in some) <= target * 32 + 1e-9)  # fmt: skip
        hulls = [lower_hull(tensor) for tensor in measured]
        steps = [a.cost - b.cost for hull in hulls for a, b in itertools.pairwise(hull)]
        assert best <= cost <= best + max(steps, default=0) + 1e-9


def test_more_bits_go_where_they_count(tmp_path: Path) -> None:
    """Of two tensors one has outliers: 4 and 8 bits beat 6 for both."""
    hard = RNG.standard_t(2, (64, 128)).astype(np.float32)
    easy = np.sign(RNG.standard_normal((64, 128))).astype(np.float32)
    qrs.save(tmp_path / "m.safetensors", {"easy.weight": easy, "hard.weight": hard})
    source = checkpoint.open_checkpoint(tmp_path / "m.safetensors")
    mixed = checkpoint.plan_bits(source, 6.3, ["int4-axis0", "int6-axis0", "int8-axis0"])
    assert {c.plan.name: str(c.plan.scheme) for c in mixed.chosen} == {
        "easy.weight": "int4-axis0", "hard.weight": "int8-axis0",
    }  # fmt: skip
    uniform = checkpoint.plan_bits(source, 6.3, ["int6-axis0", "int7-axis0"])
    assert mixed.loss < uniform.loss and mixed.bits_per_weight <= uniform.bits_per_weight
    recipe = mixed.recipe
    out = tmp_path / "q.safetensors"
    report = quantize_checkpoint(tmp_path / "m.safetensors", out, recipe=recipe)
    assert report.plan.bits_per_weight == mixed.bits_per_weight


def test_budgets_that_cannot_be(model: Path) -> None:
    source = checkpoint.open_checkpoint(model)
    two = ["int4-g32", "int8-g32"]
    message = refused(checkpoint.plan_bits, source, 4.5, two, arg="target_bits")
    assert "the cheapest candidates take 5.0000 bits per weight" in message
    for target in (0, -1, np.nan, np.inf, "4"):
        refused(checkpoint.plan_bits, source, target, two, arg="target_bits")
    refused(checkpoint.plan_bits, source, 5.0, two[:1], arg="candidates")
    dearest = checkpoint.plan_bits(source, 99.0, two)
    assert {str(c.plan.scheme) for c in dearest.chosen} == {"int8-g32"}


def test_the_commands(model: Path, stats: Path, tmp_path: Path) -> None:
    recipe, out = tmp_path / "r.json", tmp_path / "q"
    options = ("--candidates", "int3-g32,int4-g32,int8-g32", "--stats", stats)
    result = run("plan", model, "--target-bits", "6", *options, "-o", recipe)
    assert "6" in result.stdout and "wrote" in result.stdout
    document = json.loads(
        run("plan", model, "--target-bits", "6", *options, "--solver", "gptq", "--json").stdout
    )
    assert document["bits_per_weight"] <= 6 and len(document["tensors"]) == 3
    result = run("quantize", model, "-o", out, "--recipe", recipe, "--stats", stats, "--json")
    report = json.loads(result.stdout)
    assert all(t["output_error"] is not None for t in report["tensors"])
    assert run("quantize", model, "-o", tmp_path / "g", "--solver", "gptq", "--scheme", "int4-g32",
               "--stats", stats).stdout.count("int4-g32") == 3  # fmt: skip
    result = run("quantize", model, "-o", tmp_path / "h", "--solver", "gptq", code=2)
    assert "statistics: has none for 3 tensors" in result.stderr
    result = run("plan", model, "--target-bits", "1", *options, code=2)
    assert "the cheapest candidates take" in result.stderr
    for wrong in (("--target-bits", "x"), ("--target-bits", "4", "-o", "r.txt"), (),
                  ("--target-bits", "4", "--candidates", "int4"),
                  ("--target-bits", "4", "--solver", "best")):  # fmt: skip
        run("plan", model, *wrong, code=2)
    recipe.write_text("{")
    result = run("quantize", model, "-o", tmp_path / "i", "--recipe", recipe, code=1)
    assert "r.json" in result.stderr


def test_a_recipe_leaves_alone_what_is_kept(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "q.safetensors"
    message = refused(
        quantize_checkpoint, model, out, recipe=Recipe(tensors={"a.bias": Rule("int8")}),
        arg="recipe",
    )  # fmt: skip
    assert "'a.bias' gets int8, and is a vector" in message
    table = {"embed_tokens.weight": WEIGHTS["a.weight"], **WEIGHTS}
    qrs.save(model, table)
    recipe = Recipe(Rule("int4-g32"), {"b.*": Rule("keep")})
    quantize_checkpoint(model, out, recipe=recipe)
    stored = qrs.load(out)
    assert isinstance(stored["embed_tokens.weight"], np.ndarray)
    assert str(stored["a.weight"].scheme) == "int4-g32"
    named = Recipe(tensors={"embed_tokens.weight": Rule("int8-axis0")})
    quantize_checkpoint(model, out, "int4-g32", recipe=named, overwrite=True)
    assert str(qrs.load(out)["embed_tokens.weight"].scheme) == "int8-axis0"
