"""Write a record as Hugging Face files that `tokenizers` and transformers load."""

from __future__ import annotations

import json
from typing import Any

from halfbyte.converters.tokenizers.special_tokens import chat_templates
from halfbyte.converters.tokenizers.tokenizer_json import build_tokenizer_json
from halfbyte.ir.tokenizer import Tokenizer

TOKEN_NAMES = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
LONGEST = 1000000000000000019884624838656


def to_hugging_face(tokenizer: Tokenizer) -> dict[str, bytes]:
    """Return files by name; those the record was read from come back byte for byte.

    Raises:
        UnsupportedError: the pre-tokenizer is not known.
    """
    files = dict(tokenizer.source)
    if "tokenizer.json" not in files:
        files["tokenizer.json"] = _dump(build_tokenizer_json(tokenizer))
    if "tokenizer_config.json" not in files:
        files["tokenizer_config.json"] = _dump(_config(tokenizer), indent=2)
    wanted = dict(tokenizer.chat_templates)
    if tokenizer.chat_template is not None:
        wanted["default"] = tokenizer.chat_template
    if chat_templates(files) != wanted:
        _set_templates(files, wanted)
    return files


def _dump(document: dict[str, Any], indent: int | None = None) -> bytes:
    return json.dumps(document, ensure_ascii=False, indent=indent).encode("utf-8")


def _config(tokenizer: Tokenizer) -> dict[str, Any]:
    config: dict[str, Any] = {
        f"{name}_token": tokenizer.special_token(name)
        for name in TOKEN_NAMES
        if name in tokenizer.special_ids
    }
    for name in ("bos", "eos"):
        flag = getattr(tokenizer, f"add_{name}")
        if flag is not None:
            config[f"add_{name}_token"] = flag
    if tokenizer.kind == "wordpiece":
        config["do_lower_case"] = tokenizer.lowercase is not False
    config["clean_up_tokenization_spaces"] = False
    config["model_max_length"] = LONGEST
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    return config


def _set_templates(files: dict[str, bytes], wanted: dict[str, str]) -> None:
    for name in [n for n in files if n.startswith(("chat_template", "additional_chat"))]:
        del files[name]
    config = json.loads(files["tokenizer_config.json"])
    config.pop("chat_template", None)
    if set(wanted) == {"default"}:
        config["chat_template"] = wanted["default"]
    elif wanted:
        config["chat_template"] = [{"name": n, "template": t} for n, t in wanted.items()]
    files["tokenizer_config.json"] = _dump(config, indent=2)
