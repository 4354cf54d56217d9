"""A model: weights, graph, architecture config, tokenizer and everything that travels along.

`config` uses Hugging Face's config.json keys as canonical names (`hidden_size`,
`num_attention_heads`, `rope_theta`, `rope_scaling`, ...), plus `rope_interleaved`: whether the
query and key rows stand in interleaved (pairs 2i, 2i+1) or half-split (i, i + d/2) rotary order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from halfbyte.errors import UnsupportedError
from halfbyte.ir.graph import Graph
from halfbyte.ir.roles import WeightKey
from halfbyte.ir.tensor import Tensor
from halfbyte.ir.tokenizer import Tokenizer

# In `metadata`: with which method, options and data weights were calibrated, as JSON can hold it.
CALIBRATION_KEY = "halfbyte.calibration"


@dataclass(frozen=True)
class Provenance:
    """Where a model came from: format name (`hf`, `gguf`, `hb`), path or hub id, revision."""

    format: str
    source: str
    revision: str = ""


@dataclass(frozen=True)
class Model:
    """A model between reader and writer. Weights are lazy, in container order, by name.

    `metadata` holds the container's own key-value data whole (GGUF pairs, the raw config.json under
    "config.json", other text files by file name), `build` makes the graph on first use.
    `stored_graph` reads the graph that the container itself holds, where `build` makes another.
    """

    weights: Mapping[str, Tensor]
    config: dict[str, Any] = field(default_factory=dict)
    tokenizer: Tokenizer | None = None
    generation_config: dict[str, Any] = field(default_factory=dict)
    metadata: dict[str, Any] = field(default_factory=dict)
    provenance: Provenance = Provenance("", "")
    build: Callable[[Model], Graph] | None = None
    warnings: tuple[str, ...] = ()
    stored_graph: Callable[[], Graph] | None = None
    _graph: list[Graph] = field(default_factory=list, repr=False, compare=False)

    @property
    def architecture(self) -> str:
        """Return the model_type, for example `llama`."""
        return str(self.config.get("model_type", ""))

    @property
    def graph(self) -> Graph:
        """Return the graph, built on first use.

        Raises:
            UnsupportedError: the architecture is not known.
        """
        if not self._graph:
            if self.build is None:
                raise UnsupportedError(
                    f"running architecture {self.architecture or 'unknown'!r}",
                    self.provenance.source or "model",
                    advice="its weights can be inspected and converted",
                )
            self._graph.append(self.build(self))
        return self._graph[0]

    @property
    def parameters(self) -> int:
        """Return the number of weight values."""
        return sum(tensor.size for tensor in self.weights.values())

    def over_stored_graph(self) -> Model:
        """Return the model whose graph is the one that the container holds, if it holds one."""
        stored = self.stored_graph
        if stored is None:
            return self
        return replace(self, build=lambda model: stored(), stored_graph=None, _graph=[])

    def by_key(self) -> dict[WeightKey, Tensor]:
        """Return the weights that have a role, by role, layer and kind."""
        return {t.key: t for t in self.weights.values() if t.key is not None}

    def with_weights(self, weights: Mapping[str, Tensor]) -> Model:
        """Return the model over other weights; its graph is built anew."""
        return replace(self, weights=dict(weights), stored_graph=None, _graph=[])
