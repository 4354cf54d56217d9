"""Atomic output, path containment, hashes."""

from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path

import pytest

from halfbyte import files
from halfbyte.errors import FormatError, HalfbyteError
from halfbyte.files import HASH_CHUNK_BYTES, atomic_file, atomic_folder, contained, sha256


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_appears_when_it_is_whole(tmp_path):
    path = tmp_path / "x.bin"
    with atomic_file(path) as stream:
        stream.write(b"half")
        assert not path.exists()
        (partial,) = names(tmp_path)
        assert partial.startswith(".x.bin.") and partial.endswith(".partial")
        stream.seek(0)
        assert stream.read() == b"half"
    assert names(tmp_path) == ["x.bin"]
    assert path.read_bytes() == b"half"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_failure_keeps_the_old_file(error, tmp_path):
    path = tmp_path / "x.bin"
    path.write_bytes(b"old")
    with pytest.raises(error), atomic_file(path) as stream:
        stream.write(b"new")
        raise error
    assert names(tmp_path) == ["x.bin"]
    assert path.read_bytes() == b"old"


@pytest.mark.parametrize("atomic", [atomic_file, atomic_folder])
def test_a_full_disk_names_the_output(atomic, tmp_path):
    with pytest.raises(OSError, match="No space") as caught, atomic(tmp_path / "x.bin"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert caught.value.filename == str(tmp_path / "x.bin")
    assert names(tmp_path) == []


@pytest.mark.parametrize("atomic", [atomic_file, atomic_folder])
def test_a_name_too_long_names_the_output(atomic, tmp_path):
    path = tmp_path / ("x" * 254)
    with pytest.raises(OSError, match="too long") as caught, atomic(path):
        pass
    assert caught.value.filename == str(path)


def test_other_failures_keep_their_file(tmp_path):
    with pytest.raises(OSError, match="broken") as caught, atomic_file(tmp_path / "x.bin"):
        raise OSError(errno.EIO, "broken", "source.bin")
    assert caught.value.filename == "source.bin"


def test_a_file_replaces_another(tmp_path):
    path = tmp_path / "x.bin"
    path.write_bytes(b"old")
    with atomic_file(str(path)) as stream:
        stream.write(b"new")
    assert path.read_bytes() == b"new"


def test_bad_places_for_a_file(tmp_path):
    with (
        pytest.raises(HalfbyteError, match="does not exist; create it"),
        atomic_file(tmp_path / "no" / "x"),
    ):
        pass
    with (
        pytest.raises(HalfbyteError, match="is a folder, a file was required"),
        atomic_file(tmp_path),
    ):
        pass
    assert names(tmp_path) == []


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes")
def test_a_pipe_is_not_replaced(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(HalfbyteError, match="is a device or pipe"), atomic_file(pipe):
        pass
    assert pipe.is_fifo()


def test_a_folder_appears_when_it_is_whole(tmp_path):
    final = tmp_path / "model"
    with atomic_folder(final) as folder:
        assert not final.exists()
        (folder / "deep").mkdir()
        (folder / "deep" / "a.txt").write_text("a")
    assert names(tmp_path) == ["model"]
    assert (final / "deep" / "a.txt").read_text() == "a"


def test_an_empty_folder_is_filled(tmp_path):
    final = tmp_path / "model"
    final.mkdir()
    with atomic_folder(final) as folder:
        (folder / "a.txt").write_text("a")
    assert names(final) == ["a.txt"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_failed_folder_vanishes(error, tmp_path):
    with pytest.raises(error), atomic_folder(tmp_path / "model") as folder:
        (folder / "a.txt").write_text("a")
        raise error
    assert names(tmp_path) == []


def test_bad_places_for_a_folder(tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("x")
    for name in ("file", "full"):
        with (
            pytest.raises(HalfbyteError, match="not an empty folder"),
            atomic_folder(tmp_path / name),
        ):
            pass
    with pytest.raises(HalfbyteError, match="does not exist"), atomic_folder(tmp_path / "a" / "b"):
        pass
    assert names(tmp_path) == ["file", "full"]


@pytest.mark.parametrize("name", ["a", "a/b.txt", "..a", "a..b/c", "a/c:d", ".hidden"])
def test_names_inside_a_folder(name, tmp_path):
    assert contained(tmp_path, name) == tmp_path / name


@pytest.mark.parametrize(
    "name",
    ["", "/etc/passwd", "..", "../x", "a/../../x", "a\\..\\x", "\\x", "C:/x", "C:x", "a\0b"],
)
def test_names_that_leave_a_folder(name, tmp_path):
    with pytest.raises(FormatError, match="leaves the folder"):
        contained(tmp_path, name)


def test_sha256(tmp_path):
    path = tmp_path / "x"
    for content in (b"", os.urandom(HASH_CHUNK_BYTES + 5)):
        path.write_bytes(content)
        assert sha256(path) == hashlib.sha256(content).hexdigest()


def test_early_sync_starts_once_enough_was_written(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(files.os, "fsync", synced.append)
    with (tmp_path / "file").open("wb") as stream:
        early = files.EarlySync(stream)
        early.wrote(files.EARLY_SYNC_BYTES - 1)
        early.finish()
        assert synced == []
        early.wrote(1)
        early.finish()
        assert synced == [stream.fileno()]
        early.wrote(1)
        early.finish()
        assert len(synced) == 1


def test_early_sync_leaves_errors_to_the_last_sync(tmp_path, monkeypatch):
    def fails(number):
        raise OSError(28, "no space")

    monkeypatch.setattr(files.os, "fsync", fails)
    with (tmp_path / "file").open("wb") as stream:
        early = files.EarlySync(stream)
        early.wrote(files.EARLY_SYNC_BYTES)
        early.finish()
