"""The Hugging Face format: a folder with config.json and weights, or one safetensors file."""

from __future__ import annotations

from pathlib import Path

from halfbyte.converters.format import ReadOptions, WriteOptions, WrittenTensor
from halfbyte.ir.model import Model
from halfbyte.ir.profile import Profile


class HuggingFaceFormat:
    """Entry `hf` of FORMATS."""

    name = "hf"
    extensions: tuple[str, ...] = ()

    def detect(self, path: Path) -> bool:
        """Whether `path` is a folder with weights or a config, or a safetensors or pickle file.

        A folder with a config and no weights but ONNX files is left to that format.
        """
        from halfbyte.converters.hugging_face.checkpoint import PICKLE_ENDINGS, has_weights
        from halfbyte.converters.hugging_face.safetensors import looks_like_safetensors
        from halfbyte.converters.onnx.folder import holds_onnx

        if path.is_dir():
            has_config = (path / "config.json").is_file()
            return has_weights(path) or (has_config and not holds_onnx(path))
        return looks_like_safetensors(path) or path.suffix in (".safetensors", *PICKLE_ENDINGS)

    def read(self, path: Path, options: ReadOptions) -> Model:
        """Return the model at `path`; weights stay on disk.

        Raises:
            FormatError: a file breaks a rule, is missing or does not fit another.
            UnsupportedError: the checkpoint is quantized or pickled in a way not read here.
        """
        from halfbyte.converters.hugging_face.directory import read_model

        return read_model(path, options)

    def verify_content(self, path: Path, threads: int) -> None:
        """Do nothing: a Hugging Face folder carries no hashes."""

    def profile(self, flavour: str = "") -> Profile:
        """Return what the container can hold.

        Raises:
            UnsupportedError: the flavour is unknown.
        """
        from halfbyte.converters.hugging_face.checkpoints import checkpoint_of_flavour
        from halfbyte.converters.hugging_face.profile import HuggingFaceProfile

        checkpoint = checkpoint_of_flavour(flavour)
        return HuggingFaceProfile() if checkpoint is None else checkpoint.profile()

    def write(self, model: Model, path: Path, options: WriteOptions) -> list[WrittenTensor]:
        """Write a folder, or one safetensors file when the path ends so.

        Raises:
            UnsupportedError: a weight is not dense or has no name here.
        """
        from halfbyte.converters.hugging_face.folder_writer import write_folder

        return write_folder(model, path, options)


HUGGING_FACE = HuggingFaceFormat()
