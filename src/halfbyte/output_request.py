"""What to write and how: the arguments that `convert` and `quantize` share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from halfbyte.calibration import CalibrationRequest
from halfbyte.converters.format import GgufChoices, ReadOptions, WriteOptions
from halfbyte.errors import UnsupportedError
from halfbyte.integer_activations import ActivationRequest, check_activations
from halfbyte.quant.type_choice import TypeOptions

if TYPE_CHECKING:
    from halfbyte.quant.method import Chain


@dataclass(frozen=True)
class SplitRequest:
    """Into which parts the output goes: those of the source, or by limits (0: none)."""

    keep: bool = False
    max_bytes: int = 0
    max_tensors: int = 0

    @property
    def is_asked(self) -> bool:
        """Whether the output may have several parts."""
        return self.keep or bool(self.max_bytes or self.max_tensors)


@dataclass(frozen=True)
class OutputRequest:
    """What to write and how: the arguments that `convert` and `quantize` share.

    lora: adapters to merge, with their factors. base: the base model of an adapter that is
    converted by itself.
    """

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
    types: TypeOptions = field(default_factory=TypeOptions)
    imatrix: str = ""
    compat: bool = False
    search: str = "default"
    split: SplitRequest = field(default_factory=SplitRequest)
    dry_run: bool = False
    lora: Sequence[tuple[str, float]] = ()
    base: str = ""
    calibration: CalibrationRequest = field(default_factory=CalibrationRequest)
    activations: ActivationRequest = field(default_factory=ActivationRequest)


def check_options(format_name: str, flavour: str, request: OutputRequest) -> None:
    """Refuse options that the format of the output knows nothing of.

    Raises:
        UnsupportedError: one is given.
    """
    where = f"format {format_name}"
    if request.opset is not None and format_name != "onnx":
        raise UnsupportedError("--opset", where, advice="give --to onnx")
    target = f"{format_name}:{flavour}" if flavour else format_name
    check_activations(request.activations, request.type, target)
    split = request.split
    if split.keep and (split.max_bytes or split.max_tensors):
        what = "--keep-split together with a limit"
        raise UnsupportedError(what, "quantize", advice="give one of them")
    if (split.keep or split.max_tensors) and format_name != "gguf":
        option = "--keep-split" if split.keep else "--split-max-tensors"
        raise UnsupportedError(option, where, advice="give --to gguf")
    if split.max_bytes and format_name not in ("gguf", "hf"):
        raise UnsupportedError("--split-max-size", where, ["gguf", "hf"])


def write_options(
    source: Path,
    format_name: str,
    flavour: str,
    threads: int,
    request: OutputRequest,
    file_type: int | None,
    pairs: Mapping[str, Any],
) -> WriteOptions:
    """Return the options for a format's writer; pairs: keys for the end of a GGUF file."""
    from halfbyte.converters.gguf.container import is_gguf
    from halfbyte.converters.gguf.split import shard_numbers

    split = request.split
    to_gguf = format_name == "gguf"
    keeps = split.keep and source.is_file() and is_gguf(source)
    gguf = GgufChoices(
        arranged=bool(request.type),
        file_type=file_type,
        pairs=pairs,
        max_bytes=split.max_bytes if to_gguf else 0,
        max_tensors=split.max_tensors,
        part_of=shard_numbers(source) if keeps else {},
    )
    dynamic = request.activations.mode if request.activations.is_dynamic else ""
    options = WriteOptions(flavour, threads, opset=request.opset, gguf=gguf, activations=dynamic)
    return replace(options, shard_bytes=split.max_bytes) if split.max_bytes else options


def chain_of(request: OutputRequest) -> Chain:
    """Return the transforms and the rounding that method and search ask for.

    Raises:
        UnsupportedError: one is not known, or the search does not go with the method.
    """
    from halfbyte.quant.algorithms import SEARCHES
    from halfbyte.quant.method import parse_method

    if request.search not in SEARCHES:
        raise UnsupportedError(f"search {request.search!r}", "quantize", list(SEARCHES))
    if request.search != "default" and request.method != "rtn":
        advice = "leave out --search or --method"
        raise UnsupportedError("--search", f"method {request.method}", advice=advice)
    return parse_method(request.method if request.search == "default" else SEARCHES[request.search])
