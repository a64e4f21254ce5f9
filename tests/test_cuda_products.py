"""The CUDA kernels of layers: the reference's bits, or in chains of fused steps those of Rust."""

import numpy as np
import pytest

from cuda_machines import GPU, Machine, machine
from kernel_calls import bits_of
from nasty import FLOATS
from product_calls import grouped_calls, int8_calls, plain_calls
from qrs.backends import get
from qrs.backends.cuda import launch
from qrs.errors import KernelFault

REFERENCE, RUST = get("reference"), get("rust")
CHAINS = ("matmul_grouped", "add_matmul")
"""Class B: the reference sums in float64."""


@pytest.fixture(autouse=True)
def small_grids(monkeypatch: pytest.MonkeyPatch) -> None:
    """512 threads, so that larger calls take several turns."""
    monkeypatch.setattr(launch, "_BLOCKS_PER_PROCESSOR", 1)


on_every_machine = pytest.mark.parametrize("there", ["order-0", "order-2", "ptx", GPU])


def packer(there: Machine, op: str):
    return lambda *args: getattr(there.backend, op)(*map(there.to_device, args))


def expected(op: str, args: tuple) -> tuple:
    try:
        with np.errstate(all="ignore"):
            result = getattr(RUST if op in CHAINS else REFERENCE, op)(*args)
    except KernelFault as fault:
        return "fault", fault.reason, fault.group
    return (result,)


@on_every_machine
@pytest.mark.parametrize("shape", [(1, 1, 1), (5, 9, 23), (90, 70, 16)], ids=str)
def test_int8(there: str, shape: tuple[int, int, int]) -> None:
    there = machine(there)
    if there.name == "ptx":
        shape = (min(shape[0], 6), *shape[1:])
    calls = zip(
        int8_calls(packer(there, "pack_int8"), *shape),
        int8_calls(REFERENCE.pack_int8, *shape),
        strict=True,
    )
    for (op, args), (_, known) in calls:
        assert bits_of(there.call(op, *args)) == bits_of(expected(op, known)), op


@on_every_machine
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", [(1, 3, 9), (86, 67, 23)], ids=str)
def test_grouped(there: str, shape: tuple[int, int, int], dtype: str) -> None:
    there = machine(there)
    if there.name == "ptx":
        shape = (min(shape[0], 6), *shape[1:])
    packs = (packer(there, "pack_grouped"), RUST.pack_grouped, REFERENCE.pack_grouped)
    kinds = [
        grouped_calls(pack, packer(there, "pack_bits") if pack is packs[0] else RUST.pack_bits,
                      *shape, FLOATS[dtype])
        for pack in packs
    ]  # fmt: skip
    for (op, args), (_, by_rust), (_, by_reference) in zip(*kinds, strict=True):
        known = by_rust if op in CHAINS else by_reference
        assert bits_of(there.call(op, *args)) == bits_of(expected(op, known)), op


@on_every_machine
@pytest.mark.parametrize("dtype", FLOATS)
def test_rows(there: str, dtype: str) -> None:
    there = machine(there)
    rng = np.random.default_rng(3)
    shapes = [(1, 1), (3, 40), (5, 17), (0, 4)] if there.name == "ptx" else [(37, 131), (1, 70_000)]
    for shape in shapes:
        x = (rng.standard_normal(shape) * 10.0 ** rng.integers(-3, 3, shape)).astype(FLOATS[dtype])
        for op, args in plain_calls(x):
            assert bits_of(there.call(op, *args)) == bits_of(expected(op, args)), (op, shape)


@on_every_machine
def test_faults(there: str) -> None:
    there = machine(there)
    x = np.ones((4, 33), np.float32)
    x[2, 32] = np.inf
    one = np.ones((1, 33), np.float32)
    for op, args in (("gelu", ()), ("softmax", ()), ("layer_norm", (one, one, 0.0))):
        assert there.call(op, x, *args) == ("fault", "nonfinite", 0)
    assert there.call("column_absmax", x) == ("fault", "nonfinite", 0)
    x[2:] = [[3e38], [-3e38]]
    x[2:, ::2] *= -1
    assert there.call("layer_norm", x, one, one, 0.0) == ("fault", "scale_overflow", 2)
    packed, scale = np.array([[0x23]], np.uint8), np.ones((1, 1), np.float32)
    book = np.array([[1.0, 2.0, 3.0]], np.float32)
    args = (packed, 2, 2, 4, False, scale, None, book)
    assert there.call("pack_grouped", *args) == ("fault", "no_level", 0)
