"""CuPy arrays through the public API, with a stand-in for CuPy and the kernels on the CPU.

Whatever qrs does with an array of a GPU on its way (checking, reshaping, moving axes, storing
scales) runs here as it does with CuPy: the stand-in refuses what CuPy refuses. What comes out must
be, byte for byte, what numpy arrays give.
"""

import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import qrs
from cuda_cpu import fake_cupy
from cuda_cpu.cpu_module import CpuModule
from nasty import FLOATS
from qrs import backends, checkpoint
from qrs.backends.cupy import KERNELS, Cupy

INTS = (
    "int8",
    "int8-axis0",
    "int8-axis1",
    "int4-g32-asym-f16",
    "uint3-g7-bf16-ragged",
    "int5-full",
)
FLOAT_SCHEMES = ("bf16", "e4m3", "f16-strict", "e4m3-axis1", "e2m1-g16-bf16", "e2m1-axis-1",
                 "nvfp4", "mxfp4", "mxfp8")  # fmt: skip
CODEBOOKS = ("nf4-g16", "nf4-g32-f16", "fp4-g7-bf16-ragged", "nf4-g16-dq")
LEARNED = ("kmeans4", "kmeans2-axis0", "kmeans3-axis1-f32", "kmeans2-g16-bf16",
           "kmeans2-axis0-sparse0.05", "learned4-g16-s6")  # fmt: skip


@cache
def load(family: str, _names: tuple[str, ...]) -> CpuModule:
    return CpuModule(family, KERNELS[family], 0)


@pytest.fixture(autouse=True)
def gpu(monkeypatch: pytest.MonkeyPatch) -> Cupy:
    """A machine with two GPUs, as far as qrs can tell."""
    monkeypatch.setitem(sys.modules, "cupy", fake_cupy)
    cupy, get = Cupy(fake_cupy, lambda family, _: load(family, ())), backends.get
    monkeypatch.setattr(backends, "get", lambda name: cupy if name == "cupy" else get(name))
    with fake_cupy.devices(2):
        yield cupy


def weights(*shape: int, dtype: str = "float32", seed: int = 0) -> np.ndarray:
    x = np.random.default_rng(seed).standard_normal(shape, np.float32)
    return x.astype(FLOATS[dtype])


def on_device(qt: qrs.QTensor) -> bool:
    return all(type(leaf) is fake_cupy.ndarray for _, leaf in qt.leaves())


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("scheme", [*INTS, *FLOAT_SCHEMES, *CODEBOOKS])
def test_the_same_bytes_as_numpy(scheme: str, dtype: str) -> None:
    x = weights(12, 64, dtype=dtype)
    there = fake_cupy.asarray(x)
    expected = qrs.quantize(x, scheme)
    qt = qrs.quantize(there, scheme)
    assert on_device(qt) and qt == expected and hash(qt) == hash(expected)
    assert qt.to("numpy") == expected and expected.to("cupy") == qt
    assert on_device(expected.to("cupy")) and not on_device(qt.to("numpy"))
    assert np.array_equal(there.get(), x)
    for wanted in ("float32", dtype):
        x_hat = qt.dequantize(wanted)
        assert type(x_hat) is fake_cupy.ndarray
        assert x_hat.get().tobytes() == expected.dequantize(wanted).tobytes()
    fake = qrs.fake_quantize(there, scheme)
    assert fake.get().tobytes() == qrs.fake_quantize(x, scheme).tobytes()
    assert qt.codes.get().tobytes() == expected.codes.tobytes()
    if qt.scale is not None:
        assert qt.scale.get().tobytes() == expected.scale.tobytes()
    assert qt[2:5] == expected[2:5] and qt[[3, 1]] == expected[[3, 1]]


@pytest.mark.parametrize("scheme", ["int8-axis0", "int4-g32-asym-f16", "e4m3-tensor", "mxfp4"])
def test_parameters_known_beforehand(scheme: str) -> None:
    x = weights(8, 64)
    known = qrs.quantize(x, scheme)
    scale = known.scale * np.float32(2 if scheme == "mxfp4" else 1.25)
    z = known.zero_point
    there = fake_cupy.asarray(x)
    parameters = {"scale": fake_cupy.asarray(scale)}
    if z is not None:
        parameters["zero_point"] = fake_cupy.asarray(z)
    expected = qrs.quantize(x, scheme, scale=scale, zero_point=z)
    assert qrs.quantize(there, scheme, **parameters) == expected
    if scale.shape:  # a single number belongs to no library
        with pytest.raises(qrs.DeviceError, match="numpy and CuPy in one call"):
            qrs.quantize(there, scheme, scale=scale)
    bad = np.array(scale)
    bad[(0,) * bad.ndim] = np.nan
    with pytest.raises(qrs.ArgValueError, match="scale: nan at"):
        qrs.quantize(there, scheme, **{**parameters, "scale": fake_cupy.asarray(bad)})


@pytest.mark.parametrize(
    "scheme",
    ["int4-g16-full-f16", "int8-axis1", "nf4-g16", "nf4-g16-dq", "int4-g16-asym-f16", "uint8",
     "uint4-g24-ragged", "int3-axis1-asym"],
)  # fmt: skip
def test_the_scale_search_gives_the_same_bytes(scheme: str) -> None:
    x, w = weights(12, 64), np.abs(weights(12, 64, seed=3))
    for weight in (None, w):
        expected = qrs.quantize(x, scheme, solver="lsq", weights=weight)
        given = None if weight is None else fake_cupy.asarray(weight)
        there = qrs.quantize(fake_cupy.asarray(x), scheme, solver="lsq", weights=given)
        assert on_device(there) and there == expected


@pytest.mark.parametrize("scheme", ["uint4-g16-offset-f16", "int4-g16-rot32", "nf4-g16-scaled"])
def test_other_bases_stay_on_the_host(scheme: str) -> None:
    x = weights(12, 64)
    for solver in ("minmax", "lsq"):
        with pytest.raises(qrs.DeviceError, match="no kernels for GPUs"):
            qrs.quantize(fake_cupy.asarray(x), scheme, solver=solver)
    expected = qrs.quantize(x, scheme)
    there = expected.to("cupy")
    assert on_device(there) and there == expected
    with pytest.raises(qrs.DeviceError, match=r"to\('numpy'\)"):
        there.dequantize()


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("scheme", LEARNED)
def test_learned_tables_decode_there_and_are_not_learned_there(scheme: str, dtype: str) -> None:
    expected = qrs.quantize(weights(12, 64), scheme)
    there = expected.to("cupy")
    assert on_device(there) and there == expected
    assert there.dequantize(dtype).get().tobytes() == expected.dequantize(dtype).tobytes()
    assert there.codebook.get().tobytes() == expected.codebook.tobytes()
    assert there[2:5].dequantize().get().tobytes() == expected[2:5].dequantize().tobytes()
    with pytest.raises(qrs.DeviceError, match="on a GPU"):
        qrs.quantize(fake_cupy.asarray(weights(12, 64)), scheme)


@pytest.mark.parametrize("scheme", ["int8-axis0", "int4-g32", "nvfp4", "e4m3-axis1"])
def test_out_is_overwritten(scheme: str) -> None:
    x, other = weights(8, 64), weights(8, 64, seed=1)
    out = qrs.quantize(fake_cupy.asarray(other), scheme)
    assert qrs.quantize(fake_cupy.asarray(x), scheme, out=out) is out
    assert out == qrs.quantize(x, scheme)
    x_hat = fake_cupy.empty((8, 64), np.float32)
    assert out.dequantize(out=x_hat) is x_hat
    assert x_hat.get().tobytes() == qrs.quantize(x, scheme).dequantize().tobytes()
    with pytest.raises(qrs.ArgTypeError, match="out: got ndarray, expected a CuPy array"):
        out.dequantize(out=np.empty((8, 64), np.float32))
    with pytest.raises(qrs.ArgValueError, match="out"):
        out.dequantize(out=fake_cupy.empty((8, 63), np.float32))


@pytest.mark.parametrize("scheme", ["int8", "int4-g16", "int8-axis1", "e4m3-axis1", "mxfp4"])
def test_U05_any_layout(scheme: str) -> None:
    x = weights(8, 64)
    host = np.zeros((10, 70), np.float32)
    host[1:9, 3:67] = x
    wide = fake_cupy.asarray(np.repeat(x, 2, axis=1))
    expected = qrs.quantize(x, scheme)
    for array in (
        fake_cupy.asarray(np.asfortranarray(x)),
        fake_cupy.asarray(host)[1:9, 3:67],
        fake_cupy.asarray(np.ascontiguousarray(x.T)).T,
        wide[:, ::2],
        fake_cupy.asarray(x[::-1].copy())[::-1],
    ):
        assert qrs.quantize(array, scheme) == expected
    row = fake_cupy.asarray(x[:1])
    flat = fake_cupy.ndarray(np.broadcast_to(row.get(), (8, 64)))
    assert qrs.quantize(flat, scheme) == qrs.quantize(np.repeat(x[:1], 8, axis=0), scheme)


@pytest.mark.parametrize("shape", [(0,), (0, 32), (32, 0)])
@pytest.mark.parametrize("scheme", ["int8", "int4-g32-asym", "bf16", "nvfp4", "mxfp4"])
def test_U05_arrays_without_elements(scheme: str, shape: tuple[int, ...]) -> None:
    qt = qrs.quantize(fake_cupy.empty(shape, np.float32), scheme)
    assert on_device(qt) and qt == qrs.quantize(np.empty(shape, np.float32), scheme)
    assert qt.dequantize().shape == shape
    assert qrs.fake_quantize(fake_cupy.empty(shape, np.float32), scheme).shape == shape


@pytest.mark.parametrize("scheme", [*INTS, *FLOAT_SCHEMES, *CODEBOOKS])
def test_A04_errors_are_those_of_numpy(scheme: str) -> None:
    x = weights(8, 63 if "g7" in scheme else 64)
    x[3, 17], x[5, 2] = np.nan, np.inf
    messages = []
    for array in (x, fake_cupy.asarray(x)):
        with pytest.raises(qrs.ArgValueError, match=r"2 non-finite values, first nan") as caught:
            qrs.quantize(array, scheme)
        messages.append(str(caught.value))
    assert messages[0] == messages[1]


def test_what_does_not_fit_is_named() -> None:
    x = weights(4, 64)
    x[2, 40] = 1e7
    there = fake_cupy.asarray(x)
    with pytest.raises(qrs.ArgValueError, match=r"float16 overflows in group \(2, 1\)"):
        qrs.quantize(there, "int4-g32-f16")
    with pytest.raises(qrs.ArgValueError, match=r"10000000.0 at \(2, 40\) overflows f16"):
        qrs.quantize(there, "f16-strict")
    for scheme in ("int8-axis0", "e4m3-axis0"):
        qt = qrs.quantize(there, scheme)
        with pytest.raises(qrs.ArgValueError, match=r"value at \(2, 40\) overflows float16"):
            qt.dequantize("float16")
    with pytest.raises(qrs.ArgTypeError, match="dtype: got float64 on a GPU"):
        qrs.quantize(fake_cupy.asarray(weights(4, 64)), "int8").dequantize("float64")
    with pytest.raises(qrs.ArgTypeError, match="x: got float64 on a GPU"):
        qrs.quantize(fake_cupy.asarray(x.astype(np.float64)), "int8")


def test_U03_devices() -> None:
    x = weights(8, 64)
    with fake_cupy.cuda.Device(1):
        there = fake_cupy.asarray(x)
    qt = qrs.quantize(there, "int4-g32-asym-f16")
    assert {leaf.device.id for _, leaf in qt.leaves()} == {1}
    assert qt.dequantize().device.id == 1 and fake_cupy.cuda.Device().id == 0
    assert qt == qrs.quantize(x, "int4-g32-asym-f16")
    here = qrs.quantize(fake_cupy.asarray(x), "int4-g32-asym-f16")
    with pytest.raises(qrs.DeviceError, match="device"):
        qrs.quantize(there, "int4-g32-asym-f16", out=here)


def test_U03_numpy_and_cupy_in_one_call() -> None:
    x = weights(4, 64)
    with pytest.raises(qrs.DeviceError, match="'rust' does not compute on CuPy arrays"):
        qrs.quantize(fake_cupy.asarray(x), "int8", backend="rust")
    with pytest.raises(qrs.DeviceError, match="'cupy' does not compute on numpy arrays"):
        qrs.quantize(x, "int8", backend="cupy")
    with pytest.raises(qrs.DeviceError):
        qrs.quantize(x, "int8").dequantize(backend="cupy")


class Foreign:
    """An array of another library on a GPU, that speaks one of the two protocols."""

    def __init__(self, array: Any) -> None:
        self.array = array


class Interface(Foreign):
    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        pointer = self.array.data.ptr
        return {"shape": self.array.shape, "typestr": "<f4", "data": (pointer, False), "version": 3}


class DLPack(Foreign):
    def __dlpack__(self, **_: Any) -> Any:
        return self.array

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, 0


class OnTheHost(Foreign):
    def __array__(self, *_: Any, **__: Any) -> np.ndarray:
        return self.array

    def __dlpack_device__(self) -> tuple[int, int]:
        return 1, 0

    def __dlpack__(self, **_: Any) -> Any:
        raise AssertionError("not asked for")


@pytest.mark.parametrize("kind", [Interface, DLPack])
def test_arrays_of_other_libraries_are_taken_without_a_copy(kind: type[Foreign]) -> None:
    x = weights(8, 64)
    there = fake_cupy.asarray(x)
    qt = qrs.quantize(kind(there), "int4-g32-f16")
    assert on_device(qt) and qt == qrs.quantize(x, "int4-g32-f16")
    from qrs.arrays import as_input

    assert as_input(kind(there)).data.ptr == there.data.ptr


def test_host_arrays_that_speak_dlpack_stay_on_the_host() -> None:
    x = weights(8, 64)
    assert qrs.quantize(OnTheHost(x), "int8") == qrs.quantize(x, "int8")


@pytest.mark.parametrize("format", ["f32", "f16", "bf16", "e4m3", "e5m2", "e2m1", "int8"])
def test_number_formats(format: str) -> None:
    x = weights(5, 33) * np.float32(100)
    codes = qrs.floats.encode(x, format)
    there = qrs.floats.encode(fake_cupy.asarray(x), format)
    assert there.get().tobytes() == codes.tobytes()
    known = format not in ("e4m3", "e5m2", "e2m1")
    assert there.dtype == (codes.dtype if known else np.uint8)
    back = qrs.floats.decode(there, format)
    assert back.get().tobytes() == qrs.floats.decode(codes).tobytes()
    with pytest.raises(qrs.ArgTypeError, match="dtype: got float64 on a GPU"):
        qrs.floats.decode(there, format, dtype="float64")


def test_saving_wants_a_move(tmp_path: Path) -> None:
    qt = qrs.quantize(fake_cupy.asarray(weights(8, 64)), "nvfp4")
    with pytest.raises(qrs.DeviceError, match=r"to\('numpy'\)"):
        qrs.save(tmp_path / "w.safetensors", {"w": qt})
    qrs.save(tmp_path / "w.safetensors", {"w": qt.to("numpy")})
    assert qrs.load(tmp_path / "w.safetensors")["w"] == qt


@pytest.mark.parametrize("scheme", ["int8-axis0", "int4-g32-asym-f16", "nvfp4", "bf16"])
def test_checkpoints(scheme: str, tmp_path: Path) -> None:
    tensors = {"a.weight": weights(24, 64), "b.weight": weights(8, 32, dtype="bfloat16")}
    tensors["c.weight"] = weights(8, 64).astype(np.float64)
    qrs.save(tmp_path / "m.safetensors", tensors)
    for backend in ("rust", "cupy"):
        q, back = tmp_path / f"{backend}.safetensors", tmp_path / f"{backend}.back.safetensors"
        checkpoint.quantize_checkpoint(tmp_path / "m.safetensors", q, scheme, backend=backend)
        checkpoint.dequantize_checkpoint(q, back, backend=backend)
    for name in ("{}.safetensors", "{}.back.safetensors"):
        rust, cupy = (tmp_path / name.format(backend) for backend in ("rust", "cupy"))
        assert rust.read_bytes() == cupy.read_bytes()
