"""CUDA kernels where threads have to come back for more, and where divisions are hardest."""

import numpy as np
import pytest

from codebook_calls import BOOK_ARGUMENTS, BOOK_RULES, BookCase
from cuda_machines import GPU, differing, machine, reference_call
from gradient_calls import GRADIENTS
from kernel_calls import ARGUMENTS, RULES, Case
from kmeans_calls import KMEANS_ARGUMENTS
from product_calls import PRODUCT_OPERATIONS, SOLVING
from qrs.backends.cuda import launch
from qrs.backends.reference import OPERATIONS

Call = tuple[str, tuple]


def calls_of_all(x: np.ndarray) -> list[Call]:
    """Every operation but those of k-means, which have no kernels here: on shapes that take the
    general kernels and on those that do not."""
    calls: list[Call] = []
    for rule, group_size in (("int4-asym-f16", 7), ("int8", 32), ("uint5-bf16", x.shape[1])):
        case = Case(x, group_size, RULES[rule])
        for op, arguments in ARGUMENTS.items():
            case.prepare(op)
            calls.append((op, arguments(case)))
    for format, group_size in (("e2m1", 16), ("e4m3", 7), ("bf16", 32)):
        lo, hi = reference_call("group_range", x, group_size)
        (scale,) = reference_call("choose_scale_float", lo, hi, format, "float32")
        (codes,) = reference_call("quantize_float", x, group_size, format, scale)
        packed, _ = reference_call("quantize_float_packed", x, group_size, format, None, scale)
        cols, dtype = x.shape[1], x.dtype.name
        calls += [
            ("encode_float", (x, format, True)),
            ("decode_float", (codes, format, dtype)),
            ("choose_scale_float", (lo, hi, format, "e8m0")),
            ("choose_scale_float_nested", (lo, hi, format, "e4m3")),
            ("quantize_float", (x, group_size, format, scale)),
            ("dequantize_float", (codes, group_size, format, scale, dtype)),
            ("quantize_float_packed", (x, group_size, format, "e8m0")),
            ("dequantize_float_packed", (packed, cols, group_size, format, scale, dtype)),
        ]
    for rule, group_size in (("nf4", 64), ("fp4", 7), ("learned-40-rows", 512), ("nf4", 1)):
        book = BookCase(x, group_size, BOOK_RULES[rule])
        # The search over single values would take as long as all the others.
        ops = BOOK_ARGUMENTS if group_size > 1 else ["center_scales"]
        calls += [(op, book.arguments(op)) for op in ops]
    return calls


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("there", ["order-0", "order-2"])
def test_more_than_three_turns(there: str, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A grid of 512 threads; every kernel gets work for several of it, and all is compared."""
    monkeypatch.setattr(launch, "_BLOCKS_PER_PROCESSOR", 1)
    x = np.random.default_rng(1).standard_normal((131, 512), np.float32).astype(dtype)
    calls = calls_of_all(x)
    clustering = {*KMEANS_ARGUMENTS, "kmeans_1d", *SOLVING, *GRADIENTS}  # CuPy's, and none
    layers = set(PRODUCT_OPERATIONS)  # test_cuda_products.py
    assert {op for op, _ in calls} == set(OPERATIONS) - clustering - layers
    with machine(there).launching() as launches:
        assert not differing(machine(there), calls, monkeypatch)
    kernels = {name.partition("<")[0] for name in launches}
    assert kernels == {
        name.partition("<")[0]
        for family, names in launch.KERNELS.items()
        for name in names
        if family not in ("products", "functional")
    }


@pytest.mark.parametrize("there", ["order-0", GPU])
def test_ties_of_subnormals_with_scales_that_are_hardly_normal(
    there: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a correction by fused steps loses bits of a tiny remainder, a tie goes astray.

    e5m2 has subnormals of 2^-16, and quotients around a half of that, with scales from 2^-100 on,
    have remainders below the smallest float32. The quotients chosen lie just beside the middle
    between a tie and the next float32, so that the last bit of a remainder decides.
    """
    rng = np.random.default_rng(2)
    scale = np.ldexp(rng.uniform(1, 2, 1 << 21), rng.integers(-100, -60, 1 << 21))
    scale = scale.astype(np.float32)
    tie = np.float32((rng.integers(0, 4, scale.size) + 0.5) * 2.0**-16)
    x = (tie * scale.astype(np.float64)).astype(np.float32)
    x = (x.view(np.int32) + rng.integers(-1, 2, x.shape, np.int32)).view(np.float32)
    away = x.astype(np.float64) / scale - tie
    middle = np.where(away > 0, np.spacing(tie), tie - np.nextafter(tie, np.float32(0))) / 2
    hard = np.abs(np.abs(away) / middle - 1) < 2.0**-6
    assert np.count_nonzero(hard) > 10_000
    rows, scale = np.repeat(x[hard][:, None], 8, axis=1), scale[hard][:, None]
    calls = [("quantize_float", (rows, 8, "e5m2", each)) for each in (scale, -scale)]
    assert not differing(machine(there), calls, monkeypatch)
