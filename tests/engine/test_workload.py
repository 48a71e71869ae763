from __future__ import annotations

from collections.abc import Sequence

import pytest
from fakes import BEGIN, END, FakeRunner, FakeVocab
from hypothesis import given, settings
from hypothesis import strategies as st
from turned_lane import TurnedLane

from shardload.engine import Lane, Run, SamplingParams, workload
from shardload.errors import DecodeFailed, NativeError, PromptTooLong, RequestError

VOCAB = FakeVocab()


def says(text: str) -> FakeRunner:
    return FakeRunner(reply=lambda prompt: text)


def test_a_sequence_says_what_the_model_says_and_stops_by_itself(bench: TurnedLane) -> None:
    runner = says("Grüße, 世界!")
    reader = bench.submit(bench.attach(runner), VOCAB.tokenize("Hi"))
    bench.run()
    assert reader.text == "Grüße, 世界!"
    assert bytes(reader.tokens) == "Grüße, 世界!".encode()
    assert (reader.finish.reason, reader.finish.stop_string) == ("stop", None)
    usage = reader.finish.usage
    assert (usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens) == (3, 16, 0)
    assert [delta.finish for delta in reader.deltas[:-1]] == [None] * (len(reader.deltas) - 1)
    timings = reader.finish.timings
    assert min(timings.queued_seconds, timings.prompt_seconds, timings.decode_seconds) >= 0


def test_stop_strings_end_the_text_before_them(bench: TurnedLane) -> None:
    engine = bench.attach(says("one two three"))
    reader = bench.submit(engine, [1], stop=("wo t", "never"))
    bench.run()
    assert reader.text == "one t"
    assert (reader.finish.reason, reader.finish.stop_string) == ("stop", "wo t")
    assert engine.stats.running == 0


def test_max_tokens_ends_with_length_and_gives_what_was_held_back(bench: TurnedLane) -> None:
    engine = bench.attach(says("abc€"))
    reader = bench.submit(engine, [1], max_tokens=3, stop=("cd",))
    torn = bench.submit(engine, [1], max_tokens=4)
    bench.run()
    assert (reader.text, reader.finish.reason, len(reader.tokens)) == ("abc", "length", 3)
    assert (torn.text, torn.finish.reason) == ("abc�", "length")


def test_no_tokens_asked_for_is_no_work(bench: TurnedLane) -> None:
    runner = says("abc")
    reader = bench.submit(bench.attach(runner), [1, 2], max_tokens=0)
    bench.run()
    assert (reader.text, reader.finish.reason, reader.finish.usage.prompt_tokens) == ("", "length", 2)
    assert runner.steps == []


def test_ignore_eos_goes_on_and_shows_no_end_token(bench: TurnedLane) -> None:
    reader = bench.submit(bench.attach(says("ab")), [1], ignore_eos=True, max_tokens=5)
    bench.run()
    assert (reader.text, reader.finish.reason) == ("ab", "length")
    assert reader.tokens == [97, 98, END, END, END]
    told = bench.submit(bench.attach(says("ab")), [1], ignore_eos=True, max_tokens=5, top_logprobs=0)
    bench.run()
    assert [entry.token for delta in told.deltas for entry in delta.logprobs] == told.tokens == reader.tokens


def test_a_full_context_ends_with_length(bench: TurnedLane) -> None:
    runner = FakeRunner(ctx_tokens=16, reply=lambda prompt: "x" * 100)
    reader = bench.submit(bench.attach(runner), list(range(10)))
    bench.run()
    # Positions 10 to 15 have cells; the token after the last cell is sampled as well.
    assert (len(reader.tokens), reader.finish.reason) == (7, "length")


def test_a_prompt_may_fill_the_context_and_not_exceed_it(bench: TurnedLane) -> None:
    engine = bench.attach(FakeRunner(ctx_tokens=16, reply=lambda prompt: "xyz"))
    reader = bench.submit(engine, [1] * 16)
    bench.run()
    assert (reader.text, reader.finish.reason) == ("x", "length")
    with pytest.raises(PromptTooLong, match="17 tokens and the context holds 16"):
        bench.submit(engine, [1] * 17)


@pytest.mark.parametrize(
    ("prompt", "options", "words"),
    [
        ([], {}, "empty"),
        ([1, 9999], {}, "token 9999 is not in the vocabulary of 258"),
        ([-1], {}, "token -1"),
        ([1], {"max_tokens": -1}, "negative"),
        ([1], {"sampling": SamplingParams(logit_bias=((700, 1.0),))}, "token 700"),
    ],
)
def test_what_cannot_be_computed_is_refused_at_once(
    bench: TurnedLane, prompt: list[int], options: dict[str, object], words: str
) -> None:
    engine = bench.attach(says("x"))
    with pytest.raises(RequestError, match=words):
        bench.submit(engine, prompt, **options)


def test_a_bad_grammar_fails_its_own_sequence_only(bench: TurnedLane) -> None:
    engine = bench.attach(says("fine"))
    bad = bench.submit(engine, [1], sampling=SamplingParams(grammar="bad"))
    good = bench.submit(engine, [1])
    bench.run()
    with pytest.raises(RequestError, match="grammar"):
        _ = bad.finish
    assert good.text == "fine"


def test_samplers_see_the_prompt_and_are_closed_at_every_end(bench: TurnedLane) -> None:
    runner = FakeRunner()
    engine = bench.attach(runner)
    warm = SamplingParams(temperature=1.0)
    ended = bench.submit(engine, [5, 6], sampling=warm, max_tokens=3)
    bench.lane.turn()
    assert [sampler.history[:2] for sampler in runner.open_samplers] == [[5, 6]]
    bench.run()
    assert len(ended.tokens) == 3
    left = bench.submit(engine, [7], sampling=warm)
    bench.lane.turn()
    assert left.sequence is not None
    left.sequence.cancel()
    bench.run()
    assert not runner.open_samplers


def test_sequences_are_batched_and_each_is_right(bench: TurnedLane) -> None:
    runner = FakeRunner(slots=4)
    engine = bench.attach(runner)
    prompts = [[number, *range(40 + number)] for number in range(6)]
    readers = [bench.submit(engine, prompt, max_tokens=12) for prompt in prompts]
    bench.run()
    for prompt, reader in zip(prompts, readers, strict=True):
        assert reader.tokens == runner.expected(prompt, 12)
    assert max(len(runs) for runs in runner.steps) == 4
    assert sum(len(runs) for runs in runner.steps) > 2 * len(runner.steps)


def test_a_long_prompt_costs_others_one_chunk_at_a_time(bench: TurnedLane) -> None:
    runner = FakeRunner(ctx_tokens=4096, batch_tokens=512, reply=lambda prompt: "x" * 50)
    engine = bench.attach(runner)
    talker = bench.submit(engine, [1], max_tokens=30)
    bench.run(until=talker.began.is_set)
    reader = bench.submit(engine, [2] * 1000, max_tokens=1)
    bench.run()
    assert len(reader.tokens) == 1
    mixed = [runs for runs in runner.steps[1:] if sum(len(run.tokens) for run in runs) > 1]
    assert len(mixed) == 8
    assert all(len(runs) == 2 and len(runs[0].tokens) == 1 and len(runs[1].tokens) <= 128 for runs in mixed)


def test_alone_a_long_prompt_gets_the_whole_batch(bench: TurnedLane) -> None:
    runner = FakeRunner(ctx_tokens=4096, batch_tokens=512)
    bench.submit(bench.attach(runner), [2] * 1100, max_tokens=1)
    bench.run()
    assert [len(runs[0].tokens) for runs in runner.steps] == [512, 512, 76]
    assert [runs[0].want for runs in runner.steps] == ["none", "none", "last"]


def test_chunks_shrink_where_computing_is_slow(bench: TurnedLane, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(workload, "perf_counter", lambda: now[0])
    runner = FakeRunner(ctx_tokens=4096, batch_tokens=512, reply=lambda prompt: "x" * 90)

    def take_time(runs: Sequence[Run]) -> None:
        now[0] += 0.01 * sum(len(run.tokens) for run in runs)

    runner.on_decode = take_time
    engine = bench.attach(runner)
    bench.submit(engine, [1] * 900, max_tokens=1)
    bench.run()
    # The first was a guess; from then on about two seconds each.
    assert [sum(len(run.tokens) for run in runs) for runs in runner.steps][:2] == [512, 200]
    talker = bench.submit(engine, [3], max_tokens=40)
    bench.run(until=talker.began.is_set)
    began = len(runner.steps)
    bench.submit(engine, [2] * 200, max_tokens=1)
    bench.run()
    chunks = [len(runs[1].tokens) for runs in runner.steps[began:] if len(runs) == 2]
    assert 16 <= max(chunks) <= 30


def test_a_failed_decode_ends_its_own_sequences_only(bench: TurnedLane) -> None:
    broken, sound = FakeRunner(fail_steps=[3]), FakeRunner()
    engine, other = bench.attach(broken, "broken"), bench.attach(sound, "sound")
    lost = [bench.submit(engine, [number] * 5, max_tokens=30) for number in (1, 2)]
    kept = bench.submit(other, [3] * 5, max_tokens=10)
    bench.run()
    for reader in lost:
        with pytest.raises(DecodeFailed):
            _ = reader.finish
    assert kept.tokens == sound.expected([3] * 5, 10)
    again = bench.submit(engine, [1] * 5, max_tokens=10)
    bench.run()
    assert again.tokens == broken.expected([1] * 5, 10)
    assert again.finish.usage.cached_tokens == 0


def test_an_unexpected_exception_is_an_error_of_its_sequence(bench: TurnedLane) -> None:
    runner = FakeRunner(slots=2)
    engine = bench.attach(runner)
    piece = runner.piece

    def torn(token: int) -> bytes:
        if token == runner.expected([1], 1)[0]:
            raise KeyError(token)
        return piece(token)

    runner.piece = torn  # type: ignore[method-assign]
    hurt, fine = bench.submit(engine, [1], max_tokens=1), bench.submit(engine, [4], max_tokens=1)
    bench.run()
    with pytest.raises(NativeError, match="KeyError"):
        _ = hurt.finish
    assert fine.tokens == runner.expected([4], 1)


def test_a_cancelled_sequence_frees_its_slot_before_the_next_step(bench: TurnedLane) -> None:
    runner = FakeRunner(slots=1)
    engine = bench.attach(runner)
    first = bench.submit(engine, [1] * 5)
    second = bench.submit(engine, [2] * 5, max_tokens=4)
    third = bench.submit(engine, [3] * 5, max_tokens=4)
    bench.run(until=lambda: len(first.deltas) >= 2)
    assert first.sequence is not None
    assert second.sequence is not None
    steps, heard = len(runner.steps), len(first.deltas)
    first.sequence.cancel()
    second.sequence.cancel()
    bench.lane.turn()
    assert [tuple(run.tokens) for run in runner.steps[steps]] == [(3,) * 5]
    bench.run()
    assert len(first.deltas) == heard
    assert not second.deltas
    assert third.tokens == runner.expected([3] * 5, 4)


def test_logprobs_are_those_of_the_raw_distribution(bench: TurnedLane) -> None:
    runner = FakeRunner()
    engine = bench.attach(runner)
    bias = SamplingParams(temperature=0, logit_bias=((90, 100.0),))
    reader = bench.submit(engine, [1], sampling=bias, max_tokens=2, top_logprobs=3)
    plain = bench.submit(engine, [2], max_tokens=2, top_logprobs=0)
    bench.run()
    entries = [entry for delta in reader.deltas for entry in delta.logprobs]
    assert [(entry.token, entry.text, entry.raw) for entry in entries] == [(90, "Z", b"Z")] * 2
    assert entries[0].logprob < entries[0].top[0][2]
    assert [len(entry.top) for entry in entries] == [3, 3]
    chosen = [entry for delta in plain.deltas for entry in delta.logprobs]
    assert [entry.token for entry in chosen] == plain.tokens
    assert [entry.top for entry in chosen] == [(), ()]
    assert not [delta for delta in bench.submit(engine, [3], max_tokens=1).deltas if delta.logprobs]


def test_logprobs_end_where_the_text_ends(bench: TurnedLane) -> None:
    reader = bench.submit(bench.attach(says("abcde")), [1], stop=("cd",), top_logprobs=0)
    bench.run()
    assert reader.text == "ab"
    assert "".join(entry.text for delta in reader.deltas for entry in delta.logprobs) == "ab"


def test_counters_follow_the_work(bench: TurnedLane) -> None:
    runner = says("abc")
    engine = bench.attach(runner)
    bench.submit(engine, [BEGIN, 1, 2])
    bench.run()
    stats = engine.stats
    assert (stats.queued, stats.running, stats.decode_steps_total) == (0, 0, len(runner.steps))
    assert stats.compute_seconds_total > 0


WAYS = ("read", "read", "slow", "cancelled")
prompts = st.lists(st.integers(0, 3), min_size=1, max_size=60)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(prompts, st.integers(1, 25), st.sampled_from(WAYS), st.booleans(), st.integers(0, 12)),
        max_size=10,
    ),
    st.integers(1, 4),
    st.integers(1, 40),
    st.booleans(),
)
def test_every_sequence_gets_its_own_text_whatever_happens(
    work: list[tuple[list[int], int, str, bool, int]], slots: int, batch_tokens: int, recurrent: bool
) -> None:
    """Cancellations, slow readers, tiny caches: each token depends on every KV cell of its slot."""
    lane = Lane(output_limit_tokens=4)
    bench = TurnedLane(lane)
    runner = FakeRunner(ctx_tokens=90, slots=slots, batch_tokens=batch_tokens, recurrent=recurrent)
    engine = bench.attach(runner)
    readers = []
    for prompt, max_tokens, way, seeded, turns in work:
        sampling = SamplingParams(temperature=0, seed=1 if seeded else None)
        reader = bench.submit(engine, prompt, max_tokens=max_tokens, sampling=sampling, slow=way == "slow")
        readers.append((reader, prompt, max_tokens, way))
        for _ in range(turns):
            lane.turn()
        if way == "cancelled" and reader.sequence is not None:
            reader.sequence.cancel()
    bench.run()
    assert all(reader.ended.is_set() for reader, _, _, way in readers if way == "read")
    for reader, *_ in readers:
        if reader.slow and reader.sequence is not None:
            reader.slow = False
            reader.sequence.acknowledge(len(reader.deltas))
    bench.run()
    for reader, prompt, max_tokens, way in readers:
        expected = runner.expected(prompt, min(max_tokens, 91 - len(prompt)))
        if way == "cancelled":
            assert reader.tokens == expected[: len(reader.tokens)]
        else:
            assert reader.tokens == expected
            assert reader.ended.is_set()
    assert (engine.stats.queued, engine.stats.running) == (0, 0)
    lane.close()
