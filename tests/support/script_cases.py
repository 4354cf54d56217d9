"""The folders on which conversion is compared with llama.cpp's scripts."""

from __future__ import annotations

from typing import Any

from support.script_models import (
    CHATML,
    FolderCase,
    as_json,
    bpe_tokenizer,
    spm_model,
    spm_tokenizer,
    wordpiece_tokenizer,
)

Document = dict[str, Any]

DECODER: Document = {
    "vocab_size": 288, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": False,
}  # fmt: skip
SPM_SIZE = 344
GPT2: Document = {
    "model_type": "gpt2", "vocab_size": 272, "n_embd": 64, "n_layer": 2, "n_head": 4,
    "n_positions": 64, "n_ctx": 64, "layer_norm_epsilon": 1e-5,
}  # fmt: skip
BERT: Document = {
    "model_type": "bert", "vocab_size": 128, "hidden_size": 64, "intermediate_size": 96,
    "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 64,
    "type_vocab_size": 2, "layer_norm_eps": 1e-12,
}  # fmt: skip
CHAT: Document = {
    "bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<|im_end|>",
    "unk_token": "<|endoftext|>", "tokenizer_class": "PreTrainedTokenizerFast",
    "clean_up_tokenization_spaces": False, "model_max_length": 128,
}  # fmt: skip
SPM_CONFIG: Document = {
    "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "add_bos_token": True,
    "add_eos_token": False, "tokenizer_class": "LlamaTokenizer", "model_max_length": 128,
    "clean_up_tokenization_spaces": False,
    "added_tokens_decoder": {
        str(number): {"content": text, "special": True, "normalized": False, "lstrip": False,
                      "rstrip": False, "single_word": False}
        for number, text in enumerate(("<unk>", "<s>", "</s>"))
    },
}  # fmt: skip
BERT_CONFIG: Document = {
    "unk_token": "[UNK]", "sep_token": "[SEP]", "pad_token": "[PAD]", "cls_token": "[CLS]",
    "mask_token": "[MASK]", "do_lower_case": True, "tokenizer_class": "BertTokenizer",
    "model_max_length": 64,
}  # fmt: skip
LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
CARD = b"""---
license: apache-2.0
language:
- en
- no
tags:
- chat
- code
pipeline_tag: text-generation
base_model: HuggingFaceTB/SmolLM2-135M
datasets:
- HuggingFaceTB/smoltalk
- https://huggingface.co/datasets/allenai/c4
library_name: transformers
---
# A model
"""


def bpe(family: str, settings: Document | None = None, **options: Any) -> dict[str, bytes]:
    """Return the files of a byte-level tokenizer."""
    config = CHAT if settings is None else settings
    found = {"tokenizer.json": as_json(bpe_tokenizer(family, **options))}
    return {**found, "tokenizer_config.json": as_json(config)}


def spm(
    settings: Document | None = None, model: bool = True, fast: bool = True, prefix: bool = True
) -> dict[str, bytes]:
    """Return the files of a SentencePiece tokenizer: tokenizer.model, tokenizer.json or both."""
    found = {"tokenizer_config.json": as_json(SPM_CONFIG if settings is None else settings)}
    if model:
        found["tokenizer.model"] = spm_model(prefix)
    if fast:
        found["tokenizer.json"] = as_json(spm_tokenizer(prefix))
    return found


def wordpiece(lowercase: bool = True) -> dict[str, bytes]:
    """Return the files of a BERT tokenizer."""
    config = {**BERT_CONFIG, "do_lower_case": lowercase}
    found = {"tokenizer.json": as_json(wordpiece_tokenizer(lowercase))}
    return {**found, "tokenizer_config.json": as_json(config)}


def pooling(mode: str) -> dict[str, bytes]:
    """Return the files by which sentence-transformers says how token states are pooled."""
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling",
         "type": "sentence_transformers.models.Pooling"},
    ]  # fmt: skip
    names = ("cls_token", "mean_tokens", "max_tokens", "lasttoken")
    flags = {f"pooling_mode_{name}": name == mode for name in names}
    settings = {"word_embedding_dimension": 64, **flags}
    return {"modules.json": as_json(modules), "1_Pooling/config.json": as_json(settings)}


def decoder(model_type: str, **settings: Any) -> Document:
    """Return a config of the llama family."""
    return {"model_type": model_type, **DECODER, **settings}


def generation(**settings: Any) -> dict[str, bytes]:
    """Return a generation_config.json."""
    return {"generation_config.json": as_json({"_from_model_config": True, **settings})}


def templates(*names: str) -> Document:
    """Return a tokenizer config with several chat templates."""
    entries = [{"name": name, "template": f"{name}: {CHATML}"} for name in names]
    return {**CHAT, "chat_template": entries}


def _llama() -> list[FolderCase]:
    small = decoder("llama", vocab_size=SPM_SIZE)
    eight = {**CHAT, "bos_token": "<|im_start|>", "chat_template": CHATML}
    return [
        FolderCase("llama-gqa", small, spm()),
        FolderCase(
            "llama-slow-tokenizer",
            {**small, "tie_word_embeddings": True, "bos_token_id": 1, "eos_token_id": 2},
            spm({**SPM_CONFIG, "add_prefix_space": True}, fast=False),
        ),
        FolderCase(
            "llama-fast-tokenizer", {**small, "vocab_size": SPM_SIZE - 2}, spm(model=False),
            dtype="float16",
        ),
        FolderCase(
            "llama-rope3", decoder("llama", rope_scaling=LLAMA3, rope_theta=500000.0),
            {**bpe("llama-bpe", eight, bos="<|im_start|>"),
             **generation(eos_token_id=[2, 0], temperature=0.6, top_p=0.9, do_sample=True)},
            dtype="bfloat16", pre="llama-bpe",
        ),
        FolderCase(
            "llama-linear", decoder("llama", rope_scaling={"rope_type": "linear", "factor": 2.5}),
            bpe("gpt-2"), pre="gpt-2",
        ),
        FolderCase("llama-yarn", decoder("llama", rope_scaling=YARN), bpe("gpt-2"), pre="gpt-2"),
        FolderCase(
            "llama-yarn-attention",
            decoder("llama", rope_scaling={**YARN, "attention_factor": 1.5, "beta_fast": 32.0,
                                           "beta_slow": 1.0}),
            bpe("gpt-2"), pre="gpt-2",
        ),
        FolderCase(
            "llama-biases", decoder("llama", attention_bias=True, mlp_bias=True), bpe("gpt-2"),
            dtype="float16", pre="gpt-2",
        ),
        FolderCase(
            "llama-head-dim", decoder("llama", head_dim=32, num_key_value_heads=4), bpe("gpt-2"),
            dtype="bfloat16", pre="gpt-2",
        ),
        FolderCase(
            "SmolTest-135M-Instruct",
            decoder("llama", vocab_size=272, tie_word_embeddings=True, num_key_value_heads=1,
                    bos_token_id=1, eos_token_id=2, pad_token_id=2),
            {**bpe("smollm", {**CHAT, "chat_template": CHATML}), "README.md": CARD,
             **generation(bos_token_id=1, eos_token_id=2, repetition_penalty=1.1, top_k=40)},
            dtype="bfloat16", pre="smollm",
        ),
        FolderCase(
            "llama-vocabulary-49152",
            decoder("llama", vocab_size=49152, hidden_size=32, intermediate_size=32,
                    num_hidden_layers=1, tie_word_embeddings=True),
            bpe("smollm"), dtype="bfloat16", pre="smollm",
        ),
        FolderCase(
            "llama-ternary",
            decoder("llama", hidden_size=256, intermediate_size=512, num_hidden_layers=1),
            bpe("gpt-2"), dtype="bfloat16", pre="gpt-2",
        ),
        FolderCase(
            "llama-odd-rows", decoder("llama", hidden_size=48, intermediate_size=80),
            bpe("gpt-2", user_defined="<tool>"), pre="gpt-2",
        ),
    ]  # fmt: skip


def _relatives() -> list[FolderCase]:
    mistral = decoder("mistral", vocab_size=SPM_SIZE, sliding_window=None, head_dim=16)
    jinja = {**CHAT, "add_bos_token": False}
    return [
        FolderCase("mistral-v03", mistral, spm({**SPM_CONFIG, "chat_template": CHATML})),
        FolderCase(
            "mistral-no-prefix", mistral,
            spm({**SPM_CONFIG, "add_prefix_space": False}, prefix=False), dtype="bfloat16",
        ),
        FolderCase(
            "qwen2-tied",
            decoder("qwen2", tie_word_embeddings=True, rope_theta=1000000.0, rms_norm_eps=1e-6),
            {**bpe("qwen2", {**jinja, "bos_token": None}), "chat_template.jinja": CHATML.encode(),
             **generation(eos_token_id=[2, 0], top_k=20, top_p=0.8, temperature=0.7)},
            dtype="bfloat16", pre="qwen2",
        ),
        FolderCase(
            "qwen2-untied-yarn", decoder("qwen2", rope_scaling=YARN), bpe("qwen2", jinja),
            pre="qwen2",
        ),
        FolderCase(
            "qwen2-templates", decoder("qwen2"),
            bpe("qwen2", templates("default", "tool_use", "rag-2")), pre="qwen2",
        ),
        FolderCase(
            "qwen2-embedding", decoder("qwen2", tie_word_embeddings=True),
            {**bpe("qwen2"), **pooling("lasttoken")}, pre="qwen2",
        ),
        FolderCase(
            "qwen3-tied", decoder("qwen3", head_dim=32, tie_word_embeddings=True),
            bpe("qwen2", {**jinja, "chat_template": CHATML}), dtype="bfloat16", pre="qwen2",
        ),
        FolderCase("qwen3-plain", decoder("qwen3", head_dim=16), bpe("qwen2"), dtype="float16",
                   pre="qwen2"),
        FolderCase(
            "qwen3-jinja-templates", decoder("qwen3", head_dim=16),
            {**bpe("qwen2"), "chat_template.jinja": CHATML.encode(),
             "additional_chat_templates/tool_use.jinja": b"{{ tools }}"}, pre="qwen2",
        ),
    ]  # fmt: skip


def _mixtures() -> list[FolderCase]:
    mixtral = decoder("mixtral", vocab_size=SPM_SIZE, num_local_experts=4, num_experts_per_tok=2)
    qwen3 = decoder(
        "qwen3_moe",
        head_dim=32,
        num_experts=8,
        num_experts_per_tok=3,
        moe_intermediate_size=32,
        norm_topk_prob=True,
    )
    return [
        FolderCase("mixtral-plain", mixtral, spm(), dtype="bfloat16"),
        FolderCase(
            "mixtral-head-dim",
            {**mixtral, "head_dim": 32, "num_local_experts": 8, "rope_theta": 1e6}, spm(),
        ),
        FolderCase("Mixtral-8x7B-Instruct-v0.1", {**mixtral, "num_local_experts": 8}, spm()),
        FolderCase(
            "qwen2moe-plain",
            decoder("qwen2_moe", num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32,
                    shared_expert_intermediate_size=64),
            bpe("qwen2"), dtype="bfloat16", pre="qwen2",
        ),
        FolderCase("qwen3moe-plain", qwen3, bpe("qwen2"), pre="qwen2"),
        FolderCase(
            "qwen3moe-tied", {**qwen3, "tie_word_embeddings": True, "decoder_sparse_step": 1},
            bpe("qwen2"), dtype="float16", pre="qwen2",
        ),
    ]  # fmt: skip


def _others() -> list[FolderCase]:
    head = {"cls.predictions.bias": (128,), "cls.predictions.transform.dense.weight": (64, 64)}
    plain = {k: v for k, v in CHAT.items() if not k.startswith(("pad", "unk"))}
    return [
        FolderCase("gpt2-tied", GPT2, bpe("gpt-2", plain), pre="gpt-2"),
        FolderCase(
            "gpt2-untied", {**GPT2, "tie_word_embeddings": False, "vocab_size": 280},
            bpe("gpt-2", plain), dtype="float16", pre="gpt-2",
        ),
        FolderCase("bert-plain", BERT, wordpiece(), pre="bert-bge"),
        FolderCase("bert-cased", BERT, wordpiece(lowercase=False), dtype="float16"),
        FolderCase(
            "bert-mean", BERT, {**wordpiece(), **pooling("mean_tokens")}, pre="bert-bge"
        ),
        FolderCase("bert-cls", BERT, {**wordpiece(), **pooling("cls_token")}, pre="bert-bge"),
        FolderCase(
            "bert-masked-head", BERT, wordpiece(), dtype="bfloat16", pre="bert-bge", prefix="bert.",
            extra=head,
        ),
    ]  # fmt: skip


CASES: dict[str, FolderCase] = {
    case.name: case for case in (*_llama(), *_relatives(), *_mixtures(), *_others())
}
"""By name."""
OUTTYPES: dict[str, str] = {"f32": "F32", "f16": "F16", "bf16": "BF16", "q8_0": "Q8_0"}
"""Names of llama.cpp's script and ours."""
TERNARY: dict[str, str] = {"tq1_0": "TQ1_0", "tq2_0": "TQ2_0"}
"""Further ones, for a case whose rows divide into their blocks."""
TERNARY_CASE = "llama-ternary"
RUNS: list[tuple[str, str]] = [
    (name, outtype)
    for name in CASES
    for outtype in ({**OUTTYPES, **TERNARY} if name == TERNARY_CASE else OUTTYPES)
]
"""Cases and outtypes that are compared."""


def type_request(outtype: str) -> tuple[str, list[tuple[str, str]]]:
    """Return --type and the --tensor entries that ask for what the script makes of an outtype.

    Its ternary types keep both ends in float16, those of llama-quantize take Q4_K and Q6_K.
    """
    ends = [("model.embed_tokens.weight", "F16"), ("lm_head.weight", "F16")]
    return {**OUTTYPES, **TERNARY}[outtype], ends if outtype in TERNARY else []


MAY_DIFFER: dict[str, dict[str, str]] = {
    "": {
        "halfbyte.config": "ours only: the Hugging Face config, for the way back",
    },
    "llama-slow-tokenizer": {
        "tokenizer.ggml.unknown_token_id": "ours only: read from tokenizer.model; the script "
        "looks into config.json alone; the id is llama.cpp's default",
    },
    "llama-fast-tokenizer": {
        "tokenizer.ggml.scores": "the script knows no scores without a tokenizer.model and writes "
        "-1000 for all, with which llama.cpp merges pieces from left to right; ours follow the "
        "merges, so that ids are Hugging Face's",
    },
    "llama-yarn-attention": {
        "llama.rope.scaling.attn_factor": "ours only: llama.cpp computes yarn with this key and "
        "ignores yarn_attn_factor",
    },
    "llama-odd-rows/q8_0": {
        "general.file_type": "the script writes the type that was asked for; here the commonest "
        "type, since most rows do not divide into blocks",
    },
}
"""Keys whose values differ on purpose, by case (and outtype), with the reason."""
FILE_TYPE_NUMBERS = {"f32": 0, "f16": 1, "bf16": 32, "q8_0": 7, "tq1_0": 36, "tq2_0": 37}
