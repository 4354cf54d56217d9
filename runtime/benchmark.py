"""Speed of a language model, by llama-bench's definitions, and of any other graph.

ppN: N random token ids run in batches of 512, logits for the last one only. tgN: N runs of one
random token each from an empty context, without sampling. One warm-up, states cleared before each
repetition; mean and sample standard deviation of tokens/s over the repetitions.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from halfbyte.engine import available_threads
from halfbyte.errors import HalfbyteError
from halfbyte.ir.graph import Graph
from halfbyte.ir.model import Model
from halfbyte.runtime.generation import decode_step, prefill
from halfbyte.runtime.session import Session

SEED = 0
BANDWIDTH_BYTES = 256 << 20
BANDWIDTH_ROUNDS = 3


def weight_bytes_per_token(graph: Graph) -> int:
    """Return the stored bytes of all weights that multiply one token."""
    return sum(
        value.constant.nbytes
        for node in graph.nodes
        if node.op in ("Linear", "LinearGroup", "LinearSwiGLU", "MatMul", "Gemm")
        for value in node.inputs
        if value is not None and value.constant is not None
    )


def memory_bandwidth(threads: int, nbytes: int = BANDWIDTH_BYTES) -> float:
    """Return bytes per second that `threads` threads read from memory, the best of three."""
    parts = [np.ones(nbytes // 4 // threads, np.float32) for _ in range(threads)]
    best = 0.0
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(BANDWIDTH_ROUNDS):
            started = time.perf_counter()
            list(pool.map(_read, parts))
            seconds = time.perf_counter() - started
            best = max(best, sum(part.nbytes for part in parts) / seconds)
    return best


def _read(part: NDArray[np.float32]) -> float:
    return float(np.dot(part, part))


def _measure(
    session: Session, tokens: int, run: Callable[[], None], repetitions: int
) -> list[float]:
    speeds = []
    for _ in range(repetitions):
        session.reset()
        started = time.perf_counter()
        run()
        speeds.append(tokens / (time.perf_counter() - started))
    session.reset()
    return speeds


def _result(
    test: str, speeds: list[float], share: Callable[[float], float | None]
) -> dict[str, Any]:
    mean = statistics.fmean(speeds)
    return {
        "test": test,
        "tokens_per_s": mean,
        "spread": statistics.stdev(speeds) if len(speeds) > 1 else 0.0,
        "bandwidth_share": share(mean),
    }


def benchmark(
    session: Session | Model,
    prefill: int = 256,
    decode: int = 64,
    repetitions: int = 5,
    threads: int | None = None,
    compute: str = "int8",
) -> list[dict[str, Any]]:
    """Return a result for `ppN` and `tgN`: test, tokens_per_s, spread, bandwidth_share.

    bandwidth_share: weight bytes per token * tokens/s / measured read bandwidth; None for ppN.
    threads and compute hold where a Model is given; a session keeps its own.

    Raises:
        HalfbyteError: the model takes no token ids.
    """
    if isinstance(session, Model):
        session = Session(session, compute=compute, threads=threads)
    vocabulary = session.vocabulary_size
    if vocabulary is None or not session.graph.states:
        raise HalfbyteError("benchmark: the model generates no text, a language model was required")
    ids = np.random.default_rng(SEED).integers(0, vocabulary, max(prefill, decode, 1)).tolist()
    results = []
    if prefill:
        results.append(_prefill_speed(session, ids[:prefill], repetitions))
    if decode:
        results.append(_decode_speed(session, ids[:decode], repetitions))
    return results


def run_speed(
    session: Session, inputs: Mapping[str, Any], repetitions: int = 5
) -> list[dict[str, Any]]:
    """Return a result for running arrays by name: test `run`, median milliseconds, spread.

    One warm-up, in which the plan for these shapes is made. spread: sample standard deviation.
    """
    session.run(inputs)
    times = []
    for _ in range(repetitions):
        started = time.perf_counter()
        session.run(inputs)
        times.append(1e3 * (time.perf_counter() - started))
    spread = statistics.stdev(times) if len(times) > 1 else 0.0
    return [{"test": "run", "milliseconds": statistics.median(times), "spread": spread}]


def _prefill_speed(session: Session, ids: list[int], repetitions: int) -> dict[str, Any]:
    def run() -> None:
        prefill(session, ids)

    _measure(session, len(ids), run, 1)
    return _result(f"pp{len(ids)}", _measure(session, len(ids), run, repetitions), lambda _: None)


def _decode_speed(session: Session, ids: list[int], repetitions: int) -> dict[str, Any]:
    def run() -> None:
        for index in ids:
            decode_step(session, index)

    session.reset()
    decode_step(session, ids[0])
    bandwidth = memory_bandwidth(session.threads or available_threads())
    read = weight_bytes_per_token(session.graph)
    speeds = _measure(session, len(ids), run, repetitions)
    return _result(f"tg{len(ids)}", speeds, lambda speed: read * speed / bandwidth)
