"""What transforms found for a layer, in a file and back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from halfbyte.errors import FormatError
from halfbyte.quant.calibration.findings import ENDING, Findings, LayerFindings
from halfbyte.quant.transforms import Found


def drawn(*shape: int) -> np.ndarray:
    return np.random.default_rng(len(shape)).standard_normal(shape).astype(np.float32)


def test_what_was_found_comes_back(tmp_path: Path) -> None:
    first = Found({"normed": drawn(8), "ein/x": drawn(4, 8)}, {})
    limits = {"größe.weight": (drawn(6, 2), np.full((6, 2), np.inf, np.float32))}
    given = LayerFindings([first, Found({}, limits)], {"a": drawn(8), "b": drawn(4, 8)})
    findings = Findings(tmp_path)
    assert findings.of(3) is None and not findings.has(3)
    findings.keep(3, given)
    assert [path.name for path in tmp_path.iterdir()] == [f"000003{ENDING}"]
    held = findings.of(3)
    assert held is not None and findings.has(3) and findings.of(4) is None
    for found, wanted in zip(held.found, given.found, strict=True):
        assert list(found.factors) == list(wanted.factors)
        assert list(found.limits) == list(wanted.limits)
        for name, factors in wanted.factors.items():
            assert found.factors[name].dtype == np.float32
            np.testing.assert_array_equal(found.factors[name], factors)
        for name, pair in wanted.limits.items():
            np.testing.assert_array_equal(found.limits[name], pair)
    assert list(held.importance) == ["a", "b"]
    np.testing.assert_array_equal(held.importance["b"], given.importance["b"])


def test_nothing_found_is_something_known(tmp_path: Path) -> None:
    findings = Findings(tmp_path)
    findings.keep(0, LayerFindings([Found()]))
    held = findings.of(0)
    assert held is not None and list(held.found) == [Found()] and held.importance == {}


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 and no more", b"plain"])
def test_damaged_files_are_told(content: bytes, tmp_path: Path) -> None:
    (tmp_path / f"000000{ENDING}").write_bytes(content)
    with pytest.raises(FormatError, match="is damaged"):
        Findings(tmp_path).of(0)
