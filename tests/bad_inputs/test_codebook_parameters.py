"""Parameters of codebook schemes and of learning: rows P01 to P07 of bad inputs on them.

P12, seeds, is in test_lloyd.py; what `kmeans_1d` refuses is in test_kmeans.py.
"""

import numpy as np
import pytest

import qrs
from refusals import noise, refused

X = noise(4, 64)
NF4 = qrs.quantize(X, "nf4-g16")
KMEANS = {"table": 16, "scale_dtype": None, "group_size": None}
LEVELS = np.float32([-1, 0, 0.5, 1])


@pytest.mark.parametrize("bits", [0, 1, 9, -4, 2**70])
@pytest.mark.parametrize("make", [qrs.KMeans, qrs.LearnedCodebook])
def test_P01_bits(make, bits):
    message = refused(make, bits, arg="bits")
    assert message == f"bits: got {bits}, expected 2, 3, 4, 5, 6, 7 or 8"
    for other in (3.5, True, "4", None):
        refused(make, other, arg="bits", error=qrs.ArgTypeError)


@pytest.mark.parametrize("scale_bits", [0, 4, 7, 32])
def test_P01_bits_of_scales(scale_bits):
    refused(qrs.LearnedCodebook, 4, 32, scale_bits, arg="scale_bits")


@pytest.mark.parametrize("make", [qrs.NF4, qrs.FP4])
def test_P02_group_sizes(make, backend):
    for size in (0, -1, 2**63):
        refused(make, size, arg="group_size")
    message = refused(qrs.quantize, X, make(48), arg="group_size", backend=backend)
    assert "got group_size=48, shape=(4, 64)" in message
    assert qrs.quantize(X, make(48, ragged=True), backend=backend).scale.shape == (4, 2)


@pytest.mark.parametrize(
    ("scale", "arg", "words"),
    [
        (np.ones((4, 3), np.float32), "scale", "got shape (4, 3)"),
        (np.full((4, 4), np.nan), "scale", "nan at (0, 0)"),
        (np.full((4, 4), np.inf), "scale", "inf at (0, 0)"),
        (np.zeros((4, 4)), "scale", "0.0 at (0, 0)"),
        (np.ones((4, 4), np.int8), "scale", "got dtype int8"),
    ],
)
def test_P03_P04_scales(scale, arg, words, backend):
    error = qrs.ArgTypeError if scale.dtype == np.int8 else qrs.ArgValueError
    message = refused(
        qrs.quantize, X, "nf4-g16", scale=scale, arg=arg, backend=backend, error=error
    )
    assert words in message


@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0])
def test_P04_scales_of_learned_tables(value, backend):
    scale = np.full((4, 1), value)
    refused(qrs.quantize, X, "learned2-g64-s16", scale=scale, arg="scale", backend=backend)


def test_P04_scales_that_are_legal(backend):
    qt = qrs.quantize(X, "nf4-g16", scale=np.full((4, 4), -3.0), backend=backend)
    assert np.abs(qt.dequantize(backend=backend) - X).max() < 0.5
    codes = np.full((4, 64), 7)
    zero = qrs.QTensor.from_parts("nf4-g16", (4, 64), codes, np.zeros((4, 4)))
    assert not zero.dequantize(backend=backend).any()
    codes[2, 17] = 8
    message = refused(
        qrs.QTensor.from_parts, "nf4-g16", (4, 64), codes, np.zeros((4, 4)), arg="scale"
    )
    assert "where codes differ from 7" in message


@pytest.mark.parametrize("scheme", ["nf4-g16", "kmeans4", "learned4-g16-s6"])
def test_P05_zero_points(scheme):
    refused(qrs.quantize, X, scheme, scale=None, zero_point=np.zeros(4), arg="zero_point")


def test_P06_codes():
    for codes, words, error in [
        (np.full((4, 64), 16), "16 at (0, 0)", qrs.ArgValueError),
        (np.full((4, 64), -1), "-1 at (0, 0)", qrs.ArgValueError),
        (np.zeros((4, 64)), "got dtype float64", qrs.ArgTypeError),
        (np.zeros((4, 63), int), "got shape (4, 63)", qrs.ArgValueError),
    ]:
        message = refused(
            qrs.QTensor.from_parts, "nf4-g16", (4, 64), codes, NF4.scale, arg="codes", error=error
        )
        assert words in message


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ([0.0, 1.0, np.nan, 2.0], "nan at (2,)"),
        ([0.0, 1.0, np.inf, 2.0], "inf at (2,)"),
        ([0.0, 1.0, 1e300, 2.0], "1e+300 at (2,)"),
        ([0.0, 1.0, 2.0], "got 3 levels"),
        (range(17), "got 17 levels"),
        ([0.0, 0.0, 0.0, 0.0], "got zeros alone"),
        (np.zeros(2**24, np.float32), "got 16777216 levels"),
        (2**24, "got 16777216"),
        (2, "got 2"),
        (0, "got 0"),
        (-16, "got -16"),
        ("nf5", "got 'nf5'"),
    ],
)
def test_P07_tables(table, words):
    table = list(table) if isinstance(table, range) else table
    assert words in refused(qrs.Codebook, table, arg="table")


@pytest.mark.parametrize("table", [None, True, 4.0, ["a", "b", "c", "d"], [[0.0, 1.0, 2.0, 3.0]]])
def test_P07_tables_of_other_types(table):
    refused(qrs.Codebook, table, arg="table", error=qrs.ArgTypeError)


def test_P07_unsorted_tables_and_duplicates_are_legal(backend):
    qt = qrs.quantize(X, qrs.Codebook([1.0, -1.0, 0.0, 0.0], group_size=16), backend=backend)
    assert not (qt.codes == 3).any() and (qt.codes == 2).any()


@pytest.mark.parametrize(
    ("codebook", "error", "words"),
    [
        (None, qrs.ArgValueError, "missing for kmeans2"),
        (LEVELS[:3], qrs.ArgValueError, "got shape (3,)"),
        (np.float32([0, np.nan, 1, 2]), qrs.ArgValueError, "nan at (1,)"),
        (np.float32([0, 1e6, 1, 2]), qrs.ArgValueError, "1000000.0 at (1,)"),
        (np.arange(4), qrs.ArgTypeError, "got dtype int64"),
    ],
)
def test_P07_learned_tables(codebook, error, words):
    codes = np.zeros((4, 64), int)
    message = refused(
        qrs.QTensor.from_parts, "kmeans2", (4, 64), codes, None, codebook=codebook,
        arg="codebook", error=error,
    )  # fmt: skip
    assert words in message


def test_codebooks_for_schemes_without():
    codes = np.zeros((4, 64), int)
    for scheme, scale in [("nf4-g16", NF4.scale), ("int4", 1.0), ("e4m3", None)]:
        message = refused(
            qrs.QTensor.from_parts, scheme, (4, 64), codes, scale, codebook=LEVELS, arg="codebook"
        )
        assert "given for" in message


@pytest.mark.parametrize(
    ("fields", "arg"),
    [
        ({"book_granularity": qrs.PerAxis(0)}, "book_granularity"),
        ({"book_dtype": "float64", "table": 16}, "book_dtype"),
        ({"scale_dtype": "float64"}, "scale_dtype"),
        ({"scale_dtype": qrs.Int(8), "group_size": None}, "scale_dtype"),
        ({"outlier_fraction": 0.1}, "outlier_fraction"),
        ({"table": 16, "outlier_fraction": 0.1}, "outlier_fraction"),
        ({**KMEANS, "outlier_fraction": 1.0}, "outlier_fraction"),
        ({**KMEANS, "outlier_fraction": -0.1}, "outlier_fraction"),
        ({**KMEANS, "outlier_fraction": np.nan}, "outlier_fraction"),
        ({"table": 16, "centered": True}, "centered"),
        ({"table": 16, "book_granularity": qrs.PerAxis(0)}, "book_granularity"),
        ({"axis": 0}, "group_size"),
    ],
)
def test_fields_that_contradict(fields, arg):
    refused(lambda: qrs.Codebook(**{"table": "nf4", "group_size": 16, **fields}), arg=arg)


def test_double_quantization_stores_no_other_scales():
    refused(qrs.NF4, 64, True, "float16", arg="scale_dtype")
    refused(qrs.NF4, 64, 1, arg="double_quant", error=qrs.ArgTypeError)


@pytest.mark.parametrize(
    ("weights", "error", "words"),
    [
        (np.ones(63), qrs.ArgValueError, "broadcasts to (4, 64)"),
        (-np.ones(64), qrs.ArgValueError, "-1.0 at (0,)"),
        (np.full((4, 64), np.nan), qrs.ArgValueError, "nan at (0, 0)"),
        (np.full((4, 64), np.inf), qrs.ArgValueError, "inf at (0, 0)"),
        (np.ones(64, int), qrs.ArgTypeError, "got dtype int64"),
        ("all", qrs.ArgTypeError, "got str"),
    ],
)
@pytest.mark.parametrize(("scheme", "solver"), [("kmeans2", "minmax"), ("int4-g16", "lsq")])
def test_weights(weights, error, words, scheme, solver):
    message = refused(
        qrs.quantize, X, scheme, solver=solver, weights=weights, arg="weights", error=error
    )
    assert words in message


@pytest.mark.parametrize("scheme", ["int4-g16", "nf4-g16", "e4m3", "mxfp4"])
def test_weights_that_nobody_uses(scheme):
    assert "do not depend" in refused(qrs.quantize, X, scheme, weights=np.ones(64), arg="weights")


@pytest.mark.parametrize("scheme", ["e4m3", "mxfp4", "kmeans4"])
def test_schemes_that_the_scale_search_does_not_fit(scheme):
    refused(qrs.quantize, X, scheme, solver="lsq", arg="solver")


def test_scales_that_the_scale_search_would_find():
    for arg in ("scale", "zero_point"):
        refused(qrs.quantize, X, "int4-g16", solver="lsq", arg=arg, **{arg: np.ones((4, 4))})


@pytest.mark.parametrize(
    ("part", "value", "words"),
    [
        ("sparse_indptr", 1, "multiples of 3"),
        ("sparse_indices", 64, "columns from 0 to 63"),
        ("sparse_indices", 0, "ascending"),
        ("sparse_values", np.nan, "finite"),
    ],
)
def test_P08_outliers(part, value, words):
    qt = qrs.quantize(X, "kmeans2-axis0-sparse0.05")
    leaves = {path: array.copy() for path, array in qt.leaves()}
    leaves[part][1] = value
    message = refused(qrs.QTensor.from_leaves, qt.scheme, qt.shape, "float32", leaves, arg=part)
    assert words in message
