"""ONNX in the table of formats."""

from __future__ import annotations

from pathlib import Path

from halfbyte.converters.format import ReadOptions, WriteOptions, WrittenTensor
from halfbyte.ir.model import Model
from halfbyte.ir.profile import Profile


class OnnxFormat:
    """Read and write `.onnx` files; flavour `ort` uses onnxruntime's own operators."""

    name = "onnx"
    extensions: tuple[str, ...] = (".onnx",)

    def detect(self, path: Path) -> bool:
        """Whether the file is a ModelProto, or the folder holds ONNX files."""
        from halfbyte.converters.onnx.detect import is_onnx
        from halfbyte.converters.onnx.folder import holds_onnx

        return holds_onnx(path) if path.is_dir() else is_onnx(path)

    def read(self, path: Path, options: ReadOptions) -> Model:
        """Return the model at `path`, a file or a folder; see `reader.read_model`."""
        from halfbyte.converters.onnx.folder import model_file
        from halfbyte.converters.onnx.reader import read_model

        return read_model(model_file(path))

    def verify_content(self, path: Path, threads: int) -> None:
        """Check files of external data against the SHA-1 that the model gives, if any.

        Raises:
            FormatError: a hash does not match.
        """
        from halfbyte.converters.onnx.external_data import verify_checksums
        from halfbyte.converters.onnx.folder import model_file
        from halfbyte.converters.onnx.reader import read_checksums

        verify_checksums(read_checksums(model_file(path)))

    def profile(self, flavour: str = "") -> Profile:
        """Return what the container can hold in a flavour.

        Raises:
            UnsupportedError: there is no such flavour.
        """
        from halfbyte.converters.onnx.profile import OnnxProfile

        return OnnxProfile(flavour)

    def write(self, model: Model, path: Path, options: WriteOptions) -> list[WrittenTensor]:
        """Write the model, atomically, streaming every tensor; see `output.write_onnx`.

        Raises:
            UnsupportedError: ONNX cannot say something that the model needs.
        """
        from halfbyte.converters.onnx.output import write_onnx

        return write_onnx(model, path, options)


ONNX = OnnxFormat()
