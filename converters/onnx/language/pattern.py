"""The nodes of a decoder written by others, matched backwards from its logits.

Nothing is guessed: every value of a layer is followed to where it comes from, and a step that is
not one of the known forms ends the match with its reason.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from halfbyte.converters.architectures.config import MAX_LAYERS
from halfbyte.converters.onnx.messages import GraphMessage, NodeMessage
from halfbyte.ir.tensor import Tensor

PLAIN_NORMS = ("SimplifiedLayerNormalization", "RMSNormalization")
SKIP_NORM = "SkipSimplifiedLayerNormalization"
PRODUCTS = ("MatMul", "MatMulNBits")
LONGEST_CHAIN = 8


class NotRecognisedError(Exception):
    """Why a graph is not certain to be a known architecture."""


@dataclass(frozen=True)
class Product:
    """A linear layer: the value that it reads, its node and the constant added to it."""

    source: str
    node: NodeMessage
    bias: str = ""


@dataclass(frozen=True)
class Norm:
    """A root mean square norm of a value, or of the sum of two."""

    scale: str
    epsilon: float
    terms: tuple[str, ...]


@dataclass(frozen=True)
class Attention:
    """Projections, norms of heads and settings of one attention; `packed` holds all three."""

    settings: Mapping[str, Any]
    rotary: tuple[str, str]
    products: tuple[Product, ...]
    head_norms: tuple[Norm | None, Norm | None]
    packed: bool


@dataclass(frozen=True)
class Layer:
    """What one layer is made of."""

    attention_norm: Norm
    attention: Attention
    output: Product
    feed_forward_norm: Norm
    gate: Product
    up: Product
    down: Product
    activation: str


@dataclass
class Decoder:
    """A matched decoder, layers first to last."""

    embedding: NodeMessage
    output_norm: Norm
    head: Product
    layers: list[Layer] = field(default_factory=list)


class Pattern:
    """Nodes of a graph by what they make, over its constants."""

    def __init__(self, graph: GraphMessage, constants: Mapping[str, Tensor]) -> None:
        """Index the nodes."""
        self.constants = constants
        self.producers = {name: node for node in graph.node for name in node.output if name}

    def fail(self, what: str) -> NotRecognisedError:
        """Return the error that ends the match."""
        return NotRecognisedError(what)

    def through(self, name: str) -> str:
        """Return the value behind casts and identities; files may run in circles."""
        passed = 0
        while (node := self.producers.get(name)) is not None and passed <= LONGEST_CHAIN:
            if node.op_type not in ("Cast", "Identity"):
                break
            name = node.input[0]
            passed += 1
        return name

    def node(self, name: str, what: str) -> NodeMessage:
        """Return the node that makes a value."""
        found = self.producers.get(self.through(name))
        if found is None:
            raise self.fail(f"{what} ({name}) is made by no node")
        return found

    def stored_name(self, name: str) -> str:
        """Return the constant behind casts and a transpose."""
        name = self.through(name)
        node = self.producers.get(name)
        if node is not None and node.op_type == "Transpose":
            name = self.through(node.input[0])
        return name

    def is_constant(self, name: str) -> bool:
        """Whether a value is a constant, perhaps cast or transposed."""
        return self.stored_name(name) in self.constants

    def constant(self, name: str, what: str) -> Tensor:
        """Return a constant."""
        found = self.constants.get(self.through(name))
        if found is None:
            raise self.fail(f"{what} ({name}) is no constant")
        return found

    def product(self, name: str, what: str) -> Product:
        """Return the linear layer that makes a value."""
        node, bias = self.node(name, what), ""
        if node.op_type == "Add":
            first, second = node.input
            if self.is_constant(first):
                first, second = second, first
            if not self.is_constant(second):
                raise self.fail(f"{what} is a sum of two computed values")
            node, bias = self.node(first, what), self.through(second)
        if node.op_type not in PRODUCTS or not self.is_constant(node.input[1]):
            raise self.fail(f"{what} is made by {node.op_type}, a product with a constant was due")
        if node.op_type == "MatMulNBits" and len(node.input) > 5 and node.input[5]:
            bias = self.through(node.input[5])
        return Product(self.through(node.input[0]), node, bias)

    def sum_of(self, name: str) -> tuple[str, ...]:
        """Return the two terms of a residual sum; the value itself where it is none."""
        name = self.through(name)
        node = self.producers.get(name)
        if node is None:
            return (name,)
        if node.op_type == "Add":
            is_sum = not any(self.is_constant(term) for term in node.input)
        else:
            is_sum = node.op_type == SKIP_NORM and name in node.output[3:4]
        return tuple(self.through(term) for term in node.input[:2]) if is_sum else (name,)

    def norm(self, name: str, what: str) -> Norm:
        """Return the norm that makes a value."""
        node = self.node(name, what)
        epsilon = float(attribute(node, "epsilon", 1e-5))
        if node.op_type == SKIP_NORM and self.through(name) == node.output[0]:
            if len(node.input) > 3 and node.input[3]:
                raise self.fail(f"{what} adds a bias to its sum")
            terms = tuple(self.through(term) for term in node.input[:2])
            return Norm(self.through(node.input[2]), epsilon, terms)
        if node.op_type in PLAIN_NORMS:
            return Norm(self.through(node.input[1]), epsilon, self.sum_of(node.input[0]))
        raise self.fail(f"{what} is made by {node.op_type}, a root mean square norm was due")

    def decoder(self) -> Decoder:
        """Return the whole decoder.

        Raises:
            NotRecognisedError: a step has another form.
        """
        head = self.product("logits", "logits")
        last = self.norm(head.source, "the output norm")
        layers: list[Layer] = []
        terms = last.terms
        while len(terms) == 2 and len(layers) < MAX_LAYERS:
            layer = self._layer(terms)
            layers.append(layer)
            terms = layer.attention_norm.terms
        embedding = self.node(terms[0], "the first layer's input")
        known = embedding.op_type in ("Gather", "GatherBlockQuantized")
        if not known or embedding.input[1] != "input_ids" or not layers:
            raise self.fail(f"the first layer reads {embedding.op_type}, a lookup was due")
        return Decoder(embedding, last, head, layers[::-1])

    def _split(self, terms: tuple[str, ...], what: str) -> tuple[str, Product]:
        """Return the residual and the linear layer whose result is added to it."""
        for residual, branch in (terms, terms[::-1]):
            node = self.producers.get(branch)
            if node is not None and node.op_type in (*PRODUCTS, "Add"):
                try:
                    return residual, self.product(branch, what)
                except NotRecognisedError:
                    continue
        raise self.fail(f"{what} is no linear layer")

    def _layer(self, terms: tuple[str, ...]) -> Layer:
        residual, down = self._split(terms, "a feed-forward's result")
        product = self.node(down.source, "a feed-forward's input")
        if product.op_type != "Mul":
            raise self.fail(f"a feed-forward multiplies by {product.op_type}, Mul was due")
        gate, up, activation = self._gated(product)
        norm = self.norm(gate.source, "a feed-forward's norm")
        if gate.source != up.source or set(norm.terms) != set(self.sum_of(residual)):
            raise self.fail("a feed-forward does not read the norm of its residual")
        residual, output = self._split(norm.terms, "an attention's result")
        attention = self._attention(output.source)
        sources = {product.source for product in attention.products}
        first = self.norm(attention.products[0].source, "an attention's norm")
        if len(sources) != 1 or set(first.terms) != set(self.sum_of(residual)):
            raise self.fail("an attention does not read the norm of its residual")
        return Layer(first, attention, output, norm, gate, up, down, activation)

    def _gated(self, product: NodeMessage) -> tuple[Product, Product, str]:
        for active, other in (product.input[:2], product.input[1::-1]):
            found = self._activation(active)
            if found is not None:
                gate, kind = found
                up = self.product(other, "an up projection")
                return self.product(gate, "a gate projection"), up, kind
        raise self.fail("a feed-forward has no activation that is known (SiLU, GELU)")

    def _activation(self, name: str) -> tuple[str, str] | None:
        node = self.producers.get(self.through(name))
        if node is None:
            return None
        if node.op_type in ("Swish", "QuickGelu", "Silu"):
            default = 1.702 if node.op_type == "QuickGelu" else 1.0
            alpha = attribute(node, "alpha", default)
            return (node.input[0], "silu") if alpha == 1.0 else None
        if node.op_type in ("Gelu", "FastGelu"):
            tanh = node.op_type == "FastGelu" or attribute(node, "approximate", "none") == "tanh"
            return node.input[0], "gelu_pytorch_tanh" if tanh else "gelu"
        if node.op_type != "Mul":
            return None
        for value, gate in (node.input[:2], node.input[1::-1]):
            inner = self.producers.get(self.through(gate))
            if inner is not None and inner.op_type == "Sigmoid" and inner.input[0] == value:
                return value, "silu"
        return None

    def _attention(self, name: str) -> Attention:
        node = self.node(name, "an attention's context")
        if node.op_type != "GroupQueryAttention":
            raise self.fail(f"an attention is {node.op_type}, GroupQueryAttention was due")
        if any(node.input[10:]):
            raise self.fail("an attention has a bias or sinks")
        settings = {a.name: scalar(a) for a in node.attribute}
        packed = not node.input[1]
        values = node.input[:1] if packed else node.input[:3]
        rotary = tuple(node.input[7:9]) if settings.get("do_rotary") else ("", "")
        sources: list[str] = []
        norms: list[Norm | None] = []
        for index, value in enumerate(values):
            if index < 2 and not settings.get("do_rotary"):
                value, rotary, settings = self._rotated(value, rotary, settings)
            norm, value = self._head_norm(value)
            norms.append(norm)
            sources.append(self.through(value))
        whole = self._split_from(sources)
        if whole:
            sources, packed = [whole], True
        products = tuple(self.product(value, "a projection of an attention") for value in sources)
        pair = (norms[0], norms[1] if len(norms) > 1 else None)
        return Attention(settings, (rotary[0], rotary[1]), products, pair, packed)

    def _split_from(self, values: list[str]) -> str:
        """Return the value whose three parts, in order, these are; empty if they are not."""
        node = self.producers.get(values[0])
        if node is None or node.op_type != "Split" or list(node.output) != values:
            return ""
        return self.through(node.input[0]) if attribute(node, "axis", 0) in (-1, 2) else ""

    def _rotated(
        self, name: str, tables: tuple[str, ...], settings: dict[str, Any]
    ) -> tuple[str, tuple[str, ...], dict[str, Any]]:
        node = self.node(name, "an attention's query")
        if node.op_type != "RotaryEmbedding" or node.domain != "com.microsoft":
            raise self.fail(f"an attention's query is made by {node.op_type}, a rotation was due")
        found = tuple(node.input[2:4])
        if tables[0] and found != tables:
            raise self.fail("query and key are rotated by different tables")
        interleaved = attribute(node, "interleaved", 0)
        return node.input[0], found, {**settings, "rotary_interleaved": interleaved}

    def _head_norm(self, name: str) -> tuple[Norm | None, str]:
        outer = self.producers.get(self.through(name))
        if outer is None or outer.op_type != "Reshape":
            return None, name
        norm = self.norm(outer.input[0], "a norm of heads")
        inner = self.node(norm.terms[0], "a norm of heads")
        if inner.op_type != "Reshape":
            raise self.fail("a norm of heads reads something else than heads")
        return norm, inner.input[0]


def scalar(message: Any) -> Any:
    """Return the value of an attribute that is a number."""
    if message.i is not None:
        return message.i
    return 0 if message.f is None else float(struct.unpack("<f", struct.pack("<f", message.f))[0])


def attribute(node: NodeMessage, name: str, default: Any) -> Any:
    """Return a number among a node's attributes, or the default."""
    for message in node.attribute:
        if message.name == name:
            if isinstance(default, str):
                return "tanh" if message.s is not None and message.s.length == 4 else default
            return scalar(message)
    return default
