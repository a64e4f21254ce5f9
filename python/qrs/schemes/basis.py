"""Weights that are stored in another basis of the inputs, where fewer bits do.

The stored tensor is that of the scheme `inner`, of W T; `dequantize` gives W_hat = stored T^-1, in
the user's basis. A layer leaves the weight as it is and changes its input, as x W^T is
(x T^-T) (W T)^T. T is a scale for each column (`ColumnScaled`: AWQ, SmoothQuant), or a rotation of
blocks (`Rotated`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ..backends.reference import Reference, into
from ..checks import checked_integer
from ..devices import is_cupy, library_of
from ..errors import ArgTypeError, DeviceError, KernelFault, QrsError, bad
from ..qtensor import QTensor
from . import scales
from .base import Array, PartSpecs, Scheme, Shape, from_dict
from .checks import check_overflow

if TYPE_CHECKING:
    from ..granularity import Granularity

Float32 = NDArray[np.float32]


class InBasis:
    """What schemes share whose codes are those of another scheme, in another basis."""

    inner: Scheme
    suits_layers: ClassVar[bool] = True
    """Whether a layer can multiply what is stored with a changed input."""

    def _take_over(self) -> None:
        """Who shares a scale, and how it is stored, are those of `inner`."""
        for name in ("granularity", "scale_dtype"):
            object.__setattr__(self, name, getattr(self.inner, name))

    @property
    def bits(self) -> int:
        """Of a code."""
        return self.inner.bits

    # The changes of basis, of arrays (..., inputs), and of second moments (inputs, inputs).

    def weight_into(self, w: Array, parts: Mapping[str, Any]) -> Array:
        """W T."""
        raise NotImplementedError

    def weight_out_of(self, w: Array, parts: Mapping[str, Any]) -> Array:
        """W T^-1."""
        raise NotImplementedError

    def input_into(self, x: Array, parts: Mapping[str, Any]) -> Array:
        """x T^-T."""
        raise NotImplementedError

    def moments_into(self, h: Array, parts: Mapping[str, Any]) -> Array:
        """T^-1 H T^-T: the second moments of changed inputs, float64."""
        once = np.ascontiguousarray(self.input_into(h, parts).T)
        return self.input_into(once, parts)

    def own_parts(self, shape: Shape) -> PartSpecs:
        """What is stored beside the parts of `inner`."""
        return {}

    def default_parts(self, x: Array) -> dict[str, Any]:
        """These parts where nobody has chosen any."""
        return {}

    def tensor(self, qt: QTensor) -> QTensor:
        """What is stored, as a tensor of `inner`."""
        own = self.own_parts(qt.shape)
        parts = {name: part for name, part in qt.parts.items() if name not in own}
        return QTensor(self.inner, qt.shape, qt.dtype, parts, qt.info)

    def of(self, stored: QTensor, own: Mapping[str, Any]) -> QTensor:
        """A tensor of this scheme, from one of `inner` and the parts of the basis."""
        assert isinstance(self, Scheme)
        parts = {**stored.parts, **own}
        return QTensor(self, stored.shape, stored.dtype, parts, stored.info)

    def part_specs(self, shape: Shape) -> PartSpecs:
        """Those of `inner`, and of the basis."""
        return {**self.inner.part_specs(shape), **self.own_parts(shape)}

    def nested(self, shape: Shape) -> dict[str, tuple[Scheme, Shape]]:
        """As `inner` has them."""
        return self.inner.nested(shape)

    def quantize(
        self,
        x: Array,
        backend: Reference,
        scale: Any = None,
        zero_point: Any = None,
        out: QTensor | None = None,
        weights: Any = None,
    ) -> QTensor:
        """`inner` of the changed array."""
        refuse_on_gpus(x, self)
        own = self.default_parts(x)
        changed = self.weight_into(as_float32(x), own)
        if weights is not None:
            raise bad("weights", f"given for {self}", type(weights), "statistics of the inputs")
        qt = self.of(self.inner.quantize(changed, backend, scale, zero_point), own)
        qt.dtype = x.dtype.name
        return qt if out is None else out.overwrite(qt)

    def dequantize(
        self, qt: QTensor, dtype: str, backend: Reference, out: Array | None = None
    ) -> Array:
        """Decoded, and out of the basis again; one rounding to `dtype`."""
        refuse_on_gpus(qt.packed, self)
        stored = self.inner.dequantize(self.tensor(qt), "float32", backend)
        x_hat = self.weight_out_of(stored, qt.parts)
        check_overflow(x_hat, "dtype", backend)
        if dtype == "float64":
            return into(out, x_hat.astype(np.float64))
        if dtype != "float32":
            x_hat = scales.stored(x_hat, dtype, qt.shape, backend)
            check_overflow(x_hat, "dtype", backend)
        return into(out, x_hat)

    def from_codes(
        self, shape: Shape, codes: Any, scale: Any, zero_point: Any, codebook: Any = None
    ) -> QTensor:
        """There is no argument for the basis: codes alone are those of `inner`."""
        raise bad(
            "scheme", f"got {self}", str(self), f"{self.inner}, and from_leaves() for a basis"
        )

    def check_parts(self, qt: QTensor) -> None:
        """Those of `inner`."""
        self.inner.check_parts(self.tensor(qt))

    def explain(self, fault: KernelFault, x: Array) -> QrsError:
        """As `inner` would, of the changed array where it can be changed."""
        return self.inner.explain(fault, x)

    def codes(self, qt: QTensor) -> Array:
        """Of what is stored."""
        return self.inner.codes(self.tensor(qt))

    def scale(self, qt: QTensor, backend: Reference | None = None) -> Any:
        """Of what is stored."""
        return self.inner.scale(self.tensor(qt), backend)

    def zero_point(self, qt: QTensor, backend: Reference | None = None) -> Array | None:
        """Of what is stored."""
        return self.inner.zero_point(self.tensor(qt), backend)

    def codebook(self, qt: QTensor) -> Array | None:
        """Of what is stored."""
        return self.inner.codebook(self.tensor(qt))

    def select(self, qt: QTensor, index: Any) -> QTensor:
        """Rows; all have the same basis."""
        selected = self.inner.select(self.tensor(qt), index)
        own = {name: qt.parts[name] for name in self.own_parts(qt.shape)}
        again = self if selected.scheme == self.inner else self._with(selected.scheme)
        return again.of(selected, own)

    def is_rowwise(self, ndim: int) -> bool:
        """As `inner`."""
        return self.inner.is_rowwise(ndim)

    @property
    def loads_by_rows(self) -> bool:
        """What belongs to all rows is read with each."""
        return False

    def _with(self, inner: Scheme) -> Any:
        """The same basis for another scheme."""
        raise NotImplementedError

    def with_granularity(self, granularity: Granularity) -> Scheme:
        """The same, but for who shares a scale."""
        changed: Scheme = self._with(self.inner.with_granularity(granularity))
        return changed

    def with_scale_dtype(self, scale_dtype: str) -> Scheme:
        """The same, but for how scales are stored."""
        changed: Scheme = self._with(self.inner.with_scale_dtype(scale_dtype))
        return changed


@dataclass(frozen=True)
class ColumnScaled(InBasis, Scheme, family="scaled"):
    """Each input of a weight (out, in) has a factor of its own: W_hat = stored * column_scale.

    `inner` is the scheme of what is stored. By itself the factors are 1; `solver="awq"` chooses
    them by the activations (Lin et al., "AWQ", 2023), and layers multiply their input with them.

    >>> import qrs
    >>> qt = qrs.quantize([[1.0, 2.0]], "int8-axis0-scaled")
    >>> str(qt.scheme), qt.parts["column_scale"].tolist()
    ('int8-axis0-scaled', [1.0, 1.0])
    """

    inner: Scheme

    def __post_init__(self) -> None:
        check_inner(self.inner)
        self._take_over()

    def __str__(self) -> str:
        return f"{self.inner}-scaled"

    @classmethod
    def parse(cls, text: str) -> ColumnScaled | None:
        inner = _parsed(text.removesuffix("-scaled")) if text.endswith("-scaled") else None
        return None if inner is None else cls(inner)

    def to_dict(self) -> dict[str, Any]:
        return {"family": self.family, "inner": self.inner.to_dict()}

    @classmethod
    def _from_dict(cls, fields: Mapping[str, Any]) -> ColumnScaled:
        return cls._built({**fields, "inner": from_dict(fields.get("inner", {}))})

    def _with(self, inner: Scheme) -> ColumnScaled:
        return ColumnScaled(inner)

    def own_parts(self, shape: Shape) -> PartSpecs:
        return {"column_scale": ("float32", shape[-1:])}

    def default_parts(self, x: Array) -> dict[str, Any]:
        return {"column_scale": library_of(x).ones(x.shape[-1:], np.float32)}

    def check_parts(self, qt: QTensor) -> None:
        super().check_parts(qt)
        scale = qt.parts["column_scale"]
        wrong = ~(library_of(scale).isfinite(scale) & (scale > 0))
        if wrong.any():
            raise bad("column_scale", "has values that are not above 0", None, "finite, above 0")

    def weight_into(self, w: Array, parts: Mapping[str, Any]) -> Array:
        changed: Array = w / parts["column_scale"]
        return changed

    def weight_out_of(self, w: Array, parts: Mapping[str, Any]) -> Array:
        changed: Array = w * parts["column_scale"]
        return changed

    def input_into(self, x: Array, parts: Mapping[str, Any]) -> Array:
        changed: Array = x * parts["column_scale"]
        return changed


@dataclass(frozen=True)
class Rotated(InBasis, Scheme, family="rotated"):
    """Blocks of inputs are mixed by a signed Hadamard matrix, which spreads outliers over a block.

    `inner` is the scheme of what is stored, `block` a power of two that divides the inputs. Signs
    come from a fixed sequence, so that nothing is stored for it (Ashkboos et al., "QuaRot", 2024).

    >>> import numpy as np, qrs
    >>> w = np.zeros((1, 128), np.float32)
    >>> w[0, 3] = 1
    >>> qt = qrs.quantize(w, "int4-axis0-rot128")  # one value of 1 becomes 128 of 0.088
    >>> bool(abs(qt.codes).min() == 7), bool(abs(qt.dequantize() - w).max() < 1e-6)
    (True, True)
    """

    inner: Scheme
    block: int = 128

    def __post_init__(self) -> None:
        check_inner(self.inner)
        self._take_over()
        block = checked_integer(self.block, "block")
        if not 2 <= block <= 1 << 16 or block & (block - 1):
            raise bad("block", f"got {block}", block, "a power of two from 2 to 65536")

    def __str__(self) -> str:
        return f"{self.inner}-rot{self.block}"

    @classmethod
    def parse(cls, text: str) -> Rotated | None:
        match = re.fullmatch(r"(?P<inner>.+)-rot(?P<block>\d{1,9})", text, re.ASCII)
        inner = None if match is None else _parsed(match["inner"])
        return None if match is None or inner is None else cls(inner, int(match["block"]))

    def to_dict(self) -> dict[str, Any]:
        return {"family": self.family, "inner": self.inner.to_dict(), "block": self.block}

    @classmethod
    def _from_dict(cls, fields: Mapping[str, Any]) -> Rotated:
        return cls._built({**fields, "inner": from_dict(fields.get("inner", {}))})

    def _with(self, inner: Scheme) -> Rotated:
        return Rotated(inner, self.block)

    def part_specs(self, shape: Shape) -> PartSpecs:
        if shape[-1] % self.block:
            found = f"got {self.block} for {shape[-1]} inputs"
            raise bad("block", found, self.block, "a power of two that divides them")
        return super().part_specs(shape)

    def weight_into(self, w: Array, parts: Mapping[str, Any]) -> Array:
        if w.shape[-1] % self.block:
            self.part_specs(w.shape)
        return hadamard(w * signs_like(w), self.block)

    def weight_out_of(self, w: Array, parts: Mapping[str, Any]) -> Array:
        return hadamard(w, self.block) * signs_like(w)

    def input_into(self, x: Array, parts: Mapping[str, Any]) -> Array:
        return self.weight_into(x, parts)


def hadamard(x: Array, block: int) -> Array:
    """x (..., k) times the Hadamard matrix of Sylvester, over sqrt(block), block by block.

    The matrix is its own inverse. Sums and differences of halves, the nearest neighbours first, in
    the dtype of `x`, then one product with 1 / sqrt(block): the same bits with every library.

    >>> hadamard(np.array([[3.0, 1.0, 0.0, 0.0]]), 4).tolist()
    [[2.0, 1.0, 2.0, 1.0]]
    """
    xp, width = library_of(x), 1
    y = x.reshape(-1, block)
    while width < block:
        pairs = y.reshape(len(y), block // (2 * width), 2, width)
        left, right = pairs[:, :, 0], pairs[:, :, 1]
        y = xp.stack((left + right, left - right), axis=2).reshape(len(y), block)
        width *= 2
    rotated: Array = (y * x.dtype.type(block**-0.5)).reshape(x.shape)
    return rotated


def signs_like(x: Array) -> Array:
    """+1 or -1 for each input of `x` (..., k): a bit of the sequence SplitMix64 (Steele, 2014).

    >>> signs_like(np.zeros((1, 8), np.float32)).tolist()
    [-1.0, 1.0, 1.0, -1.0, 1.0, 1.0, 1.0, -1.0]
    """
    with np.errstate(over="ignore"):
        z = np.arange(1, x.shape[-1] + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    signs = np.where(z >> np.uint64(63), -1, 1).astype(x.dtype)
    found: Array = scales.moved_like(signs, x)
    return found


def as_float32(x: Array) -> Array:
    """A checked array of any float dtype, widened by its backend."""
    if x.dtype == np.float32:
        return x
    found: Array = x.astype(np.float32)
    return found


def refuse_on_gpus(x: Any, scheme: Any) -> None:
    """Raise for arrays of a GPU, for which no kernel changes the basis."""
    if is_cupy(x):
        fix = "the array on the host: cupy.asnumpy(x), or qt.to('numpy')"
        text = f"x: {scheme} has no kernels for GPUs; fix: {fix}"
        raise DeviceError(text, arg="x", value="cupy", expected=fix)


def check_inner(inner: Any) -> None:
    """Raise for what is no scheme, or one with a basis of its own."""
    if not isinstance(inner, Scheme):
        raise bad("inner", f"got {inner!r}", type(inner), "a scheme", ArgTypeError)
    if isinstance(inner, InBasis):
        raise bad("inner", f"got {inner}", str(inner), "a scheme without a basis of its own")


def _parsed(text: str) -> Scheme | None:
    """The scheme of another family that `text` spells."""
    for family in Scheme.families.values():
        if not issubclass(family, InBasis):
            scheme = family.parse(text)
            if scheme is not None:
                return scheme
    return None
