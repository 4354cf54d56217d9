"""Adapters of a conversion: those merged into a model, and one written as a GGUF file."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from halfbyte.convert_report import ConvertReport, TensorVerdict
from halfbyte.converters import detect, format_for_output
from halfbyte.converters.architectures import ARCHITECTURES, get_architecture
from halfbyte.converters.format import ReadOptions
from halfbyte.errors import FormatError, HalfbyteError, QuantizationError, UnsupportedError
from halfbyte.ir.encodings import encoding_from_name
from halfbyte.ir.encodings.dense import Dense
from halfbyte.ir.encodings.transcode import Verdict, judge, judge_tensor, transcode
from halfbyte.output_request import OutputRequest

if TYPE_CHECKING:
    from halfbyte.conversion import ProgressFor
    from halfbyte.converters.architectures.architecture import Architecture
    from halfbyte.converters.lora import Adapter, Merged
    from halfbyte.ir.encodings.encoding import Encoding
    from halfbyte.ir.model import Model
    from halfbyte.ir.tensor import Tensor

TYPES = ("F32", "F16", "BF16", "Q8_0")
"""Of adapter files; the first is what they get unless asked otherwise."""
log = logging.getLogger("halfbyte")


def parse_adapters(entries: Sequence[str]) -> list[tuple[str, float]]:
    """Return (path, scale) of entries `ADAPTER` or `ADAPTER=SCALE`.

    Raises:
        HalfbyteError: a scale is not finite.
    """
    found = []
    for entry in entries:
        path, separator, text = entry.rpartition("=")
        try:
            scale = float(text)
        except ValueError:
            path, separator, scale = entry, "", 1.0
        if not separator:
            path, scale = entry, 1.0
        if not math.isfinite(scale):
            raise HalfbyteError(f"--lora {entry}: the scale is {text}, a finite number is required")
        found.append((path, scale))
    return found


def is_adapter_folder(path: Path) -> bool:
    """Whether `path` is a folder with an adapter and no model."""
    from halfbyte.converters.hugging_face import adapter

    return path.is_dir() and adapter.is_adapter_folder(path)


def read_adapter(
    path: Path, architecture: Architecture, config: dict[str, Any], options: ReadOptions
) -> Adapter:
    """Return the adapter at `path`, a PEFT folder or a GGUF file, for models of an architecture.

    Raises:
        HalfbyteError: nothing is there, or it is no adapter that fits.
    """
    if not path.exists():
        raise HalfbyteError(f"{path}: no such adapter; check the path")
    if path.is_dir():
        from halfbyte.converters.hugging_face import adapter as peft

        return peft.read_adapter(path, architecture, config, options)
    from halfbyte.converters.gguf import adapter as gguf
    from halfbyte.converters.gguf.container import is_gguf

    if not is_gguf(path):
        raise FormatError(path, "is neither a folder of PEFT nor a GGUF file; check the path")
    return gguf.read_adapter(path, architecture)


def with_adapters(model: Model, request: OutputRequest) -> Merged:
    """Return the model with the adapters of a request in it.

    Raises:
        HalfbyteError: an adapter is broken or does not fit the model.
    """
    from halfbyte.converters.lora import Merged, merge

    if not request.lora:
        return Merged(model, {})
    if model.architecture not in ARCHITECTURES or model.build is None:
        what = f"--lora for a model of {model.architecture or 'no known architecture'}"
        raise UnsupportedError(what, model.provenance.source, sorted(ARCHITECTURES))
    architecture = get_architecture(model.architecture)
    adapters = [
        (read_adapter(Path(path), architecture, model.config, request.options), scale)
        for path, scale in request.lora
    ]
    return merge(model, adapters, keep_type=not request.type)


def convert_adapter(
    source: Path, output: Path, request: OutputRequest, progress: ProgressFor | None
) -> ConvertReport:
    """Write the adapter in a PEFT folder as a GGUF file.

    Of the base model, `request.base` or what the adapter names, config.json alone is read.

    Raises:
        HalfbyteError: the adapter is broken, or GGUF cannot say what it does.
    """
    from halfbyte.converters.gguf.adapter import adapter_file, write_adapter

    target, _ = format_for_output(output, request.to)
    if target.name != "gguf":
        raise UnsupportedError("an adapter", f"format {target.name}", ["gguf"])
    wanted = _adapter_type(source, request)
    architecture, config = _base_config(source, request.base)
    adapter = read_adapter(source, architecture, config, request.options)
    file = adapter_file(adapter, architecture, config)
    made = [_typed(tensor, wanted) for tensor in file.tensors]
    advance = None if progress is None else progress(sum(t.nbytes for t, _ in made))
    write_adapter(output, file, (t for t, _ in made), request.threads or 1, advance)
    verdicts = [
        TensorVerdict(
            tensor.name, before.name, str(before.encoding), str(tensor.encoding), verdict,
            tensor.nbytes, tensor.size, "adapter", tensor.shape,
        )
        for before, (tensor, verdict) in zip(file.tensors, made, strict=True)
    ]  # fmt: skip
    return ConvertReport(
        str(output), output.stat().st_size, verdicts, 0.0, 0, (), "", (str(output),)
    )


def _adapter_type(source: Path, request: OutputRequest) -> Encoding:
    """Return the type that the matrices of an adapter get; what only models can have is refused."""
    where = f"{source}, an adapter"
    for option, given in (("--lora", bool(request.lora)), ("--dry-run", request.dry_run)):
        if given:
            raise UnsupportedError(option, where)
    for name in TYPES:
        if request.type in ("", name, encoding_from_name(name).name):
            return encoding_from_name(name)
    advice = "to quantize the sum, merge it into its base model with --lora"
    raise UnsupportedError(f"type {request.type!r}", where, TYPES, advice)


def _typed(tensor: Tensor, wanted: Encoding) -> tuple[Tensor, str]:
    """Return a tensor of an adapter in the wanted type, as llama.cpp's script picks it."""
    if len(tensor.shape) < 2:
        wanted = Dense("float32")
    try:
        wanted.part_specs(tensor.rows, tensor.columns)
    except QuantizationError:
        wanted = Dense("float16")
    if judge(tensor.encoding, wanted) is Verdict.REFUSED:
        wanted = tensor.encoding
    if wanted == tensor.encoding:
        return tensor, str(Verdict.EXACT)
    verdict = judge_tensor(tensor, wanted)
    if isinstance(wanted, Dense):
        return transcode(tensor, wanted), str(verdict)
    from halfbyte.quant.algorithms import get_algorithm

    return get_algorithm("rtn")(tensor, wanted), str(verdict)


def _base_config(source: Path, base: str) -> tuple[Architecture, dict[str, Any]]:
    """Return architecture and canonical config of the base model."""
    from halfbyte.converters.hugging_face.adapter import base_name

    name = base or base_name(source)
    path = Path(name)
    if not path.exists():
        from halfbyte.converters.hugging_face.hub import resolve

        repository, _, revision = name.partition("@")
        path = resolve(f"{repository}/config.json", revision)
    if path.is_dir():
        path = path / "config.json"
    if path.suffix != ".json":
        config = dict(detect(path).read(path, ReadOptions()).config)
    else:
        config = _json(path)
    architecture = get_architecture(str(config.get("model_type")))
    return architecture, architecture.canonical_config(config)


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise FormatError(path, f"cannot be read as JSON ({error}); give --base") from error
    if not isinstance(found, dict):
        raise FormatError(path, "is no JSON object; give --base")
    return found
