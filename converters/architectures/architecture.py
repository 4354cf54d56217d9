"""The interface of an architecture: config, weight names, rotary order and graph.

Canonical config keys are the same in every architecture: `model_type, vocab_size, hidden_size,
intermediate_size, num_hidden_layers, num_attention_heads, num_key_value_heads, head_dim,
hidden_act, max_position_embeddings, tie_word_embeddings`; the epsilon keeps its Hugging Face key
(`rms_norm_eps`, bert `layer_norm_eps`, gpt2 `layer_norm_epsilon`). Rotary models add `rope_theta`,
`rope_scaling` (None or a dict with `rope_type`) and `rope_interleaved`. Other keys pass through.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from halfbyte.converters.architectures.config import WHERE, reject
from halfbyte.errors import FormatError, UnsupportedError
from halfbyte.ir.graph import Graph
from halfbyte.ir.model import Model
from halfbyte.ir.roles import Role, WeightKey
from halfbyte.ir.tensor import Tensor

Config = dict[str, Any]


@dataclass(frozen=True)
class WeightSpec:
    """A weight that a config asks for or allows: identity, shape [out, in], Hugging Face name.

    The name is empty where Hugging Face has none under this config. A stack of experts stands there
    in pieces: `expert_name` has {} for the expert's number, and the name is ours.
    """

    name: str
    key: WeightKey
    shape: tuple[int, ...]
    optional: bool = False
    expert_name: str = ""


class Architecture(ABC):
    """What one model_type is. Implementations have no state."""

    model_type: ClassVar[str]
    gguf_name: ClassVar[str]
    hugging_face_class: ClassVar[str]
    EXAMPLE: ClassVar[Mapping[str, Any]]
    prefix: ClassVar[str] = ""
    other_prefixes: ClassVar[tuple[str, ...]] = ()
    ignorable_names: ClassVar[tuple[str, ...]] = ()
    is_encoder: ClassVar[bool] = False

    @abstractmethod
    def canonical_config(self, raw: Mapping[str, Any]) -> Config:
        """Return the canonical config of a Hugging Face config.json, or of a canonical config.

        Defaults are those of the transformers config class; both spellings of rotary settings
        (`rope_theta` with `rope_scaling`, `rope_parameters`) are understood.

        Raises:
            FormatError: a value has the wrong type, range or does not fit another.
            UnsupportedError: the config asks for a feature that is missing here.
        """

    @abstractmethod
    def hugging_face_config(self, config: Mapping[str, Any]) -> Config:
        """Return config.json for a canonical config, readable by transformers 4 and 5."""

    @abstractmethod
    def weight_specs(self, config: Mapping[str, Any]) -> Iterator[WeightSpec]:
        """Yield every weight that the config asks for or allows, in the order of the layers."""

    @abstractmethod
    def build(self, model: Model) -> Graph:
        """Return the graph over the model's weights.

        Raises:
            FormatError: weights are missing, have another shape than the config asks for or
                have no place in the architecture.
            UnsupportedError: the config asks for a feature that is missing here.
        """

    def hugging_face_names(self, config: Mapping[str, Any]) -> dict[str, WeightKey]:
        """Return the identity of every weight by full Hugging Face name."""
        return {spec.name: spec.key for spec in self.weight_specs(config) if spec.name}

    def primary_names(self, name: str) -> Iterator[str]:
        """Yield the spellings under which a name of a checkpoint may stand in our table."""
        yield name
        yield self.prefix + name
        for other in self.other_prefixes:
            if name.startswith(other):
                yield self.prefix + name[len(other) :]

    def is_ignorable(self, name: str) -> bool:
        """Whether a checkpoint entry is a buffer or a head that the graph does without."""
        return any(re.fullmatch(pattern, name) for pattern in self.ignorable_names)

    def config_for_weights(
        self, config: Mapping[str, Any], weights: Mapping[WeightKey, Tensor]
    ) -> Config:
        """Return the config with what only the weights tell (containers without such keys).

        Sets `tie_word_embeddings` by the presence of an output head, bias flags by the biases and
        rotary scaling by explicit divisor or factor tensors.

        Raises:
            UnsupportedError: the weights say something that the config cannot.
        """
        tied = WeightKey(Role.OUTPUT_HEAD) not in weights
        return {**config, "tie_word_embeddings": tied}

    def row_order(
        self, key: WeightKey, config: Mapping[str, Any], interleaved_target: bool
    ) -> NDArray[np.int64] | None:
        """Return the row permutation into the other rotary order, or None to leave rows alone.

        New row i is old row order[i]; applies to query and key weights and biases.
        """
        return None

    def transposed(self, key: WeightKey) -> bool:
        """Whether Hugging Face stores this weight as [in, out]."""
        return False

    def bind(self, model: Model, config: Mapping[str, Any]) -> dict[WeightKey, Tensor]:
        """Return the weights by identity, all present and of the right shape.

        Raises:
            FormatError: see `build`.
        """
        weights = model.by_key()
        specs = {spec.key: spec for spec in self.weight_specs(config)}
        missing = [s.name for s in specs.values() if not s.optional and s.key not in weights]
        if missing:
            raise FormatError(
                _where(model), f"{_listed(missing)} missing; the file is incomplete or its config "
                f"(model_type {self.model_type}) belongs to another model"
            )  # fmt: skip
        strays = [f"{t.name} ({k})" for k, t in weights.items() if not self._allowed(k, specs)]
        if strays:
            raise UnsupportedError(
                f"{_listed(strays)} in architecture {self.model_type}", _where(model)
            )
        for key, tensor in list(weights.items()):
            if key not in specs or tuple(tensor.shape) == specs[key].shape:
                continue
            if (1, *tensor.shape) == specs[key].shape:
                weights[key] = replace(tensor, shape=specs[key].shape)
            else:
                raise FormatError(
                    _where(model), f"weight {tensor.name!r} has shape {list(tensor.shape)}, "
                    f"{list(specs[key].shape)} was required by the config; correct the config"
                )  # fmt: skip
        return weights

    def _allowed(self, key: WeightKey, specs: Mapping[WeightKey, WeightSpec]) -> bool:
        return key in specs


def _where(model: Model) -> str:
    return model.provenance.source or WHERE


def _listed(names: list[str]) -> str:
    shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    return ("weight " if len(names) == 1 else "weights ") + shown


def require_divisor(key: str, part: int, whole_key: str, whole: int) -> None:
    """Require that `part` divides `whole`.

    Raises:
        FormatError: it does not.
    """
    if whole % part:
        reject(key, part, f"a divisor of {whole_key} {whole}")
