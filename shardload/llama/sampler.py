"""How the next token of one sequence is chosen, by llama.cpp's samplers in llama-server's order."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from shardload.errors import RequestError
from shardload.llama.handle import Handle

if TYPE_CHECKING:
    from shardload.engine.sampling import SamplingParams
    from shardload.llama.context import Context

REJECTED = -math.inf
# Logits divided by less than this leave the range of their numbers.
LEAST_TEMPERATURE = 1e-6
MAX_GRAMMAR_DEPTH = 100
MAX_GRAMMAR_CHARACTERS = 2**17
# Processor time for one token: the more readings a text has, the longer each token takes, for all models.
GRAMMAR_SECONDS = 3.0
CANDIDATE = np.dtype([("token", np.int32), ("logit", np.float32), ("probability", np.float32)])


class Sampler(Handle):
    """One sequence's sampler chain and grammar; used on the lane thread.

    The chain runs bias, penalties, top-k, typical, top-p, min-p, temperature and the draw. A grammar is
    asked about the chosen token only; when it says no, the choice is made again among what it allows.
    """

    def __init__(self, context: Context, params: SamplingParams, history: Sequence[int]) -> None:
        check_params(params, context.n_vocab)
        super().__init__("sampler", None)
        self._context = context
        self._lib, self._ffi = context.model.llama.lib, context.model.llama.ffi
        self._grammar = self._new_grammar(params.grammar) if params.grammar else None
        try:
            self._handle = self._new_chain(params, history)
        except BaseException:
            self._free_grammar()
            raise
        if self._grammar is not None:
            self._candidates = np.zeros(context.n_vocab, CANDIDATE)
            self._everything = np.arange(context.n_vocab, dtype=np.int32)
            self._array = self._ffi.new("llama_token_data_array *")
            self._single = self._ffi.new("llama_token_data *")

    def sample(self, row: int) -> int:
        """Choose from the logits of an output row of the last decode, and remember the choice.

        Raises RequestError when a grammar allows no token of this vocabulary, or takes too long over one.
        """
        chain, context = self.pointer, self._context
        if self._grammar is None:
            return self._lib.llama_sampler_sample(chain, context.pointer, context.batch_index(row))
        began = time.thread_time()
        logits = context.logits(row)
        token = self._choose(logits, with_grammar=False)
        if not self._allowed(token):
            token = self._choose(logits, with_grammar=True)
            # Accepting a token that the grammar rejects would end the process.
            if not self._allowed(token):
                raise RequestError(
                    "the grammar allows none of this model's tokens here", param="response_format"
                )
        self._lib.llama_sampler_accept(self._grammar, token)
        if time.thread_time() - began > GRAMMAR_SECONDS:
            raise RequestError(
                "the grammar is so large, or reads the text in so many ways, that a token takes too long",
                param="response_format",
            )
        self._lib.llama_sampler_accept(chain, token)
        return token

    def _choose(self, logits: np.ndarray[Any, np.dtype[np.float32]], *, with_grammar: bool) -> int:
        self._candidates["token"] = self._everything
        self._candidates["logit"] = logits
        array = self._array
        array.data = self._ffi.cast("llama_token_data *", self._candidates.ctypes.data)
        array.size, array.selected, array.sorted = len(self._candidates), -1, False
        if with_grammar:
            self._lib.llama_sampler_apply(self._grammar, array)
        self._lib.llama_sampler_apply(self._handle, array)
        return int(array.data[array.selected].id)

    def _allowed(self, token: int) -> bool:
        single, array = self._single, self._array
        single.id, single.logit, single.p = token, 1.0, 0.0
        array.data, array.size, array.selected, array.sorted = single, 1, -1, False
        self._lib.llama_sampler_apply(self._grammar, array)
        return bool(single.logit != REJECTED)

    def _new_chain(self, params: SamplingParams, history: Sequence[int]) -> Any:
        lib, vocab_size = self._lib, self._context.n_vocab
        settings = lib.llama_sampler_chain_default_params()
        settings.no_perf = True
        chain = lib.llama_sampler_chain_init(settings)
        add = lib.llama_sampler_chain_add  # the chain owns what is added
        if bias := self._biases(params):
            native = self._ffi.new("llama_logit_bias[]", bias)
            add(chain, lib.llama_sampler_init_logit_bias(vocab_size, len(bias), native))
        # llama.cpp reserves room for as many tokens as it is told, and ends the process where it cannot.
        longest = self._context.ctx_tokens
        last = min(params.repeat_last_n, longest) if params.repeat_last_n >= 0 else longest
        if last and (params.repeat_penalty != 1 or params.frequency_penalty or params.presence_penalty):
            penalties = lib.llama_sampler_init_penalties(
                vocab_size, last, params.repeat_penalty, params.frequency_penalty, params.presence_penalty
            )
            for token in history[-last:]:
                lib.llama_sampler_accept(penalties, token)
            add(chain, penalties)
        if params.temperature <= 0:
            add(chain, lib.llama_sampler_init_greedy())
            return chain
        add(chain, lib.llama_sampler_init_top_k(min(max(params.top_k, 0), vocab_size)))
        add(chain, lib.llama_sampler_init_typical(params.typical_p, 0))
        add(chain, lib.llama_sampler_init_top_p(params.top_p, 0))
        add(chain, lib.llama_sampler_init_min_p(params.min_p, 0))
        add(chain, lib.llama_sampler_init_temp(max(params.temperature, LEAST_TEMPERATURE)))
        seed = int.from_bytes(os.urandom(4), "little") if params.seed is None else params.seed
        # The largest value means "draw a seed" to llama.cpp.
        add(chain, lib.llama_sampler_init_dist(min(seed & 0xFFFFFFFF, 0xFFFFFFFE)))
        return chain

    def _biases(self, params: SamplingParams) -> list[tuple[int, float]]:
        """The request's biases and the tokens that the model itself never wants."""
        count = self._ffi.new("int32_t *")
        suppressed = self._lib.llama_vocab_get_suppress_tokens(self._context.vocab.pointer, count)
        return [*params.logit_bias, *((suppressed[at], REJECTED) for at in range(count[0]))]

    def _new_grammar(self, grammar: str) -> Any:
        llama = self._context.model.llama
        with llama.log.collect() as log:
            pointer = self._lib.llama_sampler_init_grammar(
                self._context.vocab.pointer, grammar.encode(), b"root"
            )
        if pointer == self._ffi.NULL:
            raise RequestError(f"the grammar is not valid: {log.reason()}", param="response_format")
        return pointer

    def _free_grammar(self) -> None:
        grammar, self._grammar = self._grammar, None
        if grammar is not None:
            self._lib.llama_sampler_free(grammar)

    def _free(self, pointer: Any) -> None:
        self._free_grammar()
        self._lib.llama_sampler_free(pointer)


def check_params(params: SamplingParams, n_vocab: int) -> None:
    """Raise RequestError for values that llama.cpp's samplers do not survive or cannot mean."""
    for name in ("temperature", "top_p", "min_p", "typical_p", "presence_penalty", "frequency_penalty"):
        if not math.isfinite(getattr(params, name)):
            raise RequestError(f"{name} must be a finite number", param=name)
    if not (params.repeat_penalty > 0 and math.isfinite(params.repeat_penalty)):
        raise RequestError("repeat_penalty must be greater than 0", param="repeat_penalty")
    for token, bias in params.logit_bias:
        if not 0 <= token < n_vocab:
            raise RequestError(f"logit_bias names token {token} of {n_vocab}", param="logit_bias")
        if math.isnan(bias):
            raise RequestError(f"logit_bias of token {token} is not a number", param="logit_bias")
    if params.grammar is not None:
        _check_grammar(params.grammar)


def _check_grammar(grammar: str) -> None:
    if len(grammar) > MAX_GRAMMAR_CHARACTERS:
        raise RequestError(
            f"the grammar has {len(grammar)} characters and {MAX_GRAMMAR_CHARACTERS} is the most",
            param="response_format",
        )
    depth = deepest = 0
    for character in grammar:
        depth += (character == "(") - (character == ")")
        deepest = max(deepest, depth)
    # llama.cpp reads nested groups recursively, on the lane's stack.
    if deepest > MAX_GRAMMAR_DEPTH:
        raise RequestError(f"the grammar is nested deeper than {MAX_GRAMMAR_DEPTH}", param="response_format")
    if "\0" in grammar:
        raise RequestError("the grammar contains a NUL character", param="response_format")
