"""Measure the trained model as transformers loads it and write its README."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from llama import Config, Decoder
from torch import Tensor
from torch.nn import functional

PROMPTS = ("It was a fine morning, and", '"My dear Emma," said she,', "The captain of the ship")
SAMPLING: dict[str, dict[str, Any]] = {
    "temperature 0.7": {"do_sample": True, "temperature": 0.7, "top_k": 0},
    "greedy": {"do_sample": False},
}
SAMPLE_TOKENS = 90
SAMPLE_SEED = 7
LOGIT_TOLERANCE = 1e-3


def cross_entropy(logits: Tensor, windows: Tensor) -> Tensor:
    """Return the mean nats per token of `logits` for the second token of `windows` onwards."""
    return functional.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())


@torch.no_grad()
def validate(logits_of: Callable[[Tensor], Tensor], ids: Tensor, context: int) -> float:
    """Return nats per token over `ids`, read in windows of `context` side by side."""
    windows = ids.unfold(0, context + 1, context)
    total = 0.0
    for at in range(0, len(windows), 8):
        part = windows[at : at + 8]
        total += float(cross_entropy(logits_of(part[:, :-1]), part)) * len(part)
    return total / len(windows)


@torch.no_grad()
def logit_gap(model: Any, ids: Tensor) -> float:
    """Return the largest difference between transformers' logits and those of `Decoder`."""
    ours = Decoder(Config())
    ours.load_state_dict(model.model.state_dict())
    ours.train(mode=False)
    return float((model(ids).logits - ours(ids)).abs().max())


def samples(model: Any, tokenizer: Any) -> str:
    """Return a continuation of each prompt, sampled and greedy, as Markdown."""
    parts = []
    for prompt in PROMPTS:
        for name, options in SAMPLING.items():
            torch.manual_seed(SAMPLE_SEED)
            ids = tokenizer(prompt, return_tensors="pt").input_ids
            output = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=SAMPLE_TOKENS,
                pad_token_id=tokenizer.eos_token_id,
                **options,
            )
            text = str(tokenizer.decode(output[0], skip_special_tokens=True))
            quoted = "\n".join(f"> {line}".rstrip() for line in text.splitlines())
            parts.append(f"{name.capitalize()}:\n\n{quoted}\n")
    return "\n".join(parts).rstrip()


def write_card(folder: Path, figures: dict[str, Any], held_out: Tensor, characters: int) -> None:
    """Measure the model in `folder` on `held_out` and write the README beside it.

    Args:
        folder: where config.json, the weights and the tokenizer lie.
        figures: what training recorded.
        held_out: the validation tokens.
        characters: how many characters the validation tokens stand for.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    context = Config().max_position_embeddings
    gap = logit_gap(model, held_out[None, :context])
    if gap > LOGIT_TOLERANCE:
        raise SystemExit(f"{folder}: transformers computes other logits, by up to {gap:.1e}")
    nats = validate(lambda ids: model(ids).logits, held_out, context)
    per_character = nats * len(held_out) / characters
    values = figures | {
        "parameters": f"{model.num_parameters():,}",
        "million_tokens": f"{figures['tokens_seen'] / 1e6:.1f}",
        "passes": f"{figures['tokens_seen'] / figures['train_tokens']:.1f}",
        "train_tokens": f"{figures['train_tokens']:,}",
        "held_out_tokens": f"{len(held_out):,}",
        "held_out_characters": f"{characters:,}",
        "nats_per_token": f"{nats:.4f}",
        "perplexity": f"{math.exp(nats):.1f}",
        "nats_per_character": f"{per_character:.4f}",
        "bits_per_character": f"{per_character / math.log(2):.3f}",
        "weights_bytes": f"{(folder / 'model.safetensors').stat().st_size:,}",
        "gap": f"{gap:.0e}",
        "sample_tokens": SAMPLE_TOKENS,
        "samples": samples(model, tokenizer),
    }
    template = Path(__file__).with_name("card.md").read_text(encoding="utf-8")
    (folder / "README.md").write_text(template.format_map(values), encoding="utf-8")
    print(f"{nats:.4f} nats per token, {per_character:.4f} per character")
