"""Tensor data in other files beside the model.

The file must lie, after links are followed, in the model's folder or in the folder of the model's
own real file: hub caches keep both as links into one folder of blobs. Anything else is refused
before it is opened.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from halfbyte.converters.onnx.messages import Pair
from halfbyte.errors import FormatError
from halfbyte.files import HASH_CHUNK_BYTES, contained

MAX_DIGITS = 19


@dataclass(frozen=True)
class ExternalData:
    """Where a tensor's bytes lie: real path, offset, length; SHA-1 of the file where given."""

    path: Path
    offset: int
    length: int
    checksum: str = ""


class ExternalFiles:
    """Finds the data files of one model; each is judged once."""

    def __init__(self, model: Path) -> None:
        """Take the path of the model."""
        self.model = model
        self._known: dict[str, tuple[Path, int]] = {}

    def locate(self, tensor: str, pairs: Sequence[Pair], nbytes: int) -> ExternalData:
        """Return where `nbytes` bytes of a tensor lie.

        Raises:
            FormatError: an entry is no sound place, or the file is not where it may be.
        """
        entries: dict[str, str] = {}
        for pair in pairs:
            if pair.key in entries:
                raise FormatError(
                    self.model, f"tensor {tensor!r} has external key {pair.key!r} twice"
                )
            entries[pair.key] = pair.value
        if "location" not in entries:
            raise FormatError(
                self.model, f"tensor {tensor!r} lies in another file, its location is missing"
            )
        path, size = self._file(entries["location"], tensor)
        offset = self._number(entries.get("offset", "0"), tensor, "offset")
        length = self._number(entries.get("length", str(nbytes)), tensor, "length")
        if length != nbytes:
            raise FormatError(
                self.model,
                f"tensor {tensor!r} has {length} external bytes, its shape needs {nbytes}",
            )
        if offset + length > size:
            raise FormatError(
                path,
                f"tensor {tensor!r} ends at byte {offset + length}, the file has {size}; "
                "it is cut off or of another model",
                offset,
            )
        return ExternalData(path, offset, length, entries.get("checksum", ""))

    def _number(self, text: str, tensor: str, what: str) -> int:
        if not (text.isascii() and text.isdigit() and len(text) <= MAX_DIGITS):
            raise FormatError(
                self.model,
                f"tensor {tensor!r} has external {what} {text[:40]!r}, a whole number >= 0 "
                "was required",
            )
        return int(text)

    def _file(self, location: str, tensor: str) -> tuple[Path, int]:
        if location not in self._known:
            self._known[location] = self._judge(location, tensor)
        return self._known[location]

    def _judge(self, location: str, tensor: str) -> tuple[Path, int]:
        """Return the real path and size of a data file that the model may read."""
        folders = [self.model.parent, Path(os.path.realpath(self.model)).parent]
        allowed = [Path(os.path.realpath(folder)) for folder in folders]
        for folder in folders:
            named = contained(folder, location)
            real = Path(os.path.realpath(named))
            if not os.path.lexists(named) or not real.exists():
                continue
            if not any(real.is_relative_to(root) for root in allowed):
                raise FormatError(
                    self.model,
                    f"external data {location!r} of tensor {tensor!r} links to {str(real)!r}, "
                    "outside the model's folder; copy the file there",
                )
            status = real.lstat()
            if not stat.S_ISREG(status.st_mode):
                raise FormatError(
                    self.model, f"external data {location!r} is no regular file, one was required"
                )
            return real, status.st_size
        raise FormatError(
            self.model,
            f"external data file {location!r} of tensor {tensor!r} is missing; "
            "put it beside the model",
        )


def sha1(path: Path) -> str:
    """Return the SHA-1 of a file as hexadecimal text."""
    digest = hashlib.sha1(usedforsecurity=False)
    with path.open("rb") as stream:
        while chunk := stream.read(HASH_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def verify_checksums(checksums: Mapping[str, str]) -> None:
    """Check files against their SHA-1, given by path.

    Raises:
        FormatError: one does not match.
    """
    for name, wanted in checksums.items():
        found = sha1(Path(name))
        if found != wanted.lower():
            rule = f"has SHA-1 {found}, the model says {wanted[:40]}; copy it again"
            raise FormatError(name, rule)
