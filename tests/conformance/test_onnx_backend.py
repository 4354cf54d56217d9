"""ONNX's own backend suite against our CPU runtime, with the suite's tolerances.

Cases that do not pass stand in `onnx_manifest.txt`. A case that fails without standing there is an
error, and so is a line there whose case passes.
"""

from __future__ import annotations

from pathlib import Path
from zlib import crc32

import pytest

import halfbyte.onnx_backend as backend
from support.onnx_suite import cases, other_runtimes_blocked, run_case

MANIFEST = Path(__file__).with_name("onnx_manifest.txt")
FLOORS = {
    "node": 1884,
    "simple": 23,
    "pytorch-converted": 82,
    "pytorch-operator": 35,
    "real": 9,
}
# Cases are spread over as many tests, so that worker processes share them.
GROUPS = {"node": 24, "simple": 1, "pytorch-converted": 1, "pytorch-operator": 1, "real": 9}
MOST_EXCEPTIONS = 20


def manifest() -> dict[str, dict[str, str]]:
    """Return by kind the cases that do not pass, with the reason."""
    found: dict[str, dict[str, str]] = {kind: {} for kind in FLOORS}
    for line in MANIFEST.read_text().splitlines():
        if line and not line.startswith("#"):
            kind, name, reason = line.split(maxsplit=2)
            found[kind][name] = reason
    return found


EXCEPTIONS = manifest()


def group_of(name: str, count: int) -> int:
    return crc32(name.encode()) % count


def group(kind: str, index: int) -> list[str]:
    if kind == "real":
        return sorted(cases(kind))[index : index + 1]
    return [name for name in cases(kind) if group_of(name, GROUPS[kind]) == index]


def outcome(kind: str, name: str) -> str:
    """Return an empty string for a case that passes, otherwise what was wrong."""
    try:
        run_case(cases(kind)[name], backend)
    except Exception as error:
        return f"{type(error).__name__}: {error}".replace("\n", " ")[:300]
    return ""


@pytest.mark.parametrize(
    ("kind", "index"), [(kind, i) for kind, count in GROUPS.items() for i in range(count)]
)
def test_cases(kind: str, index: int) -> None:
    names = group(kind, index)  # the suite's own reference makes some of the cases
    with other_runtimes_blocked():
        found = {name: outcome(kind, name) for name in names}
    known = EXCEPTIONS[kind]
    failed = {name: text for name, text in found.items() if text and name not in known}
    stale = [n for n, text in found.items() if not text and not known.get(n, "?").startswith("?")]
    assert not failed
    assert not stale


@pytest.mark.parametrize("kind", FLOORS)
def test_no_case_is_missing(kind: str) -> None:
    assert len(cases(kind)) >= FLOORS[kind]
    assert not set(EXCEPTIONS[kind]) - set(cases(kind))
    grouped = [name for index in range(GROUPS[kind]) for name in group(kind, index)]
    assert sorted(grouped) == sorted(cases(kind))


def test_exceptions_are_few_and_have_reasons() -> None:
    reasons = [reason for known in EXCEPTIONS.values() for reason in known.values()]
    assert all(len(reason) > 10 for reason in reasons)
    assert len(reasons) <= MOST_EXCEPTIONS


def test_other_runtimes_are_blocked() -> None:
    with other_runtimes_blocked():
        for name in ("onnx.reference", "onnxruntime", "torch"):
            with pytest.raises(ImportError, match="is blocked"):
                __import__(name)
