"""A calibration on its way into a conversion: its data, its files, what it reports."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from halfbyte.calibration_data import (
    CalibrationData,
    DataRequest,
    batches_hash,
    read_calibration,
)
from halfbyte.errors import HalfbyteError
from halfbyte.files import atomic_file, sha256
from halfbyte.ir.model import CALIBRATION_KEY, Model
from halfbyte.journal import Journal, job_of, open_journal
from halfbyte.quant.method import MethodOptions
from halfbyte.quant.transforms import TransformOptions

if TYPE_CHECKING:
    from halfbyte.quant.calibrated import CalibrationReport, ProgressFor
    from halfbyte.quant.calibration.batches import Batches
    from halfbyte.quant.calibration.saved import SavedStatistics
    from halfbyte.quant.method import Chain
    from halfbyte.quant.plan import Plan
    from halfbyte.quant.solver import Solver

ACTIVATION_LIMIT_BYTES = 128 << 20
# In the journal, beside the weights.
OWN_TEXT_FILE, STATISTICS_FILE = "own_text.npy", "statistics.saved"


@dataclass(frozen=True)
class CalibrationRequest:
    """What a calibrated method works with.

    data: what it sees. random: sequences of random tokens beside it. stats: a file of statistics
    instead of data; save_stats: where statistics of the data go. method: what bends the rounding.
    journal: keep what is finished beside the output. alpha: SmoothQuant's share of activations.
    """

    data: DataRequest = field(default_factory=DataRequest)
    random: int = 0
    stats: str = ""
    save_stats: str = ""
    method: MethodOptions = field(default_factory=MethodOptions)
    activation_limit_bytes: int = ACTIVATION_LIMIT_BYTES
    journal: bool = True
    alpha: float = TransformOptions.alpha

    @property
    def files(self) -> list[str]:
        """Return the sources that are files of this machine."""
        return [given for given in self.data.sources if Path(given).is_file()]

    def require(self, chain: Chain) -> None:
        """Check that what is given is what the method works with.

        Raises:
            HalfbyteError: data is missing, or there are both data and statistics.
        """
        if self.stats and (self.data.sources or self.save_stats):
            other = "--calib" if self.data.sources else "--save-stats"
            raise HalfbyteError(f"quantize: --stats and {other} exclude each other; give one")
        if chain.is_calibrated and not (self.stats or self.data.sources):
            raise HalfbyteError(
                f"quantize: method {chain.name} needs data, none is given; give --calib FILE, "
                "--calib preset:novels or --stats FILE"
            )


@contextmanager
def work_place(output: Path, chain: Chain, request: CalibrationRequest) -> Iterator[Journal]:
    """Yield a journal of the output, or a passing folder where nothing can be taken up again.

    Raises:
        HalfbyteError: the output could not be written there.
    """
    if not output.parent.is_dir():
        raise HalfbyteError(
            f"{output}: folder {str(output.parent)!r} does not exist; create it or write elsewhere"
        )
    if output.is_dir() and any(output.iterdir()):
        raise HalfbyteError(f"{output}: is a folder with content; name a new file or folder")
    if request.journal and chain.is_slow:
        with open_journal(output) as journal:
            yield journal
        return
    with tempfile.TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent) as folder:
        made = Journal(Path(folder), lasting=False)
        made.work.mkdir()
        yield made


def calibration_batches(model: Model, request: CalibrationRequest) -> Batches:
    """Return the runs of what was given as `--calib`.

    Raises:
        HalfbyteError: as `read_calibration`.
    """
    return read_calibration(model, request.data).batches


@dataclass(frozen=True)
class Calibrated:
    """A model with every weight as planned, what was done, and notices."""

    model: Model
    report: CalibrationReport
    notices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Machine:
    """Where and how to compute."""

    threads: int = 1
    device: str = "cpu"
    compat: bool = False


def calibrated(
    model: Model,
    plan: Plan,
    chain: Chain,
    transforms: TransformOptions,
    request: CalibrationRequest,
    place: Journal,
    machine: Machine,
    source: str,
    progress: ProgressFor | None = None,
) -> Calibrated:
    """Return the model with every weight as planned; their parts lie in the journal.

    source: a hash of what the model was read from.

    Raises:
        HalfbyteError: neither data nor statistics are given, or they do not fit the model.
    """
    from halfbyte.quant.calibrated import CalibrationOptions, quantize_calibrated
    from halfbyte.quant.solver import get_solver

    solver = get_solver(machine.device, machine.threads)
    saved, data = _inputs(model, request)
    given = data.facts if saved is None else _facts_of(saved)
    method = [chain.name, asdict(request.method), asdict(transforms)]
    job = job_of(source, plan, method, given, [machine.device, machine.compat])
    weights = place.weights(job)
    if chain.writes_text:
        data = _with_own_text(model, data, saved, request, weights, machine)
    facts = data.facts if saved is None else given
    batches = data.batches if saved is None else None
    if request.save_stats and batches is not None:
        _require_new(request)
        _save_statistics(model, batches, request, facts, weights, solver, machine)
    options = CalibrationOptions(
        place.work,
        request.method,
        transforms,
        request.activation_limit_bytes,
        machine.device,
        machine.threads,
        machine.compat,
    )
    made, report = quantize_calibrated(
        model,
        plan,
        chain,
        batches,
        options,
        solver,
        statistics=saved,
        journal=weights if place.lasting else None,
        progress=progress,
    )
    record = {"method": chain.name, "options": asdict(request.method), "data": facts}
    told = replace(made, metadata={**made.metadata, CALIBRATION_KEY: record})
    return Calibrated(told, report, (*data.notices, *place.notices))


def _inputs(
    model: Model, request: CalibrationRequest
) -> tuple[SavedStatistics | None, CalibrationData]:
    """Return statistics, or the data with random sequences where these are wanted."""
    from halfbyte.quant.calibration.batches import Batches
    from halfbyte.quant.calibration.saved import SavedStatistics

    if request.stats:
        return SavedStatistics(Path(request.stats)), CalibrationData(Batches((), ()), {})
    return None, data_of(model, request)


def data_of(model: Model, request: CalibrationRequest) -> CalibrationData:
    """Return the data, with random sequences where these are wanted.

    Raises:
        HalfbyteError: as `read_calibration`; random tokens are no inputs of the model.
    """
    from halfbyte.quant.calibration.random_tokens import with_random_tokens

    data = read_calibration(model, request.data)
    batches = with_random_tokens(
        data.batches, model.graph, model.tokenizer, request.data.seed, request.random
    )
    added = batches.samples - data.batches.samples
    if request.random and not added:
        raise HalfbyteError("--calib-random: the model takes no token ids; leave it out")
    return CalibrationData(batches, {**data.facts, "random": added}, data.notices)


def _with_own_text(
    model: Model,
    data: CalibrationData,
    saved: SavedStatistics | None,
    request: CalibrationRequest,
    folder: Path,
    machine: Machine,
) -> CalibrationData:
    """Return the data with text that the model writes; of saved statistics, say if they lack it."""
    from halfbyte.quant.calibration.batches import Batches
    from halfbyte.quant.calibration.own_text import with_own_text

    if saved is not None:
        if "length" not in saved.facts or "own_text" in saved.facts:
            return data
        lacking = f"{saved.path}: holds nothing of text that the model wrote; for what best is at "
        lacking += "its best, gather with --method best --save-stats"
        return replace(data, notices=(*data.notices, lacking))
    batches, note = with_own_text(
        *(data.batches, model, machine.device, machine.threads, request.data.seed),
        kept=folder / OWN_TEXT_FILE,
    )
    first = len(data.batches.runs)
    own = Batches(batches.runs[first:], batches.masks[first:])
    if not own.runs:
        return data
    told = {"sequences": own.samples, "written": not note, "sha256": batches_hash(own)}
    notices = (*data.notices, note) if note else data.notices
    return CalibrationData(batches, {**data.facts, "own_text": told}, notices)


def _facts_of(saved: SavedStatistics) -> Mapping[str, Any]:
    """Return what a file of statistics says of its data, and the hash of the file."""
    return {**saved.facts, "statistics": sha256(saved.path)}


def _require_new(request: CalibrationRequest) -> None:
    """Check that statistics do not go over the data they are of."""
    target = Path(request.save_stats)
    if target.exists() and any(target.samefile(file) for file in request.files):
        raise HalfbyteError(f"{target}: is calibration data itself; write somewhere else")


def _save_statistics(
    model: Model,
    batches: Batches,
    request: CalibrationRequest,
    facts: Mapping[str, Any],
    folder: Path,
    solver: Solver,
    machine: Machine,
) -> None:
    """Write the statistics of the float model, before anything is rounded.

    folder: has a note of a file that an earlier run of this job has written.
    """
    from halfbyte.quant.calibration.gather import collect

    target, noted = Path(request.save_stats), folder / STATISTICS_FILE
    if noted.is_file() and target.is_file() and noted.read_text("utf-8") == _state(target):
        return
    collect(
        model,
        batches,
        target,
        solver,
        facts=facts,
        activation_limit_bytes=request.activation_limit_bytes,
        device=machine.device,
        threads=machine.threads,
    )
    with atomic_file(noted) as stream:
        stream.write(_state(target).encode())


def _state(path: Path) -> str:
    """Return which file this is, and whether it has changed since."""
    held = path.stat()
    return f"{path.resolve()} {held.st_size} {held.st_mtime_ns}"
