"""GGUF in the table of formats."""

from __future__ import annotations

from pathlib import Path

from halfbyte.converters.format import ReadOptions, WriteOptions, WrittenTensor
from halfbyte.converters.gguf.container import is_gguf
from halfbyte.converters.gguf.profile import GgufProfile
from halfbyte.converters.gguf.writer import stored_bytes, write_gguf
from halfbyte.errors import UnsupportedError
from halfbyte.ir.model import Model


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

        self.profile(options.flavour)
        made = output(model)
        write_gguf(path, made.metadata, made.tensors, options.threads, options.progress)
        return [
            WrittenTensor(source, tensor.name, tensor.encoding.name, stored_bytes(tensor))
            for source, tensor in zip(made.source_names, made.tensors, strict=True)
        ]


GGUF = GgufFormat()
