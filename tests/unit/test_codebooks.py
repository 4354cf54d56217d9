"""Codebooks of the IQ kinds: what the gguf package says, and what the extension refuses."""

from __future__ import annotations

import numpy as np
import pytest

from halfbyte.kernels import cpu
from halfbyte.kernels.codebooks import GRID_KINDS, codebook

NATIVE = pytest.mark.skipif(not cpu.available(), reason="the compiled kernels are missing")


@pytest.mark.parametrize("kind", GRID_KINDS)
def test_points_equal_those_of_gguf_py(kind: str) -> None:
    from gguf import quants

    source = getattr(quants, kind)
    source.init_grid()
    points = codebook(kind)
    assert (points.size, points.group) == source.grid_shape
    np.testing.assert_array_equal(points.values, source.grid.reshape(points.values.shape))


@pytest.mark.parametrize("kind", GRID_KINDS)
def test_points_differ_from_each_other(kind: str) -> None:
    points = codebook(kind)
    assert len(np.unique(points.digits, axis=0)) == points.size


def test_iq1_m_shares_the_points_of_iq1_s() -> None:
    assert codebook("IQ1_M") is codebook("IQ1_S")


@NATIVE
def test_the_extension_refuses_lists_that_indices_could_leave() -> None:
    native, kind = cpu.native(), cpu.KINDS.index("IQ2_XXS")
    points = codebook("IQ2_XXS")
    with pytest.raises(ValueError, match="2048 elements"):
        native.set_codebook(kind, points.digits[:255], points.levels)
    with pytest.raises(ValueError, match="no codebook"):
        native.set_codebook(cpu.KINDS.index("Q4_0"), points.digits, points.levels)
