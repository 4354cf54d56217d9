"""The folder beside an output in which a calibrated quantization keeps what it has finished.

    DST.halfbyte-journal/
        job.json      hashes of everything that the result depends on
        weights/      finished weights, see `quant/spool.py`; what transforms found for layers
        work/         activations; of no use to a later run
        lock          held by the run that uses the folder

A run that was stopped, however, leaves the folder; the next one of the same job goes on from there.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from halfbyte.errors import HalfbyteError
from halfbyte.files import atomic_file, sha256
from halfbyte.ir.model import Model
from halfbyte.ir.tensor import FilePart

if TYPE_CHECKING:
    from halfbyte.quant.plan import Plan

ENDING = ".halfbyte-journal"
KIND = "halfbyte journal"
JOB, WEIGHTS, WORK, LOCK = "job.json", "weights", "work", "lock"
_PARTIAL = re.compile(r"\..+\.[0-9a-f]{8}\.partial")


class Journal:
    """A journal that is in use."""

    def __init__(self, folder: Path, lasting: bool = True) -> None:
        """Use a folder that is there; lasting: a later run may find it."""
        self.folder = folder
        self.lasting = lasting
        self.notices: list[str] = []

    @property
    def work(self) -> Path:
        """Return where files go that no later run needs."""
        return self.folder / WORK

    def weights(self, job: Mapping[str, str]) -> Path:
        """Return the folder of finished weights; those of another job are removed first.

        job: a hash for each thing that the result depends on.
        """
        from halfbyte.quant.calibration.findings import ENDING as LAYER

        held, folder = self._job(), self.folder / WEIGHTS
        if held != dict(job):
            if held is not None:
                others = [name for name in job if held.get(name) != job[name]]
                told = f"{self.folder.name}: began with another {', '.join(others)}; it starts anew"
                self.notices.append(told)
            (self.folder / JOB).unlink(missing_ok=True)
            shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(exist_ok=True)
        for leftover in folder.glob(".*.partial"):
            leftover.unlink()
        if held != dict(job):
            with atomic_file(self.folder / JOB) as stream:
                stream.write(json.dumps({"kind": KIND, "job": dict(job)}).encode())
        else:
            count = sum(1 for _ in folder.glob("*.json"))
            told = f"{self.folder.name}: an earlier run was stopped; {count} weights are taken over"
            layers = sum(1 for _ in folder.glob(f"*{LAYER}"))
            told += f", and what was found for {layers} layers" if layers else ""
            self.notices.append(told)
        return folder

    def _job(self) -> dict[str, str] | None:
        """Return the job that the folder is for, None where it has none yet."""
        path = self.folder / JOB
        if not path.is_file():
            return None
        try:
            document = json.loads(path.read_bytes())
            if document["kind"] == KIND:
                return dict(document["job"])
        except (ValueError, TypeError, KeyError):
            pass
        raise _strange(self.folder)


def _strange(folder: Path) -> HalfbyteError:
    return HalfbyteError(
        f"{folder}: is no journal of halfbyte, but has the name of one; move it away or give "
        "--no-journal"
    )


@contextlib.contextmanager
def open_journal(output: Path) -> Iterator[Journal]:
    """Yield the journal of an output; it is removed at the end, unless the run is stopped.

    An error of the kind that comes again removes it too; an interrupt or a full disk does not.

    Raises:
        HalfbyteError: another process uses it, or the folder is something else.
    """
    folder = output.with_name(output.name + ENDING)
    if folder.exists() and not folder.is_dir():
        raise _strange(folder)
    with contextlib.ExitStack() as stack:
        folder.mkdir(exist_ok=True)
        known = {JOB, WEIGHTS, WORK, LOCK}
        if any(e.name not in known and not _PARTIAL.fullmatch(e.name) for e in folder.iterdir()):
            raise _strange(folder)
        stream = stack.enter_context((folder / LOCK).open("wb"))
        _lock(stream, folder)
        _clean(folder, output)
        try:
            yield Journal(folder)
        except HalfbyteError:
            _remove(folder)
            raise
        _remove(folder)


def _lock(stream: IO[bytes], folder: Path) -> None:
    """Hold the lock until the file is closed or the process ends; not on systems without it."""
    try:
        import fcntl
    except ImportError:
        return
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise HalfbyteError(f"{folder}: another process writes this output; wait for it") from None


def _clean(folder: Path, output: Path) -> None:
    """Remove what a killed run left: activations, and unfinished files of the same output."""
    shutil.rmtree(folder / WORK, ignore_errors=True)
    (folder / WORK).mkdir()
    for leftover in folder.glob(".*.partial"):
        leftover.unlink()
    if not (folder / JOB).is_file():
        return
    for leftover in output.parent.glob(".*.partial"):
        named = leftover.name.rsplit(".", 2)[0].removeprefix(".")
        part = re.fullmatch(re.escape(output.stem) + r"-\d{5}-of-\d{5}\.\w+", named)
        ours = part or named in (output.name, f"{output.name}.data")
        if ours and _PARTIAL.fullmatch(leftover.name):
            if leftover.is_dir():
                shutil.rmtree(leftover, ignore_errors=True)
            else:
                leftover.unlink(missing_ok=True)


def _remove(folder: Path) -> None:
    """Remove a journal; without its job first, so that a rest is none."""
    (folder / JOB).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def identity(model: Model, adapters: Sequence[tuple[str, float]] = ()) -> str:
    """Return a hash of a model: settings, names and shapes, first rows, and the files read.

    Files count by name, size and time of change; adapters: folders or files, and their factors.
    """
    from halfbyte.quant.calibration.saved import fingerprint

    digest = hashlib.sha256(fingerprint(model).encode())
    digest.update(json.dumps(model.config, sort_keys=True, default=str).encode())
    parts = [part for tensor in model.weights.values() for part in tensor.parts.values()]
    files = sorted({part.path for part in parts if isinstance(part, FilePart)})
    for given, factor in adapters:
        digest.update(f"{factor}".encode())
        files += sorted(Path(given).iterdir()) if Path(given).is_dir() else [Path(given)]
    for path in files:
        state = path.stat()
        digest.update(f"{path.name} {state.st_size} {state.st_mtime_ns}".encode())
    return digest.hexdigest()


def code_identity() -> str:
    """Return a hash of the code that decides what weights become."""
    import numpy as np

    import halfbyte
    from halfbyte.kernels import cpu

    digest = hashlib.sha256(f"{halfbyte.__version__} {np.__version__}".encode())
    for part in ("quant", "kernels", "ir", "runtime"):
        package = __import__(f"halfbyte.{part}", fromlist=[part])
        root = Path(package.__path__[0])
        for path in sorted(root.rglob("*.py")):
            digest.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    if cpu.available():
        digest.update(cpu.isa().encode())
        for path in sorted(Path(cpu.__file__).parent.glob("_cpu*.so")):
            digest.update(sha256(path).encode())
    return digest.hexdigest()


def job_of(source: str, plan: Plan, method: Any, data: Any, device: Any) -> dict[str, str]:
    """Return a hash for each thing that rounded weights depend on.

    source: that of what the model was read from. The others: documents that JSON can hold.
    """
    decisions = [(d.tensor.name, str(d.target), str(d.source)) for d in plan.decisions]
    return {
        "source": source,
        "plan": text_hash(decisions),
        "method": text_hash(method),
        "data": text_hash(data),
        "device": text_hash(device),
        "code": code_identity(),
    }


def text_hash(document: Any) -> str:
    """Return a hash of a document that JSON can hold."""
    return hashlib.sha256(json.dumps(document, sort_keys=True, default=str).encode()).hexdigest()
