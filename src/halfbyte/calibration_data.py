"""What `--calib` names, as inputs that a calibration runs over, and what the output says of it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from halfbyte.array_files import graph_owner
from halfbyte.calibration_arrays import file_inputs, joined, samples_of
from halfbyte.calibration_documents import (
    LINES,
    PRESET,
    Document,
    file_documents,
    preset_documents,
)
from halfbyte.calibration_media import IMAGES, SOUNDS, MediaOptions, image_inputs, sound_inputs
from halfbyte.errors import HalfbyteError
from halfbyte.ir.model import Model

if TYPE_CHECKING:
    from halfbyte.quant.calibration.batches import Batches

ARRAYS = (".npz",)
TEXTS = (".txt", *LINES)
KINDS = {"arrays": ARRAYS, "images": IMAGES, "sounds": SOUNDS, "texts": TEXTS}


@dataclass(frozen=True)
class DataRequest:
    """Which data, and how much of it.

    sources: files, folders, ids of the hub, `preset:NAME`. samples: sequences of `length` tokens,
    or samples of other inputs, drawn by `seed`. skip_first: leave the first token of each out of
    the statistics.
    """

    sources: tuple[str, ...] = ()
    samples: int = 128
    length: int = 512
    seed: int = 0
    skip_first: bool = False
    media: MediaOptions = field(default_factory=MediaOptions)


@dataclass(frozen=True)
class CalibrationData:
    """Runs of a graph, what is recorded of them in the output, and notices."""

    batches: Batches
    facts: dict[str, Any]
    notices: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Source:
    """A source as it was given, and its files; none for a preset."""

    given: str
    files: list[Path]
    kind: str

    @property
    def name(self) -> str:
        """Return the name without folders of this machine."""
        return Path(self.given).name if Path(self.given).exists() else self.given


def read_calibration(model: Model, request: DataRequest) -> CalibrationData:
    """Return the inputs that a model is calibrated on.

    Raises:
        HalfbyteError: data is missing, broken, or does not fit the model.
    """
    from halfbyte.quant.calibration.batches import TOKEN_IDS

    sources = [_source(given) for given in request.sources]
    kinds = {source.kind for source in sources}
    if len(kinds) > 1:
        raise HalfbyteError(
            f"calibration: {' and '.join(sorted(kinds))} were given together; give one kind of data"
        )
    if kinds != {"texts"}:
        return _from_inputs(model, sources, request)
    inputs = [value.name for value in model.graph.inputs]
    if TOKEN_IDS not in inputs:
        raise HalfbyteError(
            f"{sources[0].name}: is a text, the model takes {', '.join(inputs)}; give .npz files "
            "of inputs, or a folder of images or .wav files"
        )
    return _from_texts(model, sources, request)


def owner_of(model: Model, sources: Sequence[str]) -> Model:
    """Return the model over the graph that the data is for, see `graph_owner`."""
    files = [file for given in sources for file in _source(given).files]
    arrays = [file for file in files if file.suffix.lower() in ARRAYS]
    return graph_owner(arrays[0], model) if arrays else model


def _source(given: str) -> _Source:
    if given.startswith(PRESET):
        return _Source(given, [], "texts")
    path = Path(given)
    if not path.exists():
        from halfbyte.converters.hugging_face.hub_data import fetch_data

        return _Source(given, [fetch_data(given)], "texts")
    if path.is_dir():
        return _folder(given, path)
    if not path.is_file():
        raise HalfbyteError(f"{path}: is no regular file; give a file or a folder")
    return _Source(given, [path], _kind(path))


def _kind(path: Path) -> str:
    ending = path.suffix.lower()
    return next((kind for kind, endings in KINDS.items() if ending in endings), "texts")


def _folder(given: str, path: Path) -> _Source:
    """Return the files of a folder that are data, by name."""
    known = [ending for endings in KINDS.values() for ending in endings]
    found = sorted(f for f in path.iterdir() if f.is_file() and f.suffix.lower() in known)
    kinds = sorted({_kind(file) for file in found})
    if len(kinds) != 1:
        first = [next(file.name for file in found if _kind(file) == kind) for kind in kinds]
        each = [f"{kind} ({name})" for kind, name in zip(kinds, first, strict=True)]
        what = f"holds {' and '.join(each)}" if kinds else "holds no data that can be read"
        raise HalfbyteError(
            f"{path}: {what}, one kind of files was required: .npz, images, .wav, or .txt and "
            ".jsonl"
        )
    return _Source(given, found, kinds[0])


def _documents(source: _Source) -> list[Document]:
    if not source.files:
        return preset_documents(source.given)
    return [document for file in source.files for document in file_documents(file)]


def _from_texts(model: Model, sources: list[_Source], request: DataRequest) -> CalibrationData:
    from halfbyte.calibration_texts import sequences_of
    from halfbyte.quant.calibration.batches import token_batches

    documents = [_documents(source) for source in sources]
    found = sequences_of(model, documents, request.samples, request.length, request.seed)
    table = np.concatenate(found.tables)
    batches = token_batches(table, skip_first=request.skip_first)
    facts = _facts(batches, sources, request) | {"length": found.length}
    return CalibrationData(batches, facts, found.notices)


def _from_inputs(model: Model, sources: list[_Source], request: DataRequest) -> CalibrationData:
    from halfbyte.quant.calibration.batches import input_batches
    from halfbyte.quant.calibration.packing import chosen

    graph, media = model.graph, request.media
    every = [file for source in sources for file in source.files]
    # Each file has a sample at least: more files than samples need not be read.
    files = [every[place] for place in chosen(len(every), request.samples, request.seed)]
    samples: list[dict[str, Any]] = []
    if sources[0].kind == "arrays":
        for file in files:
            samples += samples_of(graph, file_inputs(file, graph))
    else:
        read = image_inputs if sources[0].kind == "images" else sound_inputs
        samples += read(files, graph, media)
    names = {frozenset(sample) for sample in samples}
    if len(names) > 1:
        first, second, *_ = sorted(", ".join(sorted(each)) for each in names)
        raise HalfbyteError(
            f"calibration: some files hold {first}, others {second}; all must hold the same inputs"
        )
    picked = chosen(len(samples), request.samples, request.seed)
    batches = input_batches(joined(graph, [samples[place] for place in picked]))
    facts = _facts(batches, sources, request) | {"samples": len(picked)}
    return CalibrationData(batches, facts)


def _facts(batches: Batches, sources: list[_Source], request: DataRequest) -> dict[str, Any]:
    return {
        "sources": [source.name for source in sources],
        "sha256": batches_hash(batches),
        "samples": batches.samples,
        "seed": request.seed,
        "skip_first": request.skip_first,
    }


def batches_hash(batches: Batches) -> str:
    """Return a hash of the names, shapes and values of all inputs."""
    digest = hashlib.sha256()
    for run, mask in zip(batches.runs, batches.masks, strict=True):
        for name, given in sorted(run.items()):
            for array in given if isinstance(given, list) else [np.asarray(given)]:
                digest.update(f"{name} {array.dtype} {array.shape}".encode())
                _feed(digest, array)
        digest.update(b"all" if mask is None else np.packbits(mask).tobytes())
    return digest.hexdigest()


def _feed(digest: Any, array: Any) -> None:
    if array.dtype.kind in "OSU":
        digest.update(repr(array.tolist()).encode())
    else:
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
