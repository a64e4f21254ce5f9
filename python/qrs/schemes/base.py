"""What every scheme offers, and the registry of scheme families.

A scheme is a value: which numbers can be stored, who shares a scale, and how each part is
stored. It turns arrays into the parts of a QTensor with a backend's kernels, and back. It never
reads a file and never looks at a device.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from .. import backends
from ..errors import ArgTypeError, KernelFault, QrsError, bad
from . import scales

if TYPE_CHECKING:
    from ..backends.reference import Reference
    from ..granularity import Granularity
    from ..qtensor import QTensor

Array = NDArray[Any]
Shape = tuple[int, ...]
PartSpecs = dict[str, tuple[str, Shape]]


class ValueSet(NamedTuple):
    """What codes stand for, times the scale: ascending levels, and from where each is taken."""

    levels: NDArray[np.float32]
    thresholds: NDArray[np.float32]


Built = TypeVar("Built", bound="Scheme")


class Scheme(ABC):
    """Base class of all schemes; a subclass registers itself: `class Int(Scheme, family="int")`."""

    families: ClassVar[dict[str, type[Scheme]]] = {}
    family: ClassVar[str]
    granularity: Granularity
    scale_dtype: str | Scheme | None

    if TYPE_CHECKING:  # a field of some schemes, a property of others

        @property
        def bits(self) -> int:
            """Of a code."""

    def __init_subclass__(cls, family: str, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.family = family
        Scheme.families[family] = cls

    @classmethod
    @abstractmethod
    def parse(cls, text: str) -> Scheme | None:
        """The scheme that `text` spells, or None if it is not one of this family."""

    @classmethod
    @abstractmethod
    def _from_dict(cls, fields: Mapping[str, Any]) -> Scheme:
        """The inverse of `to_dict`, without its "family"."""

    @classmethod
    def _built(cls: type[Built], fields: Mapping[str, Any]) -> Built:
        """`cls(**fields)`; fields of other names are an error of the scheme."""
        try:
            return cls(**fields)
        except TypeError as error:
            if isinstance(error, ArgTypeError):
                raise
            raise bad("scheme", str(error), dict(fields), "the fields of to_dict()") from None

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """A JSON-able dictionary with every field; `qrs.schemes.from_dict` is its inverse."""

    @abstractmethod
    def part_specs(self, shape: Shape) -> PartSpecs:
        """What is stored for an array of `shape`: leaf path -> (dtype name, shape).

        Raises `ArgValueError` where the scheme does not fit the shape.
        """

    @abstractmethod
    def quantize(
        self,
        x: Array,
        backend: Reference,
        scale: Any = None,
        zero_point: Any = None,
        out: QTensor | None = None,
        weights: NDArray[np.float32] | None = None,
    ) -> QTensor:
        """Quantize an array that `qrs.arrays` has checked.

        `weights`, in the shape of `x`, are for schemes that learn; for others they are an error.
        """

    def value_set(self) -> ValueSet | None:
        """The levels between which a solver of scales may choose; None where there is none."""
        return None

    def quantize_with(
        self, x: Array, backend: Reference, scale: Any, out: QTensor | None = None
    ) -> QTensor:
        """Quantize with scales (rows, G) that a solver found; for schemes with a `value_set`."""
        raise NotImplementedError

    @abstractmethod
    def dequantize(
        self, qt: QTensor, dtype: str, backend: Reference, out: Array | None = None
    ) -> Array:
        """Decode a QTensor of this scheme to an array of `qt.shape`."""

    def fake_quantize(
        self,
        x: Array,
        backend: Reference,
        out: Array | None = None,
        scale: Any = None,
        zero_point: Any = None,
    ) -> Array:
        """`dequantize(quantize(x, scale, zero_point))` in the dtype of `x`."""
        qt = self.quantize(x, backend, scale, zero_point)
        return self.dequantize(qt, x.dtype.name, backend, out)

    @abstractmethod
    def from_codes(
        self, shape: Shape, codes: Any, scale: Any, zero_point: Any, codebook: Any = None
    ) -> QTensor:
        """Parts from codes and parameters made elsewhere, checked."""

    @abstractmethod
    def check_parts(self, qt: QTensor) -> None:
        """Raise where values stored in the parts are not legal (shapes are checked before)."""

    @abstractmethod
    def explain(self, fault: KernelFault, x: Array) -> QrsError:
        """The error for the user behind a kernel's fault in `x`, found by looking at `x`."""

    @abstractmethod
    def codes(self, qt: QTensor) -> Array:
        """The codes in the shape of the tensor."""

    def with_scale_dtype(self, scale_dtype: str) -> Scheme:
        """The same scheme, but for how its scales are stored."""
        return from_dict({**self.to_dict(), "scale_dtype": scale_dtype})

    def with_granularity(self, granularity: Granularity) -> Scheme:
        """The same scheme, but for who shares a scale, or a table where there are no scales."""
        before = asdict(self.granularity)
        fields = {name: value for name, value in self.to_dict().items() if name not in before}
        return from_dict({**fields, **asdict(granularity)})

    def nested(self, shape: Shape) -> dict[str, tuple[Scheme, Shape]]:
        """The parts of an array of `shape` that are QTensors: their schemes and shapes."""
        return {}

    def is_rowwise(self, ndim: int) -> bool:
        """Whether rows of the leading axis can be quantized apart, and give the same bits."""
        return self.granularity.is_rowwise(ndim)

    @property
    def loads_by_rows(self) -> bool:
        """Whether what is stored of some rows lies in one piece of each part, or is all of it."""
        return True

    def scale(self, qt: QTensor, backend: Reference | None = None) -> Any:
        """The scales as float32, or None."""
        part, dtype = qt.parts.get("scale"), self.scale_dtype
        if part is None or dtype is None:
            return None
        if isinstance(dtype, Scheme):
            backend = backend or backends.of(part.packed)
            return part.scheme.dequantize(part, "float32", backend)
        return scales.decoded(part, dtype, backend)

    def codebook(self, qt: QTensor) -> Array | None:
        """The levels by code as float32, or None where codes are numbers."""
        return None

    @abstractmethod
    def zero_point(self, qt: QTensor, backend: Reference | None = None) -> Array | None:
        """The zero points in the shape of the scale, or None."""

    @abstractmethod
    def select(self, qt: QTensor, index: Any) -> QTensor:
        """`qt[index]` along the leading axis."""


def from_dict(fields: Mapping[str, Any]) -> Scheme:
    """The scheme of a dictionary made by `to_dict`.

    >>> from qrs import Int
    >>> from_dict(Int(4, group_size=32).to_dict()) == Int(4, group_size=32)
    True
    """
    if not isinstance(fields, Mapping):
        raise bad("scheme", f"got {fields!r}", fields, "a dictionary", ArgTypeError)
    rest = dict(fields)
    family = rest.pop("family", None)
    if not isinstance(family, str) or family not in Scheme.families:
        known = f"one of: {', '.join(sorted(Scheme.families))}"
        raise bad("scheme", f"unknown family {family!r}", family, known)
    return Scheme.families[family]._from_dict(rest)
