"""Where the answers of ``shardload run`` come from: a file in this process, or a server."""

from __future__ import annotations

import json
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import quote

from shardload_server.cli import console, remote

if TYPE_CHECKING:
    import httpx

Messages = Sequence[dict[str, str]]
FILE_STARTS = ("/", "./", "../", "~")


@dataclass(frozen=True, slots=True)
class RunOptions:
    """What the command line of ``shardload run`` says; None leaves a value to the model."""

    model: str
    url: str
    api_key: str | None = None
    system: str | None = None
    temperature: float | None = None
    seed: int | None = None
    max_tokens: int | None = None
    ctx: int | None = None
    store: str | None = None

    def sampling(self) -> dict[str, Any]:
        """The options of an answer that were given."""
        named = {"temperature": self.temperature, "seed": self.seed, "max_tokens": self.max_tokens}
        return {name: value for name, value in named.items() if value is not None}


class Talker(Protocol):
    """Answers conversations, piece by piece; closing the iterator stops the answer."""

    def answer(self, messages: Messages) -> Generator[str, None, None]: ...
    def close(self) -> None: ...


def is_file(model: str) -> bool:
    """Whether a model argument means a file rather than a name, which may have slashes as well."""
    return model.endswith(".gguf") or model.startswith(FILE_STARTS) or Path(model).is_file()


def talker(options: RunOptions) -> Talker:
    """The file's talker if the model is a file, the server's otherwise; the caller closes it."""
    return FileTalker(options) if is_file(options.model) else ServerTalker(options)


class FileTalker:
    """Answers from a file that is opened in this process."""

    def __init__(self, options: RunOptions) -> None:
        import shardload
        from shardload_server.cli.settings import configuration

        self._options = options
        config = configuration(None, options.store)
        self._model = shardload.open(Path(options.model).expanduser(), ctx=options.ctx, config=config)

    def answer(self, messages: Messages) -> Generator[str, None, None]:
        """Stream one answer."""
        with self._model.chat(messages, stream=True, **self._options.sampling()) as generation:
            yield from generation

    def close(self) -> None:
        """Close the model."""
        self._model.close()


class ServerTalker:
    """Answers from a running server, by its OpenAI endpoint."""

    def __init__(self, options: RunOptions) -> None:
        from shardload.routing import AUTO

        self._options = options
        self._server = remote.Server(options.url, options.api_key)
        # An unknown name is told before anybody types a question; the router's is no model's.
        path = "/v1/models" if options.model == AUTO else f"/v1/models/{quote(options.model, safe='/')}"
        self._server.request("GET", path)

    def answer(self, messages: Messages) -> Generator[str, None, None]:
        """Stream one answer."""
        body = {"model": self._options.model, "messages": list(messages), "stream": True}
        with (
            self._server.client() as client,
            client.stream("POST", "/v1/chat/completions", json=body | self._options.sampling()) as response,
        ):
            if not response.is_success:
                response.read()
                remote.checked(response)
            yield from _texts(response)

    def close(self) -> None:
        """Nothing is held between answers."""


def _texts(response: httpx.Response) -> Iterator[str]:
    for line in response.iter_lines():
        if not line.startswith("data: ") or line == "data: [DONE]":
            continue
        event = json.loads(line.removeprefix("data: "))
        if "error" in event:
            console.fail(event["error"]["message"])
        for choice in event["choices"]:
            yield choice["delta"].get("content") or ""
