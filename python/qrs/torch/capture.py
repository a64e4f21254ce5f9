"""Run a model, and keep what calibration and solvers want to know of the inputs of its layers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from ..calibration import Calibration
from ..errors import ArgTypeError, bad
from ..observers import MSE, Observer
from ..statistics import Statistics
from .arrays import as_array
from .modules import checked_model, matches, patterns
from .packed import FLOATS
from .quantized import margins
from .spec import CONVOLUTIONS


def capture(
    model: nn.Module,
    batches: Any,
    layers: Iterable[str] | None = None,
    hessian: bool = True,
    observer: Callable[[], Observer] = MSE,
    *,
    mask: str | Callable[[Any], Any] | None = None,
    patches: bool = True,
    run: Callable[[nn.Module, Any], Any] | None = None,
) -> Calibration:
    """Observe the inputs of layers while a model runs, in evaluation mode and without gradients.

    Parameters
    ----------
    batches : what the model is called with, one after another: tensors, tuples of positional
        arguments, mappings of keyword arguments; or a callable that yields them.
    layers : patterns of module names, which pick among Linear, Conv1d and Conv2d, or whole names,
        of modules of any kind whose first argument is a tensor of floats (..., features). By
        default all Linear and convolutions.
    hessian : whether to keep second moments too, for "gptq" and "lsq" (`Calibration.statistics`).
    observer : what makes the observer of a layer, as for `qrs.calibrate`.
    mask : which positions count, (batch, length), true or 1 where they do: the key of a batch that
        is a mapping, such as "attention_mask", or a function of the batch. It holds for inputs that
        begin with these two axes, or have as many rows; others count whole.
    patches : whether convolutions have second moments, of the windows unfolded, in the order of
        `weight.flatten(1)`; those with groups never have.
    run : what to do with a batch in place of calling the model with it:
        `lambda model, batch: model(batch[0])` for pairs with labels.

    Inputs of convolutions are observed as rows of channels. Layers of a GPU are observed on the
    host. The model's modes are restored, and its hooks removed, after errors too. Returns a
    `Calibration` by module name; modules that never ran are not in it, which is an error where
    `layers` names them. NaN and infinities are errors that name layer and batch.

    >>> model = nn.Sequential(nn.Linear(4, 2), nn.ReLU(), nn.Linear(2, 2))
    >>> calibration = capture(model, [torch.ones(3, 4), torch.ones(1, 4)])
    >>> calibration, calibration.tokens["0"], calibration.statistics["0"].diag.tolist()
    (Calibration(2 layers, MSE, 2 batches), 4, [4.0, 4.0, 4.0, 4.0])
    """
    checked_model(model)
    if not callable(observer):
        expected = "a class of qrs.observers, or a function that makes one"
        raise bad("observer", f"got {observer!r}", observer, expected, ArgTypeError)
    if mask is not None and not isinstance(mask, str) and not callable(mask):
        expected = "a key of the batches, or a function of one"
        raise bad("mask", f"got {mask!r}", mask, expected, ArgTypeError)
    wanted = _wanted(model, layers)
    recorder = Recorder(Calibration(), observer, hessian, patches)
    with _evaluating(model), ExitStack() as hooks, torch.no_grad():
        for name, module in wanted.items():
            hook = recorder.hook(name)
            handle = module.register_forward_pre_hook(hook, with_kwargs=True)
            hooks.callback(handle.remove)
        for recorder.index, batch in enumerate(_batches(batches)):
            recorder.mask = _mask_of(batch, mask, recorder.index)
            _call(model, batch, run)
    _check_seen(recorder.calibration, wanted, layers)
    return recorder.calibration


@dataclass
class Recorder:
    """What hooks write to."""

    calibration: Calibration
    observer: Callable[[], Observer]
    hessian: bool
    patches: bool
    index: int = 0
    mask: torch.Tensor | None = None

    def hook(self, name: str) -> Callable[..., None]:
        """The forward pre-hook of a module."""

        def keep(module: nn.Module, args: Any, kwargs: Any) -> None:
            x = args[0] if args else next(iter(kwargs.values()), None)
            if not isinstance(x, torch.Tensor) or x.dtype not in FLOATS:
                found = f"its input is {getattr(x, 'dtype', type(x).__name__)}"
                what = f"layer {name!r}, batch {self.index}"
                raise bad(what, found, type(x), "a tensor of floats", ArgTypeError)
            self._take(name, module, x.detach().cpu())

        return keep

    def _take(self, name: str, module: nn.Module, x: torch.Tensor) -> None:
        """Observe one input."""
        rows = _channels_last(module, x) if isinstance(module, CONVOLUTIONS) else self._counted(x)
        plain = self.hessian and not isinstance(module, CONVOLUTIONS)
        batch = {name: as_array(rows.contiguous())}
        self.calibration.update(batch, self.observer, plain, self.index)
        if not isinstance(module, CONVOLUTIONS) or not self.hessian or not self.patches:
            return
        if module.groups == 1:
            statistics = self.calibration.statistics.setdefault(name, Statistics())
            where = f"layer {name!r}, batch {self.index}"
            for image in x if x.ndim == module.weight.ndim else x[None]:
                statistics.update(as_array(windows(module, image)), where)

    def _counted(self, x: torch.Tensor) -> torch.Tensor:
        """The rows that the mask leaves."""
        mask = self.mask
        if mask is None:
            return x
        if x.ndim > 2 and x.shape[:2] == mask.shape:
            return x[mask]
        if x.ndim == 2 and len(x) == mask.numel():
            return x[mask.reshape(-1)]
        return x


def windows(module: Any, image: torch.Tensor) -> torch.Tensor:
    """The windows of a convolution over one image (channels, ...): (windows, in * kernel).

    >>> windows(nn.Conv1d(1, 1, 2), torch.tensor([[1.0, 2.0, 3.0]])).tolist()
    [[1.0, 2.0], [2.0, 3.0]]
    """
    before_after, axes = margins(module), len(module.kernel_size)
    pairs = zip(before_after[:axes], before_after[axes:], strict=True)
    pad = [n for pair in reversed(list(pairs)) for n in pair]
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    padded = functional.pad(image.float()[None], pad, mode=mode)
    two = (slice(None), slice(None), *([None] * (2 - axes)))  # Conv1d is of height 1
    lead = (1,) * (2 - axes)
    unfolded: torch.Tensor = functional.unfold(
        padded[two], lead + module.kernel_size, lead + module.dilation, 0, lead + module.stride
    )
    return unfolded[0].T.contiguous()


def _channels_last(module: Any, x: torch.Tensor) -> torch.Tensor:
    """(batch, channels, ...) -> (positions, channels)."""
    batched = x if x.ndim == module.weight.ndim else x[None]
    return batched.movedim(1, -1).reshape(-1, batched.shape[1])


def _wanted(model: nn.Module, layers: Any) -> dict[str, nn.Module]:
    """The modules to observe, by name."""
    kinds = (nn.Linear, *CONVOLUTIONS)
    usual = {name: m for name, m in model.named_modules() if isinstance(m, kinds)}
    if not usual and layers is None:
        raise bad(
            "model", "has no layer to observe", type(model).__name__, "Linear, Conv1d, Conv2d"
        )
    if layers is None:
        return usual
    among = patterns("layers", layers)
    every = dict(model.named_modules(remove_duplicate=False))  # with all the names of a module
    found = {n: m for n, m in every.items() if n in among or (n in usual and matches(n, among))}
    for pattern in among:
        if not any(matches(name, [pattern]) for name in found):
            expected = f"names or patterns of {', '.join(list(usual)[:8]) or 'its modules'}"
            raise bad("layers", f"{pattern!r} matches no layer", pattern, expected)
    return found


def _batches(batches: Any) -> Iterator[Any]:
    """What the model is called with, wherever it comes from."""
    if callable(batches) and not isinstance(batches, torch.Tensor):
        batches = batches()
    if isinstance(batches, torch.Tensor | Mapping | str) or not isinstance(batches, Iterable):
        expected = "a list of batches, or a callable that yields them"
        raise bad("batches", f"got {type(batches).__name__}", type(batches), expected, ArgTypeError)
    yield from batches


def _call(model: nn.Module, batch: Any, run: Callable[[nn.Module, Any], Any] | None) -> None:
    if run is not None:
        run(model, batch)
    elif isinstance(batch, Mapping):
        model(**batch)
    elif isinstance(batch, tuple | list):
        model(*batch)
    else:
        model(batch)


def _mask_of(batch: Any, mask: Any, index: int) -> torch.Tensor | None:
    """Which positions of a batch count, on the host."""
    if mask is None:
        return None
    where = f"mask, batch {index}"
    if isinstance(mask, str):
        if not isinstance(batch, Mapping) or mask not in batch:
            found = list(batch)[:8] if isinstance(batch, Mapping) else type(batch).__name__
            raise bad(where, f"got {found}", found, f"a mapping with {mask!r}")
        found = batch[mask]
    else:
        found = mask(batch)
    tensor = torch.as_tensor(found)
    if tensor.ndim != 2 or not bool(((tensor == 0) | (tensor == 1)).all()):
        shape = tuple(tensor.shape)
        raise bad(where, f"got shape {shape}", shape, "(batch, length) of booleans, or 0 and 1")
    return tensor.bool().cpu()


def _check_seen(calibration: Calibration, wanted: Mapping[str, Any], layers: Any) -> None:
    """Raise where nothing ran, or not what was asked for by name."""
    missing = [name for name in wanted if name not in calibration]
    if not calibration or (layers is not None and missing):
        found = f"never ran {', '.join(missing[:8])}"
        raise bad("batches", found, missing, "inputs that run every layer that is observed")


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, and each module's own mode again afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
