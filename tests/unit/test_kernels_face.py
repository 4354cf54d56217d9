"""The face of the kernels: claims, layouts, the missing extension, forced instruction sets."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

from halfbyte.errors import BackendError
from halfbyte.kernels import cpu
from halfbyte.kernels.layouts import LAYOUTS, cpp_header
from support.kernel_cases import needs_extension


@pytest.fixture
def without_extension(monkeypatch):
    monkeypatch.setitem(sys.modules, "halfbyte.kernels._cpu", None)
    monkeypatch.delattr("halfbyte.kernels._cpu", raising=False)
    cpu._native.cache_clear()
    yield
    monkeypatch.undo()
    cpu._native.cache_clear()


def test_without_the_extension_everything_says_so(without_extension) -> None:
    assert cpu.available() is False
    x = np.zeros((1, 32), np.float32)
    for call in (
        cpu.isa,
        cpu.threads,
        lambda: cpu.set_threads(2),
        lambda: cpu.encode("Q4_0", x),
        lambda: cpu.decode("float32", x, 32),
        lambda: cpu.rms_norm(x, x[0]),
        lambda: cpu.softmax(x),
    ):
        with pytest.raises(BackendError) as caught:
            call()
        assert "compiled CPU kernels are missing" in str(caught.value)
        assert "install a C++17 compiler and reinstall halfbyte" in str(caught.value)


def test_layouts_agree_with_gguf_py() -> None:
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    known = {kind.value for kind in GGMLQuantizationType}
    unknown = [n for n, la in LAYOUTS.items() if la.ggml_id not in known and la.ggml_id is not None]
    assert set(unknown) <= {"Q1_0", "Q2_0"}  # newer than some releases of gguf-py
    for layout in LAYOUTS.values():
        if layout.ggml_id in known:
            kind = GGMLQuantizationType(layout.ggml_id)
            assert (layout.values, layout.bytes) == GGML_QUANT_SIZES[kind]
    assert LAYOUTS["Q5_1"].bits_per_weight == 6


def test_the_header_holds_every_fact() -> None:
    header = cpp_header()
    for layout in LAYOUTS.values():
        assert f"struct Layout_{layout.name} {{" in header
    assert "    static constexpr int kOffset_qh = 4;" in header


def test_claims_name_functions_and_known_kinds() -> None:
    for function, kinds in cpu.CLAIMS.items():
        assert callable(getattr(cpu, function.removesuffix("_int8")))
        assert kinds <= set(cpu.KINDS)


def run_with_isa(level: str) -> subprocess.CompletedProcess[str]:
    code = "from halfbyte.kernels import cpu; print(cpu.isa())"
    environment = {**os.environ, "HALFBYTE_ISA": level}
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60
    )


@needs_extension
def test_forced_instruction_sets() -> None:
    assert run_with_isa("scalar").stdout.strip() == "scalar"
    assert run_with_isa("").stdout.strip() in ("scalar", "avx2", "avx512", "neon")
    refused = run_with_isa("mmx")
    assert refused.returncode == 1
    assert "ValueError: HALFBYTE_ISA: mmx is not available, required scalar" in refused.stderr


@needs_extension
def test_the_roofline_is_plausible() -> None:
    assert 1e7 < cpu.fma_peak(1 << 12) < 1e13
