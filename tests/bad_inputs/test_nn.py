"""Malformed layers and inputs: each an error that names argument, value and what was expected."""

import copy

import numpy as np
import pytest

import qrs
from qrs import nn, observers
from qrs.nn import functional
from refusals import refused

W = np.random.default_rng(5).standard_normal((8, 32)).astype(np.float32)
X = np.random.default_rng(6).standard_normal((2, 3, 32)).astype(np.float32)
IMAGE = np.ones((1, 2, 4, 4), np.float32)
KERNEL = np.ones((4, 2, 3, 3), np.float32)


def linear(**settings: object) -> nn.Linear:
    return nn.Linear.from_float(W, **settings)


ACTIVATIONS = (None, "int8-axis0", "uint8", nn.Static("int8", 0.1), nn.Outliers())


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a04_a06_nonfinite_activations(value: float, activation: object) -> None:
    x = X.copy()
    x[1, 2, 31] = x[1, 2, 30] = value
    with pytest.raises(qrs.ArgValueError, match=r"x: 2 non-finite values, .* at \(1, 2, 30\)"):
        linear(activation=activation)(x)


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
def test_a17_a18_a20_any_memory_layout(activation: object) -> None:
    layer, expected = linear(activation=activation), linear(activation=activation)(X)
    misaligned = np.frombuffer(b"." + X.tobytes(), np.float32, offset=1).reshape(X.shape)
    for x in (np.asfortranarray(X), np.repeat(X, 2, axis=2)[..., ::2], X.astype(">f4"), misaligned):
        assert np.array_equal(layer(x), expected)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.ones((2, 31), np.float32), r"x: got shape \(2, 31\), expected \(\.\.\., 32\)"),
        (np.float32(1), "x: ndim 0"),
        (np.ones((2, 32), np.int8), "x: got dtype int8"),
        (np.ma.masked_array(X, X > 0), "masked array"),
        (np.full((1, 32), 1e39), r"x: 1e\+39 at \(0, 0\) overflows float32"),
        (qrs.quantize(X, "uint8"), "x: got a QTensor"),
    ],
    ids=["shape", "scalar", "integers", "masked", "overflow", "codes"],
)
def test_activations_that_do_not_fit(x: object, message: str) -> None:
    with pytest.raises(qrs.QrsError, match=message):
        linear(activation="int8-axis0")(x)


def test_codes_of_another_range() -> None:
    layer = linear(activation=nn.Static("uint8", 0.5, 3))
    with pytest.raises(
        qrs.ArgValueError, match=r"x: got a QTensor of \('uint8', .*that of the lay"
    ):
        layer(qrs.quantize(X, "uint8"))


@pytest.mark.parametrize(
    ("scheme", "settings", "message"),
    [
        ("int8-axis1", {}, "scheme: got int8-axis1"),
        ("bf16", {}, "scheme: got bf16, expected codes of 2 to 8 bits"),
        ("kmeans4-g32", {}, "scheme: got kmeans4-g32.*, expected at most one codebook"),
        ("kmeans4-sparse0.01", {}, "scheme: got kmeans4-sparse0.01, .*no outliers"),
        ("nf4-g32", {"activation": "int8-axis0"}, "scheme: got nf4-g32, expected integers"),
        ("int4-g32", {"activation": "uint8"}, "activation: got .*expected None or 'int8-axis0'"),
        ("int4-g32", {"activation": nn.Outliers()}, "activation: got Outliers"),
        ("int8-axis0", {"activation": "nf4"}, "activation: got nf4-g64, expected integers"),
        ("int8-axis0", {"activation": "int8-g32"}, "activation: got int8-g32, expected integers"),
        ("int8-axis0", {"activation": 8}, "activation: got 8, expected None, a scheme"),
        ("int8-axis0", {"output": nn.Static("int8", 1.0)}, "output: given without an activation"),
        ("int8-axis0", {"output": "uint8"}, "output: got 'uint8', expected None or Static"),
        (
            "int8-axis0",
            {"compute": "bf16"},
            "compute: got 'bf16', expected one of: float32, bf16x2",
        ),
        ("int8-axis0", {"requantize": "fixed"}, "requantize: got 'fixed', expected one of: float"),
        ("int8-axis0", {"bias": np.ones(7)}, r"bias: got shape \(7,\), expected \(8,\)"),
        ("int8-axis0", {"bias": [np.nan] * 8}, "bias: 8 non-finite values"),
        ("int8-axis0", {"backend": "cuda"}, "backend: got 'cuda'"),
    ],
    ids=range(17),
)
def test_layers_that_cannot_be(scheme: str, settings: dict, message: str) -> None:
    with pytest.raises(qrs.QrsError, match=message):
        linear(scheme=scheme, **settings)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("int8-axis0", 0.1), "scheme: got int8-axis0, expected a scheme that is per tensor"),
        (("int8", np.nan), "scale"),
        (("int8", 0.0), "scale: got 0.0, expected a number above 0"),
        (("int8", [0.1, 0.2]), "scale: got shape|scale"),
        (("uint8", 0.1), "zero_point: missing beside scale"),
        (("uint8", 0.1, 256), "zero_point: got 256|zero_point: 256"),
        (("int8", 0.1, 3), "zero_point: given for the symmetric int8"),
        (("nf4", 0.1), "activation: got nf4"),
    ],
    ids=range(8),
)
def test_p05_ranges_that_cannot_be(arguments: tuple, message: str) -> None:
    with pytest.raises(qrs.QrsError, match=message):
        nn.Static(*arguments)


@pytest.mark.parametrize("threshold", [-1, np.nan, np.inf, "6", True])
def test_thresholds_that_cannot_be(threshold: object) -> None:
    with pytest.raises((qrs.ArgValueError, qrs.ArgTypeError), match="threshold: got"):
        nn.Outliers(threshold)


def test_p15_observers_without_data() -> None:
    with pytest.raises(qrs.ArgValueError, match="has seen no data"):
        nn.Static.of(qrs.observers.MSE(), "uint8")


@pytest.mark.parametrize(
    ("inputs", "code", "activation", "fits"),
    [
        (133_144, 127, "int8-axis0", True),
        (133_145, 127, "int8-axis0", False),
        (66_311, 127, "uint8", True),
        (66_312, 127, "uint8", False),
        (65_793, -128, "uint8", True),
        (65_794, -128, "uint8", False),
    ],
)
@pytest.mark.parametrize("backend", ["reference", "rust"])
def test_sums_that_int32_cannot_hold(
    inputs: int, code: int, activation: str, fits: bool, backend: str
) -> None:
    """2^31 - 1 over 127 * 127, 255 * 127 and 255 * 128."""
    codes = np.full((1, inputs), code, np.int8)
    weight = qrs.QTensor.from_parts("int8-full", codes.shape, codes, 1.0)
    if fits:
        layer = nn.Linear(weight, activation=activation, backend=backend)
        x = np.full((1, inputs), 255 if activation == "uint8" else 127, np.float32)
        exact = inputs * code * int(x[0, 0])
        assert abs(exact) < 2**31
        assert layer(x)[0, 0] == np.float32(exact)
        return
    with pytest.raises(
        qrs.ArgValueError, match=f"sums over {inputs} inputs may reach .*2147483647"
    ):
        nn.Linear(weight, activation=activation, backend=backend)


def test_a_bias_counts_towards_the_sums() -> None:
    codes = np.full((1, 66_000), 127, np.int8)
    weight = qrs.QTensor.from_parts("int8", codes.shape, codes, 1.0)
    source = nn.Static("uint8", 1.0, 0)
    nn.Linear(weight, [5e6], activation=source, output=nn.Static("int8", 1e6))
    with pytest.raises(qrs.ArgValueError, match="sums over 66000 inputs"):
        nn.Linear(weight, [2e7], activation=source, output=nn.Static("int8", 1e6))
    with pytest.raises(qrs.ArgValueError, match="bias: reaches 1e"):
        nn.Linear(weight, [1e12], activation=source, output=nn.Static("int8", 1e6))


@pytest.mark.parametrize(
    ("settings", "x", "message"),
    [
        ({"stride": 0}, IMAGE, "stride: got 0, expected a number, or 2 of them, from 1"),
        ({"stride": (1, 2, 3)}, IMAGE, "stride: got"),
        ({"stride": 1.5}, IMAGE, "stride: got 1.5"),
        ({"padding": -1}, IMAGE, "padding: got -1"),
        ({"padding": "same"}, IMAGE, "padding: got 'same'"),
        ({"dilation": (0, 1)}, IMAGE, "dilation: got"),
        ({"groups": 3}, IMAGE, "groups: got 3, expected a divisor of the 4 outputs"),
        ({"groups": 0}, IMAGE, "groups: got 0"),
        ({"activation": None}, IMAGE, "activation: got None, expected a scheme per tensor"),
        ({"activation": "int8-axis0"}, IMAGE, "activation: got"),
        ({"activation": nn.Outliers()}, IMAGE, "activation: got"),
        ({"scheme": "int4-g3"}, IMAGE, "scheme: got int4-g3, expected integers with one scale"),
        ({"scheme": "nf4-g3"}, IMAGE, "scheme: got nf4-g3, expected integers"),
        ({}, IMAGE[:, :1], r"x: got shape \(1, 1, 4, 4\), expected \(batch, 2, height, width\)"),
        ({}, IMAGE[0], r"x: got shape \(2, 4, 4\)"),
        ({"dilation": 2}, IMAGE, "x: got shape .*smaller with its padding than the kernel"),
    ],
    ids=range(16),
)
def test_convolutions_that_cannot_be(settings: dict, x: np.ndarray, message: str) -> None:
    with pytest.raises(qrs.QrsError, match=message):
        nn.Conv2d.from_float(KERNEL, **settings)(x)


@pytest.mark.parametrize(
    ("tokens", "message"),
    [([8], "tokens: got 8, expected 0 to 7"), ([-1], "tokens: got -1"), ([0.5], "got dtype float")],
    ids=range(3),
)
def test_tokens_that_are_not_there(tokens: list, message: str) -> None:
    with pytest.raises(qrs.QrsError, match=message):
        nn.Embedding.from_float(W)(tokens)


def test_states_that_lack_something() -> None:
    state = linear(activation=nn.Static("uint8", 0.1, 3)).state("a.")
    with pytest.raises(qrs.ArgValueError, match=r"state: has no b\.weight"):
        nn.Linear.from_state(state, "b.")
    with pytest.raises(
        qrs.ArgValueError, match=r"activation: got None, and the state has a\.input_s"
    ):
        nn.Linear.from_state(state, "a.")
    with pytest.raises(qrs.ArgTypeError, match="weight: got ndarray, expected a QTensor"):
        nn.Linear(W)  # type: ignore[arg-type]


def ones(*shape: int) -> np.ndarray:
    return np.ones(shape, np.float32)


def test_a_range_is_read_with_the_scheme_it_was_saved_with() -> None:
    for saved, read in (("uint8", "int8"), ("int8", "uint8"), ("uint8", "int4")):
        given = nn.Static.of(observers.MinMax().update([-1.0, 10.0]), saved)
        state = nn.Linear.from_float(ones(2, 2), activation=given).state()
        refused(nn.Linear.from_state, state, activation=read, arg="activation")
        assert nn.Linear.from_state(state, activation=saved).activation.scale == given.scale


def test_symmetric_ranges_have_the_zero_point_0() -> None:
    static = nn.Static("int8", 0.1, 0)
    assert nn.Static(static.scheme, static.scale, static.zero_point).zero_point == 0
    refused(nn.Static, "int8", 0.1, 3, arg="zero_point")


@pytest.mark.parametrize("backend", ["rust", "reference"])
@pytest.mark.parametrize(
    ("w", "settings", "x"),
    [
        ([[1e38, 1e38]], {"activation": "int8-axis0"}, [[0.0, 0.0], [1e38, -1e38]]),
        ([[1e38, 1e38]], {"activation": "uint8"}, [[0.0, 0.0], [1e38, 1e38]]),
        ([[1.0] * 4], {"activation": None}, [[0.0] * 4, [3e38] * 4]),
        ([[1e38] * 4], {"activation": "int8-axis0", "scheme": "int4-g2"}, [[0.0] * 4, [1e38] * 4]),
        ([[9e37] * 4], {"activation": nn.Outliers()}, [[0.0] * 4, [9e37] * 4]),
    ],
    ids=["dynamic", "asymmetric", "weight-only", "grouped", "outliers"],
)
def test_results_that_overflow_are_named(w, settings, x, backend: str) -> None:
    layer = nn.Linear.from_float(np.float32(w), backend=backend, **settings)
    row = 0 if settings["activation"] == "uint8" else 1  # one scale for all, times that of w
    message = refused(layer, np.float32(x))
    assert f"the result of row {row} overflows float32" in message


def test_results_that_overflow_the_dtype_of_the_input_are_named() -> None:
    for activation in (None, "int8-axis0"):
        layer = nn.Linear.from_float(ones(1, 4), activation=activation)
        assert "overflows float16" in refused(layer, np.float16([[1.0] * 4, [6e4] * 4]))
    conv = nn.Conv2d.from_float(ones(1, 4, 1, 1))
    assert "overflows float16" in refused(conv, np.full((1, 4, 1, 1), 6e4, np.float16))
    conv = nn.Conv2d.from_float(np.full((1, 4, 1, 1), 1e38, np.float32))
    assert "overflows float32" in refused(conv, np.full((1, 4, 1, 1), 1e38, np.float32))


def test_variances_of_zero_without_eps() -> None:
    for x in ([[0.0, 1.0], [1.0, 1.0]], [[0.0, 1.0], [1e-30, 2e-30]]):
        assert "row 1" in refused(functional.layer_norm, np.float32(x), eps=0.0, arg="eps")
    refused(functional.layer_norm, ones(1, 2), eps=True, error=qrs.ArgTypeError, arg="eps")
    assert functional.layer_norm(np.float32([[1, 3]]), eps=np.float32(0)).tolist() == [[-1, 1]]


def test_a_layer_keeps_its_bias() -> None:
    bias = np.zeros(1, np.float32)
    for kind, x in ((nn.Linear, ones(1, 4)), (nn.Conv1d, ones(1, 4, 1))):
        layer = kind.from_float(x, bias, activation="uint8")
        bias[:] = 5
        assert np.array_equal(copy.copy(layer)(x), layer(x))
        bias[:] = 0


def test_symmetric_codes_reach_half_as_far() -> None:
    qt = qrs.quantize(ones(1, 70000), "int8-g70000")
    assert nn.Linear(qt, activation="int8-axis0")(ones(1, 70000)).shape == (1, 1)


def test_thresholds_are_compared_as_they_are() -> None:
    x = np.float32([[1e-3, 1.0]])
    layer = nn.Linear.from_float(ones(1, 2), activation=nn.Outliers(1e-50))
    assert np.allclose(layer(x), 1.001, rtol=1e-6)
    assert nn.Outliers(np.float32(6)) == nn.Outliers(np.int64(6)) == nn.Outliers(6)
    refused(nn.Outliers, 10**400, arg="threshold")
    assert nn.Linear.from_float(ones(1, 2), activation=nn.Outliers(1e39))(x).shape == (1, 1)


@pytest.mark.parametrize("setting", ["stride", "padding", "dilation"])
@pytest.mark.parametrize("value", [2**31, 2**62, 2**70, (1, 2**65)], ids=str)
def test_windows_that_go_too_far(setting: str, value) -> None:
    refused(nn.Conv2d.from_float, ones(1, 1, 2, 2), **{setting: value}, arg=setting)


def test_padding_that_makes_too_much() -> None:
    layer = nn.Conv2d.from_float(ones(1, 1, 2, 2), padding=2**30)
    refused(layer, ones(1, 1, 4, 4), arg="padding")
    message = refused(nn.Conv2d.from_float, ones(1, 1, 2, 2), padding=(1, 2, 3), arg="padding")
    assert "2 or 4 of them" in message


@pytest.mark.parametrize(
    "shape", [(8, 3, 1, 0), (8, 3, 0, 1), (8, 0, 1, 1), (0, 3, 1, 1), (2, 2, 0)]
)
def test_windows_of_nothing(shape: tuple[int, ...]) -> None:
    kind = nn.Conv2d if len(shape) == 4 else nn.Conv1d
    refused(kind.from_float, ones(*shape), arg="weight")


@pytest.mark.parametrize("backend", ["rust", "reference"])
def test_A01_layers_of_nothing(backend: str) -> None:
    for activation in (None, "int8-axis0", "uint8", nn.Outliers()):
        for m, n, k in ((2, 3, 0), (2, 0, 8), (0, 3, 8), (0, 0, 0)):
            layer = nn.Linear.from_float(ones(n, k), activation=activation, backend=backend)
            assert layer(ones(m, k)).shape == (m, n)
            assert not layer(ones(m, k)).any() or k
    for function in (functional.gelu, functional.softmax, functional.layer_norm):
        assert function(ones(3, 0), backend=backend).shape == (3, 0)
    assert functional.softmax(ones(0, 3), axis=0, backend=backend).shape == (0, 3)
    for kind, shape in ((nn.Conv2d, (2, 3, 1, 1)), (nn.Conv1d, (2, 3, 1))):
        layer = kind.from_float(ones(*shape), padding=2, backend=backend)
        refused(layer, ones(1, 3, *[0] * (len(shape) - 2)))


def test_codes_of_other_schemes() -> None:
    layer = nn.Linear.from_float(ones(2, 4), activation=nn.Static("uint8", 0.1, 3))
    for scheme in ("uint8-axis0", "bf16", "e4m3", "nf4-g4"):
        refused(layer, qrs.quantize(ones(1, 4), scheme))


def test_a_table_has_neither_bias_nor_ranges() -> None:
    state = nn.Linear.from_float(ones(2, 4), [0.0, 1.0]).state()
    refused(nn.Embedding.from_state, state, arg="state")
    refused(nn.Static.of, None, error=qrs.ArgTypeError, arg="observer")


def test_a_bias_beyond_the_sums_is_blamed_on_the_bias() -> None:
    given = {"activation": nn.Static("int8", 1.0), "output": nn.Static("int8", 1.0)}
    w = qrs.quantize(ones(1, 4), "int8-axis0", scale=[1.0])
    message = refused(nn.Linear, w, [2147483400.0], **given, arg="bias")
    assert "int32" in message
    assert "length" in refused(nn.Conv1d.from_float(ones(1, 2, 1)), ones(1, 3, 4))


def test_norms_that_overflow() -> None:
    x, big = np.float32([[0, 0, 0, 1], [0, 0, 0, 10]]), np.full(4, 3e38, np.float32)
    for eps in (0.0, 1e-5):
        assert "row 0 overflows float32" in refused(functional.layer_norm, x, big, eps=eps)
    weight = np.full(4, 6e4, np.float32)
    assert "overflows float16" in refused(functional.layer_norm, x.astype(np.float16), weight)
    refused(functional.layer_norm, x, eps=1e300, arg="eps")


def test_sums_that_overflow_before_they_are_scaled() -> None:
    layer = nn.Linear.from_float(np.full((2, 64), 1e-3, np.float32))
    assert "overflows" in refused(layer, np.full((1, 64), 3e38, np.float32))


def test_codes_whose_results_overflow() -> None:
    before = nn.Linear.from_float(
        np.eye(64) * 1e30, activation=nn.Static("int8", 1.0), output=nn.Static("int8", 1e30)
    )
    layer = nn.Linear.from_float(np.full((2, 64), 3e38), activation=nn.Static("int8", 1e30))
    assert "overflows" in refused(layer, before(np.full((1, 64), 100, np.float32)))


@pytest.mark.parametrize("backend", ["rust", "reference"])
def test_convolutions_of_no_images(backend: str) -> None:
    given = {"activation": nn.Static("uint8", 0.1, 3), "output": nn.Static("int8", 0.1)}
    layer = nn.Conv2d.from_float(ones(2, 3, 3, 3), backend=backend, **given)
    assert layer(ones(0, 3, 5, 5)).shape == (0, 2, 3, 3)
    for setting in ({"padding": 2**31 - 1}, {"padding": 2**31 - 1, "stride": 2**31 - 1}):
        far = nn.Conv2d.from_float(ones(1, 1, 3, 3), backend=backend, **setting)
        refused(far, ones(0, 1, 5, 5), arg="padding")
        refused(far, ones(1, 1, 5, 5), arg="padding")
