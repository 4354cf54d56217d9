"""Peak anonymous memory."""

from __future__ import annotations

import gc
import sys
import time

import numpy as np
import pytest

from halfbyte import memory
from halfbyte.memory import PeakMemory, anonymous_bytes, collections_paused

linux = pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")


@linux
def test_the_peak_is_seen_after_the_memory_is_gone():
    with PeakMemory() as peak:
        held = np.ones(60_000_000, np.uint8)
        full = anonymous_bytes() - 10_000_000  # others may give memory back meanwhile
        for _ in range(500):
            if peak.peak_bytes >= full:
                break
            time.sleep(0.01)
        del held
        assert anonymous_bytes() < full
    assert peak.peak_bytes >= full


@linux
def test_mapped_files_do_not_count(tmp_path):
    path = tmp_path / "x.bin"
    path.write_bytes(bytes(60_000_000))
    before = anonymous_bytes()
    with PeakMemory() as peak:
        mapped = np.memmap(path, np.uint8, "r")
        assert mapped[::4096].sum() == 0
    assert peak.peak_bytes < before + 30_000_000


def test_an_error_passes_through_and_the_sampler_ends():
    peak = PeakMemory()
    with pytest.raises(ValueError, match="x"), peak:
        raise ValueError("x")
    assert not peak._thread.is_alive()


def test_systems_that_do_not_say(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "STATUS", tmp_path / "none")
    assert anonymous_bytes() == 0
    (tmp_path / "none").write_text("VmRSS: 5 kB\n")
    assert anonymous_bytes() == 0
    (tmp_path / "none").write_text("VmRSS: 5 kB\nRssAnon:\t 12 kB\n")
    assert anonymous_bytes() == 12288


def test_collections_pause_and_go_on() -> None:
    assert gc.isenabled()
    with pytest.raises(ZeroDivisionError), collections_paused():
        assert not gc.isenabled()
        raise ZeroDivisionError
    assert gc.isenabled()
    with collections_paused(), collections_paused():
        pass
    assert gc.isenabled()
    gc.disable()
    try:
        with collections_paused():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
