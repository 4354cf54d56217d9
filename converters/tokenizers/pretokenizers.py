r"""llama.cpp's pre-tokenizer names and what each does, in Hugging Face's terms.

A chain is the list of steps that cut text into words before merging. Steps:

    ("split", regex)      cut at every match, matches are words too
    ("digits",)           every digit its own word           ("digit runs",)  runs of digits
    ("punctuation",)      runs of punctuation
    ("drop", regex)       cut at every match, matches vanish
    ("bytes", regex?)     map to GPT-2's byte alphabet, first cutting by GPT-2's regex if true

The patterns are those of the original models' tokenizer.json (Oniguruma syntax); where llama.cpp
only approximates one (it knows no \p{Lu}), ids follow the original.

Source: llama.cpp src/llama-vocab.cpp (names, flags), conversion/base.py (who gets which name).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

Step = tuple[Any, ...]
Chain = tuple[Step, ...]

CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_LETTERS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_LEAD = r"[^\r\n\p{L}\p{N}]?"
_CASED = f"{_LEAD}{_UPPER}*{_LOWER}+SUFFIX|{_LEAD}{_UPPER}+{_LOWER}*SUFFIX"
_SLASH_REST = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_HAN = r"&&[^\p{Han}]"

GPT2_REGEX = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3_REGEX = rf"{CONTRACTIONS}|{_LETTERS}|\p{{N}}{{1,3}}|{_REST}"
QWEN2_REGEX = rf"{CONTRACTIONS}|{_LETTERS}|\p{{N}}|{_REST}"
GPT4O_REGEX = _CASED.replace("SUFFIX", CONTRACTIONS + "?") + r"|\p{N}{1,3}|" + _SLASH_REST
TEKKEN_REGEX = _CASED.replace("SUFFIX", "") + r"|\p{N}|" + _SLASH_REST
_KIMI_CASED = _CASED.replace(r"\p{M}]", rf"\p{{M}}{_HAN}]").replace("SUFFIX", CONTRACTIONS + "?")
_SCRIPT = (
    "A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ"
    "-Ὅὐ-ὗὙὛὝὟ-\u1f7dᾀ-ᾴᾶ-ᾼ\u1fbeῂ-ῄῆ-ῌῐ-\u1fd3ῖ-\u1fdbῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤ\u2126ℨ\u212a-ℭℯ-ℴℹ"
    "ℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃"
)
_DEEPSEEK_WORDS = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|"
    r"[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_DEEPSEEK_CJK = "[一-龥぀-ゟ゠-ヿ]+"
_CJK_HANGUL = "[一-龥ࠀ-一가-퟿]+"
_NUMBER_GROUPS = r"\d{1,3}(?=(?:\d{3})*\b)"
_AFMOE_SCRIPTS = "[一-鿿㐀-䶿豈-﫿぀-ゟ゠-ヿ･-ﾟ⼀-⿟เ-๿຀-໿ក-៿က-႟ꩠ-ꩿꧠ-꧿가-힯ᄀ-ᇿ]+"
_YOUTU_SCRIPTS = "[가-힣ㄱ-ㆎ]+|[！…“”‘’—：；，、-〿︰-﹏]+|[ㄅ-ㄯ]+|[一-龥぀-ゟ゠-ヿ]+"
_WIDE_SPACES = "|".join(rf"\s{{{n}}}(?!\S)" for n in (512, 256, 128, 64, 32, 16, 8, 4))
_WIDE_SPACES += r"|\s{1,2}(?!\S)|\s{1}"
_BLOOM = r" ?[^(\s|[.,!?…。，、।۔،])]+"

_PLAIN_BYTES: Step = ("bytes", False)
_DIGITS_GPT2: Chain = (("digits",), ("bytes", True))


def _splits(*patterns: str) -> Chain:
    return (*(("split", pattern) for pattern in patterns), _PLAIN_BYTES)


CHAINS: dict[str, Chain] = {
    "gpt2": (("bytes", True),),
    "digits-gpt2": _DIGITS_GPT2,
    "llama3": _splits(LLAMA3_REGEX),
    "qwen2": _splits(QWEN2_REGEX),
    "qwen35": _splits(
        rf"{CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}|"
        r" ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
    "default": _splits(r"[\p{P}\$\+<=>\^~\|]+", GPT2_REGEX, r"\p{N}+", "[0-9][0-9][0-9]"),
    "falcon": (("punctuation",), ("bytes", True), ("digit runs",), ("split", "[0-9][0-9][0-9]")),
    "deepseek-llm": (
        ("split", r"[\r\n]"),
        ("split", rf"\s?[{_SCRIPT}]+"),
        ("split", r"\s?[!-/:-~！-／：-～‘-‟　-。]+"),
        ("split", r"\s+$"),
        ("split", _CJK_HANGUL),
        ("digits",),
        _PLAIN_BYTES,
    ),
    "deepseek-coder": (
        ("split", r"[\r\n]"),
        ("split", r"\s?\p{L}+"),
        ("split", r"\s?\p{P}+"),
        ("split", _CJK_HANGUL),
        ("digits",),
        _PLAIN_BYTES,
    ),
    "deepseek-v3": _splits(r"\p{N}{1,3}", _DEEPSEEK_CJK, _DEEPSEEK_WORDS),
    "spark": _splits(
        r"\p{N}{1,3}",
        _DEEPSEEK_CJK,
        _DEEPSEEK_WORDS.replace(r"[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+", r"[\p{P}\p{S}]+|[\r\n]"),
        r"\p{N}",
    ),
    "gpt-4o": _splits(GPT4O_REGEX),
    "tekken": _splits(TEKKEN_REGEX),
    "youtu": _splits(
        _YOUTU_SCRIPTS, _CASED.replace("SUFFIX", CONTRACTIONS + "?") + r"|\p{N}|" + _SLASH_REST
    ),
    "tiny-aya": _splits(_NUMBER_GROUPS, GPT4O_REGEX),
    "kimi-k2": _splits(rf"[\p{{Han}}]+|{_KIMI_CASED}|\p{{N}}{{1,3}}|{_REST}"),
    "jais-2": _splits(LLAMA3_REGEX.replace(r"\s+(?!\S)|\s+", _WIDE_SPACES)),
    "bloom": _splits(_BLOOM),
    "viking": _splits(_BLOOM, r"\p{N}"),
    "superbpe": _splits(r"\p{N}+", r"(?=(\d{3})+(?!\d))"),
    "bailingmoe": _splits(
        r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|"
        r"\s*[\r\n]|\s+(?!\S)|\s+"
    ),
    "seed-coder": _splits(
        rf"{CONTRACTIONS}|{_LETTERS}|\p{{N}}{{1}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|"
        r"\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
    "ufakzeka": _splits(rf"{_LETTERS}|\p{{N}}|{_REST}"),
    "laguna": _splits(r"[^\n]+|[\n]+", QWEN2_REGEX),
    "exaone-moe": _splits(
        rf"{CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?(?:\p{{L}}\p{{M}}*(?: \p{{L}}\p{{M}}*)*)+|\p{{N}}|"
        r" ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+"
    ),
    "minicpm5": _splits(r"\p{N}{1,3}", LLAMA3_REGEX.replace(r"\p{N}{1,3}", r"\p{N}+")),
    "afmoe": _splits(_NUMBER_GROUPS, _AFMOE_SCRIPTS, _DEEPSEEK_WORDS),
    "chameleon": (
        ("split", "<sentinel:[0-9]+>"),
        ("split", "(IMGIMG)((A|B|C|D|E|F|G|H|I){1,4})Z"),
        ("split", r"([\t\n]|    |  )"),
        ("digits",),
        ("split", r"[\p{P}!-/:-@\[-`{-~]"),
        ("bytes", True),
    ),
    "newlines": (("split", r"[^\n]+|[\n]+"),),
    "whitespace": (("drop", r"\s+"),),
}


@dataclass(frozen=True)
class PreTokenizer:
    """One name: its chain and what comes with it.

    nfc: the models that go by this name normalise to NFC first (llama.cpp does not).
    raw: tokens are text with byte fallback, not the byte alphabet; spaces are U+2581 but for
        the name `whitespace`.
    marker: a token that tells this name from others with the same chain.
    """

    name: str
    family: str
    nfc: bool = False
    ignore_merges: bool = False
    add_bos: bool = False
    add_sep: bool = False
    raw: bool = False
    marker: str = ""

    @property
    def chain(self) -> Chain:
        """Return the steps that cut text into words."""
        return CHAINS[self.family]


# Within a family the first row without a marker is the usual choice.
_ROWS = [
    PreTokenizer("default", "default"),
    PreTokenizer("gpt-2", "gpt2"),
    PreTokenizer("llama-bpe", "llama3", ignore_merges=True, add_bos=True),
    PreTokenizer("qwen2", "qwen2", nfc=True),
    PreTokenizer("smollm", "digits-gpt2"),
    PreTokenizer("starcoder", "digits-gpt2", marker="<fim_prefix>"),
    PreTokenizer("command-r", "digits-gpt2", nfc=True, marker="<BOS_TOKEN>"),
    PreTokenizer("mpt", "gpt2", nfc=True),
    PreTokenizer("olmo", "gpt2", nfc=True, marker="|||IP_ADDRESS|||"),
    PreTokenizer("modern-bert", "gpt2", nfc=True, marker="[MASK]"),
    PreTokenizer("roberta-bpe", "gpt2", add_sep=True, marker="<mask>"),
    PreTokenizer("gpt-4o", "gpt-4o"),
    PreTokenizer("llama4", "gpt-4o", marker="<|header_start|>"),
    PreTokenizer("glm4", "llama3", ignore_merges=True, marker="[gMASK]"),
    PreTokenizer("dbrx", "llama3"),
    PreTokenizer("tekken", "tekken", ignore_merges=True, add_bos=True),
    PreTokenizer("hunyuan-dense", "deepseek-v3", marker="<｜hy_place▁holder▁no▁0｜>"),
    PreTokenizer("grok-2", "qwen2"),
    PreTokenizer("granite-embed-multi-97m", "gpt-4o", ignore_merges=True),
    PreTokenizer("gemma4", "newlines", raw=True, add_bos=True),
    PreTokenizer("sarvam-moe", "newlines", raw=True),
    PreTokenizer("granite-embed-multi-311m", "newlines", raw=True, add_bos=True),
    PreTokenizer("whitespace", "whitespace", raw=True),
]
# Names that differ from others in name alone: family, what comes with it, names.
_ALIASES: tuple[tuple[str, dict[str, Any], tuple[str, ...]], ...] = (
    (
        "llama3",
        {"ignore_merges": True, "add_bos": True},
        (
            "llama3",
            "llama-v3",
            "falcon3",
            "falcon-h1",
            "pixtral",
            "midm-2.0",
            "lfm2",
            "jina-v5-nano",
        ),
    ),
    ("llama3", {"ignore_merges": True}, ("glm5",)),
    ("llama3", {}, ("smaug-bpe", "chatglm-bpe")),
    (
        "qwen2",
        {"nfc": True},
        ("deepseek-r1-qwen", "kormo", "f2llmv2", "stablelm2", "megrez", "hunyuan", "solar-open"),
    ),
    (
        "gpt2",
        {},
        (
            "phi-2",
            "jina-es",
            "jina-de",
            "gigachat",
            "jina-v2-es",
            "jina-v2-de",
            "a.x-4.0",
            "mellum",
            "jais",
            "exaone4",
            "trillion",
            "granite-docling",
        ),
    ),
    ("gpt2", {"add_sep": True}, ("jina-v1-en", "jina-v2-code")),
    ("digits-gpt2", {}, ("refact", "codeshell", "exaone", "minerva-7b", "mellum2")),
    ("deepseek-v3", {}, ("deepseek-v3", "hy_v4", "joyai-llm")),
    ("gpt-4o", {}, ("kanana2", "talkie", "minimax-m2")),
    ("bloom", {}, ("bloom", "poro-chat", "gpt3-finnish")),
    ("bailingmoe", {}, ("bailingmoe", "bailingmoe2", "llada-moe")),
    ("tiny-aya", {}, ("tiny_aya", "cohere2moe")),
    ("deepseek-llm", {}, ("deepseek-llm",)),
    ("deepseek-coder", {}, ("deepseek-coder",)),
    ("falcon", {}, ("falcon",)),
    ("viking", {}, ("viking",)),
    ("kimi-k2", {}, ("kimi-k2",)),
    ("jais-2", {}, ("jais-2",)),
    ("superbpe", {}, ("superbpe",)),
    ("seed-coder", {}, ("seed-coder",)),
    ("ufakzeka", {}, ("ufakzeka",)),
    ("laguna", {}, ("laguna",)),
    ("exaone-moe", {}, ("exaone-moe",)),
    ("afmoe", {}, ("afmoe",)),
    ("qwen35", {}, ("qwen35",)),
    ("spark", {}, ("spark2_5",)),
    ("youtu", {"ignore_merges": True}, ("youtu",)),
    ("minicpm5", {"ignore_merges": True}, ("minicpm5",)),
    ("chameleon", {"add_bos": True}, ("chameleon",)),
)


def _table() -> dict[str, PreTokenizer]:
    rows = [*_ROWS]
    for family, options, names in _ALIASES:
        rows += [PreTokenizer(name, family, **options) for name in names]
    return {row.name: row for row in rows}


PRE_TOKENIZERS: dict[str, PreTokenizer] = _table()


def canonical_regex(pattern: str) -> str:
    """Return a pattern in one spelling, so that equal patterns compare equal."""
    pattern = pattern.replace("\r", r"\r").replace("\n", r"\n").replace("\t", r"\t")
    expanded = "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
    pattern = pattern.replace(expanded, CONTRACTIONS)
    pattern = re.sub(r"\\p\{(\w+)\}\{1\}", r"\\p{\1}", pattern)
    return pattern.replace('\\"', '"')


def chain_of(pre_tokenizer: Any) -> Chain:
    """Return the chain that a tokenizer.json's `pre_tokenizer` section describes."""
    if not isinstance(pre_tokenizer, dict):
        return ()
    kind = pre_tokenizer.get("type")
    if kind == "Sequence":
        parts = pre_tokenizer.get("pretokenizers")
        steps = [chain_of(part) for part in parts] if isinstance(parts, list) else []
        return tuple(step for chain in steps for step in chain)
    if kind == "Split":
        pattern = pre_tokenizer.get("pattern")
        text = pattern.get("Regex") if isinstance(pattern, dict) else None
        plain = pre_tokenizer.get("behavior") == "Isolated" and not pre_tokenizer.get("invert")
        removed = pre_tokenizer.get("behavior") == "Removed" and pre_tokenizer.get("invert")
        if isinstance(text, str) and (plain or removed):
            return (("split", canonical_regex(text)),)
    if kind == "WhitespaceSplit":
        return (("drop", r"\s+"),)
    if kind == "ByteLevel":
        return (("bytes", bool(pre_tokenizer.get("use_regex", True))),)
    if kind == "Digits":
        return (("digits",) if pre_tokenizer.get("individual_digits") else ("digit runs",),)
    if kind == "Punctuation" and pre_tokenizer.get("behavior") == "Contiguous":
        return (("punctuation",),)
    return (("other", str(pre_tokenizer)),)


def canonical_chain(chain: Chain) -> Chain:
    """Return a chain with every pattern in one spelling and GPT-2's regex as a `bytes` step."""
    steps = [("split", canonical_regex(s[1])) if s[0] == "split" else s for s in chain]
    if len(steps) > 1 and steps[-2:] == [("split", GPT2_REGEX), _PLAIN_BYTES]:
        steps[-2:] = [("bytes", True)]
    digits = [("digits",) if step == ("split", r"\p{N}") else step for step in steps]
    return tuple(digits)


def candidates(chain: Chain, tokens: set[str], nfc: bool, ignore_merges: bool) -> list[str]:
    """Return the names whose chain is `chain`, likeliest first."""
    wanted = canonical_chain(chain)
    found = [r for r in PRE_TOKENIZERS.values() if not r.raw and canonical_chain(r.chain) == wanted]

    def distance(row: PreTokenizer) -> tuple[bool, bool, int]:
        marked = 1 if not row.marker else 0 if row.marker in tokens else 2
        return (row.ignore_merges != ignore_merges, row.nfc != nfc, marked)

    return [row.name for row in sorted(found, key=distance)]


def pre_tokenizer_json(chain: Chain) -> dict[str, Any]:
    """Return the tokenizer.json `pre_tokenizer` section for a chain."""
    steps = [_step_json(step) for step in chain]
    return steps[0] if len(steps) == 1 else {"type": "Sequence", "pretokenizers": steps}


def _step_json(step: Step) -> dict[str, Any]:
    if step[0] in ("split", "drop"):
        return {
            "type": "Split",
            "pattern": {"Regex": step[1]},
            "behavior": "Isolated" if step[0] == "split" else "Removed",
            "invert": False,
        }
    if step[0] == "bytes":
        return {
            "type": "ByteLevel",
            "add_prefix_space": False,
            "trim_offsets": True,
            "use_regex": step[1],
        }
    if step[0] == "punctuation":
        return {"type": "Punctuation", "behavior": "Contiguous"}
    return {"type": "Digits", "individual_digits": step[0] == "digits"}
