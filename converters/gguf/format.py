"""GGUF in the table of formats."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from halfbyte.converters.format import Forecast, ReadOptions, WriteOptions, WrittenTensor
from halfbyte.converters.gguf.container import is_gguf
from halfbyte.converters.gguf.profile import GgufProfile
from halfbyte.converters.gguf.writer import file_bytes, stored_bytes
from halfbyte.errors import UnsupportedError
from halfbyte.ir.model import Model

if TYPE_CHECKING:
    from halfbyte.converters.gguf.output import Output


class GgufFormat:
    """Read and write `.gguf` files."""

    name = "gguf"
    extensions = (".gguf",)

    def detect(self, path: Path) -> bool:
        """Whether the file starts with GGUF's magic."""
        return is_gguf(path)

    def read(self, path: Path, options: ReadOptions) -> Model:
        """Return the model at `path`; see `reader.read_model`."""
        from halfbyte.converters.gguf.reader import read_model

        return read_model(path)

    def verify_content(self, path: Path, threads: int) -> None:
        """Do nothing: GGUF carries no hashes."""

    def profile(self, flavour: str = "") -> GgufProfile:
        """Return what the container can hold.

        Raises:
            UnsupportedError: a flavour is asked for; GGUF has none.
        """
        if flavour:
            raise UnsupportedError(f"flavour {flavour!r}", "gguf", ["gguf without a flavour"])
        return GgufProfile()

    def write(self, model: Model, path: Path, options: WriteOptions) -> list[WrittenTensor]:
        """Write the model, atomically, streaming every tensor.

        Raises:
            UnsupportedError: GGUF cannot say something that the model needs.
        """
        from halfbyte.converters.gguf.output import output
        from halfbyte.converters.gguf.split_writer import planned_shards, write_shards

        self.profile(options.flavour)
        made = output(model, options.gguf)
        shards = planned_shards(path, made, options.gguf)
        write_shards(shards, options.threads, options.progress)
        return _written(made)

    def forecast(self, model: Model, path: Path, options: WriteOptions) -> Forecast:
        """Return the files that `write` would write, with their bytes.

        Raises:
            UnsupportedError: as `write`.
        """
        from halfbyte.converters.gguf.output import output
        from halfbyte.converters.gguf.split_writer import planned_shards

        self.profile(options.flavour)
        made = output(model, options.gguf)
        shards = planned_shards(path, made, options.gguf)
        sizes = {shard.path: file_bytes(shard.metadata, shard.tensors) for shard in shards}
        return Forecast(sizes, _written(made))


def _written(made: Output) -> list[WrittenTensor]:
    return [
        WrittenTensor(source, tensor.name, tensor.encoding.name, stored_bytes(tensor))
        for source, tensor in zip(made.source_names, made.tensors, strict=True)
    ]


GGUF = GgufFormat()
