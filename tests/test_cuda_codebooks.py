"""The CUDA kernels of codebooks give the bits of the reference; see test_cuda_kernels.py.

In the reference they are tested against numbers worked out by hand, and against bitsandbytes.
"""

from functools import cache
from zlib import crc32

import numpy as np
import pytest

from codebook_calls import BOOK_ARGUMENTS, BOOK_RULES, BookCase
from cuda_machines import GPU, ORDERS, SHARE, alone, differing, machine, reference_call
from kernel_calls import bits_of
from nasty import FLOATS, every_finite, faulty, float32_sample, misaligned, nasty
from qrs import codebooks

Call = tuple[str, tuple]
Table = tuple[np.ndarray, np.ndarray, np.ndarray | None]
"""Ascending levels (k,), their thresholds (1, k - 1), and the codes of the ranks."""


def table(levels: tuple[float, ...]) -> Table:
    ascending, limits, codes = codebooks.ranked(levels)
    return ascending, limits[None], codes


TABLES: dict[str, Table] = {
    **{name: table(levels) for name, levels in codebooks.TABLES.items()},
    "two": table((-1.0, 1.0)),
    "no-negatives": table((0.0, 0.25, 1.0)),
    "sixteen": table(tuple(np.linspace(-1, 1.3, 16).tolist())),
    "seventeen": table(tuple(np.linspace(1, -1, 17).tolist())),
    "repeated": table((0.5, -1.0, 0.5, 0.0, 0.5)),  # thresholds end with NaN
    "most": table(tuple(np.linspace(-1, 1, 256).tolist())),
    "integers": (
        np.arange(-8, 8, dtype=np.float32),
        codebooks.half_even_thresholds(-8, 7)[None],
        None,
    ),
}
SCALE_DTYPES = ("float32", "float16", "bfloat16")
ODD_SCALES = np.float32(
    [1e-45, 9e-39, 1e-38, 1.1e-38, 2e-38, 0.3, 7, 2e38, 3.4e38, 0, np.inf, np.nan]
)

on_every_machine = pytest.mark.parametrize("there", [*ORDERS, GPU])


def bits_for(limits: np.ndarray) -> int:
    """The fewest that codes need, and at least 2."""
    return max(int(limits.shape[1]).bit_length(), 2)


def in_code_order(levels: np.ndarray, codes: np.ndarray | None) -> np.ndarray:
    book = levels.copy()
    book[... if codes is None else codes] = levels
    return book[None]


def with_table(x: np.ndarray, group_size: int, kind: str, scale_dtype: str | None) -> list[Call]:
    """To the codes of one table and back, with scales that are chosen, or without any."""
    levels, limits, codes = TABLES[kind]
    ends, bits = (float(levels[0]), float(levels[-1])), bits_for(limits)
    fused = (x, group_size, bits, ends, scale_dtype, None, limits, codes)
    calls: list[Call] = [("quantize_codebook_packed", fused)]
    chosen = reference_call("quantize_codebook_packed", *fused)
    if len(chosen) == 3:  # a fault
        return calls
    packed, scale = chosen
    if scale is not None:
        ranges = reference_call("group_range", x, group_size)
        calls.append(("choose_scale_codebook", (*ranges, *ends, scale_dtype)))
        calls += [("center_scales", (scale,))] * (scale.size > 0)
        other = np.float32(-0.37) * scale
        fused = (x, group_size, bits, ends, None, other, limits, codes)
        calls.append(("quantize_codebook_packed", fused))
    found = reference_call("quantize_codebook", x, group_size, scale, limits, codes)[0]
    book, offset = in_code_order(levels, codes), np.float32([[-0.125]])
    back = (book, x.dtype.name)
    return [
        *calls,
        ("quantize_codebook", (x, group_size, scale, limits, codes)),
        ("dequantize_codebook", (found, group_size, scale, None, *back)),
        ("dequantize_codebook", (found, group_size, scale, offset, *back)),
        ("dequantize_codebook_packed", (packed, x.shape[1], group_size, bits, scale, None, *back)),
    ]


def with_books(x: np.ndarray, group_size: int, levels: int, by_group: bool) -> list[Call]:
    """To the codes of a table for each row or group, some levels equal, and back."""
    rows, cols = x.shape
    count = rows * -(-cols // group_size) if by_group else rows
    values = x.astype(np.float32).ravel()
    random = np.random.default_rng((rows, cols, group_size, levels))
    books = np.sort(random.choice(values, (count, levels)), axis=1)
    limits = codebooks.thresholds(books)
    found = reference_call("quantize_codebook", x, group_size, None, limits, None)[0]
    bits = bits_for(limits)
    packed = reference_call("pack_bits", found, bits)[0]
    scale = np.float32(random.uniform(-2, 2, (rows, -(-cols // group_size))))
    fused = (x, group_size, bits, (0.0, 0.0), None, None, limits, None)
    return [
        ("quantize_codebook", (x, group_size, None, limits, None)),
        ("quantize_codebook", (x, group_size, scale, limits, None)),
        ("quantize_codebook_packed", fused),
        ("dequantize_codebook", (found, group_size, None, None, books, x.dtype.name)),
        ("dequantize_codebook_packed",
         (packed, cols, group_size, bits, scale, None, books, x.dtype.name)),
    ]  # fmt: skip


@cache
def cases(dtype: str, share: int) -> list[Call]:
    """Some of the nasty arrays with each table, group size and dtype of scales."""
    found: list[Call] = []
    for name, x in {**nasty(dtype), **faulty(dtype)}.items():
        for group_size in sorted({max(x.shape[1], 1), 7, 32}):
            for kind in TABLES:
                for scale_dtype in (None, *SCALE_DTYPES):
                    key = f"{name} {kind} {dtype} {group_size} {scale_dtype}".encode()
                    if crc32(key) % (3 * share) == 0:
                        found += with_table(x, group_size, kind, scale_dtype)
            if x.size and name in nasty(dtype):
                for levels in (2, 16, 17, 256):
                    if crc32(f"{name} {group_size} {dtype} {levels}".encode()) % share == 0:
                        found += with_books(x, group_size, levels, levels % 3 == 1)
    return found


@on_every_machine
@pytest.mark.parametrize("dtype", FLOATS)
def test_nasty_arrays(dtype, there, monkeypatch):
    some = cases(dtype, SHARE)
    assert len(some) > 2000 / SHARE
    assert not differing(machine(there), some, monkeypatch)


@cache
def shared_cases(dtype: str, share: int) -> list[BookCase]:
    """Some of those that the other backends are tested with."""
    found = []
    for name, x in nasty(dtype).items():
        for group_size in (max(x.shape[1], 1), 7, 32):
            for rule_name, rule in BOOK_RULES.items():
                if crc32(f"{name} {group_size} {rule_name} {dtype}".encode()) % (2 * share) == 0:
                    found.append(BookCase(x, group_size, rule))
    return found


@on_every_machine
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("op", BOOK_ARGUMENTS)
def test_cases_of_other_backends(op, dtype, there, monkeypatch):
    arguments = [case.arguments(op) for case in shared_cases(dtype, SHARE)]
    some = [(op, args) for args in arguments if isinstance(args, tuple)]
    assert len(some) > 500 / SHARE
    assert not differing(machine(there), some, monkeypatch)


def test_as_ptx(monkeypatch):
    """A small table, a large one, and one for each group."""
    x = nasty("float16")["primes-2x1031"]
    some = [call for kind in ("fp4", "dynamic8") for call in with_table(x, 16, kind, "float16")]
    some += with_books(x, 32, 16, True)
    assert not differing(machine("ptx"), some, monkeypatch)


@on_every_machine
@pytest.mark.parametrize("kind", TABLES)
def test_around_every_threshold(kind, there, monkeypatch):
    """Thresholds, their neighbours and the levels; without scales, and with powers of two."""
    levels, limits, codes = TABLES[kind]
    reached = limits[~np.isnan(limits)]
    around = [np.nextafter(reached, np.float32(to)) for to in (-np.inf, np.inf)]
    x = np.concatenate([reached, *around, levels, np.float32([9, -9, 0, -0.0])])[None]
    some: list[Call] = [("quantize_codebook", (x, 7, None, limits, codes))]
    for scale in np.float32([2.0**-40, 0.5, -2, 2.0**60]):
        scales = np.full((1, -(-x.size // 16)), scale)
        some.append(("quantize_codebook", (x * scale, 16, scales, limits, codes)))
    found = reference_call("quantize_codebook", *some[0][1])[0]
    assert np.unique(found).size == np.unique(reached).size + 1
    assert not differing(machine(there), some, monkeypatch)


@pytest.mark.parametrize("there", ["order-0", "ptx", GPU])
@pytest.mark.parametrize("op", ["quantize_codebook", "dequantize_codebook"])
def test_given_scales_of_every_magnitude(op, there, monkeypatch):
    """Subnormal, huge and negative ones, zero, and what is no number."""
    x = np.concatenate([nasty("float32")["primes-2x1031"], float32_sample(2062).reshape(2, 1031)])
    levels, limits, codes = TABLES["fp4"]
    found = reference_call("quantize_codebook", x, 1031, None, limits, codes)[0]
    some: list[Call] = []
    for scale in np.append(ODD_SCALES, -ODD_SCALES):
        scales = np.full((4, 17), scale)
        if op == "quantize_codebook":
            some.append((op, (x, 64, scales, limits, codes)))
        elif np.isfinite(scale):
            some.append((op, (found, 64, scales, None, in_code_order(levels, codes), "float32")))
    assert not differing(machine(there), some, monkeypatch)


@pytest.mark.parametrize(
    ("kind", "bits"),
    [*(("two", bits) for bits in range(2, 9)), ("nf4", 4), ("nf4", 5), ("nf4", 8), ("most", 8)],
)
def test_every_number_of_bits(kind, bits, monkeypatch):
    """More bits than codes need, too."""
    levels, limits, codes = TABLES[kind]
    for dtype in FLOATS:
        x = nasty(dtype)["primes-5x67"]
        fused = (x, 16, bits, (-1.0, 1.0), "float32", None, limits, codes)
        packed, scale = reference_call("quantize_codebook_packed", *fused)
        back = (packed, 67, 16, bits, scale, None, in_code_order(levels, codes), dtype)
        some = [("quantize_codebook_packed", fused), ("dequantize_codebook_packed", back)]
        assert not differing(machine("order-2"), some, monkeypatch)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_every_finite_16_bit_value(dtype, monkeypatch):
    x = every_finite(dtype)
    some = [call for kind in ("nf4", "dynamic8") for call in with_table(x, 64, kind, "float32")]
    assert not differing(machine("order-0"), some, monkeypatch)


@pytest.mark.parametrize("offset", [1, 2, 4, 8])
def test_misaligned_arrays(offset, monkeypatch):
    """Codes and values that start anywhere that their own size divides."""
    here = machine("order-2")
    x = np.ascontiguousarray(nasty("float16")["primes-2x1031"][:, :1024])
    for kind in ("nf4", "seventeen", "most"):
        levels, limits, codes = TABLES[kind]
        bits = bits_for(limits)
        fused = (32, bits, (-1.0, 1.0), "float32", None, limits, codes)
        wanted, scale = reference_call("quantize_codebook_packed", x, *fused)
        values = here.xp.ndarray(misaligned(x, max(offset, 2)))
        out = here.xp.ndarray(misaligned(wanted ^ 0xFF, offset))
        given = [here.to_device(a) for a in fused]
        here.raw_call("quantize_codebook_packed", values, *given, out)
        assert np.array_equal(out.get(), wanted), kind
        back = (1024, 32, bits, scale, None, in_code_order(levels, codes), "float16")
        x_hat = reference_call("dequantize_codebook_packed", wanted, *back)
        decoded = here.xp.ndarray(misaligned(np.zeros_like(x), max(offset, 2)))
        given = [here.to_device(a) for a in back]
        here.raw_call("dequantize_codebook_packed", out, *given, decoded)
        assert bits_of((decoded.get(),)) == bits_of(x_hat), kind


# ---- Which kernel runs ---------------------------------------------------------------------------

WHOLE = [(3, 8), (3, 16), (5, 24), (301, 32), (7, 64), (41, 128), (5, 256), (2, 1024), (3, 1000)]
"""Rows of two groups each, and their size."""


def whole_groups(there: str, dtype: str, kinds: tuple[str, ...], monkeypatch) -> None:
    """Quantize and dequantize by the kernels that touch memory once, and by no other."""
    here, name = machine(there), {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}[dtype]
    for k, (rows, group_size) in enumerate(WHOLE):
        random = np.random.default_rng(group_size)
        x = random.standard_normal((rows, 2 * group_size)) * 2.0 ** random.integers(
            -9, 9, (rows, 1)
        )
        x[0, :group_size] = 0
        for kind in kinds:
            levels, limits, codes = TABLES[kind]
            bits, ends = 4 if levels.size <= 16 else 8, (float(levels[0]), float(levels[-1]))
            fused = (x.astype(FLOATS[dtype]), group_size, bits, ends, SCALE_DTYPES[k % 3], None)
            fused = (*fused, limits, codes)
            packed, scale = reference_call("quantize_codebook_packed", *fused)
            back = (packed, 2 * group_size, group_size, bits, scale if k % 4 else None)
            offset = np.float32([[-0.125]]) if k % 2 else None
            back = (*back, offset, in_code_order(levels, codes), dtype)
            for op, args, type_ in (
                ("quantize_codebook_packed", fused, 16 if bits == 4 else 256),
                ("dequantize_codebook_packed", back, bits),
            ):
                with here.launching() as launches:
                    assert not differing(here, [(op, args)], monkeypatch), (kind, group_size)
                assert launches == {f"{op}<{name}, {type_}>": 1}


@on_every_machine
@pytest.mark.parametrize("dtype", FLOATS)
def test_whole_groups_take_one_launch(dtype, there, monkeypatch):
    whole_groups(there, dtype, ("nf4", "fp4", "dynamic8", "no-negatives", "repeated"), monkeypatch)


def test_whole_groups_as_ptx(monkeypatch):
    whole_groups("ptx", "float16", ("fp4", "seventeen"), monkeypatch)


@pytest.mark.parametrize(
    ("cols", "group_size", "kind", "bits", "offset"),
    [
        (100, 100, "nf4", 4, 0),  # no whole octets
        (1024, 128, "nf4", 4, 2),  # misaligned
        (1000, 128, "nf4", 4, 0),  # ragged
        (1024, 12, "dynamic8", 8, 0),  # groups that share an octet
        (1024, 128, "nf4", 8, 0),  # more bits than codes have
        (2048, 2048, "nf4", 4, 0),  # too long for the registers of a warp
    ],
)
def test_other_arrays_take_three_launches(cols, group_size, kind, bits, offset, monkeypatch):
    here, (_, limits, codes) = machine("order-2"), TABLES[kind]
    x = np.random.default_rng(cols).standard_normal((3, cols)).astype(np.float16)
    given = (group_size, bits, (-1.0, 1.0), "float32", None, limits, codes)
    wanted = bits_of(reference_call("quantize_codebook_packed", x, *given))
    there = here.xp.ndarray(misaligned(x, offset))
    with alone(monkeypatch), here.launching() as launches:
        result = here.raw_call("quantize_codebook_packed", there, *map(here.to_device, given))
    assert bits_of(result) == wanted
    quantize = f"quantize_codebook<f16, {16 if kind == 'nf4' else 256}>"
    assert launches == dict.fromkeys(("group_range<f16>", "choose_scale_codebook", quantize), 1)


# ---- Faults --------------------------------------------------------------------------------------


@on_every_machine
def test_the_first_faulty_group_is_reported(there):
    """Faults in several blocks: the lowest group, whatever thread finds one first."""
    x = np.random.default_rng(4).standard_normal((300, 512)).astype(np.float32)
    _, limits, codes = TABLES["nf4"]
    for at in ((299, 511), (150, 300), (7, 200)):
        x[at] = 3.4e38
        for ends, scale_dtype, reason in (
            ((-1.0, 1.0), "float16", "scale_overflow"),
            ((-1.5, 1.0), "float32", "decode_overflow"),
        ):
            fused = (x, 64, 4, ends, scale_dtype, None, limits, codes)
            wanted = ("fault", reason, at[0] * 8 + at[1] // 64)
            assert reference_call("quantize_codebook_packed", *fused) == wanted
            assert machine(there).call("quantize_codebook_packed", *fused) == wanted
    x[298, 3] = np.nan
    assert machine(there).call("quantize_codebook_packed", *fused) == ("fault", "nonfinite", 0)


@pytest.mark.parametrize("value", [np.nan, -np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", FLOATS)
def test_one_value_that_is_not_finite(dtype, value):
    """At any place of a row, whole octets or not."""
    _, limits, codes = TABLES["nf4"]
    here = machine("order-2")
    for shape, at in (((3, 64), (2, 63)), ((2, 77), (0, 0)), ((2, 77), (1, 76)), ((1, 3), (0, 1))):
        x = np.ones(shape, FLOATS[dtype])
        x[at] = value
        scale = np.ones((shape[0], -(-shape[1] // 16)), np.float32)
        for given in (None, scale):
            found = here.call("quantize_codebook", x, 16, given, limits, codes)
            assert found == ("fault", "nonfinite", 0)


def test_nothing_is_launched_for_nothing(monkeypatch):
    here = machine("order-0")
    for shape in ((0, 5), (3, 0), (0, 0)):
        x = np.zeros(shape, np.float32)
        some = with_table(x, 4, "nf4", None)
        with here.launching() as launches:
            assert not differing(here, some, monkeypatch)
        assert not launches
