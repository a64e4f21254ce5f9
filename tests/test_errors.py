"""Errors as objects: classes, attributes, messages that name the argument, and pickling."""

import pickle

import numpy as np
import pytest

import qrs
from qrs import errors

X = np.ones((4, 64), np.float32)
QT = qrs.quantize(X, "uint4-g16")
BUILTIN = {
    qrs.ArgTypeError: TypeError,
    qrs.ArgValueError: ValueError,
    qrs.FormatError: ValueError,
    qrs.StorageError: OSError,
    qrs.QrsMemoryError: MemoryError,
    qrs.DeviceError: RuntimeError,
    qrs.ResumeError: RuntimeError,
    qrs.InternalError: RuntimeError,
}

# One call for each way to fail: argument, value, call. The message holds argument, value and
# expectation; `expected` is never None.
FAILING = {
    "scheme": ("int17q", lambda: qrs.quantize(X, "int17q")),
    "scheme type": (3, lambda: qrs.quantize(X, 3)),
    "solver": ("nearest", lambda: qrs.quantize(X, "int8", solver="nearest")),
    "backend": ("numpy", lambda: qrs.quantize(X, "int8", backend="numpy")),
    "backend type": (1, lambda: qrs.quantize(X, "int8", backend=1)),
    "bits": (9, lambda: qrs.Int(9)),
    "bits type": ("4", lambda: qrs.Int("4")),
    "signed": (1, lambda: qrs.Int(4, signed=1)),
    "symmetric": (True, lambda: qrs.Int(4, signed=False, symmetric=True)),
    "full_range": (True, lambda: qrs.Int(4, symmetric=False, full_range=True)),
    "scale_dtype": ("float64", lambda: qrs.Int(4, scale_dtype="float64")),
    "granularity": ("row", lambda: qrs.Int(4, granularity="row")),
    "group_size": (48, lambda: qrs.quantize(X, "int4-g48")),
    "group_size zero": (0, lambda: qrs.Int(4, group_size=0)),
    "group_size twice": (32, lambda: qrs.Int(4, axis=0, group_size=32)),
    "ragged": (True, lambda: qrs.Int(4, ragged=True)),
    "axis": (2, lambda: qrs.quantize(X, "int4-axis2")),
    "x type": (str, lambda: qrs.quantize("text", "int8")),
    "x dtype": (np.dtype(np.int64), lambda: qrs.quantize(np.ones(3, np.int64), "int8")),
    "x ndim": (0, lambda: qrs.quantize(np.float32(1), "int8")),
    "x nonfinite": (np.inf, lambda: qrs.quantize([1, np.inf], "int8")),
    "x overflow": (1e39, lambda: qrs.quantize([1, 1e39], "int8")),
    "x decode": (3.4028234663852886e38, lambda: qrs.quantize([0, 3.4028234663852886e38], "int8")),
    "scale_dtype overflow": ("float16", lambda: qrs.quantize([1e9], "int8-f16")),
    "x masked": (np.ma.MaskedArray, lambda: qrs.quantize(np.ma.ones(3), "int8")),
    "scale": ((2,), lambda: qrs.quantize(X, "int8", scale=np.ones(2))),
    "scale zero": (0.0, lambda: qrs.quantize(X, "int8", scale=0.0)),
    "scale dtype": (np.dtype(np.int64), lambda: qrs.quantize(X, "int8", scale=np.int64(1))),
    "zero_point": (16, lambda: qrs.quantize(X, "uint4", scale=1.0, zero_point=16)),
    "codes": (9, lambda: qrs.QTensor.from_parts("int4", (1,), [9], 1.0)),
    "dtype": ("int8", lambda: QT.dequantize("int8")),
    "out": ("float32 of shape (4,)", lambda: QT.dequantize(out=np.ones(4, np.float32))),
    "out type": (list, lambda: QT.dequantize(out=[1.0])),
    "out tensor": (repr(QT), lambda: qrs.quantize(X, "int8", out=QT)),
    "out array": (np.ndarray, lambda: qrs.quantize(X, "int8", out=X)),
    "qt": (np.ndarray, lambda: qrs.dequantize(X)),
    "rows": (0, lambda: QT[0]),
    "rows bounds": ([9], lambda: QT[[9]]),
    "shape": ("4", lambda: qrs.QTensor.from_parts("int4", "4", [1], 1.0)),
    "shape negative": ((-1,), lambda: qrs.QTensor.from_parts("int4", (-1,), [1], 1.0)),
    "n": (0, lambda: qrs.set_num_threads(0)),
    "n type": ("4", lambda: qrs.set_num_threads("4")),
    "x_hat": ((1,), lambda: qrs.metrics.mse([1.0, 2.0], [1.0])),
}


@pytest.mark.parametrize("name", FAILING)
def test_errors_say_argument_value_and_expectation(name):
    value, call = FAILING[name]
    with pytest.raises(qrs.QrsError) as caught:
        call()
    error = caught.value
    assert type(error) in (qrs.ArgTypeError, qrs.ArgValueError)
    assert error.arg == name.split()[0]
    assert error.arg in str(error)
    assert np.array_equal(error.value, value)
    assert error.expected is not None
    assert "\n" not in str(error)


@pytest.mark.parametrize("name", FAILING)
def test_errors_that_were_raised_pickle(name):
    with pytest.raises(qrs.QrsError) as caught:
        FAILING[name][1]()
    again = pickle.loads(pickle.dumps(caught.value))
    assert type(again) is type(caught.value)
    assert str(again) == str(caught.value)
    assert vars(again) == vars(caught.value)


@pytest.mark.parametrize(("kind", "builtin"), BUILTIN.items())
def test_classes_are_builtin_ones_too(kind, builtin):
    assert issubclass(kind, qrs.QrsError) and issubclass(kind, builtin)
    assert issubclass(qrs.QrsError, Exception)
    assert kind.__name__ in errors.__all__ and getattr(qrs, kind.__name__) is kind


@pytest.mark.parametrize(
    "error",
    [
        qrs.ArgValueError("bits: got 9", arg="bits", value=9, expected="2..8"),
        qrs.ArgTypeError("bits: got x", arg="bits", value="x", expected=int),
        qrs.QrsMemoryError("x: no memory for 5 bytes", arg="x", value=5),
        qrs.DeviceError("no GPU", arg="backend"),
        qrs.ResumeError("config differs", arg="config", value=1, expected=2),
        qrs.InternalError("bug"),
        qrs.FormatError("header", path="a.safetensors", offset=8, tensor="w", field="shape"),
        qrs.StorageError(28, "No space left on device", "out.safetensors"),
        qrs.StorageError(5, "Input/output error"),
        qrs.QrsError(),
    ],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_every_class_pickles(error, protocol):
    again = pickle.loads(pickle.dumps(error, protocol))
    assert type(again) is type(error)
    assert str(again) == str(error) and again.args == error.args
    names = ("arg", "value", "expected", "path", "offset", "tensor", "field", "errno", "filename")
    for name in names:
        assert getattr(again, name, None) == getattr(error, name, None), name


def test_storage_errors_are_those_of_the_system():
    error = qrs.StorageError(28, "No space left on device", "out.safetensors")
    assert (error.errno, error.filename) == (28, "out.safetensors")
    assert str(error) == "[Errno 28] No space left on device: 'out.safetensors'"
    assert (error.arg, error.value, error.expected) == (None, None, None)


def test_errors_of_the_extension_are_the_same_classes():
    from qrs import _qrs

    with pytest.raises(qrs.ArgValueError) as caught:
        _qrs.set_simd_level("nonsense")
    assert (caught.value.arg, caught.value.value) == ("name", "nonsense")
    with pytest.raises(errors.KernelFault) as fault:
        _qrs.group_range(np.full((1, 2), np.nan, np.float32), "float32", 2)
    assert (fault.value.reason, fault.value.group) == ("nonfinite", 0)


def test_inputs_survive_errors():
    x = np.array([[1, 2, np.nan, 3]], np.float32)
    before, out = x.tobytes(), np.full((1, 4), 7, np.float32)
    for scheme in ("int8", "uint4-g2"):
        with pytest.raises(qrs.ArgValueError):
            qrs.quantize(x, scheme)
    assert x.tobytes() == before
    with pytest.raises(qrs.ArgValueError):
        qrs.fake_quantize(x, "int8", out=out[:, ::-1])
    assert (out == 7).all()


@pytest.mark.parametrize("backend", ["reference", "rust"])
def test_a_call_that_fails_changes_nothing_but_out(backend):
    """What is in `out` is unspecified then, as the docstrings say; it can be used again."""
    for function in (qrs.quantize, qrs.dequantize, qrs.fake_quantize, qrs.QTensor.dequantize):
        words = " ".join((function.__doc__ or "").split())
        assert "unspecified" in words or "`out` as in `dequantize`" in words, function
    x = np.linspace(-1, 1, 1 << 16, dtype=np.float32).reshape(64, -1)
    bad = x.copy()
    bad[-1, -1] = np.nan  # late, when other rows are written already
    qt = qrs.quantize(x, "int8-axis0", backend=backend)
    wide = qrs.quantize(x * 1e6, "int8-axis0", backend=backend)
    before = bad.tobytes(), wide.copy()
    out, values = qt.copy(), np.zeros(x.shape, np.float16)
    with pytest.raises(qrs.ArgValueError, match="nan"):
        qrs.quantize(bad, "int8-axis0", out=out, backend=backend)
    with pytest.raises(qrs.ArgValueError, match="overflows float16"):
        qrs.dequantize(wide, "float16", out=values, backend=backend)
    assert before == (bad.tobytes(), wide)
    assert qrs.quantize(x, "int8-axis0", out=out, backend=backend) == qt
    expected = qt.dequantize("float16", backend=backend)
    assert np.array_equal(qrs.dequantize(qt, "float16", out=values, backend=backend), expected)
