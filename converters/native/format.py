"""The native format `.hb`."""

from __future__ import annotations

from pathlib import Path

from halfbyte.converters.format import Forecast, ReadOptions, WriteOptions, WrittenTensor
from halfbyte.ir.model import Model
from halfbyte.ir.profile import Profile


class NativeFormat:
    """Entry `hb` of FORMATS."""

    name = "hb"
    extensions: tuple[str, ...] = (".hb",)

    def detect(self, path: Path) -> bool:
        """Whether the header of `path` says that it is a .hb file."""
        from halfbyte.converters.native.reader import looks_native

        return path.is_file() and looks_native(path)

    def read(self, path: Path, options: ReadOptions) -> Model:
        """Return the model at `path`; weights stay on disk.

        Raises:
            FormatError: the file breaks a rule of the format.
            UnsupportedError: it was written by a later version, or holds an unknown encoding.
        """
        from halfbyte.converters.native.reader import read_native

        return read_native(path)

    def verify_content(self, path: Path, threads: int) -> None:
        """Check every array against the SHA-256 in the header.

        Raises:
            FormatError: a hash does not match; the message names the array.
        """
        from halfbyte.converters.native.reader import verify_hashes

        verify_hashes(path, threads)

    def profile(self, flavour: str = "") -> Profile:
        """Return what the container can hold.

        Raises:
            UnsupportedError: a flavour is asked for; there is none.
        """
        from halfbyte.converters.native.layout import require_no_flavour
        from halfbyte.converters.native.profile import NativeProfile

        require_no_flavour(flavour)
        return NativeProfile()

    def write(self, model: Model, path: Path, options: WriteOptions) -> list[WrittenTensor]:
        """Write the model as one file, atomically.

        Raises:
            UnsupportedError: a name is reserved or taken twice, an encoding or value is unknown.
        """
        from halfbyte.converters.native.writer import write_native

        return write_native(model, path, options)

    def forecast(self, model: Model, path: Path, options: WriteOptions) -> Forecast:
        """Return the file that `write` would write, with its bytes.

        Raises:
            UnsupportedError: as `write`.
        """
        from halfbyte.converters.native.writer import forecast_native

        return forecast_native(model, path, options)


NATIVE = NativeFormat()
