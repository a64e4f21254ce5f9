"""What becomes of the inputs of layers in quantization-aware training."""

from __future__ import annotations

import io
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from torch import nn

from ...errors import bad
from ...nn import Static
from ...observers import MinMax, Observer
from ...observers.base import from_state, qparams_of
from ...schemes import Int
from ..arrays import as_array, as_tensor
from ..fake_quantize import fake_quantize
from ..packed import key_of
from ..spec import DYNAMIC, STATIC


class PerCall(nn.Module):
    """Inputs quantized in the range that they have in each call: of each token, or of them all."""

    kind = DYNAMIC

    def __init__(self, scheme: str) -> None:
        super().__init__()
        self.scheme = scheme

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.numel() == 0:
            return x
        rows = x.reshape(-1, x.shape[-1]) if x.ndim else x
        return fake_quantize(rows, self.scheme).reshape(x.shape)

    def activation(self) -> str:
        """As layers of `qrs.nn` take it."""
        return self.scheme

    stand_in = activation

    def extra_repr(self) -> str:
        return self.scheme


class Observed(nn.Module):
    """Inputs quantized in the range that an observer makes of what it sees in training mode.

    `range`, its ends (inf, -inf before there are any), is a buffer, as the statistics of batch
    norms are, so that averaged models and `DistributedDataParallel` know it. `observing` and
    `quantizing`, 0 or not, say what a call does; `qrs.torch.freeze` and `FreezeSchedule` set them,
    and they are numbers because averaged models compute with buffers. What the observer has seen
    is in the state dict too.
    """

    kind = STATIC

    def __init__(self, scheme: Int, observer: Observer) -> None:
        super().__init__()
        self.scheme, self.observer = scheme, observer
        self.register_buffer("observing", torch.tensor(1.0))
        self.register_buffer("quantizing", torch.tensor(1.0))
        self.register_buffer("range", torch.tensor([torch.inf, -torch.inf]))
        self._known: tuple[object, Static] | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training and bool(self.observing) and x.numel() and not _runs_backward():
            self._observe(x.detach())
        if not bool(self.quantizing):
            return x
        found = self.activation()
        scale, zero_point = (as_tensor(a).to(x.device) for a in found.state("input").values())
        z = None if self.scheme.symmetric else zero_point
        return fake_quantize(x, self.scheme, scale=scale, zero_point=z)

    def activation(self) -> Static:
        """The range so far, as layers of `qrs.nn` take it; raises where nothing was seen."""
        key = key_of([self.range])
        if self._known is not None and self._known[0] == key:
            return self._known[1]
        lo, hi = (np.asarray(end, np.float32) for end in self.range.tolist())
        if lo > hi:
            expected = "a forward pass in training mode, which observes them"
            raise bad("inputs", "have not been seen yet", None, expected)
        found = Static(self.scheme, *qparams_of(lo, hi, self.scheme))
        self._known = key, found
        return found

    def stand_in(self) -> Static:
        """Some range, which is as good as another where it is not known yet."""
        return Static(self.scheme, 1.0, None if self.scheme.symmetric else 0)

    def _observe(self, x: torch.Tensor) -> None:
        """Extremes are found where the tensor is; other observers want all of it on the host."""
        values = x.float()
        if isinstance(self.observer, MinMax):
            ends = torch.stack(torch.aminmax(values))
            values = ends if bool(torch.isfinite(ends).all()) else values
        self.observer.update(as_array(values.cpu().contiguous()))
        lo, hi = self.observer.range(self.scheme)
        self.range.copy_(torch.tensor([float(lo), float(hi)]))

    def get_extra_state(self) -> torch.Tensor:
        """What the observer has seen, as the bytes of an npz file."""
        file = io.BytesIO()
        np.savez(file, **self.observer.state())  # type: ignore[arg-type]
        return as_tensor(np.frombuffer(file.getvalue(), np.uint8).copy())

    def set_extra_state(self, state: Any) -> None:
        """Take over what `get_extra_state` returned."""
        try:
            with np.load(io.BytesIO(bytes(as_array(state.cpu()))), allow_pickle=False) as parts:
                found = from_state(dict(parts))
        except (ValueError, OSError, EOFError, AttributeError, BadZipFile) as error:
            problem, expected = f"is no state of an observer: {error}", "that of a prepared model"
            raise bad("state_dict", problem, type(state), expected) from None
        if type(found) is not type(self.observer):
            problem = f"has a {type(found).__name__} observer"
            raise bad("state_dict", problem, found, f"{type(self.observer).__name__}, as prepared")
        self.observer = found

    def extra_repr(self) -> str:
        return f"{self.scheme}, {self.observer}"


def _runs_backward() -> bool:
    """Whether a backward pass runs: checkpointing computes again what has been observed already."""
    return bool(torch._C._current_graph_task_id() != -1)


Inputs = PerCall | Observed
