"""The one natural path of a request: choose a model, lease it, make tokens, generate, give all back."""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeVar

import anyio
import anyio.to_thread
import numpy as np

from shardload.answer import Answer, AnswerDelta, Merged, Nothing, Single, Source
from shardload.chat.ambiguity import check_readings
from shardload.chat.grammar import response_schema, schema_grammar
from shardload.chat.template import ChatTemplate
from shardload.config import RouteConfig
from shardload.engine.request import GenerationRequest
from shardload.errors import (
    ModelNotFound,
    ModelUnavailable,
    Overloaded,
    RequestError,
    ShuttingDown,
)
from shardload.plan import Plan, features_of
from shardload.prompts import chat_tokens, completion_tokens, embedding_tokens
from shardload.requests import ChatRequest, CompletionRequest, EmbeddingRequest, Options, Prompt, Request
from shardload.routing import CatalogView, Residency, choose

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from shardload.engine.stream import DeltaStream
    from shardload.library.entry import ModelEntry, Use
    from shardload.library.lease import Lease, OpenProgress
    from shardload.library.manager import Manager

__all__ = [
    "Answer",
    "AnswerDelta",
    "ChatRequest",
    "CompletionRequest",
    "EmbeddingRequest",
    "Embeddings",
    "Options",
    "Plan",
    "Prompt",
    "Request",
    "Service",
]

T = TypeVar("T")
Progress = Callable[["OpenProgress"], None]

LONG_TEXT_CHARACTERS = 20_000
"""From here on tokens are made on a worker thread: the event loop has others to serve."""
MESSAGE_CHARACTERS = 16
"""What a message costs beside its text."""
WORKER_THREADS = 2
TEMPLATES_KEPT = 64
EMBEDDED_AT_ONCE = 64
"""Inputs that a request for embeddings gives the engine at a time: in between it is the turn of others."""

logger = logging.getLogger("shardload.service")


@dataclass(frozen=True, slots=True)
class Embeddings:
    """One vector of length 1 for each input, and who made them."""

    vectors: tuple[NDArray[np.float32], ...]
    prompt_tokens: int
    model: str
    rule: str


@dataclass(frozen=True, slots=True)
class _Prepared:
    """A generation request in the model's own terms."""

    prompts: tuple[list[int], ...]
    grammar: str | None
    grammar_param: str
    """The field that the grammar came by."""
    options: Options


class Service:
    """Answers requests with the models of a catalog; event loop only. Owns nothing that needs closing."""

    def __init__(self, catalog: CatalogView, manager: Manager, routes: Sequence[RouteConfig] = ()) -> None:
        self._catalog, self._manager = catalog, manager
        self.routes = tuple(routes)
        """The rules for new requests; may be replaced at any time."""
        self._make_template = functools.lru_cache(TEMPLATES_KEPT)(ChatTemplate)
        self._threads = anyio.CapacityLimiter(WORKER_THREADS)

    def plan(
        self,
        request: Request,
        *,
        headers: Mapping[str, str] | Iterable[tuple[str, str]] = (),
        key: str | None = None,
    ) -> Plan:
        """Check a request and choose who may answer it; opens nothing.

        Raises RequestError naming the field, ModelNotFound, and OpenFailed for a file that cannot be served.
        """
        request.check()
        features = features_of(request, headers, key)
        return Plan(request, features, choose(features, self._catalog, self.routes, self._residency()))

    async def start(self, plan: Plan, progress: Progress | None = None) -> Answer:
        """Lease a model, opening it if need be, and begin to generate; the caller closes the answer.

        Raises RequestError (PromptTooLong among them), ModelUnavailable and Overloaded.
        """
        request = plan.request
        if isinstance(request, EmbeddingRequest):
            raise RequestError("a request for embeddings has no answer to generate", param="model")
        seeded = request.options.seed is not None

        def use(entry: ModelEntry) -> Use:
            return "seeded" if seeded or entry.parameters.get("seed") is not None else "generate"

        lease = await self._lease(plan, use, request.options.keep_alive_seconds, progress)
        try:
            prepared = await self._prepare(request, lease)
            return _submit(request, prepared, lease, plan.rule)
        except BaseException:
            lease.release()
            raise

    async def embed(self, plan: Plan, progress: Progress | None = None) -> Embeddings:
        """Turn texts into vectors; raises what ``start`` raises."""
        request = plan.request
        if not isinstance(request, EmbeddingRequest):
            raise RequestError("only a request for embeddings has vectors", param="model")
        lease = await self._lease(plan, lambda _: "embed", request.keep_alive_seconds, progress)
        with lease:
            prompts = await self._in_thread_if_long(
                _characters(request.inputs),
                lambda: [embedding_tokens(text, lease.vocab) for text in request.inputs],
            )
            vectors = await _vectors(prompts, lease)
        return Embeddings(
            vectors=tuple(_cut(vector, request.dimensions) for vector in vectors),
            prompt_tokens=sum(map(len, prompts)),
            model=lease.entry.name,
            rule=plan.rule,
        )

    def _residency(self) -> Callable[[ModelEntry], Residency]:
        @functools.cache
        def states() -> dict[str, Residency]:
            return {
                status.name: Residency(status.state, max(0, status.size_bytes - (status.resident_bytes or 0)))
                for status in self._manager.status()
            }

        return lambda entry: states().get(entry.name) or Residency("closed", entry.size_bytes)

    async def _lease(
        self,
        plan: Plan,
        use: Callable[[ModelEntry], Use],
        keep_alive_seconds: float | None,
        progress: Progress | None,
    ) -> Lease:
        """A lease on the first candidate that can answer now; the first one's error when none can."""
        first: Exception | None = None
        for candidate in plan.decision.candidates:
            try:
                return await self._manager.lease(
                    candidate.entry,
                    kind=use(candidate.entry),
                    keep_alive_seconds=keep_alive_seconds,
                    progress=progress,
                )
            except ShuttingDown:
                raise
            except (ModelUnavailable, Overloaded, ModelNotFound) as error:
                logger.info("%s: %s cannot answer: %s", plan.rule, candidate.entry.name, error)
                first = first or error
        assert first is not None, "a decision has candidates"
        raise first

    async def _prepare(self, request: ChatRequest | CompletionRequest, lease: Lease) -> _Prepared:
        options = request.options.over(Options.of(lease.entry.parameters))
        schema, prompts = None, request.prompts if isinstance(request, CompletionRequest) else ()
        characters = _characters(prompts)
        if isinstance(request, ChatRequest):
            schema = response_schema(request.response_format)
            characters = _chat_characters(request)
        if schema is not None and request.options.grammar is not None:
            raise RequestError("response_format and grammar cannot be combined", param="grammar")

        def work() -> _Prepared:
            grammar, param = options.grammar, "grammar"
            if schema is not None:
                grammar, param = schema_grammar(schema), "response_format"
            elif grammar is not None:
                check_readings(grammar, param=param)
            if isinstance(request, ChatRequest):
                tokens = [chat_tokens(request, lease.entry, lease.vocab, self._make_template)]
            else:
                tokens = [completion_tokens(prompt, lease.vocab) for prompt in prompts]
            return _Prepared(tuple(tokens), grammar, param, options)

        return await self._in_thread_if_long(characters, work, force=bool(schema or options.grammar))

    async def _in_thread_if_long(self, characters: int, work: Callable[[], T], *, force: bool = False) -> T:
        if characters <= LONG_TEXT_CHARACTERS and not force:
            return work()
        task = asyncio.ensure_future(anyio.to_thread.run_sync(work, limiter=self._threads))
        return await _outlasting(task)


async def _outlasting(task: asyncio.Future[T]) -> T:
    """The result of work on a leased model, which who is cancelled waits for: the lease must outlast it."""
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        with anyio.CancelScope(shield=True):
            while not task.done():
                with suppress(asyncio.CancelledError):
                    await asyncio.wait((task,))
        if not task.cancelled():
            task.exception()
        raise


def _submit(request: ChatRequest | CompletionRequest, prepared: _Prepared, lease: Lease, rule: str) -> Answer:
    chat = isinstance(request, ChatRequest)
    lengths = [len(prompt) for prompt in prepared.prompts]
    with ExitStack() as undo:
        with _blaming("messages" if chat else "prompt"):
            streams = _streams(prepared, request.n, lease, undo)
        source = _source(streams, lengths, request.n)
        kind: Literal["chatcmpl", "cmpl"] = "chatcmpl" if chat else "cmpl"
        answer = Answer(
            lease,
            source,
            kind=kind,
            rule=rule,
            prompts_tokens=lengths,
            n=request.n,
            tools=isinstance(request, ChatRequest) and bool(request.tools),
            grammar_param=prepared.grammar_param,
        )
        undo.pop_all()
    return answer


@contextmanager
def _blaming(param: str) -> Iterator[None]:
    """Errors about the prompt name the field that it came by."""
    try:
        yield
    except RequestError as error:
        if error.param in (None, "prompt"):
            error.param = param
        raise


def _streams(prepared: _Prepared, n: int, lease: Lease, undo: ExitStack) -> list[DeltaStream]:
    streams: list[DeltaStream] = []
    if prepared.options.max_tokens == 0:
        return streams
    for prompt in prepared.prompts:
        for offset in range(n):
            stream = lease.engine.stream(_generation(prompt, prepared, offset))
            undo.callback(stream.close)
            streams.append(stream)
    return streams


def _source(streams: Sequence[DeltaStream], lengths: Sequence[int], n: int) -> Source:
    if not streams:
        return Nothing(lengths, n)
    return Single(streams[0]) if len(streams) == 1 else Merged(streams)


async def _vectors(prompts: Sequence[Sequence[int]], lease: Lease) -> list[NDArray[np.float32]]:
    """One vector for each prompt; the longest go first, so that one too long is told before all the work."""
    order = sorted(range(len(prompts)), key=lambda place: len(prompts[place]), reverse=True)
    found: dict[int, NDArray[np.float32]] = {}
    for start in range(0, len(order), EMBEDDED_AT_ONCE):
        places = order[start : start + EMBEDDED_AT_ONCE]
        with _blaming("input"):
            computed = lease.engine.embed([prompts[place] for place in places])
        vectors = await asyncio.wrap_future(computed)
        found.update(zip(places, vectors, strict=True))
    return [found[place] for place in range(len(prompts))]


def _generation(prompt: Sequence[int], prepared: _Prepared, offset: int) -> GenerationRequest:
    options = prepared.options
    return GenerationRequest(
        prompt=prompt,
        max_tokens=options.max_tokens,
        sampling=options.sampling(offset=offset, grammar=prepared.grammar),
        stop=options.stop or (),
        ignore_eos=bool(options.ignore_eos),
        top_logprobs=options.top_logprobs,
    )


def _chat_characters(request: ChatRequest) -> int:
    said = sum(
        len(message.text) + MESSAGE_CHARACTERS + sum(len(call.arguments) for call in message.tool_calls)
        for message in request.messages
    )
    return said + len(request.tools_text)


def _characters(prompts: Sequence[Prompt]) -> int:
    return sum(len(prompt) for prompt in prompts)


def _cut(vector: NDArray[np.float32], dimensions: int | None) -> NDArray[np.float32]:
    """The first dimensions of a vector, of length 1 again."""
    if dimensions is None or dimensions == len(vector):
        return vector
    if dimensions > len(vector):
        raise RequestError(
            f"dimensions is {dimensions} and the model's vectors have {len(vector)}", param="dimensions"
        )
    short = vector[:dimensions]
    length = float(np.linalg.norm(short))
    return short / np.float32(length) if length > 0 else short.copy()
