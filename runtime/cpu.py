"""The CPU: nodes bound to the compiled kernels, numpy where there is none."""

from __future__ import annotations

from halfbyte.runtime.reference import ReferenceBackend


class CpuBackend(ReferenceBackend):
    """Numpy until the kernels are bound."""

    name = "cpu"
