"""The row about a conversation that comes back after its model had to leave."""

from __future__ import annotations

from collections.abc import Iterator

from tools.bench.figures import Row, Setting, figure, paired, quotients
from tools.bench.load import Ask, one, prompt, token_prompt
from tools.bench.models import LETTERS
from tools.bench.processes import NotMeasurable, Target, models_of, shardload
from tools.bench.store import pack

CTX_TOKENS = 4096
CONVERSATION_TOKENS = 2000
NEXT_TOKENS = 8
ALLOWANCE_BYTES = 512 * 2**20


def returning(setting: Setting) -> Iterator[Row]:
    """First token of a conversation that continues, against one as long that nobody has seen.

    Before either, two other models answer under a budget for one, so that the model has been evicted.
    """
    models = {letter: setting.models.limited("Q4_K", letter) for letter in LETTERS}
    pack(setting, *models.values())
    budget = str(max(path.stat().st_size for path in models.values()) + ALLOWANCE_BYTES)
    known = token_prompt(1, CONVERSATION_TOKENS)
    with shardload(
        models,
        threads=setting.threads,
        slots=1,
        ctx_tokens=CTX_TOKENS,
        cache=setting.cache,
        budget=budget,
    ) as target:
        _first_seconds(target, known)

        def again(turn: int) -> float:
            _evict(target, 2 * turn)
            return _first_seconds(target, known + token_prompt(1000 + turn, NEXT_TOKENS))

        def anew(turn: int) -> float:
            _evict(target, 2 * turn + 1)
            return _first_seconds(target, token_prompt(2000 + turn, CONVERSATION_TOKENS + NEXT_TOKENS))

        first, second = paired(setting.repeats, again, anew)
    yield Row(
        "returning conversation of 2,000 tokens after its model was evicted, Q4_K: first token, how many "
        "times sooner than recomputing",
        figure([1000 * value for value in first], "ms", 0),
        figure([1000 * value for value in second], "ms", 0),
        quotients(second, first),
        10.0,
        "higher",
    )


def _evict(target: Target, seed: int) -> None:
    for name in LETTERS[1:]:
        one(Ask(target.urls[name], target.names[name], prompt(seed), 2))
    state = models_of(target)[target.names["a"]]["state"]
    if state not in ("parked", "closed"):
        raise NotMeasurable(f"the model is {state} where it should have been evicted")


def _first_seconds(target: Target, tokens: list[int]) -> float:
    return one(Ask(target.urls["a"], target.names["a"], tokens, 2)).first_seconds
