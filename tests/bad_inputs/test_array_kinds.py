"""Kinds of arrays and of memory: rows A17-A28 of the table of bad inputs."""

import ml_dtypes
import numpy as np
import pytest

import qrs
from nasty import layouts, misaligned, same_bits
from refusals import CALLS, CODEBOOKS, SCHEMES, every_call, every_dtype, noise, refused

X = noise(4, 64)
QT = qrs.quantize(X, "int4-g16")


@every_dtype
@pytest.mark.parametrize("scheme", [*SCHEMES, *CODEBOOKS])
def test_A17_every_stride_pattern(dtype, scheme, level):
    for x in (noise(5, 67, dtype=dtype), noise(3, 4, 33, dtype=dtype), noise(129, dtype=dtype)):
        qt, x_hat = qrs.quantize(x, scheme), qrs.fake_quantize(x, scheme)
        for name, other in layouts(x):
            assert np.array_equal(x, other), name
            assert qrs.quantize(other, scheme) == qt, name
            assert same_bits(qrs.fake_quantize(other, scheme), x_hat), name
        row = np.broadcast_to(x[:1], x.shape)
        assert qrs.quantize(row, scheme) == qrs.quantize(np.ascontiguousarray(row), scheme)


@pytest.mark.parametrize("dtype", [">f4", ">f2", ">f8"])
def test_A18_big_endian(dtype, backend):
    x = noise(3, 64).astype(dtype)
    native = x.astype(x.dtype.newbyteorder("="))
    for scheme in ("int8", "uint4-g16"):
        qt = qrs.quantize(x, scheme, backend=backend)
        assert qt == qrs.quantize(native, scheme, backend=backend)
        assert qt.dtype == native.dtype.name


def test_A19_read_only(backend):
    x = noise(3, 64)
    before = x.copy()
    x.flags.writeable = False
    qt = qrs.quantize(x, "int4-g16", backend=backend)
    x_hat = qrs.fake_quantize(x, "int4-g16", backend=backend)
    assert same_bits(x, before)
    x_hat.flags.writeable = False
    for call in (
        lambda: qrs.dequantize(qt, out=x_hat, backend=backend),
        lambda: qrs.fake_quantize(x, "int4-g16", out=x_hat, backend=backend),
    ):
        assert "not writable" in refused(call, arg="out")
    for _, array in qt.leaves():
        array.flags.writeable = False
    assert same_bits(qt.dequantize(backend=backend), x_hat)
    message = refused(qrs.quantize, x, "int4-g16", out=qt, arg="out", backend=backend)
    assert "packed is an array that is not writable" in message


@every_dtype
@pytest.mark.parametrize("offset", [1, 2, 3])
def test_A20_misaligned(dtype, offset, level):
    x = noise(5, 67, dtype=dtype)
    moved = misaligned(x, offset)
    assert qrs.quantize(moved, "int4-axis0") == qrs.quantize(x, "int4-axis0")
    assert same_bits(qrs.fake_quantize(moved, "uint8"), qrs.fake_quantize(x, "uint8"))
    qt = qrs.quantize(x, "uint4-g67")
    if not moved.flags.aligned:
        assert "not writable, aligned" in refused(qrs.dequantize, qt, dtype, out=moved, arg="out")
    leaves = {path: misaligned(array, offset) for path, array in qt.leaves()}
    again = qrs.QTensor.from_leaves(qt.scheme, qt.shape, qt.dtype, leaves)
    assert same_bits(again.dequantize(), qt.dequantize())


@pytest.mark.parametrize(
    ("out", "error"),
    [
        (np.zeros((4, 63), np.float32), qrs.ArgValueError),
        (np.zeros(256, np.float32), qrs.ArgValueError),
        (np.zeros((4, 64), np.float64), qrs.ArgValueError),
        (np.zeros((4, 64), np.float16), qrs.ArgValueError),
        (np.zeros((4, 64), ">f4"), qrs.ArgValueError),
        (np.zeros((4, 64), np.float32, order="F"), qrs.ArgValueError),
        (np.zeros((4, 128), np.float32)[:, ::2], qrs.ArgValueError),
        (np.zeros((4, 64), np.float32).tolist(), qrs.ArgTypeError),
        (np.ma.zeros((4, 64), np.float32), qrs.ArgTypeError),
        (QT, qrs.ArgTypeError),
    ],
    ids=lambda out: (
        f"{type(out).__name__}-{getattr(out, 'dtype', '')}{getattr(out, 'strides', '')}"
    ),
)
def test_A21_out_that_does_not_fit(out, error, backend):
    before = np.array(out).copy() if not isinstance(out, qrs.QTensor) else None
    for call in (
        lambda: qrs.dequantize(QT, out=out, backend=backend),
        lambda: qrs.fake_quantize(X, "int4-g16", out=out, backend=backend),
    ):
        assert "out" in refused(call, error=error, arg="out")
        assert before is None or np.array_equal(np.array(out), before)


def test_A21_out_that_overlaps(backend):
    memory = np.zeros(8 * 64, np.float32)
    x = memory[: 4 * 64].reshape(4, 64)
    x[...] = X
    for start in (0, 1, 4 * 64 - 1):
        out = memory[start : start + 4 * 64].reshape(4, 64)
        before = memory.copy()
        message = refused(qrs.fake_quantize, x, "int8", out=out, arg="out", backend=backend)
        assert "overlaps an input" in message
        assert same_bits(memory, before)
    qt = QT.copy()
    qt.parts["packed"] = memory.view(np.uint8)[: qt.packed.size].reshape(qt.packed.shape)
    assert "overlaps" in refused(qrs.dequantize, qt, out=x, arg="out", backend=backend)
    assert "overlaps" in refused(qrs.quantize, x, qt.scheme, out=qt, arg="out", backend=backend)


def test_A21_out_that_overlaps_what_is_copied(backend):
    """The caller's array counts, not the copy in C order or in float32 that the kernels get."""
    square = noise(8, 8)
    before = square.copy()
    refused(qrs.fake_quantize, square.T, "int4", out=square, arg="out", backend=backend)
    wide = noise(8, 8).astype(np.float64)
    out = qrs.quantize(wide, "int8").copy()
    out.parts["packed"] = wide.view(np.uint8).reshape(-1)[:64].reshape(8, 8)
    refused(qrs.quantize, wide, "int8", out=out, arg="out", backend=backend)
    assert same_bits(square, before)


@pytest.mark.parametrize("shape", [(0, 5), (5, 0)])
def test_A21_out_without_elements_is_used(shape, backend):
    x = np.zeros(shape, np.float32)
    out = qrs.quantize(x, "uint8-axis0").copy()
    out.parts["scale"].fill(77)
    assert qrs.quantize(x, "uint8-axis0", out=out, backend=backend) is out
    assert out == qrs.quantize(x, "uint8-axis0")


@pytest.mark.parametrize("scheme", ["int8", "int4-g32", "uint4-g16"])
@pytest.mark.parametrize("out", [QT.packed, "out", 3], ids=["array", "string", "number"])
def test_A21_out_that_is_another_tensor(scheme, out):
    assert "out: got" in refused(qrs.quantize, X, scheme, out=QT.copy(), arg="out")
    assert "out: got" in refused(qrs.quantize, X[:2], QT.scheme, out=QT.copy(), arg="out")
    refused(qrs.quantize, X, scheme, out=out, error=qrs.ArgTypeError, arg="out")


UNACCEPTED = {
    "object": np.array([1.0, None], object),
    "text": np.array(["1.0", "2.0"]),
    "bytes": np.array([b"1.0"]),
    "datetime": np.array(["2020-01-01"], "M8[D]"),
    "timedelta": np.array([1], "m8[s]"),
    "structured": np.zeros(3, [("a", "f4"), ("b", "f4")]),
    "bool": np.array([True, False]),
    "complex": np.array([1 + 2j]),
    "void": np.zeros(3, "V4"),
}


@every_call
@pytest.mark.parametrize("x", UNACCEPTED.values(), ids=UNACCEPTED)
def test_A22_dtypes_that_are_no_floats(call, x):
    message = refused(call, x, "int8", error=qrs.ArgTypeError)
    assert f"got dtype {x.dtype}, expected one of: float32, float16, bfloat16, float64" in message


@pytest.mark.parametrize("x", ["text", b"bytes", None, {1: 2}, {1.0}, object(), ["a"], [None], len],
                         ids=lambda x: type(x).__name__)  # fmt: skip
def test_A22_objects_that_are_no_arrays(x):
    refused(qrs.quantize, x, "int8", error=qrs.ArgTypeError)


@pytest.mark.parametrize(
    ("dtype", "name"),
    [(np.float32, "float32"), (np.float16, "float16"), (ml_dtypes.bfloat16, "bfloat16"),
     (np.float64, "float64")],
)  # fmt: skip
def test_A23_floats_that_are_accepted(dtype, name, backend):
    x = np.linspace(-1, 1, 9).astype(dtype)
    qt = qrs.quantize(x, "int8", backend=backend)
    assert qt.dtype == name
    assert qt.codes.tolist() == [-127, -95, -64, -32, 0, 32, 64, 95, 127]


@every_call
@pytest.mark.parametrize(
    "dtype", [np.longdouble, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2, ml_dtypes.int4]
)
def test_A23_floats_that_are_not(call, dtype):
    message = refused(call, np.ones(4).astype(dtype), "int8", error=qrs.ArgTypeError)
    assert np.dtype(dtype).name in message and "expected one of: float32" in message


@every_call
@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int32, np.uint64, np.bool_])
def test_A24_integers(call, dtype):
    message = refused(call, np.ones(4, dtype), "int8", error=qrs.ArgTypeError)
    assert message.endswith("; cast to a float dtype first")


@every_call
def test_A25_masked_arrays(call):
    x = np.ma.array([1.0, 2.0, 3.0], mask=[False, True, False])
    for masked in (x, np.ma.array([1.0, 2.0]), np.ma.masked):
        message = refused(call, masked, "int8", error=qrs.ArgTypeError)
        assert message.startswith("x: masked array not supported; call .filled()")
    message = refused(
        qrs.quantize, X, "int8-axis0", scale=np.ma.ones(4), error=qrs.ArgTypeError, arg="scale"
    )
    assert "masked array" in message


class Meters(np.ndarray):
    """A subclass with state, as libraries of units have."""

    def __array_finalize__(self, other):
        self.unit = getattr(other, "unit", "m")

    def __array_ufunc__(self, *args, **kwargs):
        raise AssertionError("a ufunc of the subclass ran")


class Tensor:
    """What a torch CPU tensor looks like to numpy."""

    def __init__(self, array):
        self.array = array

    def __array__(self, dtype=None, copy=None):
        return self.array if dtype is None else self.array.astype(dtype)


class Broken:
    def __array__(self, dtype=None, copy=None):
        raise RuntimeError("can't convert a cuda tensor")


def as_matrix(x: np.ndarray) -> np.ndarray:
    return np.ndarray.__new__(np.matrix, x.shape, x.dtype, x)


@every_call
@pytest.mark.parametrize(
    "convert",
    [as_matrix, lambda x: x.view(Meters), lambda x: x.view(np.recarray), memoryview, Tensor,
     lambda x: Tensor(x.T.copy().T), np.ndarray.tolist, lambda x: tuple(map(tuple, x.tolist())),
     list],
    ids=["matrix", "subclass", "recarray", "memoryview", "__array__", "__array__-strided", "list",
         "tuples", "list-of-rows"],
)  # fmt: skip
def test_A26_what_converts_to_an_array(call, convert):
    result, plain = call(convert(X), "int4-g16"), call(X, "int4-g16")
    if isinstance(plain, np.ndarray):
        assert type(result) is np.ndarray
        assert np.array_equal(result, plain)
    else:
        assert same_bits(result.packed, plain.packed) and same_bits(result.scale, plain.scale)


@every_call
def test_A26_what_does_not_convert(call):
    message = refused(call, Broken(), "int8", error=qrs.ArgTypeError)
    assert "cannot convert Broken to an array: can't convert a cuda tensor" in message
    ragged = refused(call, [[1.0, 2.0], [3.0]], "int8", error=qrs.ArgTypeError)
    assert ragged.startswith("x: cannot convert list to an array")


def test_A26_torch():
    torch = pytest.importorskip("torch")
    x = torch.tensor(X)
    assert qrs.quantize(x, "int4-g16") == QT
    assert qrs.quantize(x.t(), "int4-axis0") == qrs.quantize(X.T, "int4-axis0")
    refused(qrs.quantize, x.requires_grad_(), "int8", error=qrs.ArgTypeError)


def test_A28_a_shape_that_is_only_pretended():
    """Exabytes by strides of zero, and beyond the end of a small array."""
    stride_tricks = np.lib.stride_tricks.as_strided
    small = np.ones(16, np.float32)
    for fake in (
        stride_tricks(small, (2**40, 2**20), (0, 0)),
        stride_tricks(small, (2**60,), (4,)),
    ):
        for call in CALLS.values():
            with pytest.raises(qrs.QrsMemoryError) as caught:
                call(fake, "int8")
            assert isinstance(caught.value, MemoryError)
