"""What is measured, in Prometheus' terms: counted as requests end, or read off the manager when scraped."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from shardload.library.manager import ModelStatus

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
        yield _gauge("model_open", "1 while the model is open.", statuses, lambda s: s.state == "open")
        yield _gauge("model_leases", "Requests that hold the model.", statuses, lambda s: s.leases)
        yield _gauge("model_queued", "Requests that wait for the model.", statuses, lambda s: s.queued)
        yield _gauge(
            "model_resident_bytes",
            "Bytes of the weights in memory.",
            statuses,
            lambda s: s.resident_bytes or 0,
        )
        yield _gauge(
            "model_private_bytes", "Bytes beside the weights.", statuses, lambda s: s.private_bytes or 0
        )
        yield _gauge("model_size_bytes", "Bytes of the weights on disk.", statuses, lambda s: s.size_bytes)
        yield _total("model_opens", "Times the model was opened.", statuses, lambda s: s.opens)
        yield _total("model_evictions", "Times the model had to leave.", statuses, lambda s: s.evictions)


def _gauge(
    name: str, text: str, statuses: Sequence[ModelStatus], read: Callable[[ModelStatus], float]
) -> GaugeMetricFamily:
    family = GaugeMetricFamily(f"shardload_{name}", text, labels=("model",))
    for status in statuses:
        family.add_metric((status.name,), read(status))
    return family


def _total(
    name: str, text: str, statuses: Sequence[ModelStatus], read: Callable[[ModelStatus], float]
) -> CounterMetricFamily:
    family = CounterMetricFamily(f"shardload_{name}", text, labels=("model",))
    for status in statuses:
        family.add_metric((status.name,), read(status))
    return family
