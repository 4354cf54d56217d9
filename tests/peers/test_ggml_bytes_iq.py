"""Grid types: every byte equal to llama.cpp's own quantizer, with importances and without."""

from __future__ import annotations

import numpy as np
import pytest

from halfbyte.kernels import cpu
from halfbyte.kernels.layouts import LAYOUTS
from support import ggml_library
from support.grid_cases import GRID_KINDS, importances
from support.kernel_cases import needs_extension
from support.weight_rows import stress_rows

pytestmark = needs_extension
COLUMNS = 512


def assert_equal_bytes(kind: str, rows: np.ndarray, importance: np.ndarray | None) -> None:
    row_bytes = COLUMNS // 256 * LAYOUTS[kind].bytes
    expected = ggml_library.quantize(kind, rows, row_bytes, importance)
    found = cpu.encode(kind, rows, importance, compat=True)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("kind", GRID_KINDS)
def test_stress_rows(kind: str) -> None:
    for _, importance in importances(kind, COLUMNS):
        rows = np.concatenate([rows for _, rows in stress_rows(COLUMNS, 1)])
        assert_equal_bytes(kind, rows, importance)


@pytest.mark.parametrize("kind", GRID_KINDS)
def test_groups_of_zeros_and_equal_values(kind: str) -> None:
    rng = np.random.default_rng(3)
    rows = rng.standard_normal((4, COLUMNS)).astype(np.float32)
    rows[:, 32:64] = 0
    rows[1, :16] = rows[1, 0]
    rows[2, 256:] = np.round(rows[2, 256:])
    rows[3, 224:256] = 0
    for _, importance in importances(kind, COLUMNS):
        assert_equal_bytes(kind, rows, importance)
