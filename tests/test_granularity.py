"""Which elements share a scale, and how arrays become rows and back."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import qrs
from qrs.granularity import Rows
from strategies import granularities, shapes

X = np.arange(24, dtype=np.float32).reshape(2, 3, 4)


@given(shapes, st.data())
def test_rows_and_back(shape, data):
    granularity = data.draw(granularities(shape))
    x = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    rows, layout = granularity.to_rows(x), granularity.rows(shape)
    assert rows.shape == (layout.rows, layout.cols)
    assert rows.flags.c_contiguous
    groups = -(-layout.cols // layout.group_size)
    assert layout.rows * groups == np.prod(granularity.scale_shape(shape), dtype=int)
    assert np.array_equal(granularity.from_rows(rows, shape), x)
    if granularity.keeps_order(shape):
        assert np.array_equal(rows.reshape(-1), x.reshape(-1))


@given(shapes, st.data())
def test_elements_of_a_scale(shape, data):
    """Mark one scale's elements through the API: exactly those with its index are marked."""
    granularity = data.draw(granularities(shape))
    scale_shape = granularity.scale_shape(shape)
    flat = data.draw(st.integers(0, int(np.prod(scale_shape)) - 1))
    scale = np.ones(scale_shape, np.float32)
    scale[np.unravel_index(flat, scale_shape)] = 2
    scheme = qrs.Int(8, granularity=granularity)
    x_hat = qrs.QTensor.from_parts(scheme, shape, np.ones(shape, np.int8), scale).dequantize()
    at = np.unravel_index(flat, scale_shape)
    for index in np.ndindex(shape):
        if isinstance(granularity, qrs.PerTensor):
            mine = True
        elif isinstance(granularity, qrs.PerAxis):
            mine = index[granularity.axis] == at[0]
        else:
            mine = index[:-1] == at[:-1] and index[-1] // granularity.group_size == at[-1]
        assert x_hat[index] == (2 if mine else 1)


@pytest.mark.parametrize(
    ("granularity", "rows", "scale_shape"),
    [
        (qrs.PerTensor(), Rows(1, 24, 24), ()),
        (qrs.PerAxis(0), Rows(2, 12, 12), (2,)),
        (qrs.PerAxis(1), Rows(3, 8, 8), (3,)),
        (qrs.PerAxis(-1), Rows(4, 6, 6), (4,)),
        (qrs.PerGroup(2), Rows(6, 4, 2), (2, 3, 2)),
        (qrs.PerGroup(3, ragged=True), Rows(6, 4, 3), (2, 3, 2)),
    ],
    ids=str,
)
def test_layouts(granularity, rows, scale_shape):
    assert granularity.rows(X.shape) == rows
    assert granularity.scale_shape(X.shape) == scale_shape


def test_rows_of_an_axis_by_hand():
    assert qrs.PerAxis(1).to_rows(X)[1].tolist() == [4, 5, 6, 7, 16, 17, 18, 19]
    assert qrs.PerAxis(-1).to_rows(X)[3].tolist() == [3, 7, 11, 15, 19, 23]


def test_scales_by_hand():
    scale = {
        text: qrs.quantize(X + 1, f"int2{text}").scale.tolist()
        for text in ("", "-axis0", "-axis1", "-axis-1", "-g2", "-g3-ragged")
    }
    assert scale[""] == 24
    assert scale["-axis0"] == [12, 24]
    assert scale["-axis1"] == [16, 20, 24]
    assert scale["-axis-1"] == [21, 22, 23, 24]
    assert scale["-g2"][1] == [[14, 16], [18, 20], [22, 24]]
    assert scale["-g3-ragged"][0] == [[3, 4], [7, 8], [11, 12]]


@given(shapes.filter(lambda shape: len(shape) > 1), st.data())
def test_rows_of_a_qtensor_are_rows_of_its_values(shape, data):
    granularity = data.draw(granularities(shape))
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    qt = qrs.quantize(x, qrs.Int(4, symmetric=data.draw(st.booleans()), granularity=granularity))
    whole = qt.dequantize()
    several = st.lists(st.integers(-shape[0], shape[0] - 1), max_size=4)
    rows = data.draw(st.one_of(st.slices(shape[0]), several, several.map(np.array).filter(len)))
    part = qt[rows]
    if len(part) == 0:
        assert part.shape == (0, *shape[1:])
        return
    assert np.array_equal(part.dequantize(), whole[rows])
    assert np.array_equal(part.codes, qt.codes[rows])
