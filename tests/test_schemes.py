"""Integer schemes as values: fields, strings, dictionaries, and what they say will be stored."""

import copy
import json
import pickle
from dataclasses import FrozenInstanceError

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import qrs
from qrs.schemes import Scheme, from_dict, parse
from strategies import fitting, schemes


@given(schemes())
def test_strings_round_trip(scheme):
    assert parse(str(scheme)) == scheme
    assert str(parse(str(scheme))) == str(scheme)


@given(schemes())
def test_dictionaries_round_trip_through_json(scheme):
    again = from_dict(json.loads(json.dumps(scheme.to_dict())))
    assert again == scheme
    assert hash(again) == hash(scheme)


@given(schemes())
def test_schemes_are_values(scheme):
    for again in (pickle.loads(pickle.dumps(scheme)), copy.copy(scheme), copy.deepcopy(scheme)):
        assert again == scheme and hash(again) == hash(scheme)
    with pytest.raises(FrozenInstanceError):
        scheme.bits = 3


@pytest.mark.parametrize(
    ("text", "scheme"),
    [
        ("int8", qrs.Int(8)),
        ("uint8", qrs.Int(8, signed=False)),
        ("uint8", qrs.Int(8, signed=False, symmetric=False)),
        ("int8-axis0", qrs.Int(8, axis=0)),
        ("int8-axis-1", qrs.Int(8, granularity=qrs.PerAxis(-1))),
        ("int4-g128", qrs.Int(4, group_size=128)),
        ("int4-g128-asym", qrs.Int(4, group_size=128, symmetric=False)),
        ("uint3-g7-ragged", qrs.Int(3, signed=False, group_size=7, ragged=True)),
        ("int5-full-bf16", qrs.Int(5, full_range=True, scale_dtype="bfloat16")),
        (
            "int4-g32-asym-f16-ragged",
            qrs.Int(4, symmetric=False, scale_dtype="float16", granularity=qrs.PerGroup(32, True)),
        ),
    ],
)
def test_spelling(text, scheme):
    assert str(scheme) == text
    assert parse(text) == qrs.parse(text) == scheme


@pytest.mark.parametrize(
    "text",
    ["", "int", "int4 ", "INT4", "int4-", "int-4", "int4-g", "int4-gx", "int4-g-3", "int4-axis",
     "int4-f32", "int4-f16-asym", "int4-ragged-g3", "int4-g32-g32", "int4-g32-axis0", "float4",
     "int4\n", "int4-g32-raggedd", "int4-axis1.0", "uint", "nf4x"],
)  # fmt: skip
def test_what_is_no_scheme(text):
    with pytest.raises(qrs.ArgValueError, match="scheme: cannot read") as caught:
        parse(text)
    assert (caught.value.arg, caught.value.value) == ("scheme", text)
    assert "int<b>" in caught.value.expected


@pytest.mark.parametrize(
    ("text", "arg"),
    [("int1", "bits"), ("uint9", "bits"), ("int99999999999999999999", "bits"),
     ("uint4-asym", None), ("int4-asym-full", "full_range"), ("uint4-full", "full_range"),
     ("int4-ragged", "ragged"), ("int4-g0", "group_size")],
)  # fmt: skip
def test_spellings_with_wrong_values(text, arg):
    if arg is None:  # redundant, but what it says is true
        assert parse(text) == parse("uint4")
        return
    with pytest.raises(qrs.ArgValueError) as caught:
        parse(text)
    assert caught.value.arg == arg


@pytest.mark.parametrize("value", [None, 4, b"int4", ["int4"], qrs.Int])
def test_schemes_of_other_types(value):
    with pytest.raises(qrs.ArgTypeError, match="expected a scheme"):
        qrs.quantize([1.0], value)


@pytest.mark.parametrize(
    ("fields", "qmin", "qmax"),
    [
        ({"bits": 8}, -127, 127),
        ({"bits": 8, "full_range": True}, -128, 127),
        ({"bits": 8, "symmetric": False}, -128, 127),
        ({"bits": 8, "signed": False}, 0, 255),
        ({"bits": 4}, -7, 7),
        ({"bits": 4, "symmetric": False}, -8, 7),
        ({"bits": 2}, -1, 1),
        ({"bits": 2, "signed": False}, 0, 3),
    ],
)
def test_code_ranges(fields, qmin, qmax):
    scheme = qrs.Int(**fields)
    assert (scheme.qmin, scheme.qmax) == (qmin, qmax)
    assert scheme.code_dtype == (np.int8 if scheme.signed else np.uint8)


@pytest.mark.parametrize(
    ("fields", "arg"),
    [
        ({"signed": False, "symmetric": True}, "symmetric"),
        ({"symmetric": False, "full_range": True}, "full_range"),
        ({"axis": 0, "group_size": 32}, "group_size"),
        ({"axis": 0, "granularity": qrs.PerTensor()}, "granularity"),
        ({"ragged": True}, "ragged"),
        ({"scale_dtype": "float64"}, "scale_dtype"),
        ({"scale_dtype": None}, "scale_dtype"),
        ({"scale_dtype": np.float16}, "scale_dtype"),
    ],
)
def test_fields_that_contradict(fields, arg):
    with pytest.raises(qrs.ArgValueError) as caught:
        qrs.Int(4, **fields)
    assert caught.value.arg == arg
    assert caught.value.expected is not None


@pytest.mark.parametrize("name", ["signed", "symmetric", "full_range", "ragged"])
@pytest.mark.parametrize("value", [1, 0, "yes", np.int64(1)])
def test_flags_are_booleans(name, value):
    with pytest.raises(qrs.ArgTypeError) as caught:
        qrs.Int(4, group_size=4, **{name: value})
    assert caught.value.arg == name


@pytest.mark.parametrize("granularity", ["tensor", 0, None, qrs.PerAxis])
def test_a_granularity_is_an_object(granularity):
    if granularity is None:
        assert qrs.Int(4, granularity=None).granularity == qrs.PerTensor()
        return
    with pytest.raises(qrs.ArgTypeError) as caught:
        qrs.Int(4, granularity=granularity)
    assert caught.value.arg == "granularity"


@pytest.mark.parametrize(
    "fields",
    [None, [], "int4", {}, {"family": "float"}, {"family": ["int"]}, {"family": "int"},
     {"family": "int", "bits": 4, "colour": "red"}, {"family": "int", "bits": "4"},
     {"family": "int", "bits": True}, {"family": "int", "bits": 4, "scale_dtype": "f64"},
     {"family": "int", "bits": 4, "granularity": "PerTensor"}],
    ids=str,
)  # fmt: skip
def test_dictionaries_are_not_trusted(fields):
    with pytest.raises((qrs.ArgValueError, qrs.ArgTypeError)) as caught:
        from_dict(fields)
    assert caught.value.arg in {"scheme", "bits", "scale_dtype", "granularity"}


@given(fitting())
def test_part_specs_say_what_is_stored(case):
    x, scheme = case
    qt = qrs.quantize(x, scheme)
    assert scheme.part_specs(x.shape) == {
        path: (array.dtype.name, array.shape) for path, array in qt.leaves()
    }


@given(schemes(st.builds(qrs.PerGroup, st.integers(1, 2**31 - 1), st.just(True))))
def test_part_specs_compute_nothing(scheme):
    shape = (2**20, 2**33)
    specs = scheme.part_specs(shape)
    assert specs["packed"] == ("uint8", (2**20, 2**30 * scheme.bits))
    assert specs["scale"][1] == (2**20, -(-(2**33) // scheme.granularity.group_size))


def test_the_family_is_registered():
    assert Scheme.families["int"] is qrs.Int


def test_equal_schemes_have_equal_strings_and_others_do_not():
    assert qrs.Int(4) != qrs.Int(4, axis=0)
    assert qrs.Int(4, group_size=32) != qrs.Int(4, group_size=32, ragged=True)
    assert qrs.Int(4) != "int4"
    assert len({qrs.Int(4), qrs.Int(np.int64(4)), parse("int4")}) == 1


@pytest.mark.parametrize("value", [None, 5, ["int8"], b"int8"])
def test_only_strings_are_parsed(value):
    with pytest.raises(qrs.ArgTypeError, match=r"^scheme: got"):
        qrs.parse(value)


@pytest.mark.parametrize("text", ["int\u0664", "int8-g\u0663\u0662", "int" + "9" * 5000, "int8 "])
def test_other_digits_and_endless_ones(text):
    with pytest.raises(qrs.ArgValueError, match=r"^scheme: cannot read"):
        qrs.parse(text)
