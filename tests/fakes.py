"""Stands in for llama.cpp in the tests of the engine and of everything above it.

``from fakes import FakeRunner, FakeVocab`` works in every test file. The vocabulary is bytes: token n below
256 is that byte, then come the end and begin tokens. ``FakeRunner`` is a small exact model of a context:

* with ``reply``, a function from the prompt's bytes to a text, it says that text and ends;
* without, each next token is a hash of the whole KV content of its slot, so that one wrong cell changes
  every token after it, and ``expected(prompt, count)`` tells what a greedy sequence must get;
* cells are counted as in a unified cache (shared ones once) and ``decode`` says False when they run out;
* ``save`` and ``restore`` carry a slot's content, to any fake of the same ``state_kind``;
* ``recurrent=True`` refuses to forget a part; ``fail_steps`` raise DecodeFailed; a closed ``gate`` holds
  decoding back until it is set (``entered`` is set when a decode arrives at it).
"""

from __future__ import annotations

import random
import threading
import zlib
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from shardload.engine.runner import Run
from shardload.engine.sampling import SamplingParams
from shardload.errors import DecodeFailed, RequestError

END = 256
BEGIN = 257
VOCABULARY_TOKENS = 258


class FakeVocab:
    """A vocabulary of bytes, with the reading methods of a real one."""

    n_tokens = VOCABULARY_TOKENS
    bos = BEGIN
    eos = END
    eot = END
    add_bos = True

    def tokenize(self, text: str, *, add_special: bool = True, parse_special: bool = False) -> list[int]:
        return [BEGIN, *text.encode()] if add_special else list(text.encode())

    def piece(self, token: int, *, special: bool = False) -> bytes:
        if token < 256:
            return bytes([token])
        return (b"<end>" if token == END else b"<begin>") if special else b""

    def detokenize(self, tokens: Sequence[int], *, special: bool = False) -> str:
        return b"".join(self.piece(token, special=special) for token in tokens).decode(errors="replace")

    def is_end(self, token: int) -> bool:
        return token == END


class FakeSampler:
    """Draws from the softmax of a row; greedy at temperature 0; honours logit_bias and the seed."""

    def __init__(self, runner: FakeRunner, params: SamplingParams, history: Sequence[int]) -> None:
        self._runner, self._params = runner, params
        self._random = random.Random(params.seed)
        self.history = list(history)
        self.closed = False

    def sample(self, row: int) -> int:
        assert not self.closed
        logits = self._runner.logits(row).astype(np.float64)
        for token, bias in self._params.logit_bias:
            logits[token] += bias
        if self._params.temperature <= 0:
            token = int(logits.argmax())
        else:
            weights = np.exp((logits - logits.max()) / self._params.temperature)
            token = self._random.choices(range(len(logits)), weights.tolist())[0]
        self.history.append(token)
        return token

    def close(self) -> None:
        self.closed = True
        self._runner.open_samplers.discard(self)


class FakeRunner:
    """A context over a byte vocabulary; see the module's docstring."""

    def __init__(
        self,
        *,
        ctx_tokens: int = 512,
        slots: int = 4,
        batch_tokens: int = 64,
        reply: Callable[[bytes], str] | None = None,
        recurrent: bool = False,
        fail_steps: Sequence[int] = (),
        pooled: bool = True,
        n_embd: int = 8,
        state_kind: str = "fake",
    ) -> None:
        self.ctx_tokens, self.slots, self.batch_tokens = ctx_tokens, slots, batch_tokens
        self.n_vocab, self.n_embd, self.pooled = VOCABULARY_TOKENS, n_embd, pooled
        self.kv_bytes = ctx_tokens * 64
        self.steps: list[list[Run]] = []
        self.threads: set[int] = set()
        self.parts: list[int] = []
        self.open_samplers: set[FakeSampler] = set()
        self.state_kind = state_kind
        self.given_back = 0
        self.restored: list[int] = []
        self.closed = False
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()
        self.on_decode: Callable[[Sequence[Run]], None] | None = None
        self._reply, self._recurrent, self._fail_steps = reply, recurrent, set(fail_steps)
        self._cells: list[list[tuple[int, int]]] = [[] for _ in range(slots)]
        self._prompt_tokens = [0] * slots
        self._next_cell = 0
        self._rows: list[tuple[int, tuple[int, ...]]] = []

    @property
    def cells_used(self) -> int:
        return len({cell for slot in self._cells for _, cell in slot})

    def content(self, slot: int) -> list[int]:
        """The tokens in a slot's KV."""
        return [token for token, _ in self._cells[slot]]

    def expected(self, prompt: Sequence[int], count: int) -> list[int]:
        """What a greedy sequence without a ``reply`` gets, ``count`` tokens at most and no end token."""
        tokens = list(prompt)
        for _ in range(count):
            token = int(_hashed_logits(tokens).argmax())
            if token == END:
                break
            tokens.append(token)
        return tokens[len(prompt) :]

    def decode(self, runs: Sequence[Run]) -> bool:
        assert not self.closed, "decode after close"
        self.threads.add(threading.get_ident())
        self.entered.set()
        assert self.gate.wait(30), "the gate was left closed"
        if self.on_decode is not None:
            self.on_decode(runs)
        assert runs
        assert sum(len(run.tokens) for run in runs) <= self.batch_tokens, "batch too large"
        assert len({run.slot for run in runs}) == len(runs), "one run for each slot"
        if self.cells_used + sum(len(run.tokens) for run in runs) > self.ctx_tokens:
            return False
        self.steps.append([Run(run.slot, run.start, tuple(run.tokens), run.want) for run in runs])
        if len(self.steps) - 1 in self._fail_steps:
            raise DecodeFailed(-3)
        self._rows = []
        for run in runs:
            self._append(run)
        return True

    def _append(self, run: Run) -> None:
        cells = self._cells[run.slot]
        assert run.start == len(cells), f"slot {run.slot}: position {run.start} after {len(cells)} tokens"
        for token in run.tokens:
            assert 0 <= token < VOCABULARY_TOKENS
            cells.append((token, self._next_cell))
            self._next_cell += 1
            if run.want == "all":
                self._rows.append((run.slot, tuple(self.content(run.slot))))
        if len(run.tokens) > 1 or not self._prompt_tokens[run.slot]:
            self._prompt_tokens[run.slot] = len(cells)
        if run.want == "last":
            self._rows.append((run.slot, tuple(self.content(run.slot))))

    def logits(self, row: int) -> NDArray[np.float32]:
        slot, tokens = self._rows[row]
        if self._reply is None:
            return _hashed_logits(tokens)
        prompt, said = tokens[: self._prompt_tokens[slot]], tokens[self._prompt_tokens[slot] :]
        text = self._reply(bytes(token for token in prompt if token < 256)).encode()
        logits = np.zeros(self.n_vocab, np.float32)
        logits[text[len(said)] if len(said) < len(text) else END] = 100.0
        return logits

    def sampler(self, params: SamplingParams, history: Sequence[int]) -> FakeSampler:
        if params.grammar == "bad":
            raise RequestError("the grammar does not parse", param="grammar")
        sampler = FakeSampler(self, params, history)
        self.open_samplers.add(sampler)
        return sampler

    def forget(self, slot: int, start: int = 0) -> bool:
        assert not self.closed, "forget after close"
        if self._recurrent and 0 < start < len(self._cells[slot]):
            return False
        del self._cells[slot][start:]
        self._prompt_tokens[slot] = 0
        return True

    def share(self, source: int, target: int, tokens: int) -> None:
        assert not self._cells[target], "share into a slot that is not empty"
        assert 0 < tokens <= len(self._cells[source])
        # A recurrent model has one state for each sequence: whatever is asked for, all of it is copied.
        self._cells[target] = self._cells[source][: None if self._recurrent else tokens]

    def state_bytes(self, slot: int) -> int:
        return 8 + 2 * len(self._cells[slot])

    def save(self, slot: int) -> memoryview:
        assert not self.closed, "save after close"
        content = np.asarray(self.content(slot), "<u2").tobytes()
        return memoryview(len(content).to_bytes(8, "little") + content)

    def restore(self, slot: int, state: memoryview) -> bool:
        assert not self.closed, "restore after close"
        assert int.from_bytes(state[:8], "little") == len(state) - 8, "not what was saved"
        self._cells[slot] = []
        content = np.frombuffer(state[8:], "<u2").tolist()
        if self.cells_used + len(content) > self.ctx_tokens:
            return False
        self._cells[slot] = [(token, self._next_cell + at) for at, token in enumerate(content)]
        self._next_cell += len(content)
        self._prompt_tokens[slot] = 0
        self.restored.append(len(content))
        return True

    def give_back(self) -> int:
        assert not self.closed, "give_back after close"
        assert self.cells_used == 0
        self.given_back += self.kv_bytes
        return self.kv_bytes

    def embedding(self, slot: int) -> NDArray[np.float32]:
        return _vector(self.content(slot), self.n_embd)

    def token_embeddings(self, rows: int) -> NDArray[np.float32]:
        return np.stack([_vector(tokens, self.n_embd) for _, tokens in self._rows[:rows]])

    def piece(self, token: int) -> bytes:
        return bytes([token]) if token < 256 else b""

    def is_end(self, token: int) -> bool:
        return token == END

    def divide_cores(self, parts: int) -> None:
        self.parts.append(parts)

    def close(self) -> None:
        assert not self.open_samplers, "samplers left open"
        self.closed = True


def _vector(tokens: Sequence[int], length: int) -> NDArray[np.float32]:
    seed = zlib.crc32(np.asarray(tokens, np.uint16).tobytes())
    return np.random.default_rng(seed).standard_normal(length).astype(np.float32)


def _hashed_logits(tokens: Sequence[int]) -> NDArray[np.float32]:
    """Printable ASCII is likely, the end token now and then, everything else never."""
    values = np.full(VOCABULARY_TOKENS, -50.0, np.float32)
    values[32:127] = _vector(tokens, 95)
    values[END] = _vector([*tokens, END], 1)[0] - 1.0
    return values
