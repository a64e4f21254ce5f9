"""The harness that runs CUDA kernels on the CPU: it must catch what would go wrong on a GPU."""

import re
from pathlib import Path

import numpy as np
import pytest

from cuda_cpu.cpu_module import ORDERS, CpuModule, KernelError
from cuda_cpu.ptx_cpu import PtxModule
from cuda_cpu.sanitize import run_sanitized
from qrs.backends import nvrtc

MODULES = [CpuModule, PtxModule]

# Each row divided by its largest magnitude: shuffles, shared memory that is used again for the next
# row, two barriers, vectors, a tail.
NORMALIZE = """
using i64 = long long;
template <int THREADS>
__global__ void normalize(float* y, const float* x, i64 rows, int columns) {
    __shared__ float part[THREADS / 32];
    for (i64 row = blockIdx.x; row < rows; row += gridDim.x) {
        const float* from = x + row * columns;
        float largest = 0.0f;
        for (int i = threadIdx.x; i < columns; i += THREADS)
            largest = fmaxf(largest, fabsf(from[i]));
        for (int d = 16; d > 0; d /= 2)
            largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, d));
        if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = largest;
        __syncthreads();  // first
        for (int i = 0; i < THREADS / 32; i++) largest = fmaxf(largest, part[i]);
        for (int i = threadIdx.x; i < columns; i += THREADS)
            y[row * columns + i] = __fdiv_rn(from[i], largest);
        __syncthreads();  // second
    }
}
"""
NAME = "normalize<128>"
ROWS, COLUMNS = 12, 301


def rows() -> np.ndarray:
    x = np.random.default_rng(4).standard_normal((ROWS, COLUMNS), dtype=np.float32)
    x[:, 0] = 0
    x[np.arange(ROWS), np.arange(ROWS) * 25] = 8 + np.arange(ROWS)[::-1]
    x[::2] *= -1
    x[3] *= np.float32(1e-41)  # subnormal
    return x


def normalized(module: CpuModule, order: int) -> np.ndarray:
    """The output, which was filled with a pattern before."""
    x = rows()
    y = np.frombuffer(b"\xcd" * x.nbytes, np.float32).reshape(x.shape).copy()
    module.order = order
    module.get_function(NAME)((2,), (128,), (y, x, np.int64(ROWS), np.int32(COLUMNS)))
    return y


def caught(source: str, kind: type[CpuModule] = CpuModule) -> list[int]:
    """The orders in which a kernel gives another result than numpy, or an error."""
    module, x = kind(source, [NAME]), rows()
    expected = x / np.abs(x).max(axis=1, keepdims=True)
    found = []
    for order in ORDERS:
        try:
            same = np.array_equal(normalized(module, order), expected)
        except KernelError:
            same = False
        if not same:
            found.append(order)
    return found


def without(text: str, instead: str = "") -> str:
    assert text in NORMALIZE
    return NORMALIZE.replace(text, instead)


@pytest.mark.parametrize("kind", MODULES)
def test_a_right_kernel_is_right_in_every_order(kind: type[CpuModule]) -> None:
    assert caught(NORMALIZE, kind) == []


@pytest.mark.parametrize("kind", MODULES)
def test_removed_barrier_is_caught(kind: type[CpuModule]) -> None:
    assert caught(without("__syncthreads();  // first"), kind) != []


@pytest.mark.parametrize("kind", MODULES)
def test_removed_barrier_between_two_uses_is_caught_by_a_greedy_warp(kind) -> None:
    assert {2, 3} & set(caught(without("__syncthreads();  // second"), kind))


@pytest.mark.parametrize(
    ("text", "instead"),
    [
        ("int d = 16;", "int d = 8;"),
        ("largest, d)", "largest, d / 2)"),
        ("fmaxf(largest, part[i])", "part[i]"),
        ("i < columns; i += THREADS)\n            y", "i + THREADS <= columns; i += THREADS)\n y"),
        ("fabsf(from[i])", "from[i]"),
    ],
    ids=["shuffle start", "shuffle distance", "one warp only", "dropped tail", "no magnitude"],
)
def test_wrong_kernels_are_caught(text: str, instead: str) -> None:
    assert caught(without(text, instead)) == list(ORDERS)


def run(source: str, threads: int, *args, name: str = "f", order: int = 0, kind=CpuModule) -> None:
    kind(source, [name], order).get_function(name)((1,), (threads,), args)


def out(n: int) -> np.ndarray:
    return np.zeros(n, np.uint32)


HANGS = {
    "barrier in a branch": (
        "if (threadIdx.x < 40) __syncthreads(); y[threadIdx.x] = 1;",
        "divergent barrier",
    ),
    "barrier after an exit": (
        "if (threadIdx.x == 5) return; __syncthreads(); y[threadIdx.x] = 1;",
        "divergent barrier",
    ),
    "two barriers": (
        "if (threadIdx.x < 40) __syncthreads();\nelse __syncthreads();",
        "divergent barrier",
    ),
    "shuffle after an exit": (
        "if (threadIdx.x == 5) return; y[0] = __shfl_xor_sync(~0u, threadIdx.x, 1);",
        "lane that has exited|wait for ever",
    ),
    "shuffle in a branch": (
        "if (threadIdx.x % 32 < 16) y[0] = __shfl_xor_sync(~0u, threadIdx.x, 1);",
        "lane that has exited|wait for ever",
    ),
    "shuffle here, vote there": (
        "if (threadIdx.x % 2) y[0] = __shfl_xor_sync(~0u, threadIdx.x, 1);\n"
        "else y[0] = __ballot_sync(~0u, 1);",
        "diverge",
    ),
    "mask without the caller": ("y[0] = __shfl_xor_sync(3u, threadIdx.x, 1);", "lacks the lane"),
    "lane outside of the mask": (
        "if (threadIdx.x % 2) y[0] = __shfl_xor_sync(0xaaaaaaaau, threadIdx.x, 1);",
        "outside of the mask",
    ),
    "trap": ("if (threadIdx.x == 63) __trap();", r"__trap\(\) \(thread 63,0,0 of block 0,0,0\)"),
}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("case", HANGS)
def test_what_hangs_on_a_gpu_is_an_error(case: str, order: int) -> None:
    kernels = [
        f"__global__ void f{i}(unsigned* y) {{ {b} }}" for i, (b, _) in enumerate(HANGS.values())
    ]
    names = [f"f{i}" for i in range(len(HANGS))]
    kernel = CpuModule("\n".join(kernels), names, order).get_function(names[[*HANGS].index(case)])
    with pytest.raises(KernelError, match=HANGS[case][1]):
        kernel((1,), (64,), (out(64),))


def test_a_partial_last_warp_has_no_more_lanes() -> None:
    source = "__global__ void f(unsigned* y) { y[0] = __ballot_sync(~0u, 1); }"
    run(source, 64, out(1))
    with pytest.raises(KernelError, match="lane that has exited"):
        run(source, 40, out(1))


def test_shared_memory_is_poisoned_before_every_block() -> None:
    source = """__global__ void f(unsigned* y) {
        __shared__ unsigned kept;
        if (blockIdx.x == 0) { y[0] = kept; kept = 1; } else y[1] = kept;
    }"""
    y = out(2)
    CpuModule(source, ["f"]).get_function("f")((2,), (1,), (y,))
    assert y.tolist() == [0xFFFFFFFF] * 2


def test_orders_differ_and_say_what_they_are() -> None:
    source = """__global__ void f(unsigned* y, unsigned* next) {
        y[atomicAdd(next, 1u)] = threadIdx.x;
        __syncwarp();
        y[atomicAdd(next, 1u)] = threadIdx.x;
    }"""
    module, found = CpuModule(source, ["f"]), {}
    for module.order in ORDERS:
        y = out(128)
        module.get_function("f")((1,), (64,), (y, out(1)))
        found[module.order] = y.tolist()
    up, down = list(range(64)), list(range(63, -1, -1))
    assert found[0] == up * 2
    assert found[1] == down * 2
    assert found[2] == up[:32] * 2 + up[32:] * 2
    assert found[3] == down[:32] * 2 + down[32:] * 2
    assert len({tuple(y) for y in found.values()}) == len(ORDERS)


TYPES = """__global__ void f(unsigned* y, int i, long long l, float g, double d, bool b, short h) {
    y[0] = i + l + g + d + b + h;
}"""
GOOD = (np.int32(1), np.int64(2), np.float32(3), np.float64(4), np.bool_(True), np.int16(6))


@pytest.mark.parametrize("kind", MODULES)
def test_scalars_of_the_right_size(kind: type[CpuModule]) -> None:
    y = out(1)
    run(TYPES, 1, y, *GOOD, kind=kind)
    assert y[0] == 17


@pytest.mark.parametrize("kind", MODULES)
@pytest.mark.parametrize(
    ("index", "value", "message"),
    [
        (0, 1, "argument 1 is int;"),
        (0, 1.0, "argument 1 is float;"),
        (0, np.int64(1), "argument 1 is int64 where the kernel has a 4-byte integer"),
        (0, np.float32(1), "argument 1 is float32 where the kernel has a 4-byte integer"),
        (1, np.int32(1), "argument 2 is int32 where the kernel has a 8-byte integer"),
        (1, 1, "argument 2 is int"),
        (2, np.float64(1), "argument 3 is float64 where the kernel has a 4-byte float"),
        (2, np.int32(1), "argument 3 is int32 where the kernel has a 4-byte float"),
        (3, 1.0, "argument 4 is float;"),
        (5, np.int32(1), "argument 6 is int32 where the kernel has a 2-byte integer"),
    ],
)
def test_scalars_that_a_gpu_would_misread(kind, index: int, value, message: str) -> None:
    args = [*GOOD]
    args[index] = value
    with pytest.raises(TypeError, match=message):
        run(TYPES, 1, out(1), *args, kind=kind)


@pytest.mark.parametrize("kind", MODULES)
def test_no_array(kind: type[CpuModule]) -> None:
    source = "__global__ void f(unsigned* y, const float* x) { y[0] = x == nullptr; }"
    for null in (np.int64(0), np.uint64(0)):
        y = out(1)
        run(source, 1, y, null, kind=kind)
        assert y[0] == 1


@pytest.mark.parametrize(
    "args", [(), (out(1), 1), ([1, 2],), (np.uint32(0),), (np.int64(64),), (None,)]
)
def test_arguments_that_do_not_fit(args: tuple) -> None:
    with pytest.raises(TypeError, match="argument"):
        run("__global__ void f(unsigned* y) {}", 1, *args)


@pytest.mark.parametrize(
    ("grid", "block"),
    [
        ((0,), (1,)),
        ((1,), (0,)),
        ((1, 65536), (1,)),
        ((1,), (1025,)),
        ((1,), (1, 1, 65)),
        ((-1,), (1,)),
    ],
)
def test_sizes_that_a_gpu_refuses(grid: tuple, block: tuple) -> None:
    kernel = CpuModule("__global__ void f(unsigned* y) {}", ["f"]).get_function("f")
    with pytest.raises(KernelError, match="invalid argument"):
        kernel(grid, block, (out(1),))


@pytest.mark.parametrize("kind", MODULES)
def test_three_dimensions(kind: type[CpuModule]) -> None:
    source = """__global__ void f(unsigned* y) {
        const unsigned block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
        const unsigned thread =
            (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
        y[block * blockDim.x * blockDim.y * blockDim.z + thread] += block * 1000 + thread;
    }"""
    y = out(24 * 24)
    kind(source, ["f"], 7).get_function("f")((2, 3, 4), (4, 3, 2), (y,))
    assert y.tolist() == [b * 1000 + t for b in range(24) for t in range(24)]


# ---- Sanitizers

MEMORY = """
import sys
import numpy as np
from cuda_cpu.cpu_module import CpuModule

module = CpuModule('''
__global__ void copy(float* y, const float* x) { y[threadIdx.x] = x[threadIdx.x]; }
__global__ void four(float4* y, const float4* x) { y[threadIdx.x] = x[threadIdx.x]; }
__global__ void whole(int* y, const float* x) { y[threadIdx.x] = (int)x[threadIdx.x]; }
__global__ void shared(float* y, const float* x) {
    __shared__ float kept[32];
    kept[threadIdx.x] = x[threadIdx.x];
    y[threadIdx.x] = kept[threadIdx.x];
}
''', ["copy", "four", "whole", "shared"])

def run(name, threads, y, x):
    module.get_function(name)((1,), (threads,), (y, x))

x, y = np.ones(600, np.float32), np.empty(600, np.float32)
for name, n in [("copy", 600), ("four", 150), ("shared", 32), ("whole", 600)]:
    run(name, n, y, x)
print("clean so far")
"""


@pytest.mark.parametrize(
    ("launch", "message"),
    [
        ("pass", None),
        ("run('copy', 601, np.empty(601, np.float32), x)", "heap-buffer-overflow.*READ"),
        ("run('copy', 601, y, np.ones(601, np.float32))", "heap-buffer-overflow.*WRITE"),
        ("run('four', 100, y, x[1:])", "misaligned address"),
        ("run('whole', 1, y, x * np.float32(1e10))", "outside the range"),
        ("run('shared', 33, y, x)", "index 32 out of bounds"),
    ],
    ids=["clean", "read", "write", "misaligned", "conversion", "shared"],
)
def test_sanitizers_see_bad_memory_accesses(launch: str, message: str | None) -> None:
    done = run_sanitized(["-c", MEMORY + launch])
    assert done.stdout == "clean so far\n", done.stderr
    assert (done.returncode == 0) is (message is None), done.stderr
    if message is not None:
        assert re.search(message, done.stderr, re.DOTALL), done.stderr


# ---- The PTX witness

DIVIDE = """__global__ void f(float* y, const float* x, float s) {
    y[threadIdx.x] = __fdiv_rn(x[threadIdx.x], s);
}"""


@pytest.mark.parametrize(
    ("option", "opcode"),
    [("-ftz=true", "ftz"), ("-prec-div=false", "approx|full"), ("--fmad=true", "add.f32")],
)
def test_ptx_refuses_what_changes_bits(monkeypatch, option: str, opcode: str) -> None:
    source = "__global__ void f(float* y, float a, float b) { y[0] = a / b + a; }"
    PtxModule(source, ["f"])
    monkeypatch.setattr(nvrtc, "OPTIONS", (*nvrtc.OPTIONS, option))
    with pytest.raises(KeyError, match=opcode):
        PtxModule(source + " ", ["f"])


def test_ptx_shows_a_fused_product(monkeypatch: pytest.MonkeyPatch) -> None:
    source = """__global__ void f(float* y, const float* x) {
        y[threadIdx.x] = x[threadIdx.x] * x[threadIdx.x + 1] + x[threadIdx.x + 2];
    }"""
    x = np.random.default_rng(1).random(300, dtype=np.float32)
    expected = x[:256] * x[1:257] + x[2:258]
    for fused in (False, True):
        if fused:
            monkeypatch.setattr(nvrtc, "OPTIONS", (*nvrtc.OPTIONS, "--fmad=true"))
            source += " "  # or the translation of before would answer
        y = np.zeros(256, np.float32)
        run(source, 256, y, x, kind=PtxModule)
        assert np.array_equal(y, expected) is not fused


@pytest.mark.parametrize(
    "body", ["y[0] = __sinf(y[1]);", "atomicAdd(y, 1.0f);", "y[0] = rsqrtf(y[1]);"]
)
def test_ptx_refuses_what_is_not_exact(body: str) -> None:
    with pytest.raises(KeyError):
        PtxModule(f"__global__ void f(float* y) {{ {body} }}", ["f"])


def test_ptx_keeps_subnormals() -> None:
    x = np.array([1e-45, -3e-42, 2e-38, 0, -0.0, np.inf], np.float32)
    y = np.empty_like(x)
    run(DIVIDE, x.size, y, x, np.float32(2), kind=PtxModule)
    assert y.tobytes() == (x / np.float32(2)).tobytes()


def test_ptx_checks_the_alignment_of_vectors() -> None:
    source = "__global__ void f(uint4* y, const uint4* x) { *y = *x; }"
    run(source, 1, out(4), out(4), kind=PtxModule)
    with pytest.raises(KernelError, match="misaligned"):
        run(source, 1, out(4), out(8)[1:5], kind=PtxModule)


def test_ptx_checks_shared_memory() -> None:
    source = """__global__ void f(unsigned* y, int n) {
        __shared__ unsigned kept[64];
        kept[threadIdx.x] = 1;
        __syncthreads();
        y[threadIdx.x] = kept[threadIdx.x + n];
    }"""
    run(source, 32, out(32), np.int32(32), kind=PtxModule)
    with pytest.raises(KernelError, match="shared memory"):
        run(source, 32, out(32), np.int32(33), kind=PtxModule)


def test_a_family_by_its_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("qrs.backends.cuda._FOLDER", tmp_path)
    (tmp_path / "common.cuh").write_text("using u32 = unsigned;\n")
    (tmp_path / "numeric.cuh").write_text("")
    for name in ("codebooks.cuh", "sums.cuh"):
        (tmp_path / name).write_text("")
    (tmp_path / "family.cu").write_text("__global__ void f(u32* y) { *y = 7; }\n")
    for kind in MODULES:
        y = out(1)
        kind("family", ["f"]).get_function("f")((1,), (1,), (y,))
        assert y[0] == 7
    (tmp_path / "family.cu").write_text("\n__global__ void f(u32* y) { nonsense; }\n")
    with pytest.raises(KernelError, match=r"family\.cu:2"):
        CpuModule("family", ["f"])
