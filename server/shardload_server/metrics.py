"""What is measured, in Prometheus' terms: counted as requests end, or read off the manager when scraped."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, TypeVar, get_args

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
Read = Callable[["ModelStatus"], float | None]
"""One value of a model; None where there is nothing to tell."""
Family = TypeVar("Family", GaugeMetricFamily, CounterMetricFamily)


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
        yield _states(statuses)
        for name, text, read in GAUGES:
            yield _filled(GaugeMetricFamily(f"shardload_{name}", text, labels=("model",)), statuses, read)
        for name, text, read in TOTALS:
            yield _filled(CounterMetricFamily(f"shardload_{name}", text, labels=("model",)), statuses, read)


def _is_open(status: ModelStatus) -> bool:
    return status.state in ("open", "streaming", "parked")


GAUGES: tuple[tuple[str, str, Read], ...] = (
    ("model_open", "1 while the model's weights are open.", _is_open),
    ("model_leases", "Requests that hold the model.", lambda status: status.leases),
    ("model_queued", "Requests that wait for the model.", lambda status: status.queued),
    (
        "model_running_sequences",
        "Answers that have a slot; a request may ask for several.",
        lambda status: status.running_sequences,
    ),
    ("model_queued_sequences", "Answers that wait for a slot.", lambda status: status.queued_sequences),
    # Bytes are as of the last look; names on the same weights each show all of them.
    ("model_size_bytes", "Bytes of the weights on disk.", lambda status: status.size_bytes),
    ("model_resident_bytes", "Bytes of the weights in memory.", lambda status: status.resident_bytes or 0),
    ("model_warm_ratio", "Part of the weights that is in memory, 0 to 1.", lambda status: status.warm_share),
    (
        "model_shared_bytes",
        "Resident bytes that other open models use as well.",
        lambda status: status.shared_bytes,
    ),
    ("model_packed_bytes", "Resident bytes from the packed store.", lambda status: status.packed_bytes),
    (
        "model_second_layout_bytes",
        "Resident bytes of the layout for prompts alone.",
        lambda status: status.second_bytes,
    ),
    (
        "model_resident_limit_bytes",
        "What a streaming model may have in memory.",
        lambda status: status.resident_limit_bytes,
    ),
    ("model_private_bytes", "Bytes beside the weights.", lambda status: status.private_bytes),
    ("model_kv_bytes", "Bytes of keys and values.", lambda status: status.kv_bytes),
)
TOTALS: tuple[tuple[str, str, Read], ...] = (
    ("model_opens", "Times the model was opened.", lambda status: status.opens),
    ("model_evictions", "Times the model had to leave.", lambda status: status.evictions),
    ("model_page_in_bytes", "Bytes of the weights that were read in.", lambda status: status.page_ins),
    ("model_page_out_bytes", "Bytes of the weights that were sent out.", lambda status: status.page_outs),
    ("model_page_wait_seconds", "Time that steps waited for pages.", lambda status: status.waited_seconds),
    # Of the weights, like pages: names on the same ones each show all of it.
    ("model_steps", "Steps that were computed.", lambda status: status.work.decode_steps_total),
    (
        "model_compute_seconds",
        "Time of the steps; while two models share the cores, half of it for each.",
        lambda status: status.work.compute_seconds_total,
    ),
    (
        "model_paused_sequences",
        "Times that an answer lost its slot: no room, or a slow reader.",
        lambda status: status.work.paused_total,
    ),
    ("model_parked_conversations", "Conversations saved.", lambda status: status.work.parked_total),
    (
        "model_restored_conversations",
        "Saved conversations that were brought back.",
        lambda status: status.work.restored_total,
    ),
    (
        "model_restored_tokens",
        "Tokens of prompts that came with them, and were not computed again.",
        lambda status: status.work.restored_tokens_total,
    ),
)


def _states(statuses: Sequence[ModelStatus]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(
        "shardload_model_state", "1 for the state it is in.", labels=("model", "state")
    )
    for status in statuses:
        for state in get_args(ModelState):
            family.add_metric((status.name, state), status.state == state)
    return family


def _filled(family: Family, statuses: Sequence[ModelStatus], read: Read) -> Family:
    for status in statuses:
        if (value := read(status)) is not None:
            family.add_metric((status.name,), value)
    return family
