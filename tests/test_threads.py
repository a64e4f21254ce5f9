"""Threads: how many, many callers at once, and processes that fork."""

import hashlib
import multiprocessing
import os
import signal
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import qrs
from nasty import same_bits
from processes import run

X = np.random.default_rng(0).standard_normal((1031, 1021), np.float32)
EXPECTED = qrs.quantize(X, "int4-axis0", backend="reference")


def test_the_number_of_threads_can_be_set(keep_threads):
    for n in (1, 4, 2, np.int64(3)):
        qrs.set_num_threads(n)
        assert qrs.num_threads() == n
        assert qrs.quantize(X, "int4-axis0") == EXPECTED


def test_the_number_of_threads_starts_at_the_variable():
    code = "import qrs; print(qrs.num_threads())"
    assert run(code, QRS_NUM_THREADS="3").strip() == "3"
    assert int(run(code)) >= 1


def test_the_pool_can_change_while_it_is_used(keep_threads):
    stop = threading.Event()

    def change() -> None:
        n = 0
        while not stop.is_set():
            n = n % 4 + 1
            qrs.set_num_threads(n)

    changer = threading.Thread(target=change)
    changer.start()
    try:
        results = [qrs.quantize(X, "int4-axis0") for _ in range(30)]
    finally:
        stop.set()
        changer.join(30)
    assert not changer.is_alive()
    assert all(qt == EXPECTED for qt in results)


def test_callers_at_once(keep_threads):
    qrs.set_num_threads(3)
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda _: qrs.quantize(X, "int4-axis0"), range(40)))
    assert all(qt == EXPECTED for qt in results)


def test_other_threads_run_meanwhile(keep_threads):
    """The GIL is released inside kernels: Python itself would not switch threads here."""
    qrs.set_num_threads(1)
    inside, interrupted, calls = threading.Event(), threading.Event(), 0

    def encode() -> None:
        nonlocal calls
        while calls < 2000 and not interrupted.is_set():
            qrs.quantize(X, "int4-axis0")
            calls += 1
            inside.set()

    before = sys.getswitchinterval()
    sys.setswitchinterval(1000)
    try:
        worker = threading.Thread(target=encode)
        worker.start()
        inside.wait(60)
        interrupted.set()
        worker.join()
    finally:
        sys.setswitchinterval(before)
    assert 1 <= calls < 2000


def in_child(queue) -> None:
    qt = qrs.quantize(X, "int4-axis0")
    queue.put((qt.packed.tobytes(), qt.scale.tobytes(), qrs.num_threads()))


@pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning")
def test_a_forked_process_uses_a_pool_of_its_own(keep_threads):
    qrs.set_num_threads(2)
    assert qrs.quantize(X, "int4-axis0") == EXPECTED
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=in_child, args=(queue,))
    child.start()
    packed, scale, threads = queue.get(timeout=30)
    child.join(30)
    assert child.exitcode == 0
    assert (packed, scale) == (EXPECTED.packed.tobytes(), EXPECTED.scale.tobytes())
    assert threads == 2
    assert same_bits(qrs.quantize(X, "int4-axis0").packed, EXPECTED.packed), "parent still works"


@pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_os_fork_after_and_during_use(keep_threads):
    """Ten children, some forked while another thread is inside a kernel."""
    qrs.set_num_threads(2)
    stop = threading.Event()

    def busy() -> None:
        while not stop.is_set():
            qrs.quantize(X, "int4-axis0")

    worker = threading.Thread(target=busy)
    worker.start()
    try:
        codes = [exit_code_of_child() for _ in range(10)]
    finally:
        stop.set()
        worker.join(30)
    assert codes == [0] * 10


def exit_code_of_child(seconds: int = 20) -> int:
    child = os.fork()
    if child == 0:
        signal.alarm(seconds)  # a deadlock ends as a signal, and fails the test
        try:
            os._exit(0 if qrs.quantize(X, "int4-axis0") == EXPECTED else 1)
        except BaseException:
            os._exit(2)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_spawned_processes_give_the_same_bits():
    code = """
import hashlib, numpy as np, qrs
x = np.random.default_rng(0).standard_normal((1031, 1021), np.float32)
print(hashlib.sha256(qrs.quantize(x, "int4-axis0").packed).hexdigest())
"""
    digest = hashlib.sha256(EXPECTED.packed).hexdigest()
    for threads in ("1", "5"):
        assert run(code, QRS_NUM_THREADS=threads).strip() == digest


def test_a_thread_that_outlives_the_interpreter_does_no_harm():
    code = """
import threading, numpy as np, qrs
x = np.ones((2000, 1000), np.float32)
def forever():
    while True:
        qrs.quantize(x, "int4-g8")
threading.Thread(target=forever, daemon=True).start()
qrs.quantize(x, "int4-g8")
"""
    run(code)
