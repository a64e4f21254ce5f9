"""Layers with quantized weights, for inference on numpy and CuPy arrays; no torch.

>>> import numpy as np
>>> from qrs import nn
>>> w = np.random.default_rng(0).standard_normal((8, 64), dtype=np.float32)
>>> layer = nn.Linear.from_float(w, scheme="int4-g32", activation="int8-axis0")
>>> layer(np.ones((2, 64), np.float32)).shape
(2, 8)
"""

from . import functional
from .activations import Dynamic, Outliers, Static
from .conv import Conv1d, Conv2d
from .embedding import Embedding
from .linear import Linear

__all__ = ["Conv1d", "Conv2d", "Dynamic", "Embedding", "Linear", "Outliers", "Static", "functional"]
