from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tiny_gguf import sentence_piece, write_llama

from shardload.chat.grammar import schema_grammar
from shardload.engine.runner import Run
from shardload.engine.sampling import SamplingParams
from shardload.errors import HandleClosed, RequestError
from shardload.llama import Context, ContextParams, Model
from shardload.llama import sampler as sampler_module

PROMPT = [1, 260, 262, 270, 271, 265]


@pytest.fixture
def context(new_context: Callable[..., Context]) -> Context:
    """A context whose row 0 holds the logits after the prompt."""
    context = new_context()
    assert context.decode([Run(0, 0, PROMPT, "last")])
    return context


def draw(
    context: Context, count: int = 200, history: list[int] | None = None, **changes: object
) -> list[int]:
    with context.sampler(SamplingParams(**changes), history or PROMPT) as sampler:  # type: ignore[arg-type]
        return [sampler.sample(0) for _ in range(count)]


def probabilities(context: Context) -> np.ndarray:  # type: ignore[type-arg]
    logits = context.logits(0).astype(np.float64)
    weights = np.exp(logits - logits.max())
    return weights / weights.sum()


def test_zero_temperature_takes_the_maximum(context: Context) -> None:
    assert set(draw(context, 5, temperature=0.0)) == {int(context.logits(0).argmax())}
    assert set(draw(context, 5, temperature=-1.0, seed=3)) == {int(context.logits(0).argmax())}


def test_a_seed_repeats_and_its_absence_does_not(context: Context) -> None:
    settings = {"temperature": 2.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
    assert draw(context, seed=5, **settings) == draw(context, seed=5, **settings)
    assert draw(context, seed=5, **settings) != draw(context, seed=6, **settings)
    assert draw(context, **settings) != draw(context, **settings)
    assert draw(context, 3, seed=-1, **settings) == draw(context, 3, seed=-1, **settings)


def test_draws_follow_the_distribution(context: Context) -> None:
    drawn = draw(context, 4000, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, seed=1)
    expected = probabilities(context)
    likeliest = int(expected.argmax())
    assert Counter(drawn)[likeliest] / 4000 == pytest.approx(expected[likeliest], abs=0.03)


def test_cutting_the_tail(context: Context) -> None:
    order = np.argsort(-context.logits(0))
    wide = {"temperature": 5.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "seed": 2}
    assert set(draw(context, **wide | {"top_k": 3})) == {int(token) for token in order[:3]}
    assert set(draw(context, **wide | {"top_p": 1e-6})) == {int(order[0])}
    assert set(draw(context, **wide | {"min_p": 1.0})) == {int(order[0])}
    assert len(set(draw(context, **wide | {"typical_p": 0.05}))) < len(set(draw(context, **wide)))
    expected = probabilities(context)
    allowed = {int(token) for token in np.flatnonzero(expected >= 0.2 * expected.max())}
    assert set(draw(context, 500, **wide | {"min_p": 0.2})) <= allowed


def test_bias(context: Context) -> None:
    best = int(context.logits(0).argmax())
    assert set(draw(context, 5, temperature=0.0, logit_bias=((300 - 10, 1000.0),))) == {290}
    assert best not in draw(context, 5, temperature=0.0, logit_bias=((best, float("-inf")),))


def test_penalties_count_the_prompt(context: Context) -> None:
    best = int(context.logits(0).argmax())
    for penalty in ({"repeat_penalty": 1e6}, {"presence_penalty": 1e4}, {"frequency_penalty": 1e4}):
        assert best not in draw(context, 1, [*PROMPT, best], temperature=0.0, **penalty)
        assert draw(context, 1, [*PROMPT, best, *[7] * 70], temperature=0.0, **penalty) == [best]
        assert best not in draw(context, 1, [best, *[7] * 70], temperature=0.0, repeat_last_n=-1, **penalty)
        assert draw(context, 1, [best], temperature=0.0, repeat_last_n=0, **penalty) == [best]


def test_penalties_count_what_was_chosen(context: Context) -> None:
    drawn = draw(context, 20, temperature=0.0, presence_penalty=1e4)
    assert len(set(drawn)) == 20


def generate(context: Context, grammar: str, count: int, **changes: object) -> str:
    params = SamplingParams(grammar=grammar, **changes)  # type: ignore[arg-type]
    tokens: list[int] = []
    with context.sampler(params, PROMPT) as sampler:
        while len(tokens) < count:
            tokens.append(sampler.sample(0))
            if context.is_end(tokens[-1]):
                break
            assert context.decode([Run(0, len(PROMPT) + len(tokens) - 1, tokens[-1:], "last")])
    return b"".join(map(context.piece, tokens)).decode()


@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_grammars_are_followed(context: Context, temperature: float) -> None:
    text = generate(context, 'root ::= "the " ("cat" | "dog") [.!?]', 30, temperature=temperature, seed=4)
    assert text[:-1] in ("the cat", "the dog")
    assert text[-1] in ".!?"


def test_grammars_end_the_text(context: Context) -> None:
    assert generate(context, 'root ::= "é🙂"', 30, temperature=0.8, seed=1) == "é🙂"


@pytest.mark.parametrize(
    "grammar",
    [
        "root ::= (",
        "root = 3",
        "other ::= [a-z]",
        "root ::= root [a-z]",
        "root ::= " + "(" * 5000,
        "root ::= " + "[a-z]" * 50_000,
        'root ::= "a\0"',
    ],
)
def test_bad_grammars_are_the_requests_fault(context: Context, grammar: str) -> None:
    with pytest.raises(RequestError) as caught:
        context.sampler(SamplingParams(grammar=grammar), PROMPT)
    assert caught.value.param == "response_format"


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string", "maxLength": 1000},
        {"type": "array", "minItems": 2, "maxItems": 1000, "items": {"enum": ["a", "b"]}},
        {"type": "array", "maxItems": 100, "items": {"type": "array", "maxItems": 0, "items": {"const": 1}}},
        {"type": "string", "pattern": "^[0-9]{4}-[0-9]{2}-[0-9]{2}( [a-z]{1,20}){0,20}$"},
    ],
)
def test_schemas_with_counts_are_taken(context: Context, schema: dict[str, object]) -> None:
    with context.sampler(SamplingParams(grammar=schema_grammar(schema)), PROMPT) as sampler:
        sampler.sample(0)


def test_a_grammar_that_takes_too_long_ends_its_own_request(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampler_module, "GRAMMAR_SECONDS", -1.0)
    with pytest.raises(RequestError, match="in so many ways"):
        draw(context, 1, grammar="root ::= [a-z ]+")


def test_an_empty_grammar_is_none(context: Context) -> None:
    assert draw(context, 1, grammar="", temperature=0.0) == draw(context, 1, temperature=0.0)


def test_a_grammar_that_allows_nothing(tmp_path: Path) -> None:
    path = write_llama(tmp_path / "letters.gguf", tokens=sentence_piece(byte_tokens=False))
    with (
        Model.open([path]) as model,
        Context(model, ContextParams(ctx_tokens=256, threads=1, threads_batch=1)) as context,
    ):
        assert context.decode([Run(0, 0, model.vocab.tokenize("the"), "last")])
        for temperature in (0.0, 1.0):
            params = SamplingParams(grammar='root ::= "é"', temperature=temperature)
            with (
                context.sampler(params, []) as sampler,
                pytest.raises(RequestError, match="allows none"),
            ):
                sampler.sample(0)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", float("nan")),
        ("top_p", float("inf")),
        ("repeat_penalty", 0.0),
        ("repeat_penalty", float("inf")),
        ("frequency_penalty", float("nan")),
        ("logit_bias", ((10**6, 1.0),)),
        ("logit_bias", ((-1, 1.0),)),
        ("logit_bias", ((1, float("nan")),)),
    ],
)
def test_impossible_values_are_named(context: Context, field: str, value: object) -> None:
    with pytest.raises(RequestError) as caught:
        context.sampler(SamplingParams(**{field: value}), PROMPT)  # type: ignore[arg-type]
    assert caught.value.param == field


def test_everything_forbidden_is_survived(context: Context) -> None:
    bias = tuple((token, float("-inf")) for token in range(context.n_vocab))
    assert 0 <= draw(context, 1, logit_bias=bias)[0] < context.n_vocab
    assert 0 <= draw(context, 1, logit_bias=bias, temperature=0.0)[0] < context.n_vocab


@pytest.mark.parametrize(
    "settings",
    [{"repeat_last_n": 2**31 - 1, "repeat_penalty": 1.1}, {"top_k": 2**40, "temperature": 1e-300}],
)
def test_extreme_values_cost_neither_memory_nor_sense(context: Context, settings: dict[str, float]) -> None:
    assert draw(context, 1, seed=1, **{"top_k": 1, **settings}) == [int(context.logits(0).argmax())]


def test_next_to_no_temperature_takes_the_maximum(context: Context) -> None:
    settings = {"top_k": 0, "top_p": 1.0, "min_p": 0.0, "seed": 3}
    for temperature in (1e-6, 1e-20, 1e-40, 1e-300):
        best = int(context.logits(0).argmax())
        assert set(draw(context, 5, temperature=temperature, **settings)) == {best}


def test_closed_samplers_say_so(context: Context) -> None:
    sampler = context.sampler(SamplingParams(grammar="root ::= [a-z]"), PROMPT)
    sampler.close()
    sampler.close()
    with pytest.raises(HandleClosed):
        sampler.sample(0)


def test_rows_that_are_not_there(context: Context) -> None:
    with context.sampler(SamplingParams(), PROMPT) as sampler, pytest.raises(IndexError):
        sampler.sample(1)
