"""Writing a Hugging Face folder: config, tokenizer, safetensors in one file or in shards."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from halfbyte.converters.architectures import get_architecture
from halfbyte.converters.architectures.architecture import Architecture
from halfbyte.converters.architectures.rope_scaling import DIVISORS, divisors_as_scaling
from halfbyte.converters.format import WriteOptions, WrittenTensor
from halfbyte.converters.hugging_face.checkpoint import SAFETENSORS_FILE, SAFETENSORS_INDEX
from halfbyte.converters.hugging_face.checkpoints import checkpoint_of_flavour
from halfbyte.converters.hugging_face.checkpoints.checkpoint import (
    ACTIVATIONS,
    Checkpoint,
    Description,
    Layout,
    StoredArray,
)
from halfbyte.converters.hugging_face.directory import (
    CONFIG_FILE,
    GENERATION_FILE,
    QUANTIZATION_KEYS,
    dense_dtype,
    with_source_files,
)
from halfbyte.converters.hugging_face.experts import split_experts, stacks
from halfbyte.converters.hugging_face.safetensors import METADATA_KEY, parse_json
from halfbyte.converters.hugging_face.safetensors_writer import write_safetensors
from halfbyte.converters.weight_map import from_canonical, in_rotary_order, names_by_key
from halfbyte.errors import FormatError, UnsupportedError
from halfbyte.files import atomic_file, atomic_folder, contained
from halfbyte.ir.encodings.dense import Dense
from halfbyte.ir.model import CALIBRATION_KEY, Model
from halfbyte.ir.roles import Role
from halfbyte.ir.tensor import Tensor, tensor_from_array

FILE_METADATA = {"format": "pt"}
POOLING_KEY = "pooling_type"
_POOLING_MODES = {"cls": "cls_token", "mean": "mean_tokens", "last": "lasttoken"}
_SAID_BY_CONFIG = (Role.ROPE_DIVISORS, Role.ROPE_FACTORS_LONG, Role.ROPE_FACTORS_SHORT)


@dataclass(frozen=True)
class _Output:
    """One tensor of the output: its name there and where it came from."""

    name: str
    tensor: Tensor
    source: str
    arrays: tuple[StoredArray, ...]
    is_piece: bool = False

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in self.arrays)


def write_folder(model: Model, path: Path, options: WriteOptions) -> list[WrittenTensor]:
    """Write the model as a folder, or as one safetensors file when the path ends so.

    Raises:
        UnsupportedError: the flavour is unknown, a weight is not dense or has no name here.
        FormatError: the tokenizer has more tokens than the model.
    """
    checkpoint = checkpoint_of_flavour(options.flavour)
    architecture = _architecture(model)
    if architecture is not None and model.build is None:
        what = f"architecture {model.architecture!r} without settings that are understood"
        raise UnsupportedError(what, "--to hf", advice="write .gguf or .hb")
    if architecture is None and model.build is not None and path.suffix != ".safetensors":
        what, where = "a plain graph as a folder without model_type", "--to hf"
        raise UnsupportedError(what, where, advice="write .onnx, .hb, or .safetensors for weights")
    outputs, description = _stored(model, architecture, checkpoint)
    if path.suffix == ".safetensors":
        with atomic_file(path) as stream:
            _write_shard(stream, outputs, options)
    else:
        texts = _text_files(model, architecture, description)
        with atomic_folder(path) as folder:
            for name, content in texts.items():
                target = contained(folder, name)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(content)
            _write_shards(folder, outputs, options)
    return [
        WrittenTensor(
            *(o.source, o.name, str(o.tensor.encoding), o.nbytes),
            shape=o.tensor.shape if o.is_piece else None,
        )
        for o in outputs
        if o.source
    ]


def _architecture(model: Model) -> Architecture | None:
    try:
        return get_architecture(model.architecture)
    except UnsupportedError:
        return None


def _outputs(
    model: Model, architecture: Architecture | None, checkpoint: Checkpoint | None
) -> list[_Output]:
    names = {} if architecture is None else names_by_key(architecture, model.config)
    stacked = {} if architecture is None else stacks(architecture, model.config)
    outputs: list[_Output] = []
    taken: dict[str, str] = {METADATA_KEY: "the header's own key"}
    for tensor in model.weights.values():
        if tensor.role in _SAID_BY_CONFIG and architecture is not None:
            continue
        if checkpoint is None and not isinstance(tensor.encoding, Dense):
            raise UnsupportedError(
                f"encoding {tensor.encoding} of {tensor.name!r}", "--to hf",
                ["float32", "float16", "bfloat16"],
                "give --type float32, or write gguf, hb or a flavour of hf",
            )  # fmt: skip
        source = tensor.name
        if architecture is not None:
            tensor = in_rotary_order(tensor, architecture, model.config, False)
            if not tensor.encoding.is_quantized:
                tensor = from_canonical(tensor, architecture)
        pieces = [tensor.renamed(output_name(tensor, architecture, names, model))]
        if tensor.key in stacked:
            pieces = split_experts(tensor, stacked[tensor.key])
        for piece in pieces:
            name = piece.name
            if name in taken:
                raise UnsupportedError(
                    f"name {name!r} for both {taken[name]!r} and {source!r}", "--to hf"
                )
            taken[name] = source
            outputs.append(_Output(name, piece, source, (), len(pieces) > 1))
    return outputs


def _stored(
    model: Model, architecture: Architecture | None, checkpoint: Checkpoint | None
) -> tuple[list[_Output], Description]:
    """Return the tensors of the output with the arrays that hold them, and what is said of them."""
    outputs = _outputs(model, architecture, checkpoint)
    layout = None
    if checkpoint is not None:
        carried = {k: v for k, v in model.metadata.items() if k == ACTIVATIONS}
        layout = checkpoint.layout([o.tensor for o in outputs], {**model.config, **carried})
    taken = {output.name: output.source for output in outputs}
    found = []
    for output in outputs:
        tensor = output.tensor
        if layout is None or isinstance(tensor.encoding, Dense):
            arrays = [StoredArray(output.name, tensor.parts["data"], tensor.shape)]
        else:
            arrays = layout.arrays(tensor)
        for array in arrays:
            if taken.setdefault(array.name, output.source) != output.source:
                what = f"name {array.name!r} for both {taken[array.name]!r} and {output.source!r}"
                raise UnsupportedError(what, "--to hf")
        found.append(replace(output, arrays=tuple(arrays)))
    if layout is None:
        return found, Description({})
    return [*found, *_further(layout, taken)], layout.description


def _further(layout: Layout, taken: Mapping[str, str]) -> list[_Output]:
    """Return outputs for arrays that belong to no weight, where nothing has their names."""
    return [
        _Output(array.name, tensor_from_array(array.name, array.part.read()), "", (array,))
        for array in layout.further
        if array.name not in taken
    ]


def output_name(
    tensor: Tensor, architecture: Architecture | None, names: dict[Any, str], model: Model
) -> str:
    """Return the name in the output; a source's own spelling is kept where it says the same."""
    if tensor.key is None or architecture is None:
        return tensor.name
    name = names.get(tensor.key, "")
    if not name:
        raise UnsupportedError(
            f"weight {tensor.name!r} ({tensor.key}) of {model.architecture}", "Hugging Face names",
            advice="write gguf or hb",
        )  # fmt: skip
    return tensor.name if name in architecture.primary_names(tensor.name) else name


def _write_shard(stream: Any, outputs: list[_Output], options: WriteOptions) -> None:
    write_safetensors(
        stream,
        [array.spec for output in outputs for array in output.arrays],
        FILE_METADATA,
        (job for output in outputs for array in output.arrays for job in array.jobs()),
        threads=options.threads,
        progress=options.progress,
    )


def _split(outputs: list[_Output], limit: int) -> list[list[_Output]]:
    """Return shards of at most `limit` bytes each; a larger tensor stands alone."""
    shards: list[list[_Output]] = [[]]
    size = 0
    for output in outputs:
        nbytes = output.nbytes
        if limit and shards[-1] and size + nbytes > limit:
            shards.append([])
            size = 0
        shards[-1].append(output)
        size += nbytes
    return shards


def _write_shards(folder: Path, outputs: list[_Output], options: WriteOptions) -> None:
    shards = _split(outputs, options.shard_bytes)
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        name = SAFETENSORS_FILE
        if len(shards) > 1:
            name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        with (folder / name).open("wb") as stream:
            _write_shard(stream, shard, options)
        weight_map.update({array.name: name for output in shard for array in output.arrays})
    if len(shards) > 1:
        total = sum(output.nbytes for output in outputs)
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        (folder / SAFETENSORS_INDEX).write_bytes(_json_bytes(index))


def _json_bytes(document: Any) -> bytes:
    # A lone surrogate (read from an escape in another file) goes out as that escape.
    text = json.dumps(document, indent=2, ensure_ascii=False) + "\n"
    return text.encode("utf-8", "backslashreplace")


def _text_files(
    model: Model, architecture: Architecture | None, description: Description
) -> dict[str, bytes]:
    texts = with_source_files(model)
    if model.tokenizer is not None:
        rows = model.config.get("vocab_size")
        if isinstance(rows, int):
            model.tokenizer.check_vocabulary_size(rows, model.provenance.source or "tokenizer")
        from halfbyte.converters.tokenizers import to_hugging_face

        texts = {**to_hugging_face(model.tokenizer), **texts}
    if GENERATION_FILE not in texts and model.generation_config:
        texts[GENERATION_FILE] = _json_bytes(model.generation_config)
    texts = {**_pooling_files(model.config), **texts}
    config = _config(model, architecture, texts.get(CONFIG_FILE))
    config = {k: v for k, v in config.items() if k not in QUANTIZATION_KEYS}
    calibration = model.metadata.get(CALIBRATION_KEY)
    if config and calibration is not None:
        config[CALIBRATION_KEY.replace(".", "_")] = calibration
    if config or description.config:
        texts[CONFIG_FILE] = _json_bytes({**config, **description.config})
    return texts | {name: _json_bytes(held) for name, held in description.files.items()}


def _config(
    model: Model, architecture: Architecture | None, source: bytes | None
) -> dict[str, Any]:
    """Return config.json: the source's own where it says the same, with the dtype written."""
    raw = {} if source is None else parse_json(source, Path(CONFIG_FILE), CONFIG_FILE)
    if architecture is not None and not _says_the_same(raw, model, architecture):
        raw = architecture.hugging_face_config(_sayable(model))
    elif architecture is None and not raw:
        raw = dict(model.config)
    if raw:
        key = "dtype" if "dtype" in raw else "torch_dtype"
        raw[key] = dense_dtype(dict(model.weights))
    return raw


def _sayable(model: Model) -> dict[str, Any]:
    """Return the config with what stands beside it in tensors or is no part of config.json."""
    config = {k: v for k, v in model.config.items() if k != POOLING_KEY}
    tensor = model.by_key().get(DIVISORS)
    if tensor is not None:
        scaling = divisors_as_scaling(config, tensor.float32().reshape(-1))
        config["rope_scaling"] = scaling or config["rope_scaling"]
    return config


def _pooling_files(config: dict[str, Any]) -> dict[str, bytes]:
    """Return the files by which sentence-transformers learns how token states are pooled."""
    kind = _POOLING_MODES.get(str(config.get(POOLING_KEY)))
    if kind is None:
        return {}
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{name}"}
        for i, (path, name) in enumerate((("", "Transformer"), ("1_Pooling", "Pooling")))
    ]
    settings = {"word_embedding_dimension": config["hidden_size"]}
    settings |= {f"pooling_mode_{mode}": mode == kind for mode in _POOLING_MODES.values()}
    found = {"modules.json": modules, "1_Pooling/config.json": settings}
    return {name: _json_bytes(document) for name, document in found.items()}


def _says_the_same(raw: dict[str, Any], model: Model, architecture: Architecture) -> bool:
    if not raw:
        return False
    ours = dict(model.config)
    if "rope_interleaved" in ours:
        ours["rope_interleaved"] = False
    try:
        return architecture.canonical_config(raw) == architecture.canonical_config(ours)
    except (FormatError, UnsupportedError):
        return False
