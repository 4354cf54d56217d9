"""Ordered work in threads."""

from __future__ import annotations

import os
import threading
import time

import pytest

from halfbyte.engine import available_threads, ordered_map


@pytest.mark.parametrize("threads", [0, 1, 2, 5])
def test_results_keep_the_order(threads):
    def slow_first(number: int) -> int:
        time.sleep(0.02 if number == 0 else 0)
        return number * number

    assert list(ordered_map(slow_first, range(20), threads)) == [n * n for n in range(20)]
    assert list(ordered_map(slow_first, [], threads)) == []


def test_few_results_are_alive_at_once():
    threads, started, taken = 2, 0, 0
    lock = threading.Lock()

    def work(number: int) -> int:
        nonlocal started
        with lock:
            started += 1
            assert started - taken <= threads + 1
        return number

    for _ in ordered_map(work, range(30), threads):
        with lock:
            taken += 1
    assert started == 30


@pytest.mark.parametrize("threads", [1, 3])
def test_an_error_reaches_the_caller(threads):
    done = []

    def work(number: int) -> int:
        if number == 3:
            raise ValueError("three")
        done.append(number)
        return number

    with pytest.raises(ValueError, match="three"):
        list(ordered_map(work, range(1000), threads))
    assert len(done) < 20


def test_a_caller_may_stop_early():
    stream = ordered_map(lambda n: n, range(10**9), 3)
    assert [next(stream) for _ in range(4)] == [0, 1, 2, 3]
    stream.close()


def test_available_threads(monkeypatch):
    assert 1 <= available_threads() <= (os.cpu_count() or 1)
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    assert available_threads() == os.cpu_count()
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert available_threads() == 1
