"""Text from a language model: prompt, chat template, sampling, stop strings, speed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from halfbyte.converters.tokenizers import apply_chat_template
from halfbyte.converters.tokenizers.codec import Codec, StreamDecoder
from halfbyte.errors import HalfbyteError
from halfbyte.evaluation_data import is_language_model
from halfbyte.ir.model import Model
from halfbyte.runtime.sampling import DEFAULT, Sampling

if TYPE_CHECKING:
    from halfbyte.runtime.session import Session


@dataclass(frozen=True)
class TextRequest:
    """What to generate; `raw` skips the chat template."""

    prompt: str
    raw: bool = False
    system: str = ""
    max_tokens: int = 128
    sampling: Sampling = DEFAULT
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
        tokens = codec.encode(request.prompt, add_special=True, parse_special=True)
    else:
        messages = [{"role": "system", "content": request.system}] if request.system else []
        messages.append({"role": "user", "content": request.prompt})
        text = apply_chat_template(model.tokenizer, messages, add_generation_prompt=True)
        tokens = codec.encode(text, add_special=False, parse_special=True)
    if not tokens:
        raise HalfbyteError("the prompt has no tokens, at least one is required; give some text")
    return tokens


def stop_ids(model: Model) -> set[int]:
    """Return every id that ends a generation: the tokenizer's and the generation config's."""
    found = set() if model.tokenizer is None else set(model.tokenizer.stop_ids)
    listed = model.generation_config.get("eos_token_id")
    found |= set(listed if isinstance(listed, list) else [] if listed is None else [listed])
    if model.tokenizer is not None and "eos" in model.tokenizer.special_ids:
        found.add(model.tokenizer.special_ids["eos"])
    return found


def _require_text_model(model: Model) -> None:
    where = model.provenance.source
    if not is_language_model(model):
        raise HalfbyteError(
            f"{where}: is no language model, a prompt needs one; run it with --input x.npz"
        )
    if model.tokenizer is None:
        raise HalfbyteError(
            f"{where}: has no tokenizer, a prompt needs one; run token ids with --input x.npz"
        )


def generate_text(
    model: Model,
    session: Session,
    request: TextRequest,
    on_text: Callable[[str], None] | None = None,
) -> TextResult:
    """Return the text that follows a prompt; `on_text` gets each piece as it appears.

    Raises:
        HalfbyteError: the model takes no prompt, or the prompt is empty or too long.
    """
    from halfbyte.runtime.generation import generate

    _require_text_model(model)
    assert model.tokenizer is not None
    codec = Codec(model.tokenizer)
    tokens = prompt_tokens(model, codec, request)
    generation = generate(
        session,
        tokens,
        StreamDecoder(codec),
        max_tokens=request.max_tokens,
        sampling=request.sampling,
        stops=request.stops,
        stop_ids=stop_ids(model),
    )
    for piece in generation:
        if on_text is not None:
            on_text(piece)
    return TextResult(
        generation.text,
        generation.token_ids,
        tokens,
        generation.prefill_tokens_per_s,
        generation.decode_tokens_per_s,
        generation.stopped_by,
    )
