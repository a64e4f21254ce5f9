"""GPTQ against the published form, its orders, its polish, and what it says of a Hessian."""

import numpy as np
import pytest

import qrs
from gptq_oracle import gptq_oracle, levels_of
from kernel_calls import LEVELS
from qrs import _qrs
from qrs.solvers import GPTQ, output_error
from refusals import refused

SCHEMES = [
    "int4-g32-asym-f16", "int4-g64-full-f16", "int3-axis0", "int2-g32-asym", "int8-g32-f16",
    "uint5-g64", "nf4-g64-f16", "nf4-g32-dq", "fp4-g32", "kmeans4-axis0", "kmeans3",
    "learned4-g32-s6",
]  # fmt: skip


def layer(n: int, k: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A weight, and the moments of inputs that go together."""
    rng = np.random.default_rng((n, k, seed))
    mixed = np.eye(k) + rng.standard_normal((k, k)) / np.sqrt(k)
    x = rng.standard_normal((4 * k, k)) @ mixed * np.exp(rng.standard_normal(k) / 2)
    return rng.standard_normal((n, k)).astype(np.float32), x.T @ x


def ordered(h: np.ndarray) -> np.ndarray:
    return np.argsort(-np.diagonal(h), kind="stable")


def grid(w: np.ndarray, h: np.ndarray, scheme: str) -> qrs.QTensor:
    """The scales and tables that GPTQ takes: those of its result."""
    return qrs.gptq(w, h, scheme)


@pytest.mark.parametrize("size", [(8, 64), (48, 128), (256, 256)], ids=str)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_codes_are_those_of_the_published_form(scheme: str, size: tuple[int, int]) -> None:
    w, h = layer(*size)
    for act_order in (True, False):
        qt = qrs.gptq(w, h, scheme, act_order=act_order)
        order = ordered(h) if act_order else np.arange(size[1])
        assert np.array_equal(qt.dequantize(), gptq_oracle(w, h, 0.01, order, levels_of(qt)))


def test_on_a_large_layer_the_objective_is_that_of_the_published_form() -> None:
    w, h = layer(64, 1024)
    qt = qrs.gptq(w, h, "int4-g128-asym-f16")
    published = gptq_oracle(w, h, 0.01, ordered(h), levels_of(qt))
    assert output_error(w, qt.dequantize(), h) == pytest.approx(
        output_error(w, published, h), rel=1e-4
    )


@pytest.mark.parametrize("scheme", SCHEMES)
def test_it_cuts_a_quarter_off_the_error_of_rounding_to_nearest(scheme: str) -> None:
    w, h = layer(64, 256)
    nearest, plain, polished = (
        output_error(w, qrs.quantize(w, scheme, **how).dequantize(), h)
        for how in (
            {},
            {"solver": "gptq", "statistics": h},
            {"solver": "gptq-polish2", "statistics": h},
        )
    )
    assert plain <= 0.75 * nearest
    assert polished < plain


@pytest.mark.parametrize("scheme", ["int4-g32-asym-f16", "nf4-g64-f16", "kmeans4-axis0"])
def test_polish_never_raises_the_error_of_a_row(scheme: str) -> None:
    w, h = layer(32, 128)
    before = None
    for rounds in range(5):
        error = w - qrs.gptq(w, h, scheme, polish=rounds).dequantize().astype(np.float64)
        of_rows = np.einsum("ij,ij->i", error @ h, error)
        assert before is None or (of_rows <= before * (1 + 1e-9)).all()
        before = of_rows


def test_polish_stops_where_nothing_changes() -> None:
    w, h = layer(4, 32)
    qt = qrs.gptq(w, h, "int4-axis0", polish=999)
    assert 0 < qt.info["polish_rounds"] < 100
    assert qt == qrs.gptq(w, h, "int4-axis0", polish=500)


def test_orders() -> None:
    """By the diagonal; inside groups only, and the groups by their greatest."""
    diagonal = np.array([1.0, 4.0, 2.0, 9.0, 3.0, 5.0])
    w, h = np.ones((2, 6), np.float32), np.diag(diagonal)
    from qrs.backends import get
    from qrs.solvers.code_values import CodeValues

    values = CodeValues.of(qrs.quantize(w, "int4-g3"), get("reference"))
    assert GPTQ().order(h, values).tolist() == [3, 5, 1, 4, 2, 0]
    assert GPTQ(act_order=False).order(h, values).tolist() == [0, 1, 2, 3, 4, 5]
    assert GPTQ(act_order="group").order(h, values).tolist() == [3, 5, 4, 1, 2, 0]


def test_descending_order_is_best_and_group_order_between() -> None:
    w, h = layer(128, 256)
    h *= np.outer(*[np.exp(np.random.default_rng(0).standard_normal(256))] * 2)
    inorder, group, descending = (
        output_error(w, qrs.gptq(w, h, "int3-g32-f16", act_order=by).dequantize(), h)
        for by in (False, "group", True)
    )
    assert descending < group < inorder


def test_the_same_bits_at_every_level_and_with_any_number_of_threads() -> None:
    w, h = layer(50, 100)
    before, expected = (_qrs.simd_level(), qrs.num_threads()), {}
    try:
        for level in LEVELS:
            for threads in (1, 3):
                _qrs.set_simd_level(level)
                qrs.set_num_threads(threads)
                for scheme in ("int4-g20-asym-f16", "nf4-g50", "kmeans3-axis0"):
                    qt = qrs.gptq(w, h, scheme, polish=2)
                    assert qt == expected.setdefault(scheme, qt), (level, threads)
    finally:
        _qrs.set_simd_level(before[0])
        qrs.set_num_threads(before[1])


@pytest.mark.parametrize("scheme", ["int4-g20-asym-f16", "nf4-g50", "kmeans3-axis0"])
def test_the_reference_gives_the_same_codes(scheme: str) -> None:
    w, h = layer(20, 100)
    assert qrs.gptq(w, h, scheme, polish=2) == qrs.gptq(w, h, scheme, polish=2, backend="reference")


def test_statistics_or_a_multiple_of_their_hessian() -> None:
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((200, 32)).astype(np.float32), layer(8, 32)[0]
    statistics = qrs.Statistics().update(x)
    qt = qrs.quantize(w, "int4-g32", solver="gptq", statistics=statistics)
    assert qt == qrs.gptq(w, statistics, "int4-g32")
    assert qt == qrs.gptq(w, statistics.hessian * 2.0**-7, "int4-g32")


def test_scales_that_are_given_are_kept() -> None:
    w, h = layer(4, 32)
    qt = qrs.quantize(w, "int4-axis0", scale=np.full(4, 0.5), solver="gptq", statistics=h)
    assert (qt.scale == 0.5).all()


def test_a_convolution_is_a_matrix_of_patches() -> None:
    w, h = layer(6, 36)
    for of_images, flat in (("int4-axis0", "int4-axis0"), ("int4-g12-flat", "int4-g12")):
        qt = qrs.gptq(w.reshape(6, 4, 3, 3), h, of_images, polish=1)
        assert np.array_equal(
            qt.dequantize().reshape(6, 36), qrs.gptq(w, h, flat, polish=1).dequantize()
        )


def test_a_scale_for_each_input_or_for_all() -> None:
    w, h = layer(30, 24)
    for scheme in ("int4-axis1", "int4-axis-1", "int4", "uint4"):
        nearest = output_error(w, qrs.quantize(w, scheme).dequantize(), h)
        assert output_error(w, qrs.gptq(w, h, scheme, polish=1).dequantize(), h) < 0.9 * nearest


def test_float16_weights_and_strides() -> None:
    w, h = layer(8, 64)
    half = w.astype(np.float16)
    qt = qrs.gptq(half, h, "int4-g32")
    assert qt.dtype == "float16"
    assert qt.parts["packed"].tobytes() == (
        qrs.gptq(half.astype(np.float32), h, "int4-g32").parts["packed"].tobytes()
    )
    assert qrs.gptq(np.asfortranarray(w), np.asfortranarray(h), "int4-g32") == qrs.gptq(
        w, h, "int4-g32"
    )


@pytest.mark.parametrize("shape", [(0, 8), (4, 0), (0, 0)])
def test_a_weight_of_nothing(shape: tuple[int, int]) -> None:
    h = np.eye(shape[1])
    assert qrs.gptq(np.ones(shape, np.float32), h, "int4-axis0").shape == shape


def test_inputs_that_were_always_zero_are_rounded_to_nearest() -> None:
    w, h = layer(8, 32)
    h[[3, 9]] = h[:, [3, 9]] = 0
    qt = qrs.gptq(w, h, "int4-axis0", polish=2)
    assert qt.info["dead_inputs"] == 2
    nearest = qrs.quantize(w, "int4-axis0", scale=np.abs(qt.scale)).dequantize()
    assert np.abs(qt.dequantize() - w)[:, [3, 9]].max() <= np.abs(nearest - w)[:, [3, 9]].max() * 2


def test_a_singular_hessian_is_damped_and_an_indefinite_one_more() -> None:
    w, _ = layer(8, 32)
    one = np.ones((32, 32))
    qt = qrs.quantize(w, "int4-axis0", solver=GPTQ(damping=0.0), statistics=one)
    assert qt.info["damping"] == 1e-4
    slightly = np.eye(32) - 0.05 * one
    qt = qrs.gptq(w, slightly, "int4-axis0")
    assert qt.info["damping"] == 1.0 == GPTQ(damping=1.0).damping
    message = refused(qrs.gptq, w, np.eye(32) - 0.5 * one + 0.5 * np.eye(32), "int4-axis0",
                      arg="statistics")  # fmt: skip
    assert "positive semidefinite" in message


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("scheme", ["int4-g32-asym-f16", "int4-g32-full-f16", "nf4-g32"])
def test_groups_of_one_sign(scheme: str, sign: int) -> None:
    """Where a symmetric grid of the published code falls to 8 dB."""
    w, h = layer(16, 64)
    w = sign * np.abs(w) + np.float32(sign * 0.5)
    for by in ("minmax", "gptq-polish1"):
        given = {} if by == "minmax" else {"statistics": h}
        errors = output_error(w, qrs.quantize(w, scheme, solver=by, **given).dequantize(), h)
        assert 10 * np.log10(errors) < (-18 if by == "minmax" else -25)


def test_rows_and_columns_of_zeros_and_outliers() -> None:
    w, h = layer(16, 64)
    w[3], w[:, 5], w[4, 7] = 0, 0, 1e4
    for scheme in (*SCHEMES[:3], "nf4-g64-f16", "kmeans4-axis0"):
        qt = qrs.gptq(w, h, scheme, polish=2)
        x_hat = qt.dequantize()
        assert np.isfinite(x_hat).all()
        assert not x_hat[3].any()
        assert abs(x_hat[4, 7] / 1e4 - 1) < 0.01


def test_strings_of_the_solver() -> None:
    for text in ("gptq", "gptq-inorder", "gptq-group", "gptq-polish2", "gptq-inorder-polish12"):
        assert str(GPTQ.parse(text)) == text
        assert qrs.solvers.as_solver(text) == GPTQ.parse(text)
    for text in ("gptq-", "gptq-polish", "gptq-polish2-group", "GPTQ", "gptqx", "gptq-polish٣"):
        assert GPTQ.parse(text) is None
        refused(qrs.solvers.as_solver, text, arg="solver")


@pytest.mark.parametrize(
    ("options", "arg"),
    [
        ({"damping": -0.1}, "damping"), ({"damping": np.nan}, "damping"),
        ({"damping": 2.0}, "damping"), ({"act_order": "groups"}, "act_order"),
        ({"act_order": 1}, "act_order"), ({"act_order": None}, "act_order"),
        ({"polish": -1}, "polish"),
    ],
    ids=str,
)  # fmt: skip
def test_options_out_of_range(options: dict, arg: str) -> None:
    refused(qrs.gptq, *layer(4, 8), "int4", arg=arg, **options)


@pytest.mark.parametrize(
    "options", [{"damping": "0.1"}, {"damping": True}, {"polish": 1.5}], ids=str
)
def test_options_of_another_type(options: dict) -> None:
    (arg,) = options
    refused(qrs.gptq, *layer(4, 8), "int4", error=qrs.ArgTypeError, arg=arg, **options)


@pytest.mark.parametrize(
    "scheme",
    ["e4m3", "nvfp4", "kmeans4-g4", qrs.KMeans(4, axis=0, outlier_fraction=0.1),
     qrs.Codebook("dynamic8", group_size=4, centered=True)],
    ids=str,
)  # fmt: skip
def test_schemes_that_do_not_fit(scheme) -> None:
    refused(qrs.gptq, *layer(4, 8), scheme, arg="solver")


def test_what_is_missing_or_no_weight() -> None:
    w, h = layer(4, 8)
    refused(qrs.quantize, w, "int4", solver="gptq", arg="statistics")
    refused(qrs.gptq, w[0], h, "int4")
    refused(qrs.quantize, w, "int4", statistics=h, arg="statistics")
    message = refused(qrs.gptq, np.where(np.eye(4, 8), np.nan, w), h, "int4")
    assert "4 non-finite values, first nan at (0, 0)" in message


def test_importance_is_relative_and_that_of_patches() -> None:
    w, h = layer(6, 36)
    for scheme in ("int4-g12-asym", "nf4-g12", "kmeans3-axis0"):
        for factor in (2.0**-200, 2.0**200):
            assert qrs.gptq(w, h * factor, scheme) == qrs.gptq(w, h, scheme)
    conv, flat = w.reshape(6, 4, 3, 3), qrs.quantize(w, "int4-axis0", solver="lsq", statistics=h)
    of_images = qrs.quantize(conv, "int4-axis0", solver="lsq", statistics=h)
    assert np.array_equal(of_images.scale, flat.scale)
    refused(qrs.quantize, w, "int4", solver="lsq", statistics=np.eye(5), arg="statistics")
    few = qrs.Statistics().update(np.ones((2, 5), np.float32))
    refused(qrs.quantize, w, "int4", solver="lsq", statistics=few, arg="statistics")


def test_scales_beside_zero_points_stay_positive() -> None:
    for seed in range(5):
        w, h = layer(16, 24, seed)
        assert (qrs.gptq(w, h, "int2-g4-asym", polish=4).scale > 0).all()
