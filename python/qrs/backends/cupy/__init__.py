"""The CUDA backend: every operation of the reference on CuPy arrays, the same bits.

Arguments and results are those of `qrs.backends.reference`, with CuPy arrays on one device in place
of numpy's; k-means alone does not give the same bits (`kmeans.py`). An operation that can find a
fault waits for the stream once, to read it; the others return before they have run. Nothing here
imports cupy before a backend is made.

CuPy 14 has ml_dtypes' bfloat16 as a dtype, for `empty` and `view` as for its own kernels. Of float8
it knows no more than the size, so that codes stay integers here.
"""

from __future__ import annotations

import importlib
import os
from typing import ClassVar

from ...errors import DeviceError
from .. import nvrtc
from ..cuda.launch import KERNELS
from .gradients import GradientOperations

__all__ = ["KERNELS", "Cupy", "missing"]


class Cupy(GradientOperations):
    """Every operation overridden; the parts are in the order of `qrs.backends.reference`."""

    name: ClassVar[str] = "cupy"
    library: ClassVar[str] = "cupy"


def missing() -> tuple[str | None, str | None]:
    """Why the backend is not available, and what would fix it; None where it is."""
    install = "pip install 'qrs-quant[cuda13]' (for a driver of CUDA 12: 'qrs-quant[cuda12]')"
    try:
        runtime = importlib.import_module("cupy").cuda.runtime
        devices = runtime.getDeviceCount()
    except ModuleNotFoundError as error:
        return ("CuPy is not installed" if error.name == "cupy" else f"CuPy: {error}"), install
    except ImportError as error:
        return f"CuPy does not load: {error}", install
    except RuntimeError as error:  # CuPy's CUDARuntimeError is one
        return _without_devices(str(error))
    if devices == 0:
        return _without_devices("cudaErrorNoDevice")
    try:
        nvrtc.version(runtime.runtimeGetVersion() // 1000)
    except DeviceError as error:
        return str(error).split("; fix: ")[0], error.expected
    return None, None


def _without_devices(error: str) -> tuple[str, str]:
    """The words for what the CUDA runtime says when asked for its devices."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if "cudaErrorInsufficientDriver" in error:
        return (
            f"there is no NVIDIA driver, or one too old for this CuPy ({error})",
            "install the NVIDIA driver of the GPU, or a CuPy for the CUDA version of the driver",
        )
    if "cudaErrorNoDevice" in error and visible is not None:
        return (
            f"no CUDA device is visible: CUDA_VISIBLE_DEVICES={visible!r} ({error})",
            "unset CUDA_VISIBLE_DEVICES, or name a device in it",
        )
    if "cudaErrorNoDevice" in error:
        return f"there is no CUDA device ({error})", "run where there is an NVIDIA GPU"
    return f"CUDA does not start: {error}", "see whether `nvidia-smi` works"
