"""The table of vectors for tokens."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..arrays import Array, plain, reports_memory
from ..devices import is_cupy, library_of, on_host
from ..errors import ArgTypeError, bad
from ..qtensor import QTensor
from ..schemes import Scheme
from .layer import Layer, quantized
from .weights import checked_weight


class Embedding(Layer):
    """Rows of a quantized table (tokens, features), decoded when they are looked up.

    >>> import numpy as np
    >>> layer = Embedding.from_float(np.array([[1.0, -1.0], [0.5, 0.25]], np.float32))
    >>> layer(np.array([[1, 0, 0]])).round(2).tolist()
    [[[0.5, 0.25], [1.0, -1.0], [1.0, -1.0]]]
    """

    is_a_table = True

    def __init__(self, weight: QTensor, *, backend: str | None = None) -> None:
        super().__init__(checked_weight(weight, 2), None, None, None, backend)
        self._settings = {"backend": backend}

    @classmethod
    def from_float(
        cls,
        weight: Any,
        scheme: Scheme | str = "int8-axis0",
        *,
        solver: str = "minmax",
        backend: str | None = None,
    ) -> Embedding:
        """A layer of a float table: `qrs.quantize` with `scheme` and `solver`."""
        return cls(quantized(weight, scheme, solver, backend), backend=backend)

    @reports_memory
    def __call__(self, tokens: Any) -> Array:
        """Integers of any shape -> float32 (*shape, features); negative ones are an error."""
        if tokens is None:
            raise bad("tokens", "got None", None, "integers", ArgTypeError)
        index = plain(tokens, "tokens", integers=True)
        if index.dtype.kind not in "iu":
            expected = "integers"
            raise bad("tokens", f"got dtype {index.dtype}", index.dtype, expected, ArgTypeError)
        rows, features = self.weight.shape
        wrong = on_host(index[(index < 0) | (index >= rows)])
        if wrong.size:
            raise bad("tokens", f"got {wrong[0]}", int(wrong[0]), f"0 to {rows - 1}")
        # A token that is there several times is decoded once.
        found, places = np.unique(on_host(index), return_inverse=True)
        vectors = self.weight[found.astype(np.intp)].dequantize(backend=self.ops.name)
        places = places.reshape(index.shape)
        if is_cupy(vectors):
            places = library_of(vectors).asarray(places)
        looked_up: Array = vectors[places]
        return looked_up.reshape(*index.shape, features)

    def __repr__(self) -> str:
        rows, features = self.weight.shape
        return f"Embedding({rows} x {features}, {self.weight.scheme})"
