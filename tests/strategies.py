"""Hypothesis strategies: integer schemes, and arrays that they fit."""

from typing import Any

import ml_dtypes
import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import qrs

DTYPES = {
    "float32": np.float32,
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
    "float64": np.float64,
}


@st.composite
def schemes(draw: st.DrawFn, granularity: Any = None) -> qrs.Int:
    """Any valid `Int`; `granularity` is a granularity, or a strategy for one."""
    signed = draw(st.booleans())
    symmetric = signed and draw(st.booleans())
    if granularity is None:
        granularity = st.one_of(
            st.just(qrs.PerTensor()),
            st.builds(qrs.PerAxis, st.integers(-4, 4)),
            st.builds(qrs.PerGroup, st.integers(1, 2**31 - 1), st.booleans()),
        )
    if isinstance(granularity, st.SearchStrategy):
        granularity = draw(granularity)
    return qrs.Int(
        draw(st.integers(2, 8)),
        signed=signed,
        symmetric=symmetric,
        full_range=symmetric and draw(st.booleans()),
        granularity=granularity,
        scale_dtype=draw(st.sampled_from(["float32", "float16", "bfloat16"])),
    )


@st.composite
def float_schemes(draw: st.DrawFn, granularity: Any = None) -> qrs.Float:
    """Any valid `Float`, plain casts included."""
    name = draw(st.sampled_from(["bf16", "f16", "e4m3", "e5m2", "e2m1"]))
    if draw(st.integers(0, 3)) == 0:
        return qrs.Float(name, saturate=draw(st.booleans()))
    if granularity is None:
        granularity = st.one_of(
            st.just(qrs.PerTensor()),
            st.builds(qrs.PerAxis, st.integers(-4, 4)),
            st.builds(qrs.PerGroup, st.integers(1, 2**31 - 1), st.booleans(), st.booleans()),
        )
    if isinstance(granularity, st.SearchStrategy):
        granularity = draw(granularity)
    nested = [qrs.Float(each, granularity=qrs.PerTensor()) for each in ("e4m3", "e5m2")]
    scale_dtypes = ["float32", "float16", "bfloat16", "e8m0"]
    scale_dtypes += [] if isinstance(granularity, qrs.PerTensor) else nested
    return qrs.Float(name, granularity=granularity, scale_dtype=draw(st.sampled_from(scale_dtypes)))


def granularities(shape: tuple[int, ...]) -> st.SearchStrategy:
    """Those that fit `shape`."""
    cols = max(shape[-1], 1)
    return st.one_of(
        st.just(qrs.PerTensor()),
        st.builds(qrs.PerAxis, st.integers(-len(shape), len(shape) - 1)),
        st.sampled_from([n for n in range(1, cols + 1) if cols % n == 0]).map(qrs.PerGroup),
        st.builds(qrs.PerGroup, st.integers(1, cols + 2), st.just(True)),
    )


shapes = hnp.array_shapes(min_dims=1, max_dims=4, min_side=1, max_side=9)


def arrays(shape: Any = shapes, dtype: str = "float32", greatest: float = 6e4):
    """Finite arrays; up to `greatest`, so that float16 can hold them and their scales."""
    width = 64 if dtype == "float64" else 32
    elements = st.floats(-greatest, greatest, width=width, allow_nan=False)
    # Values that repeat and lie between the codes find more than uniform noise does.
    elements |= st.integers(-40, 40).map(lambda n: n / 4)
    return hnp.arrays(DTYPES["float64"], shape, elements=elements).map(
        lambda x: x.astype(DTYPES[dtype])
    )


@st.composite
def fitting(draw: st.DrawFn, dtype: str = "float32") -> tuple[np.ndarray, qrs.Int]:
    """An array and a scheme that fits it."""
    x = draw(arrays(dtype=dtype))
    return x, draw(schemes(granularities(x.shape)))


@st.composite
def codebook_schemes(draw: st.DrawFn, granularity: Any = None) -> qrs.Codebook:
    """Any valid `Codebook`: fixed tables with every kind of scale, k-means, learned tables."""
    if granularity is None:
        granularity = st.one_of(
            st.just(qrs.PerTensor()),
            st.builds(qrs.PerAxis, st.integers(-4, 4)),
            st.builds(qrs.PerGroup, st.integers(1, 2**31 - 1), st.booleans(), st.booleans()),
        )
    shared = draw(granularity) if isinstance(granularity, st.SearchStrategy) else granularity
    scale_dtypes = ["float32", "float16", "bfloat16"]
    book_dtype = draw(st.sampled_from(scale_dtypes))
    kind = draw(st.sampled_from(["fixed", "kmeans", "learned"]))
    if kind == "kmeans":
        return qrs.Codebook(
            1 << draw(st.integers(2, 5)),
            book_granularity=shared,
            book_dtype=book_dtype,
            scale_dtype=None,
            outlier_fraction=draw(st.sampled_from([0.0, 0.0, 0.3])),
        )
    quantized: list[Any] = []
    if not isinstance(shared, qrs.PerTensor):
        quantized = [qrs.NF4(double_quant=True).scale_dtype, qrs.LearnedCodebook().scale_dtype]
    scale_dtype = draw(st.sampled_from([*scale_dtypes, *quantized]))
    if kind == "learned":
        size = 1 << draw(st.integers(2, 5))
        return qrs.Codebook(
            size, granularity=shared, book_dtype=book_dtype, scale_dtype=scale_dtype
        )
    # Levels near zero would make the scales that reach a range infinite.
    levels = st.floats(-2, 2, width=32).map(lambda level: level if abs(level) > 1e-3 else 0.0)
    table = draw(
        st.sampled_from(["nf4", "fp4", "dynamic8"])
        | st.lists(levels, min_size=4, max_size=4).filter(lambda t: max(map(abs, t)) > 1e-3)
    )
    return qrs.Codebook(table, granularity=shared, scale_dtype=scale_dtype)
