"""Train the small Llama model that ships as the embedded default.

A byte-level BPE tokenizer and a Llama decoder are trained on seven public-domain
novels; the folder that comes out loads with ``transformers``.

    python examples/train/train_demo.py --work build/demo --output examples/demo

Needs torch, tokenizers, safetensors and transformers; halfbyte itself does not.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import books
import torch
from card import cross_entropy, validate, write_card
from llama import Config, Decoder
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor

END = "<|endoftext|>"
END_ID = 0
SEED = 1811
TOKENS_PER_STEP = 8192
SHORT_CONTEXT = 256
LONG_FROM = 0.8  # the part of the schedule behind which windows fill the whole context
STEPS_PER_CHECK = 50
FIGURES = "figures.json"


def write_json(path: Path, data: dict[str, Any]) -> None:
    """Write `data` as indented JSON with a final newline."""
    path.write_text(json.dumps(data, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def train_tokenizer(texts: list[str], config: Config, folder: Path) -> Tokenizer:
    """Train a byte-level BPE on `texts` and write its two files into `folder`."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocab_size,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "add_bos_token": False,
        "bos_token": END,
        "clean_up_tokenization_spaces": False,
        "eos_token": END,
        "model_max_length": config.max_position_embeddings,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    write_json(folder / "tokenizer_config.json", settings)
    return tokenizer


def encode(tokenizer: Tokenizer, texts: list[str]) -> Tensor:
    """Return the token ids of all `texts`, with an end-of-text token around each."""
    ids = [END_ID]
    for encoding in tokenizer.encode_batch(texts):
        ids += [*encoding.ids, END_ID]
    return torch.tensor(ids)


def batches(ids: Tensor, context: int, seed: int) -> Iterator[Tensor]:
    """Yield shuffled batches of windows forever; each pass cuts them at another offset."""
    random = torch.Generator().manual_seed(seed)
    size = TOKENS_PER_STEP // context
    while True:
        start = int(torch.randint(context, (1,), generator=random))
        windows = ids[start:].unfold(0, context + 1, context)
        order = torch.randperm(len(windows), generator=random)
        for at in range(0, len(order) - size + 1, size):
            yield windows[order[at : at + size]]


def save(model: Decoder, folder: Path) -> None:
    """Write weights in bfloat16 and the two configuration files, in transformers' layout."""
    weights = {
        f"model.{name}": weight.detach().to(torch.bfloat16)
        for name, weight in model.named_parameters()
    }
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    ids = {"bos_token_id": END_ID, "eos_token_id": END_ID}
    fixed = {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "hidden_act": "silu",
        "mlp_bias": False,
        "model_type": "llama",
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "use_cache": True,
    }
    write_json(folder / "config.json", asdict(model.config) | fixed | ids)
    sampling = {"do_sample": True, "temperature": 0.7, "max_new_tokens": 128}
    write_json(folder / "generation_config.json", sampling | ids)


def learning_rate(progress: float, peak: float) -> float:
    """Return the rate of a warm-up over 4% and a cosine down to 5% of the peak."""
    warm_up = 0.04
    if progress < warm_up:
        return peak * max(progress, 0.001) / warm_up
    cosine = 0.5 + 0.5 * math.cos(math.pi * min(1.0, (progress - warm_up) / (1 - warm_up)))
    return peak * (0.05 + 0.95 * cosine)


def make_optimizer(model: Decoder) -> torch.optim.AdamW:
    """Return AdamW with weight decay on the matrices only."""
    matrices = [weight for weight in model.parameters() if weight.dim() == 2]
    vectors = [weight for weight in model.parameters() if weight.dim() == 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, betas=(0.9, 0.95), fused=True)


def train(model: Decoder, ids: Tensor, held_out: Tensor, args: argparse.Namespace) -> None:
    """Train, keeping the weights with the lowest validation loss and the figures."""
    optimizer = make_optimizer(model)
    context = model.config.max_position_embeddings
    short, long = batches(ids, SHORT_CONTEXT, SEED), batches(ids, context, SEED + 1)
    names = ("steps", "minutes", "rate", "dropout")
    command = " ".join(f"--{name} {vars(args)[name]:g}" for name in names)
    figures: dict[str, Any] = {"options": command, "train_tokens": len(ids)}
    started, best = time.monotonic(), math.inf
    step, progress = 0, 0.0
    while progress < 1.0:
        windows = next(short if progress < LONG_FROM else long)
        loss = cross_entropy(model(windows[:, :-1]), windows)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(progress, args.rate)
        optimizer.step()
        optimizer.zero_grad()
        step += 1
        minutes = (time.monotonic() - started) / 60
        progress = max(step / args.steps, minutes / args.minutes)
        if step % STEPS_PER_CHECK and progress < 1.0:
            continue
        model.train(mode=False)
        nats = validate(model, held_out, context)
        model.train()
        print(
            f"step {step}, {minutes:.1f} min: train {loss.item():.3f}, valid {nats:.4f}", flush=True
        )
        figures |= {"steps": step, "tokens_seen": step * TOKENS_PER_STEP, "minutes": round(minutes)}
        if nats < best:
            best, figures["best_step"] = nats, step
            save(model, args.output)
        write_json(args.work / FIGURES, figures)


def main() -> None:
    """Fetch the text, train, save and report."""
    parser = argparse.ArgumentParser(description="Train the embedded demonstration model.")
    parser.add_argument("--work", type=Path, required=True, help="folder for the downloads")
    parser.add_argument("--output", type=Path, required=True, help="folder for the model")
    parser.add_argument("--steps", type=int, default=1800, help="of 8192 tokens; 0: measure only")
    parser.add_argument("--rate", type=float, default=2e-3, help="peak learning rate")
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument(
        "--minutes",
        type=float,
        default=math.inf,
        help="shorten the schedule to end in time; the result then depends on the machine's speed",
    )
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(2)
    torch.manual_seed(SEED)
    texts, held_out_texts = books.split(books.fetch_books(args.work))
    excerpts = books.excerpts(held_out_texts)
    (args.output / "validation.txt").write_text(excerpts, encoding="utf-8")
    config = Config()
    tokenizer = train_tokenizer(texts, config, args.output)
    ids, held_out = encode(tokenizer, texts), encode(tokenizer, held_out_texts)
    print(f"{len(ids):,} tokens to train on, {len(held_out):,} to validate on", flush=True)
    if args.steps:
        train(Decoder(config, args.dropout), ids, held_out, args)
    figures = json.loads((args.work / FIGURES).read_text(encoding="utf-8"))
    write_card(args.output, figures, held_out, sum(map(len, held_out_texts)))


if __name__ == "__main__":
    main()
