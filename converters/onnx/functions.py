"""Functions that a model brings along."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from halfbyte.converters.onnx.messages import FunctionMessage, NodeMessage, OpsetMessage
from halfbyte.converters.onnx.protobuf import Buffer
from halfbyte.converters.onnx.scope import (
    FunctionKey,
    function_key,
    inner_graphs,
    standard_domain,
)

MAX_NODES = 1_000_000


def opsets_of(imports: Iterable[OpsetMessage]) -> dict[str, int]:
    """Return the version of each imported domain; the last entry of a domain counts."""
    return {standard_domain(entry.domain): entry.version for entry in imports}


class Functions:
    """Functions by domain, name and overload; checks that inlining them all comes to an end."""

    def __init__(
        self, buffer: Buffer, messages: Sequence[FunctionMessage], opsets: Mapping[str, int]
    ) -> None:
        """Take a model's functions and opsets.

        Raises:
            FormatError: a function stands twice.
        """
        self.buffer = buffer
        self._opsets = opsets
        self._sizes: dict[FunctionKey, int] = {}
        self.by_key: dict[FunctionKey, FunctionMessage] = {}
        for message in messages:
            key = function_key(message)
            if key in self.by_key:
                buffer.fail(f"function {'.'.join(key[:2])!r} stands twice", message.offset)
            self.by_key[key] = message

    def opsets(self, function: FunctionMessage) -> dict[str, int]:
        """Return the versions that hold inside a function."""
        return {**self._opsets, **opsets_of(function.opset_import)}

    def check_size(self, nodes: Sequence[NodeMessage]) -> None:
        """Check how many nodes a graph has once its functions are inlined.

        Raises:
            FormatError: a function calls itself, or there are too many nodes.
        """
        self._size(nodes, ())

    def _size(self, nodes: Sequence[NodeMessage], calls: tuple[FunctionKey, ...]) -> int:
        total = 0
        for node in nodes:
            key = function_key(node)
            total += self._call_size(key, calls, node) if key in self.by_key else 1
            if total > MAX_NODES:
                rule = f"has more than {MAX_NODES:,} nodes once functions are inlined"
                self.buffer.fail(f"{rule}; simplify the model", node.offset)
        for _, graph in inner_graphs(nodes):
            total += self._size(graph.node, calls)
        return total

    def _call_size(
        self, key: FunctionKey, calls: tuple[FunctionKey, ...], node: NodeMessage
    ) -> int:
        if key in calls:
            rule = f"function {'.'.join(key[:2])!r} calls itself, directly or through another"
            self.buffer.fail(rule, node.offset)
        if key not in self._sizes:
            self._sizes[key] = self._size(self.by_key[key].node, (*calls, key))
        return self._sizes[key]
