"""Schemes against other libraries, byte for byte, where those are installed.

gguf comes with the extra `test`; torch, torchao and bitsandbytes, all large, only with `peers`.
"""

import numpy as np
import pytest

import qrs


def weights() -> np.ndarray:
    """Rows of very different size; no quotient of these is a tie, which libraries round apart."""
    x = np.random.default_rng(11).standard_normal((64, 256), np.float32)
    x[5], x[6, :32], x[7, ::2] = 0, 0, 0
    return x * (10.0 ** np.linspace(-6, 6, 64, dtype=np.float32))[:, None]


def test_mxfp4_is_that_of_gguf():
    """Its blocks are a scale byte and 16 bytes of codes i and i + 16; ties and zeros aside."""
    gguf = pytest.importorskip("gguf", reason="gguf is not installed")
    kind = gguf.GGMLQuantizationType.MXFP4
    blocks = gguf.quants.quantize(weights(), kind)
    qt = qrs.quantize(weights(), "mxfp4")
    x_hat = gguf.quants.dequantize(blocks, kind)
    assert np.array_equal(x_hat, qt.dequantize())
    scales = blocks.reshape(64, 8, 17)[..., 0]
    filled = weights().reshape(64, 8, 32).any(axis=2)
    assert np.array_equal(scales[filled], qt.parts["scale"][filled])


@pytest.mark.parametrize("scheme", ["mxfp4", "mxfp8", "e5m2-g32-e8m0"])
def test_mx_formats_are_those_of_torchao(scheme):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    mx = pytest.importorskip("torchao.prototype.mx_formats.mx_tensor", reason="no torchao")
    config = pytest.importorskip("torchao.prototype.mx_formats.config", reason="no torchao")
    dtype = {
        "mxfp4": torch.float4_e2m1fn_x2,
        "mxfp8": torch.float8_e4m3fn,
        "e5m2-g32-e8m0": torch.float8_e5m2,
    }[scheme]
    x = weights()
    x[x == 0] = 1e-7  # a group of zeros has the scale 2^-127 there
    scale, codes = mx.to_mx(torch.from_numpy(x), dtype, 32, config.ScaleCalculationMode.FLOOR)
    qt = qrs.quantize(x, scheme)
    assert np.array_equal(scale.view(torch.uint8).numpy().reshape(64, 8), qt.parts["scale"])
    assert np.array_equal(codes.view(torch.uint8).numpy().reshape(qt.packed.shape), qt.packed)


def test_nvfp4_is_that_of_torchao():
    torch = pytest.importorskip("torch", reason="torch is not installed")
    nv = pytest.importorskip("torchao.prototype.mx_formats.nvfp4_tensor", reason="no torchao")
    x = np.random.default_rng(11).standard_normal((64, 256), np.float32)
    top = nv.per_tensor_amax_to_scale(torch.from_numpy(x).abs().max())
    scale, codes = nv.nvfp4_quantize(torch.from_numpy(x), 16, top)
    part = qrs.quantize(x, "nvfp4").parts["scale"]
    assert float(top) == part.scale
    assert np.array_equal(scale.view(torch.uint8).numpy().reshape(64, 16), part.packed)
    packed = qrs.quantize(x, "nvfp4").packed
    assert np.array_equal(codes.view(torch.uint8).numpy().reshape(packed.shape), packed)


def bitsandbytes():
    torch = pytest.importorskip("torch", reason="torch is not installed")
    functional = pytest.importorskip("bitsandbytes.functional", reason="no bitsandbytes")
    return torch, functional


@pytest.mark.parametrize("group_size", [32, 64, 256])
@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_nf4_and_fp4_are_those_of_bitsandbytes(kind, group_size, dtype):
    """Codes, absmax and values; ties, zeros and rows of every size among them."""
    torch, functional = bitsandbytes()
    x = weights()
    levels = np.array(qrs.codebooks.TABLES[kind], np.float32)
    x[8] = np.resize(np.sort(levels)[:-1] + np.diff(np.sort(levels)) / 2, 256)
    x[8, ::group_size] = 1
    x = qrs.floats.decode(qrs.floats.encode(x / 1e3, dtype), dtype)
    given = torch.from_numpy(x).to(getattr(torch, dtype))
    packed, state = functional.quantize_4bit(given, blocksize=group_size, quant_type=kind)
    qt = qrs.quantize(x, qrs.parse(f"{kind}-g{group_size}"))
    halves = packed.numpy().reshape(64, 128)
    theirs = np.stack([halves >> 4, halves & 15], axis=2).reshape(64, 256)
    assert np.array_equal(theirs, qt.codes)
    assert np.array_equal(state.absmax.numpy(), qt.scale.reshape(-1))
    state.dtype = torch.float32
    assert np.array_equal(functional.dequantize_4bit(packed, state).numpy(), qt.dequantize())


def test_double_quantization_is_that_of_bitsandbytes():
    """Its look-up of the nested codes is coarse: 99 % are equal, and the rest next to ours."""
    torch, functional = bitsandbytes()
    x = np.random.default_rng(5).standard_normal((256, 4096), np.float32)
    packed, state = functional.quantize_4bit(
        torch.from_numpy(x), blocksize=64, quant_type="nf4", compress_statistics=True
    )
    qt = qrs.quantize(x, "nf4-g64-dq")
    nested = qt.parts["scale"]
    halves = packed.numpy().reshape(256, 2048)
    assert np.array_equal(np.stack([halves >> 4, halves & 15], axis=2).reshape(x.shape), qt.codes)
    exact = np.abs(x).reshape(-1, 64).max(axis=1).astype(np.float64).mean()
    assert float(nested.parts["offset"]) == np.float32(exact)
    # Ours, of the same numbers less the offset that bitsandbytes found.
    absmax = np.abs(x).reshape(-1, 64).max(axis=1) - state.offset.numpy()
    scheme = qrs.Codebook("dynamic8", group_size=256, ragged=True)
    ours = qrs.quantize(absmax, scheme)
    assert np.array_equal(ours.scale, state.state2.absmax.numpy())
    apart = np.abs(ours.codes.astype(int) - state.absmax.numpy().astype(int))
    assert apart.max() <= 1 and np.mean(apart == 0) >= 0.99
    # Decoding their bytes gives their values.
    part = qrs.QTensor.from_leaves(nested.scheme, nested.shape, "float32", {
        "packed": state.absmax.numpy(), "scale": state.state2.absmax.numpy(),
        "offset": state.offset.numpy(),
    })  # fmt: skip
    made = qrs.QTensor.from_parts("nf4-g64-dq", x.shape, qt.codes, part)
    assert np.array_equal(made.dequantize(), functional.dequantize_4bit(packed, state).numpy())


@pytest.mark.parametrize("threshold", [0.0, 6.0])
def test_llm_int8_is_that_of_bitsandbytes(threshold):
    """The same codes and sums; its constant for 1 / 127^2 is off by 2e-5, its results are float16.

    Its scales see the other numbers of a column with outliers, unlike the paper's: here are none.
    """
    torch = pytest.importorskip("torch", reason="torch is not installed")
    f = pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed").functional
    from qrs import nn

    rng = np.random.default_rng(12)
    w, x = (rng.standard_normal((rows, 256), np.float32) for rows in (48, 9))
    columns = [3, 200] if threshold else []
    x[:, columns] = np.sign(x[:, columns]) * (8 + 9 * abs(x[:, columns]))
    codes, row_absmax, outliers = f.int8_vectorwise_quant(torch.from_numpy(x), threshold=threshold)
    w_codes, w_absmax, _ = f.int8_vectorwise_quant(torch.from_numpy(w))
    sums = f.int8_linear_matmul(codes, w_codes)
    expected = f.int8_mm_dequant(sums, row_absmax, w_absmax).float().numpy()
    assert ([] if outliers is None else outliers.tolist()) == columns
    layer = nn.Linear.from_float(w, activation=nn.Outliers(threshold))
    rest = x.copy()
    rest[:, columns] = 0
    assert np.array_equal(layer.weight.codes, w_codes.numpy())
    assert np.array_equal(qrs.quantize(rest, "int8-axis0").codes, codes.numpy())
    large = x[:, columns] @ (w_codes.numpy()[:, columns] * (w_absmax.numpy()[:, None] / 127)).T
    difference = abs(layer(x) - (expected + large))
    assert (difference <= 2.0**-11 * abs(expected) + 3e-5 * abs(expected).max()).all()
