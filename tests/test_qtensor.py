"""QTensor: equality, hashing, copying, pickling, selecting, sizes, and parts from elsewhere."""

import copy
import math
import pickle

import numpy as np
import pytest
from hypothesis import given

import qrs
from qrs import QTensor
from strategies import fitting

W = np.random.default_rng(0).standard_normal((6, 64)).astype(np.float32)


def quantized(text: str = "int4-g16-asym-f16") -> QTensor:
    return qrs.quantize(W, text)


@given(fitting())
def test_copies_are_equal_and_share_nothing(case):
    x, scheme = case
    qt = qrs.quantize(x, scheme)
    for again in (qt.copy(), copy.deepcopy(qt), pickle.loads(pickle.dumps(qt))):
        assert again == qt and hash(again) == hash(qt)
        assert again.info == qt.info and again.dtype == qt.dtype
        for (_, a), (_, b) in zip(qt.leaves(), again.leaves(), strict=True):
            assert not np.shares_memory(a, b)


@given(fitting())
def test_leaves_make_the_tensor_again(case):
    x, scheme = case
    qt = qrs.quantize(x, scheme)
    assert QTensor.from_leaves(scheme, qt.shape, qt.dtype, dict(qt.leaves())) == qt


@given(fitting())
def test_codes_and_parameters_make_the_tensor_again(case):
    x, scheme = case
    qt = qrs.quantize(x, scheme)
    assert QTensor.from_parts(scheme, qt.shape, qt.codes, qt.scale, qt.zero_point) == qt
    lists = (None if part is None else part.tolist() for part in (qt.scale, qt.zero_point))
    assert QTensor.from_parts(str(scheme), list(qt.shape), qt.codes.tolist(), *lists) == qt


@given(fitting())
def test_sizes_are_counted(case):
    x, scheme = case
    qt = qrs.quantize(x, scheme)
    assert qt.nbytes == sum(len(array.tobytes()) for array in qt.parts.values())
    assert qt.bits_per_weight == 8 * qt.nbytes / x.size
    assert (qt.size, qt.ndim, len(qt)) == (x.size, x.ndim, x.shape[0])


@pytest.mark.parametrize(
    ("text", "bits"),
    [
        ("int4-g32-f16", 4.5),  # 16 / 32 for the scale
        ("int4-g128-asym-f16", 4 + 16 / 128 + 4 / 128),  # and a zero point of 4 bits
        ("int8-axis0", 8 + 32 / 256),
        ("uint2-g64-bf16", 2 + 16 / 64 + 2 / 64),
        ("int3", 3 + 32 / (8 * 256)),
    ],
)
def test_bits_per_weight(text, bits):
    assert qrs.quantize(np.ones((8, 256), np.float32), text).bits_per_weight == bits


def test_bits_per_weight_of_nothing():
    assert math.isnan(qrs.quantize(np.zeros((0, 4), np.float32), "int8").bits_per_weight)


def test_what_makes_tensors_different():
    qt = quantized()
    assert qt != quantized("int4-g32-asym-f16")
    assert qt != qrs.quantize(W.astype(np.float16), qt.scheme)
    assert qt != qrs.quantize(W.reshape(3, 128), qt.scheme)
    assert qt != "int4-g16-asym-f16"
    for name in ("packed", "scale", "zero_point"):
        other = qt.copy()
        other.parts[name].reshape(-1).view(np.uint8)[-1] ^= 1
        assert other != qt
        assert hash(other) != hash(qt)
    other = qt.copy()
    other.info["fallback"] = "none"
    assert other == qt


def test_equality_is_of_bits():
    qt = QTensor.from_parts("int8", (1,), [0], 0.0)
    negative = QTensor.from_parts("int8", (1,), [0], -0.0)
    assert qt.scale == negative.scale
    assert qt != negative


def test_repr_says_what_it_is():
    assert repr(quantized()) == (
        "QTensor(int4-g16-asym-f16, shape=(6, 64), dtype=float32, 5.25 bits per weight)"
    )


def test_parts_are_what_is_documented():
    qt = quantized()
    assert {path: (a.dtype.name, a.shape) for path, a in qt.leaves()} == {
        "packed": ("uint8", (6, 32)),
        "scale": ("float16", (6, 4)),
        "zero_point": ("uint8", (6, 2)),
    }
    assert qt.packed is qt.parts["packed"]
    assert qt.scale.dtype == np.float32 and qt.scale.shape == (6, 4)
    assert qt.zero_point.dtype == np.int8 and qt.zero_point.shape == (6, 4)
    assert qt.codes.dtype == np.int8 and qt.codes.shape == (6, 64)
    assert quantized("int8").zero_point is None
    assert list(quantized("int8").parts) == ["packed", "scale"]


# ---- Rows ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text", ["int8", "uint4", "int4-axis0", "uint4-axis-2", "uint3-axis1", "int4-g16-asym-f16"]
)
@pytest.mark.parametrize(
    "rows",
    [slice(None), slice(1, 4), slice(None, None, -1), slice(4, 1), [0], [5, 0, 0], [-1], [],
     np.array([2, 3]), np.array([True, False] * 3), [False] * 6],
    ids=str,
)  # fmt: skip
def test_rows(text, rows):
    qt = quantized(text)
    index = np.asarray(rows, int) if isinstance(rows, list) and not rows else rows
    part = qt[rows]
    assert part.scheme == qt.scheme
    assert np.array_equal(part.dequantize(), qt.dequantize()[index])
    assert part.shape == qt.dequantize()[index].shape


@pytest.mark.parametrize("rows", [0, (0, 1), None, ..., "0", 1.5, np.int64(1)], ids=str)
def test_rows_of_other_types(rows):
    with pytest.raises(qrs.ArgTypeError) as caught:
        quantized()[rows]
    assert caught.value.arg == "rows"


@pytest.mark.parametrize(
    "rows", [[6], [-7], [0.5], [[0]], ["0"], [True], np.ones(7, bool), np.ones((6, 64), bool)],
    ids=str,
)  # fmt: skip
def test_rows_that_there_are_not(rows):
    with pytest.raises((qrs.ArgTypeError, qrs.ArgValueError)) as caught:
        quantized()[rows]
    assert caught.value.arg == "rows"


def test_a_vector_has_no_rows():
    with pytest.raises(qrs.ArgTypeError, match="rows"):
        qrs.quantize(W[0], "int8")[1:]


# ---- Parts from elsewhere ------------------------------------------------------------------------


def test_parts_by_hand():
    qt = QTensor.from_parts(
        "uint4-g2-f16", (1, 4), [[0, 15, 3, 3]], np.array([[0.5, 2]], np.float64), [[1, 3]]
    )
    assert qt.dequantize().tolist() == [[-0.5, 7, 0, 0]]
    assert qt.parts["scale"].dtype == np.float16
    assert qt.packed.tolist() == [[0xF0, 0x33]]


def test_negative_scales_are_legal_in_symmetric_schemes():
    assert QTensor.from_parts("int4-full", (2,), [-8, 7], -1.0).dequantize().tolist() == [8, -7]


def leaves() -> dict[str, np.ndarray]:
    return dict(quantized().leaves())


@pytest.mark.parametrize(
    ("change", "arg"),
    [
        (lambda parts: parts.pop("scale"), "scale"),
        (lambda parts: parts.pop("zero_point"), "zero_point"),
        (lambda parts: parts.update(codebook=np.zeros(4)), "codebook"),
        (lambda parts: parts.update(packed=parts["packed"][:, :-1]), "packed"),
        (lambda parts: parts.update(packed=parts["packed"].view(np.int8)), "packed"),
        (lambda parts: parts.update(packed=parts["packed"].tolist()), "packed"),
        (lambda parts: parts.update(scale=parts["scale"].astype(np.float32)), "scale"),
        (lambda parts: parts.update(scale=parts["scale"].T), "scale"),
        (lambda parts: parts.update(zero_point=parts["zero_point"][:3]), "zero_point"),
        (lambda parts: parts["scale"].__setitem__((1, 1), np.nan), "scale"),
        (lambda parts: parts["scale"].__setitem__((1, 1), np.inf), "scale"),
        (lambda parts: parts["scale"].__setitem__((1, 1), -1), "scale"),
        (lambda parts: parts["scale"].__setitem__((1, 1), 0), "scale"),
    ],
)
def test_leaves_are_not_trusted(change, arg):
    qt, parts = quantized(), leaves()
    parts = {path: array.copy() for path, array in parts.items()}
    change(parts)
    with pytest.raises(qrs.ArgValueError) as caught:
        QTensor.from_leaves(qt.scheme, qt.shape, qt.dtype, parts)
    assert caught.value.arg == arg


@pytest.mark.parametrize(
    ("shape", "error"),
    [
        ((6, -64), qrs.ArgValueError),
        ((), qrs.ArgTypeError),
        (64, qrs.ArgTypeError),
        ((6, 64.0), qrs.ArgTypeError),
        ((True, 64), qrs.ArgTypeError),
        ("6x", qrs.ArgTypeError),
        (None, qrs.ArgTypeError),
        ((6, 65), qrs.ArgValueError),
        ((2**62, 2**62), qrs.ArgValueError),
    ],
    ids=str,
)
def test_shapes_are_not_trusted(shape, error):
    qt = quantized()
    with pytest.raises(error):
        QTensor.from_leaves(qt.scheme, shape, qt.dtype, leaves())


@pytest.mark.parametrize("dtype", ["int8", "float", "", None, np.float32])
def test_the_dtype_of_the_source_must_be_known(dtype):
    qt = quantized()
    with pytest.raises((qrs.ArgValueError, qrs.ArgTypeError)) as caught:
        QTensor.from_leaves(qt.scheme, qt.shape, dtype, leaves())
    assert caught.value.arg == "dtype"


# ---- Decoding ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["int8", "f32", "float8_e4m3fn", 3, None, np.int32, "complex64"])
def test_dtypes_that_cannot_be_decoded_to(dtype):
    with pytest.raises((qrs.ArgTypeError, qrs.ArgValueError)) as caught:
        quantized().dequantize(dtype)
    assert caught.value.arg == "dtype"
    assert "float16" in caught.value.expected


def test_dequantize_takes_a_qtensor():
    with pytest.raises(qrs.ArgTypeError, match="qt: got ndarray, expected a QTensor"):
        qrs.dequantize(W)


def test_strided_parts_decode_as_their_copies():
    qt = quantized()
    for array in qt.parts.values():
        array.flags.writeable = False
    parts = {path: np.asfortranarray(array) for path, array in qt.leaves()}
    again = QTensor.from_leaves(qt.scheme, qt.shape, qt.dtype, parts)
    assert again == qt and hash(again) == hash(qt)
    assert np.array_equal(again.dequantize(), qt.dequantize())


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_every_pickle_protocol(protocol):
    qt = qrs.quantize(np.linspace(-1, 1, 64, dtype=np.float32), "int4-g32")
    assert pickle.loads(pickle.dumps(qt, protocol)) == qt


@pytest.mark.parametrize("shape", [(6, 4, 3, 3), (6, 36), (2, 3, 5), (0, 4, 4), (3, 0, 4)])
@pytest.mark.parametrize("scheme", ["int4-g12-flat-ragged", "uint3-g36-f16-flat-ragged"])
def test_groups_along_flattened_axes(shape, scheme):
    """Stored as the matrix (shape[0], the rest); everything else has the shape of the tensor."""
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    matrix = x.reshape(shape[0], math.prod(shape[1:]))
    qt, flat = qrs.quantize(x, scheme), qrs.quantize(matrix, scheme)
    assert [a.tobytes() for _, a in qt.leaves()] == [a.tobytes() for _, a in flat.leaves()]
    assert qt.shape == shape
    assert qt.codes.shape == shape
    assert np.array_equal(qt.dequantize(), flat.dequantize().reshape(shape))
    assert np.array_equal(qt[1:].dequantize(), qt.dequantize()[1:])
    assert np.array_equal(qrs.fake_quantize(x, scheme), qt.dequantize())
    assert qrs.QTensor.from_parts(scheme, shape, qt.codes, qt.scale, qt.zero_point) == qt
    assert qrs.schemes.from_dict(qt.scheme.to_dict()) == qt.scheme == qrs.parse(str(qt.scheme))


def test_codes_that_the_scheme_never_writes():
    qt = qrs.quantize(np.linspace(-1, 1, 6, dtype=np.float32).reshape(2, 3), "int4")
    for row, byte, words in ((0, 0x08, "code -8 in row 0"), (1, 0x11, "last code of row 1")):
        leaves = {path: array.copy() for path, array in qt.leaves()}
        leaves["packed"][row, -1] = byte
        with pytest.raises(qrs.ArgValueError, match=words):
            qrs.QTensor.from_leaves(qt.scheme, qt.shape, qt.dtype, leaves)


def test_given_scales_are_float32_first():
    """float64 narrows to float32 (rule 1), then to the stored dtype (rule 7)."""
    scale = 1 + 2**-11 + 2**-40
    qt = qrs.quantize([1.0], "int8-f16", scale=scale)
    assert qt == qrs.quantize([1.0], "int8-f16", scale=np.float32(scale))
    assert float(qt.scale) == 1


@pytest.mark.parametrize("rows", [np.array(1), slice("a", "b"), slice(None, None, 0), [[0], [1, 2]],
                                  [5], np.array([True])])  # fmt: skip
def test_rows_that_are_none(rows):
    qt = qrs.quantize(np.ones((2, 4), np.float32), "int8")
    with pytest.raises(qrs.QrsError, match=r"^rows: "):
        qt[rows]


def test_scale_overflow_says_the_scale_that_is_needed():
    scheme = qrs.Int(8, full_range=True, scale_dtype="float16")
    with pytest.raises(qrs.ArgValueError, match=r"needs a scale of 70312\.5"):
        qrs.quantize([-9e6, 1.0], scheme)
