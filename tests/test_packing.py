"""Codes of 2 to 8 bits in bytes, least significant bits first, by hand and by property."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import qrs
from qrs.backends.reference import Reference
from qrs.backends.rust import Rust
from qrs.schemes.layout import packed_bits, packed_shape

BACKENDS = [Reference(), Rust()]

# Codes a, b, c, ... of n bits lie one after the other from bit 0 of the first byte upwards:
#   3 bits: byte 0 = ccbbbaaa, byte 1 = feeeddd c, byte 2 = hhhgggff
#   5 bits: byte 0 = bbbaaaaa, byte 1 = dccccc bb, byte 2 = ----dddd
BY_HAND = [
    (2, [1, 2, 3, 0, 2], [0b00_11_10_01, 0b10]),
    (3, [1, 2, 3, 4, 5, 6, 7, 0], [0b11_010_001, 0b0_101_100_0, 0b000_111_11]),
    (4, [1, 2, 3, 4, 15], [0x21, 0x43, 0x0F]),
    (5, [1, 2, 3, 31], [0b010_00001, 0b1_00011_00, 0b1111]),
    (6, [1, 2, 3, 63, 32], [0b10_000001, 0b0011_0000, 0b111111_00, 0b100000]),
    (7, [1, 2, 127], [0b0_0000001, 0b11_000001, 0b11111]),
    (8, [1, 2, 255], [1, 2, 255]),
    (2, [-2, -1, 0, 1], [0b01_00_11_10]),
    (3, [-4, -1, 3], [0b11_111_100, 0b0]),
    (4, [-8, 7, -1], [0x78, 0x0F]),
    (5, [-16, 15, -1], [0b111_10000, 0b11111_01]),
    (6, [-32, 31], [0b11_100000, 0b0111]),
    (7, [-64, 63], [0b1_1000000, 0b011111]),
    (8, [-128, 127, -1], [128, 127, 255]),
]
by_backend = pytest.mark.parametrize("backend", BACKENDS, ids=lambda backend: backend.name)
by_hand = pytest.mark.parametrize(
    ("bits", "codes", "packed"), BY_HAND, ids=[f"{b}-bits-{min(c)}" for b, c, _ in BY_HAND]
)


def as_codes(codes) -> np.ndarray:
    return np.array([codes], np.int8 if min(codes) < 0 else np.uint8)


@by_backend
@by_hand
def test_packed_by_hand(backend, bits, codes, packed):
    assert backend.pack_bits(as_codes(codes), bits).tolist() == [packed]


@by_backend
@by_hand
def test_unpacked_by_hand(backend, bits, codes, packed):
    array = as_codes(codes)
    found = backend.unpack_bits(
        np.array([packed], np.uint8), bits, len(codes), array.dtype == np.int8
    )
    assert found.dtype == array.dtype
    assert found.tolist() == [codes]


@by_backend
def test_every_row_starts_on_a_byte(backend):
    codes = np.array([[1, 2, 3], [4, 5, 6]], np.uint8)
    assert backend.pack_bits(codes, 3).tolist() == [[0b11_010_001, 0], [0b10_101_100, 1]]


@by_backend
@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0, 0)], ids=str)
def test_nothing(backend, bits, shape):
    codes = np.zeros(shape, np.int8)
    packed = backend.pack_bits(codes, bits)
    assert packed.shape == (shape[0], -(-shape[1] * bits // 8))
    assert backend.unpack_bits(packed, bits, shape[1], True).shape == shape


def all_codes(bits: int, signed: bool, rows: int, cols: int, seed: int) -> np.ndarray:
    low = -(1 << (bits - 1)) if signed else 0
    codes = np.random.default_rng(seed).integers(low, low + (1 << bits), (rows, cols))
    return codes.astype(np.int8 if signed else np.uint8)


@by_backend
@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("signed", [True, False], ids=["signed", "unsigned"])
def test_every_length_round_trips(backend, bits, signed):
    for cols in (*range(1, 140), 255, 256, 257, 1023):
        codes = all_codes(bits, signed, 3, cols, cols)
        packed = backend.pack_bits(codes, bits)
        assert packed.shape == (3, -(-cols * bits // 8))
        assert np.array_equal(backend.unpack_bits(packed, bits, cols, signed), codes), cols
        rest = cols * bits % 8
        if rest:
            assert not (packed[:, -1] >> rest).any(), "pad bits are zero"


@by_backend
@given(
    bits=st.integers(2, 8),
    signed=st.booleans(),
    rows=st.integers(0, 5),
    cols=st.integers(0, 300),
    seed=st.integers(0, 2**32),
)
def test_round_trip(backend, bits, signed, rows, cols, seed):
    codes = all_codes(bits, signed, rows, cols, seed)
    packed = backend.pack_bits(codes, bits)
    assert np.array_equal(backend.unpack_bits(packed, bits, cols, signed), codes)
    assert packed.tobytes() == BACKENDS[0].pack_bits(codes, bits).tobytes()


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("shape", [(), (1,), (5,), (2, 3), (2, 3, 5), (4, 1)], ids=str)
def test_shapes_of_any_number_of_dimensions(bits, shape):
    codes = all_codes(bits, True, 1, int(np.prod(shape)), 5).reshape(shape)
    packed = packed_bits(codes, bits)
    assert packed.shape == packed_shape(shape, bits)
    assert packed.shape[-1] == -(-(shape or (1,))[-1] * bits // 8)


@by_backend
@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("axis", [None, 0, 1, 2])
def test_the_codes_of_a_tensor_lie_as_documented(backend, bits, axis):
    """The same codes packed by hand, whatever axis the kernels worked along."""
    x = np.random.default_rng(bits).standard_normal((3, 5, 7), np.float32)
    scheme = qrs.Int(bits, signed=False, axis=axis)
    qt = qrs.quantize(x, scheme, backend=backend.name)
    for codes, row in zip(qt.codes.reshape(-1, 7), qt.packed.reshape(15, -1), strict=True):
        number = sum(int(code) << (i * bits) for i, code in enumerate(codes))
        assert row.tobytes() == number.to_bytes(-(-7 * bits // 8), "little")
