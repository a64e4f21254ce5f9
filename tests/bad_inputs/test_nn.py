"""Malformed layers and inputs: each an error that names argument, value and what was expected."""

import numpy as np
import pytest

import qrs
from qrs import nn

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
    with pytest.raises(qrs.ArgValueError, match="threshold: got"):
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
