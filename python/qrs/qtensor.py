"""QTensor: a quantized tensor as a scheme and its stored parts.

Everything that is stored is a part, and a part that is itself quantized is a QTensor, so the
parts form a tree. Size, equality, hashing, copying, saving and loading are written once, over the
leaves of that tree. Nothing is computed here: the scheme does that, with a backend.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from . import backends
from .arrays import Held, check_out, float_dtype_name, refuse_on_gpu, reports_memory
from .constants import DTYPES
from .devices import LIBRARIES, is_array, is_cupy, is_writable, may_share_memory, moved, on_host
from .errors import ArgTypeError, QrsError, bad

if TYPE_CHECKING:
    from .schemes import Scheme

Array = NDArray[Any]


class QTensor:
    """A quantized tensor. Made by `qrs.quantize`, `QTensor.from_parts` or `qrs.load`.

    Attributes
    ----------
    scheme : the scheme it was quantized with.
    shape : shape of the source tensor.
    dtype : name of the source's dtype, such as "float32".
    parts : name -> array or QTensor, all that is stored: `packed`, `scale`, `zero_point`.
    info : what happened on the way, such as `underflow_groups`; outside equality.

    >>> import numpy as np, qrs
    >>> qt = qrs.quantize(np.linspace(-1, 1, 64, dtype=np.float32), "int4-g32-f16")
    >>> qt
    QTensor(int4-g32-f16, shape=(64,), dtype=float32, 4.5 bits per weight)
    >>> {name: array.shape for name, array in qt.leaves()}
    {'packed': (32,), 'scale': (2,)}
    """

    __slots__ = ("dtype", "info", "parts", "scheme", "shape")

    def __init__(
        self,
        scheme: Scheme,
        shape: tuple[int, ...],
        dtype: str,
        parts: dict[str, Any],
        info: dict[str, Any] | None = None,
    ) -> None:
        self.scheme = scheme
        self.shape = shape
        self.dtype = dtype
        self.parts = parts
        self.info = {} if info is None else info

    @classmethod
    def from_parts(
        cls, scheme: Scheme | str, shape: tuple[int, ...], codes: Any, scale: Any,
        zero_point: Any = None, codebook: Any = None,
    ) -> QTensor:  # fmt: skip
        """A QTensor from codes and parameters computed elsewhere.

        `codes` are integers of `shape`, one per element (they are packed here); `scale` and
        `zero_point` have the stored shapes: () per tensor, (shape[axis],) per axis,
        (*shape[:-1], G) per group; `codebook`, where tables are learned, has an axis of levels
        more, and `scale` is None where there is none. Raises `ArgValueError` or `ArgTypeError` that
        names the argument and the first wrong index.

        >>> qt = QTensor.from_parts("int8", (3,), [1, -2, 3], 0.5)
        >>> qt.dequantize().tolist()
        [0.5, -1.0, 1.5]
        """
        from .schemes import as_scheme

        return as_scheme(scheme).from_codes(
            _checked_shape(shape), codes, scale, zero_point, codebook
        )

    @classmethod
    def from_leaves(
        cls, scheme: Scheme | str, shape: tuple[int, ...], dtype: str, leaves: Mapping[str, Array]
    ) -> QTensor:
        """The QTensor whose `leaves()` these are; the inverse used by loaders.

        Raises `ArgValueError` naming the leaf that is missing, left over, or of another shape or
        dtype than the scheme stores.
        """
        from .schemes import as_scheme

        scheme, shape = as_scheme(scheme), _checked_shape(shape)
        if dtype not in DTYPES:
            raise bad("dtype", f"got {dtype!r}", dtype, f"one of: {', '.join(DTYPES)}")
        specs = scheme.part_specs(shape)
        for path in [*specs, *leaves]:
            if (path in specs) != (path in leaves):
                found = "missing" if path in specs else "left over"
                raise bad(path, found, None, f"the parts of {scheme}: {', '.join(specs)}")
        for path, spec in specs.items():
            mismatch = _mismatch(leaves[path], *spec)
            if mismatch:
                expected = f"{spec[0]} of shape {spec[1]}"
                raise bad(path, f"got {mismatch}", mismatch, expected)
        qt = cls(scheme, shape, dtype, _nested(scheme, shape, leaves))
        scheme.check_parts(qt)
        return qt

    def leaves(self) -> Iterator[tuple[str, Array]]:
        """Every stored array with its path: ("packed", array), ("scale.packed", array), ..."""
        for name, part in self.parts.items():
            if isinstance(part, QTensor):
                for path, array in part.leaves():
                    yield f"{name}.{path}", array
            else:
                yield name, part

    @property
    def packed(self) -> NDArray[np.uint8]:
        """Packed codes, uint8 of shape (*shape[:-1], ceil(shape[-1] * bits / 8))."""
        packed: NDArray[np.uint8] = self.parts["packed"]
        return packed

    @property
    def codes(self) -> Array:
        """The codes, unpacked now, in `shape`: int8 or uint8, or numbers of a float format.

        On a GPU, where CuPy has no float8 and float4, those are their bits.
        """
        return self.scheme.codes(self)

    @property
    def scale(self) -> Any:
        """The scales decoded to float32, or None; `parts["scale"]` is what is stored."""
        return self.scheme.scale(self)

    @property
    def zero_point(self) -> Array | None:
        """The zero points, in the dtype of the codes and the shape of the scale, or None."""
        return self.scheme.zero_point(self)

    @property
    def codebook(self) -> Array | None:
        """What codes stand for, as float32, or None where codes are numbers.

        (k,) per tensor, (n, k) per axis, (*shape[:-1], G, k) per group; learned tables are stored
        in `parts["codebook"]`, fixed ones are not stored.
        """
        return self.scheme.codebook(self)

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of everything that is stored."""
        return sum(array.nbytes for _, array in self.leaves())

    @property
    def bits_per_weight(self) -> float:
        """8 * nbytes / size: scales and zero points included; NaN without elements."""
        return 8 * self.nbytes / self.size if self.size else math.nan

    @reports_memory
    def dequantize(
        self, dtype: str = "float32", *, out: Array | None = None, backend: str | None = None
    ) -> Array:
        """The decoded values; the same as `qrs.dequantize(self, ...)`, which see.

        After an error the contents of `out` are unspecified.
        """
        name = float_dtype_name(dtype)
        if name == "float64":
            refuse_on_gpu(self.packed, "dtype")
        stored = [array for _, array in self.leaves()]
        if out is not None:
            check_out(out, self.shape, name, stored)
        chosen = backends.resolve(backend, self.packed)
        with Held(*stored, out):
            return self.scheme.dequantize(self, name, chosen, out)

    def to(self, library: str) -> QTensor:
        """The same tensor as arrays of "numpy" or "cupy": parts are copied where they have to move.

        Raises `DeviceError` where CuPy or a GPU is missing.

        >>> import qrs
        >>> qt = qrs.quantize([[1.0, 2.0]], "int8")
        >>> qt.to("numpy") == qt
        True
        """
        if not isinstance(library, str) or library not in LIBRARIES:
            raise bad("library", f"got {library!r}", library, f"one of: {', '.join(LIBRARIES)}")
        if library == "cupy":
            backends.get("cupy")  # says what is missing
        parts = {
            name: part.to(library) if isinstance(part, QTensor) else moved(part, library)
            for name, part in self.parts.items()
        }
        return QTensor(self.scheme, self.shape, self.dtype, parts, dict(self.info))

    def copy(self) -> QTensor:
        """A copy that shares no memory."""
        parts = {name: part.copy() for name, part in self.parts.items()}
        return QTensor(self.scheme, self.shape, self.dtype, parts, dict(self.info))

    def __getitem__(self, rows: Any) -> QTensor:
        """Rows of the leading axis, by a slice, a list or an array of indices or booleans."""
        expected = "a slice, or indices or booleans of the leading axis of two or more"
        if self.ndim < 2 or not isinstance(rows, (slice, list, np.ndarray)):
            found = f"got {rows!r} for shape {self.shape}"
            raise bad("rows", found, rows, f"{expected}; or use dequantize()[...]", ArgTypeError)
        try:
            index = rows if isinstance(rows, slice) else np.asarray(rows)
            if not isinstance(index, slice):
                index = index if index.size else index.astype(np.intp)
                if index.ndim != 1 or index.dtype.kind not in "iub":
                    raise bad("rows", f"got {rows!r}", rows, expected, ArgTypeError)
                if is_cupy(self.packed):  # CuPy wraps what is out of bounds around
                    index = moved(np.arange(self.shape[0])[index], "cupy")
            return self.scheme.select(self, index)
        except (IndexError, TypeError, ValueError) as error:
            if isinstance(error, QrsError):
                raise
            raise bad("rows", str(error), rows, f"indices of {self.shape[0]} rows") from None

    def __len__(self) -> int:
        return self.shape[0]

    def __reduce__(self) -> tuple[Any, ...]:
        return QTensor, (self.scheme, self.shape, self.dtype, self.parts, self.info)

    def __eq__(self, other: object) -> bool:
        """The same scheme, shape, dtype and stored bits."""
        if not isinstance(other, QTensor):
            return NotImplemented
        return self._identity() == other._identity() and all(
            np.array_equal(_bytes_of(a), _bytes_of(b))
            for (_, a), (_, b) in zip(self.leaves(), other.leaves(), strict=True)
        )

    def __hash__(self) -> int:
        digest = hashlib.sha256(repr(self._identity()).encode())
        for _, array in self.leaves():
            digest.update(_bytes_of(array).data)
        return int.from_bytes(digest.digest()[:8], "little")

    def __repr__(self) -> str:
        bits = f"{self.bits_per_weight:.4g} bits per weight"
        return f"QTensor({self.scheme}, shape={self.shape}, dtype={self.dtype}, {bits})"

    def _identity(self) -> tuple[Any, ...]:
        stored = tuple((path, a.dtype.name, a.shape) for path, a in self.leaves())
        return self.scheme, self.shape, self.dtype, stored

    def check_as_out(self, scheme: Scheme, shape: tuple[int, ...], inputs: list[Any]) -> None:
        """Raise unless this tensor can take what `scheme` stores for an array of `shape`.

        `inputs` are what the caller passed, of which no array may overlap a part.
        """
        if self.scheme != scheme or self.shape != shape:
            expected = f"a QTensor of {scheme} and shape {shape}"
            raise bad("out", f"got {self!r}", repr(self), expected)
        arrays = [array for array in inputs if is_array(array)]
        mine = dict(self.leaves())
        for path, spec in scheme.part_specs(shape).items():
            part: Any = mine.get(path)
            found = _mismatch(part, *spec)
            if found is None and not is_writable(part):
                found = "an array that is not writable in C order"
            if found is None and any(may_share_memory(part, array) for array in arrays):
                found = "memory that overlaps an input"
            if found:
                expected = f"its own {spec[0]} of shape {spec[1]}, writable in C order"
                raise bad("out", f"{path} is {found}", found, expected)

    def overwrite(self, qt: QTensor, written: tuple[str, ...] = ()) -> QTensor:
        """Take over what `qt`, of the same scheme and shape, holds; `written` leaves do already."""
        for (path, mine), (_, theirs) in zip(self.leaves(), qt.leaves(), strict=True):
            if path not in written:
                mine[...] = theirs
        self.dtype, self.info = qt.dtype, qt.info
        return self


def _nested(scheme: Scheme, shape: tuple[int, ...], leaves: Mapping[str, Array]) -> dict[str, Any]:
    """The parts with these leaves, in the order that the scheme names them."""
    parts: dict[str, Any] = {}
    for path in scheme.part_specs(shape):
        name, _, rest = path.partition(".")
        if rest:
            parts.setdefault(name, {})[rest] = leaves[path]
        else:
            parts[name] = leaves[path]
    for name, (its_scheme, its_shape) in scheme.nested(shape).items():
        nested = _nested(its_scheme, its_shape, parts[name])
        parts[name] = QTensor(its_scheme, its_shape, "float32", nested)
    return parts


def _mismatch(array: Any, dtype: str, shape: tuple[int, ...]) -> str | None:
    """What an array is if it is not of this dtype and shape."""
    if not is_array(array):
        return type(array).__name__
    if array.dtype == np.dtype(dtype) and array.shape == shape:
        return None
    return f"{array.dtype.name} of shape {array.shape}"


def _checked_shape(shape: Any) -> tuple[int, ...]:
    dims = tuple(shape) if isinstance(shape, (tuple, list)) else ()
    if not dims or not all(type(d) is int or isinstance(d, np.integer) for d in dims):
        expected = "a tuple of one or more integers"
        raise bad("shape", f"got {shape!r}", shape, expected, ArgTypeError)
    if min(dims) < 0:
        raise bad("shape", f"got {shape!r}", shape, "no negatives")
    return tuple(int(d) for d in dims)


def _bytes_of(array: Array) -> NDArray[np.uint8]:
    return np.ascontiguousarray(on_host(array)).reshape(-1).view(np.uint8)
