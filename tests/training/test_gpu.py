"""Tensors of a GPU: the bits of the CPU, and its gradients. Needs torch with CUDA, and CuPy."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs torch: pip install 'qrs-quant[torch]'")

import qrs  # noqa: E402
from qrs.torch import LSQ, convert, fake_quantize, prepare_qat  # noqa: E402
from qrs.torch.arrays import as_array, as_tensor  # noqa: E402

SCHEMES = ["int8", "int4-axis0", "int4-g16-asym-f16", "nf4-g16", "e4m3-axis0", "mxfp4"]


def has_gpu() -> bool:
    """Whether both libraries find one."""
    return torch.cuda.is_available() and "cupy" in qrs.available_backends()


pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not has_gpu(), reason="needs an NVIDIA GPU, torch with CUDA, and CuPy"),
]


def normal(*shape: int, seed: int = 0) -> "torch.Tensor":
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape).astype(np.float32))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_tensors_are_arrays_in_the_same_memory(dtype) -> None:
    there = normal(4, 8).to("cuda", dtype)
    array = as_array(there)
    assert array.data.ptr == there.data_ptr()
    assert as_tensor(array).data_ptr() == there.data_ptr()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_fake_quantization_has_the_bits_of_the_cpu(scheme: str, dtype) -> None:
    here = normal(8, 64).to(dtype).requires_grad_()
    there = here.detach().cuda().requires_grad_()
    y, z = fake_quantize(here, scheme), fake_quantize(there, scheme)
    assert as_array(z.cpu()).tobytes() == as_array(y).tobytes()
    upstream = normal(8, 64, seed=1).to(dtype)
    (y * upstream).sum().backward()
    (z * upstream.cuda()).sum().backward()
    assert torch.equal(there.grad.cpu(), here.grad)


@pytest.mark.parametrize("scheme", ["int8", "int4-axis0", "uint4-g16"])
def test_what_is_clipped_gets_no_gradient(scheme: str) -> None:
    here = normal(8, 64)
    qt = qrs.quantize(here.numpy(), scheme)
    scale = torch.from_numpy(np.asarray(qt.scale, np.float32)) * 0.5
    zero = None if qt.zero_point is None else torch.from_numpy(np.asarray(qt.zero_point))
    here.requires_grad_()
    there = here.detach().cuda().requires_grad_()
    fake_quantize(here, scheme, scale=scale, zero_point=zero).sum().backward()
    z = None if zero is None else zero.cuda()
    fake_quantize(there, scheme, scale=scale.cuda(), zero_point=z).sum().backward()
    assert torch.equal(there.grad.cpu(), here.grad) and (here.grad == 0).any()


def test_learned_steps_and_training() -> None:
    here = LSQ("int4-axis0", normal(8, 64))
    there = LSQ("int4-axis0", normal(8, 64).cuda())
    assert torch.allclose(there.step.cpu(), here.step)
    there.load_state_dict(here.state_dict())
    x = normal(8, 64, seed=2)
    y, z = here(x), there(x.cuda())
    assert torch.equal(z.cpu(), y)
    y.square().sum().backward()
    z.square().sum().backward()
    assert torch.allclose(there.step.grad.cpu(), here.step.grad, rtol=1e-4)
    model = torch.nn.Sequential(torch.nn.Linear(64, 16), torch.nn.ReLU()).cuda()
    prepare_qat(model, "int8-static")
    model(x.cuda()).sum().backward()
    model.eval()
    expected = model(x.cuda()).detach()
    convert(model)
    assert torch.allclose(model(x.cuda()), expected, atol=1e-4)
