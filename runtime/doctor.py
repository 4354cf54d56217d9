"""What this installation can do."""

from __future__ import annotations

import platform
from collections.abc import Callable
from importlib import import_module, metadata
from typing import Any

from halfbyte.engine import available_threads

PACKAGES = (
    *("numpy", "ml_dtypes", "onnx", "gguf", "safetensors", "tokenizers", "huggingface-hub"),
    *("click", "rich", "jinja2", "cupy", "triton", "mlx"),
)
NO_KERNELS = (
    "compiled kernels missing: numpy reference in use, which is slow; "
    "install a C++17 compiler and reinstall halfbyte"
)
Found = tuple[bool, str, list[str]]


def _cpu() -> Found:
    return (
        True,
        "",
        [f"{platform.processor() or platform.machine()}, {available_threads()} threads"],
    )


def _cuda() -> Found:
    runtime: Any = import_module("cupy.cuda").runtime
    count = int(runtime.getDeviceCount())
    names = [runtime.getDeviceProperties(i)["name"].decode() for i in range(count)]
    return False, "this version has no CUDA backend", names


def _metal() -> Found:
    core: Any = import_module("mlx.core")
    if not core.metal.is_available():
        return False, "MLX finds no Metal device", []
    return False, "this version has no Metal backend", [str(core.default_device())]


PROBES: dict[str, Callable[[], Found]] = {"cpu": _cpu, "cuda": _cuda, "metal": _metal}
PACKAGE_OF = {"cuda": "cupy", "metal": "mlx"}


def probe(name: str) -> dict[str, Any]:
    """Return name, available, reason and devices of one backend; never fails."""
    try:
        available, reason, devices = PROBES[name]()
    except ImportError:
        available, reason, devices = False, f"{PACKAGE_OF[name]} is not installed", []
    except Exception as error:
        # Drivers raise their own classes, RuntimeError among them; doctor reports all.
        available, reason, devices = False, str(error) or type(error).__name__, []
    return {"name": name, "available": available, "reason": reason, "devices": devices}


def kernel_features() -> list[str]:
    """Return the instruction set and claims of the compiled kernels, or the warning."""
    try:
        kernels: Any = import_module("halfbyte.kernels.cpu")
        if not kernels.available():
            return [NO_KERNELS]
        claims = {name: sorted(kinds) for name, kinds in kernels.CLAIMS.items()}
    except ImportError:
        return [NO_KERNELS]
    lines = [f"cpu kernels: {kernels.isa()}"]
    return lines + [f"cpu {name}: {', '.join(kinds)}" for name, kinds in sorted(claims.items())]


def versions() -> dict[str, str]:
    """Return versions of Python, halfbyte and the packages that it uses, where installed."""
    from halfbyte import __version__

    found = {"halfbyte": __version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def diagnose() -> dict[str, Any]:
    """Return `backends`, `features` and `versions` of this installation."""
    return {
        "backends": [probe(name) for name in PROBES],
        "features": kernel_features(),
        "versions": versions(),
    }
