"""The Hugging Face hub: fetch what a model needs, upload what was written.

`org/name[@revision]` stands for a repository, `org/name/file.gguf[@revision]` for one file of it;
an ONNX file brings its files of data, config and tokenizer along.
huggingface-hub finds the token, keeps the cache, resumes broken transfers and works offline from
the cache (HF_HUB_OFFLINE=1); HF_ENDPOINT names another server.
"""

from __future__ import annotations

import glob
import re
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NoReturn, TypeVar

from halfbyte.converters.hugging_face.checkpoint import (
    PICKLE_FILE,
    PICKLE_INDEX,
    SAFETENSORS_FILE,
    SAFETENSORS_INDEX,
)
from halfbyte.converters.hugging_face.checkpoints.detection import OTHER_FILES
from halfbyte.converters.hugging_face.directory import TEXT_FILES
from halfbyte.converters.onnx.folder import ENDING, GENAI_FILE, genai_model, listed, read_genai
from halfbyte.errors import FormatError, HalfbyteError, UnsupportedError

Result = TypeVar("Result")

SINGLE_FILES = (".hb", ".gguf")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_SHARD = re.compile(r".+-\d{5}-of-\d{5}\.(safetensors|bin)")
_TEMPLATE = re.compile(r"additional_chat_templates/[^/]+\.jinja")
_HTTP_UNAUTHORIZED = 401


@dataclass(frozen=True)
class HubId:
    """A repository, perhaps one file of it, perhaps at a revision."""

    repository: str
    file: str = ""
    revision: str = ""

    def __str__(self) -> str:
        """Return the id as it is typed."""
        file = f"/{self.file}" if self.file else ""
        return self.repository + file + (f"@{self.revision}" if self.revision else "")


def parse_hub_id(text: str, revision: str = "") -> HubId | None:
    """Return the hub id in a text, or None when it has not the form of one."""
    body, _, after = text.partition("@")
    organisation, _, rest = body.partition("/")
    name, _, file = rest.partition("/")
    if not _NAME.fullmatch(organisation) or not _NAME.fullmatch(name):
        return None
    steps = file.split("/")
    if file and any(step in ("", ".", "..") for step in steps):
        return None
    return HubId(f"{organisation}/{name}", file, revision or after)


def resolve(source: str, revision: str = "", allow_pickle: bool = True) -> Path:
    """Return the local path of a file, folder or hub id; what is not cached is downloaded.

    A path that exists wins over a hub id. Without `allow_pickle` nothing is downloaded from a
    repository that holds pickled weights only.

    Raises:
        HalfbyteError: nothing is there, access is denied, or the hub cannot be reached and the
            model is not in the cache.
    """
    if Path(source).exists():
        return Path(source)
    found = parse_hub_id(source, revision)
    if found is None:
        raise HalfbyteError(
            f"{source}: no such file or folder, and not a hub id (org/name[@revision]); "
            "check the path"
        )
    quiet_unless_terminal()
    if found.file:
        return (_onnx_file if found.file.endswith(ENDING) else _file)(found, found.file)
    return _repository(found, allow_pickle)


def check_repository(repository: str, revision: str = "") -> HubId:
    """Return the id of a repository; for a check before work that ends with an upload.

    Raises:
        HalfbyteError: the text is not ORG/NAME.
    """
    found = parse_hub_id(repository, revision)
    if found is None or found.file:
        raise HalfbyteError(f"{repository}: not a repository of the hub; write it as ORG/NAME")
    return found


def push(path: str | Path, repository: str, *, revision: str = "", message: str = "") -> str:
    """Upload a folder's content or one file to a repository, made when missing; return its URL.

    Raises:
        HalfbyteError: the id is no repository, there is no token, or the upload fails.
    """
    from huggingface_hub import HfApi

    local = Path(path)
    found = check_repository(repository, revision)
    if not local.exists():
        raise HalfbyteError(f"{local}: no such file or folder to upload; check the path")
    quiet_unless_terminal()
    api: Any = HfApi(library_name="halfbyte")
    options = {
        "repo_id": found.repository,
        "revision": found.revision or None,
        "commit_message": message or f"Upload {local.name} with halfbyte",
    }

    def upload() -> str:
        url = api.create_repo(found.repository, exist_ok=True)
        if local.is_dir():
            api.upload_folder(folder_path=str(local), **options)
        else:
            api.upload_file(path_or_fileobj=str(local), path_in_repo=local.name, **options)
        return str(url)

    return reported(found, upload, "uploaded")


def quiet_unless_terminal() -> None:
    """Turn the library's progress bars off where nobody sees them."""
    from huggingface_hub.utils.tqdm import disable_progress_bars

    if not sys.stderr.isatty():
        disable_progress_bars()


def _file(found: HubId, name: str) -> Path:
    from huggingface_hub import hf_hub_download

    def download() -> str:
        return hf_hub_download(
            found.repository, name, revision=found.revision or None, library_name="halfbyte"
        )

    return Path(reported(found, download, "downloaded"))


def _repository(found: HubId, allow_pickle: bool) -> Path:
    """Return the local folder of a repository with the files that are needed, or its one file."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    revision = found.revision or None
    try:
        info = HfApi(library_name="halfbyte").model_info(found.repository, revision=revision)
        names: list[str] | None = [sibling.rfilename for sibling in info.siblings or []]
    except HfHubHTTPError as error:
        if error.response.status_code < 500:
            _explain(found, error, "downloaded")
        names = None
    except Exception as error:  # offline by wish or by accident: the library's types differ
        if isinstance(error, ValueError):
            _explain(found, error, "downloaded")
        names = None
    if names is None:
        patterns = [glob.escape(name) for name in (*TEXT_FILES, *OTHER_FILES)]
    else:
        wanted = wanted_files(names)
        if not wanted and (name := _onnx_name(found, names)):
            return _onnx_file(found, name)
        if len(wanted) == 1 and wanted[0].endswith(SINGLE_FILES):
            return _file(found, wanted[0])
        if not wanted:
            _refuse_content(found, names)
        if not allow_pickle and wanted[-1].endswith(".bin"):
            raise UnsupportedError(
                "a pickled checkpoint",
                str(found),
                advice="give --allow-pickle to read it",
            )
        patterns = [glob.escape(name) for name in wanted]
    return _snapshot(found, patterns, only_cached=names is None)


def _snapshot(found: HubId, patterns: list[str], *, only_cached: bool = False) -> Path:
    from huggingface_hub import snapshot_download

    def download() -> str:
        return snapshot_download(
            found.repository,
            revision=found.revision or None,
            allow_patterns=patterns,
            local_files_only=only_cached,
            library_name="halfbyte",
        )

    return Path(reported(found, download, "downloaded"))


def _onnx_file(found: HubId, name: str) -> Path:
    """Return the local path of an ONNX file, fetched with what it names and what lies around it."""
    from halfbyte.converters.onnx.reader import external_locations

    try:
        locations = external_locations(_file(found, name))
    except FormatError:
        locations = []  # opening the file says what is wrong with it
    beside = PurePosixPath(name).parent
    texts = [*TEXT_FILES, GENAI_FILE]
    around = [str(beside / text) for text in (*texts, *locations)]
    wanted = dict.fromkeys([name, *texts, *around])
    return _snapshot(found, [glob.escape(each) for each in wanted]) / name


def _onnx_name(found: HubId, names: Iterable[str]) -> str:
    """Return the one ONNX file of a repository, or the one that its genai_config.json names.

    Empty where there is none, and where files of other formats compete.

    Raises:
        HalfbyteError: there are several.
    """
    present = set(names)
    models = sorted(name for name in present if name.endswith(ENDING))
    if not models or any(name.endswith(SINGLE_FILES) for name in present):
        return ""
    if GENAI_FILE in present:
        config = _file(found, GENAI_FILE)
        named = genai_model(read_genai(config), config)
        if named in present:
            return named
        rule = f"names the model {named!r}, which the repository lacks; name the file"
        raise FormatError(config, rule)
    if len(models) > 1:
        raise HalfbyteError(
            f"{found}: {listed(models)}, one was required; "
            f"name it as {found.repository}/{models[0]}"
        )
    return models[0]


def wanted_files(names: Iterable[str]) -> list[str]:
    """Return the files of a repository to fetch: text files and one set of weights.

    Safetensors are preferred to pickles; other frameworks' files are left alone. Empty when there
    are no weights; a single .gguf or .hb file when that is all there is.
    """
    present = set(names)
    top = sorted(name for name in present if "/" not in name)
    loose = [name for name in top if name.endswith(".safetensors")]
    shards = [name for name in loose if _SHARD.fullmatch(name)]
    if SAFETENSORS_INDEX in present:
        weights = [SAFETENSORS_INDEX, *shards]
    elif SAFETENSORS_FILE in present:
        weights = [SAFETENSORS_FILE]
    elif shards or len(loose) == 1:
        weights = shards or loose
    elif PICKLE_INDEX in present:
        bins = [name for name in top if name.endswith(".bin") and _SHARD.fullmatch(name)]
        weights = [PICKLE_INDEX, *bins]
    elif PICKLE_FILE in present:
        weights = [PICKLE_FILE]
    else:
        single = [name for name in sorted(present) if name.endswith(SINGLE_FILES)]
        return single if len(single) == 1 else []
    templates = [name for name in sorted(present) if _TEMPLATE.fullmatch(name)]
    texts = [name for name in (*TEXT_FILES, *OTHER_FILES) if name in present]
    return texts + templates + weights


def _refuse_content(found: HubId, names: list[str]) -> NoReturn:
    single = sorted(name for name in names if name.endswith(SINGLE_FILES))
    if single:
        shown = ", ".join(single[:5]) + (" ..." if len(single) > 5 else "")
        raise HalfbyteError(
            f"{found}: {len(single)} models lie there ({shown}), one was required; "
            f"name it as {found.repository}/{single[0]}"
        )
    raise HalfbyteError(
        f"{found}: no weights there that can be read (safetensors, pytorch_model.bin, GGUF, .hb, "
        "ONNX)"
    )


def reported(found: HubId, action: Callable[[], Result], done: str) -> Result:
    """Return what a call of the library gives; done: what it does, for errors.

    Raises:
        HalfbyteError: it failed; in one line.
    """
    try:
        return action()
    except HalfbyteError:
        raise
    except Exception as error:  # each release of the library has its own set of errors
        _explain(found, error, done)


def _explain(found: HubId, error: Exception, done: str) -> NoReturn:
    """Raise one line that says what went wrong and what to do."""
    from huggingface_hub import errors

    status = getattr(getattr(error, "response", None), "status_code", None)
    advice = "log in with 'hf auth login' or set HF_TOKEN"
    if isinstance(error, errors.GatedRepoError):
        reason = f"the repository is gated; accept its terms on its page, then {advice}"
    elif isinstance(error, errors.RepositoryNotFoundError):
        reason = f"no such path here and no such repository, or it is private; check it or {advice}"
    elif isinstance(error, errors.RevisionNotFoundError):
        reason = f"the repository has no revision {found.revision or 'main'!r}; check its branches"
    elif isinstance(error, errors.LocalEntryNotFoundError):
        reason = (
            "no such path here, not in the hub's cache, and the hub is out of reach "
            "or HF_HUB_OFFLINE is set; check the path or go online"
        )
    elif isinstance(error, errors.EntryNotFoundError):
        reason = f"the repository has no file {found.file!r}; check its list of files"
    elif status == _HTTP_UNAUTHORIZED:
        reason = f"the hub refused the token (401); {advice}"
    elif isinstance(error, (errors.LocalTokenNotFoundError, errors.HFValidationError)):
        reason = f"{_first_line(error)}; {advice}"
    else:
        reason = f"could not be {done} ({_first_line(error)}); try again"
    raise HalfbyteError(f"{found}: {reason}") from error


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
