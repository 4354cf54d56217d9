"""Data sets of the hub that hold plain text: `org/name[@revision]`, `org/name/file.jsonl`."""

from __future__ import annotations

from pathlib import Path

from halfbyte.converters.hugging_face.hub import (
    HubId,
    parse_hub_id,
    quiet_unless_terminal,
    reported,
)
from halfbyte.errors import HalfbyteError

ENDINGS = (".txt", ".jsonl", ".ndjson")
SHOWN = 5


def fetch_data(source: str) -> Path:
    """Return the local path of a data set's text file; what is not cached is downloaded.

    Of several files the one whose name says `train` is taken. Offline, what the cache has is used.

    Raises:
        HalfbyteError: the text is no hub id, there is no such file, or there are several.
    """
    found = parse_hub_id(source)
    if found is None:
        raise HalfbyteError(
            f"{source}: no such file or folder, no preset:NAME and not a hub id "
            "(org/name[@revision]); check the path"
        )
    quiet_unless_terminal()
    return _file(found, found.file or _only(found, _names(found)))


def _file(found: HubId, name: str) -> Path:
    from huggingface_hub import hf_hub_download

    if not name.endswith(ENDINGS):
        raise _unreadable(found, [name])

    def download() -> str:
        return hf_hub_download(
            found.repository,
            name,
            repo_type="dataset",
            revision=found.revision or None,
            library_name="halfbyte",
        )

    return Path(reported(found, download, "downloaded"))


def _names(found: HubId) -> list[str]:
    """Return the names of the repository's files; offline, of those in the cache."""
    from huggingface_hub import HfApi, constants, snapshot_download

    revision = found.revision or None
    if not constants.HF_HUB_OFFLINE:
        api = HfApi(library_name="halfbyte")

        def listed() -> list[str]:
            info = api.dataset_info(found.repository, revision=revision)
            return [sibling.rfilename for sibling in info.siblings or []]

        return reported(found, listed, "downloaded")

    def cached() -> str:
        return snapshot_download(
            found.repository, repo_type="dataset", revision=revision, local_files_only=True
        )

    folder = Path(reported(found, cached, "downloaded"))
    return [file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()]


def _only(found: HubId, names: list[str]) -> str:
    texts = sorted(name for name in names if name.endswith(ENDINGS))
    training = [name for name in texts if "train" in name]
    if len(texts) > 1 and len(training) == 1:
        texts = training
    if not texts:
        raise _unreadable(found, [name for name in names if not name.startswith(".")])
    if len(texts) > 1:
        shown = ", ".join(texts[:SHOWN]) + (" ..." if len(texts) > SHOWN else "")
        raise HalfbyteError(
            f"{found}: holds {len(texts)} files of text ({shown}), one was required; name it as "
            f"{found.repository}/{texts[0]}"
        )
    return texts[0]


def _unreadable(found: HubId, names: list[str]) -> HalfbyteError:
    shown = ", ".join(sorted(names)[:SHOWN]) or "nothing"
    return HalfbyteError(
        f"{found}: holds {shown}; a .txt or .jsonl file was required; write some of its rows as "
        ".jsonl with `text` on each line (the `datasets` library does: to_json)"
    )
