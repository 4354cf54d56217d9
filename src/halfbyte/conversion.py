"""One conversion: read, plan, encode, write, report."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from halfbyte.converters import detect, format_for_output
from halfbyte.converters.architectures import ARCHITECTURES, get_architecture
from halfbyte.converters.format import ReadOptions, WriteOptions, WrittenTensor
from halfbyte.engine import available_threads
from halfbyte.errors import HalfbyteError, UnsupportedError
from halfbyte.ir.model import Model
from halfbyte.ir.tensor import FilePart
from halfbyte.memory import PeakMemory

if TYPE_CHECKING:
    from halfbyte.ir.roles import WeightKey
    from halfbyte.ir.tensor import Tensor
    from halfbyte.quant.overrides import Aliases
    from halfbyte.quant.plan import Decision, Plan

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
    device: str = "cpu"
    push_to_hub: str = ""
    options: ReadOptions = field(default_factory=ReadOptions)
    opset: int | None = None


def _refuse_overwriting(source: Path, destination: Path) -> None:
    if destination.exists() and source.resolve() == destination.resolve():
        raise HalfbyteError(f"{destination}: is the source itself; write somewhere else")


def _refuse_replacing_data(model: Model, destination: Path) -> None:
    """Check that a file of data beside the output is not one that the source reads."""
    beside = destination.with_name(f"{destination.name}.data")
    if not beside.exists():
        return
    parts = [part for tensor in model.weights.values() for part in tensor.parts.values()]
    if any(isinstance(p, FilePart) and p.path.resolve() == beside.resolve() for p in parts):
        raise HalfbyteError(f"{beside}: holds data of the source; give the output another name")


def _verdict(decision: Decision | None, tensor: WrittenTensor) -> str:
    """Return what the plan says, or the writer where the plan only kept the encoding."""
    planned = str(decision.verdict) if decision else "exact"
    return tensor.verdict if tensor.verdict and planned == "exact" else planned


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
                _verdict(decision, tensor),
                tensor.nbytes,
                decision.tensor.size if decision else 0,
                decision.reason if decision else "",
            )
        )
    return found


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
    from halfbyte.runtime import get_backend

    get_backend(device, threads=threads)
    if cpu.available():
        cpu.set_threads(threads)


def _read(path: Path, request: OutputRequest, threads: int) -> Model:
    reader = detect(path)
    reader.verify_content(path, threads)
    return reader.read(path, request.options)


def _converted(
    source: Path, output: Path, request: OutputRequest, progress: ProgressFor | None
) -> tuple[Model, Plan, list[WrittenTensor]]:
    """Write the output; return the model as read, the plan and what was written."""
    from halfbyte.quant.plan import apply_plan, make_plan

    threads = request.threads or available_threads()
    _refuse_overwriting(source, output)
    _require_device(request.device, threads)
    target, flavour = format_for_output(output, request.to)
    if request.opset is not None and target.name != "onnx":
        raise UnsupportedError("--opset", f"format {target.name}", advice="give --to onnx")
    model = _read(source, request, threads)
    _refuse_replacing_data(model, output)
    _require_complete(model)
    plan = make_plan(
        model,
        target.profile(flavour),
        request.type,
        overrides=request.overrides,
        requantize=request.requantize,
        aliases=_weight_aliases(model),
    )
    planned = apply_plan(model, plan, method=request.method)
    total = sum(tensor.nbytes for tensor in planned.weights.values())
    advance = None if progress is None else progress(total)
    options = WriteOptions(flavour, threads, advance, opset=request.opset)
    return model, plan, target.write(planned, output, options)


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
        model, plan, written = _converted(source, output, request, progress)
    if request.push_to_hub:
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
    if model.architecture in ARCHITECTURES:
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
