"""Rows A that need other threads, other processes, another state of the CPU, or much memory."""

import platform
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import qrs
from kernel_calls import LEVELS
from processes import run

# Machine code that loads MXCSR from, or stores it to, the address in the first argument.
MXCSR = """
import ctypes, mmap

page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
page.write(bytes([0x0F, 0xAE, 0x17, 0xC3, 0x0F, 0xAE, 0x1F, 0xC3]))  # ldmxcsr, stmxcsr
start = ctypes.addressof(ctypes.c_char.from_buffer(page))
load, store = (
    ctypes.CFUNCTYPE(None, ctypes.POINTER(ctypes.c_uint32))(start + at) for at in (0, 4)
)

def mxcsr(value=None):
    cell = ctypes.c_uint32(value or 0)
    (store if value is None else load)(cell)
    return cell.value

FLUSH = 0x1F80 | 0x8040  # the default, with FTZ and DAZ set
"""
FLUSHED = """
import sys
import numpy as np, qrs
x = np.random.default_rng(0).standard_normal((300, 4099), np.float32)
x[::3] *= np.float32(2.0**-140)
x[1::3] *= np.float32(2.0**-126)
half = (x[:, :77] * 2.0**-20).astype(np.float16)

def results(backend):
    found = []
    for array, scheme in ((x, "int8-axis0"), (x, "uint4-g32-f16-ragged"), (x, "int4-full"),
                          (half, "int8-axis0"), (half, "uint8-g7-bf16")):
        qt = qrs.quantize(array, scheme, backend=backend)
        found += [a.tobytes() for _, a in qt.leaves()] + [qt.info["underflow_groups"]]
        found.append(qt.dequantize(backend=backend).tobytes())
        found.append(qt.dequantize("float16", backend=backend).tobytes())
        found.append(qrs.fake_quantize(array, scheme, backend=backend).tobytes())
    return found

expected = results("reference")
assert not mxcsr() & 0x8040
"""
on_x86 = pytest.mark.skipif(
    platform.machine() not in ("x86_64", "AMD64"), reason="MXCSR is a register of x86"
)


@on_x86
@pytest.mark.parametrize("simd", LEVELS)
def test_A09_flush_to_zero_in_the_calling_thread(simd):
    """Subnormals are kept although the caller's CPU state drops them; the state is given back."""
    check = """
qrs.set_num_threads(int(sys.argv[1]))
assert results("rust") == expected  # the pool exists before the state changes
mxcsr(FLUSH)
assert float(np.float32(1e-40) * np.float32(0.5)) == 0, "numpy flushes now"
found = results("rust")
state = mxcsr()
refused = 0
for call in (lambda: qrs.quantize(np.array([1e-40, 1]), "int8"),
             lambda: qrs.quantize(x, "int8").dequantize("float64"),
             lambda: qrs.quantize(x, "int8", backend="reference")):
    try:
        call()
    except qrs.ArgValueError as error:
        refused += "flushes subnormals" in str(error)
mxcsr(0x1F80)
assert state & ~0x3F == FLUSH, hex(state)
assert refused == 3
assert [i for i, (a, b) in enumerate(zip(found, expected)) if a != b] == []
"""
    for threads in ("1", "2"):
        run(MXCSR + FLUSHED + check, threads, QRS_SIMD=simd)


@on_x86
def test_A09_flush_to_zero_in_the_thread_that_made_the_pool():
    """Threads inherit the state of their creator: the first call here, which makes the pool."""
    check = """
qrs.set_num_threads(3)
mxcsr(FLUSH)
found = results("rust")
mxcsr(0x1F80)
assert found == expected
assert results("rust") == expected
"""
    run(MXCSR + FLUSHED + check)


# The arrays are zeros that no memory stands behind; 2-bit codes of them take half a GB.
@pytest.mark.parametrize("size", [2**31 - 1, 2**31, 2**31 + 1])
def test_A27_around_two_to_the_31_elements(size):
    x = np.zeros(size, np.float16)
    x[0], x[2**31 - 2], x[-1] = 1, -1, 3
    qt = qrs.quantize(x, "int2")
    assert qt.packed.shape == (-(-size // 4),)
    assert float(qt.scale) == 3
    assert np.flatnonzero(qt.packed).tolist() == [(size - 1) // 4]
    assert qt.packed[-1] == 1 << (size - 1) % 4 * 2  # 1 / 3 and -1 / 3 round to 0


@pytest.mark.parametrize("shape", [(65537, 32771), (3, 2**30 + 1)], ids=str)
def test_A27_rows_times_columns_beyond_two_to_the_31(shape):
    x = np.zeros(shape, np.float16)
    x[0, 0], x[-1, -1], x[-1, 0] = 1, -6, 2
    qt = qrs.quantize(x, "int2-axis0")
    assert qt.scale[[0, 1, -1]].tolist() == [1, 1, 6]
    row, byte = np.nonzero(qt.packed)
    assert list(zip(row, byte, strict=True)) == [(0, 0), (shape[0] - 1, qt.packed.shape[1] - 1)]
    assert qt.packed[0, 0] == 1
    assert qt.packed[-1, -1] == 3 << (shape[1] - 1) % 4 * 2


@pytest.mark.slow
def test_A27_more_than_two_to_the_32_bytes():
    """2^31 + 1 elements in 4 bits, decoded again: 1 GB of codes, 4 GB of values."""
    x = np.zeros(2**31 + 1, np.float16)
    x[-1], x[5] = 7, -2
    qt = qrs.quantize(x, "int4")
    assert qt.packed[[1, 2, 3, -2, -1]].tolist() == [0, 0xE0, 0, 0, 7]
    assert qt.nbytes == 2**30 + 1 + 4
    x[-2] = np.nan
    with pytest.raises(qrs.ArgValueError, match=r"first nan at \(2147483647,\)"):
        qrs.quantize(x, "int4")
    del x
    x_hat = qt.dequantize("float16")
    assert x_hat[[4, 5, -2, -1]].tolist() == [0, -2, 0, 7]


def test_A29_an_array_that_changes_meanwhile():
    """Codes in range and finite scales, or an error about what was seen; never a crash."""
    x = np.ones((512, 1024), np.float32)
    stop, values = threading.Event(), (1e30, -5, np.nan, 1e-44, np.inf, 0)

    def change() -> None:
        while not stop.is_set():
            for value in values:
                x[::7, ::3] = value

    changer = threading.Thread(target=change)
    changer.start()
    results = 0
    try:
        for _ in range(150):
            try:
                qt = qrs.quantize(x, "int4-g64")
            except qrs.ArgValueError as error:
                assert error.arg == "x"
                continue
            results += 1
            assert np.isfinite(qt.scale).all()
            assert (np.abs(qt.codes) <= 7).all()
    finally:
        stop.set()
        changer.join(30)
    x[...] = 1
    assert (qrs.quantize(x, "int4-g64").codes == 7).all()


def test_A30_an_array_that_is_resized_meanwhile():
    """numpy moves the memory of an array on request; not while a call reads it."""
    run(
        """
import threading, numpy as np, qrs
stop, resized, refused = threading.Event(), 0, 0
x = np.ones(1 << 23, np.float32)

def resize():
    global resized, refused
    while not stop.is_set():
        for size in (16, 1 << 23):
            try:
                x.resize(size, refcheck=False)
                resized += 1
            except ValueError:
                refused += 1

worker = threading.Thread(target=resize)
worker.start()
for _ in range(100):
    try:
        qrs.quantize(x, "int8")
        qrs.fake_quantize(x, "int8")
    except ValueError:
        pass
stop.set()
worker.join()
assert resized and refused, (resized, refused)
"""
    )


def test_A30_an_array_that_is_dropped_meanwhile():
    """The call holds the array; a caller that forgets it frees nothing."""

    def quantized(_: int) -> qrs.QTensor:
        return qrs.quantize(np.full((300, 1000), 3, np.float32), "int4-axis0")

    with ThreadPoolExecutor(4) as pool:
        for qt in pool.map(quantized, range(40)):
            assert (qt.codes == 7).all()


def test_A31_many_tiny_tensors():
    """10^5 tensors of one element: time grows with their number, and memory stays bounded."""
    out = run(
        """
import resource, time, numpy as np, qrs
tensors = [np.array([i % 7 - 3], np.float32) for i in range(100_000)]

kept = [qrs.quantize(x, "int8") for x in tensors[:1000]]
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
seconds = []
for start in range(0, 100_000, 10_000):
    started = time.process_time()
    kept += [qrs.quantize(x, "int8") for x in tensors[start : start + 10_000]]
    seconds.append(time.process_time() - started)
grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
assert all(qt.codes[0] == np.sign(x[0]) * 127 for qt, x in zip(kept[1000:1099], tensors))
print(min(seconds[:3]), min(seconds[-3:]), grown)
"""
    )
    first, last, grown = map(float, out.split())
    assert last < 4 * first, "of CPU time for as many, the best of three: not quadratic"
    assert grown < 500_000, "in KiB: 5 KiB for each result at most"


def test_A32_one_array_in_64_threads():
    x = np.random.default_rng(0).standard_normal((256, 1031), np.float32)
    expected = qrs.quantize(x, "int4-axis0")
    barrier = threading.Barrier(64)

    def work(_: int) -> tuple:
        barrier.wait(60)
        return (
            qrs.quantize(x, "int4-axis0"),
            expected.dequantize().tobytes(),
            qrs.fake_quantize(x, "int4-axis0").tobytes(),
        )

    with ThreadPoolExecutor(64) as pool:
        results = list(pool.map(work, range(64)))
    x_hat = expected.dequantize().tobytes()
    assert all(result == (expected, x_hat, x_hat) for result in results)
