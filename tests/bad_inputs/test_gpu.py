"""Malformed situations around a GPU (rows U01, U03, U05, U08), played without one.

Where CuPy stands in the way of what is to be shown, tests/cuda_cpu/fake_cupy.py stands in for it.
"""

import subprocess
import sys
from collections.abc import Iterator
from types import ModuleType

import numpy as np
import pytest

import qrs
from cuda_cpu import fake_cupy
from cuda_machines import GPU, machine, reference_call
from kernel_calls import ARGUMENTS, RULES, Case, bits_of
from nasty import misaligned, nasty
from qrs import backends

X = np.linspace(-1, 1, 256, dtype=np.float32).reshape(2, 128)
FUSED = ARGUMENTS["quantize_affine_packed"](Case(X, 32, RULES["int4"]))


@pytest.fixture(autouse=True)
def forget_backends() -> Iterator[None]:
    """What is missing here is there again in the next test."""
    backends.get.cache_clear()
    yield
    backends.get.cache_clear()


def cupy_that(error: Exception | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A CuPy whose runtime raises this when asked for its devices; None is no CuPy at all."""
    if error is None:
        monkeypatch.setitem(sys.modules, "cupy", None)
        return

    def devices() -> int:
        raise error

    module = ModuleType("cupy")
    runtime = type("runtime", (), {"getDeviceCount": staticmethod(devices)})
    module.cuda = type("cuda", (), {"runtime": runtime})  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "cupy", module)


def cuda_error(name: str) -> Exception:
    return fake_cupy.CUDARuntimeError(name)


@pytest.mark.parametrize(
    ("error", "visible", "reason", "fix"),
    [
        (None, None, "CuPy is not installed", "pip install 'qrs-quant[cuda13]'"),
        (cuda_error("cudaErrorInsufficientDriver"), None, "no NVIDIA driver", "install the NVIDIA"),
        (cuda_error("cudaErrorNoDevice"), None, "no CUDA device (", "where there is an NVIDIA GPU"),
        (cuda_error("cudaErrorNoDevice"), "", "CUDA_VISIBLE_DEVICES=''", "unset CUDA_VISIBLE"),
        (cuda_error("cudaErrorNoDevice"), "7", "CUDA_VISIBLE_DEVICES='7'", "name a device in it"),
        (
            cuda_error("cudaErrorUnknown"),
            None,
            "CUDA does not start: cudaErrorUnknown",
            "nvidia-smi",
        ),
        (ImportError("libnvrtc.so.13"), None, "CuPy does not load: libnvrtc.so.13", "pip install"),
    ],
    ids=["cupy", "driver", "device", "invisible", "visible-7", "unknown", "import"],
)
def test_U01_says_what_is_missing(error, visible, reason, fix, monkeypatch):
    cupy_that(error, monkeypatch)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    with pytest.raises(qrs.DeviceError) as caught:
        qrs.quantize(X, "int8", backend="cupy")
    message = str(caught.value)
    assert "backend 'cupy' is not available: " in message
    assert reason in message and fix in message
    assert caught.value.arg == "backend"
    row = backends.describe()[2]
    assert not row["available"] and reason in row["reason"] and fix in row["fix"]
    assert qrs.quantize(X, "int8").dequantize().shape == X.shape  # the CPU is none the worse


def test_U01_there_is_no_compiler(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", fake_cupy)
    monkeypatch.setattr("qrs.backends.nvrtc._WHEELS", {})
    monkeypatch.setattr("qrs.backends.nvrtc.ctypes.CDLL", lambda _: (_ for _ in ()).throw(OSError))
    backends.cupy.nvrtc._library.cache_clear()
    try:
        with pytest.raises(qrs.DeviceError, match=r"no libnvrtc\.so\.13 here; fix: pip"):
            backends.get("cupy")
    finally:
        backends.cupy.nvrtc._library.cache_clear()


def test_U01_all_is_there(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", fake_cupy)
    assert type(backends.get("cupy")).__name__ == "Cupy"
    assert backends.describe()[2]["operations"] == list(backends.OPERATIONS)
    with fake_cupy.devices(0):
        backends.get.cache_clear()
        with pytest.raises(qrs.DeviceError, match="cudaErrorNoDevice"):
            backends.get("cupy")


def test_U01_the_gpu_is_too_old(monkeypatch):
    monkeypatch.setattr(fake_cupy.Device, "compute_capability", "75")
    with pytest.raises(qrs.DeviceError, match=r"capability 7\.5, the kernels need 8\.0 or later"):
        backends.cupy.Cupy(fake_cupy).group_range(fake_cupy.asarray(X), 32)


def test_U01_importing_qrs_does_not_import_cupy():
    code = "import sys, qrs; qrs.quantize([1.0], 'int8'); print('cupy' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "False"


# ---- U03 -----------------------------------------------------------------------------------------


def on_device(array: np.ndarray, device: int) -> fake_cupy.ndarray:
    with fake_cupy.Device(device):
        return fake_cupy.asarray(array)


def test_U03_runs_on_the_device_of_the_arrays_and_restores_it():
    here = machine("order-0")
    with fake_cupy.devices(2):
        x = on_device(X, 1)
        packed, scale, _ = here.backend.quantize_affine_packed(x, *FUSED[1:])
        assert packed.device.id == scale.device.id == 1
        assert fake_cupy.Device().id == 0
        assert bits_of((packed.get(), scale.get())) == bits_of(
            reference_call("quantize_affine_packed", *FUSED)[:2]
        )
        x[0, 3] = np.inf  # the fault comes from device 1, too
        assert here.raw_call("quantize_affine_packed", x, *FUSED[1:]) == ("fault", "nonfinite", 0)
        assert fake_cupy.Device().id == 0


@pytest.mark.parametrize("op", [op for op in ARGUMENTS if op not in ("group_range", "pack_bits")])
def test_U03_arguments_on_different_devices_are_named(op):
    here, case = machine("order-0"), Case(X, 32, RULES["int4-asym-f16"])
    case.prepare(op)
    arguments = list(ARGUMENTS[op](case))
    if op in ("quantize_affine_packed", "fake_quantize_affine"):
        arguments[-2:] = case.qparams
    with fake_cupy.devices(2):
        arrays = [i for i, a in enumerate(arguments) if isinstance(a, np.ndarray)]
        for away in arrays[1:]:
            mixed = [
                on_device(a, int(i == away)) if i in arrays else a for i, a in enumerate(arguments)
            ]
            with pytest.raises(qrs.DeviceError, match=r"device 1, expected device 0, where"):
                getattr(here.backend, op)(*mixed)
        if not arrays[1:]:
            out = on_device(np.zeros((2, 128), np.int8), 1)
            mixed = [on_device(a, 0) if isinstance(a, np.ndarray) else a for a in arguments]
            with pytest.raises(qrs.DeviceError, match="out: on device 1, expected device 0"):
                getattr(here.backend, op)(*mixed, out)
        assert fake_cupy.Device().id == 0


def test_U03_libraries_do_not_mix():
    with pytest.raises(qrs.DeviceError, match="numpy and CuPy in one call"):
        qrs.quantize(fake_cupy.asarray(X), "int8", scale=np.ones(1, np.float32))


# ---- U05, as far as kernels see it ---------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("offset", [1, 2, 3, 7])
def test_U05_arrays_that_start_one_element_further(offset, dtype):
    here = machine("order-2")
    for name in ("primes-2x1031", "65-columns", "ties-4-bits"):
        x = nasty(dtype)[name]
        moved = here.xp.ndarray(misaligned(x, offset * x.itemsize))
        for rule in ("int8", "uint4", "int3"):
            for op in ("group_range", "quantize_affine_packed", "fake_quantize_affine"):
                arguments = ARGUMENTS[op](Case(x, 32, RULES[rule]))
                found = here.raw_call(op, moved, *arguments[1:])
                assert bits_of(found) == bits_of(reference_call(op, *arguments)), (name, rule)


@pytest.mark.parametrize("shape", [(0, 5), (3, 0), (0, 0)])
def test_U05_empty_arrays(shape):
    x = np.zeros(shape, np.float32)
    for op in ("group_range", "quantize_affine_packed", "fake_quantize_affine"):
        arguments = ARGUMENTS[op](Case(x, 4, RULES["uint4"]))
        found = machine("order-0").call(op, *arguments)
        assert bits_of(found) == bits_of(reference_call(op, *arguments))


# ---- U08 -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("there", ["order-2", GPU])
@pytest.mark.parametrize(
    "op", [op for op in ARGUMENTS if "qparams" not in op and "range" not in op]
)
def test_U08_out_is_overwritten_entirely_and_nothing_beside_it(op, there):
    """Outputs full of 0xA5, at any address that their elements allow, between guards."""
    here = machine(there)
    for name in ("primes-2x1031", "primes-13x11", "65-columns", "64-columns", "one"):
        for group_size, rule in ((7, "uint5-bf16"), (32, "int4"), (4096, "int8"), (8, "uint8")):
            case = Case(nasty("float16")[name], group_size, RULES[rule])
            if case.prepare(op):
                continue
            arguments = ARGUMENTS[op](case)
            (fresh, *_) = reference_call(op, *arguments)
            for offset in (0, 2, 8, 16):
                memory = here.to_device(np.full(fresh.nbytes + 96, 0xA5, np.uint8))
                out = memory[offset : offset + fresh.nbytes].view(fresh.dtype).reshape(fresh.shape)
                result = here.raw_call(op, *map(here.to_device, arguments), out)
                assert bits_of(result[:1]) == bits_of((fresh,)), (name, rule, offset)
                everything = memory.get()
                end = offset + fresh.nbytes
                assert everything[offset:end].tobytes() == fresh.tobytes()
                assert (everything[:offset] == 0xA5).all() and (everything[end:] == 0xA5).all()


def test_U08_new_arrays_are_full_of_the_pattern_until_a_kernel_wrote_them():
    assert set(fake_cupy.empty((3, 5), np.float16).view(np.uint8).get().ravel()) == {0xA5}
