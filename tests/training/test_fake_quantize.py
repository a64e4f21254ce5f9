"""Fake quantization in torch: the bits of qrs forward, its gradients backward; learned steps."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs torch: pip install 'qrs-quant[torch]'")

import qrs  # noqa: E402
from qrs.torch.arrays import as_array  # noqa: E402
from qrs.torch.fake_quantize import clipped, fake_quantize, inside  # noqa: E402
from qrs.torch.lsq import LSQ, as_groups, from_groups, gradients, gradients_by_torch  # noqa: E402
from refusals import refused  # noqa: E402

SCHEMES = [
    "int8", "uint8", "int4-axis0", "int4-g16-asym-f16", "int3-axis1", "nf4-g16", "nf4-g16-dq",
    "kmeans4-axis0", "e4m3-g32", "e5m2", "mxfp4", "nvfp4", "learned4-g32-s6", "int4-g16-rot16",
    "uint4-g16-offset",
]  # fmt: skip


def normal(*shape: int, seed: int = 0) -> "torch.Tensor":
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape).astype(np.float32))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_values_are_those_that_are_stored_and_gradients_pass(scheme: str, dtype) -> None:
    x = normal(8, 64).to(dtype).requires_grad_()
    y = fake_quantize(x, scheme)
    name = str(dtype).removeprefix("torch.")
    expected = qrs.quantize(as_array(x), scheme).dequantize(name)
    assert as_array(y).tobytes() == expected.tobytes()
    assert y.dtype == dtype and y.shape == x.shape
    weights = normal(8, 64, seed=1).to(dtype)
    (y * weights).sum().backward()
    assert torch.equal(x.grad, weights)


def test_strides_and_shapes() -> None:
    x = normal(6, 4, 5).transpose(0, 2)
    assert torch.equal(fake_quantize(x, "int4-axis0"), fake_quantize(x.contiguous(), "int4-axis0"))
    assert fake_quantize(normal(0, 4), "int4-axis0").shape == (0, 4)


@pytest.mark.parametrize("scheme", ["int4", "int4-axis0", "int4-axis1", "int4-g4"])
def test_gradients_of_strided_tensors_are_those_of_copies(scheme: str) -> None:
    whole = normal(8, 16)
    for x in (whole.t(), whole[:, ::2], whole[::2], whole[:, 4:], whole[:1].expand(8, 16)):
        given = qrs.quantize(as_array(x), scheme).scale * np.float32(0.5)
        lsq, found = LSQ(scheme, x), []
        for y in (x.detach(), x.contiguous()):
            fixed, learned = (y.detach().requires_grad_() for _ in range(2))
            lsq.zero_grad()
            fake_quantize(fixed, scheme, scale=given).sum().backward()
            lsq(learned).sum().backward()
            found.append((fixed.grad, learned.grad, lsq.step.grad.clone()))
        assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
        assert (found[0][0] == 0).any()


def test_scales_may_change_between_forward_and_backward() -> None:
    for scale in (np.ones(1, np.float32), torch.ones(1)):
        x = torch.tensor([[1.0, 9.0]], requires_grad=True)
        y = fake_quantize(x, "int4-axis0", scale=scale)
        scale *= 100
        y.sum().backward()
        assert x.grad.tolist() == [[1, 0]]


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("scheme", ["int8", "int4", "uint4", "int8-asym"])
def test_gradients_are_those_of_torch(scheme: str, per_channel: bool) -> None:
    """It multiplies by a rounded 1 / scale, which is exact for powers of two."""
    name = scheme.removesuffix("-asym")
    known = qrs.parse(name + "-axis0" * per_channel + "-asym" * scheme.endswith("-asym"))
    low, high = known.qmin, known.qmax
    x = ((60 if known.bits == 8 else 3) * normal(5, 33)).requires_grad_()
    other = x.detach().clone().requires_grad_()
    if per_channel:
        scale = torch.tensor([0.25, 0.5, 0.125, 1.0, 0.0625])
        zero = torch.tensor([0, 1, 2, -1, 0] if known.signed else [0, 1, 2, 15, 0])
    else:
        scale, zero = torch.tensor(0.25), torch.tensor(2)
    zero = torch.zeros_like(zero) if known.symmetric else zero
    given = None if known.symmetric else zero.numpy().astype(known.code_dtype)
    y = fake_quantize(x, known, scale=scale, zero_point=given)
    if per_channel:
        z = torch.fake_quantize_per_channel_affine(other, scale, zero.int(), 0, low, high)
    else:
        z = torch.fake_quantize_per_tensor_affine(other, scale.item(), zero.item(), low, high)
    assert torch.equal(y, z)
    weights = normal(5, 33, seed=2)
    (y * weights).sum().backward()
    (z * weights).sum().backward()
    assert torch.equal(x.grad, other.grad) and (x.grad == 0).any()


@pytest.mark.parametrize("scheme", ["nf4-g16", "e4m3-g16", "e2m1-axis0"])
def test_what_lies_beyond_the_levels_gets_no_gradient(scheme: str) -> None:
    x = normal(4, 32).requires_grad_()
    stored = qrs.quantize(as_array(x), scheme).scale
    y = fake_quantize(x, scheme, scale=stored * 0.5)
    y.sum().backward()
    levels = {"nf4": 1.0, "e4m": 448.0, "e2m": 6.0}[scheme[:3]]
    each = np.repeat(np.asarray(stored * 0.5).reshape(4, -1), 32 // (stored.size // 4), axis=1)
    assert np.array_equal(x.grad.numpy() == 1, np.abs(as_array(x)) <= levels * each)
    assert (x.grad == 0).any() and (x.grad == 1).any()


@pytest.mark.parametrize(
    "scheme", ["int4-axis0", "int3", "int2-axis0-full", "uint4-axis1", "uint8"]
)
def test_the_gradient_of_a_step_is_the_formula(scheme: str) -> None:
    """Equation 3, value by value, and the scale of section 2.2."""
    x = normal(6, 10)
    x = (x.abs() if scheme.startswith("u") else x).requires_grad_()
    lsq = LSQ(scheme, x)
    with torch.no_grad():
        lsq.step.mul_(0.4)  # so that some values are clipped
    y = lsq(x)
    upstream = normal(6, 10, seed=3)
    (y * upstream).sum().backward()
    known, steps = lsq.scheme, lsq.scale()
    axis = getattr(known.granularity, "axis", None)
    expected = np.zeros(steps.shape)
    of_x = np.zeros((6, 10))
    for i, j in np.ndindex(6, 10):
        at = () if axis is None else ((i, j)[axis],)
        v = x[i, j].item() / steps[at].item()
        if known.qmin < v < known.qmax:
            slope, of_x[i, j] = np.rint(v) - v, upstream[i, j].item()
        else:
            slope = known.qmin if v <= known.qmin else known.qmax
        expected[at] += slope * upstream[i, j].item()
    expected *= 1 / np.sqrt(60 / steps.numel() * known.qmax)
    assert np.allclose(lsq.step.grad.numpy(), expected, rtol=1e-4, atol=1e-5)
    assert np.allclose(x.grad.numpy(), of_x)


def test_a_step_begins_as_the_paper_says_and_exports_what_it_computes() -> None:
    x = normal(6, 10)
    lsq = LSQ("int4-axis0", x)
    assert torch.allclose(lsq.step, 2 * x.abs().mean(dim=1) / 7**0.5)
    stored = qrs.quantize(x.numpy(), "int4-axis0", scale=lsq.scale().numpy())
    assert lsq(x).detach().numpy().tobytes() == stored.dequantize().tobytes()
    assert LSQ("int4", torch.zeros(3)).step.item() == 1.0
    again = LSQ("int4-axis0", torch.ones(6, 10))
    again.load_state_dict(lsq.state_dict())
    assert torch.equal(again(x), lsq(x))


@pytest.mark.parametrize(
    "scheme", ["int4", "int4-axis0", "uint4-axis1", "int3-g5-asym", "int4-g7-ragged"]
)
def test_the_kernel_clips_where_torch_would(scheme: str) -> None:
    """The pass of the CPU beside the operations of torch that GPUs run."""
    x, upstream = 2 * normal(6, 20), normal(6, 20, seed=1)
    qt = qrs.quantize(x.numpy(), scheme)
    scale = torch.from_numpy(np.asarray(qt.scale, np.float32)) * 0.5
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        y, dy = x.to(dtype), upstream.to(dtype)
        found = clipped(dy, y, qt.scheme, scale, qt.zero_point)
        mask = inside(y, qt.scheme, scale, qt.zero_point)
        assert torch.equal(found, torch.where(mask, dy, torch.zeros((), dtype=dtype)))
        assert mask.any() and not mask.all()


def without_the_last_half_steps(x: "torch.Tensor", lsq: LSQ) -> "torch.Tensor":
    """Values beyond the last code that round to it are clipped in the paper, and not in torch."""
    s, z = lsq.scale().reshape(-1, 1), lsq.zero().reshape(-1, 1).float()
    v = as_groups(x, lsq.scheme) / s + z
    low, high = lsq.scheme.qmin, lsq.scheme.qmax
    between = ((v >= low - 0.5) & (v <= low)) | ((v >= high) & (v <= high + 0.5))
    return torch.where(from_groups(between, lsq.scheme, x.shape), torch.zeros(()), x)


@pytest.mark.parametrize("scheme", ["int4-asym-axis0", "uint3", "uint8-axis1", "int4-g5-asym"])
def test_gradients_of_learned_zero_points_are_those_of_torch(scheme: str) -> None:
    """Its own operation, where the range is wider than the codes and where it is not."""
    known = qrs.parse(scheme.replace("-asym-axis0", "-axis0-asym"))
    x = normal(6, 10) + 0.5
    lsq = LSQ(known, x, learn_zero_point=True)
    stored = qrs.quantize(x.numpy(), known)
    assert lsq.qtensor(x) == stored  # it begins with the range of the values
    with torch.no_grad():
        lsq.step.copy_(2.0 ** torch.floor(torch.log2(0.6 * lsq.step)))
        lsq.zero_point.add_(0.3)
    x = without_the_last_half_steps(x, lsq).requires_grad_()
    y, upstream = lsq(x), normal(6, 10, seed=3)
    (y * upstream).sum().backward()
    assert as_array(y).tobytes() == lsq.qtensor(x).dequantize().tobytes()
    other, rows = x.detach().clone().requires_grad_(), known.granularity.rows((6, 10))
    moved = other.T if getattr(known.granularity, "axis", 0) == 1 else other
    groups = moved.reshape(-1, rows.group_size)
    step = lsq.step.detach().reshape(-1).clone().requires_grad_()
    zero = lsq.zero_point.detach().reshape(-1).clone().requires_grad_()
    factor = 1 / (rows.group_size * known.qmax) ** 0.5
    z = torch._fake_quantize_learnable_per_channel_affine(
        groups, step, zero, 0, known.qmin, known.qmax, factor
    )
    z = z.reshape(moved.shape).T if moved is not other else z.reshape(6, 10)
    (z * upstream).sum().backward()
    assert torch.equal(y, z)
    assert torch.allclose(lsq.step.grad.reshape(-1), step.grad, rtol=1e-4, atol=1e-5)
    assert torch.allclose(lsq.zero_point.grad.reshape(-1), zero.grad, rtol=1e-4, atol=1e-5)
    assert (zero.grad != 0).any()
    assert torch.equal(x.grad, other.grad)


@pytest.mark.parametrize("scheme", ["int4", "int4-axis1", "uint4-g5", "int3-g10-asym"])
def test_the_kernel_of_steps_computes_what_torch_would(scheme: str) -> None:
    x, upstream = 2 * normal(6, 20), normal(6, 20, seed=1)
    zero_points = not qrs.parse(scheme).symmetric
    lsq = LSQ(scheme, x, learn_zero_point=zero_points)
    arguments = (upstream, x, lsq.scheme, lsq.scale() * 0.3, lsq.zero())
    for found, expected in zip(gradients(*arguments), gradients_by_torch(*arguments), strict=True):
        assert torch.allclose(found.reshape(expected.shape), expected, rtol=1e-4, atol=1e-5)
        assert (found != 0).any()


@pytest.mark.parametrize("scheme", ["int4-g5", "int4-g5-f16", "int3-g10-flat", "int4-axis-1-bf16"])
def test_steps_of_groups_and_of_other_dtypes_are_stored_as_they_are(scheme: str) -> None:
    x = normal(4, 2, 10).requires_grad_()
    lsq = LSQ(scheme, x)
    y = lsq(x)
    assert as_array(y).tobytes() == lsq.qtensor(x).dequantize().tobytes()
    (y * normal(4, 2, 10, seed=1)).sum().backward()
    assert lsq.step.grad.shape == lsq.step.shape and (lsq.step.grad != 0).all()


def test_a_step_is_learned() -> None:
    """From a step that is far too small the error falls to that of the best step."""
    x = normal(1, 4096)
    lsq = LSQ("int3", x)
    with torch.no_grad():
        lsq.step.mul_(0.2)
    optimizer = torch.optim.SGD(lsq.parameters(), lr=0.05)
    for _ in range(400):
        optimizer.zero_grad()
        torch.sum((lsq(x) - x) ** 2).div(8).backward()
        optimizer.step()
    best = min(torch.mean((fake_quantize(x, "int3", scale=s) - x) ** 2).item()
               for s in np.linspace(0.2, 1.5, 200))  # fmt: skip
    assert torch.mean((lsq(x) - x) ** 2).item() < 1.05 * best


def test_it_works_under_torch_compile_as_a_break_of_the_graph() -> None:
    """The kernels are no operations of torch: the graph breaks there, and values are the same."""
    x = normal(4, 8)
    compiled = torch.compile(lambda t: fake_quantize(t, "int4-axis0") * 2, backend="eager")
    assert torch.equal(compiled(x), fake_quantize(x, "int4-axis0") * 2)


def test_bad_input() -> None:
    x = normal(2, 4)
    refused(fake_quantize, x.numpy(), "int8", error=qrs.ArgTypeError)
    refused(fake_quantize, x.int(), "int8", error=qrs.ArgTypeError)
    refused(fake_quantize, torch.where(x > 0, float("nan"), x), "int8")
    refused(fake_quantize, x, "int8", scale=torch.ones(3), arg="scale")
    refused(fake_quantize, x, "int9", arg="bits")
    refused(fake_quantize, x.to("meta"), "int8", error=qrs.DeviceError)
    for scheme in ("nf4", "int4-g3-ragged", "e4m3-axis0", "kmeans4"):
        refused(LSQ, scheme, x, arg="scheme")
    refused(LSQ, "int4-g16", x, arg="group_size")
    refused(LSQ, "int8-asym", x, arg="learn_zero_point")
    refused(LSQ, "int8", x, learn_zero_point=True, arg="learn_zero_point")
    refused(LSQ, "uint8", x, learn_zero_point=1, arg="learn_zero_point", error=qrs.ArgTypeError)
    lsq = LSQ("uint8", x, learn_zero_point=True)
    with torch.no_grad():
        lsq.zero_point.fill_(float("nan"))
    refused(lsq, x, arg="zero_point")
    with torch.no_grad():
        lsq.zero_point.fill_(0)
        lsq.step.fill_(float("nan"))
    refused(lsq, x, arg="scale")
