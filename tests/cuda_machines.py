"""Where the CUDA kernels can run: on the CPU, as source or as PTX, and on a GPU where there is one.

`machine(name)` has the Cupy backend there, and counts launches by name; `Machine.call` takes numpy
arrays to it and back.
"""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
import pytest

from cuda_cpu import fake_cupy
from cuda_cpu.cpu_module import CpuModule
from cuda_cpu.ptx_cpu import PtxModule
from kernel_calls import bits_of
from qrs.backends import cupy
from qrs.backends.reference import OPERATIONS, Reference
from qrs.errors import KernelFault

ORDERS = ("order-0", "order-2", "order-7")
GPU = pytest.param("gpu", marks=pytest.mark.gpu)


class Machine:
    """A backend, what loads its kernels, and the launches so far."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.launches: Counter[str] = Counter()
        if name == "gpu":
            reason, _ = cupy.missing()
            if reason is not None:
                pytest.skip(reason)
            self.backend = cupy.Cupy()
            self.xp: Any = self.backend.xp
            load = self.backend._kernels._load
            self.backend._kernels._load = lambda family, names: self._counted(load(family, names))
        else:
            self.xp = fake_cupy
            self.backend = cupy.Cupy(fake_cupy, self._load)

    def _load(self, family: str, names: tuple[str, ...]) -> Any:
        if self.name == "ptx":  # g++ takes seconds for a whole family of it
            return self._counted(PtxModule(family, names, order=2))
        order = int(self.name.removeprefix("order-"))
        return self._counted(CpuModule(family, cupy.KERNELS[family], order=order))

    def _counted(self, module: Any) -> Any:
        return fake_cupy.CountedModule(module, self.launches)

    def to_device(self, value: Any) -> Any:
        return self.xp.asarray(value) if isinstance(value, np.ndarray) else value

    def call(self, op: str, *args: Any) -> tuple:
        """The arrays that an operation returns, as numpy's, or ("fault", reason, group)."""
        return self.raw_call(op, *map(self.to_device, args))

    def raw_call(self, op: str, *args: Any) -> tuple:
        """The same for arrays that are there already."""
        try:
            result = getattr(self.backend, op)(*args)
        except KernelFault as fault:
            return "fault", fault.reason, fault.group
        parts = result if isinstance(result, tuple) else (result,)
        return tuple(part.get() if isinstance(part, self.xp.ndarray) else part for part in parts)

    @contextmanager
    def launching(self) -> Iterator[Counter[str]]:
        """Counts the launches of the block."""
        before = self.launches.copy()
        counted: Counter[str] = Counter()
        yield counted
        counted.update(self.launches - before)


@cache
def machine(name: str) -> Machine:
    return Machine(name)


def reference_call(op: str, *args: Any) -> tuple:
    try:
        with np.errstate(all="ignore"):
            result = getattr(Reference(), op)(*args)
    except KernelFault as fault:
        return "fault", fault.reason, fault.group
    return result if isinstance(result, tuple) else (result,)


@contextmanager
def alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every operation of the reference raises: what runs is the override."""

    def inherited(*_: Any, **__: Any) -> None:
        raise AssertionError("the operation of the reference ran instead of the one of Cupy")

    with monkeypatch.context() as patch:
        for op in OPERATIONS:
            patch.setattr(Reference, op, inherited)
        yield


def differing(
    there: Machine, calls: Sequence[tuple[str, tuple]], monkeypatch: pytest.MonkeyPatch
) -> list[str]:
    """The calls whose result has other bits than the reference's."""
    expected = [bits_of(reference_call(op, *args)) for op, args in calls]
    with alone(monkeypatch):
        found = [bits_of(there.call(op, *args)) for op, args in calls]
    return [
        f"{op} {[getattr(a, 'shape', a) for a in args]}: {bits[:1]}"
        for (op, args), bits, wanted in zip(calls, found, expected, strict=True)
        if bits != wanted
    ]


# How many cases the tests take: 1 of as many. QRS_CUDA_CASES=1 takes all of them, in minutes.
SHARE = int(os.environ.get("QRS_CUDA_CASES", "16"))
