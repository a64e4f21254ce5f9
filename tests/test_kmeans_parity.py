"""The steps of Lloyd's k-means: the bits of the reference from Rust, bounds on a GPU."""

import numpy as np
import pytest

from cuda_machines import GPU, alone, machine
from kernel_calls import REFERENCE, bits_of
from kmeans_calls import KMEANS_ARGUMENTS, KMEANS_CASES, call_kmeans
from qrs import _qrs
from qrs.backends import get
from qrs.backends.reference import Reference
from qrs.backends.rust import Rust
from test_parity import rust_alone

RUST = Rust()


@pytest.fixture(scope="module")
def expected() -> dict[str, list[tuple]]:
    return {op: [call_kmeans(REFERENCE, op, c) for c in KMEANS_CASES] for op in KMEANS_ARGUMENTS}


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("op", KMEANS_ARGUMENTS)
def test_rust_gives_the_bits_of_the_reference(
    op, threads, level, keep_threads, expected, monkeypatch
):
    _qrs.set_num_threads(threads)
    with rust_alone(monkeypatch):
        found = [bits_of(call_kmeans(RUST, op, case)) for case in KMEANS_CASES]
    assert found == [bits_of(result) for result in expected[op]]


@pytest.mark.parametrize("there", ["order-0", GPU])
def test_cupy_assigns_the_same(there, expected, monkeypatch):
    with alone(monkeypatch):
        for case, wanted in zip(KMEANS_CASES, expected["kmeans_assign"], strict=True):
            arguments = KMEANS_ARGUMENTS["kmeans_assign"](case)
            assert bits_of(machine(there).call("kmeans_assign", *arguments)) == bits_of(wanted)


@pytest.mark.parametrize("there", ["order-0", GPU])
@pytest.mark.parametrize("op", ["kmeans_update", "kmeans_potentials"])
def test_cupy_sums_within_the_bound(op, there, expected, monkeypatch):
    """Additions in float64 come in any order there: n * 2^-53 * sum |summand|, as documented."""
    for case, wanted in zip(KMEANS_CASES, expected[op], strict=True):
        arguments = KMEANS_ARGUMENTS[op](case)
        with alone(monkeypatch):
            found = machine(there).call(op, *arguments)
        magnitudes = getattr(Reference(), op)(np.abs(arguments[0]), *arguments[1:])
        if op == "kmeans_potentials":
            found, magnitudes = (found[0],), (wanted[0],)
        for part, exact, magnitude in zip(found, wanted, magnitudes, strict=True):
            assert part.dtype == np.float64
            assert (np.abs(part - exact) <= case.n * 2.0**-52 * magnitude).all()


@pytest.mark.parametrize("there", ["reference", "rust", "order-0", GPU])
def test_out_is_filled_and_returned(there, expected):
    for case, wanted in zip(KMEANS_CASES, expected["kmeans_assign"], strict=True):
        on_host = there in ("reference", "rust")
        backend = get(there) if on_host else machine(there).backend
        move = (lambda part: part) if on_host else machine(there).to_device
        out = tuple(move(np.full_like(part, -7)) for part in wanted)
        result = backend.kmeans_assign(move(case.points), move(case.centers), out)
        for part, place, right in zip(result, out, wanted, strict=True):
            filled, found = (each if on_host else each.get() for each in (place, part))
            assert filled.tobytes() == found.tobytes() == right.tobytes()


def test_arrays_that_kernels_must_not_read():
    """Another dtype, shape or order is refused by the binding, and labels out of range are."""
    x, centers = np.zeros((4, 2), np.float32), np.zeros((3, 2), np.float32)
    for out in ((x[:, :1], x[:, :1]), (np.zeros((3, 1), np.int32), np.zeros((4, 1), np.float32))):
        with pytest.raises((TypeError, ValueError)):
            _qrs.kmeans_assign(x, centers, *out)
    labels, weights = np.zeros((4, 1), np.int32), np.ones((4, 1), np.float32)
    for bad in (centers[:, :1], centers[:0], centers.astype(float), np.asfortranarray(centers)):
        with pytest.raises((TypeError, ValueError)):
            _qrs.kmeans_assign(x, bad)
        with pytest.raises((TypeError, ValueError)):
            _qrs.kmeans_potentials(x, bad, weights, None)
    with pytest.raises(ValueError, match="columns"):
        _qrs.kmeans_assign(x[:, :0], centers[:, :0])
    with pytest.raises((TypeError, ValueError)):
        _qrs.kmeans_update(x, labels[:3], None, 3)
    with pytest.raises((TypeError, ValueError)):
        _qrs.kmeans_update(x, labels, weights[:3], 3)
    for label in (-1, 3, 2**31 - 1):
        labels[2] = label
        with pytest.raises(RuntimeError, match="panicked"):
            _qrs.kmeans_update(x, labels, weights, 3)
