"""Special ids, begin/end flags and chat templates, from the files beside a tokenizer.json.

Which id is called bos, eos ... and whether they are added follows llama.cpp's converter, so that
the GGUF keys come out the same; chat templates follow transformers (a .jinja file wins).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from halfbyte.converters.tokenizers.strict_json import parse_object
from halfbyte.errors import FormatError
from halfbyte.ir.tokenizer import Tokenizer, TokenType

NAMES = ("bos", "eos", "unk", "sep", "pad", "cls", "mask", "eot", "eom")
MAX_TEMPLATE_BYTES = 1 << 20

END_OF_GENERATION = frozenset(
    [
        "<|eot_id|>",
        "<|im_end|>",
        "<|end|>",
        "<|return|>",
        "<|call|>",
        "<|flush|>",
        "<|calls|>",
        "<end_of_turn>",
        "<|endoftext|>",
        "</s>",
        "<|eom_id|>",
        "<EOT>",
        "_<EOT>",
        "[EOT]",
        "[EOS]",
        "<|end_of_text|>",
        "<end_of_utterance>",
        "<eos>",
        "<turn|>",
        "<|tool_response>",
        "<｜end▁of▁sentence｜>",
        "[e~[",
    ]
)


@dataclass
class Specials:
    """What the configuration files say about special tokens."""

    tokens: dict[str, str] = field(default_factory=dict)
    ids: dict[str, int] = field(default_factory=dict)
    add: dict[str, bool] = field(default_factory=dict)
    stop_ids: tuple[int, ...] = ()
    warnings: list[str] = field(default_factory=list)


def looks_special(token: str) -> bool:
    """Return whether an added token is a control token by its looks alone."""
    if token in ("<pad>", "<mask>", "<2mass>", "[@BOS@]"):
        return True
    pairs = (("<|", "|>"), ("<｜", "｜>"), ("<unused", ">"))
    return any(token.startswith(start) and token.endswith(end) for start, end in pairs)


def all_stop_ids(tokenizer: Tokenizer, named: Iterable[int]) -> tuple[int, ...]:
    """Return the ids that end a generation: those named, then those known by their text."""
    control = (TokenType.CONTROL, TokenType.USER_DEFINED)
    known = [
        index
        for index, kind in enumerate(tokenizer.token_types)
        if kind in control and tokenizer.tokens[index] in END_OF_GENERATION
    ]
    return tuple(dict.fromkeys([*named, *known]))


def json_file(files: Mapping[str, bytes], name: str) -> dict[str, Any]:
    """Return a JSON file of the set, {} where it is not there."""
    return parse_object(files[name], name) if name in files else {}


def read_specials(
    files: Mapping[str, bytes], document: Mapping[str, Any], ids: Mapping[str, int]
) -> Specials:
    """Return special tokens, ids and flags.

    document: the tokenizer.json (or {}). ids: token text -> id.

    Raises:
        FormatError: a file is broken.
    """
    specials = Specials()
    config = json_file(files, "tokenizer_config.json")
    named = {**json_file(files, "special_tokens_map.json"), **config}
    for name in NAMES:
        text = _content(named.get(f"{name}_token"))
        if text is not None:
            specials.tokens[name] = text
    _aliases(specials.tokens)
    _read_post_processor(specials, document.get("post_processor"))
    for name in NAMES:
        flag = config.get(f"add_{name}_token")
        if isinstance(flag, bool):
            specials.add.setdefault(name, flag)
    specials.ids = {n: ids[text] for n, text in specials.tokens.items() if text in ids}
    _read_model_config(specials, files, max(ids.values(), default=-1) + 1)
    return specials


def _content(entry: Any) -> str | None:
    if isinstance(entry, dict):
        entry = entry.get("content")
    return entry if isinstance(entry, str) else None


def _aliases(tokens: dict[str, str]) -> None:
    for name, other in (("bos", "cls"), ("eos", "sep")):
        if name not in tokens and other in tokens:
            tokens[name] = tokens[other]


def _read_post_processor(specials: Specials, processor: Any) -> None:
    if not isinstance(processor, dict):
        return
    parts = processor.get("processors")
    for part in parts if isinstance(parts, list) else [processor]:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "ByteLevel":
            specials.add.setdefault("bos", False)
            specials.add.setdefault("eos", False)
        elif kind in ("RobertaProcessing", "BertProcessing"):
            specials.add.update(bos=True, eos=True, sep=kind == "RobertaProcessing")
            for name in ("cls", "sep"):
                entry = part.get(name)
                if isinstance(entry, list) and entry and isinstance(entry[0], str):
                    specials.tokens.setdefault(name, entry[0])
            _aliases(specials.tokens)
        elif kind == "TemplateProcessing":
            _read_template(specials, part.get("single"), part.get("pair"))


def _special(template: Any, index: int) -> str | None:
    try:
        text = template[index]["SpecialToken"]["id"]
    except (LookupError, TypeError):
        return None
    return text if isinstance(text, str) else None


def _read_template(specials: Specials, single: Any, pair: Any) -> None:
    tokens = specials.tokens
    if not isinstance(single, list) or len(single) < 2:
        return
    first, last = _special(single, 0), _special(single, -1)
    if first is not None:
        tokens.setdefault("bos", first)
        if first != tokens["bos"]:
            tokens.setdefault("cls", first)
        specials.add["bos"] = first in (tokens["bos"], tokens.get("cls"))
    if last is not None:
        if tokens.get("eos", last) != last:
            tokens.setdefault("eot", tokens["eos"])
        tokens["eos"] = last
        specials.add["eos"] = True
    middle = _special(pair, 2 if first is not None else 1)
    if middle is not None:
        known = (tokens.get("sep"), tokens.get("eos"))
        specials.add["sep"] = middle in known and last is None


def _read_model_config(specials: Specials, files: Mapping[str, bytes], count: int) -> None:
    stop: list[int] = []
    for name in ("generation_config.json", "config.json"):
        config = json_file(files, name)
        for special in NAMES:
            value = config.get(f"{special}_token_id")
            listed = value if isinstance(value, list) else [value]
            ids = [i for i in listed if isinstance(i, int) and not isinstance(i, bool)]
            outside = [i for i in ids if i != -1 and not 0 <= i < count]
            ids = [i for i in ids if 0 <= i < count]
            if outside:
                rule = f"{special}_token_id is {outside[0]}, the tokenizer has {count} tokens"
                specials.warnings.append(f"{name}: {rule}; it is ignored")
            if ids:
                specials.ids.setdefault(special, ids[0])
                if special == "eos" and not (stop and name == "config.json"):
                    stop += ids
    stop += [specials.ids[name] for name in ("eos", "eot", "eom") if name in specials.ids]
    specials.stop_ids = tuple(dict.fromkeys(stop))


def chat_templates(files: Mapping[str, bytes]) -> dict[str, str]:
    """Return the chat templates by name, the usual one as `default`.

    Raises:
        FormatError: a template is not text or longer than 1 MB.
    """
    found: dict[str, str] = {}
    for name in ("chat_template.json", "tokenizer_config.json"):
        found.update(_listed_templates(json_file(files, name).get("chat_template"), name))
    for name, content in files.items():
        folder, _, base = name.rpartition("/")
        if name == "chat_template.jinja" or (
            folder == "additional_chat_templates" and base.endswith(".jinja")
        ):
            key = "default" if not folder else base.removesuffix(".jinja")
            found[key] = decode_text(content, name)
    for name, text in found.items():
        if len(text) > MAX_TEMPLATE_BYTES:
            raise FormatError(
                f"chat template {name!r}",
                f"{len(text)} characters long, at most {MAX_TEMPLATE_BYTES} are read",
            )
    return found


def _listed_templates(value: Any, where: str) -> dict[str, str]:
    if value is None:
        return {}
    if isinstance(value, str):
        return {"default": value}
    entries = value if isinstance(value, list) else [value]
    found = {}
    for entry in entries:
        entry = entry if isinstance(entry, dict) else {}
        name, text = entry.get("name"), entry.get("template")
        if not isinstance(name, str) or not isinstance(text, str):
            raise FormatError(where, "chat_template is neither text nor a list of name, template")
        found[name] = text
    return found


def decode_text(content: bytes, where: str) -> str:
    """Return a file's text.

    Raises:
        FormatError: it is not UTF-8.
    """
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise FormatError(where, "not UTF-8 text", error.start) from error
