"""Convert, quantize and verify neural-network models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from halfbyte.errors import HalfbyteError
    from halfbyte.pipeline import convert, open, quantize, verify
    from halfbyte.runtime.session import Session

__version__ = "0.1.0"
__all__ = ["HalfbyteError", "Session", "__version__", "convert", "open", "quantize", "verify"]

_LAZY = {
    "HalfbyteError": "halfbyte.errors",
    "Session": "halfbyte.runtime.session",
    "convert": "halfbyte.pipeline",
    "open": "halfbyte.pipeline",
    "quantize": "halfbyte.pipeline",
    "verify": "halfbyte.pipeline",
}


def __getattr__(name: str) -> Any:
    """Import the public names on first use, so that `import halfbyte` stays fast."""
    if name in _LAZY:
        from importlib import import_module

        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'halfbyte' has no attribute {name!r}")
