"""The rows about tokens per second."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from statistics import median

from tools.bench.figures import Row, Setting, figure, paired, quotients
from tools.bench.load import Ask, one, prompt, together, total_rate
from tools.bench.processes import PeerSettings, Target, behind_nginx, peers, shardload

CTX_TOKENS = 4096
SLOTS = 8


def single_stream(setting: Setting) -> Iterator[Row]:
    """One stream, decode only."""

    def rate(target: Target, turn: int) -> float:
        return one(_ask(target, "a", turn, setting.tokens)).decode_rate

    first, second = _against_a_peer(setting, 1, rate)
    yield Row(
        "single stream decode, Q8_0, against xllamacpp",
        figure(first, "tok/s"),
        figure(second, "tok/s"),
        quotients(first, second),
        0.97,
        "higher",
    )


def parallel(setting: Setting) -> Iterator[Row]:
    """Eight streams to one model."""

    def rate(target: Target, turn: int) -> float:
        asks = [_ask(target, "a", turn * SLOTS + index, setting.tokens) for index in range(SLOTS)]
        return total_rate(together(asks))

    first, second = _against_a_peer(setting, SLOTS, rate)
    yield Row(
        "8 parallel requests to one model, total, against xllamacpp with 8 slots",
        figure(first, "tok/s"),
        figure(second, "tok/s"),
        quotients(first, second),
        1.0,
        "higher",
    )


def _against_a_peer(
    setting: Setting, slots: int, rate: Callable[[Target, int], float]
) -> tuple[list[float], list[float]]:
    """Rates of both sides with one model, the same threads and as many slots."""
    models = setting.only("a")
    same = PeerSettings("same threads", threads=setting.threads)
    with (
        shardload(
            models, cache=setting.cache, threads=setting.threads, slots=slots, ctx_tokens=CTX_TOKENS
        ) as ours,
        peers(models, same, slots=slots, ctx_tokens=CTX_TOKENS) as theirs,
    ):
        return paired(setting.repeats, lambda turn: rate(ours, turn), lambda turn: rate(theirs, turn))


def two_models(setting: Setting) -> Iterator[Row]:
    """Two models at once against each alone, all on our side."""
    models = setting.only("a", "b")
    with shardload(
        models, cache=setting.cache, threads=setting.threads, slots=1, ctx_tokens=CTX_TOKENS
    ) as target:

        def alone(turn: int) -> float:
            rates = [total_rate([one(_ask(target, name, turn, setting.tokens))]) for name in models]
            return sum(rates) / len(rates)

        first, second = paired(setting.repeats, lambda turn: _both(target, turn, setting.tokens), alone)
    yield Row(
        "two models at once, total, against the mean of each alone",
        figure(first, "tok/s"),
        figure(second, "tok/s alone"),
        quotients(first, second),
        0.9,
        "higher",
    )


def two_processes(setting: Setting) -> Iterator[Row]:
    """Two models at once in one process against one process each."""
    half = max(1, setting.threads // 2)
    candidates = [
        PeerSettings("default settings"),
        PeerSettings("passive waiting", environment={"OMP_WAIT_POLICY": "passive"}),
        PeerSettings("no polling", poll=0),
        PeerSettings(f"{half} threads each", threads=half),
        PeerSettings(f"{half} threads each, no polling", threads=half, poll=0),
    ]
    models = setting.only("a", "b")
    measured: list[tuple[PeerSettings, list[float], list[float]]] = []
    with shardload(
        models, cache=setting.cache, threads=setting.threads, slots=1, ctx_tokens=CTX_TOKENS
    ) as ours:
        for settings in candidates:
            with (
                peers(models, settings, slots=1, ctx_tokens=CTX_TOKENS) as apart,
                behind_nginx(apart) as theirs,
            ):
                pair = paired(
                    setting.repeats,
                    lambda turn: _both(ours, turn, setting.tokens),
                    lambda turn, theirs=theirs: _both(theirs, turn, setting.tokens),  # type: ignore[misc]
                )
            measured.append((settings, *pair))
    best = max(measured[1:], key=lambda entry: median(entry[2]))
    for (settings, first, second), target, kind in ((measured[0], 5.0, "default"), (best, 1.0, "best")):
        yield Row(
            f"two models at once against two xllamacpp processes behind nginx, {kind} settings",
            figure(first, "tok/s"),
            figure(second, "tok/s"),
            quotients(first, second),
            target,
            "higher",
            note="" if kind == "default" else f"best of {len(candidates) - 1}: {settings.label}",
        )


def _ask(target: Target, name: str, seed: int, tokens: int) -> Ask:
    return Ask(target.urls[name], target.names[name], prompt(seed), tokens)


def _both(target: Target, turn: int, tokens: int) -> float:
    return total_rate(together([_ask(target, name, turn, tokens) for name in ("a", "b")]))
