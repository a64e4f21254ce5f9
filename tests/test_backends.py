"""Which backend a call gets, what is said when one is missing, and what an import brings along."""

import json
import sys
import types

import numpy as np
import pytest

import qrs
from gradient_calls import GRADIENTS
from processes import run
from product_calls import PRODUCT_OPERATIONS, SOLVING
from qrs import backends
from qrs.backends.reference import OPERATIONS, Reference

X = np.ones((4, 64), np.float32)


def cupy_like() -> object:
    """An object whose type says that it comes from CuPy. It has no data to look at."""
    module = types.ModuleType("cupy")
    kind = type("ndarray", (), {"__module__": "cupy._core.core"})
    module.ndarray = kind
    return kind()


@pytest.fixture(autouse=True)
def no_variable(monkeypatch):
    monkeypatch.delenv("QRS_BACKEND", raising=False)


@pytest.fixture
def no_cupy(monkeypatch):
    """As where CuPy is not installed."""
    monkeypatch.setitem(sys.modules, "cupy", None)
    backends.get.cache_clear()
    yield
    backends.get.cache_clear()


@pytest.fixture
def ran(monkeypatch) -> list[str]:
    """The names of the backends whose fused encoder runs."""
    from qrs.backends.rust import Rust

    names: list[str] = []
    for kind in (Reference, Rust):
        encode = kind.quantize_affine_packed

        def recorded(self, *args, _encode=encode):
            names.append(type(self).name)
            return _encode(self, *args)

        monkeypatch.setattr(kind, "quantize_affine_packed", recorded)
    return names


# ---- The switch ----------------------------------------------------------------------------------


def test_numpy_arrays_go_to_rust(ran):
    for x in (X, X.tolist(), X.view(np.recarray), memoryview(X)):
        qrs.quantize(x, "int8")
    assert ran == ["rust"] * 4


def test_the_argument_decides(ran):
    qrs.quantize(X, "int8", backend="reference")
    qrs.quantize(X, "int8", backend="rust")
    assert ran == ["reference", "rust"]


def test_the_variable_decides(ran, monkeypatch):
    monkeypatch.setenv("QRS_BACKEND", "reference")
    qrs.quantize(X, "int8")
    monkeypatch.setenv("QRS_BACKEND", "")
    qrs.quantize(X, "int8")
    assert ran == ["reference", "rust"]


def test_the_argument_goes_before_the_variable(ran, monkeypatch):
    monkeypatch.setenv("QRS_BACKEND", "reference")
    qrs.quantize(X, "int8", backend="rust")
    monkeypatch.setenv("QRS_BACKEND", "nonsense")
    qrs.quantize(X, "int8", backend="reference")
    assert ran == ["rust", "reference"]


CALLS = {
    "quantize": lambda backend: qrs.quantize(X, "int8", backend=backend),
    "dequantize": lambda backend: qrs.dequantize(
        qrs.quantize(X, "int8", backend="rust"), backend=backend
    ),
    "method": lambda backend: qrs.quantize(X, "int8", backend="rust").dequantize(backend=backend),
    "fake_quantize": lambda backend: qrs.fake_quantize(X, "int8", backend=backend),
}
every_call = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)


@every_call
@pytest.mark.parametrize("name", ["numpy", "", "Rust", "rust ", "cuda"])
def test_names_that_are_none(call, name):
    with pytest.raises(qrs.ArgValueError) as caught:
        call(name)
    assert str(caught.value) == f"backend: got {name!r}, expected one of: reference, rust, cupy"
    assert (caught.value.arg, caught.value.value) == ("backend", name)


@every_call
@pytest.mark.parametrize(
    "name", [1, b"rust", Reference, Reference(), ["rust"]], ids=lambda name: type(name).__name__
)
def test_names_are_strings(call, name):
    with pytest.raises(qrs.ArgTypeError, match=r"backend: got .* expected a string"):
        call(name)


@every_call
def test_the_variable_is_named(call, monkeypatch):
    monkeypatch.setenv("QRS_BACKEND", "nonsense")
    with pytest.raises(qrs.ArgValueError, match="QRS_BACKEND: got 'nonsense', expected one of"):
        CALLS["quantize"](None)
    with pytest.raises(qrs.ArgValueError, match="QRS_BACKEND"):
        call(None)


@every_call
def test_cupy_says_why_it_is_missing(call, no_cupy):
    with pytest.raises(qrs.DeviceError) as caught:
        call("cupy")
    message = str(caught.value)
    assert "'cupy' is not available: CuPy is not installed" in message
    assert "fix: pip install 'qrs-quant[cuda13]'" in message
    assert isinstance(caught.value, RuntimeError)


# ---- Arrays of other libraries -------------------------------------------------------------------


def test_cupy_arrays_go_to_cupy(no_cupy):
    for call in (qrs.quantize, qrs.fake_quantize):
        with pytest.raises(qrs.DeviceError, match="'cupy' is not available"):
            call(cupy_like(), "int8")


@pytest.mark.parametrize("backend", ["reference", "rust"])
def test_other_backends_do_not_take_cupy_arrays(backend):
    with pytest.raises(qrs.DeviceError) as caught:
        qrs.quantize(cupy_like(), "int8", backend=backend)
    assert f"backend: {backend!r} does not compute on CuPy arrays" in str(caught.value)
    assert caught.value.arg == "backend"


def test_the_variable_does_not_move_arrays(monkeypatch):
    monkeypatch.setenv("QRS_BACKEND", "rust")
    with pytest.raises(qrs.DeviceError, match="QRS_BACKEND: 'rust' does not compute on CuPy"):
        qrs.quantize(cupy_like(), "int8")


@pytest.mark.parametrize("backend", [None, "rust", "reference", "cupy"])
def test_libraries_do_not_mix(backend):
    for x, scale in ((X, cupy_like()), (cupy_like(), np.ones(1, np.float32))):
        with pytest.raises(qrs.DeviceError, match="numpy and CuPy in one call"):
            qrs.quantize(x, "int8", scale=scale, backend=backend)


# ---- What is there -------------------------------------------------------------------------------


def test_describe(no_cupy):
    rows = {row["name"]: row for row in backends.describe()}
    assert list(rows) == ["reference", "rust", "cupy"]
    for name in ("reference", "rust"):
        assert rows[name]["available"] and rows[name]["reason"] is None
        assert rows[name]["operations"] == list(OPERATIONS)
    assert not rows["cupy"]["available"]
    assert rows["cupy"]["reason"] and rows["cupy"]["fix"]
    assert rows["cupy"]["operations"] == []


def test_available_backends(no_cupy):
    assert qrs.available_backends() == ["reference", "rust"]


def test_operations_are_those_of_the_reference():
    assert (
        "pack_bits", "unpack_bits", "group_range", "choose_qparams_affine", "quantize_affine",
        "dequantize_affine", "quantize_affine_packed", "dequantize_affine_packed",
        "fake_quantize_affine", "encode_float", "decode_float", "choose_scale_float",
        "choose_scale_float_nested", "quantize_float", "dequantize_float",
        "quantize_float_packed", "dequantize_float_packed", "choose_scale_codebook",
        "quantize_codebook", "dequantize_codebook", "center_scales", "choose_scale_lsq",
        "quantize_codebook_packed", "dequantize_codebook_packed", "kmeans_1d", "kmeans_assign",
        "kmeans_update", "kmeans_potentials", *PRODUCT_OPERATIONS, *SOLVING, *GRADIENTS,
    ) == OPERATIONS  # fmt: skip


def test_an_extension_that_does_not_load_says_so(monkeypatch):
    """Without the Rust module: numpy arrays are an error, never a silent detour."""
    monkeypatch.setitem(sys.modules, "qrs._qrs", None)
    backends.get.cache_clear()
    try:
        with pytest.raises(
            qrs.DeviceError, match=r"'rust' is not available: .* does not load"
        ) as e:
            qrs.quantize(X, "int8")
        assert "pip install" in str(e.value)
        assert qrs.available_backends() == ["reference"]
        row = backends.describe()[1]
        assert not row["available"] and "pip install" in row["fix"]
        for call in (qrs.simd_level, qrs.num_threads, lambda: qrs.set_num_threads(1)):
            with pytest.raises(qrs.DeviceError):
                call()
        assert qrs.fake_quantize([0.0, 1.0], "int8", backend="reference").tolist() == [0, 1]
    finally:
        backends.get.cache_clear()


# ---- Imports -------------------------------------------------------------------------------------


def test_import_brings_no_heavy_libraries():
    loaded = set(json.loads(run("import qrs, sys, json; print(json.dumps(list(sys.modules)))")))
    assert "numpy" in loaded
    assert not loaded & {"cupy", "torch", "typer", "rich", "hypothesis", "jax", "safetensors"}
    assert not {name for name in loaded if name.startswith(("qrs.cli", "qrs.checkpoint"))}


def test_a_call_brings_no_heavy_libraries():
    code = "import qrs, sys; qrs.quantize([1.0], 'int8'); print('torch' in sys.modules)"
    assert run(code).strip() == "False"


def test_a_wrong_variable_does_not_break_the_import():
    code = """
import qrs
try:
    qrs.quantize([1.0], "int8")
except qrs.ArgValueError as error:
    print(error)
"""
    assert "QRS_BACKEND: got 'abc'" in run(code, QRS_BACKEND="abc")


def test_the_reference_needs_no_extension():
    code = """
import sys
sys.modules["qrs._qrs"] = None
import qrs
for scheme in ("int8", "uint4", "int3-axis0-asym", "uint4-g2-f16"):
    x = [[0.0, 0.0], [0.0, 0.0]]  # scale 1, and zero points to be packed
    assert qrs.quantize(x, scheme, backend=backend).dequantize(backend=backend).tolist() == x
    assert qrs.fake_quantize(x, scheme, backend=backend).tolist() == x
"""
    run('backend = "reference"' + code)
    run("backend = None" + code, QRS_BACKEND="reference")
