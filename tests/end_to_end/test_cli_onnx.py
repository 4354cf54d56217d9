"""The command line on ONNX files."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from support.onnx_wire import INT64, STRING, floats, graph, model, node, tensor, value

WEIGHT = np.arange(12, dtype=np.float32).reshape(3, 4) / 8


def save(path: Path, weight: np.ndarray, op: str = "Relu") -> Path:
    nodes = [node("MatMul", ["x", "w"], ["a"], name="/layers.0/MatMul"), node(op, ["a"], ["y"])]
    stored = [tensor("w", [3, 4], floats(*weight.ravel().tolist()))]
    path.write_bytes(
        model(graph(nodes, stored, [value("x", ("rows", 3))], [value("y", ("rows", 4))]))
    )
    return path


@pytest.fixture
def onnx_file(tmp_path):
    return save(tmp_path / "model.dat", WEIGHT)


def test_inspect_json(cli, onnx_file):
    found = cli("inspect", onnx_file, "--json").json()
    assert (found["format"], found["problems"], found["parameters"]) == ("onnx", [], 12)
    assert found["inputs"] == [{"name": "x", "dtype": "float32", "shape": ["rows", 3]}]
    assert found["outputs"] == [{"name": "y", "dtype": "float32", "shape": ["rows", 4]}]
    assert found["operators"] == {"MatMul": 1, "Relu": 1}
    assert found["opsets"] == {"": 21}
    assert [(t["name"], t["encoding"], t["bytes"]) for t in found["tensors"]] == [
        ("w", "float32", 48)
    ]


def test_inspect_text_and_verify(cli, onnx_file):
    found = cli("inspect", onnx_file, "--verify")
    assert found.code == 0
    for line in ("input         x: float32[rows, 3]", "output        y: float32[rows, 4]",
                 "opsets        ai.onnx 21", "operators     MatMul x1, Relu x1"):  # fmt: skip
        assert line in found.out


def test_inspect_lists_what_is_missing(cli, fails, tmp_path):
    path = save(tmp_path / "m.onnx", WEIGHT, "Nonsense")
    found = cli("inspect", path, "--json").json()
    assert found["operators"] == {"MatMul": 1, "Nonsense": 1}
    assert len(found["problems"]) == 1
    assert "operators Nonsense (opset 21) x1 is not supported" in found["problems"][0]
    assert [t["name"] for t in found["tensors"]] == ["w"]
    np.savez(tmp_path / "x.npz", x=np.ones((2, 3), np.float32))
    arguments = ("--input", tmp_path / "x.npz", "--output", tmp_path / "y.npz")
    assert "Nonsense (opset 21)" in fails("run", path, *arguments)


def test_run(cli, onnx_file, tmp_path):
    x = np.array([[1, -1, 2], [-3, 0, 1]], np.float32)
    np.savez(tmp_path / "x.npz", x=x)
    found = cli("run", onnx_file, "--input", tmp_path / "x.npz", "--output", tmp_path / "y.npz")
    assert found.code == 0, found.err
    with np.load(tmp_path / "y.npz") as arrays:
        np.testing.assert_allclose(arrays["y"], np.maximum(x @ WEIGHT, 0), rtol=1e-6)


def test_verify(cli, onnx_file, tmp_path):
    other = save(tmp_path / "other.onnx", WEIGHT + 1)
    np.savez(tmp_path / "x.npz", x=np.ones((5, 3), np.float32))
    same = cli("verify", onnx_file, onnx_file, "--data", tmp_path / "x.npz", "--json").json()
    assert same["outputs"][0]["max_abs_error"] == 0
    found = cli("verify", onnx_file, other, "--data", tmp_path / "x.npz", "--json").json()
    assert found["outputs"][0]["max_abs_error"] == pytest.approx(3)


def test_a_cut_file_says_so(fails, onnx_file):
    onnx_file.write_bytes(onnx_file.read_bytes()[:60])
    assert "is cut off" in fails("inspect", onnx_file)


def test_written_again_it_is_the_same_file(cli, tmp_path):
    nodes = [
        node("MatMul", ["x", "w"], ["y.matmul"], name="MatMul"),
        node("Add", ["y.matmul", "b"], ["y"], name="Add"),
    ]
    stored = [
        tensor("w", [3, 4], floats(*WEIGHT.ravel().tolist())),
        tensor("b", [4], floats(1, 2, 3, 4)),
    ]
    kinds = [value("x", ("batch", "rows", 3))], [value("y", ("batch", "rows", 4))]
    paths = [tmp_path / f"{name}.onnx" for name in "abc"]
    paths[0].write_bytes(model(graph(nodes, stored, *kinds)))
    for source, target in pairwise(paths):
        assert cli("convert", source, target).code == 0
    assert paths[1].read_bytes() == paths[2].read_bytes()


def test_through_a_native_file_and_back(cli, tmp_path):
    stored = [
        tensor("w", [3, 4], floats(*WEIGHT.ravel().tolist())),
        tensor("shape", [2], np.array([4, -1], "<i8").tobytes(), INT64),
    ]
    nodes = [node("MatMul", ["x", "w"], ["a"]), node("Reshape", ["a", "shape"], ["y"])]
    kinds = [value("x", ("batch", "rows", 3))], [value("y", (4, "n"))]
    source, native, back, direct = (
        tmp_path / name for name in ("a.onnx", "a.hb", "b.onnx", "c.onnx")
    )
    source.write_bytes(model(graph(nodes, stored, *kinds)))
    for pair in ((source, native), (native, back), (source, direct)):
        assert cli("convert", *pair).code == 0
    assert back.read_bytes() == direct.read_bytes()
    assert cli("inspect", native, "--json").json()["problems"] == []


@pytest.mark.parametrize("place", ["model.onnx", "onnx/model.onnx"])
def test_a_folder_with_one_model_is_that_model(cli, fails, tmp_path, place):
    folder = tmp_path / "exported"
    (folder / "onnx").mkdir(parents=True)
    (folder / "config.json").write_text('{"model_type": "vit"}')
    save(folder / place, WEIGHT)
    found = cli("inspect", folder, "--json").json()
    assert (found["format"], found["problems"], found["parameters"]) == ("onnx", [], 12)
    np.savez(tmp_path / "x.npz", x=np.ones((2, 3), np.float32))
    arguments = ("--input", tmp_path / "x.npz", "--output", tmp_path / "y.npz")
    assert cli("run", folder, *arguments).code == 0
    assert cli("convert", folder, tmp_path / "out.onnx").code == 0
    same = cli("verify", folder, tmp_path / "out.onnx", "--data", tmp_path / "x.npz", "--json")
    assert same.json()["outputs"][0]["max_abs_error"] == 0
    save(folder / "onnx" / "other.onnx", WEIGHT)
    assert "2 ONNX models lie there (" in fails("inspect", folder)


def test_strings_go_through_run(cli, tmp_path):
    kinds = [value("x", ("n",), STRING)], [value("y", ("n",), STRING)]
    path = tmp_path / "m.onnx"
    path.write_bytes(model(graph([node("Identity", ["x"], ["y"])], [], *kinds)))
    np.savez(tmp_path / "x.npz", x=np.array(["ü", "long text"]))
    found = cli(
        "run", path, "--input", tmp_path / "x.npz", "--output", tmp_path / "y.npz", "--json"
    )
    assert found.json()["outputs"] == [{"name": "y", "shape": [2], "dtype": "string"}]
    with np.load(tmp_path / "y.npz") as arrays:
        assert arrays["y"].tolist() == ["ü", "long text"]
    assert cli("verify", path, path, "--data", tmp_path / "x.npz", "--max-abs-error", 0).code == 0


def test_names_that_are_not_text(cli, fails, tmp_path):
    kinds = [value("x", ("n",))], [value("y", ("n",))]
    path = tmp_path / "m.onnx"
    found = model(graph([node("Relu", ["x"], ["abc"]), node("Relu", ["abc"], ["y"])], [], *kinds))
    path.write_bytes(found.replace(b"abc", b"\xffbc"))
    assert cli("inspect", path).code == 0
    assert "text that is not UTF-8" in fails("convert", path, tmp_path / "o.onnx")


def test_packed_weights_keep_their_names(cli, tmp_path):
    weight = np.arange(32 * 8, dtype=np.float32).reshape(32, 8) / 256
    stored = [tensor("w", [32, 8], weight.tobytes())]
    kinds = [value("x", ("batch", "rows", 32))], [value("y", ("batch", "rows", 8))]
    paths = [tmp_path / f"{name}.onnx" for name in "abc"]
    paths[0].write_bytes(model(graph([node("MatMul", ["x", "w"], ["y"])], stored, *kinds)))
    more = ("--to", "onnx:ort")
    assert cli("quantize", paths[0], paths[1], "--type", "int4-g32", *more).code == 0
    assert b"MatMulNBits" in paths[1].read_bytes()
    assert cli("convert", paths[1], paths[2], *more).code == 0
    assert paths[1].read_bytes() == paths[2].read_bytes()


def test_a_plain_graph_has_no_place_in_a_folder(cli, fails, onnx_file, tmp_path):
    said = fails("convert", onnx_file, tmp_path / "folder")
    assert said.startswith("error: --to hf: a plain graph as a folder without model_type")
    assert not (tmp_path / "folder").exists()
    assert cli("convert", onnx_file, tmp_path / "w.safetensors", "--to", "hf").code == 0
    assert "architecture" in fails("convert", onnx_file, tmp_path / "m.gguf")


@pytest.mark.parametrize("flavour", ["onnx", "onnx:ort", "onnx:static"])
def test_a_language_model_at_the_newest_opset(cli, models, tmp_path, flavour):
    options = ("--to", flavour, "--opset", 28)
    assert cli("convert", models / "llama.gguf", tmp_path / "m.onnx", *options).code == 0
    assert cli("inspect", tmp_path / "m.onnx", "--json").json()["opsets"][""] == 28
    same = ("--data", models / "text.txt", "--context", 32, "--max-kl", 1e-9, "-q")
    assert cli("verify", models / "llama.gguf", tmp_path / "m.onnx", *same).code == 0


def test_the_data_of_the_source_is_not_replaced(cli, fails, models, tmp_path):
    made, source = tmp_path / "m.onnx", tmp_path / "source.onnx"
    assert cli("convert", models / "llama.gguf", made).code == 0
    made.rename(source)
    data = (tmp_path / "m.onnx.data").read_bytes()
    assert "holds data of the source" in fails("convert", source, made, "--type", "float32")
    assert (tmp_path / "m.onnx.data").read_bytes() == data
    assert cli("convert", source, tmp_path / "other.onnx").code == 0
