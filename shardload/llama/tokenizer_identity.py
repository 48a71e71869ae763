"""Which models have the same tokenizer, from their headers alone."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from shardload.gguf import GGUFFile, MetadataArray

PREFIX = "tokenizer."
# llama.cpp never looks at these when it tokenizes, and fine-tunes of one model differ in them.
NOT_TOKENIZING = "tokenizer.chat_template"
WITHOUT_VOCABULARY = frozenset({"none", "no_vocab"})
# Names by which llama.cpp changes how blanks beside special tokens are read.
MARKED_ARCHITECTURES = ("nomic-bert-moe", "jina-bert-v3")
MARKED_NAMES = (("phi-3", "phi3"), ("modern-bert",))
MAX_ARCHITECTURE_CHARACTERS = 100
"""An override's key has room for 127 with ``.vocab_size``."""


@dataclass(frozen=True, slots=True)
class TokenizerIdentity:
    """``digest`` is equal for models that llama.cpp tokenizes for in the same way."""

    digest: str
    n_tokens: int
    architecture: str
    adds_space: bool = True
    """Whether a text is read as if a blank stood before it; where the tokenizer does that at all."""


def identify(gguf: GGUFFile) -> TokenizerIdentity | None:
    """The tokenizer of an open file; None where its model has to keep a vocabulary of its own.

    Loading and computing ask a vocabulary for its size only, and for its number of token types, which is
    read from the header even where there are no tokens. A header that gives another size than its list of
    tokens has is left alone: some architectures are recognised by that number.
    """
    metadata, architecture = gguf.metadata, gguf.architecture
    tokens, kind = metadata.get("tokenizer.ggml.tokens"), metadata.get("tokenizer.ggml.model")
    if not isinstance(tokens, MetadataArray) or not len(tokens):
        return None
    if not isinstance(kind, str) or kind in WITHOUT_VOCABULARY:
        return None
    if not architecture or len(architecture) > MAX_ARCHITECTURE_CHARACTERS or not architecture.isascii():
        return None
    if metadata.get(f"{architecture}.vocab_size", len(tokens)) != len(tokens):
        return None
    adds_space = metadata.get("tokenizer.ggml.add_space_prefix") is not False
    return TokenizerIdentity(_digest(gguf, architecture), len(tokens), architecture, adds_space)


def _digest(gguf: GGUFFile, architecture: str) -> str:
    whole = hashlib.sha256()
    for key in sorted(gguf.metadata):
        if not key.startswith(PREFIX) or key.startswith(NOT_TOKENIZING):
            continue
        value, kind = gguf.metadata[key], gguf.metadata_types[key]
        if isinstance(value, MetadataArray):
            whole.update(f"{key}\0{kind:d}\0{value.element_type:d}\0{len(value)}\0".encode())
            whole.update(value.raw())
        else:
            whole.update(f"{key}\0{kind:d}\0{value!r}\0".encode("utf-8", "surrogatepass"))
    name = str(gguf.metadata.get("general.name", "")).lower()
    marks = [any(mark in architecture for mark in MARKED_ARCHITECTURES)]
    marks += [any(mark in name for mark in group) for group in MARKED_NAMES]
    whole.update(repr(marks).encode())
    return whole.hexdigest()
