"""The interface of a file format."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from halfbyte.ir.model import Model
from halfbyte.ir.profile import Profile

Progress = Callable[[int], None]


@dataclass(frozen=True)
class ReadOptions:
    """How to read: `allow_pickle` admits pytorch_model.bin through the restricted unpickler."""

    allow_pickle: bool = False


@dataclass(frozen=True)
class GgufChoices:
    """What is asked of a GGUF file.

    arranged: order of tensors and keys as llama-quantize has it, where the source was GGUF.
    file_type: the number in `general.file_type`; None guesses it. pairs: keys for the end. Parts:
    max_bytes of tensor data and max_tensors each, 0 for no limit; or part_of, by weight.
    """

    arranged: bool = False
    file_type: int | None = None
    pairs: Mapping[str, Any] = field(default_factory=dict)
    max_bytes: int = 0
    max_tensors: int = 0
    part_of: Mapping[str, int] = field(default_factory=dict)

    @property
    def is_split(self) -> bool:
        """Whether there may be several parts."""
        return bool(self.max_bytes or self.max_tensors or self.part_of)


@dataclass(frozen=True)
class StoredGrid:
    """How activations become codes: round(x / scale) + zero, as `dtype`."""

    scale: float
    zero: int
    dtype: str


@dataclass(frozen=True)
class WriteOptions:
    """How to write: flavour after the colon of `--to`, worker threads, progress in bytes written.

    `shard_bytes` splits Hugging Face output; 0 writes one file. `opset` is ONNX's; None: lowest.
    `gguf` says what a GGUF file holds beside the model, and its parts. `activations`: empty, or
    `int8-dynamic` for products in integers where an ONNX file's weights have 8 bits. `grids`: of
    what weights meet in an ONNX file of a language model, by the names of weights.
    """

    flavour: str = ""
    threads: int = 1
    progress: Progress | None = None
    shard_bytes: int = 5_000_000_000
    opset: int | None = None
    gguf: GgufChoices = GgufChoices()
    activations: str = ""
    grids: Mapping[str, StoredGrid] = field(default_factory=dict)


@dataclass(frozen=True)
class WrittenTensor:
    """One tensor as it lies in the output: its new name and bytes.

    verdict: where the container says an encoding's values in its own way, how exactly it does.
    shape: where the container holds only a piece of the source.
    """

    source_name: str
    name: str
    encoding: str
    nbytes: int
    verdict: str = ""
    shape: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Forecast:
    """What `write` would write: files with their bytes, first the one to open; tensors.

    exact: False where the bytes are those of the weights alone.
    """

    files: dict[Path, int]
    tensors: list[WrittenTensor]
    exact: bool = True


class Format(Protocol):
    """What each entry of FORMATS offers."""

    @property
    def name(self) -> str:
        """Return the name that `--to` takes."""

    @property
    def extensions(self) -> tuple[str, ...]:
        """Return file endings that choose this format for output; empty for folders."""

    def detect(self, path: Path) -> bool:
        """Whether the content of `path` is of this format."""

    def read(self, path: Path, options: ReadOptions) -> Model:
        """Return the model at `path`; weights stay on disk.

        Raises:
            FormatError: the file breaks a rule of the format.
            UnsupportedError: the architecture or a type is unknown.
        """

    def verify_content(self, path: Path, threads: int) -> None:
        """Check the stored bytes against the hashes that the file carries, if its format has any.

        Raises:
            FormatError: a hash does not match.
        """

    def profile(self, flavour: str = "") -> Profile:
        """Return what the container can hold."""

    def write(self, model: Model, path: Path, options: WriteOptions) -> list[WrittenTensor]:
        """Write the model, atomically, streaming every tensor.

        Raises:
            UnsupportedError: the container cannot say something the model needs.
        """


@runtime_checkable
class Forecasting(Protocol):
    """A format that knows beforehand what it will write."""

    def forecast(self, model: Model, path: Path, options: WriteOptions) -> Forecast:
        """Return what `write` would write; nothing is encoded.

        Raises:
            UnsupportedError: as `write`.
        """
