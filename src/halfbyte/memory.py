"""Peak anonymous memory of a block of work (mapped file pages do not count); collections."""

from __future__ import annotations

import contextlib
import gc
import threading
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

SAMPLE_SECONDS = 0.02
STATUS = Path("/proc/self/status")


def anonymous_bytes() -> int:
    """Return the anonymous resident memory of this process; 0 where the system does not say."""
    try:
        for line in STATUS.read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0


class PeakMemory:
    """Context manager that samples anonymous memory; `peak_bytes` is the largest seen."""

    def __init__(self) -> None:
        self.peak_bytes = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def _watch(self) -> None:
        while True:
            self.peak_bytes = max(self.peak_bytes, anonymous_bytes())
            if self._stop.wait(SAMPLE_SECONDS):
                return

    def __enter__(self) -> PeakMemory:
        """Start sampling."""
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop sampling after one last look."""
        self.peak_bytes = max(self.peak_bytes, anonymous_bytes())
        self._stop.set()
        self._thread.join()


@contextlib.contextmanager
def collections_paused() -> Iterator[None]:
    """Keep Python's collector of cycles off while many objects are made that all stay.

    It would walk them again and again, a third of the time of reading a graph of 100,000 nodes.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
