"""The gradient of what is clipped: by hand, and the same bits everywhere."""

import numpy as np
import pytest

import qrs
from gradient_calls import clip_arguments, clip_calls, step_calls
from kernel_calls import LEVELS, RULES, bits_of
from nasty import FLOATS
from qrs import _qrs, backends
from qrs.backends.reference import Reference
from refusals import refused

REFERENCE = Reference()


def test_by_hand():
    """Scale 0.5, zero point 1, codes 0 to 3: x / scale has to round to -1 at least (-1.5 is even at
    -2) and to 2 at most (2.5 is even at 2); else the gradient is 0, whatever it was."""
    x = np.array([[-0.76, -0.75, -0.5, 0.0, 1.24, 1.25, 1.5]], np.float32)
    grad = np.array([[1, 2, 3, 4, np.nan, 6, np.inf]], np.float32)
    half, one = np.full((1, 1), 0.5, np.float32), np.ones((1, 1), np.int32)
    for backend in (REFERENCE, backends.get("rust")):
        clipped = backend.clip_gradient_affine(grad, x, 7, half, one, 0, 3)
        assert np.array_equal(clipped, [[0, 0, 3, 4, np.nan, 6, 0]], equal_nan=True)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("level", LEVELS)
def test_every_level_has_the_bits_of_the_reference(level, dtype):
    before = _qrs.simd_level()
    _qrs.set_simd_level(level)
    try:
        for case in clip_calls(dtype):
            expected = REFERENCE.clip_gradient_affine(*case)
            for out in (None, np.ones(expected.shape, FLOATS[dtype])):
                found = backends.get("rust").clip_gradient_affine(*case, out)
                assert found.dtype == expected.dtype and found.tobytes() == expected.tobytes()
    finally:
        _qrs.set_simd_level(before)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("level", LEVELS)
def test_steps_have_the_bits_of_the_reference_at_every_level(level, dtype):
    before, count = _qrs.simd_level(), 0
    _qrs.set_simd_level(level)
    try:
        for case in step_calls(dtype):
            expected = REFERENCE.step_gradients_affine(*case)
            for out in (None, np.ones(case[0].shape, FLOATS[dtype])):
                found = backends.get("rust").step_gradients_affine(*case, out)
                assert bits_of(found) == bits_of(expected)
            count += 1
    finally:
        _qrs.set_simd_level(before)
    assert count > 50


LONG = [(3, 70_000, 70_000), (2, 3 * 65_536, 65_536), (1, 200_001, 200_001), (900, 129, 43)]


@pytest.mark.parametrize("shape", LONG)
def test_steps_of_long_groups_and_of_many(shape):
    """Chunks of 65,536 are summed first; jobs and threads change nothing."""
    case = clip_arguments(shape, RULES["int4-asym-f16"], "float32")
    expected = bits_of(REFERENCE.step_gradients_affine(*case))
    for threads in (1, 2, 3):
        qrs.set_num_threads(threads)
        assert bits_of(backends.get("rust").step_gradients_affine(*case)) == expected


def test_steps_by_hand():
    """Scale 0.5, zero point 1, codes 0 to 3, v = 2 x + 1: the ends themselves count as beyond."""
    x = np.array([[-0.5, -0.4, 0.1, 1.0, 9.0]], np.float32)
    dy = np.array([[1, 2, 4, 8, 16]], np.float32)
    half, one = np.full((1, 1), 0.5, np.float32), np.ones((1, 1), np.int32)
    for backend in (REFERENCE, backends.get("rust")):
        dx, ds, dz = backend.step_gradients_affine(dy, x, 5, half, one, 0, 3)
        assert dx.tolist() == [[0, 2, 4, 0, 0]]
        # (0 - 1) 1, (0 - 0.2) 2, (1 - 1.2) 4, (3 - 1) 8, (3 - 1) 16
        assert np.allclose(ds, -1 - 0.4 - 0.8 + 16 + 32, atol=1e-5)
        assert dz.tolist() == [[-0.5 * (1 + 8 + 16)]]


def test_groups_of_steps_are_whole():
    case = clip_arguments((5, 20, 7), RULES["int4"], "float32")
    with pytest.raises(qrs.ArgValueError, match="group_size"):
        backends.get("rust").step_gradients_affine(*case)


def test_threads_and_streams_change_nothing():
    case = clip_arguments((1500, 1025, 100), RULES["int4"], "float32")
    expected = REFERENCE.clip_gradient_affine(*case).tobytes()
    for threads in (1, 2, 3):
        qrs.set_num_threads(threads)  # conftest.py puts it back
        assert backends.get("rust").clip_gradient_affine(*case).tobytes() == expected


def test_values_that_have_no_code():
    """x / scale overflows, or is NaN: outside."""
    x = np.array([[np.finfo(np.float32).max, -np.inf, np.nan, 0.0]], np.float32)
    tiny = np.full((1, 1), 1e-30, np.float32)
    for backend in (REFERENCE, backends.get("rust")):
        found = backend.clip_gradient_affine(np.ones_like(x), x, 4, tiny, None, -7, 7)
        assert found.tolist() == [[0, 0, 0, 1]]


def test_schemes_move_their_axes():
    """What shares a scale is a row of the kernel."""
    draw = np.random.default_rng(0)
    x, grad = draw.standard_normal((2, 6, 40)).astype(np.float32)
    scale = draw.uniform(0.1, 0.3, 240).astype(np.float32)
    for scheme, of_rows in (
        ("int4", lambda a: a.reshape(1, 240)), ("int4-axis0", lambda a: a),
        ("int4-axis1", lambda a: a.T), ("int4-g8", lambda a: a.reshape(30, 8)),
    ):  # fmt: skip
        rows, upstream = (np.ascontiguousarray(of_rows(a)) for a in (x, grad))
        s = scale[: len(rows)]
        expected = REFERENCE.clip_gradient_affine(upstream, rows, 240, s[:, None], None, -7, 7)
        known = qrs.parse(scheme)
        stored = s.reshape(known.granularity.scale_shape((6, 40)))
        found = known.clip_gradient(grad, x, stored, None)
        assert np.array_equal(of_rows(found), expected) and (found == 0).any()


GIVEN = ["int8", "uint4-axis0", "int4-g8-asym-f16", "nf4-g8", "e4m3-axis0"]


@pytest.mark.parametrize("scheme", GIVEN)
def test_fake_quantize_takes_parameters(scheme):
    x = np.random.default_rng(0).standard_normal((6, 40))
    for dtype in ("float32", "float16", "float64"):
        y = x.astype(dtype)
        qt = qrs.quantize(y, scheme)
        given = {"scale": np.asarray(qt.scale, np.float32) * np.float32(0.7)}
        if qt.zero_point is not None:
            given["zero_point"] = qt.zero_point
        expected = qrs.quantize(y, scheme, **given).dequantize(dtype)
        found = qrs.fake_quantize(y, scheme, **given)
        assert found.dtype == dtype and found.tobytes() == expected.tobytes()
        out = np.empty_like(y)
        assert qrs.fake_quantize(y, scheme, out=out, **given) is out
        assert out.tobytes() == expected.tobytes()
    given["scale"] = np.ones(99, np.float32)
    refused(qrs.fake_quantize, x, scheme, **given, arg="scale")


def test_there_are_none_on_a_gpu():
    from qrs.backends.cupy import Cupy

    case = clip_arguments((2, 4, 4), RULES["int4"], "float32")
    for op in ("clip_gradient_affine", "step_gradients_affine"):
        with pytest.raises(qrs.DeviceError, match=f"{op}: .*there is no kernel"):
            getattr(Cupy(np), op)(*case)
