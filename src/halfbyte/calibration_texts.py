"""Sequences of token ids from documents, as a model meets texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from halfbyte.calibration_documents import Document, spread
from halfbyte.errors import HalfbyteError
from halfbyte.evaluation_data import beginning_of, is_language_model
from halfbyte.ir.model import Model

if TYPE_CHECKING:
    from halfbyte.converters.tokenizers.codec import Codec

CHARACTERS = 5  # of a text, about, for each token
LEAST_TOKENIZED = 1 << 20  # characters; of longer texts no more than `SURPLUS` times what is needed
SURPLUS = 4
LEAST_PIECE = 1 << 14

Ids = NDArray[np.int64]


@dataclass(frozen=True)
class Sequences:
    """Token ids [sequences, length] from each source, and what to tell."""

    tables: list[Ids]
    notices: tuple[str, ...] = ()

    @property
    def length(self) -> int:
        """Return the tokens of a sequence."""
        return int(self.tables[0].shape[1])


def sequences_of(
    model: Model, sources: Sequence[Sequence[Document]], samples: int, length: int, seed: int
) -> Sequences:
    """Return sequences of `length` tokens for each source, `samples` in all if there are so many.

    Documents are joined with what the model's tokenizer puts before and after a text; an encoder's
    sequences each begin and end as its texts do. Conversations go through the chat template, which
    says all their special tokens itself.

    Raises:
        HalfbyteError: the model has no tokenizer, or the texts are too short.
    """
    from halfbyte.converters.tokenizers.codec import Codec
    from halfbyte.quant.calibration.packing import chosen, packed, shares

    where = model.provenance.source or "model"
    if model.tokenizer is None:
        raise HalfbyteError(
            f"{where}: has no tokenizer, calibrating on a text needs one; convert the model "
            "together with its tokenizer, or give an .npz of input_ids"
        )
    codec = Codec(model.tokenizer)
    decoder = is_language_model(model)
    length, notices = _possible_length(model, length)
    first = beginning_of(codec) if decoder else None
    prefix, suffix = ([], []) if decoder else _frame(codec)
    tables = []
    for documents in sources:
        limit = max(LEAST_TOKENIZED, SURPLUS * CHARACTERS * samples * length)
        piece = max(LEAST_PIECE, 2 * SURPLUS * CHARACTERS * length)
        kept = spread(documents, limit, piece, seed)
        ids = _encoded(codec, kept, joined=decoder)
        tables.append(packed(ids, length, first_token=first, prefix=prefix, suffix=suffix))
    counts = [len(table) for table in tables]
    for table, documents in zip(tables, sources, strict=True):
        if not len(table):
            place = documents[0].where.split(": line")[0] if documents else "calibration data"
            raise HalfbyteError(
                f"{place}: its text is shorter than one sequence of {length} tokens; give a longer "
                "one or a smaller --calib-length"
            )
    if sum(counts) < samples:
        notices = (
            *notices,
            f"calibration: the texts have {sum(counts)} sequences of {length} tokens, {samples} "
            "were asked for",
        )
    parts = zip(tables, shares(counts, samples), strict=True)
    return Sequences([table[chosen(len(table), n, seed)] for table, n in parts if n], notices)


def _possible_length(model: Model, length: int) -> tuple[int, tuple[str, ...]]:
    """Return the length, not beyond the model's positions."""
    limit = model.config.get("max_position_embeddings")
    if not isinstance(limit, int) or limit < 1 or length <= limit:
        return length, ()
    told = f"calibration: sequences have {limit} tokens, not {length}: the model has no more places"
    return limit, (told,)


def _frame(codec: Codec) -> tuple[list[int], list[int]]:
    """Return the tokens that stand before and after every text."""
    inner = codec.encode("a", add_special=False, parse_special=False)
    whole = codec.encode("a", add_special=True, parse_special=False)
    for start in range(len(whole) - len(inner) + 1):
        if whole[start : start + len(inner)] == inner:
            return whole[:start], whole[start + len(inner) :]
    return [], []


def _encoded(codec: Codec, documents: Sequence[Document], joined: bool) -> list[list[int]]:
    """Return the ids of each document; joined: with what separates texts for a decoder."""
    from halfbyte.converters.tokenizers.chat_template import apply_chat_template

    separator: list[int] = []
    if joined and not codec.encode("", add_special=True) and len(documents) > 1:
        separator = [i for i in (codec.tokenizer.special_ids.get("eos"),) if i is not None]
    found = []
    for document in documents:
        try:
            if not document.messages:
                ids = codec.encode(document.text, add_special=joined, parse_special=False)
                found.append([*separator, *ids])
                continue
            text = apply_chat_template(
                codec.tokenizer, document.messages, add_generation_prompt=False
            )
            found.append(codec.encode(text, add_special=False, parse_special=True))
        except HalfbyteError as error:
            raise HalfbyteError(f"{document.where}: {error}") from error
    return found
