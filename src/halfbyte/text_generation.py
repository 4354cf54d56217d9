"""Text from a language model: prompt, chat template, sampling, stop strings, speed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from halfbyte.converters.tokenizers.chat import apply_chat_template
from halfbyte.converters.tokenizers.codec import Codec
from halfbyte.errors import HalfbyteError
from halfbyte.ir.model import Model


@dataclass(frozen=True)
class TextRequest:
    """What to generate. `raw` skips the chat template; `seed` None draws one."""

    prompt: str
    raw: bool = False
    system: str = ""
    max_tokens: int = 128
    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    repetition_penalty: float = 1.0
    seed: int | None = None
    stops: tuple[str, ...] = ()


@dataclass(frozen=True)
class TextResult:
    """What was generated, and how fast."""

    text: str
    token_ids: list[int]
    prompt_token_ids: list[int]
    prefill_tokens_per_s: float
    decode_tokens_per_s: float
    stopped_by: str

    def to_json(self) -> dict[str, Any]:
        """Return the machine-readable form."""
        return dict(vars(self))


def prompt_tokens(model: Model, codec: Codec, request: TextRequest) -> list[int]:
    """Return the tokens of the prompt, inside the chat template unless `raw`.

    Raises:
        HalfbyteError: the chat template fails, or the prompt is empty.
    """
    assert model.tokenizer is not None
    if request.raw or not model.tokenizer.chat_template:
        tokens = codec.encode(request.prompt, add_special=True, parse_special=not request.raw)
    else:
        messages = [{"role": "system", "content": request.system}] if request.system else []
        messages.append({"role": "user", "content": request.prompt})
        text = apply_chat_template(model.tokenizer, messages, add_generation_prompt=True)
        tokens = codec.encode(text, add_special=False, parse_special=True)
    if not tokens:
        raise HalfbyteError("the prompt has no tokens, at least one is required; give some text")
    return tokens
