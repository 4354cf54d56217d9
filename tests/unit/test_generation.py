"""Streaming: stop strings, stop ids, limits, prefix reuse, speed figures."""

from __future__ import annotations

import numpy as np
import pytest

from halfbyte.errors import HalfbyteError
from halfbyte.runtime.benchmark import benchmark, memory_bandwidth, weight_bytes_per_token
from halfbyte.runtime.generation import StopFilter, decode_step, generate, prefill
from halfbyte.runtime.sampling import GREEDY, Sampling
from halfbyte.runtime.session import Session
from support.random_models import random_model
from support.tiny_graphs import VOCABULARY, tiny_decoder


class Letters:
    """Decodes id i to a letter, and ends with a mark."""

    def __init__(self, end: str = "") -> None:
        self.end = end

    def push(self, index: int) -> str:
        return chr(ord("A") + index)

    def finish(self) -> str:
        return self.end


@pytest.fixture(scope="module")
def session() -> Session:
    return Session(tiny_decoder(), threads=1)


def greedy_ids(session: Session, prompt: list[int], count: int) -> list[int]:
    generation = generate(session, prompt, Letters(), max_tokens=count)
    list(generation)
    return generation.token_ids


def test_pieces_join_to_the_text(session: Session) -> None:
    seen: list[int] = []
    generation = generate(
        session, [1, 2, 3], Letters("!"), max_tokens=6, sampling=GREEDY, on_token=seen.append
    )
    pieces = list(generation)
    assert len(pieces) == 7
    assert "".join(pieces) == generation.text
    assert generation.text == "".join(map(Letters().push, seen)) + "!"
    assert generation.token_ids == seen
    assert generation.stopped_by == "length"
    assert generation.prefill_tokens_per_s > 0
    assert generation.decode_tokens_per_s > 0
    assert generation.decode_steps == 5


def test_greedy_generation_is_the_argmax_of_a_whole_run(session: Session) -> None:
    ids = greedy_ids(session, [4, 5, 6], 8)
    fresh = Session(tiny_decoder(), threads=1)
    logits = fresh.run({"input_ids": [[4, 5, 6, *ids]]})["logits"]
    assert logits[0, 2:-1].argmax(-1).tolist() == ids


def test_no_tokens_asked(session: Session) -> None:
    generation = generate(session, [1], Letters(), max_tokens=0)
    assert list(generation) == []
    assert generation.stopped_by == "length"
    assert generation.decode_tokens_per_s == 0.0


def test_stop_id_ends_without_its_text(session: Session) -> None:
    ids = greedy_ids(session, [7, 8], 6)
    end = next(i for i in range(1, 6) if ids[i] not in ids[:i])
    generation = generate(session, [7, 8], Letters("."), max_tokens=6, stop_ids=[ids[end]])
    assert "".join(generation) == "".join(map(Letters().push, ids[:end])) + "."
    assert generation.stopped_by == "end"
    assert generation.token_ids == ids[:end]


def test_stop_string_across_tokens_is_left_out(session: Session) -> None:
    text = "".join(map(Letters().push, greedy_ids(session, [9, 3], 8)))
    stop = text[3:5]
    generation = generate(session, [9, 3], Letters("?"), max_tokens=8, stops=[stop, ""])
    pieces = list(generation)
    assert "".join(pieces) == text[: text.index(stop)]
    assert generation.stopped_by == "stop"


def test_stop_string_completed_by_the_last_bytes(session: Session) -> None:
    text = "".join(map(Letters().push, greedy_ids(session, [9, 3], 4)))
    generation = generate(session, [9, 3], Letters("~~"), max_tokens=4, stops=["~~"])
    assert "".join(generation) == text
    assert generation.stopped_by == "stop"


def test_held_text_is_released_at_the_end(session: Session) -> None:
    text = "".join(map(Letters().push, greedy_ids(session, [9, 3], 4)))
    generation = generate(session, [9, 3], Letters(), max_tokens=4, stops=[text[-1] + "\0"])
    assert "".join(generation) == text
    assert generation.stopped_by == "length"


@pytest.mark.parametrize(
    ("pieces", "stops", "passed"),
    [
        (["a", "b", "c"], ["bc"], ["a", "", ""]),
        (["ab", "ab", "c"], ["abc"], ["", "ab", ""]),
        (["xSTOPy"], ["STOP", "xST"], [""]),
        (["aa", "ab"], ["aab"], ["", "a"]),
        (["one"], [], ["one"]),
    ],
)
def test_stop_filter(pieces: list[str], stops: list[str], passed: list[str]) -> None:
    flow = StopFilter(stops)
    assert [flow.push(piece) for piece in pieces] == passed
    assert flow.stopped == bool(stops)
    assert flow.finish() == ""


def test_prefix_that_is_held_is_not_run_again() -> None:
    session = Session(tiny_decoder(), threads=1)
    first = generate(session, [1, 2, 3, 4], Letters(), max_tokens=3)
    list(first)
    assert first.reused_tokens == 0
    again = generate(session, [1, 2, 3, 4], Letters(), max_tokens=3)
    list(again)
    assert again.reused_tokens == 3
    assert again.token_ids == first.token_ids
    longer = generate(session, [1, 2, 3, 4, *first.token_ids[:2], 7], Letters(), max_tokens=2)
    list(longer)
    assert longer.reused_tokens == 6
    other = generate(session, [5, 2], Letters(), max_tokens=2)
    list(other)
    assert other.reused_tokens == 0
    assert other.token_ids == greedy_ids(Session(tiny_decoder(), threads=1), [5, 2], 2)


def test_prefill_in_chunks_gives_the_same_logits() -> None:
    session = Session(tiny_decoder(), threads=1)
    ids = list(range(20))
    whole = prefill(session, ids)
    session.reset()
    parts = prefill(session, ids, chunk=7)
    assert session.position == 20
    assert whole.tobytes() == parts.tobytes()
    step = decode_step(session, 3)
    assert step.shape == (VOCABULARY,)


def test_the_end_of_the_position_table_ends_generation() -> None:
    session = Session(random_model("gpt2", n_positions=6), threads=1)
    generation = generate(session, [1, 2, 3, 4], Letters(), max_tokens=9)
    list(generation)
    assert generation.stopped_by == "capacity"
    assert len(generation.token_ids) == 3


def test_capacity_ends_generation() -> None:
    session = Session(tiny_decoder(), threads=1, capacity=6)
    generation = generate(session, [1, 2, 3, 4], Letters(), max_tokens=9)
    list(generation)
    assert generation.stopped_by == "capacity"
    assert len(generation.token_ids) == 3
    with pytest.raises(HalfbyteError, match="7 positions are needed, capacity is 6"):
        list(generate(session, [5] * 7, Letters()))


def test_empty_prompt_is_an_error(session: Session) -> None:
    with pytest.raises(HalfbyteError, match="the prompt has no tokens, at least one was required"):
        list(generate(session, [], Letters()))


def test_same_seed_same_text(session: Session) -> None:
    warm = Sampling(temperature=1.0, seed=7)
    texts = ["".join(generate(session, [1, 2], Letters(), sampling=warm)) for _ in range(2)]
    assert texts[0] == texts[1]
    other = Sampling(temperature=1.0, seed=8)
    assert "".join(generate(session, [1, 2], Letters(), sampling=other)) != texts[0]


def test_benchmark_reports_prefill_and_decode(session: Session) -> None:
    results = benchmark(session, prefill=8, decode=4, repetitions=2)
    assert [entry["test"] for entry in results] == ["pp8", "tg4"]
    assert all(entry["tokens_per_s"] > 0 and entry["spread"] >= 0 for entry in results)
    assert results[0]["bandwidth_share"] is None
    assert results[1]["bandwidth_share"] > 0
    assert session.position == 0
    assert benchmark(session, prefill=0, decode=1, repetitions=1)[0]["spread"] == 0.0
    assert [e["test"] for e in benchmark(session, prefill=2, decode=0, repetitions=1)] == ["pp2"]


def test_weight_bytes_count_what_multiplies_a_token() -> None:
    graph = tiny_decoder("Q8_0", layers=1)
    values = 32 * (32 + 16 + 16 + 32) + 3 * 32 * 64 + 40 * 32
    assert weight_bytes_per_token(graph) == values // 32 * 34
    assert weight_bytes_per_token(Session(graph).graph) == values // 32 * 34


def test_memory_bandwidth_is_positive() -> None:
    assert memory_bandwidth(2, nbytes=1 << 20) > 1e6


def test_benchmark_needs_a_language_model() -> None:
    from support.tiny_graphs import random_graph

    with pytest.raises(HalfbyteError, match="a language model was required"):
        benchmark(Session(random_graph([(0, 0, 1)])))


def test_benchmark_takes_a_model() -> None:
    from halfbyte.ir.model import Model

    model = Model({}, build=lambda _: tiny_decoder())
    results = benchmark(model, prefill=3, decode=2, repetitions=1, threads=1)
    assert [entry["test"] for entry in results] == ["pp3", "tg2"]
    assert all(np.isfinite(entry["tokens_per_s"]) for entry in results)
