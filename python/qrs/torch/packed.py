"""Quantized weights inside modules: the leaves of a QTensor as buffers.

All buffers are bytes, so that `model.half()` and `model.to(torch.bfloat16)` change no scale, and
their names are the leaf paths of checkpoints: `layer.weight.packed`, `layer.weight.scale.packed`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import nn

from ..api import quantize
from ..errors import ArgTypeError, DeviceError, bad
from ..qtensor import QTensor
from ..schemes import Scheme
from ..solvers import Solver
from .arrays import DTYPES, as_array, as_tensor

TILE = 1 << 18
"""Weights that are decoded at once: 1 MiB of float32, which stays in the cache."""

FLOATS = tuple(DTYPES)
INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


class Parts(nn.Module):
    """The parts of a QTensor; a part that is a QTensor itself is a module in this one."""

    def __init__(self, qt: QTensor) -> None:
        super().__init__()
        self.scheme, self.source_dtype = qt.scheme, qt.dtype
        self.shape = torch.Size(qt.shape)
        self.specs: dict[str, tuple[Any, tuple[int, ...]]] = {}
        for name, part in qt.parts.items():
            if isinstance(part, QTensor):
                self.add_module(name, Parts(part))
                continue
            self.specs[name] = part.dtype, part.shape
            stored = part if part.dtype == np.uint8 else part.reshape(*part.shape, 1).view(np.uint8)
            with torch.inference_mode(False):  # such tensors do not count their changes
                self.register_buffer(name, as_tensor(stored))

    def qtensor(self) -> QTensor:
        """The QTensor, in the memory of the buffers."""
        parts: dict[str, Any] = {}
        for name, (dtype, shape) in self.specs.items():
            parts[name] = as_array(self._buffers[name]).view(dtype).reshape(shape)
        parts |= {name: part.qtensor() for name, part in self._modules.items()}
        return QTensor(self.scheme, tuple(self.shape), self.source_dtype, parts)


def key_of(buffers: Iterable[torch.Tensor]) -> object:
    """Equal while the buffers are the same; equal to nothing where one cannot know: of copies made
    in inference mode, which do not count their changes.
    """
    known = list(buffers)
    if any(b.is_inference() for b in known):
        return object()
    return tuple((b.data_ptr(), b._version) for b in known)


class PackedWeight(Parts):
    """A quantized weight where a module has a tensor: `layer.weight`.

    `shape`, `dtype` and `device` are those that the tensor would have. A state dict has its scheme,
    and one with another scheme is refused. Functions of torch do not take it: `dequantize()`.

    >>> import qrs
    >>> weight = PackedWeight(qrs.quantize(np.eye(2, 64, dtype=np.float32), "nf4-g64-dq"))
    >>> list(weight.state_dict())
    ['packed', '_extra_state', 'scale.packed', 'scale.scale', 'scale.offset']
    >>> weight.shape, weight.dtype, weight.dequantize()[:, :3].tolist()
    (torch.Size([2, 64]), torch.float32, [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    """

    @property
    def dtype(self) -> torch.dtype:
        """Of the weight that was quantized."""
        found: torch.dtype = getattr(torch, self.source_dtype)
        return found

    @property
    def device(self) -> torch.device:
        """Where the bytes are."""
        found: torch.device = next(self.buffers()).device
        return found

    @property
    def nbytes(self) -> int:
        """Bytes of all that is stored."""
        return sum(buffer.nbytes for buffer in self.buffers())

    def dequantize(self, dtype: torch.dtype | None = None) -> torch.Tensor:
        """The decoded weight, of its own dtype or another."""
        return as_tensor(self.qtensor().dequantize("float32")).to(dtype or self.dtype)

    def tiles(self, dtype: torch.dtype) -> Iterator[tuple[slice, torch.Tensor]]:
        """The decoded weight a few rows at a time: which, and their values in one buffer.

        The buffer is overwritten by the next tile. Scales that are quantized themselves are decoded
        for all rows: half a bit per weight where groups have 64.
        """
        qt = self.qtensor()
        rows, features = qt.shape
        step = max(1, min(rows, TILE // max(features, 1)))
        decoded = dtype if dtype != torch.float64 else torch.float32
        buffer = torch.empty((step, features), dtype=decoded, device=self.device)
        by_rows = qt[:] if rows else qt
        for start in range(0, rows, step):
            span = slice(start, min(start + step, rows))
            tile = buffer[: span.stop - start]
            by_rows[span].dequantize(str(decoded).partition(".")[2], out=as_array(tile))
            yield span, tile.to(dtype)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[f"{prefix}_extra_state"] = as_tensor(self._description())

    def _load_from_state_dict(
        self, state: Any, prefix: str, metadata: Any, strict: bool, missing: Any, unexpected: Any,
        errors: Any,
    ) -> None:  # fmt: skip
        key = f"{prefix}_extra_state"
        found = state.get(key)
        if found is not None:
            text = bytes(as_array(found.cpu())).decode()
            if text != bytes(self._description()).decode():
                errors.append(f"{prefix[:-1]}: got {text}, expected {self.qtensor()!r}")
                state.clear()  # nor do the parts inside change
                return
        state = {name: part for name, part in state.items() if name != key}
        super()._load_from_state_dict(state, prefix, metadata, strict, missing, unexpected, errors)
        if found is None and strict:
            missing.append(key)

    def _description(self) -> Any:
        """Scheme, shape and source dtype, as bytes of JSON."""
        what = {"scheme": self.scheme.to_dict(), "shape": self.shape, "dtype": self.source_dtype}
        return np.frombuffer(json.dumps(what, sort_keys=True).encode(), np.uint8)

    def extra_repr(self) -> str:
        return f"{self.scheme}, {tuple(self.shape)}"

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Fused paths of torch that look for plain tensors see that this is none."""
        name = getattr(function, "__name__", str(function))
        found = f"torch's {name} was given a packed weight"
        raise bad("weight", found, name, "a tensor: weight.dequantize()", ArgTypeError)


def packed_weight(
    weight: torch.Tensor,
    scheme: Scheme,
    solver: str | Solver = "minmax",
    statistics: Any = None,
    weights: Any = None,
) -> PackedWeight:
    """A weight as `qrs.quantize` stores it."""
    array = as_array(weight)
    return PackedWeight(
        quantize(array, scheme, solver=solver, statistics=statistics, weights=weights)
    )


def check_tensor(x: Any, weight: PackedWeight, name: str, dtypes: Any = FLOATS) -> None:
    """Raise for an input that a module does not take, or that is not where its weight is."""
    # The name is read where there is an error alone: compiled graphs would be made for each.
    if not isinstance(x, torch.Tensor):
        found, expected = f"got {type(x).__name__}", "a torch.Tensor"
        raise bad(f"module {name!r}, x", found, type(x), expected, ArgTypeError)
    if x.dtype not in dtypes:
        expected = f"a tensor of {'floats' if dtypes is FLOATS else 'integers'}"
        raise bad(f"module {name!r}, x", f"got {x.dtype}", x.dtype, expected, ArgTypeError)
    if x.device != weight.device:
        found, expected = f"is on {str(x.device)!r}", f"{str(weight.device)!r}, as the weight is"
        raise bad(f"module {name!r}, x", found, str(x.device), expected, DeviceError)


def check_features(x: torch.Tensor, weight: PackedWeight, name: str) -> None:
    """Raise for an input of a Linear whose last axis is not its inputs."""
    features = weight.shape[1]
    if x.ndim == 0 or x.shape[-1] != features:
        found = f"got shape {tuple(x.shape)}"
        raise bad(f"module {name!r}, x", found, tuple(x.shape), f"(..., {features})")
