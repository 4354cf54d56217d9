"""Open, convert, quantize and verify, end to end."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from halfbyte.converters import detect, format_for_output
from halfbyte.converters.format import ReadOptions, WriteOptions, WrittenTensor
from halfbyte.engine import available_threads
from halfbyte.errors import HalfbyteError
from halfbyte.ir.model import Model
from halfbyte.memory import PeakMemory

if TYPE_CHECKING:
    from halfbyte.quant.plan import Plan
    from halfbyte.runtime.session import Session
    from halfbyte.verification.inspection import Inspection
    from halfbyte.verification.report import VerifyReport

Progress = Callable[[int], None]
ProgressFor = Callable[[int], Progress | None]


@dataclass(frozen=True)
class TensorVerdict:
    """What became of one weight."""

    name: str
    source_name: str
    source_encoding: str
    encoding: str
    verdict: str
    bytes: int
    values: int = 0
    reason: str = ""


@dataclass(frozen=True)
class ConvertReport:
    """What a conversion wrote."""

    output: str
    bytes: int
    tensors: list[TensorVerdict]
    seconds: float
    peak_memory_bytes: int
    warnings: tuple[str, ...] = ()
    pushed_to: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return the machine-readable form."""
        return {
            "output": self.output,
            "bytes": self.bytes,
            "tensors": [vars(tensor) for tensor in self.tensors],
            "seconds": self.seconds,
            "peak_memory_bytes": self.peak_memory_bytes,
            "warnings": list(self.warnings),
            "pushed_to": self.pushed_to,
        }


@dataclass(frozen=True)
class OutputRequest:
    """What to write and how: the arguments that `convert` and `quantize` share."""

    to: str = ""
    type: str = ""
    overrides: Sequence[tuple[str, str]] = ()
    requantize: bool = False
    method: str = "rtn"
    threads: int = 0
    push_to_hub: str = ""
    options: ReadOptions = field(default_factory=ReadOptions)


def resolve(source: str | Path, revision: str = "", allow_pickle: bool = True) -> Path:
    """Return the local path of a file, folder or hub id, downloading what is missing.

    Without `allow_pickle` nothing is downloaded from a repository that holds pickles only.
    """
    if Path(source).exists():
        return Path(source)
    from halfbyte.converters.hugging_face.hub import resolve as resolve_hub

    return resolve_hub(str(source), revision, allow_pickle)


def open(source: str | Path, *, revision: str = "", allow_pickle: bool = False) -> Model:
    """Return the model at a path or hub id; weights stay on disk until they are touched.

    Raises:
        HalfbyteError: nothing is there, or a file breaks a rule of its format.
    """
    path = resolve(source, revision, allow_pickle)
    return detect(path).read(path, ReadOptions(allow_pickle=allow_pickle))


def _refuse_overwriting(source: Path, destination: Path) -> None:
    if destination.exists() and source.resolve() == destination.resolve():
        raise HalfbyteError(f"{destination}: is the source itself; write somewhere else")


def _verdicts(plan: Plan, written: list[WrittenTensor]) -> list[TensorVerdict]:
    decided = {decision.tensor.name: decision for decision in plan.decisions}
    found = []
    for tensor in written:
        decision = decided.get(tensor.source_name)
        found.append(
            TensorVerdict(
                tensor.name,
                tensor.source_name,
                str(decision.source) if decision else tensor.encoding,
                tensor.encoding,
                str(decision.verdict) if decision else "exact",
                tensor.nbytes,
                decision.tensor.size if decision else 0,
                decision.reason if decision else "",
            )
        )
    return found


def _output_bytes(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


class _Collector(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


@contextlib.contextmanager
def _logged_warnings() -> Iterator[list[str]]:
    """Collect what a writer warns about, so that it reaches the report."""
    logger, collector = logging.getLogger("halfbyte"), _Collector()
    logger.addHandler(collector)
    try:
        yield collector.lines
    finally:
        logger.removeHandler(collector)


def _write(
    source: str | Path,
    destination: str | Path,
    request: OutputRequest,
    progress: ProgressFor | None,
) -> ConvertReport:
    from halfbyte.quant.plan import apply_plan, make_plan

    started = time.perf_counter()
    output = Path(destination)
    if request.push_to_hub:
        from halfbyte.converters.hugging_face.hub import check_repository

        check_repository(request.push_to_hub)
    with PeakMemory() as memory, _logged_warnings() as logged:
        path = resolve(source)
        _refuse_overwriting(path, output)
        target, flavour = format_for_output(output, request.to)
        reader = detect(path)
        if reader.name == "hb":
            from halfbyte.converters.native.reader import verify_hashes

            verify_hashes(path, request.threads or available_threads())
        model = reader.read(path, request.options)
        plan = make_plan(
            model,
            target.profile(flavour),
            request.type,
            overrides=request.overrides,
            requantize=request.requantize,
            aliases=_weight_aliases,
        )
        planned = apply_plan(model, plan, method=request.method)
        total = sum(tensor.nbytes for tensor in planned.weights.values())
        options = WriteOptions(
            flavour=flavour,
            threads=request.threads or available_threads(),
            progress=None if progress is None else progress(total),
        )
        written = target.write(planned, output, options)
    if request.push_to_hub:
        from halfbyte.converters.hugging_face.hub import push

        push(output, request.push_to_hub)
    return ConvertReport(
        str(output),
        _output_bytes(output),
        _verdicts(plan, written),
        time.perf_counter() - started,
        memory.peak_bytes,
        (*model.warnings, *plan.warnings, *logged),
        request.push_to_hub,
    )


def _weight_aliases(tensor: Any) -> list[str]:
    """Return the names under which `--tensor` finds a weight besides its own."""
    from halfbyte.converters.gguf.names import gguf_name

    if tensor.key is None:
        return []
    try:
        return [gguf_name(tensor.key)]
    except KeyError:
        return []


def convert(
    source: str | Path,
    destination: str | Path,
    *,
    to: str = "",
    type: str = "",
    overrides: Sequence[tuple[str, str]] = (),
    requantize: bool = False,
    threads: int = 0,
    allow_pickle: bool = False,
    revision: str = "",
    push_to_hub: str = "",
    progress: ProgressFor | None = None,
) -> ConvertReport:
    """Write the model at `source` in another format.

    Weights keep their encoding where the target can hold the same values; `type` names another.
    `progress(total_bytes)` is called once and returns a function that takes bytes written.

    Raises:
        HalfbyteError: the source is broken, or the target cannot hold the model.
    """
    request = OutputRequest(
        to, type, overrides, requantize, "rtn", threads, push_to_hub, ReadOptions(allow_pickle)
    )
    return _write(resolve(source, revision, allow_pickle), destination, request, progress)


def quantize(
    source: str | Path,
    destination: str | Path,
    *,
    type: str,
    method: str = "rtn",
    to: str = "",
    overrides: Sequence[tuple[str, str]] = (),
    requantize: bool = False,
    threads: int = 0,
    allow_pickle: bool = False,
    revision: str = "",
    push_to_hub: str = "",
    progress: ProgressFor | None = None,
) -> ConvertReport:
    """Write the model at `source` with its weights in encoding `type`, chosen by `method`.

    Raises:
        HalfbyteError: as `convert`; also when a weight cannot be encoded as asked.
    """
    if not type:
        raise HalfbyteError("quantize: no type given, one is required; for example Q4_0 or int8")
    request = OutputRequest(
        to, type, overrides, requantize, method, threads, push_to_hub, ReadOptions(allow_pickle)
    )
    return _write(resolve(source, revision, allow_pickle), destination, request, progress)


def session(
    model: Model, *, device: str = "cpu", compute: str = "exact", threads: int = 0
) -> Session:
    """Return a session that runs `model`."""
    from halfbyte.runtime.session import Session

    return Session(model, device=device, compute=compute, threads=threads or available_threads())


def verify(
    reference: str | Path,
    candidate: str | Path,
    *,
    data: str | Path | None = None,
    context: int = 512,
    chunks: int | None = None,
    limits: Mapping[str, float] | None = None,
    device: str = "cpu",
    compute: str = "exact",
    threads: int = 0,
    progress: ProgressFor | None = None,
) -> VerifyReport:
    """Measure how far `candidate` is from `reference`.

    data: a text file, or an .npz of inputs for other models; limits: {metric: limit}.

    Raises:
        HalfbyteError: the models are not comparable, or the data does not fit them.
    """
    from halfbyte.evaluation_data import evaluation_data
    from halfbyte.verification import language_model, outputs
    from halfbyte.verification.gates import judge, require_figures
    from halfbyte.verification.report import VerifyReport

    started = time.perf_counter()
    models = [open(reference), open(candidate)]
    sessions = [session(m, device=device, compute=compute, threads=threads) for m in models]
    inputs = evaluation_data(models[0], models[1], data)
    require_figures(limits or {}, of_outputs=bool(inputs.batches))
    figures: dict[str, float] = {}
    entries: list[dict[str, Any]] = []
    if inputs.batches:
        entries = outputs.compare(sessions[0], sessions[1], inputs.batches)
        measured = outputs.worst(entries)
    else:
        table = language_model.chunk_tokens(inputs.tokens, context, chunks, inputs.first_token)
        step = None if progress is None else progress(len(table))
        measured = figures = language_model.compare(sessions[0], sessions[1], table, step)
    return VerifyReport(
        str(reference),
        str(candidate),
        figures,
        entries,
        judge(limits or {}, measured),
        time.perf_counter() - started,
    )


def inspect(
    source: str | Path, *, verify: bool = False, revision: str = "", allow_pickle: bool = False
) -> Inspection:
    """Return what the model at `source` is; `verify` reads and checks every weight.

    Raises:
        HalfbyteError: the file cannot be read, or a stored hash does not match.
    """
    from halfbyte.verification.inspection import describe

    path = resolve(source, revision, allow_pickle)
    model = detect(path).read(path, ReadOptions(allow_pickle=allow_pickle))
    if verify and model.provenance.format == "hb":
        from halfbyte.converters.native.reader import verify_hashes

        verify_hashes(path)
    return describe(model, str(source), read_weights=verify)
