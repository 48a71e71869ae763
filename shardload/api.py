"""Models for programs: no server, no event loop, the same path as every request of a server."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from os import PathLike, fspath
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from shardload.chat.messages import Message, parse_messages
from shardload.config import Config, EngineConfig, MemoryConfig, load_config
from shardload.errors import ConfigError, NotGGUF
from shardload.generation import Generation
from shardload.library.entry import ModelEntry
from shardload.library.facts import read_facts
from shardload.library.lease import Lease
from shardload.library.status import ModelStatus
from shardload.quantities import parse_budget, parse_duration
from shardload.requests import ChatRequest, CompletionRequest, EmbeddingRequest, Options, Prompt, Request
from shardload.runtime import Assemble, Runtime, assembled

PathText = str | PathLike[str]
Vectors = NDArray[np.float32]
T = TypeVar("T")


class Manager:
    """Several models under one budget of bytes: they open on first use and leave when room is needed.

    ``paths`` are files and folders of GGUF files; a model is named by its file without the suffix. Any number
    of threads may generate at once.

    >>> with shardload.Manager([models], budget="2GiB") as manager:
    ...     manager.models
    ...     answer = manager.chat("pirate", "Hello!", temperature=0)
    ('embed', 'fable', 'pirate')
    >>> answer.finish_reason
    'stop'
    """

    def __init__(
        self,
        paths: PathText | Sequence[PathText] = (),
        *,
        budget: str | int | None = None,
        ctx: int | None = None,
        slots: int | None = None,
        threads: int | None = None,
        gpu_layers: int | None = None,
        keep_alive: str | float | None = None,
        config: PathText | Config | None = None,
        assemble: Assemble = assembled,
    ) -> None:
        """Read the headers of the files; opens nothing yet.

        ``budget`` is bytes or a text like "12GiB" (default: 80 % of what is available), ``ctx`` the tokens of
        a context, ``slots`` how many requests a model answers at once, ``keep_alive`` how long an idle model
        stays open ("5m", seconds, -1 for ever). ``config`` is a configuration file to start from. Raises
        ConfigError.
        """
        base = (
            config
            if isinstance(config, Config)
            else load_config(fspath(config))
            if config is not None
            else Config()
        )
        given = {"ctx": ctx, "parallel": slots, "threads": threads, "gpu_layers": gpu_layers}
        self._runtime = Runtime(_configured(base, paths, budget, keep_alive, given), assemble)

    @property
    def models(self) -> tuple[str, ...]:
        """The names of all models that can be served, sorted."""
        return self._runtime.call(self._runtime.parts.catalog.names)

    @property
    def problems(self) -> Mapping[Path, Exception]:
        """The files that cannot be served, and why."""
        return dict(self._runtime.parts.catalog.problems)

    def generate(self, model: str, prompt: Prompt, *, stream: bool = False, **options: Any) -> Generation:
        """Continue a prompt, which is text or tokens.

        ``options`` are fields of `shardload.Options`: max_tokens, temperature, top_p, seed, stop and others.
        With ``stream`` the generation comes back at once and is read as it grows. Raises RequestError for
        what is wrong with the request, ModelNotFound, ModelUnavailable and Overloaded.
        """
        return self._begin(CompletionRequest(model, (prompt,), options=Options.of(options)), stream)

    def chat(
        self,
        model: str,
        messages: str | Sequence[Message | Mapping[str, Any]],
        *,
        stream: bool = False,
        tools: Sequence[Mapping[str, Any]] = (),
        response_format: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> Generation:
        """Answer messages like ``{"role": "user", "content": "Hi"}``, or one text that the user says.

        ``tools`` and ``response_format`` are in OpenAI's shapes; everything else is as in `generate`.
        """
        turns = (Message("user", messages),) if isinstance(messages, str) else parse_messages(messages)
        request = ChatRequest(
            model, turns, tools=tools, response_format=response_format, options=Options.of(options)
        )
        return self._begin(request, stream)

    def embed(self, model: str, texts: str | Sequence[Prompt], *, dimensions: int | None = None) -> Vectors:
        """Vectors of length 1: one for a text, a row for each of several."""
        inputs = (texts,) if isinstance(texts, str) else tuple(texts)
        made = self._runtime.embed(EmbeddingRequest(model, inputs, dimensions))
        return made.vectors[0] if isinstance(texts, str) else np.stack(made.vectors)

    def tokenize(self, model: str, text: str, *, special: bool = True) -> list[int]:
        """The tokens of a text, with those that the vocabulary puts around it if ``special``."""
        return self._with_lease(model, lambda lease: lease.vocab.tokenize(text, add_special=special))

    def detokenize(self, model: str, tokens: Sequence[int], *, special: bool = False) -> str:
        """The text of tokens, with control tokens written out if ``special``."""
        return self._with_lease(model, lambda lease: lease.vocab.detokenize(tokens, special=special))

    def load(self, model: str, *, pin: bool | None = None, keep_alive: str | float | None = None) -> None:
        """Open a model now; raises what generating with it would raise."""
        seconds = None if keep_alive is None else _duration(keep_alive)

        async def work() -> None:
            await self._runtime.parts.manager.load(model, pin=pin, keep_alive_seconds=seconds)

        self._runtime.call(work)

    def unload(self, model: str) -> None:
        """Close a model as soon as nobody uses it."""
        self._runtime.call(self._runtime.parts.manager.unload, model)

    def pin(self, model: str, pinned: bool = True) -> None:
        """Let a model stay whatever the budget needs, or no longer."""
        self._runtime.call(self._runtime.parts.manager.pin, model, pinned)

    def status(self) -> list[ModelStatus]:
        """All models with their state and bytes."""
        return self._runtime.call(self._runtime.parts.manager.status)

    def entry(self, model: str) -> ModelEntry:
        """What is known of a model without opening it."""
        return self._runtime.call(self._runtime.parts.catalog.get, model)

    def model(self, name: str) -> OpenModel:
        """One of the models by itself; it borrows this manager. Raises ModelNotFound."""
        return OpenModel(self, self.entry(name), owns=False)

    def close(self) -> None:
        """Stop what generates and close every model; idempotent."""
        self._runtime.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _begin(self, request: Request, stream: bool) -> Generation:
        generation = Generation(self._runtime, self._runtime.start(request))
        return generation if stream else generation.read()

    def _with_lease(self, model: str, work: Callable[[Lease], T]) -> T:
        async def leased() -> T:
            parts = self._runtime.parts
            entry = parts.catalog.get(model)
            with await parts.manager.lease(entry, kind=entry.kind) as lease:
                return work(lease)

        return self._runtime.call(leased)


class OpenModel:
    """One model for programs, made by `open`. Any number of threads may generate at once."""

    def __init__(self, manager: Manager, entry: ModelEntry, *, owns: bool) -> None:
        """Borrow the manager, or take it over if ``owns``."""
        self.name, self.path = entry.name, entry.path
        self.ctx_tokens = entry.ctx_tokens
        """Tokens that prompts and answers of all requests have together."""
        self.entry = entry
        """What the file's header tells."""
        self._manager, self._owns = manager, owns

    def __repr__(self) -> str:
        return f"<OpenModel {self.name!r}>"

    def generate(self, prompt: Prompt, *, stream: bool = False, **options: Any) -> Generation:
        """Continue a prompt; see `Manager.generate`."""
        return self._manager.generate(self.name, prompt, stream=stream, **options)

    def chat(
        self,
        messages: str | Sequence[Message | Mapping[str, Any]],
        *,
        stream: bool = False,
        tools: Sequence[Mapping[str, Any]] = (),
        response_format: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> Generation:
        """Answer a conversation; see `Manager.chat`."""
        return self._manager.chat(
            self.name, messages, stream=stream, tools=tools, response_format=response_format, **options
        )

    def embed(self, texts: str | Sequence[Prompt], *, dimensions: int | None = None) -> Vectors:
        """Vectors of length 1; see `Manager.embed`."""
        return self._manager.embed(self.name, texts, dimensions=dimensions)

    def tokenize(self, text: str, *, special: bool = True) -> list[int]:
        """The tokens of a text; see `Manager.tokenize`."""
        return self._manager.tokenize(self.name, text, special=special)

    def detokenize(self, tokens: Sequence[int], *, special: bool = False) -> str:
        """The text of tokens; see `Manager.detokenize`."""
        return self._manager.detokenize(self.name, tokens, special=special)

    def close(self) -> None:
        """Stop what generates and close the model; idempotent. A borrowed manager goes on."""
        if self._owns:
            self._manager.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open(  # noqa: A001
    path: PathText,
    *,
    ctx: int | None = None,
    slots: int | None = None,
    threads: int | None = None,
    gpu_layers: int | None = None,
    config: PathText | Config | None = None,
) -> OpenModel:
    """Open one GGUF file (any part of a split one) and keep it open until it is closed.

    ``ctx`` is the context in tokens (default: the model's, at most 4096), ``slots`` how many requests it
    answers at once, ``threads`` those that compute, ``config`` a configuration to start from, which names no
    models. Raises GGUFError, ConfigError and ModelUnavailable; where there is no such file, or no permission
    to read it, the GGUFError is a FileNotFoundError or a PermissionError as well.

    >>> with shardload.open(path) as model:
    ...     for piece in model.generate("Once upon a time there", stream=True, max_tokens=3, temperature=0):
    ...         print(repr(piece))
    ' was'
    ' a'
    ...
    """
    _check_file(Path(path).expanduser().absolute())
    manager = Manager(
        path, ctx=ctx, slots=slots, threads=threads, gpu_layers=gpu_layers, keep_alive=-1, config=config
    )
    try:
        for error in manager.problems.values():
            raise error
        (name,) = manager.models
        manager.load(name)
        return OpenModel(manager, manager.entry(name), owns=True)
    except BaseException:
        manager.close()
        raise


def _check_file(path: Path) -> None:
    """Raise what is wrong with the one file that is to be opened; a catalog would log it and go on."""
    if path.is_dir():
        raise NotGGUF(path, "is a folder: `shardload serve` and shardload.Manager serve all models of one")
    read_facts(path)


def _configured(
    base: Config,
    paths: PathText | Sequence[PathText],
    budget: str | int | None,
    keep_alive: str | float | None,
    engine: Mapping[str, int | None],
) -> Config:
    listed = (paths,) if isinstance(paths, str | PathLike) else tuple(paths)
    changes: dict[str, Any] = {name: value for name, value in engine.items() if value is not None}
    if keep_alive is not None:
        changes["keep_alive"] = _duration(keep_alive)
    try:
        settings = msgspec.convert({**msgspec.structs.asdict(base.engine), **changes}, EngineConfig)
        memory = base.memory if budget is None else MemoryConfig(budget=parse_budget(budget))
    except ValueError as error:
        raise ConfigError(str(error)) from error
    files = (*base.files, *(str(Path(path).expanduser().absolute()) for path in listed))
    return msgspec.structs.replace(base, files=files, engine=settings, memory=memory)


def _duration(value: str | float) -> float:
    try:
        return parse_duration(value)
    except ValueError as error:
        raise ConfigError(f"keep_alive: {error}") from error
