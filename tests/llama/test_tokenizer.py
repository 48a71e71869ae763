from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from copied_gguf import copy_model, split_model
from tiny_gguf import sentence_piece, write_bert, write_llama

from shardload import memory
from shardload.demo import demo_folder
from shardload.engine.runner import Run
from shardload.engine.sampling import SamplingParams
from shardload.errors import HandleClosed, RequestError, UnencodableText
from shardload.llama import Context, ContextParams, Model, Vocab
from shardload.llama.tokenizer import SharedVocabularies, shared_vocabularies
from shardload_native.library import load

TEXTS = ("the end", " a  b\n\n", "ünïcode 🙂", "</s> <s>the", "", "1234 and 5,678.9", "T" * 300)


def says(vocab: Vocab) -> dict[str, Any]:
    """All that a vocabulary answers."""
    return {
        "facts": [vocab.kind, vocab.n_tokens, vocab.bos, vocab.eos, vocab.eot, vocab.add_bos, vocab.add_eos],
        "alphabet": vocab.alphabet,
        "pieces": [vocab.piece(token) for token in range(vocab.n_tokens)],
        "special": [vocab.piece(token, special=True) for token in range(vocab.n_tokens)],
        "ends": [token for token in range(vocab.n_tokens) if vocab.is_end(token)],
        "tokens": [
            tokens_or_why_not(vocab, text, add_special=special, parse_special=parsed)
            for text in TEXTS
            for special in (False, True)
            for parsed in (False, True)
        ],
        "suppressed": suppressed(vocab),
    }


def tokens_or_why_not(vocab: Vocab, text: str, **how: bool) -> list[int] | str:
    try:
        return vocab.tokenize(text, **how)
    except UnencodableText as error:
        return str(error)


def suppressed(vocab: Vocab) -> list[int]:
    llama = load()
    count = llama.ffi.new("int32_t *")
    tokens = llama.lib.llama_vocab_get_suppress_tokens(vocab.pointer, count)
    return [tokens[at] for at in range(count[0])]


def first_logits(model: Model) -> np.ndarray[Any, np.dtype[np.float32]]:
    with Context(model, ContextParams(ctx_tokens=256, threads=1, threads_batch=1)) as context:
        assert context.decode([Run(0, 0, model.vocab.tokenize("the end"), "last")])
        return context.logits(0).copy()


def test_models_of_one_tokenizer_have_one_vocabulary(
    two_paths: tuple[Path, Path], shared: SharedVocabularies, tmp_path: Path
) -> None:
    other = write_llama(tmp_path / "c.gguf", tokens=sentence_piece(special=("<|user|>",)))
    with (
        Model.open([two_paths[0]]) as first,
        Model.open([two_paths[1]]) as second,
        Model.open([other]) as third,
    ):
        assert len(shared) == 2
        assert first.vocab is not second.vocab
        assert first.vocab.pointer == second.vocab.pointer != third.vocab.pointer
        assert first.vocab.control_tokens is second.vocab.control_tokens
        for model in (first, second, third):
            # The model itself has the size and nothing else.
            empty = model.llama.lib.llama_model_get_vocab(model.pointer)
            assert empty != model.vocab.pointer
            assert model.llama.lib.llama_vocab_n_tokens(empty) == model.n_vocab == model.vocab.n_tokens
            assert model.llama.lib.llama_vocab_type(empty) == 0


@pytest.mark.parametrize(
    "write",
    [
        lambda path: write_llama(path),
        lambda path: write_llama(path, tokens=sentence_piece(byte_tokens=False, special=("<|end|>",))),
        lambda path: copy_model(
            write_llama(path.with_suffix(".source"), tokens=sentence_piece(byte_tokens=False)),
            path,
            lambda writer: writer.add_add_space_prefix(False),
        ),
        lambda path: write_llama(path, splitting="deepseek-llm", add_bos=False),
        lambda path: write_llama(path, splitting="llama-bpe"),
    ],
    ids=[
        "sentence pieces",
        "letters",
        "letters, no blank in front",
        "byte pairs",
        "byte pairs, other splitting",
    ],
)
def test_a_shared_vocabulary_says_what_the_own_one_says(
    write: Callable[[Path], Path], tmp_path: Path, shared: SharedVocabularies, own: Callable[..., Model]
) -> None:
    path = write(tmp_path / "m.gguf")
    with own(path) as alone, Model.open([path]) as sharing:
        assert len(shared) == 1
        assert says(sharing.vocab) == says(alone.vocab)
        np.testing.assert_array_equal(first_logits(sharing), first_logits(alone))


def test_demo_models_say_what_they_said(shared: SharedVocabularies, own: Callable[..., Model]) -> None:
    for path in sorted(demo_folder().glob("*.gguf")):
        with own(path) as alone, Model.open([path]) as sharing:
            assert len(shared) == 1
            assert says(sharing.vocab) == says(alone.vocab)
            if sharing.has_decoder and sharing.pooling is None:
                np.testing.assert_array_equal(first_logits(sharing), first_logits(alone))


def test_encoders_keep_their_token_types(
    tmp_path: Path, shared: SharedVocabularies, own: Callable[..., Model]
) -> None:
    path = write_bert(tmp_path / "bert.gguf")
    found = []
    for model in (own(path), Model.open([path])):
        params = ContextParams(ctx_tokens=64, batch_tokens=64, threads=1, threads_batch=1, embeddings=True)
        with model, Context(model, params) as context:
            assert context.decode([Run(0, 0, model.vocab.tokenize("The dog ran."), "all")])
            found.append((says(model.vocab), context.embedding(0)))
    assert found[0][0] == found[1][0]
    np.testing.assert_array_equal(found[0][1], found[1][1])


@pytest.mark.parametrize("first_closed", [0, 1])
def test_closed_in_either_order(
    two_paths: tuple[Path, Path], shared: SharedVocabularies, first_closed: int
) -> None:
    models = [Model.open([path]) for path in two_paths]
    expected = models[0].vocab.tokenize("the end")
    gone, stays = models[first_closed], models[1 - first_closed]
    gone.close()
    for use in (
        lambda: gone.vocab.tokenize("the end"),
        lambda: gone.vocab.piece(5),
        lambda: gone.vocab.alphabet,
        lambda: gone.vocab.control_tokens,
        lambda: gone.vocab.is_end(2),
    ):
        with pytest.raises(HandleClosed, match=gone.path.name):
            use()
    assert len(shared) == 1
    assert stays.vocab.tokenize("the end") == expected
    assert first_logits(stays).shape == (stays.n_vocab,)
    stays.close()
    with pytest.raises(HandleClosed, match=stays.path.name):
        stays.vocab.tokenize("the end")
    assert len(shared) == 0


def test_one_closes_while_the_other_tokenizes(
    two_paths: tuple[Path, Path], shared: SharedVocabularies
) -> None:
    text = "the end of it, " * 200
    with Model.open([two_paths[1]]) as stays:
        expected = stays.vocab.tokenize(text)
        begun, enough = threading.Event(), threading.Event()

        def work() -> int:
            rounds = 0
            while not enough.is_set():
                assert stays.vocab.tokenize(text) == expected
                rounds += 1
                begun.set()
            return rounds

        with ThreadPoolExecutor(1) as pool:
            rounds = pool.submit(work)
            try:
                assert begun.wait(60)
                for _ in range(20):
                    with Model.open([two_paths[0]]) as goes:
                        assert goes.vocab.pointer == stays.vocab.pointer
            finally:
                enough.set()
            assert rounds.result() > 0


def test_a_process_has_one_of_each(two_paths: tuple[Path, Path]) -> None:
    assert shared_vocabularies() is shared_vocabularies()
    with Model.open([two_paths[0]]) as first, Model.open([two_paths[1]]) as second:
        assert first.vocab.pointer == second.vocab.pointer
        assert len(shared_vocabularies()) > 0


def test_a_context_keeps_the_vocabulary(two_paths: tuple[Path, Path], shared: SharedVocabularies) -> None:
    model = Model.open([two_paths[0]])
    context = Context(model, ContextParams(ctx_tokens=256, threads=1, threads_batch=1))
    model.close()
    assert context.vocab.tokenize("the")
    assert context.is_end(2)
    context.close()
    with pytest.raises(HandleClosed):
        context.vocab.tokenize("the")


def test_samplers_read_the_shared_vocabulary(tmp_path: Path, shared: SharedVocabularies) -> None:
    path = write_llama(tmp_path / "m.gguf")
    with Model.open([path]) as model:
        wanted = model.vocab.tokenize("the end", add_special=False)
        context = Context(model, ContextParams(ctx_tokens=256, threads=1, threads_batch=1))
        params = SamplingParams(
            temperature=0, repeat_penalty=1.1, logit_bias=((5, 2.0),), grammar='root ::= " the end"'
        )
        with context, context.sampler(params, [1]) as sampler:
            text, history = b"", [1]
            while True:
                assert context.decode([Run(0, len(history) - 1, history[-1:], "last")])
                history.append(sampler.sample(0))
                if context.is_end(history[-1]):
                    break
                text += context.piece(history[-1])
            assert text == b" the end"
            assert len(history) > len(wanted)
        with (
            Context(model, ContextParams(ctx_tokens=256, threads=1, threads_batch=1)) as another,
            pytest.raises(RequestError, match="not valid"),
        ):
            another.sampler(SamplingParams(grammar="root ::= <"), [1])


def test_suppressed_tokens_are_never_chosen(tmp_path: Path, shared: SharedVocabularies) -> None:
    plain = write_llama(tmp_path / "plain.gguf")
    with Model.open([plain]) as model:
        best = int(first_logits(model).argmax())
    path = copy_model(
        plain,
        tmp_path / "suppressing.gguf",
        lambda writer: writer.add_array("tokenizer.ggml.suppress_tokens", [best]),
    )
    with (
        Model.open([path]) as model,
        Context(model, ContextParams(ctx_tokens=256, threads=1, threads_batch=1)) as context,
    ):
        assert suppressed(model.vocab) == [best]
        assert context.decode([Run(0, 0, model.vocab.tokenize("the end"), "last")])
        assert int(context.logits(0).argmax()) == best
        with context.sampler(SamplingParams(temperature=0), [1]) as sampler:
            assert sampler.sample(0) != best


def test_split_models_share_with_whole_ones(two_paths: tuple[Path, Path], shared: SharedVocabularies) -> None:
    parts = [two_paths[0].parent / f"m-0000{number + 1}-of-00002.gguf" for number in (0, 1)]
    split_model(two_paths[0], parts)
    with Model.open(parts) as split, Model.open([two_paths[0]]) as whole:
        assert split.vocab.pointer == whole.vocab.pointer
        np.testing.assert_array_equal(first_logits(split), first_logits(whole))


def test_parts_with_other_names_are_opened_too(
    two_paths: tuple[Path, Path], shared: SharedVocabularies
) -> None:
    parts = [two_paths[0].parent / f"{name}.gguf" for name in ("front", "back")]
    split_model(two_paths[0], parts)
    with Model.open(parts) as split:
        assert split.vocab.tokenize("the")


def test_further_models_take_little_memory(
    tmp_path: Path, shared: SharedVocabularies, own: Callable[..., Model]
) -> None:
    words = [(f"{letter}{number}", -float(number), 1) for letter in "xyz" for number in range(5000)]
    path = write_llama(tmp_path / "large.gguf", tokens=sentence_piece() + words, dim=32, layers=1)

    def grown(opened: Callable[[Path], Model]) -> int:
        with opened(path):
            memory.trim_heap()
            before = memory.process_memory().anonymous_bytes
            models = [opened(path) for _ in range(8)]
            memory.trim_heap()
            after = memory.process_memory().anonymous_bytes
            for model in models:
                model.close()
            return after - before

    alone, sharing = grown(own), grown(lambda file: Model.open([file]))
    assert sharing < alone / 2
