"""Linear quantization through the public API: properties that hold for every scheme and array."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import qrs
from nasty import same_bits
from strategies import DTYPES, arrays, fitting, schemes

FLOAT_NAMES = sorted(DTYPES)


def spread(per_group: np.ndarray, scheme: qrs.Int, shape: tuple[int, ...]) -> np.ndarray:
    """Stored parameters -> one per element, by the documented shapes alone."""
    granularity = scheme.granularity
    if isinstance(granularity, qrs.PerTensor):
        return np.broadcast_to(per_group, shape)
    if isinstance(granularity, qrs.PerAxis):
        axis = granularity.axis % len(shape)
        sides = [n if i == axis else 1 for i, n in enumerate(shape)]
        return np.broadcast_to(per_group.reshape(sides), shape)
    return np.repeat(per_group, granularity.group_size, axis=-1)[..., : shape[-1]]


def group_width(x: np.ndarray, scheme: qrs.Int) -> np.ndarray:
    """How much range each element's group needs: absmax, or max - min with zero in between."""
    granularity, wide = scheme.granularity, x.astype(np.float64)
    lo, hi = np.minimum(wide, 0), np.maximum(wide, 0)
    if isinstance(granularity, qrs.PerTensor):
        lo, hi = lo.min(), hi.max()
    elif isinstance(granularity, qrs.PerAxis):
        others = tuple(i for i in range(x.ndim) if i != granularity.axis % x.ndim)
        lo, hi = lo.min(axis=others), hi.max(axis=others)
    else:
        starts = np.arange(0, x.shape[-1], granularity.group_size)
        lo, hi = np.minimum.reduceat(lo, starts, -1), np.maximum.reduceat(hi, starts, -1)
    return spread(np.asarray(np.maximum(-lo, hi) if scheme.symmetric else hi - lo), scheme, x.shape)


@given(fitting())
def test_the_error_is_half_a_step(case):
    """|x - x_hat| <= scale / 2 wherever the scale covers the range.

    Two float32 roundings (the quotient and the product, both at most 256 steps) add at most
    2 * 256 * 2^-24 = 2^-15 steps, and a subnormal product one 2^-149. A scale that was rounded
    down falls short of the range by `short`, which the clamp then loses at its ends.
    """
    x, scheme = case
    qt = qrs.quantize(x, scheme)
    scale = spread(qt.scale, scheme, x.shape).astype(np.float64)
    steps = scheme.qmax if scheme.symmetric else scheme.qmax - scheme.qmin
    short = np.maximum(group_width(x, scheme) - steps * scale, 0)
    error = np.abs(x.astype(np.float64) - qt.dequantize().astype(np.float64))
    assert (error <= scale * (0.5 + 2**-15) + short + 2.0**-149).all()


@given(fitting())
def test_codes_are_in_range_and_zero_is_exact(case):
    x, scheme = case
    x[x > 7] = 0
    qt = qrs.quantize(x, scheme)
    assert qt.codes.dtype == (np.int8 if scheme.signed else np.uint8)
    assert ((scheme.qmin <= qt.codes) & (qt.codes <= scheme.qmax)).all()
    assert (qt.dequantize()[x == 0] == 0).all()


@given(fitting())
def test_decode_is_the_formula(case):
    x, scheme = case
    qt = qrs.quantize(x, scheme)
    zero_point = 0 if qt.zero_point is None else spread(qt.zero_point, scheme, x.shape)
    steps = qt.codes.astype(np.int32) - np.int32(zero_point)
    x_hat = steps.astype(np.float32) * spread(qt.scale, scheme, x.shape)
    assert same_bits(qt.dequantize(), x_hat)


@pytest.mark.parametrize("dtype", FLOAT_NAMES)
@given(data=st.data())
def test_fake_quantize_is_quantize_and_dequantize(dtype, data):
    x, scheme = data.draw(fitting(dtype))
    try:
        x_hat = qrs.quantize(x, scheme).dequantize(dtype)
    except qrs.ArgValueError:  # an overflow: fake_quantize must find the same one
        with pytest.raises(qrs.ArgValueError):
            qrs.fake_quantize(x, scheme)
        return
    assert same_bits(qrs.fake_quantize(x, scheme), x_hat)


@given(fitting(), st.sampled_from(FLOAT_NAMES))
def test_backends_agree(case, dtype):
    x, scheme = case
    x = x.astype(DTYPES[dtype])
    a, b = (qrs.quantize(x, scheme, backend=name) for name in ("reference", "rust"))
    assert a == b and a.info == b.info
    assert same_bits(a.dequantize(backend="reference"), b.dequantize(backend="rust"))


@given(data=st.data())
def test_an_axis_is_the_first_axis_of_the_moved_array(data):
    x = data.draw(arrays())
    axis = data.draw(st.integers(-x.ndim, x.ndim - 1))
    bits = data.draw(st.integers(2, 8))
    moved = np.moveaxis(x, axis, 0)
    a = qrs.quantize(x, qrs.Int(bits, axis=axis, symmetric=False))
    b = qrs.quantize(moved, qrs.Int(bits, axis=0, symmetric=False))
    assert np.array_equal(np.moveaxis(a.codes, axis, 0), b.codes)
    assert same_bits(a.scale, b.scale)
    assert np.array_equal(a.zero_point, b.zero_point)
    assert np.array_equal(np.moveaxis(a.dequantize(), axis, 0), b.dequantize())


@given(fitting())
def test_one_group_or_one_axis_is_the_tensor(case):
    x, scheme = case
    fields = scheme.to_dict()
    for name in ("family", "axis", "group_size", "ragged"):
        fields.pop(name, None)
    tensor = qrs.quantize(x, qrs.Int(**fields))
    for other in (qrs.Int(**fields, axis=0), qrs.Int(**fields, group_size=x.size)):
        flat = qrs.quantize(x.reshape(1, -1), other)
        assert np.array_equal(flat.codes.reshape(x.shape), tensor.codes)
        assert same_bits(flat.scale.reshape(()), tensor.scale)


@given(fitting())
def test_known_parameters_give_the_same_codes(case):
    x, scheme = case
    qt = qrs.quantize(x, scheme)
    again = qrs.quantize(x, scheme, scale=qt.scale, zero_point=qt.zero_point)
    assert again == qt
    # Quantizing what was decoded changes nothing: every value lies on a code.
    x_hat = qt.dequantize()
    assert qrs.quantize(x_hat, scheme, scale=qt.scale, zero_point=qt.zero_point) == qt


@given(arrays(st.integers(1, 40).map(lambda n: (n,))), schemes(qrs.PerTensor()))
def test_codes_keep_the_order(x, scheme):
    codes = qrs.quantize(np.sort(x), scheme).codes
    assert (np.diff(codes.astype(int)) >= 0).all()


@given(st.integers(0, 2**32), st.integers(-60, 60), st.integers(2, 8), st.booleans())
def test_powers_of_two_change_the_scale_alone(seed, exponent, bits, symmetric):
    x = np.random.default_rng(seed).standard_normal((4, 24), np.float32)
    scheme = qrs.Int(bits, symmetric=symmetric, group_size=8)
    a, b = qrs.quantize(x, scheme), qrs.quantize(x * np.float32(2.0**exponent), scheme)
    assert np.array_equal(a.packed, b.packed)
    assert np.array_equal(a.scale * np.float32(2.0**exponent), b.scale)


@given(fitting())
def test_out_is_overwritten_and_returned(case):
    x, scheme = case
    qt = qrs.quantize(x, scheme)
    other = qrs.quantize(np.ones_like(x), scheme)
    for _, array in other.leaves():
        array.reshape(-1).view(np.uint8)[...] = 0xA5
    assert qrs.quantize(x, scheme, out=other) is other
    assert other == qt and other.info == qt.info
    x_hat = np.full_like(x, np.nan)
    assert qrs.dequantize(qt, out=x_hat) is x_hat
    assert same_bits(x_hat, qt.dequantize())
    x_hat[...] = np.nan
    assert qrs.fake_quantize(x, scheme, out=x_hat) is x_hat
    assert same_bits(x_hat, qt.dequantize())


@pytest.mark.parametrize("bits", range(2, 9))
def test_a_scale_for_each_element_of_a_vector(bits):
    """Rows of one column, packed as one row: kernel rows shorter than stored ones."""
    x = np.arange(-8, 8, dtype=np.float32)
    qt = qrs.quantize(x, qrs.Int(bits, axis=0))
    assert np.array_equal(qt.codes, np.sign(x) * qt.scheme.qmax)
    assert qt.scale.shape == (16,)


def test_a_reconstruction_that_overflows_float16_is_an_error():
    """[-10000, 65504] in 2 bits: scale 25168, zero point 0, and the code 3 is 75504."""
    x = np.array([-10000, 65504], np.float16)
    qt = qrs.quantize(x, "uint2")
    assert qt.dequantize().tolist() == [0, 75504]
    with pytest.raises(qrs.ArgValueError, match=r"dtype: .* at \(1,\) overflows float16"):
        qt.dequantize("float16")
    with pytest.raises(qrs.ArgValueError, match=r"x: .* at \(1,\) overflows float16"):
        qrs.fake_quantize(x, "uint2")


@pytest.mark.parametrize("dtype", FLOAT_NAMES)
def test_the_dtype_of_the_source_is_kept(dtype):
    x = np.ones((2, 4), DTYPES[dtype])
    assert qrs.quantize(x, "int8").dtype == dtype
    assert qrs.fake_quantize(x, "int8").dtype == x.dtype
    assert qrs.dequantize(qrs.quantize(x, "int8"), dtype).dtype == x.dtype
    assert qrs.dequantize(qrs.quantize(x, "int8"), x.dtype).dtype == x.dtype


@pytest.mark.parametrize("narrow", [np.float16, ml_dtypes.bfloat16])
def test_narrow_floats_are_their_float32_values(narrow):
    x = np.random.default_rng(1).standard_normal((5, 70)).astype(narrow)
    for scheme in ("int8-axis0", "uint4-g7", "int3"):
        a, b = qrs.quantize(x, scheme), qrs.quantize(x.astype(np.float32), scheme)
        assert same_bits(a.packed, b.packed) and same_bits(a.scale, b.scale)


def test_float64_is_rounded_once():
    x = np.array([1.0, 1 / 3, 2**-30 + 1])
    assert same_bits(
        qrs.quantize(x, "int8").packed, qrs.quantize(x.astype(np.float32), "int8").packed
    )


@pytest.mark.parametrize(("bits", "db"), [(8, 40), (4, 18), (2, 3)])
def test_more_bits_are_closer(bits, db):
    x = np.random.default_rng(0).standard_normal((64, 512), np.float32)
    x_hat = qrs.fake_quantize(x, qrs.Int(bits, group_size=64, symmetric=False))
    assert db < qrs.metrics.sqnr_db(x, x_hat) < db + 6.5


def test_inputs_are_not_changed():
    x = np.random.default_rng(0).standard_normal((8, 64), np.float32)
    before = x.copy()
    qrs.quantize(x, "int4-g32")
    qrs.fake_quantize(x, "int4-g32")
    assert same_bits(x, before)


def test_the_solver_must_be_known():
    with pytest.raises(qrs.ArgValueError, match="solver: got 'best', expected one of: minmax, lsq"):
        qrs.quantize([1.0], "int8", solver="best")
