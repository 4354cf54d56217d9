"""Which encodings the compiled CPU kernels take over; numpy is the reference for all of them."""

from __future__ import annotations

import importlib
from typing import Any


def cpu_kernel(function: str, kind: str) -> Any:
    """Return `halfbyte.kernels.cpu.<function>` if the extension is there and claims `kind`."""
    try:
        cpu = importlib.import_module("halfbyte.kernels.cpu")
    except ImportError:
        return None
    if not cpu.available() or kind not in cpu.CLAIMS.get(function, frozenset()):
        return None
    return getattr(cpu, function)
