"""qrs: exact, torch-free quantization of neural-network weights and activations.

>>> import numpy as np, qrs
>>> w = np.random.default_rng(0).standard_normal((64, 256), dtype=np.float32)
>>> qt = qrs.quantize(w, "int4-g128-asym-f16")
>>> qt.bits_per_weight
4.15625
>>> qrs.metrics.sqnr_db(w, qt.dequantize()) > 19
True
"""

from typing import Any

from . import errors, floats, metrics, observers, schemes, solvers
from .api import dequantize, fake_quantize, gptq, quantize
from .backends import available as available_backends
from .backends import num_threads, set_num_threads, simd_level
from .calibration import Calibration, calibrate
from .clustering import kmeans, kmeans_1d
from .errors import (
    ArgTypeError,
    ArgValueError,
    DeviceError,
    FormatError,
    InternalError,
    QrsError,
    QrsMemoryError,
    ResumeError,
    StorageError,
)
from .formats.qrs_file import load, save
from .granularity import PerAxis, PerGroup, PerTensor
from .qtensor import QTensor
from .schemes import (
    FP4,
    MXFP4,
    MXFP8,
    NF4,
    NVFP4,
    Codebook,
    ColumnScaled,
    Float,
    Int,
    IntOffset,
    KMeans,
    LearnedCodebook,
    Rotated,
    parse,
)
from .statistics import Statistics

__version__: str

__all__ = [
    "FP4",
    "MXFP4",
    "MXFP8",
    "NF4",
    "NVFP4",
    "ArgTypeError",
    "ArgValueError",
    "Calibration",
    "Codebook",
    "ColumnScaled",
    "DeviceError",
    "Float",
    "FormatError",
    "Int",
    "IntOffset",
    "InternalError",
    "KMeans",
    "LearnedCodebook",
    "PerAxis",
    "PerGroup",
    "PerTensor",
    "QTensor",
    "QrsError",
    "QrsMemoryError",
    "ResumeError",
    "Rotated",
    "Statistics",
    "StorageError",
    "available_backends",
    "calibrate",
    "dequantize",
    "errors",
    "fake_quantize",
    "floats",
    "gptq",
    "kmeans",
    "kmeans_1d",
    "load",
    "metrics",
    "num_threads",
    "observers",
    "parse",
    "quantize",
    "save",
    "schemes",
    "set_num_threads",
    "simd_level",
    "solvers",
]


def __getattr__(name: str) -> Any:
    """`__version__`: looking it up takes as long as a third of the import."""
    if name != "__version__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib.metadata import version

    return version("qrs-quant")
