"""Build llama.cpp's tools from the sdist of llama-cpp-python, to measure against.

The sdist comes from the package registry; sources and build lie in the user's cache. A folder
named in HALFBYTE_LLAMA_CPP that already holds the tools in `bin` is used as it is. The instruction
sets are spelled out because the native build crashes on processors with AMX.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import tarfile
from pathlib import Path

VERSION = "0.3.36"
TOOLS = ("llama-bench", "llama-perplexity", "llama-quantize", "llama-imatrix", "llama-gguf-split")
X86_FLAGS = ("AVX2", "FMA", "F16C", "BMI2", "AVX512", "AVX512_VBMI", "AVX512_VNNI", "AVX512_BF16")


def _root() -> Path:
    named = os.environ.get("HALFBYTE_LLAMA_CPP")
    if named:
        return Path(named)
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "halfbyte" / f"llama-cpp-{VERSION}"


def _supported(flag: str) -> bool:
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists():
        return False
    known = cpuinfo.read_text().split()
    return flag.lower() in known or (flag == "AVX512" and "avx512f" in known)


def source_folder() -> Path:
    """Return the folder of llama.cpp's sources, fetching them on first use."""
    root = _root()
    found = sorted(root.glob("llama_cpp_python-*/vendor/llama.cpp"))
    if not found:
        root.mkdir(parents=True, exist_ok=True)
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "-q",
            "--no-deps",
            "--no-binary",
            ":all:",
        ]
        subprocess.run([*command, f"llama-cpp-python=={VERSION}", "-d", str(root)], check=True)
        with tarfile.open(next(root.glob("llama_cpp_python-*.tar.gz"))) as archive:
            archive.extractall(root, filter="data")
        found = sorted(root.glob("llama_cpp_python-*/vendor/llama.cpp"))
    return found[0]


def _is_built(build: Path) -> bool:
    return all((build / "bin" / tool).exists() for tool in TOOLS)


def tools_folder() -> Path:
    """Return the folder of the built tools, building them on first use (minutes)."""
    build = _root()
    if _is_built(build):
        return build / "bin"
    build = build / "build"
    if not _is_built(build):
        flags = ["-DGGML_NATIVE=OFF", "-DCMAKE_BUILD_TYPE=Release", "-DLLAMA_CURL=OFF"]
        if platform.machine() in ("x86_64", "AMD64"):
            flags += [f"-DGGML_{name}=ON" for name in X86_FLAGS if _supported(name)]
        subprocess.run(["cmake", "-S", str(source_folder()), "-B", str(build), *flags], check=True)
        jobs = str(os.cpu_count() or 2)
        subprocess.run(["cmake", "--build", str(build), "-j", jobs, "--target", *TOOLS], check=True)
    return build / "bin"


if __name__ == "__main__":
    print(tools_folder())
