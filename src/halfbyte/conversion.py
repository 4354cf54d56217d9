"""One conversion: read, plan, encode, write, report."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from halfbyte.adapters import convert_adapter, is_adapter_folder, with_adapters
from halfbyte.calibration import Machine, work_place
from halfbyte.convert_report import (
    ConvertReport,
    verdicts,
    with_integers_told,
    with_merged,
)
from halfbyte.converters import detect, format_for_output
from halfbyte.converters.architectures import ARCHITECTURES, get_architecture
from halfbyte.converters.format import (
    Forecast,
    Forecasting,
    Format,
    WriteOptions,
    WrittenTensor,
)
from halfbyte.converters.gguf.imatrix import is_importance
from halfbyte.engine import available_threads
from halfbyte.errors import HalfbyteError
from halfbyte.importance_request import Importance
from halfbyte.integer_activations import (
    require_inputs,
    require_plain,
    with_declaration,
    with_integers,
)
from halfbyte.ir.model import Model
from halfbyte.ir.tensor import FilePart
from halfbyte.journal import Journal, identity
from halfbyte.memory import PeakMemory
from halfbyte.output_request import OutputRequest, chain_of, check_options, write_options
from halfbyte.stored_ranges import is_measured, with_stored_ranges
from halfbyte.weight_rounding import RoundingWork, rounded_weights

if TYPE_CHECKING:
    from halfbyte.ir.roles import WeightKey
    from halfbyte.ir.tensor import Tensor
    from halfbyte.quant.calibrated import CalibrationReport
    from halfbyte.quant.method import Chain
    from halfbyte.quant.overrides import Aliases
    from halfbyte.quant.plan import Plan

Progress = Callable[[int], None]
ProgressFor = Callable[[int], Progress | None]


def _refuse_overwriting(source: Path, destination: Path, role: str = "the source") -> None:
    if destination.exists() and source.resolve() == destination.resolve():
        raise HalfbyteError(f"{destination}: is {role} itself; write somewhere else")


def _refuse_overwriting_helpers(request: OutputRequest, destination: Path) -> None:
    """Check that the output is none of the files that it is made with."""
    if request.imatrix:
        _refuse_overwriting(Path(request.imatrix), destination, "the importance matrix")
    given = request.calibration
    for file, role in ((given.stats, "the statistics"), *((s, "the data") for s in given.files)):
        if file:
            _refuse_overwriting(Path(file), destination, role)
    for adapter, _ in request.lora:
        _refuse_overwriting(Path(adapter), destination, "the adapter")


def refuse_replacing_data(model: Model, files: Iterable[Path]) -> None:
    """Check that no file of the output is one that the source reads.

    Raises:
        HalfbyteError: one is.
    """
    there = {file.resolve(): file for file in files if file.exists()}
    if not there:
        return
    parts = [part for tensor in model.weights.values() for part in tensor.parts.values()]
    for path in {part.path for part in parts if isinstance(part, FilePart)}:
        if path.resolve() in there:
            file = there[path.resolve()]
            raise HalfbyteError(f"{file}: holds data of the source; give the output another name")


def _output_bytes(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path, path.with_name(f"{path.name}.data")]
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


def _require_device(device: str, threads: int) -> None:
    """Check the device and give its kernels `threads` workers."""
    from halfbyte.kernels import cpu

    if device != "cpu":
        from halfbyte.runtime import get_backend

        get_backend(device, threads=threads)
    if cpu.available():
        cpu.set_threads(threads)


def _read(path: Path, request: OutputRequest, threads: int) -> Model:
    if is_importance(path):
        advice = "`halfbyte inspect` shows what it holds, `--imatrix` uses it"
        raise HalfbyteError(f"{path}: is an importance matrix, a model was required; {advice}")
    reader = detect(path)
    reader.verify_content(path, threads)
    return reader.read(path, request.options)


@dataclass(frozen=True)
class _Job:
    """A conversion that is planned: what goes into which files."""

    target: Format
    output: Path
    model: Model
    plan: Plan
    planned: Model
    options: WriteOptions
    warnings: tuple[str, ...]
    merged: Mapping[str, str]
    chain: Chain
    calibration: CalibrationReport | None = None
    integers: Mapping[str, str] = field(default_factory=dict)

    def forecast(self) -> Forecast:
        """Return what will be written; for formats that cannot tell, weights without a header."""
        if isinstance(self.target, Forecasting):
            return self.target.forecast(self.planned, self.output, self.options)
        tensors = [
            WrittenTensor(tensor.name, tensor.name, str(tensor.encoding), tensor.nbytes)
            for tensor in self.planned.weights.values()
        ]
        return Forecast({self.output: sum(tensor.nbytes for tensor in tensors)}, tensors, False)

    def report(self, tensors: list[WrittenTensor], files: dict[Path, int]) -> ConvertReport:
        """Return the report, without time and memory."""
        first = str(next(iter(files)))
        warnings = (*self.model.warnings, *self.plan.warnings, *self.warnings)
        if self.calibration is not None:
            warnings += self.calibration.warnings
        names = tuple(map(str, files))
        found = with_merged(verdicts(self.plan, tensors), self.merged)
        found = with_integers_told(found, self.integers)
        return ConvertReport(
            first,
            sum(files.values()),
            found,
            0.0,
            0,
            warnings,
            "",
            names,
            calibration=self.calibration,
        )


def _require_no_experts(model: Model) -> None:
    """Refuse a mixture of experts for ONNX before hours of calibration, not when it is written."""
    from halfbyte.converters.onnx.language.export import require_dense
    from halfbyte.converters.onnx.language_model import is_language_model

    if is_language_model(model):
        require_dense(model.graph)


def _planned(
    source: Path,
    output: Path,
    request: OutputRequest,
    place: Journal | None,
    progress: ProgressFor | None,
) -> _Job:
    """Read the source, decide on every weight and calibrate; place: where slow methods work."""
    from halfbyte.quant.calibrated import transformed_model

    threads = request.threads or available_threads()
    target, flavour = _checked_target(source, output, request, threads)
    destination, chain = f"{target.name}:{flavour}", chain_of(request)
    model = _read(source, request, threads)
    measured = is_measured(model, request.activations, destination)
    calibrates = place is not None and chain.is_calibrated
    if measured and place is not None:
        require_inputs(request.activations.mode, request.calibration)
    _require_complete(model)
    if calibrates:
        _refuse_overwriting_statistics(model, output, request)
    if (calibrates or measured) and target.name == "onnx":
        _require_no_experts(model)
    merged = with_adapters(model, request)
    origin = "" if place is None else identity(model, request.lora)
    machine = Machine(threads, request.device, request.compat)
    work = RoundingWork(request, chain, machine, place, origin, progress)
    model, notes = transformed_model(merged.model, chain, work.transforms)
    type_name: str = request.type
    integers: Mapping[str, str] = {}
    if request.activations.is_static and not measured:
        require_plain(chain, request.activations.mode)
        made = with_integers(model, request.activations, request.calibration, threads)
        model, integers = made.model, made.encodings
        notes, type_name = (*notes, made.note), ""  # what is left float stays so
    model = with_declaration(model, request.activations, destination)
    importance = Importance.read(request.imatrix)
    plan = _plan(model, target, flavour, type_name, request, importance)
    by_weight, found = importance.matched(plan, _gguf_weight_name)
    if not (calibrates or request.dry_run):
        importance.require(plan, by_weight)
    rounded = rounded_weights(work, model, plan, by_weight)
    planned, notices = rounded.model, (*found, *rounded.notices)
    options = write_options(
        source, target.name, flavour, threads, request, plan.file_type, importance.keys()
    )
    if measured and place is not None:
        ranged = with_stored_ranges(
            *(planned, request.activations, request.calibration, destination, place, machine),
            progress,
        )
        planned, notices = ranged.model, (*notices, *ranged.notes)
        options = replace(options, grids=ranged.grids)
    return _Job(
        target,
        output,
        model,
        plan,
        planned,
        options,
        (*notes, *notices),
        merged.verdicts,
        chain,
        rounded.calibration,
        integers,
    )


def _checked_target(
    source: Path, output: Path, request: OutputRequest, threads: int
) -> tuple[Format, str]:
    """Return the output's format and flavour; refuse what can be refused before reading."""
    if not (request.dry_run or request.split.is_asked):
        _refuse_overwriting(source, output)
        _refuse_overwriting_helpers(request, output)
    _require_device(request.device, threads)
    target, flavour = format_for_output(output, request.to)
    check_options(target.name, flavour, request)
    return target, flavour


def _refuse_overwriting_statistics(model: Model, output: Path, request: OutputRequest) -> None:
    if request.calibration.save_stats:
        statistics = Path(request.calibration.save_stats)
        _refuse_overwriting(output, statistics, "the output")
        refuse_replacing_data(model, [statistics])


def _plan(
    model: Model,
    target: Format,
    flavour: str,
    type_name: str,
    request: OutputRequest,
    importance: Importance,
) -> Plan:
    """Decide on every weight."""
    from halfbyte.converters.hugging_face.checkpoints.schemes import require_alike
    from halfbyte.quant.plan import make_plan

    plan = make_plan(
        model,
        target.profile(flavour),
        type_name,
        overrides=request.overrides,
        requantize=request.requantize,
        aliases=_weight_aliases(model),
        options=replace(
            request.types,
            has_importance=importance.is_given,
            source_order=request.split.keep,
            architecture=_gguf_architecture(model),
        ),
    )
    if flavour and target.name == "hf":
        require_alike([(d.tensor, d.target) for d in plan.decisions], f"{target.name}:{flavour}")
    return plan


def _gguf_architecture(model: Model) -> str:
    known = model.architecture in ARCHITECTURES
    return get_architecture(model.architecture).gguf_name if known else ""


def _gguf_weight_name(tensor: Tensor) -> str:
    """Return the name that a weight has in GGUF files, its own if it has none there."""
    from halfbyte.converters.gguf.names import gguf_name

    with contextlib.suppress(KeyError):
        return tensor.name if tensor.key is None else gguf_name(tensor.key)
    return tensor.name


def _written(job: _Job, progress: ProgressFor | None) -> ConvertReport:
    """Write what was planned."""
    output, options = job.output, job.options
    parts = tuple(job.forecast().files) if options.gguf.is_split else ()
    refuse_replacing_data(job.model, parts or (output, output.with_name(f"{output.name}.data")))
    total = sum(tensor.nbytes for tensor in job.planned.weights.values())
    advance = None if progress is None else progress(total)
    tensors = job.target.write(job.planned, output, replace(options, progress=advance))
    sizes = {part: part.stat().st_size for part in parts}
    return job.report(tensors, sizes or {output: _output_bytes(output)})


def _forecast(job: _Job) -> ConvertReport:
    """Return the report of what would be written; nothing is."""
    expected = job.forecast()
    report = job.report(expected.tensors, expected.files)
    # What is said of a calibration is known when it is done.
    report = replace(report, dry_run=True, exact=expected.exact and not job.chain.is_calibrated)
    lacking = len(job.plan.needs_importance)
    if not lacking or job.options.gguf.pairs:
        return report
    warning = f"{lacking} weights need an importance matrix; give --imatrix FILE"
    return replace(report, warnings=(*report.warnings, warning))


def write(
    source: Path, output: Path, request: OutputRequest, progress: ProgressFor | None = None
) -> ConvertReport:
    """Write the model at `source` as `output`, upload it if asked, and say what was done.

    Raises:
        HalfbyteError: the source is broken, or the target cannot hold the model.
    """
    started = time.perf_counter()
    if request.push_to_hub:
        from halfbyte.converters.hugging_face.hub import check_repository, push

        check_repository(request.push_to_hub)
    with PeakMemory() as memory, _logged_warnings() as logged:
        if is_adapter_folder(source):
            report = convert_adapter(source, output, request, progress)
        else:
            with contextlib.ExitStack() as stack:
                chain, place = chain_of(request), None
                works = chain.is_calibrated or request.activations.is_static
                if works and not request.dry_run:
                    request.calibration.require(chain)
                works |= chain.is_slow and request.calibration.journal
                if works and not request.dry_run:
                    place = stack.enter_context(work_place(output, chain, request.calibration))
                job = _planned(source, output, request, place, progress)
                report = _forecast(job) if request.dry_run else _written(job, progress)
    if request.push_to_hub and not request.dry_run:
        for file in report.files:
            push(Path(file), request.push_to_hub)
    return replace(
        report,
        seconds=time.perf_counter() - started,
        peak_memory_bytes=memory.peak_bytes,
        warnings=tuple(dict.fromkeys((*report.warnings, *logged))),
        pushed_to=request.push_to_hub,
    )


def _require_complete(model: Model) -> None:
    """Check that a model of a known architecture has every weight its config asks for.

    Raises:
        HalfbyteError: weights are missing, or have another shape.
    """
    if model.build is not None and model.weights and model.architecture in ARCHITECTURES:
        get_architecture(model.architecture).bind(model, model.config)


def _weight_aliases(model: Model) -> Aliases:
    """Return how `--tensor` finds a weight besides its own name: by the names of GGUF and HF."""
    from halfbyte.converters.gguf.names import gguf_name

    hugging_face: dict[WeightKey, str] = {}
    if model.architecture in ARCHITECTURES and model.build is not None:
        table = get_architecture(model.architecture).hugging_face_names(model.config)
        hugging_face = {key: name for name, key in table.items()}

    def names(tensor: Tensor) -> list[str]:
        found = []
        if tensor.key is not None:
            with contextlib.suppress(KeyError):
                found.append(hugging_face[tensor.key])
            with contextlib.suppress(KeyError):
                found.append(gguf_name(tensor.key))
        return found

    return names
