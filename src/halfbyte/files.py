"""Atomic output, path containment and hashes.

Output appears under its final name only when it is whole: writers work on a
temporary name in the target folder, flush it to disk, then rename it.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import secrets
import shutil
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

from halfbyte.errors import FormatError, HalfbyteError

HASH_CHUNK_BYTES = 1 << 20
EARLY_SYNC_BYTES = 64 << 20


def _temporary_name(destination: Path) -> Path:
    return destination.with_name(f".{destination.name}.{secrets.token_hex(4)}.partial")


def _require_parent(destination: Path) -> None:
    parent = destination.parent
    if not parent.is_dir():
        raise HalfbyteError(
            f"{destination}: folder {str(parent)!r} does not exist; create it or write elsewhere"
        )


def _named(error: OSError, partial: Path, final: Path) -> None:
    """Let a failed write name the output, not the temporary file or nothing."""
    full = error.filename is None and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    if full or str(error.filename).startswith(str(partial)):
        error.filename = str(final)


def _require_file(final: Path) -> None:
    _require_parent(final)
    if final.is_dir():
        raise HalfbyteError(f"{final}: is a folder, a file was required; name a file inside it")
    if final.exists() and not final.is_file():
        raise HalfbyteError(f"{final}: is a device or pipe, a file was required; name a file")


class EarlySync:
    """Sends what was written to the disk while more is made, so that the last sync has little left.

    Systems keep gigabytes of written data in memory before they start on their own.
    """

    def __init__(self, stream: IO[bytes]) -> None:
        """Watch `stream`; nothing happens before enough was written."""
        self._stream = stream
        self._waiting = 0
        self._worker: threading.Thread | None = None

    def wrote(self, count: int) -> None:
        """Count written bytes; from time to time start a sync in the background."""
        self._waiting += count
        busy = self._worker is not None and self._worker.is_alive()
        if self._waiting < EARLY_SYNC_BYTES or busy:
            return
        self._waiting = 0
        self._worker = threading.Thread(target=self._sync, daemon=True)
        self._worker.start()

    def _sync(self) -> None:
        with contextlib.suppress(OSError, ValueError):  # the last sync tells of errors
            os.fsync(self._stream.fileno())

    def finish(self) -> None:
        """Wait for a sync that is under way; the stream may be closed afterwards."""
        if self._worker is not None:
            self._worker.join()


@contextlib.contextmanager
def atomic_file(destination: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """Yield a binary file that replaces `destination` when the block ends without an error.

    Raises:
        HalfbyteError: the target folder does not exist, or `destination` is no regular file.
    """
    final = Path(destination)
    _require_file(final)
    partial = _temporary_name(final)
    try:
        with partial.open("w+b") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(partial, final)
    except BaseException as error:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        if isinstance(error, OSError):
            _named(error, partial, final)
        raise


@contextlib.contextmanager
def atomic_files(destinations: Sequence[Path]) -> Iterator[list[Path]]:
    """Yield a path to write for each destination; all take their names when the block ends.

    The first destination is the one by which the set is opened: it gets its name last, and one
    that is already there goes before any other is replaced.

    Raises:
        HalfbyteError: a target folder does not exist, or a destination is no regular file.
    """
    for final in destinations:
        _require_file(final)
    partials = [_temporary_name(final) for final in destinations]
    named: list[Path] = []
    try:
        yield partials
        for partial in partials:
            with partial.open("rb") as stream:
                os.fsync(stream.fileno())
        destinations[0].unlink(missing_ok=True)
        for partial, final in reversed(list(zip(partials, destinations, strict=True))):
            os.replace(partial, final)
            named.append(final)
    except BaseException as error:
        for leftover in (*partials, *named):
            with contextlib.suppress(OSError):
                leftover.unlink(missing_ok=True)
        if isinstance(error, OSError):
            for partial, final in zip(partials, destinations, strict=True):
                _named(error, partial, final)
        raise


@contextlib.contextmanager
def atomic_folder(destination: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield an empty folder that becomes `destination` when the block ends without an error.

    A folder already there is replaced only if it is empty.

    Raises:
        HalfbyteError: `destination` is a file or a folder with content.
    """
    final = Path(destination)
    _require_parent(final)
    if final.exists() and (not final.is_dir() or any(final.iterdir())):
        raise HalfbyteError(f"{final}: already exists and is not an empty folder; name a new one")
    partial = _temporary_name(final)
    try:
        partial.mkdir()
        yield partial
        for entry in partial.rglob("*"):
            if entry.is_file():
                with entry.open("rb") as stream:
                    os.fsync(stream.fileno())
        if final.is_dir():
            final.rmdir()
        os.replace(partial, final)
    except BaseException as error:
        shutil.rmtree(partial, ignore_errors=True)
        if isinstance(error, OSError):
            _named(error, partial, final)
        raise


def contained(root: str | os.PathLike[str], name: str) -> Path:
    """Return `root / name`, refusing names that leave `root`.

    Links that a hub cache uses (a name inside `root` that points to a blob) are allowed:
    only the name itself is judged.

    Raises:
        FormatError: the name is empty, absolute, has a NUL or climbs out of `root`.
    """
    parts = name.replace("\\", "/").split("/")
    bad = not name or "\0" in name or name[0] in "/\\" or ".." in parts or ":" in parts[0]
    if bad:
        raise FormatError(root, f"file name {name!r} leaves the folder; it must stay inside")
    return Path(root) / name


def sha256(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a file as hexadecimal text."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as stream:
        while chunk := stream.read(HASH_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
