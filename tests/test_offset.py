"""Integers with float offsets: bytes, decoding, ranges, the search for both, what refuses them."""

from pathlib import Path

import numpy as np
import pytest

import qrs
from qrs import nn
from qrs.qtensor import QTensor
from qrs.solvers import output_error
from refusals import refused

RNG = np.random.default_rng(17)
W = (RNG.standard_normal((12, 96)) + 3).astype(np.float32)
SCHEMES = ["uint4-g32-offset", "uint4-g32-offset-f16", "uint3-g40-offset-bf16-ragged",
           "uint8-axis0-offset", "uint2-axis1-offset-f16", "uint5-offset"]  # fmt: skip


def errors_of_groups(x: np.ndarray, qt: QTensor, weights: np.ndarray | None = None) -> np.ndarray:
    """The squared error of each group of a row."""
    size = getattr(qt.scheme.granularity, "group_size", x.shape[1])
    e = (1 if weights is None else weights) * (x.astype(np.float64) - qt.dequantize()) ** 2
    return np.add.reduceat(e, range(0, x.shape[1], size), axis=1)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_there_and_back(scheme: str, tmp_path: Path) -> None:
    parsed = qrs.parse(scheme)
    assert str(parsed) == scheme and qrs.schemes.from_dict(parsed.to_dict()) == parsed
    qt = qrs.quantize(W, scheme)
    qrs.save(tmp_path / "o.safetensors", {"w": qt})
    back = qrs.load(tmp_path / "o.safetensors")["w"]
    assert back == qt and back.dequantize().tobytes() == qt.dequantize().tobytes()
    assert np.array_equal(qt[3:7].dequantize(), qt.dequantize()[3:7])
    assert np.array_equal(qrs.fake_quantize(W, scheme), qt.dequantize())
    assert np.array_equal(qt.dequantize("float16"), qt.dequantize().astype(np.float16))
    assert qrs.quantize(W, scheme, backend="reference") == qt
    assert qrs.quantize(W[:0], scheme).shape == (0, 96)


def test_decoding_is_a_product_and_a_sum_of_float32() -> None:
    qt = qrs.quantize(W, "uint4-g32-offset-f16")
    assert qt.codes.dtype == np.uint8 and qt.bits_per_weight == 5.0
    scale, offset = (np.repeat(qt.parts[name].astype(np.float32), 32, axis=1)
                     for name in ("scale", "offset"))  # fmt: skip
    assert np.array_equal(qt.dequantize(), qt.codes.astype(np.float32) * scale + offset)
    assert (abs(qt.dequantize() - W) <= scale * 0.51 + 0.01).all()


def test_ranges_need_not_hold_zero_and_constants_are_exact() -> None:
    x = np.float32([[5.0, 5.5, 6.0, 6.5], [7, 7, 7, 7], [-3, -2, -1, -9], [0, 0, 0, 0]])
    qt = qrs.quantize(x, "uint4-g4-offset")
    assert qt.parts["offset"].reshape(-1).tolist() == [5, 7, -9, 0]
    assert (
        np.allclose(qt.dequantize(), x, atol=0.3) and (qt.dequantize()[[1, 3]] == x[[1, 3]]).all()
    )
    zero_points = qrs.quantize(x, "uint4-g4").dequantize()
    assert abs(qt.dequantize() - x)[0].max() < 0.3 * abs(zero_points - x)[0].max()


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("scheme", SCHEMES[:4])
def test_the_search_is_never_worse_on_any_group(scheme: str, weighted: bool) -> None:
    x = (RNG.standard_t(3, (24, 96)) * 10.0 ** RNG.integers(-3, 4, (24, 1))).astype(np.float32)
    x[3], x[5, :40], x[6] = 0, 1, np.abs(x[6])
    w = RNG.exponential(size=x.shape).astype(np.float32) if weighted else None
    before = errors_of_groups(x, qrs.quantize(x, scheme), w)
    found = qrs.quantize(x, scheme, solver="lsq", weights=w)
    after = errors_of_groups(x, found, w)
    assert (after <= before * (1 + 1e-6)).all()
    assert after.sum() < 0.98 * before.sum()
    assert found == qrs.quantize(x, scheme, solver="lsq", weights=w, backend="reference")


@pytest.mark.parametrize(
    ("scheme", "decibels"),
    [("uint4-g32-offset-f16", 23.23), ("uint4-g64-offset-f16", 21.81),
     ("uint4-g128-offset-f16", 20.85), ("uint3-g128-offset-f16", 15.04),
     ("uint2-g128-offset-f16", 9.54)],
)  # fmt: skip
def test_the_search_reaches_the_figures_for_normal_numbers(scheme: str, decibels: float) -> None:
    x = np.random.default_rng(7).standard_normal((64, 4096)).astype(np.float32)
    found = qrs.quantize(x, scheme, solver="lsq").dequantize()
    assert qrs.metrics.sqnr_db(x, found) > decibels - 0.01


def test_gptq_with_offsets() -> None:
    x = RNG.standard_normal((400, 96)) @ (np.eye(96) + RNG.standard_normal((96, 96)) / 9)
    known = qrs.Statistics().update(x.astype(np.float32))
    nearest, found = (
        output_error(W, qrs.quantize(W, "uint3-g32-offset", **how).dequantize(), known)
        for how in ({}, {"solver": "gptq-polish1", "statistics": known})
    )
    assert found < 0.75 * nearest


def test_what_offsets_do_not_do() -> None:
    qt = qrs.quantize(W, "uint4-g32-offset")
    with pytest.raises(qrs.ArgValueError, match="no layer multiplies its offsets"):
        nn.Linear(qt)
    refused(qrs.quantize, W, "uint4-g32-offset", solver="awq", statistics=np.eye(96), arg="solver")
    refused(qrs.quantize, W, "uint4-g32-offset", zero_point=1, arg="zero_point")
    refused(qrs.quantize, np.full((1, 4), 1e6), "uint4-g4-offset-f16")
    refused(qrs.quantize, np.float32([[1, np.nan]]), "uint4-g2-offset")
    for bits in (1, 9):
        refused(qrs.IntOffset, bits, arg="bits")
    refused(qrs.IntOffset, 4, scale_dtype="f16", arg="scale_dtype")
    with pytest.raises(qrs.ArgValueError, match="both given"):
        qrs.IntOffset(4, axis=0, group_size=4)
    refused(qrs.parse, "int4-g32-offset", arg="scheme")
    leaves = {**dict(qt.leaves()), "offset": np.full((12, 3), np.nan, np.float32)}
    refused(QTensor.from_leaves, qt.scheme, W.shape, "float32", leaves, arg="offset")
