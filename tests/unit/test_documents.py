"""What the documents name exists: paths, commands, flags."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path

import pytest

from halfbyte.cli import COMMANDS
from halfbyte.cli.options import SECTION

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = (
    *("README.md", "CONTRIBUTING.md", "CHANGELOG.md"),
    *("docs/architecture.md", "docs/convert.md", "docs/quantize.md", "docs/calibration.md"),
    *("docs/checkpoints.md", "docs/best.md"),
)
PLACEHOLDER = re.compile(r"NAME|MODEL_TYPE|\*")
FOLDERS = {path.name for path in ROOT.iterdir() if path.is_dir()}


def quoted(document: str) -> list[str]:
    return re.findall(r"`([^`\n]+)`", (ROOT / document).read_text(encoding="utf-8"))


@pytest.mark.parametrize("document", DOCUMENTS)
def test_paths_exist(document: str) -> None:
    paths = [text for text in quoted(document) if re.fullmatch(r"\.?[\w.]+/[\w./-]*", text)]
    ours = [path for path in paths if path.split("/")[0] in FOLDERS]
    missing = [path for path in ours if not PLACEHOLDER.search(path) and not (ROOT / path).exists()]
    assert missing == []


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document: str) -> None:
    text = (ROOT / document).read_text(encoding="utf-8")
    targets = re.findall(r"\]\(([^)#:]+)\)", text)
    folder = (ROOT / document).parent
    assert [target for target in targets if not (folder / target).exists()] == []


def test_options_of_calibration_are_the_commands() -> None:
    params = import_module(COMMANDS["quantize"][0]).command.params
    known = {o for p in params for o in (*p.opts, *p.secondary_opts)}
    headed = ("Calibration data", "Calibrated methods")
    ours = [p for p in params if getattr(p, SECTION, "") in headed]
    text = (ROOT / "docs/calibration.md").read_text(encoding="utf-8")
    named = set(re.findall(r"--[a-z][a-z-]+", text))
    assert named <= known | {"--json"}
    missing = [p.name for p in ours if not named & {*p.opts, *p.secondary_opts}]
    assert missing == [] and len(ours) > 15


def test_commands_and_flags_of_the_readme_exist() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    lines = [line.split("#")[0] for line in re.findall(r"^halfbyte (.+)$", text, re.MULTILINE)]
    assert len(lines) > 5
    every: set[str] = set()
    for name, (module, _) in COMMANDS.items():
        known = {o for p in import_module(module).command.params for o in p.opts}
        every |= known
        for line in lines:
            if line.split()[0] == name:
                assert set(re.findall(r"--[\w-]+", line)) <= known, line
    assert {line.split()[0] for line in lines} <= COMMANDS.keys()
    assert {t for q in quoted("README.md") for t in re.findall(r"^--[\w-]+", q)} <= every
