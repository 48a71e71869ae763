"""What is measured, in Prometheus' terms: counted as requests end, or read off the manager when scraped."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, get_args

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from shardload.library.status import ModelState

if TYPE_CHECKING:
    from shardload.library.status import ModelStatus

FIRST_TOKEN_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
NO_MODEL = ""
"""The label of requests that failed before a model was chosen: what a client makes up is no label."""

StatusOf = Callable[[], "Sequence[ModelStatus]"]


class Metrics:
    """The counters of one application, in a registry of their own."""

    def __init__(self, statuses: StatusOf) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_ModelCollector(statuses))
        self._requests = self._counter("requests", "Requests answered, by status.", "endpoint", "status")
        self._prompt = self._counter("prompt_tokens", "Tokens of prompts.")
        self._cached = self._counter("prompt_tokens_cached", "Tokens of prompts that were in a cache.")
        self._completion = self._counter("completion_tokens", "Tokens generated.")
        self._first_token = Histogram(
            "shardload_first_token_seconds",
            "From the request to its first token.",
            ("model",),
            buckets=FIRST_TOKEN_SECONDS,
            registry=self._registry,
        )

    def count_request(self, endpoint: str, status: int, model: str = NO_MODEL) -> None:
        """Count a request that ended; 499 stands for a client that left."""
        self._requests.labels(model, endpoint, str(status)).inc()

    def count_tokens(
        self, model: str, *, prompt_tokens: int = 0, cached_tokens: int = 0, completion_tokens: int = 0
    ) -> None:
        """Count the tokens of a request."""
        self._prompt.labels(model).inc(prompt_tokens)
        self._cached.labels(model).inc(cached_tokens)
        self._completion.labels(model).inc(completion_tokens)

    def observe_first_token(self, model: str, seconds: float) -> None:
        """Note how long a request waited for its first token."""
        self._first_token.labels(model).observe(seconds)

    def exposition(self, accept: str) -> tuple[bytes, str]:
        """The text that a scraper gets, and its content type."""
        encode, content_type = choose_encoder(accept)
        return encode(self._registry), content_type

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"shardload_{name}", text, ("model", *labels), registry=self._registry)


class _ModelCollector(Collector):
    """Reads the manager at the time of the scrape: nothing to keep in step."""

    def __init__(self, statuses: StatusOf) -> None:
        self._statuses = statuses

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterator[Metric]:
        statuses = self._statuses()
        yield _gauge("model_open", "1 while the model's weights are open.", statuses, _is_open)
        yield _states(statuses)
        yield _gauge("model_leases", "Requests that hold the model.", statuses, lambda s: s.leases)
        yield _gauge("model_queued", "Requests that wait for the model.", statuses, lambda s: s.queued)
        yield from _memory(statuses)
        yield _total("model_opens", "Times the model was opened.", statuses, lambda s: s.opens)
        yield _total("model_evictions", "Times the model had to leave.", statuses, lambda s: s.evictions)
        yield _total(
            "model_page_in_bytes", "Bytes of the weights that were read in.", statuses, lambda s: s.page_ins
        )
        yield _total(
            "model_page_out_bytes",
            "Bytes of the weights that were sent out.",
            statuses,
            lambda s: s.page_outs,
        )
        yield _total(
            "model_page_wait_seconds",
            "Time that steps waited for pages.",
            statuses,
            lambda s: s.waited_seconds,
        )


def _is_open(status: ModelStatus) -> bool:
    return status.state in ("open", "streaming", "parked")


def _states(statuses: Sequence[ModelStatus]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(
        "shardload_model_state", "1 for the state it is in.", labels=("model", "state")
    )
    for status in statuses:
        for state in get_args(ModelState):
            family.add_metric((status.name, state), status.state == state)
    return family


def _memory(statuses: Sequence[ModelStatus]) -> Iterator[GaugeMetricFamily]:
    """Bytes at the time of the last look; names on the same weights each show all of them."""
    yield _gauge("model_size_bytes", "Bytes of the weights on disk.", statuses, lambda s: s.size_bytes)
    yield _gauge(
        "model_resident_bytes", "Bytes of the weights in memory.", statuses, lambda s: s.resident_bytes or 0
    )
    yield _gauge(
        "model_warm_ratio", "Part of the weights that is in memory, 0 to 1.", statuses, lambda s: s.warm_share
    )
    yield _gauge(
        "model_shared_bytes",
        "Resident bytes that other open models use as well.",
        statuses,
        lambda s: s.shared_bytes,
    )
    yield _gauge(
        "model_packed_bytes", "Resident bytes from the packed store.", statuses, lambda s: s.packed_bytes
    )
    yield _gauge(
        "model_second_layout_bytes",
        "Resident bytes of the layout for prompts alone.",
        statuses,
        lambda s: s.second_bytes,
    )
    yield _gauge(
        "model_resident_limit_bytes",
        "What a streaming model may have in memory.",
        statuses,
        lambda s: s.resident_limit_bytes,
    )
    yield _gauge("model_private_bytes", "Bytes beside the weights.", statuses, lambda s: s.private_bytes or 0)
    yield _gauge("model_kv_bytes", "Bytes of keys and values.", statuses, lambda s: s.kv_bytes)


def _gauge(
    name: str, text: str, statuses: Sequence[ModelStatus], read: Callable[[ModelStatus], float | None]
) -> GaugeMetricFamily:
    """One value for each model; none where there is nothing to tell."""
    family = GaugeMetricFamily(f"shardload_{name}", text, labels=("model",))
    for status in statuses:
        if (value := read(status)) is not None:
            family.add_metric((status.name,), value)
    return family


def _total(
    name: str, text: str, statuses: Sequence[ModelStatus], read: Callable[[ModelStatus], float]
) -> CounterMetricFamily:
    family = CounterMetricFamily(f"shardload_{name}", text, labels=("model",))
    for status in statuses:
        family.add_metric((status.name,), read(status))
    return family
