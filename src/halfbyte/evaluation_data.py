"""The inputs that a verification runs: tokens of a text, or arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from halfbyte.array_files import read_inputs
from halfbyte.errors import FormatError, HalfbyteError
from halfbyte.ir.model import Model

if TYPE_CHECKING:
    from halfbyte.converters.tokenizers.codec import Codec

ENCODER_LINES = 32
ENCODER_TOKENS = 128


@dataclass(frozen=True)
class EvaluationData:
    """Tokens for a language model (`first_token` replaces the first of each chunk), or batches."""

    tokens: Sequence[int] = ()
    first_token: int | None = None
    batches: list[dict[str, NDArray[Any]]] = field(default_factory=list)


def is_language_model(model: Model) -> bool:
    """Whether the model's graph keeps a cache and gives logits."""
    names = [value.name for value in model.graph.outputs]
    return bool(model.graph.states) and "logits" in names


def read_text(path: str | Path | None) -> str:
    """Return the text of a file, or the embedded public-domain text without one.

    Raises:
        FormatError: the file is not UTF-8.
    """
    if path is None:
        shipped = files("halfbyte.verification").joinpath("texts/shakespeare.txt")
        return shipped.read_text(encoding="utf-8")
    if not Path(path).is_file():
        is_device = Path(path).exists() and not Path(path).is_dir()
        found = "is no regular file" if is_device else "no such file"
        raise HalfbyteError(f"{path}: {found}; --data takes a text file or an .npz of inputs")
    try:
        return Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise FormatError(path, "is not UTF-8 text; convert it first", error.start) from None


class _Agreement:
    """The codecs of both models, which must give the same tokens."""

    def __init__(self, reference: Model, candidate: Model) -> None:
        self.sources = (reference.provenance.source, candidate.provenance.source)
        self.codecs = [_codec(model) for model in (reference, candidate)]

    def tokens(self, text: str) -> list[int]:
        found = [codec.encode(text, add_special=True, parse_special=False) for codec in self.codecs]
        if found[0] != found[1]:
            raise HalfbyteError(
                f"{self.sources[1]}: its tokenizer gives other tokens than "
                f"{self.sources[0]}'s, they must agree; verify two forms of one model"
            )
        return found[0]

    def beginning(self) -> int | None:
        """Return the token the reference's vocabulary puts before every text, or None."""
        return beginning_of(self.codecs[0])


def beginning_of(codec: Codec) -> int | None:
    """Return the beginning-of-sequence token if the vocabulary puts it before every text."""
    added = codec.encode("", add_special=True)
    return added[0] if added and added[0] == codec.tokenizer.special_ids.get("bos") else None


def _codec(model: Model) -> Codec:
    from halfbyte.converters.tokenizers.codec import Codec

    if model.tokenizer is None:
        raise HalfbyteError(
            f"{model.provenance.source}: has no tokenizer, verifying a language model on text "
            "needs one; convert it together with its tokenizer"
        )
    return Codec(model.tokenizer)


def _encoder_batches(agreement: _Agreement, text: str) -> list[dict[str, Any]]:
    lines = [line for line in text.splitlines() if line.strip()][:ENCODER_LINES]
    rows = [agreement.tokens(line)[:ENCODER_TOKENS] for line in lines]
    return [{"input_ids": np.asarray([ids], dtype=np.int64)} for ids in rows if ids]


def evaluation_data(reference: Model, candidate: Model, data: str | Path | None) -> EvaluationData:
    """Return what to run: from a text, from an .npz, or random inputs for other models.

    Raises:
        HalfbyteError: the data does not fit the models, or their tokenizers disagree.
    """
    if data is not None and Path(data).suffix == ".npz":
        return EvaluationData(batches=[read_inputs(data, reference.graph)])
    if is_language_model(reference):
        if not is_language_model(candidate):
            raise HalfbyteError(
                f"{candidate.provenance.source}: is no language model, the reference is one; "
                "verify two forms of one model"
            )
        agreement = _Agreement(reference, candidate)
        tokens = agreement.tokens(read_text(data))
        return EvaluationData(tokens=tokens, first_token=agreement.beginning())
    if reference.tokenizer is not None:
        text = read_text(data)
        return EvaluationData(batches=_encoder_batches(_Agreement(reference, candidate), text))
    if data is not None:
        raise HalfbyteError(f"{data}: this model takes arrays, not text; give an .npz of inputs")
    from halfbyte.verification.outputs import random_inputs

    return EvaluationData(batches=random_inputs(reference.graph))
