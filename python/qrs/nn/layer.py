"""What all layers share: where they compute, how arrays come in, what goes into a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar

import numpy as np
from numpy.typing import NDArray

from .. import api, backends
from ..arrays import Array, as_input, as_kernel_float, first_index, nonfinite_error, plain
from ..backends.reference import Float32
from ..devices import library_of, on_host
from ..errors import ArgTypeError, KernelFault, QrsError, bad
from ..granularity import PerTensor
from ..qtensor import QTensor
from ..schemes import Int, Scheme, as_scheme, int_parts
from ..schemes.scales import moved_like
from .activations import Activation, Static, as_activation

Same = TypeVar("Same", bound="Layer")


class Layer:
    """A weight, perhaps a bias, and what is done to the input and the output."""

    is_a_table: ClassVar[bool] = False
    """Whether rows are looked up, with neither bias nor activation."""
    _settings: dict[str, Any]
    """The keyword arguments that the layer was made with."""

    def __init__(
        self,
        weight: QTensor,
        bias: Any,
        activation: Any,
        output: Static | None,
        backend: str | None,
    ) -> None:
        self.weight = weight
        self.ops = backends.resolve(backend, weight.packed)
        self.bias = None if bias is None else self._checked_bias(bias)
        self.activation: Activation | None = as_activation(activation)
        self.output = output
        if output is not None and not isinstance(output, Static):
            raise bad("output", f"got {output!r}", output, "None or Static(...)", ArgTypeError)
        if output is not None and not isinstance(self.activation, Static):
            found = "given without an activation that is Static"
            raise bad("output", found, output, "a calibrated input, Static(...), beside it")

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled and copied as what it was made of; kernels pack the weight anew."""
        return _made, (type(self), self.weight, self._settings)

    def state(self, prefix: str = "") -> dict[str, QTensor | NDArray[Any]]:
        """What `qrs.save` takes: `weight`, `bias`, and the parameters of calibrated ranges.

        Names begin with `prefix`. `from_state` is the inverse.
        """
        parts: dict[str, Any] = {"weight": self.weight}
        if self.bias is not None:
            parts["bias"] = self._bias_given
        if isinstance(self.activation, Static):
            parts |= self.activation.state("input")
        if self.output is not None:
            parts |= self.output.state("output")
        return {f"{prefix}{name}": part for name, part in parts.items()}

    @classmethod
    def from_state(
        cls: type[Same],
        state: Mapping[str, Any],
        prefix: str = "",
        *,
        activation: Any = None,
        output: Any = None,
        **settings: Any,
    ) -> Same:
        """The layer whose `state(prefix)` this is, as `qrs.load` returns it.

        `activation` and `output` are the schemes of calibrated ranges, whose parameters come from
        the state; everything else is as for the class. Raises `ArgValueError` for what is missing.
        """
        if not isinstance(state, Mapping):
            raise bad("state", f"got {state!r}", type(state), "what state() returned", ArgTypeError)
        if f"{prefix}weight" not in state:
            found, names = f"has no {prefix}weight", ", ".join(sorted(state)[:8])
            raise bad("state", found, names, "the names of state(), with their prefix")
        if f"{prefix}input_scale" in state:
            activation = _static(state, f"{prefix}input", "activation", activation)
        if f"{prefix}output_scale" in state:
            output = _static(state, f"{prefix}output", "output", output)
        parts = {"bias": state.get(f"{prefix}bias"), "activation": activation, "output": output}
        if cls.is_a_table and any(part is not None for part in parts.values()):
            found = f"has {', '.join(n for n, part in parts.items() if part is not None)}"
            raise bad("state", found, sorted(state)[:8], f"that of an {cls.__name__}")
        settings |= {name: part for name, part in parts.items() if part is not None}
        return cls(state[f"{prefix}weight"], **settings)

    @property
    def _bias_given(self) -> Any:
        """The bias as (n,) float32, a copy on the host; None without one."""
        return None if self.bias is None else on_host(self.bias).reshape(-1).copy()

    @property
    def nbytes(self) -> int:
        """Bytes of the weight and the bias as stored."""
        return self.weight.nbytes + (0 if self.bias is None else self.bias.nbytes)

    def _checked_bias(self, bias: Any) -> Float32:
        """(n,) as (1, n) float32, where the weight is."""
        array = as_kernel_float(as_input(bias, "bias"), "bias").astype(np.float32)
        n = self.weight.shape[0]
        if array.shape != (n,):
            raise bad("bias", f"got shape {array.shape}", array.shape, f"({n},)")
        if not library_of(array).isfinite(array).all():
            raise nonfinite_error(array, "bias")
        row: Float32 = moved_like(array, self.weight.packed).reshape(1, n)
        return row

    def _input(self, x: Any) -> tuple[Array, Array]:
        """The input as it is, and as kernels take it; raises where it is on another device."""
        array = as_input(plain(x))
        backends.resolve(self.ops.name, array, self.weight.packed)
        return array, as_kernel_float(array)

    def _codes(self, x: QTensor) -> Array:
        """The codes of an input that the layer before has quantized."""
        source = self.activation
        if not isinstance(source, Static):
            raise bad("x", "got a QTensor", x, "an array, or a layer with a Static activation")
        if not isinstance(x.scheme, Int) or not isinstance(x.scheme.granularity, PerTensor):
            raise bad("x", f"got a QTensor of {x.scheme}", x, f"one of {source.scheme}")
        zero_point = 0 if x.zero_point is None else int(x.zero_point)
        given = (str(x.scheme), float(on_host(x.scale).reshape(-1)[0]), zero_point)
        expected = (str(source.scheme), float(source.scale), source.zero_point)
        if given != expected:
            raise bad("x", f"got a QTensor of {given}", given, f"{expected}: that of the layer")
        return x.codes

    def _explained(self, fault: KernelFault, x: Array) -> QrsError:
        """The error behind a fault that a kernel found in the input."""
        if fault.reason == "result_overflow":
            found = f"the result of row {fault.group} overflows float32"
            return bad("x", found, fault.group, "smaller numbers")
        if fault.reason == "nonfinite" or self.activation is None:
            return nonfinite_error(x)
        scheme: Scheme = self.activation.scheme
        return scheme.explain(fault, x.reshape(-1, x.shape[-1]))

    def _quantized(self, codes: Array, shape: tuple[int, ...]) -> QTensor:
        """Codes of the output as a QTensor."""
        assert self.output is not None
        scheme: Int = self.output.scheme
        scale, zero_point = self.output.as_arrays(codes)
        z = None if scheme.symmetric else zero_point
        packed = codes.reshape(shape).view(np.uint8)
        if scheme.bits < 8:
            packed = self.ops.pack_bits(codes.reshape(-1, shape[-1]), scheme.bits)
        return QTensor(
            scheme, shape, "float32", int_parts.parts_of(scheme, shape, packed, scale, z)
        )


def _made(kind: type[Same], weight: QTensor, settings: dict[str, Any]) -> Same:
    return kind(weight, **settings)


def as_dtype_of(y: Float32, x: Array) -> Array:
    """A float32 result in the dtype of the input; raises where that overflows."""
    if x.dtype == np.float32:
        return y
    with np.errstate(over="ignore", under="ignore"):
        narrow = y.astype(x.dtype)
    lost = on_host(library_of(narrow).isinf(narrow))
    if lost.any():
        at, where = first_index(lost)
        found = f"the result {float(on_host(y)[at]):.6g}{where} overflows {x.dtype}"
        raise bad("x", found, x.dtype, "smaller numbers, or float32")
    return narrow


def check_choice(arg: str, value: Any, accepted: tuple[str, ...]) -> None:
    """Raise for a setting that is not one of the accepted words."""
    if not isinstance(value, str) or value not in accepted:
        raise bad(arg, f"got {value!r}", value, f"one of: {', '.join(accepted)}")


def quantized(weight: Any, scheme: Scheme | str, solver: str, backend: str | None) -> QTensor:
    """The weight of `from_float`."""
    return api.quantize(weight, scheme, solver=solver, backend=backend)


def _static(state: Mapping[str, Any], name: str, arg: str, scheme: Any) -> Static:
    """The calibrated range under `name`, of the scheme that the caller says."""
    if isinstance(scheme, Static):
        return scheme
    if not isinstance(scheme, str | Scheme):
        found = f"got {scheme!r}, and the state has {name}_scale"
        raise bad(arg, found, scheme, "the scheme of that range, such as 'uint8'")
    known = as_scheme(scheme)
    zero_point = state.get(f"{name}_zero_point")
    stored = getattr(zero_point, "dtype", None)
    if isinstance(known, Int) and stored is not None and stored != known.code_dtype:
        found = f"got {known}, and {name}_zero_point in the state is {stored}"
        raise bad(arg, found, known, f"a scheme with codes of {stored}")
    return Static(known, state[f"{name}_scale"], zero_point)  # type: ignore[arg-type]
