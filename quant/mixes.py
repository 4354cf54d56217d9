"""Mixes: the type that each weight gets in a file of a named type, as llama-quantize chooses it.

A mix has a default type; weights that matter more (values, the feed-forward's way down, the output
head) get a better one by category, place and shape of the model. Places are counted in the order of
llama-quantize's files: by layer, then by name; weights that something else decides (an override, a
norm) are not counted.

Source: src/llama-quant.cpp of llama.cpp (facts only).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum

from halfbyte.ir.roles import Role
from halfbyte.ir.tensor import Tensor
from halfbyte.kernels.layouts import LAYOUTS
from halfbyte.quant.model_facts import ModelFacts, layer_of


@dataclass(frozen=True)
class Mix:
    """A named type of file: its number in `general.file_type`, and its default type."""

    name: str
    file_type: int
    base: str


_OWN_BASE = {
    **{"F32": 0, "F16": 1, "BF16": 32},
    **{"Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "Q5_0": 8, "Q5_1": 9, "Q1_0": 40, "Q2_0": 41},
    **{"Q2_K": 10, "Q6_K": 18, "TQ1_0": 36, "TQ2_0": 37},
    **{"IQ1_S": 24, "IQ1_M": 31, "IQ2_XXS": 19, "IQ2_XS": 20, "IQ3_XXS": 23, "IQ3_S": 26},
    **{"IQ4_NL": 25, "IQ4_XS": 30},
}
_OTHER_BASE = {
    **{"Q2_K_S": (21, "Q2_K"), "Q3_K_S": (11, "Q3_K"), "Q3_K_M": (12, "Q3_K")},
    **{"Q3_K_L": (13, "Q3_K"), "Q4_K_S": (14, "Q4_K"), "Q4_K_M": (15, "Q4_K")},
    **{"Q5_K_S": (16, "Q5_K"), "Q5_K_M": (17, "Q5_K")},
    # The names say less than one would think: these four hold mostly another type.
    **{"IQ2_S": (28, "IQ2_XS"), "IQ2_M": (29, "IQ2_S"), "IQ3_XS": (22, "IQ3_S")},
    **{"IQ3_M": (27, "IQ3_S"), "MXFP4_MOE": (38, "MXFP4")},
}
MIXES: dict[str, Mix] = {name: Mix(name, number, name) for name, number in _OWN_BASE.items()}
MIXES |= {name: Mix(name, number, base) for name, (number, base) in _OTHER_BASE.items()}
ALIASES = {"Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M"}
_DENSE = ("F32", "F16", "BF16")

_LOWEST = ("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ2_M")
_NEEDS_IMPORTANCE = frozenset({"IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS"})
_ENCODER_NEEDS_IMPORTANCE = frozenset({"IQ1_S", "IQ2_XXS", "IQ2_XS"})

# What stands in for a type whose blocks do not divide the rows; the last resort is float16.
SHORTER_BLOCKS = {"Q2_K": "Q4_0", "Q3_K": "Q4_0", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}
SHORTER_BLOCKS |= dict.fromkeys(("Q2_0", "TQ1_0", "TQ2_0"), "Q4_0")
SHORTER_BLOCKS |= dict.fromkeys(("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S"), "IQ4_NL")
SHORTER_BLOCKS |= dict.fromkeys(("IQ3_XXS", "IQ3_S", "IQ4_XS"), "IQ4_NL")
# llama-quantize gives up on these two.
SHORTER_BLOCKS |= {"Q1_0": "Q4_0", "NVFP4": "MXFP4"}
ROW_LENGTH_FALLBACK = "float16"


class Category(Enum):
    """What the rules tell apart."""

    OUTPUT = "output head"
    EMBEDDING = "token embedding"
    VALUE = "attention value"
    KEY = "attention key"
    QUERY = "attention query"
    ATTENTION_OUTPUT = "attention output"
    UP = "feed-forward up"
    GATE = "feed-forward gate"
    DOWN = "feed-forward down"
    OTHER = "other weight"


_ROLES = {
    Role.OUTPUT_HEAD: Category.OUTPUT,
    Role.TOKEN_EMBEDDING: Category.EMBEDDING,
    Role.ATTENTION_QKV: Category.VALUE,
    Role.ATTENTION_VALUE: Category.VALUE,
    Role.ATTENTION_KEY: Category.KEY,
    Role.ATTENTION_QUERY: Category.QUERY,
    Role.ATTENTION_OUTPUT: Category.ATTENTION_OUTPUT,
    Role.FEED_FORWARD_UP: Category.UP,
    Role.FEED_FORWARD_GATE_UP: Category.UP,
    Role.FEED_FORWARD_GATE: Category.GATE,
    Role.FEED_FORWARD_DOWN: Category.DOWN,
    **dict.fromkeys((Role.EXPERTS_UP, Role.SHARED_UP), Category.UP),
    **dict.fromkeys((Role.EXPERTS_GATE, Role.SHARED_GATE), Category.GATE),
    **dict.fromkeys((Role.EXPERTS_DOWN, Role.SHARED_DOWN), Category.DOWN),
}
_WHOLE_NAMES = {
    "output.weight": Category.OUTPUT,
    "lm_head.weight": Category.OUTPUT,
    "token_embd.weight": Category.EMBEDDING,
    "per_layer_token_embd.weight": Category.EMBEDDING,
}
_NAME_PARTS = {
    "attn_qkv.weight": Category.VALUE,
    "attn_kv_b.weight": Category.VALUE,
    "attn_v.weight": Category.VALUE,
    "attn_k.weight": Category.KEY,
    "attn_q.weight": Category.QUERY,
    "attn_output.weight": Category.ATTENTION_OUTPUT,
    "ffn_up": Category.UP,
    "ffn_gate": Category.GATE,
    "ffn_down": Category.DOWN,
}


def category_of(tensor: Tensor) -> Category:
    """Return the category of a weight: by its role, else by its GGUF name."""
    if tensor.role in _ROLES and tensor.kind != "bias":
        return _ROLES[tensor.role]
    if tensor.name in _WHOLE_NAMES:
        return _WHOLE_NAMES[tensor.name]
    found = (category for part, category in _NAME_PARTS.items() if part in tensor.name)
    return next(found, Category.OTHER)


_GLM5_FLOAT_NAMES = (
    *("hc_", "indexer.attn_q_b", "indexer.attn_k", "indexer.proj", "indexer_compressor_gate"),
    *("indexer_compressor_ape", "attn_kv_a_mqa.weight", "attn_k_b.weight", "attn_v_b.weight"),
    *(f"ssm_{part}.weight" for part in ("f_a", "f_b", "g_a", "g_b", "beta")),
)


def stays_float_in(tensor: Tensor, architecture: str) -> str:
    """Return why llama-quantize leaves a matrix of this architecture alone, or an empty text."""
    is_named = any(part in tensor.name for part in _GLM5_FLOAT_NAMES)
    return f"{architecture} keeps it" if architecture == "glm5-next" and is_named else ""


def fitting_type(name: str, columns: int) -> str:
    """Return a block type, or what stands in for it where rows of `columns` do not divide."""
    while name in LAYOUTS and columns % LAYOUTS[name].values:
        name = SHORTER_BLOCKS.get(name, ROW_LENGTH_FALLBACK)
    return name


def requires_importance(type_name: str, mix_name: str, category: Category) -> bool:
    """Whether a weight must not be encoded in a type without an importance matrix."""
    if type_name in _ENCODER_NEEDS_IMPORTANCE:
        return True
    if category in (Category.OUTPUT, Category.EMBEDDING):
        return False
    return type_name in _NEEDS_IMPORTANCE or (type_name, mix_name) == ("Q2_K", "Q2_K_S")


@dataclass(frozen=True)
class _Place:
    """The place of a weight among `count` of its category."""

    index: int
    count: int

    def within_first(self, part: int) -> bool:
        return self.index < self.count // part

    @property
    def takes_more_bits(self) -> bool:
        """Whether it is in the first or last eighth, or is every third between."""
        eighth = self.count // 8
        return (
            self.index < eighth
            or self.index >= 7 * self.count // 8
            or (self.index - eighth) % 3 == 2
        )

    @property
    def is_in_the_middle(self) -> bool:
        return self.count // 8 <= self.index < 7 * self.count // 8


class Chooser:
    """Chooses the types of one file; weights must come in the order of the file."""

    def __init__(
        self,
        mix: Mix,
        facts: ModelFacts,
        *,
        tied: bool,
        values: int,
        has_importance: bool = False,
        output_type: str = "",
    ) -> None:
        """Take what the rules look at.

        tied: no output head in the file; values: the number of value-like weights, all counted;
        output_type: what the head, or the embedding that serves as one, is asked to have.
        """
        self._mix = mix
        self._facts = facts
        self._tied = tied
        self._values = values
        self._has_importance = has_importance
        self._output_type = output_type
        self._counters: Counter[Category] = Counter()
        self._rules: dict[Category, Callable[[_Place], str]] = {
            Category.VALUE: self._value,
            Category.DOWN: self._down,
            Category.UP: self._up_or_gate,
            Category.GATE: self._up_or_gate,
            Category.KEY: lambda place: self._query_or_key(is_key=True),
            Category.QUERY: lambda place: self._query_or_key(is_key=False),
            Category.ATTENTION_OUTPUT: lambda place: self._attention_output(),
        }

    def choose(self, tensor: Tensor) -> str:
        """Return the type's name; the next weight of the category has the next place."""
        mix, base, category = self._mix.name, self._mix.base, category_of(tensor)
        if mix in _DENSE:
            return base
        if self._is_kept_finer(tensor):
            return "Q8_0"
        if category is Category.OUTPUT or (self._tied and category is Category.EMBEDDING):
            return self._output_type or self._head(tensor)
        if mix == "MXFP4_MOE":
            return self._mixture(tensor, category)
        if category is Category.EMBEDDING:
            return _EMBEDDINGS.get(mix, base)
        if category is Category.OTHER:
            return base
        place = self._place(tensor, category)
        self._counters[category] += 1
        if mix in _LOWEST:
            return self._lowest(category, place) or base
        return self._rules[category](place) or base

    def _is_kept_finer(self, tensor: Tensor) -> bool:
        parts = ("attn_q_a", "attn_q_b", "nextn.eh_proj")
        return self._facts.architecture == "glm5-next" and any(p in tensor.name for p in parts)

    def _place(self, tensor: Tensor, category: Category) -> _Place:
        index = self._counters[category]
        if category is Category.VALUE:
            return _Place(index, self._values)
        layer = layer_of(tensor)
        by_name = self._facts.experts > 1 and self._mix.name not in _LOWEST and layer is not None
        return _Place(layer if by_name and layer is not None else index, self._facts.layers)

    def _head(self, tensor: Tensor) -> str:
        mix, base = self._mix.name, self._mix.base
        if mix == "MXFP4_MOE" or self._facts.architecture == "falcon" or base == "Q8_0":
            return "Q8_0"
        if tensor.columns % LAYOUTS[base].values:
            return "Q8_0"
        return "Q5_K" if mix in _LOWEST or mix == "IQ3_XXS" else "Q6_K"

    def _mixture(self, tensor: Tensor, category: Category) -> str:
        feeds_forward = category in (Category.UP, Category.GATE, Category.DOWN)
        is_stacked = len(tensor.shape) > 2 and tensor.shape[-3] > 1
        counts = feeds_forward or self._facts.architecture != "bailingmoe3"
        return "MXFP4" if is_stacked and counts else "Q8_0"

    def _lowest(self, category: Category, place: _Place) -> str:
        """Apply the rules of files of about 2 bits or less."""
        mix, experts = self._mix.name, self._facts.experts
        better = "IQ3_S" if mix in ("IQ2_S", "IQ2_M") else "Q2_K"
        if category is Category.VALUE:
            return "Q4_K" if self._facts.grouping >= 4 or experts >= 4 else better
        if category is Category.KEY and experts == 8:
            return "Q4_K"
        if category is Category.DOWN and place.within_first(8):
            return better
        if category is not Category.ATTENTION_OUTPUT:
            return ""
        if experts == 8:
            return "Q5_K"
        return {"IQ1_S": "IQ2_XXS", "IQ1_M": "IQ2_XXS", "IQ2_S": "IQ3_S", "IQ2_M": "IQ3_S"}.get(
            mix, ""
        )

    def _value(self, place: _Place) -> str:
        found = self._plain_value(place) or self._mix.base
        if self._facts.is_70b and found in ("Q3_K", "Q4_K"):
            found = "Q5_K"
        return "Q8_0" if self._facts.experts == 8 else found

    def _plain_value(self, place: _Place) -> str:
        mix = self._mix.name
        if self._facts.grouping >= 4 and mix in _GROUPED_VALUES:
            return _GROUPED_VALUES[mix]
        if mix == "IQ3_XXS":
            return "" if self._has_importance else "IQ3_S"
        if mix == "Q3_K_M":
            return "Q5_K" if place.index < 2 else "Q4_K"
        if mix in ("Q4_K_M", "Q5_K_M"):
            return "Q6_K" if place.takes_more_bits else ""
        if mix == "Q4_K_S":
            return "Q5_K" if place.index < 4 else ""
        return {"Q2_K": "Q3_K", "IQ3_M": "Q4_K", "Q3_K_L": "Q5_K"}.get(mix, "")

    def _query_or_key(self, is_key: bool) -> str:
        if is_key and self._facts.experts == 8:
            return "Q8_0"
        return {"IQ3_XS": "IQ3_XXS", "IQ3_XXS": "IQ2_S"}.get(self._mix.name, "")

    def _attention_output(self) -> str:
        mix = self._mix.name
        if self._facts.architecture == "falcon":
            return "Q4_K" if mix == "Q3_K_L" else ""
        if self._facts.experts == 8:
            return "Q5_K" if mix in _EIGHT_EXPERTS_OUTPUT else ""
        return _ATTENTION_OUTPUTS.get(mix, "")

    def _up_or_gate(self, place: _Place) -> str:
        return "IQ3_XXS" if self._mix.name == "IQ3_XS" and place.is_in_the_middle else ""

    def _down(self, place: _Place) -> str:
        mix = self._mix.name
        if self._facts.architecture == "falcon" and mix in _FALCON_DOWN:
            return _FALCON_DOWN[mix](place)
        if mix in ("Q4_K_M", "Q5_K_M"):
            return "Q6_K" if place.takes_more_bits else ""
        if mix == "Q3_K_M":
            return "Q5_K" if place.within_first(16) else "Q4_K"
        if mix == "IQ3_M" and self._facts.experts == 8 and place.takes_more_bits:
            return "Q4_K"
        if mix == "IQ3_XXS" and not self._has_importance:
            return "Q4_K" if place.within_first(8) else "Q3_K"
        if mix in ("Q2_K", "Q3_K_L"):
            return {"Q2_K": "Q3_K", "Q3_K_L": "Q5_K"}[mix]
        if not place.within_first(8):
            return ""
        guarded = _FIRST_DOWN_WITH if self._has_importance else _FIRST_DOWN_WITHOUT
        return guarded.get(mix) or _FIRST_DOWN.get(mix, "")


_EMBEDDINGS = dict.fromkeys(("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS"), "Q2_K")
_EMBEDDINGS |= dict.fromkeys(("IQ2_S", "IQ2_M", "IQ3_XXS"), "IQ3_S")
_EMBEDDINGS |= dict.fromkeys(("TQ1_0", "TQ2_0", "Q2_0"), "Q4_K")
_GROUPED_VALUES = dict.fromkeys(("Q2_K", "Q2_K_S", "IQ3_XXS", "IQ3_XS", "IQ3_S"), "Q4_K")
_GROUPED_VALUES |= {"IQ4_NL": "Q5_K", "IQ4_XS": "Q5_K"}
_EIGHT_EXPERTS_OUTPUT = frozenset(
    {"Q2_K", "Q3_K_S", "Q3_K_M", "Q4_K_S", "Q4_K_M"}
    | {"IQ3_XXS", "IQ3_XS", "IQ3_S", "IQ3_M", "IQ4_NL", "IQ4_XS"}
)
_ATTENTION_OUTPUTS = {"Q2_K": "Q3_K", "IQ3_XXS": "IQ3_S", "Q3_K_M": "Q4_K", "IQ3_M": "Q4_K"}
_ATTENTION_OUTPUTS |= {"Q3_K_L": "Q5_K"}
# The first eighth of the layers; with an importance matrix, without one, either way.
_FIRST_DOWN_WITH = {"Q4_0": "Q4_1", "Q5_0": "Q5_1"}
_FIRST_DOWN_WITHOUT = {"IQ4_NL": "Q5_K", "IQ4_XS": "Q5_K"}
_FIRST_DOWN = {"Q2_K_S": "Q4_K", "IQ3_M": "Q4_K", "Q4_K_S": "Q5_K"}


def _falcon_q3(place: _Place) -> str:
    if place.within_first(16):
        return "Q5_K"
    return "Q4_K" if place.takes_more_bits else "Q3_K"


def _falcon_q4(place: _Place) -> str:
    if place.within_first(16):
        return "Q6_K"
    return "Q5_K" if place.takes_more_bits else "Q4_K"


_FALCON_DOWN: Mapping[str, Callable[[_Place], str]] = {
    "Q3_K_M": _falcon_q3,
    "Q3_K_L": lambda place: "Q4_K",
    "Q4_K_M": _falcon_q4,
    "Q4_K_S": lambda place: "",
}
