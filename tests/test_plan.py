"""Which tensors are quantized, how each is stored, and what the plan says before anything runs."""

import json
import math
from typing import Any

import pytest

from checkpoints import normal, small_model
from qrs import Int, QrsError, parse, quantize
from qrs.checkpoint import Selection, make_plan
from qrs.checkpoint.plan import fit
from qrs.errors import ArgValueError
from qrs.formats.header import TensorInfo, dtype_name


def infos(tensors: dict[str, Any]) -> list[TensorInfo]:
    """The headers that these tensors would have."""
    return [
        TensorInfo(name, dtype_name(x.dtype), x.shape, 0, x.nbytes) for name, x in tensors.items()
    ]


def info(name: str, shape: tuple[int, ...], dtype: str = "F32") -> TensorInfo:
    itemsize = {"F32": 4, "F16": 2, "BF16": 2, "F64": 8, "I64": 8, "F8_E4M3": 1}[dtype]
    return TensorInfo(name, dtype, shape, 0, math.prod(shape) * itemsize)


def chosen(**options: Any) -> set[str]:
    return {t.name for t in make_plan(infos(small_model()), **options).quantized}


WEIGHTS = {
    "layer.0.attention.weight",
    "layer.0.mlp.weight",
    "layer.0.half.weight",
    "layer.0.double.weight",
    "layer.0.conv.weight",
}


def test_default_takes_float_weights_of_two_or_more_axes() -> None:
    assert chosen() == WEIGHTS


@pytest.mark.parametrize(
    ("name", "shape", "dtype", "kind"),
    [
        ("model.layers.0.mlp.up_proj.weight", (8, 4), "BF16", "weight"),
        ("lm_head.weight", (100, 8), "F16", "weight"),
        ("conv1.weight", (8, 3, 3, 3), "F32", "weight"),
        ("model.embed_tokens.weight", (100, 8), "F16", "embedding"),
        ("embeddings.word_embeddings.weight", (100, 8), "F32", "embedding"),
        ("transformer.wte.weight", (100, 8), "F32", "embedding"),
        ("wpe.weight", (100, 8), "F32", "embedding"),
        ("shared.weight", (100, 8), "F32", "embedding"),
        ("model.shared.weight", (100, 8), "F32", "embedding"),
        ("emb.weight", (100, 8), "F32", "embedding"),
        ("transformer.tok_emb.weight", (100, 8), "F32", "embedding"),
        ("mlp.shared_expert.up_proj.weight", (16, 8), "F32", "weight"),
        ("layer.LayerNorm.weight", (8,), "F32", "keep"),
        ("layer.bias", (8,), "F32", "keep"),
        ("relative_attention_bias.weight", (32, 8), "F32", "keep"),
        ("stacked.norm.weight", (4, 8), "F32", "keep"),
        ("norm1.linear.weight", (16, 8), "F32", "weight"),
        ("norm.weight", (1, 1, 8), "F32", "keep"),
        ("position_ids", (1, 512), "I64", "keep"),
        ("table", (4, 4), "I64", "keep"),
        ("layer.weight", (8, 8), "F8_E4M3", "keep"),
        ("empty.weight", (0, 8), "F32", "keep"),
        ("scalar", (), "F32", "keep"),
    ],
)
def test_default_rule(name: str, shape: tuple[int, ...], dtype: str, kind: str) -> None:
    assert Selection().choose(name, dtype, shape)[0] == kind


def test_embeddings_are_taken_on_request_with_a_scale_per_row() -> None:
    plan = make_plan(infos(small_model()), embeddings="int8")
    assert {t.name for t in plan.quantized} == {*WEIGHTS, "embed_tokens.weight"}
    by_name = {t.name: t for t in plan.tensors}
    assert by_name["embed_tokens.weight"].scheme == Int(8, axis=0)
    assert by_name["embed_tokens.weight"].reason == "an embedding: int8 is one scale per row here"
    assert make_plan(infos(small_model()), embeddings="int4-g32").quantized[0].scheme == Int(
        4, group_size=32
    )


def test_include_replaces_the_default_rule() -> None:
    assert chosen(include=["*.half.*", "*.mlp.*"]) == {"layer.0.half.weight", "layer.0.mlp.weight"}
    assert chosen(include=["embed*"]) == {"embed_tokens.weight"}
    # Also what the default leaves out, but never integers, vectors or float8.
    assert chosen(include=["*"]) == {*WEIGHTS, "embed_tokens.weight", "layer.0.norm.weight"}


def test_included_embeddings_get_the_scheme_of_embeddings_if_there_is_one() -> None:
    plan = make_plan(infos(small_model()), "int4-g32", include=["embed*"], embeddings="int8")
    assert [str(t.scheme) for t in plan.quantized] == ["int8-axis0"]
    plan = make_plan(infos(small_model()), "int4-g32", include=["embed*"])
    assert [str(t.scheme) for t in plan.quantized] == ["int4-g32"]


def test_exclude_wins() -> None:
    assert chosen(include=["*.half.*", "*.mlp.*"], exclude=["*.mlp.*"]) == {"layer.0.half.weight"}
    assert chosen(exclude=["layer.*"]) == set()


@pytest.mark.parametrize("option", ["include", "exclude"])
def test_a_pattern_that_matches_nothing_is_named(option: str) -> None:
    patterns: Any = {option: ["*.mlp.*", "*.mpl.*"]}
    with pytest.raises(ArgValueError, match=rf"{option}: pattern '\*\.mpl\.\*' matches no") as e:
        make_plan(infos(small_model()), **patterns)
    assert (e.value.arg, e.value.value) == (option, "*.mpl.*")


def test_include_of_what_cannot_be_quantized_is_an_error() -> None:
    with pytest.raises(ArgValueError, match="'counts' matches no tensor that can be quantized"):
        make_plan(infos(small_model()), include=["counts"])


@pytest.mark.parametrize(
    ("shape", "scheme", "stored", "reason"),
    [
        ((64, 128), "int4-g32", "int4-g32", ""),
        ((8, 4, 64), "int4-g32", "int4-g32", ""),
        ((16, 32, 3, 3), "int4-g32", "int4-g32-flat", "does not divide 3: groups run"),
        ((64, 100), "int4-g128", "int4-g128-ragged", "128 does not divide 100: the"),
        ((16, 3, 7, 7), "int4-g32-f16", "int4-g32-f16-flat-ragged", "7), and the last group of"),
        ((16, 32, 3, 3), "int8-axis0", "int8-axis0", ""),
        ((16, 32, 3, 3), "uint8", "uint8", ""),
        # Exactly what was asked for is no fallback.
        ((64, 100), "int4-g32-ragged", "int4-g32-ragged", ""),
        ((64, 100), "int4-g32-flat-ragged", "int4-g32-flat-ragged", ""),
        ((16, 32, 3, 3), "int4-g32-flat", "int4-g32-flat", ""),
        ((16, 3, 7, 7), "int4-g32-flat", "int4-g32-flat-ragged", "32 does not divide 147: the"),
        ((16, 3, 7, 7), "int4-g32-ragged", "int4-g32-flat-ragged", "flattened (3, 7, 7)"),
    ],
)
def test_fallbacks(shape: tuple[int, ...], scheme: str, stored: str, reason: str) -> None:
    got, why = fit(parse(scheme), shape)
    assert str(got) == stored
    assert reason in why and bool(reason) == bool(why)


def test_fallbacks_are_listed_with_their_reason() -> None:
    plan = make_plan(infos(small_model()), "int4-g32")
    assert {t.name: t.fallback for t in plan.fallbacks} == {
        "layer.0.mlp.weight": "group_size=32 does not divide 100: the last group of a row has 4",
        "layer.0.conv.weight": (
            "group_size=32 does not divide 3: groups run along the flattened (32, 3, 3)"
        ),
    }


@pytest.mark.parametrize("scheme", ["int8-axis0", "int4-g32-asym-f16", "uint3-g32", "int8-axis-1"])
def test_sizes_are_exactly_what_quantize_stores(scheme: str) -> None:
    tensors = small_model()
    plan = make_plan(infos(tensors), scheme, embeddings=scheme)
    assert len(plan.quantized) == len(WEIGHTS) + 1
    for t in plan.quantized:
        assert t.scheme is not None
        qt = quantize(tensors[t.name], t.scheme)
        assert t.nbytes_after == qt.nbytes
    assert plan.nbytes == sum(x.nbytes for x in tensors.values())
    stored = sum(8 * t.nbytes_after for t in plan.quantized)
    assert plan.bits_per_weight == stored / sum(t.size for t in plan.quantized)


def test_four_and_a_half_bits_are_counted() -> None:
    plan = make_plan([info("w", (64, 128))], "int4-g32-f16")
    assert plan.bits_per_weight == 4.5
    assert plan.nbytes_after == 64 * 64 + 64 * 4 * 2


def test_share_that_stays() -> None:
    plan = make_plan([info("a.weight", (64, 64)), info("embed.weight", (192, 64))])
    assert plan.kept_share == 0.75
    assert make_plan([info("b", (4,))]).kept_share == 1.0
    assert math.isnan(make_plan([info("b", (4,))]).bits_per_weight)


def test_memory_bound() -> None:
    plan = make_plan([info("a.weight", (1024, 1024)), info("b", (3,))])
    assert plan.memory_bound == 3 * 4 * 1024**2 + 256 * 1024**2
    assert plan.memory_estimate < plan.memory_bound


@pytest.mark.parametrize("scheme", ["int8", "int7-axis1"])
def test_memory_bound_of_the_reference_where_scales_span_rows(scheme: str) -> None:
    tensors = [info("a.weight", (8192, 8192))]
    rust, reference = (make_plan(tensors, scheme, backend=name) for name in ("rust", "reference"))
    assert rust.memory_bound == rust.streaming_bound == reference.streaming_bound
    assert reference.memory_bound > reference.memory_estimate > rust.memory_bound
    by_rows = make_plan(tensors, "int8-axis0", backend="reference")
    assert by_rows.memory_bound == by_rows.streaming_bound


def test_a_scheme_that_does_not_fit_names_the_tensor() -> None:
    with pytest.raises(ArgValueError, match=r"tensor 'a\.weight': axis: got 2"):
        make_plan([info("a.weight", (8, 8))], "int8-axis2")


def test_names_that_would_collide() -> None:
    tensors = [info("a", (8, 8)), info("a.scale", (8,))]
    with pytest.raises(ArgValueError, match=r"'a\.scale' belongs to the tensor 'a'"):
        make_plan(tensors)
    assert make_plan(tensors, exclude=["a"]).quantized == ()


def test_bad_schemes_are_named() -> None:
    with pytest.raises(QrsError, match=r"cannot read 'int4:g8'"):
        make_plan(infos({"w": normal((4, 4))}), "int4:g8")


def test_plan_as_json() -> None:
    plan = make_plan(infos(small_model()), "int4-g32")
    document = plan.to_dict()
    assert [t["name"] for t in document["tensors"]] == list(small_model())
    assert document["nbytes_after"] == plan.nbytes_after
    conv = next(t for t in document["tensors"] if t["name"] == "layer.0.conv.weight")
    assert conv["scheme"] == "int4-g32-flat" and list(conv["shape"]) == [16, 32, 3, 3]


def test_a_plan_of_nothing_is_json_too() -> None:
    document = make_plan([info("b", (4,))]).to_dict()
    assert json.loads(json.dumps(document, allow_nan=False))["bits_per_weight"] is None
