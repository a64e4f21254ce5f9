"""Every CUDA kernel compiles for every architecture, and its machine code is as docs say it is.

No GPU is needed. `python tests/cuda_cpu/sass.py --write` rewrites what is compared with here.
"""

import dataclasses
import json
import re
from fnmatch import fnmatchcase
from importlib.resources import files
from pathlib import Path

import pytest

from cuda_cpu import sass
from cuda_cpu.ptx_floats import forbidden, opcodes
from qrs.backends import cuda, cupy, nvrtc
from qrs.errors import DeviceError

KERNELS = getattr(cupy, "KERNELS", {})
ROOT = Path(__file__).resolve().parent.parent

# A kernel as the shipped ones are, so that this file tests something while there are none.
SAMPLE = """
using u16 = unsigned short;
using i64 = long long;
struct f16 { u16 bits; };
__device__ __forceinline__ float widen(u16 bits) {
    float x;
    asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(bits));
    return x;
}
// values per thread and turn: 16 / sizeof(T) * V
template <typename T, int V>
__global__ void __launch_bounds__(256) scale(float4* y, const uint4* x, float s, i64 n) {
    const i64 step = (i64)gridDim.x * blockDim.x;
#pragma unroll 1
    for (i64 i = (i64)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += step)
#pragma unroll
        for (int k = 0; k < V; k++) {
            const uint4 v = __ldcs(x + i * V + k);
            y[2 * (i * V + k)] = make_float4(
                __fmul_rn(widen(v.x), s), __fmul_rn(widen(v.x >> 16), s),
                __fmul_rn(widen(v.y), s), __fmul_rn(widen(v.y >> 16), s));
            y[2 * (i * V + k) + 1] = make_float4(
                __fmul_rn(widen(v.z), s), __fmul_rn(widen(v.z >> 16), s),
                __fmul_rn(widen(v.w), s), __fmul_rn(widen(v.w >> 16), s));
        }
}
// values per thread and turn: 1
__global__ void narrow(float* y, const float* x, float s) {
    y[threadIdx.x] = __fdiv_rn(x[threadIdx.x], s);
}
"""


def test_every_family_has_kernels_and_no_other_has() -> None:
    shipped = {path.name for path in (ROOT / "python/qrs/backends/cuda").glob("*.cu")}
    assert {f"{family}.cu" for family in cuda.FAMILIES} == shipped
    assert set(KERNELS) == set(cuda.FAMILIES)
    assert all(KERNELS.values())
    assert {name for names in KERNELS.values() for name in names} == set(sass.stored()["kernels"])


def test_sources_are_installed() -> None:
    folder = files("qrs.backends.cuda")
    for family in cuda.FAMILIES:
        assert (folder / f"{family}.cu").is_file()
        text = cuda.source(family)
        assert text.startswith('#line 1 "common.cuh"\n')
        assert f'\n#line 1 "{family}.cu"\n' in text
        assert "#include" not in text


@pytest.mark.parametrize("arch", sass.ARCHITECTURES)
@pytest.mark.parametrize("family", cuda.FAMILIES)
def test_machine_code_is_as_stored(family: str, arch: str) -> None:
    stored = sass.stored()["kernels"]
    for name, kernel in sass.measure(family, arch).items():
        assert kernel.spills == 0, name
        assert kernel.per_value is not None, f"{name}: say its values per thread and turn"
        assert dataclasses.asdict(kernel) == stored[name][arch], name


@pytest.mark.parametrize("family", cuda.FAMILIES)
def test_floats_are_exact_in_ptx(family: str) -> None:
    ptx = nvrtc.compile_ptx(cuda.source(family), sass.names_of(family)).ptx
    assert opcodes(ptx)
    assert forbidden(ptx) == []


def test_every_kernel_keeps_the_limits() -> None:
    stored = sass.stored()
    for pattern, limits in stored["limits"].items():
        names = [name for name in stored["kernels"] if fnmatchcase(name, pattern)]
        assert names, f"no kernel is called {pattern}"
        for name in names:
            for arch, kernel in stored["kernels"][name].items():
                assert not over(limits, kernel), (name, arch)


def over(limits: dict[str, float], kernel: dict[str, float]) -> list[str]:
    """The limits that a kernel breaks: at least so many bits a load and store, at most the rest."""
    least = {"load", "store"}
    return [
        what
        for what, limit in limits.items()
        if (kernel[what] < limit if what in least else kernel[what] > limit)
    ]


def test_the_page_has_the_table() -> None:
    assert sass.PAGE.read_text(encoding="utf-8") == sass.page(sass.stored()["kernels"])


def test_versions_are_those_of_the_table() -> None:
    pins = re.findall(
        r'"nvidia-cuda-nvrtc==(\d+)\.(\d+)\.\d+"', (ROOT / "pyproject.toml").read_text()
    )
    assert [tuple(map(int, pin)) for pin in pins] == [nvrtc.version()]


# ---- What measures


@pytest.mark.parametrize("arch", sass.ARCHITECTURES)
def test_sample(arch: str) -> None:
    names = ["scale<f16, 1>", "scale<f16, 2>", "narrow"]
    one, two, narrow = sass.measure_source(SAMPLE, names, arch).values()
    assert (one.load, one.store, narrow.load, narrow.store) == (128, 128, 32, 32)
    assert one.spills == two.spills == narrow.spills == 0
    assert 8 < one.registers <= two.registers < 64
    # 8 conversions, 8 products, a load and two stores are needed for 8 values, and little else.
    assert 19 / 8 < two.per_value < one.per_value < 5
    assert narrow.per_value > 10


def test_sample_against_a_count_by_hand() -> None:
    listing = """
        Function : f
        /*0000*/                   S2R R0, SR_TID.X ;
        /*0010*/                   LDG.E R1, [R2.64] ;
        /*0020*/                   LDG.E.128.CONSTANT R4, [R2.64] ;
        /*0030*/                   FADD R1, R1, R4 ;
        /*0040*/              @!P0 BRA 0x60 ;
        /*0050*/                   CALL.REL.NOINC 0x0c0 ;
        /*0060*/              @P1  BRA 0x20 ;
        /*0070*/                   STG.E.64 [R2.64], R4 ;
        /*0080*/                   EXIT ;
        /*0090*/                   FADD R1, R1, R4 ;
        /*00a0*/                   BRA 0x10 ;
        /*00b0*/                   BRA 0xb0;
        /*00c0*/                   LDG.E.128 R4, [R2.64] ;
        /*00d0*/                   RET.REL.NODEC R2 0x0 ;
    """
    code = [
        sass.Instruction(int(address, 16), *rest)
        for address, *rest in sass.INSTRUCTION.findall(listing)
    ]
    assert len(code) == 14
    assert sass.widest(code, "LDG") == 128
    assert sass.widest(code, "STG") == 64
    assert sass.hot_instructions(code) == 5  # 0x20 to 0x60
    assert sass.hot_instructions([*code[:2], *code[8:9]]) == 3  # without a loop, all
    assert 0xA0 not in sass.reachable(code, 0x10)


@pytest.mark.parametrize(
    ("name", "values"),
    [("scale<f16, 1>", 8), ("scale<f32, 3>", 12), ("narrow", 1), ("other", None)],
)
def test_values_per_turn(name: str, values: int | None) -> None:
    assert sass.values_per_turn(SAMPLE, name) == values


def test_spills_are_seen() -> None:
    source = """__global__ void f(float* y, int n) {
        float kept[64];
        for (int i = 0; i < 64; i++) kept[i] = y[i];
        for (int i = 0; i < n; i++) kept[(i * n) % 64] += kept[i];
        for (int i = 0; i < 64; i++) y[i] = kept[i];
    }"""
    assert sass.measure_source(source, ["f"], "sm_90")["f"].spills > 0


def test_limits() -> None:
    kernel = {"registers": 40, "load": 64, "per_value": 14.0}
    assert over({"registers": 40, "load": 64, "per_value": 14}, kernel) == []
    assert over({"registers": 32, "load": 128, "per_value": 13}, kernel) == [
        "registers",
        "load",
        "per_value",
    ]


@pytest.mark.parametrize("option", ["-ftz=true", "-prec-div=false", "-prec-sqrt=false"])
def test_the_whitelist_stops(option: str, monkeypatch: pytest.MonkeyPatch) -> None:
    source = """__global__ void f(float* y, float a, float b) {
        y[0] = a / b + a * b;
        y[1] = sqrtf(a);
    }"""
    assert forbidden(nvrtc.compile_ptx(source, ["f"]).ptx) == []
    monkeypatch.setattr(nvrtc, "OPTIONS", (*nvrtc.OPTIONS, option))
    assert forbidden(nvrtc.compile_ptx(source, ["f"]).ptx) != []


@pytest.mark.parametrize("call", ["__sinf(a)", "rsqrtf(a)", "__expf(a)", "atomicAdd(y, a)"])
def test_the_whitelist_stops_functions(call: str) -> None:
    ptx = nvrtc.compile_ptx(f"__global__ void f(float* y, float a) {{ y[1] = {call}; }}", ["f"]).ptx
    assert forbidden(ptx) != []


def test_ptx_has_no_machine_code_and_a_cubin_has() -> None:
    ptx = nvrtc.compile_ptx(SAMPLE, ["narrow"])
    cubin = nvrtc.compile_cubin(SAMPLE, ["narrow"], "sm_80")
    assert ptx.cubin == b""
    assert ".target sm_80" in ptx.ptx
    assert cubin.cubin[:4] == b"\x7fELF"
    assert ptx.lowered == cubin.lowered == {"narrow": "_Z6narrowPfPKff"}


def test_errors_carry_the_log() -> None:
    with pytest.raises(DeviceError, match=r'family\.cu\(3\): error: .*"missing" is undefined'):
        nvrtc.compile_cubin('#line 3 "family.cu"\n__global__ void f() { missing(); }', [], "sm_80")
    with pytest.raises(DeviceError, match="error"):
        nvrtc.compile_cubin(SAMPLE, ["no_such_kernel<3>"], "sm_80")


def test_stored_file_is_as_it_is_written() -> None:
    text = sass.STORED.read_text(encoding="utf-8")
    assert list(json.loads(text)) == ["limits", "kernels"]
    assert text == sass.as_text(json.loads(text))
