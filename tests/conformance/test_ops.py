"""Every case of every operator on every device, held to the reference."""

from __future__ import annotations

import numpy as np
import pytest

from halfbyte.ir.ops import OPS, op_spec
from halfbyte.runtime import BACKENDS
from support.op_cases import all_cases, arrays_of, evaluate_case, run_case
from support.op_tolerance import tolerance

CASES = all_cases()
IDS = [f"{key}-{case.name}" for key, case in CASES]


def test_every_operator_has_cases() -> None:
    assert not [key for key in OPS if not op_spec(key).cases()]


@pytest.mark.parametrize("device", sorted(BACKENDS))
@pytest.mark.parametrize(("key", "case"), CASES, ids=IDS)
def test_device_agrees_with_reference(key: str, case, device: str) -> None:
    expected = evaluate_case(key, case) if case.expected is None else case.expected
    results, _ = run_case(key, case, device, threads=2)
    assert len(results) == len(expected) == case.outputs
    bound = tolerance(key)
    for result, wanted in zip(arrays_of(results), arrays_of(list(expected)), strict=True):
        assert result.shape == wanted.shape
        assert result.dtype == wanted.dtype
        if result.dtype.kind == "O":
            assert result.tolist() == wanted.tolist()
            continue
        wide = result.astype(np.float64), wanted.astype(np.float64)
        np.testing.assert_allclose(*wide, rtol=bound.relative, atol=bound.absolute)


@pytest.mark.parametrize(("key", "case"), CASES, ids=IDS)
def test_result_does_not_depend_on_threads(key: str, case) -> None:
    one, _ = run_case(key, case, "cpu", threads=1)
    two, _ = run_case(key, case, "cpu", threads=2)
    for first, second in zip(arrays_of(one), arrays_of(two), strict=True):
        texts = first.dtype.kind == "O"
        assert first.tolist() == second.tolist() if texts else first.tobytes() == second.tobytes()
