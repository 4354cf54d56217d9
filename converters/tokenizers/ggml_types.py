"""What llama.cpp takes a token for, which is not always what the file says.

Tokens with the text of an end-of-generation or fill-in-the-middle token count as control tokens
whatever their type, four of gpt-oss's tokens as user-defined, and so on. Token ids and what is left
out of decoded text follow from these types.

Source: llama.cpp src/llama-vocab.cpp, llama_vocab::impl::load.
"""

from __future__ import annotations

from collections.abc import Mapping

from halfbyte.converters.tokenizers.special_tokens import END_OF_GENERATION
from halfbyte.ir.tokenizer import Tokenizer, TokenType

ALWAYS_SHOWN = ("<|channel|>", "<|message|>", "<|start|>", "<|constrain|>")
FILL_IN_THE_MIDDLE = {
    "fim_pre": (
        "<|fim_prefix|>",
        "<fim-prefix>",
        "<fim_prefix>",
        "<｜fim▁begin｜>",
        "<PRE>",
        "▁<PRE>",
        "<|code_prefix|>",
        "<|prefix|>",
    ),
    "fim_suf": (
        "<|fim_suffix|>",
        "<fim-suffix>",
        "<fim_suffix>",
        "<｜fim▁hole｜>",
        "<SUF>",
        "▁<SUF>",
        "<|code_suffix|>",
        "<|suffix|>",
    ),
    "fim_mid": (
        "<|fim_middle|>",
        "<fim-middle>",
        "<fim_middle>",
        "<｜fim▁end｜>",
        "<MID>",
        "▁<MID>",
        "<|code_middle|>",
        "<|middle|>",
    ),
    "fim_pad": ("<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"),
    "fim_rep": ("<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"),
    "fim_sep": ("<|file_sep|>",),
}


def effective_types(tokenizer: Tokenizer) -> tuple[int, ...]:
    """Return one `TokenType` value per token, as llama.cpp would have it."""
    types = list(tokenizer.token_types) or [int(TokenType.NORMAL)] * len(tokenizer)
    ids = {token: index for index, token in enumerate(tokenizer.tokens)}
    known = [ids[text] for text in END_OF_GENERATION if text in ids]
    for index in [*_fill_in_the_middle(tokenizer, ids).values(), *known]:
        types[index] = int(TokenType.CONTROL)
    shown = [text for text in ALWAYS_SHOWN if text in ids]
    for text in shown + (["<|end|>"] if _end_is_shown(ids) else []):
        types[ids[text]] = int(TokenType.USER_DEFINED)
    if _closing_is_plain(tokenizer, ids):
        types[ids["</s>"]] = int(TokenType.NORMAL)
    return tuple(types)


def end_ids(tokenizer: Tokenizer) -> tuple[int, ...]:
    """Return the ids that end a generation: eos, eot, eom, then those known by their text."""
    ids = {token: index for index, token in enumerate(tokenizer.tokens)}
    special = tokenizer.special_ids
    found = [special[name] for name in ("eos", "eot", "eom") if name in special]
    middle = _fill_in_the_middle(tokenizer, ids)
    pieces = {**middle, **special}
    others = [pieces[name] for name in ("fim_pad", "fim_rep", "fim_sep") if name in pieces]
    others += [ids[text] for text in END_OF_GENERATION if text in ids]
    ends = dict.fromkeys([*found, *sorted(others)])
    if _end_is_shown(ids):
        ends.pop(ids["<|end|>"], None)
    if _closing_is_plain(tokenizer, ids):
        ends.pop(ids["</s>"], None)
    return tuple(ends)


def _fill_in_the_middle(tokenizer: Tokenizer, ids: Mapping[str, int]) -> dict[str, int]:
    """Return the ids that no key names but a text gives away."""
    found = {}
    for name, texts in FILL_IN_THE_MIDDLE.items():
        if name not in tokenizer.special_ids:
            present = [text for text in texts if text in ids]
            if present:
                found[name] = ids[present[0]]
    return found


def _end_is_shown(ids: Mapping[str, int]) -> bool:
    """Return whether `<|end|>` ends a message, not the generation (gpt-oss, Solar Open)."""
    call = "<|call|>" in ids or "<|calls|>" in ids
    return "<|end|>" in ids and call and ("<|return|>" in ids or "<|flush|>" in ids)


def _closing_is_plain(tokenizer: Tokenizer, ids: Mapping[str, int]) -> bool:
    """Return whether `</s>` is text (Gemma 4, PLaMo 2)."""
    plamo = ids.get("<|plamo:eos|>", -1) in tokenizer.special_ids.values()
    return "</s>" in ids and ("<|tool_response>" in ids or plamo)
