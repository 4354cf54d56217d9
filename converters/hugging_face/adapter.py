"""LoRA adapters of PEFT: adapter_config.json beside adapter_model.safetensors.

Source: peft's `LoraConfig`, `save_pretrained` and the LoRA layers for names and scales.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from halfbyte.converters.architectures.architecture import Architecture
from halfbyte.converters.format import ReadOptions
from halfbyte.converters.hugging_face.checkpoint import read_weights
from halfbyte.converters.hugging_face.directory import read_text_files
from halfbyte.converters.hugging_face.safetensors import parse_json
from halfbyte.converters.lora import Adapter, Pair, check_pair, require_finite
from halfbyte.converters.weight_map import to_canonical
from halfbyte.errors import FormatError, HalfbyteError, UnsupportedError
from halfbyte.ir.roles import Role, WeightKey
from halfbyte.ir.tensor import Tensor
from halfbyte.ir.transposed import transposed

CONFIG_FILE = "adapter_config.json"
Modules = dict[str, dict[str, Tensor]]
WEIGHT_FILES = ("adapter_model.safetensors", "adapter_model.bin")
MAX_RANK = 1 << 16

_PREFIX = "base_model.model."
_LOW_RANK = re.compile(
    r"(?P<module>.+)\.(?P<part>lora_A|lora_B|lora_embedding_A|lora_embedding_B"
    r"|lora_magnitude_vector)(?P<rest>(\.[^.]+){0,2})"
)
_PARTS = {
    "lora_A": "a", "lora_B": "b", "lora_embedding_A": "embedding_a",
    "lora_embedding_B": "embedding_b", "lora_magnitude_vector": "dora",
}  # fmt: skip
_REFUSED: dict[str, str] = {
    "lora_bias": "it adds to biases that the base model may not have",
    "layer_replication": "it repeats layers of the base model",
    "use_qalora": "its A works on groups of columns",
    "trainable_token_indices": "it replaces single rows of the embedding",
    "target_parameters": "it changes parameters that are no layers of their own",
}


def is_adapter_folder(path: Path) -> bool:
    """Whether a folder holds an adapter rather than a model."""
    return (path / CONFIG_FILE).is_file() and not (path / "model.safetensors").is_file()


def adapter_config(path: Path) -> dict[str, Any]:
    """Return the settings of the adapter in a folder.

    Raises:
        FormatError: they are missing or broken.
        UnsupportedError: it is no LoRA, or of a kind that is not known here.
    """
    where = path / CONFIG_FILE
    if not where.is_file():
        raise FormatError(path, f"no {CONFIG_FILE} here, an adapter needs it; check the path")
    config = parse_json(where.read_bytes(), where, CONFIG_FILE)
    kind = config.get("peft_type")
    if kind not in ("LORA", None):
        raise UnsupportedError(f"an adapter of type {kind!r}", str(where), ["LORA"])
    for name, reason in _REFUSED.items():
        if config.get(name):
            raise UnsupportedError(f"{name} {config[name]!r}"[:80], str(where), (), reason)
    return config


def read_adapter(
    path: Path, architecture: Architecture, config: Mapping[str, Any], options: ReadOptions
) -> Adapter:
    """Return the adapter in a folder; its weights stay on disk.

    architecture, config: of the base model, whose names the adapter uses.

    Raises:
        FormatError: settings and weights are broken or do not fit each other.
        UnsupportedError: it changes something that the base model does not have, or in a way that
            is not known here.
    """
    settings = adapter_config(path)
    name = next((name for name in WEIGHT_FILES if (path / name).is_file()), None)
    if name is None:
        raise FormatError(path, f"no {WEIGHT_FILES[0]} here; check the path")
    tensors = read_weights(path / name, options)
    where = str(path / name)
    names = _Names(architecture, config, where)
    scales = _Scales(settings, str(path / CONFIG_FILE))
    modules: Modules = {}
    replaced: dict[WeightKey, Tensor] = {}
    for full, tensor in tensors.items():
        match = _LOW_RANK.fullmatch(full.removeprefix(_PREFIX))
        if match is not None:
            if match["rest"].endswith(".bias"):
                raise UnsupportedError(f"{full!r}", where, (), _REFUSED["lora_bias"])
            _keep(modules, match["module"], _PARTS[match["part"]], tensor, where)
        elif ".base_layer." not in full:
            plain = re.sub(r"\.modules_to_save(\.[^.]+)?(?=\.(weight|bias)$)", "", full)
            key = names.key(plain.removeprefix(_PREFIX), full)
            require_finite(tensor, where)
            replaced[key] = to_canonical(tensor.identified(key), architecture)
    pairs = tuple(_pairs(modules, names, scales, where))
    if not pairs and not replaced:
        raise FormatError(where, "no pair of lora_A and lora_B in it; the file is damaged")
    return Adapter(
        str(path),
        scales.alpha,
        pairs,
        replaced=replaced,
        invocation_tokens=_tokens(settings, scales.where),
        files=read_text_files(path),
    )


def _keep(modules: Modules, module: str, part: str, tensor: Tensor, where: str) -> None:
    found = modules.setdefault(module, {})
    if part in found:
        raise FormatError(where, f"{tensor.name!r} stands there twice, for two adapters; keep one")
    found[part] = tensor


@dataclass(frozen=True)
class _Names:
    architecture: Architecture
    config: Mapping[str, Any]
    where: str

    def key(self, name: str, shown: str) -> WeightKey:
        """Return which weight of the base model a name means."""
        table = self.architecture.hugging_face_names(self.config)
        for spelled in self.architecture.primary_names(name):
            if spelled in table:
                return table[spelled]
        what = f"{shown!r} in an adapter of {self.architecture.model_type}"
        advice = "the base model has no such weight: take the adapter's own base model"
        raise UnsupportedError(what, self.where, (), advice)


@dataclass(frozen=True)
class _Scales:
    """Alpha and rank of each module, as PEFT's settings say them."""

    settings: Mapping[str, Any]
    where: str

    @property
    def alpha(self) -> float:
        return self._number("lora_alpha", self.settings.get("lora_alpha"))

    def _number(self, name: str, value: Any) -> float:
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not is_number or not math.isfinite(value) or abs(value) > 1e9:
            raise FormatError(self.where, f"{name} is {value!r}, a number is required")
        return float(value)

    def _of(self, module: str, general: str, pattern: str) -> Any:
        """Return a setting of a module: by the first pattern that its name ends with."""
        patterns = self.settings.get(pattern) or {}
        if not isinstance(patterns, Mapping):
            raise FormatError(self.where, f"{pattern} is {patterns!r}, an object is required")
        for ending, value in patterns.items():
            if _ends_with(module, ending, f"{self.where}: {pattern}"):
                return value
        return self.settings.get(general)

    def scale(self, module: str, rank: int) -> float:
        """Return what B A of a module is multiplied by."""
        said = self._of(module, "r", "rank_pattern")
        if said != rank:
            rule = f"rank of {module!r} is {rank}, {CONFIG_FILE} says {said!r}; they must agree"
            raise FormatError(self.where, rule)
        alpha = self._number("lora_alpha", self._of(module, "lora_alpha", "alpha_pattern"))
        return alpha / math.sqrt(rank) if self.settings.get("use_rslora") else alpha / rank


def _ends_with(module: str, ending: str, where: str) -> bool:
    if len(ending) > 1000:
        raise FormatError(where, "an entry of more than 1000 characters")
    if re.fullmatch(r"[\w.]*", ending):
        return module == ending or module.endswith("." + ending)
    # what could take long to match: many repetitions, or a repeated group
    if len(re.findall(r"[*+?{]", ending)) > 3 or re.search(r"\)[*+?{]", ending):
        advice = "name the modules by their ends"
        raise UnsupportedError(f"the pattern {ending!r}", where, (), advice)
    try:
        return re.match(rf"(.*\.)?({ending})$", module) is not None
    except re.error as error:
        raise FormatError(where, f"{ending!r} is no pattern ({error})") from error


def _tokens(settings: Mapping[str, Any], where: str) -> tuple[int, ...]:
    tokens = settings.get("alora_invocation_tokens") or []
    if not isinstance(tokens, list) or not all(
        type(token) is int and 0 <= token < 2**32 for token in tokens
    ):
        raise FormatError(where, "alora_invocation_tokens is no list of token ids")
    return tuple(tokens)


def _pairs(modules: Modules, names: _Names, scales: _Scales, where: str) -> Iterator[Pair]:
    table = names.architecture.hugging_face_names(names.config)
    order = {key: number for number, key in enumerate(table.values())}
    found = []
    for module, entry in modules.items():
        key = names.key(f"{module}.weight", module)
        a, b = _oriented(module, entry, where)
        if key.role is Role.TOKEN_EMBEDDING and "dora" in entry:
            raise UnsupportedError("DoRA of the token embedding", where)
        rank = a.shape[0] if a.shape else 0
        if not 0 < rank <= MAX_RANK:
            raise FormatError(where, f"rank of {module!r} is {rank}, 1 to {MAX_RANK} are possible")
        dora = entry.get("dora")
        if dora is None and scales.settings.get("use_dora"):
            rule = f"use_dora is set, lora_magnitude_vector of {module!r} is missing"
            raise FormatError(where, f"{rule}; the file is damaged")
        pair = Pair(module, key, a, b, scales.scale(module, rank), dora)
        check_pair(pair, where)
        found.append(pair)
    yield from sorted(found, key=lambda pair: order[pair.key])


def _oriented(module: str, parts: Mapping[str, Tensor], where: str) -> tuple[Tensor, Tensor]:
    """Return A [rank, in] and B [out, rank] of a module."""
    for first, second in (("a", "b"), ("embedding_a", "embedding_b")):
        if first in parts or second in parts:
            missing = [name for name in (first, second) if name not in parts]
            if missing:
                letter = missing[0][-1].upper()
                rule = f"lora_{letter} of {module!r} is missing; the file is damaged"
                raise FormatError(where, rule)
            a, b = parts[first], parts[second]
            if len(a.shape) != 2 or len(b.shape) != 2:
                rule = f"A {list(a.shape)} and B {list(b.shape)} of {module!r} are no matrices"
                raise FormatError(where, rule)
            # a row of an embedding is a column of B A
            return (a, b) if first == "a" else (transposed(b), transposed(a))
    raise FormatError(where, f"{module!r} has row lengths but no lora_A and lora_B")


def base_name(path: Path) -> str:
    """Return what the settings name as the base model.

    Raises:
        HalfbyteError: they name none.
    """
    found = adapter_config(path).get("base_model_name_or_path")
    if not isinstance(found, str) or not found:
        raise HalfbyteError(f"{path / CONFIG_FILE}: names no base model; give --base")
    return found
