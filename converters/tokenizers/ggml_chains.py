r"""How llama.cpp reads each pre-tokenizer name, as chains of steps.

llama.cpp runs its patterns with std::regex over text whose characters are folded into one byte per
Unicode category, and a few of them with hand-written loops. Where that differs from the original
model's tokenizer.json, this table has llama.cpp's meaning in Oniguruma syntax:

- upper and lower case are told apart in ASCII alone; `\p{Lu}`, `\p{Lo}` ... all mean any letter
- contractions match ASCII letters alone (`(?i:'s)` also matches U+017F)
- groups of three digits count every number character, and what stands before the first group
  belongs to its word until a later pattern cuts it
- ranges such as U+0800 to U+4E00 leave out the spaces in them
- characters newer than Unicode 15 belong to no category
- falcon and deepseek-llm leave runs of digits whole where the original cuts them

Source: llama.cpp src/llama-vocab.cpp, src/unicode.cpp.
"""

from __future__ import annotations

import re

from halfbyte.converters.tokenizers.pretokenizers import (
    CHAINS,
    CONTRACTIONS,
    GPT2_REGEX,
    Chain,
    PreTokenizer,
    Step,
)

_ASCII_CONTRACTIONS = "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
_LEAD = r"[^\r\n\p{L}\p{N}]?"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_REST = rf" ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_SPACES}"
_SLASH_REST = rf" ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"
_HAN = (
    "一-\u9fff㐀-\u4dbf\U00020000-\U0002a6df\U0002a700-\U0002b73f\U0002b740-\U0002b81f"
    "\U0002b820-\U0002ceaf\U0002ceb0-\U0002ebef\uf900-\ufaff\U0002f800-\U0002fa1f"
)
_DIGIT_GROUPS = r"\G\P{N}*\p{N}{1,3}(?=(?:\p{N}{3})*(?!\p{N}))"
# Letters, marks, numbers, punctuation and symbols that came with Unicode 16.
_NEWER = (
    r"\x{0897}\x{1b4e}-\x{1b4f}\x{1b7f}\x{1c89}-\x{1c8a}\x{2427}-\x{2429}\x{31e4}-\x{31e5}"
    r"\x{a7cb}-\x{a7cd}\x{a7da}-\x{a7dc}\x{105c0}-\x{105f3}\x{10d40}-\x{10d8f}"
    r"\x{10ec2}-\x{10ec4}\x{10efc}\x{11380}-\x{113e2}\x{116d0}-\x{116e3}\x{11bc0}-\x{11bf9}"
    r"\x{11f5a}\x{13460}-\x{143fa}\x{16100}-\x{16139}\x{16d40}-\x{16d79}\x{18cff}"
    r"\x{1cc00}-\x{1ceb3}\x{1e5d0}-\x{1e5ff}\x{1f8b2}-\x{1f8bb}\x{1f8c0}-\x{1f8c1}\x{1fa89}"
    r"\x{1fa8f}\x{1fabe}\x{1fac6}\x{1fadc}\x{1fadf}\x{1fae9}\x{1fbcb}-\x{1fbef}"
)
_L, _LM, _NOTHING = r"\p{L}", r"\p{L}\p{M}", ""
_PLAIN_BYTES = ("bytes", False)


def _splits(*patterns: str) -> Chain:
    return (*(("split", pattern) for pattern in patterns), _PLAIN_BYTES)


def _cased(letters: str, suffix: str) -> str:
    upper, lower = rf"[{letters}&&[^a-z]]", rf"[{letters}&&[^A-Z]]"
    return rf"{_LEAD}{upper}*{lower}+{suffix}|{_LEAD}{upper}+{lower}*{suffix}"


def _uncased(suffix: str) -> str:
    return rf"{_LEAD}[\p{{L}}\p{{M}}]+{suffix}"


def _spaceless(step: Step) -> Step:
    """Return a step whose ranges leave out the spaces in them, which are folded first."""
    return (step[0], re.sub(r"\](\+?)$", r"&&[^\\s]]\1", step[1])) if _is_wide(step) else step


def _is_wide(step: Step) -> bool:
    return step[0] == "split" and ("\u3000" in step[1] or "\u0800" in step[1])


_OPTIONAL = _ASCII_CONTRACTIONS + "?"
_TINY_AYA = rf"{_uncased(_OPTIONAL)}|\p{{N}}{{1,3}}|{_SLASH_REST}"
_KIMI = rf"[{_HAN}]+|{_LEAD}[\p{{L}}&&[^{_HAN}]]+{_OPTIONAL}|\p{{N}}{{1,3}}|{_REST}"

_DIFFERENT: dict[str, Chain] = {
    "falcon": _splits(r"[\p{P}\$\+<=>\^~\|`]+", GPT2_REGEX, "[0-9][0-9][0-9]"),
    "deepseek-llm": tuple(
        ("split", r"\p{N}+") if step == ("digits",) else _spaceless(step)
        for step in CHAINS["deepseek-llm"]
    ),
    "deepseek-coder": tuple(_spaceless(step) for step in CHAINS["deepseek-coder"]),
    "gpt-4o": _splits(rf"{_cased(_L, _OPTIONAL)}|\p{{N}}{{1,3}}|{_SLASH_REST}"),
    "granite-97m": _splits(rf"{_cased(_LM, _OPTIONAL)}|\p{{N}}{{1,3}}|{_SLASH_REST}"),
    "tekken": _splits(rf"{_cased(_L, _NOTHING)}|\p{{N}}|{_SLASH_REST}"),
    "youtu": _splits(CHAINS["youtu"][0][1], rf"{_uncased(_OPTIONAL)}|\p{{N}}|{_SLASH_REST}"),
    "tiny-aya": _splits(_DIGIT_GROUPS, _TINY_AYA),
    "afmoe": _splits(_DIGIT_GROUPS, *(step[1] for step in CHAINS["afmoe"][1:-1])),
    "kimi-k2": _splits(_KIMI),
    "superbpe": _splits(r"\p{N}+", "(?=([0-9]{3})+(?![0-9]))"),
    "bailingmoe": _splits(
        rf"'(?:[sSdDmMtT]|[lL][lL]|[vV][eE]|[rR][eE])|{_LEAD}\p{{L}}+|\p{{N}}|"
        r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
    ),
}


def ggml_chain(row: PreTokenizer) -> Chain:
    """Return the steps that cut text as llama.cpp cuts it under a name."""
    family = "granite-97m" if row.name == "granite-embed-multi-97m" else row.family
    found = _DIFFERENT.get(family, CHAINS[row.family])
    return tuple(part for step in found for part in _as_ggml(step))


def _as_ggml(step: Step) -> Chain:
    if step == ("bytes", True):
        return (*_as_ggml(("split", GPT2_REGEX)), _PLAIN_BYTES)
    if step == ("digits",):
        return _as_ggml(("split", r"\p{N}"))
    if step[0] != "split":
        return (step,)
    text = step[1].replace(CONTRACTIONS, _ASCII_CONTRACTIONS).replace(r"\P{N}", r"[^\p{N}]")
    return (("split", re.sub(r"\\p\{[LNPSM]\}", _older, text)),)


def _older(match: re.Match[str]) -> str:
    return f"[{match[0]}&&[^{_NEWER}]]"
