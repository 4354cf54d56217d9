"""A calibration on its way into a conversion: its data, its files, what it reports."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from halfbyte.errors import HalfbyteError
from halfbyte.ir.model import Model

if TYPE_CHECKING:
    from halfbyte.quant.calibrated import CalibrationReport
    from halfbyte.quant.calibration.batches import Batches
    from halfbyte.quant.method import Chain
    from halfbyte.quant.plan import Plan

CHARACTERS = 5  # of a text to be tokenized at first, for each token that is wanted


@dataclass(frozen=True)
class CalibrationRequest:
    """What a calibrated method works with.

    data: a text file. samples: sequences of `length` tokens. skip_first: leave the first token of
    each out of the statistics. stats: a file of statistics instead of data.
    """

    data: str = ""
    samples: int = 128
    length: int = 512
    skip_first: bool = False
    stats: str = ""


@contextmanager
def work_folder(output: Path, needed: bool) -> Iterator[Path | None]:
    """Yield a folder beside the output for files that a calibration makes, None if not needed.

    Raises:
        HalfbyteError: the output could not be written there.
    """
    if not needed:
        yield None
        return
    if not output.parent.is_dir():
        raise HalfbyteError(
            f"{output}: folder {str(output.parent)!r} does not exist; create it or write elsewhere"
        )
    if output.is_dir() and any(output.iterdir()):
        raise HalfbyteError(f"{output}: is a folder with content; name a new file or folder")
    with tempfile.TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent) as folder:
        yield Path(folder)


def calibration_batches(model: Model, request: CalibrationRequest) -> Batches:
    """Return the sequences of a text that a model is calibrated on.

    Raises:
        HalfbyteError: the model has no tokenizer, or the text is too short.
    """
    from halfbyte.converters.tokenizers.codec import Codec
    from halfbyte.evaluation_data import beginning_of, read_text
    from halfbyte.quant.calibration.batches import token_batches
    from halfbyte.quant.calibration.text import token_chunks

    if model.tokenizer is None:
        raise HalfbyteError(
            f"{model.provenance.source or 'model'}: has no tokenizer, calibrating on a text needs "
            "one; convert the model together with its tokenizer"
        )
    codec = Codec(model.tokenizer)
    text, wanted = read_text(request.data), request.samples * request.length
    length = CHARACTERS * wanted
    tokens = codec.encode(text[:length], add_special=True, parse_special=False)
    while len(tokens) < wanted and length < len(text):
        length *= 2
        tokens = codec.encode(text[:length], add_special=True, parse_special=False)
    table = token_chunks(
        tokens, request.length, chunks=request.samples, first_token=beginning_of(codec)
    )
    del tokens
    return token_batches(table, skip_first=request.skip_first)


def calibrated(
    model: Model,
    plan: Plan,
    chain: Chain,
    request: CalibrationRequest,
    folder: Path,
    threads: int,
    device: str,
    compat: bool,
) -> tuple[Model, CalibrationReport]:
    """Return the model with every weight as planned; their parts lie in `folder`.

    Raises:
        HalfbyteError: neither data nor statistics are given, or they do not fit the model.
    """
    from halfbyte.quant.calibrated import CalibrationOptions, quantize_calibrated
    from halfbyte.quant.calibration.saved import SavedStatistics
    from halfbyte.quant.solver import get_solver

    saved = SavedStatistics(Path(request.stats)) if request.stats else None
    batches = calibration_batches(model, request) if request.data and saved is None else None
    options = CalibrationOptions(folder, device=device, threads=threads, compat=compat)
    solver = get_solver(device, threads)
    return quantize_calibrated(model, plan, chain, batches, options, solver, statistics=saved)
