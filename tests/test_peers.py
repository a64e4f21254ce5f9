"""Float schemes against other libraries, byte for byte, where those are installed.

gguf comes with the extra `test`; torch and torchao, which are large, only with `peers`.
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
