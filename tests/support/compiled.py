"""Marks for tests of the compiled kernels."""

from __future__ import annotations

import pytest

from halfbyte.kernels import cpu

needs_kernels = pytest.mark.skipif(
    not cpu.available(), reason="the compiled kernels are not installed"
)
