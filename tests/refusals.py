"""The calls that must refuse bad input, and the error they must raise."""

import numpy as np
import pytest

import qrs
from nasty import FLOATS

CALLS = {
    "quantize": lambda x, scheme, **options: qrs.quantize(x, scheme, **options),
    "fake_quantize": lambda x, scheme, **options: qrs.fake_quantize(x, scheme, **options),
}
SCHEMES = ("int8", "uint8-axis0", "int4-axis-1", "uint4-g16-ragged", "int3-g7-bf16-ragged")
CODEBOOKS = ("nf4-g64-ragged", "fp4-g7-bf16-ragged", "nf4-g16-dq-ragged")
every_call = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
every_dtype = pytest.mark.parametrize("dtype", FLOATS)


def noise(*shape: int, dtype: str = "float32") -> np.ndarray:
    return np.random.default_rng(shape).standard_normal(shape).astype(FLOATS[dtype])


def refused(call, *arguments, error=qrs.ArgValueError, arg: str = "x", **options) -> str:
    """The message of the error that names `arg`."""
    with pytest.raises(error) as caught:
        call(*arguments, **options)
    assert caught.value.arg == arg
    assert arg in str(caught.value)
    return str(caught.value)
