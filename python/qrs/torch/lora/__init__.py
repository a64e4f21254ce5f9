"""QLoRA: a frozen 4-bit model, and updates of low rank that are trained.

>>> from torch import nn
>>> model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 8))
>>> report = inject(model, rank=4, scheme="nf4-g32")
>>> [name for name, p in model.named_parameters() if p.requires_grad][:2]
['0.lora_A.weight', '0.lora_B.weight']
>>> merge(model)
['0', '2']

Dettmers et al., "QLoRA: Efficient Finetuning of Quantized LLMs", 2023.
"""

from .inject import inject, injected, load, merge, save
from .linear import LoraLinear

__all__ = ["LoraLinear", "inject", "injected", "load", "merge", "save"]
