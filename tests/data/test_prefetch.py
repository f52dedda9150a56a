"""Items made in the background: the same ones, never too far ahead, and no thread is left behind."""

import ctypes
import gc
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import closing

import pytest

from smartcs.data import prefetch as prefetch_module
from smartcs.data.prefetch import Prefetcher, WorkerError


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "smartcs-prefetch"]


def wait_for(condition) -> bool:
    """Whether it comes true within ten seconds."""
    end = time.monotonic() + 10
    while not condition() and time.monotonic() < end:
        time.sleep(0.001)
    return condition()


@pytest.fixture(autouse=True)
def no_thread_is_left():
    assert threads() == []
    yield
    assert threads() == []


@pytest.mark.parametrize("ahead", [1, 2, 5])
@pytest.mark.parametrize("items", [[], [None], [3, None, StopIteration(), 1, 2, 0]])
def test_same_items_in_the_same_order(items, ahead):
    assert list(Prefetcher(items, ahead)) == items


def test_made_in_another_thread_and_no_further_ahead_than_said():
    makers = []

    def items():
        for number in range(10):
            makers.append(threading.current_thread())
            yield number

    prefetcher = Prefetcher(items(), ahead=3)
    for taken in range(10):
        most = min(10, taken + 3)
        assert wait_for(lambda most=most: len(makers) == most)
        time.sleep(0.005)
        assert len(makers) == most
        assert next(prefetcher) == taken
    with pytest.raises(StopIteration):
        next(prefetcher)
    assert threading.current_thread() not in makers and len(set(makers)) == 1


def test_an_error_comes_in_the_place_of_its_item():
    def items():
        yield from range(3)
        raise ZeroDivisionError("the fourth")

    prefetcher = Prefetcher(items(), ahead=8)
    assert [next(prefetcher) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ZeroDivisionError, match="the fourth"):
        next(prefetcher)
    assert threads() == [] and list(prefetcher) == []


def test_close_ends_the_thread_and_the_items():
    made = []

    def items():
        for number in range(1000):
            made.append(number)
            yield number

    prefetcher = Prefetcher(items())
    assert next(prefetcher) == 0
    prefetcher.close()
    assert threads() == [] and list(prefetcher) == [] and len(made) <= 3
    prefetcher.close()


def test_dropping_ends_the_thread():
    prefetcher = Prefetcher(iter(int, 1))
    assert next(prefetcher) == 0 and len(threads()) == 1
    del prefetcher
    gc.collect()
    assert threads() == []


def test_dropping_within_the_thread_itself(monkeypatch):
    holder, unraisable, go = [], [], threading.Event()
    monkeypatch.setattr(sys, "unraisablehook", unraisable.append)

    def items():
        go.wait(10)
        holder.clear()
        yield 1

    holder.append(Prefetcher(items()))
    go.set()
    assert wait_for(lambda: threads() == []) and holder == []
    assert [error.exc_value for error in unraisable] == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_fork_has_no_items():
    """Nor does it wait for them."""
    prefetcher = Prefetcher(iter(int, 1))
    assert next(prefetcher) == 0
    child = os.fork()
    if child == 0:
        signal.alarm(5)
        found = 2
        try:
            for _ in range(5):  # some were ready
                next(prefetcher)
        except RuntimeError as error:
            found = 0 if "Prefetcher: its thread is in process" in str(error) else 3
        finally:
            os._exit(found)
    assert os.waitpid(child, 0)[1] == 0
    assert next(prefetcher) == 0
    prefetcher.close()


def test_interrupt_while_waiting():
    release = threading.Event()

    def items():
        release.wait(10)
        yield 1

    prefetcher = Prefetcher(items())
    timer = threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        next(prefetcher)
    timer.join()
    release.set()
    assert next(prefetcher) == 1
    prefetcher.close()


def test_a_process_ends_although_one_is_left_open():
    script = (
        "from smartcs.data.prefetch import Prefetcher\n"
        "left = Prefetcher(iter(int, 1)); print(next(left))\n"
        "loop = (item for item in Prefetcher(iter(int, 1))); print(next(loop))\n"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert (run.returncode, run.stdout, run.stderr) == (0, "0\n0\n", "")


@pytest.mark.parametrize("ahead", [0, -1])
def test_ahead_is_checked(ahead):
    with pytest.raises(ValueError, match=f"Prefetcher: ahead is {ahead}, expected at least 1"):
        Prefetcher([], ahead)


def test_a_thread_that_is_ended_from_outside_is_an_error():
    """As by an exception that is not an error of making items; the caller is not ended with it."""
    running = threading.Event()

    def items():
        yield 1
        running.set()
        while True:
            time.sleep(0.01)

    with closing(Prefetcher(items())) as made:
        assert next(made) == 1
        running.wait(10)
        identity = next(thread.ident for thread in threading.enumerate() if thread.name == "smartcs-prefetch")
        assert ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(identity), ctypes.py_object(SystemExit)) == 1
        with pytest.raises(WorkerError, match="ended by SystemExit"):
            next(made)
        assert list(made) == []


def test_a_thread_that_has_died_in_silence_is_an_error(monkeypatch):
    """Nothing that Python does lets it; without the look the caller would wait for ever."""
    monkeypatch.setattr(prefetch_module, "_make", lambda *_: None)
    monkeypatch.setattr(prefetch_module, "_LOOK", 0.01)
    with pytest.raises(WorkerError, match="has died"):
        next(Prefetcher([1, 2]))
