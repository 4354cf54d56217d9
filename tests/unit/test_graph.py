"""Use-def chains, editing, copying; every legality rule."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import pytest

from halfbyte.errors import GraphError
from halfbyte.ir.graph import Graph, Node, Value
from halfbyte.ir.legality import check
from halfbyte.ir.ops.inference import infer_types
from halfbyte.ir.tensor import tensor_from_array
from support.tiny_graphs import tiny_decoder, weight


def small() -> Graph:
    """Return y = Neg(x + c)."""
    graph = Graph("small")
    x = graph.add_input("x", "float32", ("n", 4))
    c = graph.add_constant(tensor_from_array("c", np.ones(4, np.float32)))
    total = graph.add("Add", [x, c], name="total", since_version=14)
    graph.outputs.append(graph.add("Neg", [total], name="y", since_version=13))
    return graph


def test_uses_follow_edits() -> None:
    graph = small()
    x, (add, neg) = graph.inputs[0], graph.nodes
    assert x.uses == ((add, 0),)
    assert add.outputs[0].producer is add
    graph.set_input(neg, 0, x)
    assert set(x.uses) == {(add, 0), (neg, 0)}
    assert add.outputs[0].uses == ()
    graph.remove(add)
    assert x.uses == ((neg, 0),)
    graph.remove_constant("c")
    assert not graph.constants
    check(graph)


def test_what_is_used_cannot_be_removed() -> None:
    graph = small()
    with pytest.raises(ValueError, match="is still used"):
        graph.remove(graph.nodes[0])
    with pytest.raises(ValueError, match="is still used"):
        graph.remove(graph.nodes[1])
    with pytest.raises(ValueError, match="constant 'c' is still used"):
        graph.remove_constant("c")


def test_replacing_uses_reaches_outputs() -> None:
    graph = small()
    graph.replace_all_uses(graph.outputs[0], graph.inputs[0])
    assert graph.outputs == graph.inputs


def test_constants_are_found_by_name_and_exchanged() -> None:
    graph = small()
    tensor = graph.constants["c"]
    assert graph.add_constant(tensor) is graph.constant_value("c")
    other = tensor_from_array("c", np.zeros(4, np.float32))
    assert graph.add_constant(other).name == "c.1"
    graph.set_constant("c", other)
    assert graph.constants["c"] is other


def test_segments_are_runs_of_one_layer() -> None:
    segments = tiny_decoder(layers=2).segments()
    assert [layer for layer, _ in segments] == [None, 0, 1, None]
    assert sum(len(nodes) for _, nodes in segments) == len(tiny_decoder(layers=2).nodes)


def test_copy_keeps_everything_and_shares_nothing_but_tensors() -> None:
    graph = tiny_decoder()
    twin = graph.copy()
    check(twin)
    assert str(twin) == str(graph)
    assert twin.constants == graph.constants
    assert not set(twin.values()) & set(graph.values())
    twin.nodes[2].attributes["axis"] = 0
    assert "axis" not in graph.nodes[2].attributes


def test_inference_fills_what_is_not_declared() -> None:
    graph = small()
    infer_types(graph)
    assert [(v.dtype, v.shape) for v in graph.outputs] == [("float32", ("n", 4))]


def test_legal_graphs_pass() -> None:
    for graph in (small(), tiny_decoder(), tiny_decoder("Q4_0")):
        check(graph)


def test_subgraphs_are_checked() -> None:
    inner = small()
    inner.nodes[0].op = "Ad"
    graph = small()
    graph.nodes[0].attributes["body"] = inner
    assert list(graph.subgraphs()) == [inner]
    del graph.nodes[0].attributes["body"]
    assert list(graph.subgraphs()) == []


def unknown_operator(graph: Graph) -> None:
    graph.nodes[0].op = "Ad"


def unknown_version(graph: Graph) -> None:
    graph.nodes[0].since_version = 3


def too_few_inputs(graph: Graph) -> None:
    graph.set_input(graph.nodes[0], 1, None)
    graph.nodes[0].inputs.pop()


def omitted_input(graph: Graph) -> None:
    graph.set_input(graph.nodes[0], 1, None)


def too_many_outputs(graph: Graph) -> None:
    extra = Value("extra", producer=graph.nodes[0])
    graph.nodes[0].outputs.append(extra)


def unknown_attribute(graph: Graph) -> None:
    graph.nodes[0].attributes["axis"] = 1


def same_name(graph: Graph) -> None:
    graph.nodes[0].outputs[0].name = "x"


def wrong_order(graph: Graph) -> None:
    graph.nodes.reverse()


def foreign_value(graph: Graph) -> None:
    graph.set_input(graph.nodes[0], 0, Value("x", "float32", (4,)))


def lost_use(graph: Graph) -> None:
    graph.inputs[0]._uses.clear()


def invented_use(graph: Graph) -> None:
    graph.inputs[0]._uses[graph.nodes[1], 0] = None


def wrong_producer(graph: Graph) -> None:
    graph.nodes[0].outputs[0].producer = graph.nodes[1]


def produced_input(graph: Graph) -> None:
    graph.inputs[0].producer = graph.nodes[0]


def renamed_constant(graph: Graph) -> None:
    graph.constant_value("c").name = "d"


def reshaped_constant(graph: Graph) -> None:
    graph.constant_value("c").shape = (1, 4)


def undefined_output(graph: Graph) -> None:
    graph.outputs.append(Value("z"))


def wrong_dtype(graph: Graph) -> None:
    graph.outputs[0].dtype = "int64"


def unknown_dtype(graph: Graph) -> None:
    graph.outputs[0].dtype = "float31"


def wrong_shape(graph: Graph) -> None:
    graph.outputs[0].shape = ("n", 5)


def wrong_rank(graph: Graph) -> None:
    graph.outputs[0].shape = (4,)


@pytest.mark.parametrize(
    ("spoil", "rule"),
    [
        (unknown_operator, "operator 'Ad' is not supported"),
        (unknown_version, "since_version 3 is unknown; Add has 1, 6, 7, 13, 14"),
        (too_few_inputs, "has 1 inputs, 2 to 2 were required"),
        (omitted_input, "required input 'B' is omitted"),
        (too_many_outputs, "has 2 outputs, 1 to 1 were required"),
        (unknown_attribute, "attribute 'axis' is unknown; known: none"),
        (same_name, "is assigned twice"),
        (wrong_order, "is read before it is defined"),
        (foreign_value, "is read before it is defined"),
        (lost_use, "does not list this use"),
        (invented_use, "lists a use by Neg -> 'y' that is not there"),
        (wrong_producer, "links to another producer"),
        (produced_input, "is a graph input and also made elsewhere"),
        (renamed_constant, "is a constant under another name"),
        (reshaped_constant, "its tensor"),
        (undefined_output, "is a graph output that nothing defines"),
        (wrong_dtype, "is declared int64, it is float32"),
        (unknown_dtype, "has dtype 'float31', a numpy name was required"),
        (wrong_shape, r"is declared \['n', 5\], it is \['n', 4\]"),
        (wrong_rank, r"is declared \[4\], it is \['n', 4\]"),
    ],
)
def test_broken_rule_is_named(spoil: Callable[[Graph], None], rule: str) -> None:
    graph = small()
    infer_types(graph)
    check(graph)
    spoil(graph)
    with pytest.raises(GraphError, match=rule):
        check(graph)


@pytest.mark.parametrize(
    ("name", "value", "rule"),
    [
        ("key_state", "nothing", "state 'nothing' does not exist"),
        ("num_heads", "four", "attribute 'num_heads' is 'four', int required"),
        ("num_heads", None, "attribute 'num_heads' is missing"),
    ],
)
def test_attention_attributes_are_checked(name: str, value: object, rule: str) -> None:
    graph = tiny_decoder()
    node = next(n for n in graph.nodes if n.op == "CachedAttention")
    node.attributes[name] = value
    with pytest.raises(GraphError, match=rule):
        check(graph)


def test_list_and_dtype_attributes_are_checked() -> None:
    graph = Graph()
    x = graph.add_input("x", "float32", (2, 3))
    graph.add("Transpose", [x], name="t", since_version=13, perm=[1, "0"])
    with pytest.raises(GraphError, match=r"attribute 'perm' is .* ints required"):
        check(graph)
    graph = Graph()
    x = graph.add_input("x", "float32", (2, 3))
    graph.insert(Node("Cast", [x], [Value("y")], {"to": "float31"}, "", 13))
    with pytest.raises(GraphError, match="attribute 'to' is 'float31', dtype required"):
        check(graph)


def test_variadic_operators_need_one_input() -> None:
    graph = Graph()
    graph.insert(Node("Concat", [], [Value("y")], {"axis": 0}, "", 13))
    with pytest.raises(GraphError, match="has 0 inputs, 1 to inf were required"):
        check(graph)


def test_encoded_constant_needs_no_dtype_of_its_own() -> None:
    graph = Graph()
    x = graph.add_input("x", "float32", ("n", 32))
    w = graph.add_constant(weight(1, 8, 32, "Q8_0"))
    assert w.dtype == "float32"
    graph.outputs.append(graph.add("Linear", [x, w], domain="halfbyte"))
    check(graph)


def chain(length: int) -> Graph:
    graph = Graph()
    value = graph.add_input("x", "float32", (2,))
    for index in range(length):
        value = graph.add("Neg", [value], name=f"v{index}", dtype="float32", shape=(2,))
    graph.outputs = [value]
    return graph


@pytest.mark.parametrize("order", ["forwards", "backwards", "shuffled"])
def test_edits_find_their_place_wherever_earlier_ones_were(order: str) -> None:
    graph = chain(6000)
    expected = list(graph.nodes)
    targets = expected[::2]
    if order == "backwards":
        targets.reverse()
    elif order == "shuffled":
        random.Random(1).shuffle(targets)
    for count, node in enumerate(targets):
        source = node.inputs[0]
        at = expected.index(node)
        if count % 3 == 0:
            extra = Node("Abs", [source], [Value(f"e{count}", "float32", (2,))])
            graph.insert(extra, before=node)
            graph.set_input(node, 0, extra.outputs[0])
            expected.insert(at, extra)
        elif source is not None:
            graph.replace_all_uses(node.outputs[0], source)
            graph.remove(node)
            del expected[at]
    assert graph.nodes == expected
    check(graph)


def test_editing_at_a_node_that_is_gone() -> None:
    graph = chain(3)
    node = graph.nodes[1]
    assert node.inputs[0] is not None
    graph.replace_all_uses(node.outputs[0], node.inputs[0])
    graph.remove(node)
    with pytest.raises(ValueError, match="not in list"):
        graph.remove(node)
    with pytest.raises(ValueError, match="not in list"):
        graph.insert(Node("Abs", [graph.inputs[0]], [Value("late")]), before=node)


def test_constants_are_renamed_together() -> None:
    graph = Graph()
    tensors = [tensor_from_array(name, np.ones(1, np.float32)) for name in "abc"]
    values = [graph.add_constant(tensor) for tensor in tensors]
    graph.rename_constants({"a": "b", "b": "a"})
    assert [value.name for value in values] == ["b", "a", "c"]
    assert {name: tensor.name for name, tensor in graph.constants.items()} == {
        "b": "a", "a": "b", "c": "c",
    }  # fmt: skip
    graph.rename_constant("c", "d")
    assert graph.constant_value("d") is values[2]
    for names in ({"a": "d"}, {"a": "x", "b": "x"}, {"a": "x", "b": "d"}):
        with pytest.raises(ValueError, match="is taken"):
            graph.rename_constants(names)
    assert sorted(graph.constants) == ["a", "b", "d"]
