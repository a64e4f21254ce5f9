"""Operations of which there is no kernel for GPUs."""

from __future__ import annotations

from typing import NoReturn

from ...errors import DeviceError


def refused(name: str, fix: str = "arrays on the host: cupy.asnumpy(x)") -> NoReturn:
    """Raise for an operation that runs on the host alone."""
    problem = f"{name}: got an array on a GPU, where there is no kernel"
    raise DeviceError(f"{problem}; fix: {fix}", arg="x", value="cupy", expected=fix)
