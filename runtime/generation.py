"""Generate text token by token."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from halfbyte.errors import HalfbyteError
from halfbyte.runtime.sampling import GREEDY, Sampler, Sampling
from halfbyte.runtime.session import OUTPUTS, TOKEN_IDS, Session

PREFILL_CHUNK = 512
NO_POSITIONS = np.empty(0, np.int64)
FIRST_POSITION = np.zeros(1, np.int64)


class TextDecoder(Protocol):
    """Turns ids into text one by one, holding back unfinished characters."""

    def push(self, index: int, /) -> str:
        """Return the text that this id completes."""

    def finish(self) -> str:
        """Return what is left at the end."""


class StopFilter:
    """Passes text on until a stop string appears, even across pieces."""

    def __init__(self, stops: Sequence[str]) -> None:
        """Take the stop strings; empty ones never stop."""
        self.stops = [stop for stop in stops if stop]
        self.held = ""
        self.stopped = False

    def push(self, piece: str) -> str:
        """Return the text that can no longer be part of a stop string."""
        self.held += piece
        found = [place for place in map(self.held.find, self.stops) if place >= 0]
        if found:
            self.stopped = True
            self.held = self.held[: min(found)]
            return self.finish()
        keep = max((self._overlap(stop) for stop in self.stops), default=0)
        ready = self.held[: len(self.held) - keep]
        self.held = self.held[len(ready) :]
        return ready

    def finish(self) -> str:
        """Return the text held back."""
        ready, self.held = self.held, ""
        return ready

    def _overlap(self, stop: str) -> int:
        longest = min(len(stop) - 1, len(self.held))
        return next((n for n in range(longest, 0, -1) if self.held.endswith(stop[:n])), 0)


def prefill(
    session: Session, token_ids: Sequence[int], chunk: int = PREFILL_CHUNK
) -> NDArray[np.float32]:
    """Run token ids in chunks; return the logits [vocabulary] after the last one.

    Memory is bounded by the chunk, whatever the length.

    Raises:
        HalfbyteError: there are no ids, an id is out of range, or the capacity is exceeded.
    """
    ids = np.asarray(token_ids, dtype=np.int64).reshape(1, -1)
    if ids.size == 0:
        raise HalfbyteError("generation: the prompt has no tokens, at least one was required")
    for start in range(0, ids.shape[1], chunk):
        part = ids[:, start : start + chunk]
        is_last = start + chunk >= ids.shape[1]
        wanted = np.asarray([part.shape[1] - 1]) if is_last else NO_POSITIONS
        logits = session.run({TOKEN_IDS: part, OUTPUTS: wanted})["logits"]
    return np.asarray(logits[0, -1])


def decode_step(session: Session, token_id: int) -> NDArray[np.float32]:
    """Run one token; return the logits [vocabulary] after it."""
    feeds = {TOKEN_IDS: np.asarray([[token_id]], np.int64), OUTPUTS: FIRST_POSITION}
    return np.asarray(session.run(feeds)["logits"][0, 0])


class Generation:
    """One text in the making; iterate to get its pieces.

    stopped_by: `length`, `end` (a stop id), `stop` (a stop string) or `capacity`, once done.
    """

    def __init__(
        self,
        session: Session,
        prompt: Sequence[int],
        decoder: TextDecoder,
        max_tokens: int,
        sampling: Sampling,
        stops: Sequence[str],
        stop_ids: Collection[int],
        on_token: Callable[[int], None] | None,
    ) -> None:
        """Take what `generate` takes."""
        self.session = session
        self.prompt = [int(index) for index in prompt]
        self.decoder = decoder
        self.max_tokens = max_tokens
        self.sampler = Sampler(sampling)
        self.filter = StopFilter(stops)
        self.stop_ids = frozenset(stop_ids)
        self.on_token = on_token
        self.token_ids: list[int] = []
        self.text = ""
        self.stopped_by = ""
        self.reused_tokens = 0
        self.prefill_seconds = 0.0
        self.decode_seconds = 0.0
        self.decode_steps = 0

    @property
    def prefill_tokens_per_s(self) -> float:
        """Return prompt tokens run per second."""
        return _rate(len(self.prompt) - self.reused_tokens, self.prefill_seconds)

    @property
    def decode_tokens_per_s(self) -> float:
        """Return tokens run one by one per second."""
        return _rate(self.decode_steps, self.decode_seconds)

    def __iter__(self) -> Iterator[str]:
        """Yield pieces of text that no stop string can take back."""
        started = time.perf_counter()
        self.reused_tokens = self.session.keep_prefix(self.prompt)
        logits = prefill(self.session, self.prompt[self.reused_tokens :])
        self.prefill_seconds = time.perf_counter() - started
        while not self.stopped_by:
            piece = self._next(logits)
            if piece:
                self.text += piece
                yield piece
            if not self.stopped_by:
                logits = self._step()
        rest = "" if self.stopped_by == "stop" else self._rest()
        if rest:
            self.text += rest
            yield rest

    def _next(self, logits: NDArray[np.float32]) -> str:
        """Choose a token; return the text it releases."""
        if len(self.token_ids) >= self.max_tokens:
            self.stopped_by = "length"
            return ""
        chosen = self.sampler.sample(logits, self.prompt + self.token_ids)
        if chosen in self.stop_ids:
            self.stopped_by = "end"
            return ""
        self.token_ids.append(chosen)
        if self.on_token is not None:
            self.on_token(chosen)
        piece = self.filter.push(self.decoder.push(chosen))
        if self.filter.stopped:
            self.stopped_by = "stop"
        elif len(self.token_ids) >= self.max_tokens:
            self.stopped_by = "length"
        elif self.session.position == self.session.position_limit:
            self.stopped_by = "capacity"
        return piece

    def _step(self) -> NDArray[np.float32]:
        started = time.perf_counter()
        logits = decode_step(self.session, self.token_ids[-1])
        self.decode_seconds += time.perf_counter() - started
        self.decode_steps += 1
        return logits

    def _rest(self) -> str:
        last = self.filter.push(self.decoder.finish())
        if self.filter.stopped:
            self.stopped_by = "stop"
            return last
        return last + self.filter.finish()


def _rate(count: int, seconds: float) -> float:
    return count / seconds if seconds > 0 else 0.0


def generate(
    session: Session,
    prompt: Sequence[int],
    decoder: TextDecoder,
    *,
    max_tokens: int = 128,
    sampling: Sampling = GREEDY,
    stops: Sequence[str] = (),
    stop_ids: Collection[int] = (),
    on_token: Callable[[int], None] | None = None,
) -> Generation:
    """Return a generation; iterating it runs the model and yields pieces of text.

    prompt: token ids, chat template and special tokens included. decoder: a fresh streaming
    decoder of the model's tokenizer. A prefix that the session still holds is not run again.
    stops: text that ends the generation and is left out; stop_ids: ids that do.

    Raises:
        HalfbyteError: while iterating; the prompt is empty, an id is out of range, or the prompt
            does not fit the session's capacity.
    """
    return Generation(session, prompt, decoder, max_tokens, sampling, stops, stop_ids, on_token)
