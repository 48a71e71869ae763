"""The engine over llama.cpp: what it says alone, it says in company."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import llama_cpp
import numpy as np
import pytest
from turned_lane import GREEDY, Reader

from shardload.demo import demo_folder
from shardload.engine import Engine, GenerationRequest, Lane, SamplingParams, TokenLogprob
from shardload.errors import PromptTooLong
from shardload.llama import Context, ContextParams, Model
from shardload_native.amx import avoid_traps
from shardload_native.library import load

pytestmark = pytest.mark.real
NAMES = ("fable", "pirate")
CTX_TOKENS = 1024
PROMPTS = (
    "Tell me a story.",
    "What is your name?",
    "Once upon a time there was",
    "Who are you, and where do you live?",
    "Hello!",
    "A fox and a crow",
    "The sea is",
    "Tell me about the moon and the sun.",
)
SEEDED = SamplingParams(temperature=1.2, top_k=0, top_p=1.0, min_p=0.0, seed=1234)


def path_of(name: str) -> Path:
    return demo_folder() / f"{name}.gguf"


@dataclass
class Served:
    """One demo model on the lane."""

    model: Model
    engine: Engine

    def tokens(self, text: str) -> list[int]:
        return self.model.vocab.tokenize(text)

    def start(
        self,
        prompt: list[int],
        *,
        sampling: SamplingParams = GREEDY,
        max_tokens: int | None = 48,
        stop: tuple[str, ...] = (),
        ignore_eos: bool = False,
        top_logprobs: int | None = 2,
    ) -> Reader:
        reader = Reader()
        request = GenerationRequest(prompt, max_tokens, sampling, stop, ignore_eos, top_logprobs)
        reader.sequence = self.engine.submit(request, reader)
        return reader


def serve(lane: Lane, name: str, model: Model, **changes: object) -> tuple[Context, Served]:
    settings = {"ctx_tokens": CTX_TOKENS, "slots": 8, "threads": 1, "threads_batch": 1, "batch_tokens": 128}
    context = Context(model, ContextParams(**settings | changes))  # type: ignore[arg-type]
    return context, Served(model, lane.attach(context, name=name))


def assert_same_text(reader: Reader, expected: Reader) -> None:
    """Equal, up to a place where the model itself could not decide: batches differ in the last digits."""
    for entry, wanted in zip(entries_of(reader), entries_of(expected), strict=True):
        if entry.token != wanted.token:
            (_, _, best), (second, _, near) = wanted.top[:2]
            assert entry.token == second
            assert best - near < 0.02
            return


def entries_of(reader: Reader) -> list[TokenLogprob]:
    return [entry for delta in reader.wait().deltas for entry in delta.logprobs]


@pytest.fixture(scope="module")
def lane() -> Iterator[Lane]:
    with Lane() as lane:
        yield lane


@pytest.fixture(scope="module")
def served(lane: Lane) -> Iterator[dict[str, Served]]:
    models = {name: Model.open([path_of(name)]) for name in NAMES}
    pairs = {name: serve(lane, name, model) for name, model in models.items()}
    yield {name: served for name, (_, served) in pairs.items()}
    for context, one in pairs.values():
        lane.detach(one.engine).result(30)
        context.close()
        one.model.close()


@pytest.fixture(scope="module")
def reference() -> dict[str, dict[str, list[int]]]:
    """What llama-cpp-python itself generates, greedily."""
    avoid_traps(load())
    answers: dict[str, dict[str, list[int]]] = {}
    for name in NAMES:
        # Flash attention adds up in another order: without it on both sides a near tie may turn.
        llama = llama_cpp.Llama(
            str(path_of(name)),
            n_ctx=CTX_TOKENS,
            n_threads=1,
            n_threads_batch=1,
            flash_attn=True,
            verbose=False,
        )
        vocab = llama_cpp.llama_model_get_vocab(llama.model)
        answers[name] = {}
        for prompt in PROMPTS:
            said = []
            generated = llama.generate(
                llama.tokenize(prompt.encode()), temp=0.0, repeat_penalty=1.0, reset=True
            )
            for token in islice(generated, 48):
                if llama_cpp.llama_vocab_is_eog(vocab, token):
                    break
                said.append(token)
            answers[name][prompt] = said
        llama.close()
    return answers


@pytest.mark.parametrize("name", NAMES)
def test_greedy_text_alone_is_that_of_llama_cpp_python(
    served: dict[str, Served], reference: dict[str, dict[str, list[int]]], name: str
) -> None:
    model = served[name]
    for prompt, expected in reference[name].items():
        reader = model.start(model.tokens(prompt)).wait()
        assert reader.tokens == expected
        assert reader.text == b"".join(map(model.model.vocab.piece, expected)).decode()


def test_greedy_text_is_the_same_while_both_models_answer_everybody(served: dict[str, Served]) -> None:
    alone = {
        (name, prompt): served[name].start(served[name].tokens(prompt)).wait()
        for prompt in PROMPTS
        for name in NAMES
    }
    readers = {
        (name, prompt): served[name].start(served[name].tokens(prompt))
        for prompt in PROMPTS
        for name in NAMES
    }
    for key, reader in readers.items():
        assert_same_text(reader, alone[key])


def test_the_same_seed_gives_the_same_text_whatever_else_runs(served: dict[str, Served]) -> None:
    model, other = (served[name] for name in NAMES)
    prompt = model.tokens(PROMPTS[0])
    alone = model.start(prompt, sampling=SEEDED, max_tokens=100, ignore_eos=True).wait()
    company = [model.start(model.tokens(text), max_tokens=200) for text in PROMPTS[1:6]]
    company += [other.start(other.tokens(text), max_tokens=200) for text in PROMPTS[:3]]
    among = [model.start(prompt, sampling=SEEDED, max_tokens=100, ignore_eos=True).wait() for _ in range(3)]
    assert [reader.text for reader in among] == [alone.text] * 3
    # To the last digit: where cells are in the cache must not show.
    assert [entries_of(reader) for reader in among] == [entries_of(alone)] * 3
    for reader in company:
        assert reader.wait().error is None


def test_different_seeds_give_different_texts(served: dict[str, Served]) -> None:
    model = served[NAMES[0]]
    seeds = [SamplingParams(temperature=2.0, top_k=0, top_p=1.0, min_p=0.0, seed=seed) for seed in range(4)]
    prompt = model.tokens("Tell me")
    readers = [model.start(prompt, sampling=seed, ignore_eos=True) for seed in seeds]
    assert len({tuple(reader.wait().tokens) for reader in readers}) == 4


def test_a_reused_prefix_gives_the_same_text(served: dict[str, Served], lane: Lane) -> None:
    model = served[NAMES[0]]
    turn = model.tokens("Tell me a story. " * 12)
    first = model.start(turn).wait()
    longer = [*turn, *first.tokens, *model.tokens(" And then?")]
    cached = model.start(longer).wait()
    assert cached.finish.usage.cached_tokens >= len(turn) + len(first.tokens) - 1
    context, fresh = serve(lane, "fresh", model.model)
    try:
        plain = fresh.start(longer).wait()
        assert plain.finish.usage.cached_tokens == 0
        assert_same_text(plain, cached)
        # Several at once: one computes the prompt, the others share its cells.
        together = [fresh.start([*longer, *fresh.tokens(text)]) for text in PROMPTS[:4]]
        assert all(reader.wait().finish.usage.cached_tokens >= len(longer) - 1 for reader in together)
        alone = [fresh.start([*longer, *fresh.tokens(text)]).wait() for text in PROMPTS[:4]]
        for reader, lonely in zip(together, alone, strict=True):
            assert_same_text(reader, lonely)
    finally:
        lane.detach(fresh.engine).result(30)
        context.close()


def test_too_few_cells_cost_time_and_no_text(served: dict[str, Served], lane: Lane) -> None:
    model = served[NAMES[0]]
    prompts = [model.tokens(text) for text in PROMPTS[:4]]
    expected = [model.start(prompt, max_tokens=90, ignore_eos=True).wait() for prompt in prompts]
    context, tight = serve(lane, "tight", model.model, ctx_tokens=256, slots=4, batch_tokens=32)
    try:
        assert context.ctx_tokens == 256
        readers = [tight.start(prompt, max_tokens=90, ignore_eos=True) for prompt in prompts]
        for reader, alone in zip(readers, expected, strict=True):
            assert_same_text(reader, alone)
        assert tight.engine.stats.paused_total > 0
    finally:
        lane.detach(tight.engine).result(30)
        context.close()


def test_a_long_prompt_in_chunks_gives_the_text_of_one_batch(served: dict[str, Served], lane: Lane) -> None:
    model = served[NAMES[1]]
    prompt = model.tokens("The sea is wide and the ship is small. " * 10)
    assert len(prompt) > 64
    context, chunked = serve(lane, "chunked", model.model, batch_tokens=32)
    try:
        assert_same_text(chunked.start(prompt), model.start(prompt))
    finally:
        lane.detach(chunked.engine).result(30)
        context.close()


def test_the_context_bounds_prompt_and_answer(served: dict[str, Served], lane: Lane) -> None:
    model = served[NAMES[0]]
    context, small = serve(lane, "small", model.model, ctx_tokens=256, slots=2)
    try:
        with pytest.raises(PromptTooLong, match=f"holds {context.ctx_tokens}"):
            small.start([5] * (context.ctx_tokens + 1))
        full = small.start([5] * context.ctx_tokens, max_tokens=None, ignore_eos=True).wait()
        assert (len(full.tokens), full.finish.reason) == (1, "length")
        end = small.start([5] * (context.ctx_tokens - 20), max_tokens=None, ignore_eos=True).wait()
        assert (len(end.tokens), end.finish.reason) == (21, "length")
    finally:
        lane.detach(small.engine).result(30)
        context.close()


def test_logprobs_are_those_of_the_models_distribution(served: dict[str, Served]) -> None:
    model = served[NAMES[0]]
    reader = model.start(model.tokens(PROMPTS[0]), max_tokens=8, top_logprobs=3).wait()
    entries = entries_of(reader)
    assert [entry.token for entry in entries] == reader.tokens
    for entry in entries:
        assert entry.top[0][0] == entry.token
        assert [value for _, _, value in entry.top] == sorted((v for _, _, v in entry.top), reverse=True)
        assert -20 < entry.logprob <= 0
        assert np.exp([value for _, _, value in entry.top]).sum() <= 1.0001
    sampled = SamplingParams(temperature=0.5, repeat_penalty=1.5, seed=3)
    raw = model.start(model.tokens(PROMPTS[0]), sampling=sampled, max_tokens=1, top_logprobs=3).wait()
    # The first token's distribution is the model's, whatever the sampler does with it.
    (first,) = entries_of(raw)
    for (token, _, value), (other, _, expected) in zip(first.top, entries[0].top, strict=True):
        assert token == other
        assert value == pytest.approx(expected, abs=2e-2)


def test_logprobs_of_a_sampled_text_are_those_that_llama_cpp_python_computes(
    served: dict[str, Served],
) -> None:
    model = served[NAMES[1]]
    prompt = model.tokens(PROMPTS[0])
    biased = SamplingParams(temperature=0.9, repeat_penalty=1.3, seed=3)
    entries = entries_of(model.start(prompt, sampling=biased, max_tokens=20, ignore_eos=True, top_logprobs=5))
    assert len(entries) == 20
    avoid_traps(load())
    reference = llama_cpp.Llama(
        str(path_of(NAMES[1])), n_ctx=512, n_threads=1, n_threads_batch=1, verbose=False, logits_all=True
    )
    reference.eval([*prompt, *(entry.token for entry in entries)])
    for row, entry in enumerate(entries, len(prompt) - 1):
        logits = reference.scores[row].astype(np.float64)
        expected = logits - logits.max() - np.log(np.exp(logits - logits.max()).sum())
        assert entry.logprob == pytest.approx(expected[entry.token], abs=0.05)
        for token, _, logprob in entry.top:
            assert logprob == pytest.approx(expected[token], abs=0.05)
    reference.close()


def test_bytes_of_a_character_are_never_sent_alone(served: dict[str, Served]) -> None:
    model = served[NAMES[0]]
    data = "naïve €uro 🎈".encode()
    byte_tokens = {model.model.vocab.piece(token): token for token in range(model.model.n_vocab)}
    tokens = [byte_tokens[bytes([byte])] for byte in data if bytes([byte]) in byte_tokens]
    said = ""
    for token in tokens:
        biased = SamplingParams(temperature=0, logit_bias=((token, 1e4),))
        reader = model.start(model.tokens("x"), sampling=biased, max_tokens=3).wait()
        assert reader.tokens == [token] * 3
        assert reader.text == (model.model.vocab.piece(token) * 3).decode(errors="replace")
        said += reader.text
    assert said


def test_cancelling_frees_the_slots_for_the_next(served: dict[str, Served]) -> None:
    model = served[NAMES[0]]
    prompt = model.tokens(PROMPTS[0])
    expected = model.start(prompt).wait().tokens
    crowd = [model.start(prompt, max_tokens=None, ignore_eos=True) for _ in range(16)]
    assert crowd[0].began.wait(30)
    for reader in crowd:
        assert reader.sequence is not None
        reader.sequence.cancel()
    assert model.start(prompt).wait().tokens == expected


def test_stop_strings_end_a_real_text(served: dict[str, Served]) -> None:
    model = served[NAMES[0]]
    prompt = model.tokens(PROMPTS[0])
    text = model.start(prompt).wait().text
    stop = text[10:14]
    reader = model.start(prompt, stop=(stop,)).wait()
    assert reader.text == text[: text.index(stop)]
    assert (reader.finish.reason, reader.finish.stop_string) == ("stop", stop)


def test_embeddings_in_company_are_those_of_each_alone(lane: Lane) -> None:
    model = Model.open([path_of("embed")])
    context, embedder = serve(
        lane, "embed", model, ctx_tokens=512, slots=4, batch_tokens=512, embeddings=True
    )
    try:
        prompts = [embedder.tokens(text) for text in ("a fox", "the sea and the ship", "moon", "a crow", "x")]
        together = embedder.engine.embed(prompts).result(30)
        for prompt, vector in zip(prompts, together, strict=True):
            (alone,) = embedder.engine.embed([prompt]).result(30)
            np.testing.assert_allclose(vector, alone, atol=2e-3)
            assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-5)
        with pytest.raises(PromptTooLong):
            embedder.engine.embed([[5] * 513])
    finally:
        lane.detach(embedder.engine).result(30)
        context.close()
        model.close()
