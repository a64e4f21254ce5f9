"""Training with quantized weights, for torch users: `pip install qrs-quant[torch]`.

The only part of qrs that imports torch. What fake quantization computes here is bit for bit what
`qrs.quantize` stores: the same kernels run on the memory of the tensors.
"""

from __future__ import annotations

try:
    import torch as _torch  # noqa: F401
except ModuleNotFoundError as error:
    if error.name != "torch":
        raise
    message = "qrs.torch needs torch; fix: pip install 'qrs-quant[torch]'"
    raise ModuleNotFoundError(message, name="torch") from None

from . import lora
from .capture import capture
from .fake_quantize import fake_quantize
from .lsq import LSQ
from .ptq import quantize_
from .qat import FreezeSchedule, check_optimizer, checkpoint, convert, freeze, prepare_qat

__all__ = [
    "LSQ",
    "FreezeSchedule",
    "capture",
    "check_optimizer",
    "checkpoint",
    "convert",
    "fake_quantize",
    "freeze",
    "lora",
    "prepare_qat",
    "quantize_",
]
