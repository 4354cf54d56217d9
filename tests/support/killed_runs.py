"""Quantizes a model over and over in processes that are killed, and tells what was left.

    python -m support.killed_runs SOURCE TEXT FOLDER SETTINGS POINT...

SETTINGS: more arguments of `halfbyte.quantize`, as JSON, and `name`, that of the output. A point is
`WHAT:NUMBER`: the process ends itself with SIGKILL at the NUMBERth call of WHAT. For each one, the
output in FOLDER/N is then finished by a second process. Prints a JSON list of what was found after
each first process. Processes are forked before any thread has started; what the first
one imports, this one imports for the others.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np

import halfbyte
from halfbyte.quant import spool
from halfbyte.quant.transforms import awq, smoothquant

SETTINGS = {"type": "Q4_0", "method": "gptq", "calib_samples": 6, "calib_length": 32, "threads": 1}
# Functions by what a point calls them; of all others, those of `os`.
OWNERS: dict[str, tuple[Any, str]] = {
    "add": (spool.SpoolWriter, "add"),
    "finish": (spool.SpoolWriter, "finish"),
    "search": (awq, "best_divisors"),
    "smoothing": (smoothquant, "smoothing"),
}


def _count_down(owner: Any, name: str, number: int) -> None:
    """Let the numberth call of a function be the last thing this process does, half done."""
    plain, calls = getattr(owner, name), [0]

    def counted(*arguments: Any, **named: Any) -> Any:
        calls[0] += 1
        if calls[0] == number:
            if name == "add":
                # Half of the rows are in the file.
                parts = {key: np.asarray(part)[:1] for key, part in arguments[1].items()}
                plain(arguments[0], parts)
            os.kill(os.getpid(), signal.SIGKILL)
        return plain(*arguments, **named)

    setattr(owner, name, counted)


def _run(source: str, text: str, output: Path, settings: dict[str, Any], point: str) -> int:
    """Quantize in a process of its own; return the signal that ended it, 0 for a good end."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            what, _, number = point.partition(":")
            if what:
                _count_down(*OWNERS.get(what, (os, what)), int(number))
            report = halfbyte.quantize(source, output, **{"calib": text, **SETTINGS, **settings})
            told = [line for line in report.warnings if "journal" in line]
            output.with_suffix(".told").write_text("\n".join(told))
            if not point:
                output.with_suffix(".modules").write_text("\n".join(sys.modules))
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else -os.WEXITSTATUS(status)


def main(source: str, text: str, folder: str, given: str, points: list[str]) -> None:
    """Do all of it."""
    found = []
    settings = json.loads(given)
    name = settings.pop("name", "out.gguf")
    for number, point in enumerate(["", *points]):
        output = Path(folder) / f"{number}" / name
        output.parent.mkdir()
        ended = _run(source, text, output, settings, point)
        left = sorted(path.name for path in output.parent.iterdir())
        again = _run(source, text, output, settings, "") if ended else 0
        modules = output.with_suffix(".modules")
        for module in modules.read_text().split("\n"):
            with contextlib.suppress(Exception):
                importlib.import_module(module)
        modules.unlink()
        found.append({"point": point, "ended": ended, "left": left, "again": again})
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:5], sys.argv[5:])
