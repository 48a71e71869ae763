"""A model's vocabulary: text to tokens and back."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from functools import cached_property
from typing import Any

from shardload.errors import UnencodableText
from shardload.llama.encodable import SentencePieceAlphabet
from shardload.llama.pieces import ControlTokens
from shardload.llama.stack import call_with_stack
from shardload_native.library import Llama

NO_TOKEN = -1
NO_VOCABULARY, SENTENCE_PIECE, BYTE_PAIR, WORD_PIECE = 0, 1, 2, 3
# For some byte-pair vocabularies llama.cpp splits text with std::regex, which recurses for each character
# of a word: 330 bytes of stack, and a word of 26,000 letters ends the process on an ordinary thread.
USUAL_STACK_WORD = 4_000
LONGEST_WORD = 250_000
STACK_BYTES_PER_CHARACTER = 2048
# Shorter texts cannot hold enough control tokens to be slow.
USUAL_TEXT = 4_000


class Vocab:
    """The tokens of one model; reads only, from any thread, as long as the model is open."""

    def __init__(
        self,
        llama: Llama,
        pointer: Any,
        *,
        check_open: Callable[[], object],
        adds_space: bool,
        like: Vocab | None = None,
    ) -> None:
        """``like`` is another model's vocabulary over the same pointer: what was read for it serves both."""
        self._llama, self._vocab, self._check_open = llama, pointer, check_open
        self._lists: _Lists = like._lists if like is not None else _Lists(llama, pointer, adds_space)
        lib = llama.lib
        self.kind = int(lib.llama_vocab_type(pointer))
        self.n_tokens = lib.llama_vocab_n_tokens(pointer)
        self.bos = lib.llama_vocab_bos(pointer)  # -1 for none, as for the others
        self.eos = lib.llama_vocab_eos(pointer)
        self.eot = lib.llama_vocab_eot(pointer)
        self.add_bos = bool(lib.llama_vocab_get_add_bos(pointer))
        self.add_eos = bool(lib.llama_vocab_get_add_eos(pointer))

    @property
    def pointer(self) -> Any:
        """The C pointer; raises HandleClosed when the model is closed."""
        self._check_open()
        return self._vocab

    @property
    def alphabet(self) -> SentencePieceAlphabet:
        """What a SentencePiece vocabulary can encode; read on first use."""
        self._check_open()
        return self._lists.alphabet

    @property
    def control_tokens(self) -> ControlTokens:
        """Where long texts can be cut; read on first use."""
        self._check_open()
        return self._lists.control_tokens

    def tokenize(self, content: str, *, add_special: bool = True, parse_special: bool = False) -> list[int]:
        """The tokens of a text.

        ``add_special`` puts the vocabulary's own begin and end tokens around them; ``parse_special`` reads
        control tokens written out in the text. Raises UnencodableText for what the vocabulary cannot say.
        """
        self._check(content, parse_special)
        add_special = add_special and self._special_tokens_exist()
        if not parse_special or len(content) <= USUAL_TEXT or self.kind == WORD_PIECE:
            return self._tokenize_part(content, add_special, parse_special)
        tokens = [self.bos] if add_special and self.add_bos else []
        for part in self.control_tokens.parts(content):
            tokens += self._tokenize_part(part, False, True)
        return [*tokens, self.eos] if add_special and self.add_eos else tokens

    def _tokenize_part(self, content: str, add_special: bool, parse_special: bool) -> list[int]:
        longest = _longest_word(content) if self.kind == BYTE_PAIR else 0
        if longest > LONGEST_WORD:
            raise UnencodableText(
                f"the text has {longest} characters without a blank between them and {LONGEST_WORD} is the "
                "most: put blanks or line ends in"
            )
        if longest > USUAL_STACK_WORD:
            return call_with_stack(
                lambda: self._tokenize(content, add_special, parse_special),
                STACK_BYTES_PER_CHARACTER * longest,
            )
        return self._tokenize(content, add_special, parse_special)

    def _tokenize(self, content: str, add_special: bool, parse_special: bool) -> list[int]:
        ffi, lib, vocab = self._llama.ffi, self._llama.lib, self.pointer
        encoded = content.encode()
        room = len(encoded) + 8
        while True:
            tokens = ffi.new("int32_t[]", room)
            count = lib.llama_tokenize(vocab, encoded, len(encoded), tokens, room, add_special, parse_special)
            if count >= 0:
                return list(ffi.unpack(tokens, count)) if count else []
            room = -count

    def piece(self, token: int, *, special: bool = False) -> bytes:
        """The bytes that a token adds to the text; none for control tokens unless ``special``."""
        vocab = self.pointer
        self._check_token(token)
        ffi, lib = self._llama.ffi, self._llama.lib
        room = 64
        while True:
            buffer = ffi.new("char[]", room)
            length = lib.llama_token_to_piece(vocab, token, buffer, room, 0, special)
            if length >= 0:
                return bytes(ffi.buffer(buffer, length))
            room = -length

    def detokenize(self, tokens: Iterable[int], *, special: bool = False) -> str:
        """The text of some tokens, without the leading space that encoding added."""
        vocab = self.pointer
        listed = list(tokens)
        for token in listed:
            self._check_token(token)
        ffi, lib = self._llama.ffi, self._llama.lib
        native = ffi.new("int32_t[]", listed)
        room = 16 * len(listed) + 16
        while True:
            buffer = ffi.new("char[]", room)
            length = lib.llama_detokenize(vocab, native, len(listed), buffer, room, False, special)
            if length >= 0:
                return bytes(ffi.buffer(buffer, length)).decode("utf-8", "replace")
            room = -length

    def is_end(self, token: int) -> bool:
        """Whether a token ends the generation."""
        return bool(self._llama.lib.llama_vocab_is_eog(self.pointer, token))

    def _check(self, content: str, parse_special: bool) -> None:
        if self.kind == NO_VOCABULARY:
            raise UnencodableText("this model has no vocabulary: send tokens instead of text")
        try:
            content.encode()
        except UnicodeEncodeError as error:
            raise UnencodableText(
                f"character {error.start} of the text is half of a surrogate pair, which is no character"
            ) from error
        if self.kind == SENTENCE_PIECE and (offender := self.alphabet.offender(content, parse_special)):
            raise UnencodableText(
                f"the vocabulary has no token for {offender!r} (U+{ord(offender):04X}) and no byte tokens: "
                "leave the character out"
            )

    def _special_tokens_exist(self) -> bool:
        """Whether llama.cpp can add what it wants to add: it ends the process where it cannot."""
        lib, vocab = self._llama.lib, self._vocab
        if self.kind == WORD_PIECE:
            return self.bos != NO_TOKEN and lib.llama_vocab_sep(vocab) != NO_TOKEN
        return not (self.add_bos and self.bos == NO_TOKEN) and not (self.add_eos and self.eos == NO_TOKEN)

    def _check_token(self, token: int) -> None:
        if not 0 <= token < self.n_tokens:
            raise UnencodableText(f"token {token} is not in the vocabulary of {self.n_tokens} tokens")


class _Lists:
    """What is read from all tokens of a vocabulary; whoever asks holds it open."""

    def __init__(self, llama: Llama, pointer: Any, adds_space: bool) -> None:
        self._llama, self._vocab, self._adds_space = llama, pointer, adds_space

    @cached_property
    def alphabet(self) -> SentencePieceAlphabet:
        return SentencePieceAlphabet.read(self._tokens_with_attributes(), adds_space=self._adds_space)

    @cached_property
    def control_tokens(self) -> ControlTokens:
        return ControlTokens(self._tokens_with_attributes())

    def _tokens_with_attributes(self) -> Iterable[tuple[str, int]]:
        ffi, lib, vocab = self._llama.ffi, self._llama.lib, self._vocab
        for token in range(lib.llama_vocab_n_tokens(vocab)):
            content = bytes(ffi.string(lib.llama_vocab_get_text(vocab, token)))
            yield content.decode("utf-8", "surrogateescape"), lib.llama_vocab_get_attr(vocab, token)


def _longest_word(content: str) -> int:
    """An upper bound for what one step of splitting may match: a word and the blanks beside it."""
    if len(content) <= USUAL_STACK_WORD:
        return 0
    words, blanks = (re.findall(pattern, content) for pattern in (r"\S+", r"\s+"))
    return max(map(len, words), default=0) + max(map(len, blanks), default=0)
