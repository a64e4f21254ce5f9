"""What single instructions give, on the shim and in PTX: as the PTX ISA says, or as numpy does."""

import ml_dtypes
import numpy as np
import pytest

from cuda_cpu.cpu_module import CpuModule
from cuda_cpu.ptx_cpu import PtxModule

MODULES = [CpuModule, PtxModule]
NAN = 0x7FFFFFFF  # every NaN that a float32 instruction makes
SPECIALS = np.array(
    [
        0.0,
        -0.0,
        1.0,
        -1.0,
        0.5,
        1.5,
        2.5,
        1e-45,
        -1e-45,
        2**-126,
        3.4028235e38,
        np.inf,
        -np.inf,
        np.nan,
    ],
    np.float32,
)


def bits(x: np.ndarray) -> np.ndarray:
    return np.asarray(x, np.float32).view(np.uint32)


def apply(kind, expressions: list[str], *columns: np.ndarray) -> list[np.ndarray]:
    """Each expression of a and b and c for each row of the columns, as 32-bit patterns."""
    types = {"f": "float", "i": "int", "u": "unsigned"}
    params = "".join(f", const {types[c.dtype.kind]}* p{i}" for i, c in enumerate(columns))
    reads = " ".join(f"const auto {'abc'[i]} = p{i}[i];" for i in range(len(columns)))
    kernels = [
        f"""__global__ void f{k}(unsigned* y, int n{params}) {{
            const int i = blockIdx.x * blockDim.x + threadIdx.x;
            if (i < n) {{ {reads} y[i] = {expression}; }}
        }}"""
        for k, expression in enumerate(expressions)
    ]
    module = kind("\n".join(kernels), [f"f{k}" for k in range(len(kernels))])
    n, found = columns[0].size, []
    for name in module.names:
        y = np.full(n, 0xCDCDCDCD, np.uint32)
        module.get_function(name)((-(-n // 256),), (256,), (y, np.int32(n), *columns))
        found.append(y)
    return found


def floats(n: int = 1 << 14, seed: int = 0) -> np.ndarray:
    """Random patterns, and each special value next to others."""
    rng = np.random.default_rng(seed)
    x = rng.integers(0, 2**32, n, dtype=np.uint32).view(np.float32)
    x[rng.integers(0, n, n // 4)] = SPECIALS[rng.integers(0, SPECIALS.size, n // 4)]
    return x


def canonical(x: np.ndarray) -> np.ndarray:
    """Patterns of float32 values, with the one NaN that a GPU makes."""
    return np.where(np.isnan(x), np.uint32(NAN), bits(x))


ARITHMETIC = {
    "__fadd_rn(a, b)": lambda a, b: a + b,
    "__fsub_rn(a, b)": lambda a, b: a - b,
    "__fmul_rn(a, b)": lambda a, b: a * b,
    "__fdiv_rn(a, b)": lambda a, b: a / b,
    "__frcp_rn(a)": lambda a, b: np.float32(1) / a,
    "__fsqrt_rn(a)": lambda a, b: np.sqrt(a),
    "rintf(a)": lambda a, b: np.rint(a),
}


@pytest.mark.parametrize("kind", MODULES)
def test_arithmetic_is_numpys(kind) -> None:
    a, b = floats(seed=1), floats(seed=2)
    found = apply(kind, [f"__float_as_uint({e})" for e in ARITHMETIC], a, b)
    for (expression, of), y in zip(ARITHMETIC.items(), found, strict=True):
        with np.errstate(all="ignore"):
            expected = canonical(of(a, b))
        assert np.array_equal(y, expected), expression


@pytest.mark.parametrize("kind", MODULES)
def test_fma_rounds_once(kind) -> None:
    a = np.array([1 + 2**-12, 1 + 2**-23, 3, 1e-30, np.inf], np.float32)
    b = np.array([1 + 2**-12, 1 - 2**-23, 1e-45, 1e-30, 0], np.float32)
    c = np.array([-(1 + 2**-11), -1, 0, 1e-45, 1], np.float32)
    exact = np.array([2**-24, -(2.0**-46), 3e-45, 1e-45, np.nan], np.float64)
    (found,) = apply(kind, ["__float_as_uint(__fmaf_rn(a, b, c))"], a, b, c)
    exact[2] = 3 * np.float64(b[2])
    exact[3] = c[3]
    assert found.tolist() == canonical(exact.astype(np.float32)).tolist()


@pytest.mark.parametrize("kind", MODULES)
def test_min_and_max_of_nan_and_zeros(kind) -> None:
    cases = [  # a, b, min, max
        (np.nan, 1.0, 1.0, 1.0),
        (1.0, np.nan, 1.0, 1.0),
        (0.0, -0.0, -0.0, 0.0),
        (-0.0, 0.0, -0.0, 0.0),
        (-np.inf, 1e-45, -np.inf, 1e-45),
        (np.nan, np.nan, np.nan, np.nan),
        (-1e-45, 1e-45, -1e-45, 1e-45),
    ]
    a, b, least, most = np.array(cases, np.float32).T.copy()
    found = apply(kind, [f"__float_as_uint({name}(a, b))" for name in ("fminf", "fmaxf")], a, b)
    assert found[0].tolist() == canonical(least).tolist()
    assert found[1].tolist() == canonical(most).tolist()


@pytest.mark.parametrize("kind", MODULES)
def test_conversions_saturate_and_nan_is_zero(kind) -> None:
    x = np.array([2.5, -3.5, 3e9, -3e9, np.inf, -np.inf, np.nan, 1e-45, 2147483520], np.float32)
    names = ("__float2int_rn", "__float2int_rz", "__float2uint_rn")
    nearest, towards_0, unsigned = apply(kind, [f"{name}(a)" for name in names], x)
    top, low = 2**31 - 1, -(2**31)
    assert nearest.view(np.int32).tolist() == [2, -4, top, low, top, low, 0, 0, 2147483520]
    assert towards_0.view(np.int32).tolist() == [2, -3, top, low, top, low, 0, 0, 2147483520]
    assert unsigned.tolist() == [2, 0, 3_000_000_000, 0, 2**32 - 1, 0, 0, 0, 2147483520]
    i = np.array([2**24 + 1, -(2**24) - 3, 2**31 - 1], np.int32)
    (found,) = apply(kind, ["__float_as_uint(__int2float_rn(a))"], i)
    assert found.tolist() == bits(i.astype(np.float32)).tolist()


@pytest.mark.parametrize("kind", MODULES)
def test_integer_instructions(kind) -> None:
    a = np.array([0, 1, 0x80000000, 0x12345678, 0xFFFFFFFF, 0x00F0F000], np.uint32)
    b = np.array([0xAABBCCDD] * 6, np.uint32)
    cases = {
        "__popc(a)": [0, 1, 1, 13, 32, 8],
        "__clz(a)": [32, 31, 0, 3, 0, 8],
        "__ffs(a)": [0, 1, 32, 4, 1, 13],
        "__brev(a)": [0, 0x80000000, 1, 0x1E6A2C48, 0xFFFFFFFF, 0x000F0F00],
        "__byte_perm(a, b, 0x5140)": [
            *(0xCC00DD00, 0xCC00DD01, 0xCC00DD00, 0xCC56DD78, 0xCCFFDDFF, 0xCCF0DD00),
        ],
        "__funnelshift_l(a, b, 8)": [
            *(0xBBCCDD00, 0xBBCCDD00, 0xBBCCDD80, 0xBBCCDD12, 0xBBCCDDFF, 0xBBCCDD00),
        ],
        "__funnelshift_r(a, b, 8)": [
            *(0xDD000000, 0xDD000000, 0xDD800000, 0xDD123456, 0xDDFFFFFF, 0xDD00F0F0),
        ],
        "__umulhi(a, 16u)": [0, 0, 8, 1, 15, 0],
    }
    found = apply(kind, [*cases], a, b)
    assert {expression: y.tolist() for expression, y in zip(cases, found, strict=True)} == cases


L = range(32)
WARP = {
    "__shfl_xor_sync(~0u, v, 5)": [100 + (i ^ 5) for i in L],
    "__shfl_xor_sync(~0u, v, 8, 8)": [100 + (i ^ 8 if i & 8 else i) for i in L],
    "__shfl_down_sync(~0u, v, 3)": [100 + (i + 3 if i + 3 < 32 else i) for i in L],
    "__shfl_down_sync(~0u, v, 3, 8)": [100 + (i + 3 if i % 8 + 3 < 8 else i) for i in L],
    "__shfl_up_sync(~0u, v, 3, 16)": [100 + (i - 3 if i % 16 >= 3 else i) for i in L],
    "__shfl_sync(~0u, v, 5, 16)": [105 + i // 16 * 16 for i in L],
    "__shfl_sync(~0u, v, lane + 1)": [100 + (i + 1) % 32 for i in L],
    "__ballot_sync(~0u, lane % 3 == 0)": [sum(1 << i for i in L if i % 3 == 0)] * 32,
    "__any_sync(~0u, lane == 7) + 2 * __all_sync(~0u, lane < 31)": [1] * 32,
    "__reduce_add_sync(~0u, v)": [sum(100 + i for i in L)] * 32,
    "__reduce_max_sync(~0u, int(lane) - 40)": [2**32 - 9] * 32,
    "__match_any_sync(~0u, lane / 8)": [0xFF << i // 8 * 8 for i in L],
    "lane % 2 ? __shfl_xor_sync(0xaaaaaaaau, v, 2) : 0": [100 + (i ^ 2) if i % 2 else 0 for i in L],
}


@pytest.mark.parametrize("kind", MODULES)
@pytest.mark.parametrize("order", [0, 7])
def test_warp_operations(kind, order: int) -> None:
    kernels = [
        f"""__global__ void f{k}(unsigned* y) {{
            const unsigned lane = threadIdx.x, v = 100 + lane;
            y[lane] = {body};
        }}"""
        for k, body in enumerate(WARP)
    ]
    module = kind("\n".join(kernels), [f"f{k}" for k in range(len(kernels))], order)
    for name, (body, expected) in zip(module.names, WARP.items(), strict=True):
        y = np.zeros(32, np.uint32)
        module.get_function(name)((1,), (32,), (y,))
        assert y.tolist() == expected, body


@pytest.mark.parametrize("kind", MODULES)
def test_atomics(kind) -> None:
    source = """__global__ void f(unsigned* y, int* low, unsigned long long* big) {
        const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
        atomicAdd(y, i);
        atomicMax(y + 1, i);
        atomicMin(y + 2, i + 5);
        atomicOr(y + 3, 1u << i % 32);
        atomicCAS(y + 4, 9u, i);
        atomicMin(low, 3 - int(i));
        atomicMin(big, (1ull << 40) - i);
        atomicAdd(big + 1, 1ull << 33);
    }"""
    y = np.array([0, 0, 99, 0, 0], np.uint32)
    low, big = np.zeros(1, np.int32), np.array([2**63, 0], np.uint64)
    kind(source, ["f"], 8).get_function("f")((3,), (64,), (y, low, big))
    assert y.tolist() == [sum(range(192)), 191, 5, 2**32 - 1, 0]
    assert low.tolist() == [3 - 191]
    assert big.tolist() == [2**40 - 191, 192 << 33]


PTX_HALVES = """
__device__ unsigned up(unsigned short h) {
    unsigned f; asm("cvt.f32.f16 %0, %1;" : "=r"(f) : "h"(h)); return f;
}
__device__ unsigned short down(float f) {
    unsigned short h; asm("cvt.rn.f16.f32 %0, %1;" : "=h"(h) : "f"(f)); return h;
}
__device__ unsigned short brain(float f) {
    unsigned short h; asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(h) : "f"(f)); return h;
}
__global__ void widen(unsigned* y, int n) {
    for (int i = threadIdx.x; i < n; i += blockDim.x) y[i] = up(i);
}
__global__ void narrow(unsigned short* y, unsigned short* z, const float* x, int n) {
    for (int i = threadIdx.x; i < n; i += blockDim.x) y[i] = down(x[i]), z[i] = brain(x[i]);
}
__global__ void pairs(unsigned* y, const unsigned* a, const unsigned* b, int n) {
    for (int i = threadIdx.x; i < n; i += blockDim.x)
        asm("{ .reg .b32 t; abs.f16x2 t, %1; max.f16x2 %0, t, %2; }"
            : "=r"(y[i]) : "r"(a[i]), "r"(b[i]));
}
"""


def test_half_precision_in_ptx() -> None:
    module = PtxModule(PTX_HALVES, ["widen", "narrow", "pairs"])
    y = np.zeros(1 << 16, np.uint32)
    module.get_function("widen")((1,), (256,), (y, np.int32(y.size)))
    all_halves = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    assert np.array_equal(y, canonical(all_halves.astype(np.float32)))

    # Random patterns, and where halves meet: the halves themselves, and the middles between them.
    finite = all_halves[np.isfinite(all_halves)].astype(np.float32)
    middles = (np.sort(finite)[1:] + np.sort(finite)[:-1]) / 2
    x = np.concatenate([floats(), finite, middles, np.nextafter(middles, np.float32(9))])
    h, z = np.zeros(x.size, np.uint16), np.zeros(x.size, np.uint16)
    module.get_function("narrow")((1,), (256,), (h, z, x, np.int32(x.size)))
    with np.errstate(over="ignore", invalid="ignore"):
        expected = np.where(np.isnan(x), np.uint16(0x7FFF), x.astype(np.float16).view(np.uint16))
        brain = x.astype(ml_dtypes.bfloat16).view(np.uint16)
    assert np.array_equal(h, expected)
    assert np.array_equal(z, np.where(np.isnan(x), np.uint16(0x7FFF), brain))


def test_pairs_of_halves_in_ptx() -> None:
    module = PtxModule(PTX_HALVES, ["widen", "narrow", "pairs"])
    a, b = (np.random.default_rng(s).integers(0, 2**32, 4096, dtype=np.uint32) for s in (1, 2))
    y = np.zeros(a.size, np.uint32)
    module.get_function("pairs")((1,), (256,), (y, a, b, np.int32(a.size)))
    x, z = np.abs(a.view(np.float16)), b.view(np.float16)
    most = np.fmax(x, z)
    most = np.where((x == 0) & (z == 0), np.float16(0), most)  # +0, whichever comes first
    expected = np.where(np.isnan(most), np.uint16(0x7FFF), most.view(np.uint16))
    assert np.array_equal(y.view(np.uint16), expected)
