"""Peak anonymous memory."""

from __future__ import annotations

import gc
import subprocess
import sys

import pytest

from halfbyte import memory
from halfbyte.memory import PeakMemory, anonymous_bytes, collections_paused

linux = pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")


ALLOCATED_AND_GIVEN_BACK = """
before = anonymous_bytes()
with PeakMemory() as peak:
    held = np.ones(400_000_000, np.uint8)
    until = time.monotonic() + 60
    while peak.peak_bytes < before + 300_000_000 and time.monotonic() < until:
        time.sleep(0.01)
    del held
    after = anonymous_bytes()
print(before, peak.peak_bytes, after)
"""

FILE_READ_THROUGH_A_MAP = """
np.full(400_000_000, 1, np.uint8).tofile(sys.argv[1])
before = anonymous_bytes()
with PeakMemory() as peak:
    mapped = np.memmap(sys.argv[1], np.uint8, "r")
    pages = int(mapped[::4096].sum())
print(before, peak.peak_bytes, pages)
"""


def in_a_new_process(code, *arguments):
    """Run `code` where no other test's memory comes or goes; return the numbers it prints."""
    imports = (
        "import sys, time\n"
        "import numpy as np\n"
        "from halfbyte.memory import PeakMemory, anonymous_bytes\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", imports + code, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return [int(word) for word in done.stdout.split()]


@linux
def test_the_peak_is_seen_after_the_memory_is_gone():
    before, peak, after = in_a_new_process(ALLOCATED_AND_GIVEN_BACK)
    assert peak >= before + 300_000_000
    assert after < before + 200_000_000


@linux
def test_mapped_files_do_not_count(tmp_path):
    before, peak, pages = in_a_new_process(FILE_READ_THROUGH_A_MAP, tmp_path / "x.bin")
    assert pages == -(-400_000_000 // 4096)
    assert peak < before + 200_000_000


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
