"""Quantization-aware training: prepare a model, train it, convert it.

>>> import torch
>>> model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4))
>>> report = prepare_qat(model, "int4-static")
>>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
>>> model(torch.ones(2, 8)).sum().backward(); optimizer.step()
>>> convert(model).layers
{'0': 'int4-axis0-static', '2': 'int4-axis0-static'}
"""

from .freezing import FreezeSchedule, check_optimizer, freeze
from .prepare import checkpoint, convert, prepare_qat

__all__ = [
    "FreezeSchedule",
    "check_optimizer",
    "checkpoint",
    "convert",
    "freeze",
    "prepare_qat",
]
