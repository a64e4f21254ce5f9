"""Floating-point schemes: a plain cast, or floats of few bits with scales.

With scales, NVFP4 ("Introducing NVFP4", NVIDIA 2025) and the MX formats ("OCP Microscaling Formats
(MX) Specification v1.0", 2023) among them, a tensor of any magnitude fits. The exact arithmetic is
the numeric contract of `qrs.backends.reference`, rules 9 and 10.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from .. import backends
from ..backends.reference import Reference
from ..constants import SCALE_DTYPES
from ..devices import dtype_beside
from ..errors import ArgTypeError, KernelFault, QrsError, bad
from ..float_formats import FORMATS, FloatFormat
from ..granularity import (
    Granularity,
    PerGroup,
    PerTensor,
    Unscaled,
    granularity_of,
)
from ..qtensor import QTensor
from . import checks, float_checks, float_parts, scales
from .base import Array, PartSpecs, Scheme, Shape, from_dict
from .layout import layout_of

_SPELLING = re.compile(
    r"(?P<format>[a-z]+\d[a-z\d]*)"
    r"(?P<where>-tensor|-axis(?P<axis>-?\d{1,99})|-g(?P<group>\d{1,99}))?"
    r"(?:-(?P<scale>f16|bf16|e8m0|\([a-z\d-]+\)))?"
    r"(?P<strict>-strict)?(?P<flat>-flat)?(?P<ragged>-ragged)?",
    re.ASCII,
)

_NAMED = {
    "nvfp4": "e2m1-g16-(e4m3-tensor)",
    "mxfp4": "e2m1-g32-e8m0",
    "mxfp8": "e4m3-g32-e8m0",
}
"""Names that are short for schemes; these are printed as the names."""


@dataclass(frozen=True, init=False)
class Float(Scheme, family="float"):
    """Floating-point numbers of 4 to 16 bits, as they are or with scales.

    Parameters
    ----------
    format : "bf16", "f16", "e4m3", "e5m2" or "e2m1".
    axis, group_size, granularity : at most one of them; none means a plain cast without scales.
        With one, x_hat = value * scale, and scale = absmax / largest number of the format.
    scale_dtype : "float32" (the default with a granularity), "float16", "bfloat16"; "e8m0", powers
        of two as in the MX formats; or a per-tensor Float such as
        `Float("e4m3", granularity=PerTensor())`, as in NVFP4.
    saturate : in a plain cast, clamp what is too large (the default); else it is an error.
    ragged, flat : with `group_size`, as in `Int`.

    A plain cast keeps -0.0. Raises `ArgTypeError` and `ArgValueError`, which name the argument.

    >>> import qrs
    >>> qrs.quantize([0.1, 1.0, 500.0], Float("e4m3")).dequantize().tolist()
    [0.1015625, 1.0, 448.0]
    >>> qt = qrs.quantize([[0.1, 1.0, 6e8]], Float("e2m1", group_size=3))
    >>> qt.codes.astype(float).tolist(), qt.scale.tolist()
    ([[0.0, 0.0, 6.0]], [[100000000.0]])
    """

    format: str
    granularity: Granularity
    scale_dtype: str | Scheme | None
    saturate: bool

    def __init__(
        self,
        format: str,
        *,
        axis: int | None = None,
        group_size: int | None = None,
        granularity: Granularity | None = None,
        scale_dtype: str | Scheme | None = None,
        saturate: bool = True,
        ragged: bool = False,
        flat: bool = False,
    ) -> None:
        for name, flag in {"saturate": saturate, "ragged": ragged, "flat": flat}.items():
            if not isinstance(flag, (bool, np.bool_)):
                raise bad(name, f"got {flag!r}", flag, "True or False", ArgTypeError)
        scaled = [axis, group_size, granularity] != [None] * 3 or ragged or flat
        found = granularity_of(axis, group_size, granularity, bool(ragged), bool(flat))
        if scaled and not isinstance(found, Unscaled):
            scale_dtype = "float32" if scale_dtype is None else scale_dtype
        else:
            found = Unscaled()
        fields: dict[str, Any] = {
            "format": format,
            "granularity": found,
            "scale_dtype": scale_dtype,
            "saturate": bool(saturate),
        }
        for name, value in fields.items():
            object.__setattr__(self, name, value)
        self._check()

    def _check(self) -> None:
        names = [name for name, f in FORMATS.items() if f.bits <= 16]
        if not isinstance(self.format, str) or self.format not in names:
            expected = f"one of: {', '.join(names)}"
            raise bad("format", f"got {self.format!r}", self.format, expected)
        dtype = self.scale_dtype
        if dtype is None:
            return
        if isinstance(self.granularity, Unscaled):
            found = f"got {dtype!r} without a granularity, which is a plain cast"
            raise bad("scale_dtype", found, dtype, "axis=, group_size= or granularity= beside it")
        if not self.saturate:
            raise bad("saturate", "got False beside scales, which make all fit", False, "True")
        nests = (
            isinstance(dtype, Float)
            and isinstance(dtype.granularity, PerTensor)
            and dtype.scale_dtype == "float32"
            and dtype.bits == 8
        )
        if not nests and not (isinstance(dtype, str) and dtype in (*SCALE_DTYPES, "e8m0")):
            accepted = ", ".join(SCALE_DTYPES)
            expected = f"one of: {accepted}, e8m0, or a Float of 8 bits and one float32 scale"
            raise bad("scale_dtype", f"got {dtype!r}", dtype, expected)
        if nests and isinstance(self.granularity, PerTensor):
            found = f"got {dtype!r} for the one scale of a tensor"
            raise bad("scale_dtype", found, dtype, "axis= or group_size= beside it")

    @property
    def bits(self) -> int:
        return self.float_format.bits

    @property
    def float_format(self) -> FloatFormat:
        """What the codes mean."""
        return FORMATS[self.format]

    @property
    def is_mx(self) -> bool:
        """Whether scales are powers of two."""
        return self.scale_dtype == "e8m0"

    @property
    def inner(self) -> Float | None:
        """The scheme of the scales, where they have one."""
        return self.scale_dtype if isinstance(self.scale_dtype, Float) else None

    def __str__(self) -> str:
        text = self.format + self.granularity.suffix()
        text += "-tensor" if isinstance(self.granularity, PerTensor) else ""
        if isinstance(self.scale_dtype, Scheme):
            text += f"-({self.scale_dtype})"
        elif self.scale_dtype is not None:
            suffix = SCALE_DTYPES.get(self.scale_dtype, self.scale_dtype)
            text += f"-{suffix}" if suffix else ""
        for name, spelled in _NAMED.items():
            text = name if text == spelled else text
        text += "" if self.saturate else "-strict"
        if isinstance(self.granularity, PerGroup):
            text += "-flat" * self.granularity.flat + "-ragged" * self.granularity.ragged
        return text

    @classmethod
    def parse(cls, text: str) -> Float | None:
        name, dash, rest = text.partition("-")
        match = _SPELLING.fullmatch(_NAMED.get(name, name) + dash + rest)
        if match is None or match["format"] not in FORMATS:
            return None
        scale: str | Scheme | None = match["scale"]
        if isinstance(scale, str) and scale.startswith("("):
            scale = cls.parse(scale[1:-1])
            if scale is None:
                return None
        by_suffix = {suffix: name for name, suffix in SCALE_DTYPES.items() if suffix}
        return cls(
            match["format"],
            axis=None if match["axis"] is None else int(match["axis"]),
            group_size=None if match["group"] is None else int(match["group"]),
            granularity=PerTensor() if match["where"] == "-tensor" else None,
            scale_dtype=by_suffix.get(scale, scale) if isinstance(scale, str) else scale,
            saturate=not match["strict"],
            ragged=bool(match["ragged"]),
            flat=bool(match["flat"]),
        )

    def to_dict(self) -> dict[str, Any]:
        dtype = self.scale_dtype
        return {
            "family": self.family,
            "format": self.format,
            **asdict(self.granularity),
            "scale_dtype": dtype.to_dict() if isinstance(dtype, Scheme) else dtype,
            "saturate": self.saturate,
        }

    @classmethod
    def _from_dict(cls, fields: Mapping[str, Any]) -> Float:
        fields = dict(fields)
        if isinstance(fields.get("scale_dtype"), Mapping):
            fields["scale_dtype"] = from_dict(fields["scale_dtype"])
        if fields.get("scale_dtype") is not None and not fields.keys() & {"axis", "group_size"}:
            fields["granularity"] = PerTensor()
        return cls._built(fields)

    def is_rowwise(self, ndim: int) -> bool:
        return self.inner is None and super().is_rowwise(ndim)

    def nested(self, shape: Shape) -> dict[str, tuple[Scheme, Shape]]:
        if self.inner is None:
            return {}
        return {"scale": (self.inner, layout_of(self, shape).scale_shape)}

    def part_specs(self, shape: Shape) -> PartSpecs:
        layout = layout_of(self, shape)
        specs: PartSpecs = {"packed": ("uint8", layout.packed_shape)}
        if isinstance(self.scale_dtype, str):
            specs["scale"] = (scales.part_dtype(self.scale_dtype), layout.scale_shape)
        elif self.scale_dtype is not None:
            inner = self.scale_dtype.part_specs(layout.scale_shape)
            specs |= {f"scale.{path}": spec for path, spec in inner.items()}
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
        if zero_point is not None:
            raise bad("zero_point", f"given for {self}, which has none", zero_point, "None")
        if scale is not None:
            scale = float_checks.given_scale(self, x.shape, scale)
            checks.check_nonzero(scale)
            scale = scales.moved_like(scale, x)
        return float_parts.quantize(self, x, backend, scale, out)

    def dequantize(
        self, qt: QTensor, dtype: str, backend: Reference, out: Array | None = None
    ) -> Array:
        return float_parts.dequantize(self, qt, dtype, backend, out)

    def from_codes(
        self, shape: Shape, codes: Any, scale: Any, zero_point: Any, codebook: Any = None
    ) -> QTensor:
        if codebook is not None:
            raise checks.useless(self, "codebook", codebook)
        return float_checks.from_codes(self, shape, codes, scale, zero_point)

    def check_parts(self, qt: QTensor) -> None:
        float_checks.check_parts(self, qt)

    def explain(self, fault: KernelFault, x: Array) -> QrsError:
        def needed(lo: Array, hi: Array) -> Array:
            return Reference().choose_scale_float(lo, hi, self.format, "float32")

        return checks.explain(self, fault, x, needed)

    def codes(self, qt: QTensor) -> Array:
        codes = float_parts.codes_of(self, qt, backends.of(qt.packed))
        return codes.view(dtype_beside(codes, self.float_format.dtype))

    def zero_point(self, qt: QTensor, backend: Reference | None = None) -> Array | None:
        return None

    def select(self, qt: QTensor, index: Any) -> QTensor:
        packed = qt.packed[index]
        parts: dict[str, Any] = {"packed": packed}
        scale = qt.parts.get("scale")
        if isinstance(scale, QTensor):
            of_rows = self.granularity.is_rowwise(len(qt.shape))
            parts["scale"] = scale.scheme.select(scale, index) if of_rows else scale
        elif scale is not None:
            parts["scale"] = self.granularity.select(scale, index, len(qt.shape))
        return QTensor(self, (packed.shape[0], *qt.shape[1:]), qt.dtype, parts)


def NVFP4(*, ragged: bool = False, flat: bool = False) -> Float:
    """e2m1 in groups of 16, with e4m3 scales and one float32 for the tensor: 4.5 bits.

    >>> str(NVFP4()), NVFP4() == Float("e2m1", group_size=16,
    ...     scale_dtype=Float("e4m3", granularity=PerTensor()))
    ('nvfp4', True)
    """
    scale = Float("e4m3", granularity=PerTensor())
    return Float("e2m1", group_size=16, scale_dtype=scale, ragged=ragged, flat=flat)


def MXFP4(*, ragged: bool = False, flat: bool = False) -> Float:
    """e2m1 in groups of 32 with scales that are powers of two: 4.25 bits.

    >>> str(MXFP4())
    'mxfp4'
    """
    return Float("e2m1", group_size=32, scale_dtype="e8m0", ragged=ragged, flat=flat)


def MXFP8(format: str = "e4m3", *, ragged: bool = False, flat: bool = False) -> Float:
    """e4m3 or e5m2 in groups of 32 with scales that are powers of two: 8.25 bits.

    >>> str(MXFP8()), str(MXFP8("e5m2"))
    ('mxfp8', 'e5m2-g32-e8m0')
    """
    if format not in ("e4m3", "e5m2"):
        raise bad("format", f"got {format!r}", format, "'e4m3' or 'e5m2'")
    return Float(format, group_size=32, scale_dtype="e8m0", ragged=ragged, flat=flat)
