"""When parts of quantization-aware training stop moving, or begin."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from ...checks import checked_integer
from ...errors import ArgTypeError, bad
from ..lsq import LSQ
from ..modules import checked_model
from .inputs import Observed
from .layers import QATLayer


def freeze(
    model: nn.Module, *, ranges: bool = True, norms: bool = True, steps: bool = False
) -> None:
    """Keep parts of a prepared model as they are from now on.

    ranges : of static inputs: no more is observed.
    norms : folded batch norms use their running statistics, as in evaluation mode.
    steps : learned steps and zero points require no gradients any more.
    """
    for layer in _layers(model):
        if ranges and isinstance(layer.inputs, Observed):
            layer.inputs.observing.fill_(False)
        if norms and layer.norm is not None:
            layer.norm_frozen.fill_(True)
        if steps and isinstance(layer.quantizer, LSQ):
            layer.quantizer.requires_grad_(False)


class FreezeSchedule:
    """Freezing by the number of updates; `step()` is called after each of the optimizer's.

    Parameters
    ----------
    inputs : updates before static inputs are quantized; until then they are only observed.
    ranges, norms, steps : updates after which these stay as they are (see `freeze`); None: never.

    >>> model = nn.Sequential(nn.Linear(4, 4))
    >>> from qrs.torch import prepare_qat
    >>> _ = prepare_qat(model, "int8-static")
    >>> schedule = FreezeSchedule(model, inputs=1, ranges=2)
    >>> for _ in range(2):
    ...     schedule.step()
    >>> bool(model[0].inputs.quantizing), bool(model[0].inputs.observing)
    (True, False)
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        inputs: int = 0,
        ranges: int | None = None,
        norms: int | None = None,
        steps: int | None = None,
    ) -> None:
        self.model, self.updates = model, 0
        self.inputs = _count("inputs", inputs)
        counts = {"ranges": ranges, "norms": norms, "steps": steps}
        self.after = {name: _count(name, n) for name, n in counts.items() if n is not None}
        self._apply()

    def step(self) -> None:
        """One more update is done."""
        self.updates += 1
        self._apply()

    def state_dict(self) -> dict[str, int]:
        """The number of updates so far."""
        return {"updates": self.updates}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go on from a `state_dict()`."""
        if not isinstance(state, Mapping) or "updates" not in state:
            raise bad("state", f"got {state!r}", state, "that of a FreezeSchedule", ArgTypeError)
        self.updates = _count("updates", state["updates"])
        self._apply()

    def _apply(self) -> None:
        for layer in _layers(self.model):
            if isinstance(layer.inputs, Observed):
                layer.inputs.quantizing.fill_(self.updates >= self.inputs)
        due = {name: self.updates >= n for name, n in self.after.items()}
        if any(due.values()):
            parts = {"ranges": False, "norms": False, "steps": False} | due
            freeze(self.model, **parts)


def check_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Raise where an optimizer and a model do not have the same parameters.

    Those that the model has no more are named by their shape, those that would not be trained by
    their name.
    """
    if not isinstance(optimizer, torch.optim.Optimizer):
        expected = "a torch.optim.Optimizer"
        raise bad("optimizer", f"got {type(optimizer).__name__}", optimizer, expected, ArgTypeError)
    held = {id(p): p for group in optimizer.param_groups for p in group["params"]}
    own = {id(p): name for name, p in checked_model(model).named_parameters()}
    stale = [tuple(p.shape) for at, p in held.items() if at not in own]
    trained = {id(p) for p in model.parameters() if p.requires_grad}
    missing = [name for at, name in own.items() if at in trained and at not in held]
    for found in (
        stale
        and f"holds {len(stale)} parameters that the model has no more, of shapes {stale[:4]}",
        missing and f"lacks {', '.join(missing[:8])}",
    ):
        if found:
            raise bad("optimizer", found, optimizer, "one that is made after prepare_qat")


def _layers(model: nn.Module) -> list[QATLayer]:
    """The layers that are trained quantized."""
    found = [m for m in checked_model(model).modules() if isinstance(m, QATLayer)]
    if not found:
        raise bad("model", "has no layer that is prepared", type(model).__name__, "prepare_qat")
    return found


def _count(arg: str, value: Any) -> int:
    number = checked_integer(value, arg)
    if number < 0:
        raise bad(arg, f"got {number}", number, "0 or more updates")
    return number
