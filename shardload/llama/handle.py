"""What all owned handles have in common."""

from __future__ import annotations

import threading
import warnings
from abc import ABC, abstractmethod
from types import TracebackType
from typing import Any, Self

from shardload.errors import HandleClosed


class _Collector(threading.local):
    closes = False


_collector = _Collector()


def closed_by_collector() -> bool:
    """Whether the garbage collector is closing a handle on this thread, in the middle of whatever it does.

    Locks may be held there, also by this thread, so nothing that takes one may be done.
    """
    return _collector.closes


class Handle(ABC):
    """One C object with one owner.

    `close()` is idempotent; use after it raises HandleClosed; a handle that nobody closed is closed by the
    garbage collector with a ResourceWarning that names it.
    """

    def __init__(self, what: str, pointer: Any) -> None:
        self._what = what
        self._handle = pointer

    @property
    def closed(self) -> bool:
        return self._handle is None

    @property
    def pointer(self) -> Any:
        """The C pointer; raises HandleClosed after `close()`."""
        if self._handle is None:
            raise HandleClosed(self._what)
        return self._handle

    def close(self) -> None:
        """Give the C object back."""
        pointer, self._handle = self._handle, None
        if pointer is not None:
            self._free(pointer)

    @abstractmethod
    def _free(self, pointer: Any) -> None:
        """Give one back that nobody uses any more."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_handle", None) is not None:
            warnings.warn(f"unclosed {self._what}", ResourceWarning, stacklevel=1, source=self)
            outer, _collector.closes = _collector.closes, True
            try:
                self.close()
            finally:
                _collector.closes = outer
