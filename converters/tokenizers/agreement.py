"""Choose the pre-tokenizer name for GGUF, and prove it on a sample.

The name picked by the structure of tokenizer.json counts only if a tokenizer rebuilt from the
GGUF keys alone gives the same ids on a sample in many scripts. Otherwise every known name is tried;
where none agrees, the name that agrees most is written (llama.cpp refuses unknown names) and the
whole tokenizer.json travels along.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from halfbyte.converters.tokenizers.codec import Codec
from halfbyte.converters.tokenizers.ggml import from_gguf, plain_keys
from halfbyte.converters.tokenizers.pretokenizers import PRE_TOKENIZERS
from halfbyte.ir.tokenizer import Tokenizer, TokenType

SAMPLE = (
    "Hello, world! I'm sure they'll say: DON'T, we've IT'S I'LL he'd 'tis 'S rock 'n' roll.",
    "  two  spaces,   three\ttab\t\ttabs\n\nblank lines\r\n\r\n   \n  indented\n    deeper  ",
    "def f(x: int) -> any:\n    return x**2 + 3.14e-10  # note\n\nif (a<=b && c!=d) {\n\t}\n",
    "0 1 12 123 1234 12345 123456 1234567 3.14159 1,000,000 0x1F 2024-01-31 ½ ² ٣٤٥ १२३ 五六",
    "Größe naïve façade Ångström ŒUVRE Ελληνικά Привет, МИР! İstanbul ǅ ﬁn",
    "你好，世界！今天是2024年。日本語のテキスト、カタカナ。안녕하세요 세계! 한국어 123",
    "مرحبا بالعالم שלום עולם नमस्ते दुनिया สวัสดีชาวโลก ជំរាបសួរ Xin chào, tiếng Việt",
    "🙂🙃 👩‍👩‍👧‍👦 🇩🇪🏳️‍🌈 ❤️ ✈ 👍🏽 (╯°□°)╯︵ ┻━┻ … — „“ «» ·•† €£¥ © ™ ∑∫√≠∞",
    "null\x00 bell\x07 escape\x1b[0m del\x7f nbsp\u00a0zwsp\u200b bom\ufeff ls\u2028 id\u3000w",
    "https://example.com/a-c?d=e&f=%20#g me@mail.com C:\\path\\file.txt <tag attr='x'/> $x_1{i}",
    "camelCase XMLHttpRequest HTTPServer snake_case kebab-case SCREAMING_CASE iPhone15Pro abc12def",
    "!!! ??? ... ;;; ((([[[{{{ +++ === --- *** ~~~ ^^^ ||| \\\\ // `` @@ ## $$ %% && __ ''' \"\"\"",
    "'s't're've'm'll'd 'Sx x'RE y's5 5's\n's \n\n x\n\n\n  y \n \n\t z",
)
NOT_NFC = ("e\u0301 A\u030a \u1100\u1161 \u212b o\u0308\u0323 \u0958",)
MAX_SPECIALS = 24


@dataclass(frozen=True)
class Agreement:
    """The chosen record and whether its plain keys alone say everything.

    exact: same ids on every sample text. plain_text: same on texts without special tokens and in
    normal form, which is what the choice of a name rests on.
    """

    tokenizer: Tokenizer
    exact: bool
    plain_text: bool


def special_sample(tokenizer: Tokenizer) -> list[str]:
    """Return texts that hold the tokenizer's own special and added tokens."""
    added = (TokenType.CONTROL, TokenType.USER_DEFINED)
    found = [t for t, k in zip(tokenizer.tokens, tokenizer.token_types, strict=True) if k in added]
    step = max(1, len(found) // MAX_SPECIALS)
    return [f"ab {token} cd{token}ef  {token}\n{token}" for token in found[::step]]


def rebuilt(tokenizer: Tokenizer) -> Tokenizer:
    """Return what a reader of the plain GGUF keys would get."""
    return from_gguf(plain_keys(tokenizer))


def choose_pre_tokenizer(tokenizer: Tokenizer) -> Agreement:
    """Return the record with the name to write, judged by ids."""
    if "tokenizer.json" not in tokenizer.source:
        return Agreement(tokenizer, exact=True, plain_text=True)
    reference = Codec(tokenizer)
    plain = [reference.encode(text, add_special=False) for text in SAMPLE]
    names = _names_to_try(tokenizer)
    codec = Codec(rebuilt(replace(tokenizer, pre=names[0])), original=True)
    scores: dict[str, int] = {}
    nearly: Agreement | None = None
    for name in names:
        if scores:
            codec.use_pre_tokenizer(name)
        scores[name] = _matches(codec, SAMPLE, plain)
        if scores[name] == len(SAMPLE):
            candidate = replace(tokenizer, pre=name)
            final = codec if len(scores) == 1 else Codec(rebuilt(candidate), original=True)
            agreement = Agreement(candidate, _same_everywhere(final, reference), plain_text=True)
            if agreement.exact or name == tokenizer.pre:
                return agreement
            nearly = nearly or agreement
    if nearly is not None:
        return nearly
    best = max(names, key=lambda name: scores[name])
    return Agreement(replace(tokenizer, pre=best), exact=False, plain_text=False)


def _same_everywhere(codec: Codec, reference: Codec) -> bool:
    texts = [SAMPLE[0], *NOT_NFC, *special_sample(reference.tokenizer)]
    return all(codec.encode(text) == reference.encode(text) for text in texts)


def _names_to_try(tokenizer: Tokenizer) -> list[str]:
    if tokenizer.kind != "bpe":
        return [tokenizer.pre or "default"]
    first = [tokenizer.pre] if tokenizer.pre else []
    seen = {_behaviour(name) for name in first}
    rest = []
    for name, row in PRE_TOKENIZERS.items():
        if not row.raw and _behaviour(name) not in seen:
            seen.add(_behaviour(name))
            rest.append(name)
    return first + rest


def _behaviour(name: str) -> tuple[str, bool, bool]:
    row = PRE_TOKENIZERS[name]
    return row.family, row.nfc, row.ignore_merges


def _matches(codec: Codec, texts: Sequence[str], expected: list[list[int]]) -> int:
    pairs = zip(texts, expected, strict=True)
    return sum(codec.encode(text, add_special=False) == ids for text, ids in pairs)
