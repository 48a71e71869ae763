"""Every error that shardload raises on purpose, in one tree.

    ShardloadError
    ├── ConfigError                 a configuration file or option is wrong
    ├── GGUFError                   a file is not a GGUF that can be served
    │   ├── NotGGUF                 wrong magic, empty, or not a regular file
    │   │   ├── NoSuchFile          it is not there; a FileNotFoundError, too
    │   │   └── UnreadableFile      it may not be read; a PermissionError, too
    │   ├── UnsupportedGGUF         version, byte order or tensor type that this build cannot read
    │   ├── CorruptGGUF             a count, length, offset or value contradicts the file
    │   └── MissingSplit            a part of a split file is not there
    ├── NativeError                 llama.cpp below us
    │   ├── UnsupportedLlama        llama-cpp-python is missing or of a version we do not know
    │   ├── LoadFailed              llama.cpp refused a model or a context
    │   └── DecodeFailed            llama_decode returned a fatal status
    ├── StoreError                  the store of packed weights cannot keep something
    │   ├── StoreFull               no room: its limit, the disk or a quota
    │   └── StoreUnavailable        its directory cannot be written
    ├── HandleClosed                use after close
    ├── RequestError                the request is at fault
    │   ├── PromptTooLong           prompt longer than the context
    │   └── UnencodableText         the vocabulary has no tokens for the text
    ├── ModelNotFound               no model of that name
    ├── ModelUnavailable            the model exists and cannot answer now
    │   ├── OpenFailed              opening it failed
    │   ├── InsufficientMemory      it does not fit the budget, even alone
    │   │   └── AllPinned           it would fit if pinned models left
    │   └── ShuttingDown            the server is stopping
    └── Overloaded                  the queue is full

Classes carry data; messages are composed here, so that every caller phrases them alike.
Servers map classes to statuses by type and never by text.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable
from os import PathLike, fspath


class ShardloadError(Exception):
    """Base of all errors that are meant for the person who reads them."""


def format_bytes(count: int) -> str:
    """A byte count for people, in binary units: ``1.5 GiB``."""
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(value) < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


class ConfigError(ShardloadError):
    """Raised when a configuration file or command-line option is wrong."""

    def __init__(self, message: str, *, path: str | None = None, line: int | None = None) -> None:
        where = f"{path}:{line}: " if path and line else f"{path}: " if path else ""
        super().__init__(where + message)
        self.path, self.line = path, line


class GGUFError(ShardloadError):
    """Raised when a file is not a GGUF that can be served."""

    def __init__(self, path: str | PathLike[str], reason: str) -> None:
        super().__init__(f"{fspath(path)}: {reason}")
        self.path, self.reason = fspath(path), reason


class NotGGUF(GGUFError):
    """Raised when a path is not a GGUF file at all: wrong magic, empty, a directory, unreadable."""


class NoSuchFile(NotGGUF, FileNotFoundError):
    """Raised when there is no file where one was named."""

    def __init__(self, path: str | PathLike[str]) -> None:
        super().__init__(path, "no such file")
        self.errno = errno.ENOENT


class UnreadableFile(NotGGUF, PermissionError):
    """Raised when a file may not be read by whoever runs this process."""

    def __init__(self, path: str | PathLike[str]) -> None:
        super().__init__(path, "no permission to read it")
        self.errno = errno.EACCES


class UnsupportedGGUF(GGUFError):
    """Raised when a GGUF is of a version, byte order or tensor type that this build cannot read."""


class CorruptGGUF(GGUFError):
    """Raised when a count, length, offset or value in a GGUF contradicts the file."""


class MissingSplit(GGUFError):
    """Raised when a part of a split GGUF is not beside the others."""

    def __init__(self, path: str | PathLike[str], missing: str | PathLike[str]) -> None:
        super().__init__(path, f"part {fspath(missing)} of this split model is missing")
        self.missing = fspath(missing)


class NativeError(ShardloadError):
    """Raised when llama.cpp, or the way to it, fails."""


class UnsupportedLlama(NativeError):
    """Raised when llama-cpp-python is missing, or is of a version whose structures we do not know."""


class LoadFailed(NativeError):
    """Raised when llama.cpp refuses a model, a context or a sampler; carries its log's reason."""

    def __init__(self, what: str, reason: str) -> None:
        super().__init__(f"{what}: {reason}")
        self.what, self.reason = what, reason


class DecodeFailed(NativeError):
    """Raised when llama_decode returns a fatal status; the sequences of that step are lost."""

    def __init__(self, status: int) -> None:
        super().__init__(f"llama_decode failed with status {status}")
        self.status = status


class StoreError(ShardloadError):
    """Raised when the store cannot keep something; whoever packs goes on without it."""

    def __init__(self, directory: str | PathLike[str], reason: str) -> None:
        super().__init__(f"the store {fspath(directory)}: {reason}")
        self.directory, self.reason = fspath(directory), reason


class StoreFull(StoreError):
    """Raised when there is no room: on the disk, in a quota, or below the store's limit."""


class StoreUnavailable(StoreError):
    """Raised when the store's directory cannot be written: read-only, another user's, a broken disk."""


class HandleClosed(ShardloadError):
    """Raised when a closed model, context, file or mapping is used."""

    def __init__(self, what: str) -> None:
        super().__init__(f"{what} is closed")
        self.what = what


class RequestError(ShardloadError):
    """Raised when the request itself is at fault; ``param`` names the field, where one is to blame."""

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class PromptTooLong(RequestError):
    """Raised when a prompt has more tokens than the model's context holds."""

    def __init__(self, prompt_tokens: int, context_tokens: int, *, param: str | None = None) -> None:
        super().__init__(
            f"the prompt has {prompt_tokens} tokens and the context holds {context_tokens}: "
            "shorten the prompt, or serve the model with a larger --ctx",
            param=param,
        )
        self.prompt_tokens, self.context_tokens = prompt_tokens, context_tokens


class UnencodableText(RequestError):
    """Raised when a vocabulary without byte tokens is given text that it has no tokens for."""


class ModelNotFound(ShardloadError):
    """Raised when no model has the name that a request asks for."""

    def __init__(self, name: str, available: Iterable[str]) -> None:
        self.name, self.available = name, tuple(available)
        there = ", ".join(self.available) or "none"
        super().__init__(f"the model {name!r} does not exist; available: {there}")


class ModelUnavailable(ShardloadError):
    """Raised when a model exists and cannot answer now."""

    retry_after_seconds: float | None = None


class OpenFailed(ModelUnavailable):
    """Raised to every waiter of a model whose open failed."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"the model {name!r} could not be opened: {reason}")
        self.name, self.reason = name, reason


class InsufficientMemory(ModelUnavailable):
    """Raised when a model needs more bytes than the budget, even with every other model gone."""

    def __init__(self, name: str, needed_bytes: int, budget_bytes: int, *, detail: str = "") -> None:
        super().__init__(
            f"the model {name!r} needs {format_bytes(needed_bytes)} ({needed_bytes} bytes) and the budget "
            f"is {format_bytes(budget_bytes)} ({budget_bytes} bytes)"
            + (detail or ": raise --budget or lower --ctx or --parallel")
        )
        self.name, self.needed_bytes, self.budget_bytes = name, needed_bytes, budget_bytes


class AllPinned(InsufficientMemory):
    """Raised when a model would fit, but only in the place of pinned ones."""

    def __init__(self, name: str, needed_bytes: int, budget_bytes: int, pinned: Iterable[str]) -> None:
        self.pinned = tuple(pinned)
        super().__init__(
            name, needed_bytes, budget_bytes, detail=f", which pinned models hold: {', '.join(self.pinned)}"
        )


class ShuttingDown(ModelUnavailable):
    """Raised when a request arrives at, or is cut off by, a server that is stopping."""

    def __init__(self) -> None:
        super().__init__("the server is shutting down")


class Overloaded(ShardloadError):
    """Raised when a queue is full; the client may try again after ``retry_after_seconds``."""

    def __init__(self, name: str, waiting: int, retry_after_seconds: float) -> None:
        super().__init__(f"{waiting} requests already wait for the model {name!r}: try again later")
        self.name, self.waiting, self.retry_after_seconds = name, waiting, retry_after_seconds
