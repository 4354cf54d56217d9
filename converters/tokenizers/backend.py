"""The `tokenizers` library behind a record, with its errors as ours."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from halfbyte.converters.tokenizers.tokenizer_json import build_tokenizer_json, words_json
from halfbyte.errors import FormatError, HalfbyteError
from halfbyte.ir.tokenizer import Tokenizer

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend


def load_backend(text: str, where: str) -> Backend:
    """Return a `tokenizers` tokenizer from a tokenizer.json text, without padding or truncation.

    Raises:
        FormatError: the library refuses it.
    """
    from tokenizers import Tokenizer as Backend

    try:
        backend = Backend.from_str(text)
    except Exception as error:
        raise FormatError(where, f"the tokenizers library refuses it ({error})") from error
    except BaseException as error:
        raise_panic(error, where)
        raise
    backend.no_padding()
    backend.no_truncation()
    return backend


def build_backend(tokenizer: Tokenizer) -> Backend:
    """Return a `tokenizers` tokenizer for a record's plain fields.

    Raises:
        FormatError: the record contradicts itself.
        UnsupportedError: `pre` is no known pre-tokenizer.
    """
    return _assemble(build_tokenizer_json(tokenizer))


def _assemble(document: dict[str, Any]) -> Backend:
    from tokenizers import AddedToken

    model = _build_model(document["model"])
    # The document without its vocabulary, then the model as an object: half the time of one JSON.
    empty = {"type": "BPE", "vocab": {}, "merges": []}
    stub = {**document, "model": empty, "added_tokens": []}
    backend = load_backend(json.dumps(stub), "tokenizer")
    backend.model = model
    flags = ("single_word", "lstrip", "rstrip", "normalized", "special")
    added = document["added_tokens"]
    backend.add_tokens([AddedToken(t["content"], **{f: t[f] for f in flags}) for t in added])
    return backend


def _build_model(fields: dict[str, Any]) -> Any:
    from tokenizers import models

    options = {name: value for name, value in fields.items() if value is not None}
    kind = options.pop("type")
    try:
        if kind == "Unigram":
            options["vocab"] = [tuple(entry) for entry in options["vocab"]]
        return getattr(models, kind)(**options)
    except Exception as error:
        raise FormatError("tokenizer", f"the tokenizers library refuses it ({error})") from error
    except BaseException as error:
        raise_panic(error, "tokenizer")
        raise


def raise_panic(error: BaseException, where: str) -> None:
    """Raise a Rust panic, which Python sees as no Exception, as a FormatError.

    Raises:
        FormatError: the error is a panic.
    """
    if type(error).__name__ == "PanicException":
        rule = f"the tokenizers library cannot handle it ({error})"
        raise FormatError(where, rule) from error


def encode(backend: Backend, text: str, add_special: bool) -> list[int]:
    """Return the ids that the library gives.

    Raises:
        HalfbyteError: the library fails.
    """
    try:
        return list(backend.encode(text, add_special_tokens=add_special).ids)
    except Exception as error:
        raise HalfbyteError(f"text to encode: {error}") from error
    except BaseException as error:
        raise_panic(error, "tokenizer")
        raise


class PairMerger:
    """Byte pair encoding of plain text, cut into words as llama.cpp cuts it."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Prepare the library for a record of kind `bpe`.

        Raises:
            FormatError: the record contradicts itself.
            UnsupportedError: `pre` is no known pre-tokenizer.
        """
        self._backend = _assemble(words_json(tokenizer))

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text without special tokens."""
        return encode(self._backend, text, add_special=False)
