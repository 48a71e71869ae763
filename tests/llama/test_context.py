from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tiny_gguf import write_bert

from shardload.engine.runner import Run
from shardload.errors import DecodeFailed, HandleClosed, LoadFailed
from shardload.llama import Context, ContextParams, Model

PROMPT = [1, 260, 262, 270, 271, 265]


def greedy(context: Context, prompt: list[int], count: int, slot: int = 0) -> list[int]:
    assert context.decode([Run(slot, 0, prompt, "last")])
    tokens = [int(context.logits(0).argmax())]
    while len(tokens) < count:
        assert context.decode([Run(slot, len(prompt) + len(tokens) - 1, tokens[-1:], "last")])
        tokens.append(int(context.logits(0).argmax()))
    return tokens


def test_a_context_says_what_it_has(new_context: Callable[..., Context], model: Model) -> None:
    context = new_context(ctx_tokens=300, slots=3, batch_tokens=64)
    assert (context.ctx_tokens, context.slots, context.batch_tokens) == (300, 3, 64)
    assert context.n_vocab == model.n_vocab
    # Two layers, 512 cells after rounding up, 32 values of two bytes for keys and as many for values.
    assert context.kv_bytes == pytest.approx(2 * 512 * 2 * 32 * 2, abs=2**14)
    assert context.compute_bytes > 0


def test_logits_are_a_view_of_the_row(new_context: Callable[..., Context], model: Model) -> None:
    context = new_context()
    assert context.decode([Run(0, 0, PROMPT, "last"), Run(1, 0, PROMPT[:3], "last")])
    first, second = context.logits(0), context.logits(1)
    assert first.shape == second.shape == (model.n_vocab,)
    assert first.dtype == np.float32
    assert not first.flags.owndata
    assert not np.allclose(first, second)
    with pytest.raises(IndexError):
        context.logits(2)


def test_rows_are_in_the_order_of_the_runs(new_context: Callable[..., Context]) -> None:
    alone = new_context()
    expected = []
    for prompt in (PROMPT, PROMPT[::-1], PROMPT[:2]):
        assert alone.decode([Run(0, 0, prompt, "last")])
        expected.append(alone.logits(0).copy())
        assert alone.forget(0)
    together = new_context()
    runs = [Run(3, 0, PROMPT, "last"), Run(1, 0, PROMPT[::-1], "last"), Run(0, 0, PROMPT[:2], "last")]
    assert together.decode(runs)
    for row, logits in enumerate(expected):
        np.testing.assert_allclose(together.logits(row), logits, rtol=1e-3, atol=1e-3)


def test_greedy_tokens_equal_those_of_llama_cpp_python(
    new_context: Callable[..., Context], llama_path: Path, model: Model
) -> None:
    import llama_cpp

    reference = llama_cpp.Llama(str(llama_path), n_ctx=256, n_threads=1, n_threads_batch=1, verbose=False)
    generated = []
    for token in reference.generate(PROMPT, temp=0):
        generated.append(token)
        if len(generated) == 48:
            break
    reference.close()
    assert greedy(new_context(), PROMPT, 48) == generated
    assert len(set(generated)) > 3


def test_chunks_and_neighbours_do_not_change_the_text(new_context: Callable[..., Context]) -> None:
    expected = greedy(new_context(), PROMPT, 12)
    context = new_context()
    assert context.decode([Run(2, 0, PROMPT[:4], "none"), Run(0, 0, PROMPT[::-1], "last")])
    assert context.decode([Run(0, len(PROMPT), [280], "last"), Run(2, 4, PROMPT[4:], "last")])
    tokens = [int(context.logits(1).argmax())]
    for step in range(11):
        runs = [
            Run(2, len(PROMPT) + step, tokens[-1:], "last"),
            Run(0, len(PROMPT) + 1 + step, [281], "last"),
        ]
        assert context.decode(runs)
        tokens.append(int(context.logits(0).argmax()))
    assert tokens == expected


def test_forgetting_part_of_a_slot(new_context: Callable[..., Context]) -> None:
    context = new_context()
    expected = greedy(context, PROMPT, 6)
    assert context.forget(0, 3)
    assert context.decode([Run(0, 3, PROMPT[3:], "last")])
    assert int(context.logits(0).argmax()) == expected[0]
    assert context.forget(0)
    assert greedy(context, PROMPT, 6) == expected


def test_sharing_a_prefix(new_context: Callable[..., Context]) -> None:
    context = new_context()
    expected = greedy(context, PROMPT, 3)
    context.share(0, 1, 4)
    assert context.decode([Run(1, 4, PROMPT[4:], "last")])
    assert int(context.logits(0).argmax()) == expected[0]
    assert context.forget(0)
    assert context.decode([Run(1, len(PROMPT), expected[:1], "last")])
    assert int(context.logits(0).argmax()) == expected[1]


def test_no_room_is_not_an_error(new_context: Callable[..., Context]) -> None:
    context = new_context(ctx_tokens=256, batch_tokens=256)
    assert context.decode([Run(0, 0, [260] * 250, "last")])
    assert not context.decode([Run(1, 0, [260] * 20, "last")])
    with pytest.raises(IndexError):
        context.logits(0)
    assert context.forget(0)
    assert context.decode([Run(1, 0, [260] * 20, "last")])


def test_what_llama_cpp_refuses_is_an_exception(new_context: Callable[..., Context]) -> None:
    context = new_context()
    with pytest.raises(DecodeFailed) as caught:
        context.decode([Run(0, 0, [10**6], "last")])
    assert caught.value.status < 0
    assert context.decode([Run(0, 0, PROMPT, "last")])
    with pytest.raises(DecodeFailed):
        context.decode([Run(0, 77, PROMPT, "last")])  # a hole in the sequence


def test_misuse_does_not_reach_llama_cpp(new_context: Callable[..., Context]) -> None:
    context = new_context(slots=2)
    with pytest.raises(ValueError, match="outputs wanted"):
        context.decode([Run(0, 0, PROMPT, "all")])
    with pytest.raises(ValueError, match="slot 2"):
        context.forget(2)
    with pytest.raises(ValueError, match="slot -1"):
        context.share(0, -1, 3)
    with pytest.raises(IndexError):
        context.decode([Run(2, 0, PROMPT, "last")])
    split = new_context(slots=2, kv_unified=False)
    with pytest.raises(ValueError, match="unified"):
        split.share(0, 1, 2)


def test_a_context_that_cannot_be_made(model: Model) -> None:
    with pytest.raises(LoadFailed, match="n_seq_max"):
        Context(model, ContextParams(ctx_tokens=256, slots=100_000, threads=1, threads_batch=1))


def test_closed_contexts_say_so(new_context: Callable[..., Context]) -> None:
    context = new_context()
    context.close()
    context.close()
    for use in (
        lambda: context.decode([Run(0, 0, PROMPT, "last")]),
        lambda: context.logits(0),
        lambda: context.forget(0),
        lambda: context.embedding(0),
    ):
        with pytest.raises((HandleClosed, IndexError)):
            use()


@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
def test_pooled_embeddings(new_context: Callable[..., Context], model: Model, pooling: str) -> None:
    context = new_context(embeddings=True, pooling=pooling)
    assert context.decode([Run(0, 0, PROMPT, "all"), Run(2, 0, PROMPT[2:5], "all")])
    first, second = context.embedding(0), context.embedding(2)
    assert first.shape == (model.n_embd,)
    assert first.flags.owndata
    assert not np.allclose(first, second)
    with pytest.raises(ValueError, match="slot 1"):
        context.embedding(1)
    tokens = new_context(embeddings=True, pooling="none")
    assert tokens.decode([Run(0, 0, PROMPT, "all")])
    rows = tokens.token_embeddings(len(PROMPT))
    expected = {"mean": rows.mean(axis=0), "cls": rows[0], "last": rows[-1]}[pooling]
    np.testing.assert_allclose(first, expected, rtol=1e-3, atol=1e-4)


def test_unpooled_embeddings_of_a_pooling_context(new_context: Callable[..., Context]) -> None:
    context = new_context(embeddings=True, pooling="none")
    assert context.decode([Run(0, 0, PROMPT, "all")])
    with pytest.raises(ValueError, match="no pooled embedding"):
        context.embedding(0)


def test_a_ranking_context_gives_its_scores_and_no_more(new_context: Callable[..., Context]) -> None:
    context = new_context(embeddings=True, pooling="rank")
    assert context.decode([Run(0, 0, PROMPT, "all")])
    assert context.pooled
    assert context.embedding(0).shape == (1,)


def test_encoders(tmp_path: Path) -> None:
    with (
        Model.open([write_bert(tmp_path / "bert.gguf", context=100)]) as model,
        Context(
            model,
            ContextParams(ctx_tokens=512, slots=2, threads=1, threads_batch=1, embeddings=True),
        ) as context,
    ):
        assert model.pooling == "mean"
        assert context.ctx_tokens == 100  # the table of positions ends there
        tokens = model.vocab.tokenize("the dog ran")
        assert context.decode([Run(0, 0, tokens, "all"), Run(1, 0, model.vocab.tokenize("cat"), "all")])
        dog, cat = context.embedding(0), context.embedding(1)
        assert not np.allclose(dog, cat)
        assert context.forget(0)
        assert context.decode([Run(1, 0, tokens, "all")])
        np.testing.assert_allclose(context.embedding(1), dog, rtol=1e-3, atol=1e-4)
