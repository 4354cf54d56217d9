"""Installed size of halfbyte with all it needs, and the time of `halfbyte --help`.

python bench/bench_startup.py
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement

ROUNDS = 15


def requirements(name: str, seen: dict[str, Distribution]) -> dict[str, Distribution]:
    """Return the installed distributions that `name` needs, itself included."""
    try:
        found = distribution(name)
    except PackageNotFoundError:
        return seen
    if found.metadata["Name"] in seen:
        return seen
    seen[found.metadata["Name"]] = found
    for line in found.requires or []:
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            requirements(requirement.name, seen)
    return seen


def size_bytes(found: Distribution) -> int:
    """Return the bytes of the files of a distribution."""
    paths = [Path(str(found.locate_file(file))) for file in found.files or []]
    return sum(path.stat().st_size for path in paths if path.is_file())


def track_installed_size() -> dict[str, int]:
    """Return bytes by distribution, largest first."""
    sizes = {name: size_bytes(found) for name, found in requirements("halfbyte", {}).items()}
    return dict(sorted(sizes.items(), key=lambda item: -item[1]))


def time_help() -> float:
    """Return the median seconds of `halfbyte --help`, as a whole process."""
    command = [str(Path(sys.executable).with_name("halfbyte")), "--help"]
    times = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        times.append(time.perf_counter() - started)
        assert "quantize" in out
    return statistics.median(times)


def main() -> None:
    """Print both figures."""
    sizes = track_installed_size()
    for name, size in sizes.items():
        print(f"{name:<20} {size / 1e6:8.1f} MB")
    beside = sum(size for name, size in sizes.items() if name != "numpy")
    print(f"{'all beside numpy':<20} {beside / 1e6:8.1f} MB")
    print(f"halfbyte --help      {1000 * time_help():8.0f} ms")


if __name__ == "__main__":
    main()
