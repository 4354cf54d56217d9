"""What `--type` means for each weight: a mix of types, or one type with a better output head."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass, replace

from halfbyte.errors import UnsupportedError
from halfbyte.ir.encodings import encoding_from_name, list_encodings
from halfbyte.ir.encodings.affine import Affine
from halfbyte.ir.encodings.encoding import Encoding
from halfbyte.ir.model import Model
from halfbyte.ir.tensor import Tensor
from halfbyte.quant.mixes import (
    ALIASES,
    MIXES,
    Category,
    Chooser,
    Mix,
    category_of,
    requires_importance,
    stays_float_in,
)
from halfbyte.quant.model_facts import facts_of, layer_of

HEAD_BITS = 8
HEAD_TYPES = {"MXFP4": "Q8_0", "NVFP4": "Q8_0"}


@dataclass(frozen=True)
class TypeOptions:
    """What bends the choice of a type.

    pure: the type for every weight, no mix, no better head. output_type, token_embedding_type:
    encodings of these two. leave_output: the head keeps what it has. has_importance: there is an
    importance matrix. source_order: count places as the weights stand, not by layer and name.
    architecture: GGUF's name of the model's, where it was not read from GGUF.
    """

    pure: bool = False
    output_type: str = ""
    token_embedding_type: str = ""
    leave_output: bool = False
    has_importance: bool = False
    source_order: bool = False
    architecture: str = ""


@dataclass(frozen=True)
class NamedType:
    """What a name stands for: the encoding of most weights, and the mix if it is one."""

    name: str
    base: Encoding
    mix: Mix | None = None

    @property
    def file_type(self) -> int | None:
        """Return the number in `general.file_type`, if llama-quantize has one for it."""
        return None if self.mix is None else self.mix.file_type


def named_type(name: str) -> NamedType:
    """Return what a name of `--type` stands for: a mix, or an encoding; mixes in any case.

    Raises:
        UnsupportedError: neither has this name; the nearest ones are named.
    """
    capitals = name.upper()
    mix = MIXES.get(ALIASES.get(capitals, capitals))
    if mix is not None:
        return NamedType(mix.name, encoding_from_name(mix.base), mix)
    try:
        return NamedType(name, encoding_from_name(name))
    except UnsupportedError as error:
        raise UnsupportedError(f"type {name!r}", "--type", _nearest(name)) from error


def _nearest(name: str) -> list[str]:
    known = [*MIXES, *(encoding.name for encoding in list_encodings())]
    by_lower = {entry.lower(): entry for entry in known}
    close = difflib.get_close_matches(name.lower(), by_lower, n=5, cutoff=0.5)
    return [by_lower[found] for found in close] or list(MIXES)


def is_token_embedding(tensor: Tensor) -> bool:
    """Whether a weight is a token embedding."""
    return category_of(tensor) is Category.EMBEDDING


def is_head(tensor: Tensor) -> bool:
    """Whether a weight is the output head."""
    return category_of(tensor) is Category.OUTPUT


def file_order(weights: Iterable[tuple[str, Tensor]]) -> list[tuple[str, Tensor]]:
    """Return weights in the order of llama-quantize's files: by layer, then byte-wise name."""

    def key(entry: tuple[str, Tensor]) -> tuple[int, bytes]:
        tensor = entry[1]
        layer = layer_of(tensor)
        return -1 if layer is None else layer, tensor.name.encode("utf-8", "surrogateescape")

    return sorted(weights, key=key)


class TypeChoice:
    """Chooses the type of each weight of one model; weights come as `in_order` has them."""

    def __init__(self, model: Model, named: NamedType, options: TypeOptions) -> None:
        """Take the model, what `--type` stands for, and what bends it."""
        self.named, self.options = named, options
        weights = [t for t in model.weights.values() if t.kind != "bias"]
        categories = [category_of(tensor) for tensor in weights]
        self._tied = Category.OUTPUT not in categories
        self._model = model
        self._facts = facts_of(model, options.architecture)
        self._chooser: Chooser | None = None
        if named.mix is not None:
            self._chooser = Chooser(
                named.mix,
                self._facts,
                tied=self._tied,
                values=categories.count(Category.VALUE),
                has_importance=options.has_importance,
                output_type=options.output_type,
            )

    def in_order(self) -> list[tuple[str, Tensor]]:
        """Return the weights, with their names, in the order in which the rules count them."""
        weights = self._model.weights.items()
        return list(weights) if self.options.source_order else file_order(weights)

    def stays(self, tensor: Tensor) -> str:
        """Return why a matrix keeps what it has, or an empty text."""
        if self.options.leave_output and is_head(tensor):
            return "--leave-output"
        return stays_float_in(tensor, self._facts.architecture)

    def explicit(self, tensor: Tensor, has_override: bool) -> tuple[Encoding, str] | None:
        """Return the type that an option gives to the embedding or the head, with its name.

        The table for each layer takes an override first, if it has one.
        """
        embedding, output = self.options.token_embedding_type, self.options.output_type
        per_layer = tensor.name == "per_layer_token_embd.weight"
        if embedding and is_token_embedding(tensor) and not (per_layer and has_override):
            return encoding_from_name(embedding), "--token-embedding-type"
        if output and is_head(tensor):
            return encoding_from_name(output), "--output-type"
        return None

    def choose(self, tensor: Tensor) -> tuple[Encoding, str]:
        """Return the type for a weight that nothing else decides on, and why."""
        base = self.named.base
        found = base
        if not self.options.pure:
            found = self._uniform(tensor) if self._chooser is None else self._mixed(tensor)
        if found == base:
            return base, f"type {self.named.name}"
        what = category_of(tensor)
        serves = what is Category.EMBEDDING and self._tied
        label = Category.OUTPUT.value if serves else what.value
        return found, f"{label}: {found} instead of {base}"

    def _mixed(self, tensor: Tensor) -> Encoding:
        assert self._chooser is not None
        return encoding_from_name(self._chooser.choose(tensor))

    def _uniform(self, tensor: Tensor) -> Encoding:
        """Return the one type; a head of 8 bits where it has fewer."""
        base = self.named.base
        if not is_head(tensor) and not (self._tied and is_token_embedding(tensor)):
            return base
        if self.options.output_type and base.is_quantized:
            return encoding_from_name(self.options.output_type)
        if isinstance(base, Affine) and base.bits < HEAD_BITS:
            return replace(base, bits=HEAD_BITS)
        return encoding_from_name(HEAD_TYPES[base.name]) if base.name in HEAD_TYPES else base

    def needs_importance(self, tensor: Tensor, target: Encoding) -> bool:
        """Whether a weight must not be encoded in `target` without importance."""
        mix = "" if self.named.mix is None else self.named.mix.name
        return requires_importance(target.name, mix, category_of(tensor))
