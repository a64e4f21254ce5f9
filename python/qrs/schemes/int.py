"""Linear quantization to integers of 2 to 8 bits: r = scale * (q - zero_point).

Formulas: Jacob et al., "Quantization and Training of Neural Networks for Efficient
Integer-Arithmetic-Only Inference", 2018, equations 1 and 2; the exact arithmetic is the numeric
contract of `qrs.backends.reference`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from .. import backends
from ..backends.reference import Reference
from ..checks import checked_integer
from ..codebooks import half_even_thresholds
from ..constants import SCALE_DTYPES
from ..errors import ArgTypeError, KernelFault, QrsError, bad
from ..granularity import Granularity, PerGroup, granularity_of
from ..qtensor import QTensor
from . import checks, int_checks, int_parts, scales
from .base import Array, PartSpecs, Scheme, Shape, ValueSet
from .layout import layout_of, packed_bits, packed_shape, unpacked_bits

_SPELLING = re.compile(
    r"(?P<u>u?)int(?P<bits>\d{1,99})(?:-axis(?P<axis>-?\d{1,99})|-g(?P<group>\d{1,99}))?"
    r"(?P<asym>-asym)?(?P<full>-full)?(?:-(?P<scale>f16|bf16))?(?P<flat>-flat)?(?P<ragged>-ragged)?",
    re.ASCII,
)


@dataclass(frozen=True, init=False)
class Int(Scheme, family="int"):
    """Integers of `bits` bits with a scale per tensor, per index of an axis, or per group.

    Parameters
    ----------
    bits : 2 to 8.
    signed : codes are int8 (True) or uint8 (False).
    symmetric : zero point 0 and codes in [-qmax, qmax]; defaults to `signed`. Asymmetric schemes
        store a zero point per scale, and their range always holds 0.
    full_range : symmetric codes in [-qmax - 1, qmax], scale = max(hi / qmax, -lo / (qmax + 1)).
    axis, group_size, granularity : at most one of them; none means one scale for the tensor.
    ragged : with `group_size`, let the last group of a row be shorter.
    flat : with `group_size`, let groups run along all axes but the first, as one.
    scale_dtype : "float32", "float16" or "bfloat16": how scales are stored.

    Raises `ArgTypeError` and `ArgValueError`, which name the argument.

    >>> import qrs
    >>> s = Int(4, group_size=128, symmetric=False, scale_dtype="float16")
    >>> str(s), s.qmin, s.qmax
    ('int4-g128-asym-f16', -8, 7)
    >>> qrs.quantize([1.6, -0.7, -3.4, 1.7, -2.9, 0.5, 2.3, 6.2], Int(8)).codes.tolist()
    [33, -14, -70, 35, -59, 10, 47, 127]
    """

    bits: int
    signed: bool
    symmetric: bool
    full_range: bool
    granularity: Granularity
    scale_dtype: str

    def __init__(
        self,
        bits: int,
        *,
        signed: bool = True,
        symmetric: bool | None = None,
        full_range: bool = False,
        axis: int | None = None,
        group_size: int | None = None,
        granularity: Granularity | None = None,
        ragged: bool = False,
        flat: bool = False,
        scale_dtype: str = "float32",
    ) -> None:
        symmetric = signed if symmetric is None else symmetric
        flags = {"signed": signed, "symmetric": symmetric, "full_range": full_range}
        for name, value in {**flags, "ragged": ragged, "flat": flat}.items():
            if not isinstance(value, (bool, np.bool_)):
                raise bad(name, f"got {value!r}", value, "True or False", ArgTypeError)
        fields: dict[str, Any] = {name: bool(value) for name, value in flags.items()}
        fields["bits"] = checked_integer(bits, "bits")
        fields["granularity"] = granularity_of(
            axis, group_size, granularity, bool(ragged), bool(flat)
        )
        fields["scale_dtype"] = scale_dtype
        for name, value in fields.items():
            object.__setattr__(self, name, value)
        self._check()

    def _check(self) -> None:
        if not 2 <= self.bits <= 8:
            raise bad("bits", f"got {self.bits}", self.bits, "2, 3, 4, 5, 6, 7 or 8")
        if self.symmetric and not self.signed:
            found = "got True with signed=False, whose codes have no negative half"
            raise bad("symmetric", found, True, "False")
        if self.full_range and not self.symmetric:
            found = "got True with symmetric=False, which uses the full range anyway"
            raise bad("full_range", found, True, "False")
        if not isinstance(self.scale_dtype, str) or self.scale_dtype not in SCALE_DTYPES:
            accepted = f"one of: {', '.join(SCALE_DTYPES)}"
            raise bad("scale_dtype", f"got {self.scale_dtype!r}", self.scale_dtype, accepted)

    @property
    def qmin(self) -> int:
        """The least code."""
        if not self.signed:
            return 0
        return -(1 << (self.bits - 1)) + (self.symmetric and not self.full_range)

    @property
    def qmax(self) -> int:
        """The greatest code."""
        return (1 << (self.bits - self.signed)) - 1

    @property
    def code_dtype(self) -> np.dtype[Any]:
        """int8 or uint8."""
        return np.dtype(np.int8 if self.signed else np.uint8)

    def __str__(self) -> str:
        text = f"{'' if self.signed else 'u'}int{self.bits}{self.granularity.suffix()}"
        text += "-asym" * (self.signed and not self.symmetric) + "-full" * self.full_range
        suffix = SCALE_DTYPES[self.scale_dtype]
        text += f"-{suffix}" if suffix else ""
        if isinstance(self.granularity, PerGroup):
            text += "-flat" * self.granularity.flat + "-ragged" * self.granularity.ragged
        return text

    @classmethod
    def parse(cls, text: str) -> Int | None:
        match = _SPELLING.fullmatch(text)
        if match is None:
            return None
        by_suffix = {suffix: name for name, suffix in SCALE_DTYPES.items()}
        signed = not match["u"]
        return cls(
            int(match["bits"]),
            signed=signed,
            symmetric=signed and not match["asym"],
            full_range=bool(match["full"]),
            axis=None if match["axis"] is None else int(match["axis"]),
            group_size=None if match["group"] is None else int(match["group"]),
            ragged=bool(match["ragged"]),
            flat=bool(match["flat"]),
            scale_dtype=by_suffix[match["scale"] or ""],
        )

    def to_dict(self) -> dict[str, Any]:
        return {
            "family": self.family,
            "bits": self.bits,
            "signed": self.signed,
            "symmetric": self.symmetric,
            "full_range": self.full_range,
            **asdict(self.granularity),
            "scale_dtype": self.scale_dtype,
        }

    @classmethod
    def _from_dict(cls, fields: Mapping[str, Any]) -> Int:
        return cls._built(fields)

    def part_specs(self, shape: Shape) -> PartSpecs:
        layout = layout_of(self, shape)
        specs = {
            "packed": ("uint8", layout.packed_shape),
            "scale": (self.scale_dtype, layout.scale_shape),
        }
        if not self.symmetric:
            z_shape = packed_shape(layout.scale_shape, self.bits)
            specs["zero_point"] = ("uint8", z_shape)
        return specs

    def quantize(
        self,
        x: Array,
        backend: Reference,
        scale: Any = None,
        zero_point: Any = None,
        out: QTensor | None = None,
        weights: Any = None,
    ) -> QTensor:
        if weights is not None:
            raise checks.useless(self, "weights", weights)
        scale, zero_point = self._given(x, scale, zero_point)
        return int_parts.quantize(self, x, backend, scale, zero_point, out)

    def dequantize(
        self, qt: QTensor, dtype: str, backend: Reference, out: Array | None = None
    ) -> Array:
        return int_parts.dequantize(self, qt, dtype, backend, out)

    def fake_quantize(
        self,
        x: Array,
        backend: Reference,
        out: Array | None = None,
        scale: Any = None,
        zero_point: Any = None,
    ) -> Array:
        scale, zero_point = self._given(x, scale, zero_point)
        return int_parts.fake_quantize(self, x, backend, scale, zero_point, out)

    def clip_gradient(self, dy: Array, x: Array, scale: Any, zero_point: Any) -> Array:
        """The gradient of `x` straight through codes of these parameters, 0 where they clamp."""
        scale, zero_point = self._given(x, scale, zero_point)
        return int_parts.clip_gradient(self, dy, x, backends.of(x), scale, zero_point)

    def step_gradients(
        self, dy: Array, x: Array, scale: Any, zero_point: Any
    ) -> tuple[Array, Array, Array]:
        """The gradients of `x`, of learned scales, and of learned zero points; groups are whole."""
        scale, zero_point = self._given(x, scale, zero_point)
        return int_parts.step_gradients(self, dy, x, backends.of(x), scale, zero_point)

    def _given(self, x: Array, scale: Any, zero_point: Any) -> tuple[Any, Any]:
        """Parameters that the user gave, checked, where `x` is; None where there are none."""
        if scale is None and zero_point is None:
            return None, None
        expected = layout_of(self, x.shape).scale_shape
        scale, zero_point = int_checks.given_qparams(self, expected, scale, zero_point)
        checks.check_nonzero(scale)
        return scales.moved_like(scale, x), scales.moved_like(zero_point, x)

    def value_set(self) -> ValueSet | None:
        if not self.symmetric:
            return None
        levels = np.arange(self.qmin, self.qmax + 1).astype(np.float32)
        return ValueSet(levels, half_even_thresholds(self.qmin, self.qmax))

    def quantize_with(
        self, x: Array, backend: Reference, scale: Any, out: QTensor | None = None
    ) -> QTensor:
        return int_parts.quantize(self, x, backend, scale, None, out, searched=True)

    def from_codes(
        self, shape: Shape, codes: Any, scale: Any, zero_point: Any, codebook: Any = None
    ) -> QTensor:
        if codebook is not None:
            raise checks.useless(self, "codebook", codebook)
        layout = layout_of(self, shape)
        codes = int_checks.given_integers(self, "codes", shape, codes)
        scale, zero_point = int_checks.given_qparams(self, layout.scale_shape, scale, zero_point)
        packed = packed_bits(codes.reshape(layout.stored_shape), self.bits)
        parts = int_parts.parts_of(self, shape, packed, scale, zero_point)
        qt = QTensor(self, shape, "float32", parts)
        checks.check_zero_scales(qt)
        return qt

    def check_parts(self, qt: QTensor) -> None:
        int_checks.check_codes(self, qt)
        int_checks.check_scale(self, qt.scale, qt.zero_point)
        checks.check_zero_scales(qt)

    def explain(self, fault: KernelFault, x: Array) -> QrsError:
        def needed(lo: Array, hi: Array) -> Array:
            grid = (self.qmin, self.qmax, self.symmetric, "float32")
            return Reference().choose_qparams_affine(lo, hi, *grid)[0]

        return checks.explain(self, fault, x, needed)

    def codes(self, qt: QTensor) -> Array:
        stored = layout_of(self, qt.shape).stored_shape
        codes = unpacked_bits(qt.packed, self.bits, self.signed, stored)
        return codes.reshape(qt.shape)

    def zero_point(self, qt: QTensor, backend: Reference | None = None) -> Array | None:
        if self.symmetric:
            return None
        shape = layout_of(self, qt.shape).scale_shape
        packed: Array = qt.parts["zero_point"]
        return unpacked_bits(packed, self.bits, self.signed, shape, backend)

    def select(self, qt: QTensor, index: Any) -> QTensor:
        ndim = len(qt.shape)
        packed = qt.packed[index]
        parts = {"packed": packed, "scale": self.granularity.select(qt.parts["scale"], index, ndim)}
        z = self.zero_point(qt)
        if z is not None:
            chosen = self.granularity.select(z, index, ndim)
            parts["zero_point"] = packed_bits(chosen, self.bits)
        return QTensor(self, (packed.shape[0], *qt.shape[1:]), qt.dtype, parts)
