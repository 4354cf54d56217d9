"""The text form: what it says, that it reads back, what it refuses."""

from __future__ import annotations

import numpy as np
import pytest

from halfbyte.errors import GraphError
from halfbyte.ir.graph import Graph, Node, Origin, State, Value
from halfbyte.ir.legality import check
from halfbyte.ir.roles import Role, WeightKey
from halfbyte.ir.tensor import tensor_from_array
from halfbyte.ir.text import parse, print_graph, print_whole
from support.tiny_graphs import tiny_decoder

TEXT = """graph "my graph" opset 24 {
  input %ids: int64[batch, sequence]
  input %"odd name": float32[?, 3, "1"]
  state key.0: float32[batch, 2, capacity, 8] axis 2 window 16 layer 0
  constant %w: float32[4, 32] encoding Q4_0 tensor blk.0.w role attention_query layer 0 kind bias
  %y: float32[*] = halfbyte.Linear@1(%"odd name", %w, _) layer 0 origin ["m.onnx", "MatMul_3", 17]
  %z: ?[batch, 2] = Cast@24(%y) {"to": "float32"}
  output %y
}
"""


def test_text_is_stable() -> None:
    graph = parse(TEXT)
    assert print_graph(graph) == TEXT
    assert str(graph) == TEXT
    node = graph.nodes[0]
    assert node.domain == "halfbyte"
    assert node.op == "Linear"
    assert node.inputs == [graph.inputs[1], graph.constant_value("w"), None]
    assert node.origin == Origin("m.onnx", "MatMul_3", 17)
    assert graph.states["key.0"] == State("key.0", "float32", ("batch", 2, "capacity", 8), 2, 16, 0)
    tensor = graph.constants["w"]
    assert tensor.key == WeightKey(Role.ATTENTION_QUERY, 0, "bias")
    assert tensor.name == "blk.0.w"
    assert tensor.parts == {}


@pytest.mark.parametrize("encoding", ["float32", "Q4_0", "int8"])
def test_decoder_reads_back_with_its_weights(encoding: str) -> None:
    graph = tiny_decoder(encoding)
    twin = parse(str(graph), graph.constants)
    check(twin)
    assert str(twin) == str(graph)
    assert twin.constants == graph.constants


def test_every_kind_of_attribute_reads_back() -> None:
    graph = Graph("g")
    body = Graph("body")
    body.outputs.append(body.add_input("v", "float32", (2,)))
    attributes = {
        "array": np.arange(6, dtype=np.int32).reshape(2, 3),
        "scalar": np.asarray(1.5, np.float16),
        "tensor": tensor_from_array("t", np.ones((1, 2), np.float32)),
        "graph": body,
        "bytes": b"\x00\xff",
        "number": np.int64(3),
        "float": 0.1,
        "infinite": float("inf"),
        "list": [1, 2.0, "three"],
        "tuple": (1, 2),
        "text": 'quote " and \n line',
        "nothing": None,
    }
    graph.insert(Node("Odd", [], [Value("y", "float32", ())], attributes, "com.example", 2))
    twin = parse(str(graph))
    found = twin.nodes[0].attributes
    assert str(twin) == str(graph)
    assert twin.nodes[0].domain == "com.example"
    np.testing.assert_array_equal(found["array"], attributes["array"])
    assert found["array"].dtype == np.int32
    assert found["scalar"].shape == ()
    assert found["tensor"].tolist() == [[1.0, 1.0]]
    assert str(found["graph"]) == str(body)
    assert found["bytes"] == b"\x00\xff"
    assert found["list"] == [1, 2.0, "three"]
    assert found["text"] == attributes["text"]
    assert found["infinite"] == float("inf")


def replaced(old: str, new: str) -> str:
    assert old in TEXT
    return TEXT.replace(old, new, 1)


@pytest.mark.parametrize(
    ("text", "line", "rule"),
    [
        ("", 1, "the text is empty"),
        ("grape x", 1, "found 'grape x', 'graph' was required"),
        ("graph x opset y {", 1, "found 'y {', an integer was required"),
        (TEXT.rstrip("}\n"), 8, "the closing brace is missing"),
        (TEXT + "more", 10, "text follows the closing brace"),
        (replaced("%ids", "ids"), 2, "'%' was required"),
        (replaced("int64", "int65"), 2, "dtype 'int65' is unknown"),
        (replaced("[batch, s", "[batch; s"), 2, "',' was required"),
        (replaced("[?, 3", "[?, -3"), 3, "dimension -3, zero or more"),
        (replaced('"odd name":', '"odd:'), 3, "."),
        (replaced("float32[batch, 2, c", "?[batch, 2, c"), 4, "needs a name of its own, a dtype"),
        (replaced("Q4_0", "Q4_9"), 5, "Q4_9"),
        (replaced("attention_query", "attention_guess"), 5, "attention_guess"),
        (replaced("float32[4, 32]", "float32[n, 32]"), 5, "needs a shape of integers"),
        (replaced("%w, _", "%v, _"), 6, "value 'v' is read before it is defined"),
        (replaced("Linear@1", "Linear"), 6, "'@' was required"),
        (replaced('["m.onnx"', "[3"), 6, "must be strings"),
        (replaced('"MatMul_3", 17', "17"), 6, "must be \\[file, name, offset\\]"),
        (replaced("%z", "%y"), 7, "value 'y' is defined twice"),
        (replaced('{"to"', '{"to'), 7, "."),
        (replaced('"float32"}', '{"$odd": 1}}'), 7, "JSON object of no known kind"),
        (replaced('"float32"}', '{"$bytes": "?"}}'), 7, "broken base64"),
        (replaced('"float32"}', '{"$bytes": 3}}'), 7, "broken base64"),
        (replaced('"float32"}', '{"$array": ["f", [], ""]}}'), 7, "must be \\[dtype, shape"),
        (replaced('"float32"}', '{"$array": ["int8", [-1], ""]}}'), 7, "list of integers"),
        (replaced('"float32"}', '{"$array": ["int8", [3], "AA=="]}}'), 7, "reshape"),
        (replaced('"float32"}', '{"$graph": "graph"}}'), 1, "a name was required"),
        (replaced('"float32"}', "[" * 100_000), 7, "."),
        (replaced("output %y", "output %y %z"), 8, "'%z' follows the statement"),
        (replaced("output %y", "output %q"), 8, "value 'q' is read before"),
    ],
)
def test_bad_text_names_the_line(text: str, line: int, rule: str) -> None:
    with pytest.raises(GraphError, match=rule) as error:
        parse(text)
    assert error.value.node == f"line {line}"


def test_constant_that_does_not_fit_is_refused() -> None:
    graph = tiny_decoder()
    text = str(graph)
    wrong = tensor_from_array("scale0", np.ones(5, np.float32))
    with pytest.raises(GraphError, match=r"constant 'scale0' is float32\[5\], float32\[32\] was"):
        parse(text, {**graph.constants, "scale0": wrong})


def test_whole_text_holds_the_constants_that_are_no_weights():
    graph = Graph()
    weight = tensor_from_array("w", np.ones((2, 2), np.float32))
    inner = Graph("inner")
    inner.outputs.append(inner.add_constant(weight.renamed("w"), fixed=True))
    x = graph.add_input("x", "float32", (2, 2))
    names = np.array(["a", "\n\udcff"], object)
    held = graph.add_constant(tensor_from_array("names", names), fixed=True)
    scale = graph.add_constant(tensor_from_array("scale", np.float16(3)), fixed=True)
    own = graph.add_constant(weight)
    graph.outputs.append(graph.add("Sum", [x, own, held, scale], branch=inner))
    text = print_whole(graph, {"w": weight})
    found = parse(text, {"w": weight})
    assert print_whole(found, {"w": weight}) == text
    assert found.constants["w"] is weight
    assert found.constants["names"].numpy().tolist() == names.tolist()
    assert found.constants["scale"].numpy() == 3
    branch = next(found.subgraphs())
    assert branch.constants["w"] is not weight
    np.testing.assert_array_equal(branch.constants["w"].numpy(), np.ones((2, 2)))


@pytest.mark.parametrize(
    "data", ['{"data": 3}', '{"codes": {"$array": ["int64", [1, 1], "AAAAAAAAAAA="]}}',
             '{"data": {"$array": ["int64", [1, 2], "AAAAAAAAAAA="]}}',
             '{"data": {"$array": ["string", [1, 1], [4]]}}']
)  # fmt: skip
def test_data_of_a_constant_must_fit(data):
    text = f"graph g opset 21 {{\n  constant %c: int64[1] encoding i64 data {data}\n}}\n"
    with pytest.raises(GraphError, match="line 2"):
        parse(text)
