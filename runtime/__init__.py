"""Run graphs: devices by name."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from halfbyte.errors import BackendError, UnsupportedError

if TYPE_CHECKING:
    from halfbyte.runtime.backend import Backend

BACKENDS: dict[str, str] = {
    "cpu": "halfbyte.runtime.cpu:CpuBackend",
    "reference": "halfbyte.runtime.reference:ReferenceBackend",
}
PLANNED = {
    "cuda": "this version has no CUDA backend; use --device cpu",
    "metal": "this version has no Metal backend; use --device cpu",
}
COMPUTE = ("exact", "int8")


def get_backend(device: str, compute: str = "exact", threads: int | None = None) -> Backend:
    """Return a backend for `device`.

    compute: `exact` keeps float32 activations, `int8` rounds them where weights are quantized.
    threads: worker threads; None takes all processors the process may use.

    Raises:
        BackendError: the device is known but cannot be used here.
        UnsupportedError: no such device or compute mode.
    """
    if device in PLANNED:
        raise BackendError(f"device {device!r} is not available", PLANNED[device])
    if device not in BACKENDS:
        raise UnsupportedError(f"device {device!r}", "--device", [*BACKENDS, *PLANNED])
    if compute not in COMPUTE:
        raise UnsupportedError(f"compute mode {compute!r}", "--compute", list(COMPUTE))
    module, attribute = BACKENDS[device].split(":")
    made: Backend = _load(module, attribute)(compute, threads)
    return made


def _load(module: str, attribute: str) -> Any:
    return getattr(import_module(module), attribute)
