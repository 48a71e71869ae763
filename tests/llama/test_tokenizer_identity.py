from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import pytest

from shardload.gguf import GGUFFile
from shardload.llama.tokenizer_identity import TokenizerIdentity, identify

TOKENS = ["<unk>", "<s>", "</s>", "the", "end"]
Change = Callable[[gguf.GGUFWriter], Any]


@pytest.fixture
def identity_of(tmp_path: Path) -> Callable[..., TokenizerIdentity | None]:
    """Identifies a header with a small vocabulary, and what a test changes in it."""

    def write(
        *changes: Change,
        architecture: str = "llama",
        name: str = "a model",
        kind: str = "llama",
        tokens: list[str] | None = TOKENS,
        scores: list[float] | None = None,
    ) -> TokenizerIdentity | None:
        path = tmp_path / "header.gguf"
        writer = gguf.GGUFWriter(str(path), architecture)
        writer.add_name(name)
        writer.add_tokenizer_model(kind)
        if tokens is not None:
            writer.add_token_list(tokens)
            writer.add_token_scores(scores or [0.0] * len(tokens))
        for change in changes:
            change(writer)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.close()
        with GGUFFile(path) as file:
            return identify(file)

    return write


def digest(identity: TokenizerIdentity | None) -> str:
    assert identity is not None
    return identity.digest


def test_what_an_identity_says(identity_of: Callable[..., TokenizerIdentity | None]) -> None:
    identity = identity_of(architecture="qwen3")
    assert identity is not None
    assert (identity.n_tokens, identity.architecture) == (5, "qwen3")


@pytest.mark.parametrize(
    "changed",
    [
        {"name": "another model"},
        {"architecture": "mistral3"},
        {"changes": [lambda writer: writer.add_chat_template("{{ messages }}")]},
        {"changes": [lambda writer: writer.add_chat_template([{"name": "tool_use", "template": "x"}])]},
        {"changes": [lambda writer: writer.add_context_length(4096)]},
        {"changes": [lambda writer: writer.add_vocab_size(5)]},
    ],
)
def test_fine_tunes_have_the_same_tokenizer(
    identity_of: Callable[..., TokenizerIdentity | None], changed: dict[str, Any]
) -> None:
    changes = changed.pop("changes", [])
    assert digest(identity_of(*changes, **changed)) == digest(identity_of())


@pytest.mark.parametrize(
    "changed",
    [
        {"tokens": ["<unk>", "<s>", "</s>", "the", "and"]},
        {"tokens": ["<unk>", "<s>", "</s>", "th", "eend"]},
        {"tokens": [*TOKENS, "more"]},
        {"scores": [0.0, 0.0, 0.0, 0.0, -1.0]},
        {"kind": "t5"},
        {"name": "Phi-3 mini"},
        {"name": "my modern-bert"},
        {"architecture": "jina-bert-v3"},
        {"changes": [lambda writer: writer.add_token_types([2, 3, 3, 1, 1])]},
        {"changes": [lambda writer: writer.add_token_merges(["t h"])]},
        {"changes": [lambda writer: writer.add_tokenizer_pre("llama-bpe")]},
        {"changes": [lambda writer: writer.add_bos_token_id(3)]},
        {"changes": [lambda writer: writer.add_eot_token_id(4)]},
        {"changes": [lambda writer: writer.add_add_bos_token(False)]},
        {"changes": [lambda writer: writer.add_add_space_prefix(False)]},
        {"changes": [lambda writer: writer.add_array("tokenizer.ggml.suppress_tokens", [3])]},
        {"changes": [lambda writer: writer.add_token_type_count(2)]},
    ],
)
def test_whatever_decides_tokens_makes_another_tokenizer(
    identity_of: Callable[..., TokenizerIdentity | None], changed: dict[str, Any]
) -> None:
    changes = changed.pop("changes", [])
    assert digest(identity_of(*changes, **changed)) != digest(identity_of())


def test_the_type_of_a_value_counts(identity_of: Callable[..., TokenizerIdentity | None]) -> None:
    as_number = identity_of(lambda writer: writer.add_uint32("tokenizer.ggml.bos_token_id", 1))
    as_flag = identity_of(lambda writer: writer.add_bool("tokenizer.ggml.bos_token_id", True))
    as_other = identity_of(lambda writer: writer.add_int32("tokenizer.ggml.bos_token_id", 1))
    assert len({digest(as_number), digest(as_flag), digest(as_other)}) == 3


@pytest.mark.parametrize(
    "changed",
    [
        {"tokens": None},
        {"kind": "none"},
        {"kind": "no_vocab"},
        {"architecture": "x" * 101},
        {"architecture": "lläma"},
        {"changes": [lambda writer: writer.add_vocab_size(6)]},
    ],
)
def test_models_that_keep_their_own_vocabulary(
    identity_of: Callable[..., TokenizerIdentity | None], changed: dict[str, Any]
) -> None:
    changes = changed.pop("changes", [])
    assert identity_of(*changes, **changed) is None
