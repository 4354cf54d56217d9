"""Sessions: inputs, states, batches, plans, errors; encoded weights; determinism."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import halfbyte
from halfbyte.errors import BackendError, GraphError, HalfbyteError, UnsupportedError
from halfbyte.ir.graph import Graph, State
from halfbyte.ir.model import Model
from halfbyte.ir.tensor import tensor_from_array
from halfbyte.runtime import get_backend
from halfbyte.runtime.kv_cache import FIRST_CAPACITY, KvCache
from halfbyte.runtime.session import KEPT_PLANS, Session
from support.kernel_cases import needs_extension
from support.tiny_graphs import TEXT, VOCABULARY, linear, random_graph, tiny_decoder, weight

IDS = np.random.default_rng(3).integers(0, VOCABULARY, (2, 9))
RELATIVE = 1e-5  # of the largest logit; float32 sums against float64 sums


def logits(session: Session, ids: np.ndarray, **inputs: object) -> np.ndarray:
    return session.run({"input_ids": ids, **inputs})["logits"]


@pytest.mark.parametrize("encoding", ["float32", "float16", "bfloat16", "Q4_0", "Q8_0", "int4-g32"])
def test_cpu_agrees_with_reference(encoding: str) -> None:
    graph = tiny_decoder(encoding)
    wanted = logits(Session(graph, "reference", fuse=False), IDS)
    found = logits(Session(graph, threads=2), IDS)
    assert np.abs(found - wanted).max() < RELATIVE * np.abs(wanted).max()


@needs_extension
def test_int8_compute_is_near_and_only_touches_quantized_weights() -> None:
    dense, coarse = tiny_decoder("float32"), tiny_decoder("Q8_0")
    same = [logits(Session(dense, compute=c), IDS) for c in ("exact", "int8")]
    assert same[0].tobytes() == same[1].tobytes()
    exact, rounded = (logits(Session(coarse, compute=c), IDS) for c in ("exact", "int8"))
    assert 0 < np.abs(exact - rounded).max() < 0.05 * np.abs(exact).max()


@pytest.mark.parametrize("compute", ["exact", "int8"])
def test_chunks_batches_and_threads_do_not_change_a_bit(compute: str) -> None:
    graph = tiny_decoder("Q8_0")
    whole = logits(Session(graph, threads=2, compute=compute), IDS)
    session = Session(graph, threads=1, compute=compute)
    for row in range(2):
        session.reset()
        parts = [IDS[row : row + 1, a:b] for a, b in ((0, 4), (4, 5), (5, 9))]
        found = np.concatenate([logits(session, part) for part in parts], axis=1)
        assert found.tobytes() == whole[row : row + 1].tobytes()


def test_output_positions_choose_logits() -> None:
    session = Session(tiny_decoder())
    whole = logits(session, IDS)
    session.reset()
    some = logits(session, IDS, output_positions=[8, 0])
    np.testing.assert_array_equal(some, whole[:, [8, 0]])
    session.reset()
    assert logits(session, IDS, output_positions=[]).shape == (2, 0, VOCABULARY)
    assert session.position == 9


def test_results_are_the_callers_own() -> None:
    session = Session(tiny_decoder())
    first = logits(session, IDS[:1, :1])
    kept = first.copy()
    logits(session, IDS[:1, 1:2])
    np.testing.assert_array_equal(first, kept)


def test_truncation_goes_back() -> None:
    session = Session(tiny_decoder())
    logits(session, IDS[:1, :5])
    wanted = logits(session, IDS[:1, 5:6])
    session.truncate(5)
    assert session.position == 5
    np.testing.assert_array_equal(logits(session, IDS[:1, 5:6]), wanted)
    with pytest.raises(
        HalfbyteError, match="cannot go back to position 9, 6 are held; give 0 to 6"
    ):
        session.truncate(9)


def test_prefix_of_a_batch_is_not_kept() -> None:
    session = Session(tiny_decoder())
    logits(session, IDS)
    assert session.history is None
    assert session.keep_prefix([1, 2, 3]) == 0
    assert session.history == []


def test_batch_may_change_only_at_the_start() -> None:
    session = Session(tiny_decoder())
    logits(session, IDS)
    with pytest.raises(HalfbyteError, match="a batch of 1 after 9 positions of 2; reset"):
        logits(session, IDS[:1])
    session.reset()
    assert logits(session, IDS[:1]).shape == (1, 9, VOCABULARY)


def test_capacity_grows_and_keeps_what_is_held() -> None:
    graph = tiny_decoder(layers=1)
    ids = np.random.default_rng(0).integers(0, VOCABULARY, (1, FIRST_CAPACITY + 10))
    wanted = logits(Session(graph), ids)[:, -10:]
    session = Session(graph)
    logits(session, ids[:, :-10])
    assert session.cache.capacity == FIRST_CAPACITY
    found = logits(session, ids[:, -10:])
    assert session.cache.capacity == 2 * FIRST_CAPACITY
    assert session.cache.nbytes == 2 * 2 * FIRST_CAPACITY * 2 * 8 * 4
    assert found.tobytes() == wanted.tobytes()


def test_fixed_capacity_is_a_limit() -> None:
    session = Session(tiny_decoder(), capacity=10)
    logits(session, IDS)
    with pytest.raises(HalfbyteError, match="18 positions are needed, capacity is 10; give a larg"):
        logits(session, IDS)
    assert session.position == 9
    with pytest.raises(HalfbyteError, match="capacity 0, at least 1 position"):
        Session(tiny_decoder(), capacity=0)


def test_recent_plans_are_kept() -> None:
    session = Session(tiny_decoder())
    for length in (1, 2, 3, 4, 5, 6):
        session.reset()
        logits(session, IDS[:1, :length])
    assert len(session._plans) == KEPT_PLANS
    plan = next(reversed(session._plans.values()))
    session.reset()
    logits(session, IDS[:1, :6])
    assert next(reversed(session._plans.values())) is plan


@needs_extension
def test_no_node_of_the_decoder_falls_back_on_cpu() -> None:
    session = Session(tiny_decoder("Q4_0"))
    assert session.fallbacks == []
    logits(session, IDS)
    assert session.fallbacks == []


def test_without_kernels_every_node_falls_back(monkeypatch: pytest.MonkeyPatch) -> None:
    from halfbyte.kernels import cpu

    monkeypatch.setattr(cpu, "available", lambda: False)
    session = Session(tiny_decoder("Q8_0"), threads=1)
    found = logits(session, IDS)
    assert len(session.fallbacks) == len(session.graph.nodes)
    np.testing.assert_array_equal(found, logits(Session(tiny_decoder("Q8_0"), "reference"), IDS))


@pytest.mark.parametrize(
    ("inputs", "rule"),
    [
        ({"ids": [[1]]}, "no input is named 'ids'; inputs are input_ids, position_ids, output_pos"),
        ({}, "input 'input_ids' is missing"),
        ({"input_ids": [1]}, r"shape \[1\], rank 2 \[batch, sequence\] was required"),
        ({"input_ids": [[1.5]]}, "is float64, int64 was required; convert it"),
        ({"input_ids": [[1, 40]]}, "'input_ids' holds 40, 0 to 39 was required"),
        ({"input_ids": [[-1]]}, "'input_ids' holds -1, 0 to 39 was required"),
        ({"input_ids": [[]]}, "is empty, at least one id was required"),
        ({"input_ids": [[1]], "output_positions": [1]}, "'output_positions' holds 1, 0 to 0 was"),
        ({"input_ids": [[1]], "position_ids": [[1, 2]]}, "sequence = 1 was required"),
    ],
)
def test_wrong_inputs_are_named(inputs: dict, rule: str) -> None:
    session = Session(tiny_decoder())
    with pytest.raises(HalfbyteError, match=rule):
        session.run(inputs)
    assert session.position == 0


def test_unsigned_and_short_ids_are_taken() -> None:
    session = Session(tiny_decoder())
    wanted = logits(session, IDS)
    for dtype in (np.uint16, np.int32):
        session.reset()
        np.testing.assert_array_equal(logits(session, IDS.astype(dtype)), wanted)


def encoder() -> Graph:
    """Return an encoder that embeds ids, types and positions, and passes its mask on."""
    graph = Graph("encoder")
    ids, mask, types = (
        graph.add_input(name, "int64", TEXT)
        for name in ("input_ids", "attention_mask", "token_type_ids")
    )
    tables = [graph.add_constant(weight(i, rows, 32)) for i, rows in enumerate((40, 2, 6))]
    like = {"dtype": "float32", "since_version": 13, "axis": 0}
    x = graph.add("Gather", [tables[0], ids], **like)
    y = graph.add("Gather", [tables[1], types], **like)
    constants = [
        graph.add_constant(tensor_from_array(name, np.asarray(value, np.int64)))
        for name, value in (("zero", 0), ("one", 1), ("axis", [0]))
    ]
    shape = graph.add("Shape", [ids], since_version=24, start=1, end=2)
    length = graph.add("Squeeze", [shape, constants[2]], since_version=24)
    positions = graph.add("Range", [constants[0], length, constants[1]], since_version=11)
    z = graph.add("Gather", [tables[2], positions], **like)
    x = graph.add("Add", [graph.add("Add", [x, y], since_version=14), z], since_version=14)
    heads = {"num_heads": 4, "num_kv_heads": 4, "scale": 0.4, "causal": 0}
    x = graph.add("CachedAttention", [x, x, x, mask], domain="halfbyte", **heads)
    graph.outputs.append(linear(graph, x, weight(9, 8, 32), "last_hidden_state"))
    return graph


def test_encoder_defaults_mask_and_types() -> None:
    ids = IDS[:, :6]
    results = []
    for device in ("cpu", "reference"):
        session = Session(encoder(), device)
        found = session.run({"input_ids": ids})["last_hidden_state"]
        full = {"attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
        again = session.run({"input_ids": ids, **full})["last_hidden_state"]
        np.testing.assert_array_equal(found, again)
        assert session.position == 0
        results.append(found)
    np.testing.assert_allclose(results[0], results[1], rtol=1e-4, atol=1e-5)


def test_padding_does_not_change_the_rest() -> None:
    session = Session(encoder())
    short = session.run({"input_ids": IDS[:1, :4]})["last_hidden_state"]
    mask = np.asarray([[1, 1, 1, 1, 0, 0]])
    padded = session.run({"input_ids": IDS[:1, :6], "attention_mask": mask})["last_hidden_state"]
    np.testing.assert_allclose(padded[:, :4], short, rtol=1e-4, atol=1e-5)


def test_too_long_for_the_position_table() -> None:
    with pytest.raises(HalfbyteError, match="index 8 into 'w2' of 6; the input is too long for"):
        Session(encoder()).run({"input_ids": IDS})


def test_graph_without_ids_runs_arrays_by_name() -> None:
    session = Session(random_graph([(0, 0, 1)], (2, 8)))
    a = np.ones((2, 8), np.float32)
    name = session.graph.outputs[-1].name
    np.testing.assert_array_equal(session.run({"a": a, "b": 2 * a})[name], 3 * a)
    with pytest.raises(HalfbyteError, match="input 'b' is missing; inputs are a, b"):
        session.run({"a": a})
    with pytest.raises(HalfbyteError, match=r"'a' has shape \[3, 8\], \[2, 8\] was required"):
        session.run({"a": np.ones((3, 8), np.float32), "b": a})


def test_states_need_token_ids() -> None:
    graph = tiny_decoder()
    graph.inputs[0].name = "tokens"
    with pytest.raises(HalfbyteError, match="a graph with states needs an input 'input_ids'"):
        Session(graph).run({"tokens": IDS, "position_ids": IDS, "output_positions": [0]})


def test_state_of_another_form_is_refused() -> None:
    with pytest.raises(GraphError, match=r"\[batch, heads, capacity, d\] required"):
        KvCache({"k": State("k", "float32", ("batch", "capacity", 8), 1)})


def test_sources(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = tiny_decoder()
    model = Model({}, build=lambda _: graph)
    monkeypatch.setattr(halfbyte, "open", lambda path: model, raising=False)
    wanted = logits(Session(graph), IDS)
    for source in (model, "some/path", Path("some/path")):
        session = Session(source)
        np.testing.assert_array_equal(logits(session, IDS), wanted)
        assert session.graph is not graph
    assert str(graph) == str(tiny_decoder())


def test_vocabulary_size() -> None:
    assert Session(tiny_decoder()).vocabulary_size == VOCABULARY
    assert Session(random_graph([(0, 0, 1)])).vocabulary_size is None


@pytest.mark.parametrize("device", ["cuda", "metal"])
def test_planned_devices_say_so(device: str) -> None:
    with pytest.raises(BackendError, match=f"device '{device}' is not available; this version has"):
        Session(tiny_decoder(), device)


def test_unknown_devices_and_modes() -> None:
    with pytest.raises(
        UnsupportedError, match="device 'tpu' is not supported; supported: cpu, ref"
    ):
        get_backend("tpu")
    with pytest.raises(
        UnsupportedError, match="compute mode 'int4' is not supported; supported: ex"
    ):
        get_backend("cpu", "int4")


def test_text_longer_than_a_position_table() -> None:
    graph = Graph("positions")
    ids = graph.add_input("input_ids", "int64", TEXT)
    places = graph.add_input("position_ids", "int64", TEXT)
    found = [
        graph.add("Gather", [graph.add_constant(weight(i, rows, 32)), index], since_version=13)
        for i, (rows, index) in enumerate(((40, ids), (6, places)))
    ]
    graph.outputs.append(graph.add("Add", found, name="y", since_version=14))
    session = Session(graph)
    assert session.run({"input_ids": IDS[:, :6]})["y"].shape == (2, 6, 32)
    with pytest.raises(HalfbyteError, match="holds 8, 0 to 5 was required; the text is longer"):
        session.run({"input_ids": IDS})


def test_infinities_are_results_not_warnings() -> None:
    graph = Graph("overflow")
    x = graph.add_input("x", "float32", ("n",))
    graph.outputs.append(graph.add("Pow", [x, x], name="y", since_version=15))
    for device in ("cpu", "reference"):
        found = Session(graph, device).run({"x": np.float32([1e20, 2])})["y"]
        assert found.tolist() == [np.inf, 4.0]
