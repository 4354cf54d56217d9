"""Importance matrices of a model: collected from a text, merged, described."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from halfbyte.conversion import ProgressFor
from halfbyte.converters.gguf.importance import ImportanceEntry, ImportanceMatrix
from halfbyte.converters.gguf.names import gguf_name
from halfbyte.engine import available_threads
from halfbyte.errors import HalfbyteError
from halfbyte.evaluation_data import beginning_of, is_language_model, read_text
from halfbyte.ir.model import Model
from halfbyte.ir.roles import Role
from halfbyte.ir.tensor import Tensor

if TYPE_CHECKING:
    from halfbyte.quant.calibration.imatrix import SquareCollector
    from halfbyte.verification.importance import ImportanceReport

LARGEST_SUM = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class ImportanceRequest:
    """What to collect.

    context: tokens per chunk; batch: tokens per run, None for one chunk; chunks: at most so many,
    after the first `skip`; process_output: the output head too; parse_special: texts of special
    tokens in the data become these tokens; save_every: chunks between calls of `save`.
    """

    context: int = 512
    batch: int | None = None
    chunks: int | None = None
    skip: int = 0
    process_output: bool = False
    parse_special: bool = False
    save_every: int = 1
    threads: int = 0
    device: str = "cpu"


@dataclass(frozen=True)
class Collected:
    """An importance matrix, and what to tell about it."""

    matrix: ImportanceMatrix
    tokens: int
    warnings: tuple[str, ...] = ()


def observed_name(tensor: Tensor, process_output: bool) -> str | None:
    """Return the GGUF name under which a weight is collected, None for one that is not."""
    key = tensor.key
    if key is None or key.kind != "weight" or len(tensor.shape) < 2:
        return None
    if key.layer is None and not (process_output and key.role is Role.OUTPUT_HEAD):
        return None
    try:
        return gguf_name(key)
    except KeyError:
        return None


def collect_importance(
    model: Model,
    data: str | Path,
    request: ImportanceRequest | None = None,
    progress: ProgressFor | None = None,
    save: Callable[[ImportanceMatrix], None] | None = None,
) -> Collected:
    """Run `model` over the text file `data` and return the squares that its weights met.

    `progress(tokens)` is called once and returns a function that takes tokens done. `save` gets
    what there is after every `request.save_every` chunks, the end excepted.

    Raises:
        HalfbyteError: the model is no language model with a tokenizer, or the text is too short.
    """
    from halfbyte.quant.calibration.imatrix import SquareCollector
    from halfbyte.quant.calibration.text import run_chunks, token_chunks
    from halfbyte.runtime.session import Session

    asked = request or ImportanceRequest()
    tokens, first = _tokens(model, read_text(data), asked.parse_special)
    table = token_chunks(
        tokens, asked.context, chunks=asked.chunks, skip=asked.skip, first_token=first
    )
    names = {
        name: known
        for name, tensor in model.graph.constants.items()
        if (known := observed_name(tensor, asked.process_output)) is not None
    }
    constants = model.graph.constants
    collector = SquareCollector({name: _matrices(constants[name]) for name in names})
    threads = asked.threads or available_threads()
    session = Session(model, device=asked.device, threads=threads, observer=collector)
    advance = None if progress is None else progress(table.size)
    saved = done = 0

    def step(tokens: int) -> None:
        nonlocal saved, done
        done += tokens
        whole = done % asked.context == 0 and done < table.size
        if save is not None and whole and (done - saved) // asked.context >= asked.save_every:
            saved = done
            save(_collected(collector, names, str(data), asked, done).matrix)
        if advance is not None:
            advance(tokens)

    batch, every_output = asked.batch or asked.context, asked.process_output
    run_chunks(session, table, batch=batch, every_output=every_output, progress=step)
    return _collected(collector, names, str(data), asked, table.size)


def _tokens(model: Model, text: str, parse_special: bool) -> tuple[list[int], int | None]:
    """Return the text's tokens, and the one that every text begins with, if there is one."""
    from halfbyte.converters.tokenizers.codec import Codec

    where = model.provenance.source or "model"
    if not is_language_model(model):
        raise HalfbyteError(
            f"{where}: is no language model that keeps a cache, an importance matrix needs one; "
            "give a decoder"
        )
    if model.tokenizer is None:
        raise HalfbyteError(
            f"{where}: has no tokenizer, collecting from a text needs one; convert the model "
            "together with its tokenizer"
        )
    codec = Codec(model.tokenizer)
    return codec.encode(text, add_special=True, parse_special=parse_special), beginning_of(codec)


def _matrices(tensor: Tensor) -> int:
    return int(np.prod(tensor.shape[:-2], dtype=np.int64))


def _collected(
    collector: SquareCollector,
    names: dict[str, str],
    dataset: str,
    asked: ImportanceRequest,
    tokens: int,
) -> Collected:
    entries = {}
    for name, held in collector.found.items():
        if held.sums.max() > LARGEST_SUM:
            raise HalfbyteError(f"weight {names[name]!r}: its inputs are beyond float32's range")
        entries[names[name]] = ImportanceEntry(held.sums.astype(np.float32), held.counts)
    matrix = ImportanceMatrix(entries, (dataset,), tokens // asked.context, asked.context)
    unseen = [name for key, name in names.items() if key not in collector.found]
    warnings = [f"{name}: no input was seen, it gets no entry" for name in unseen]
    for scarce in collector.scarce():
        told = f"{scarce.unseen} of {scarce.experts} experts saw no token, {scarce.few} too few"
        warnings.append(f"{names[scarce.weight]}: {told}; give a longer text")
    return Collected(matrix, tokens, tuple(warnings))


def importance_of_statistics(
    model: Model, path: str | Path, process_output: bool = False
) -> ImportanceMatrix:
    """Return the importance that lies in a file of statistics of `model`.

    Raises:
        HalfbyteError: the file is none, or is of another model.
    """
    from halfbyte.quant.calibration.saved import SavedStatistics

    saved = SavedStatistics(Path(path))
    saved.require_model(model)
    entries = {}
    for name, tensor in model.weights.items():
        known = observed_name(tensor, process_output)
        if known is None or name not in saved.weights:
            continue
        counts = np.array(saved.counts(name), np.int64)
        held = [saved.get(name, number, hessian=False) for number in range(len(counts))]
        sums = [np.zeros(tensor.columns) if one is None else one.squares for one in held]
        entries[known] = ImportanceEntry(np.stack(sums).astype(np.float32), counts)
    facts = saved.facts
    datasets = tuple(map(str, facts.get("sources", ())))
    chunks, size = saved.samples, int(facts.get("length", 0))
    return ImportanceMatrix(entries, datasets, chunks, size)


def find_importance(path: str | Path) -> ImportanceMatrix | None:
    """Return the importance matrix that a file holds, None for any other file.

    The older form has no magic: it is told by the ending `.dat` of a file that is nothing else.

    Raises:
        FormatError: the file is one, but breaks a rule of its form.
    """
    from halfbyte.converters.gguf.imatrix import is_importance, read_importance

    file = Path(path)
    if not file.is_file() or not (is_importance(file) or _is_unknown_dat(file)):
        return None
    return read_importance(file)


def _is_unknown_dat(file: Path) -> bool:
    from halfbyte.converters import detect

    if file.suffix != ".dat":
        return False
    try:
        detect(file)
    except HalfbyteError:
        return True
    return False


def describe_importance(matrix: ImportanceMatrix) -> ImportanceReport:
    """Return the figures of an importance matrix."""
    from halfbyte.verification.importance import ImportanceReport, describe_weights, layer_figures

    entries = {n: (e.sums, e.counts) for n, e in matrix.raw().entries.items()}
    weights = describe_weights(entries)
    return ImportanceReport(
        matrix.path,
        "dat" if matrix.per_call else "gguf",
        matrix.datasets,
        matrix.chunk_count,
        matrix.chunk_size,
        weights,
        layer_figures(weights),
    )
