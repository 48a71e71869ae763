"""llama.cpp's log, sent to ``logging`` and kept where a call wants to know its reason."""

from __future__ import annotations

import logging
import re
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from shardload_native.callbacks import keep

if TYPE_CHECKING:
    from shardload_native.interface import LlamaInterface

logger = logging.getLogger("shardload.llama")

DEBUG, INFO, WARN, ERROR, CONTINUED = 1, 2, 3, 4, 5
# llama.cpp describes each load in hundreds of lines; its errors come back as our exceptions.
LEVELS = {DEBUG: logging.DEBUG, INFO: logging.DEBUG, WARN: logging.INFO, ERROR: logging.WARNING}
EXPECTED = re.compile(r"adding \d+ dummy tokens$")
"""What llama.cpp warns of each time that a model is opened without its vocabulary, as we have it opened."""
KEPT_LINES = 500


@dataclass(slots=True)
class LogLines:
    """The lines that llama.cpp wrote on one thread during one call."""

    lines: deque[tuple[int, str]] = field(default_factory=lambda: deque(maxlen=KEPT_LINES))

    def reason(self) -> str:
        """What went wrong, in llama.cpp's words."""
        errors = [_plain(line) for level, line in self.lines if level == ERROR]
        telling = dict.fromkeys(line for line in errors if line and line != "failed to load model")
        return "; ".join(list(telling)[:3]) or "llama.cpp gave no reason"

    def mebibytes(self, what: str) -> int:
        """The sum in bytes of all the lines "... <what> = 12.34 MiB"."""
        pattern = re.compile(re.escape(what) + r"\s*=\s*([0-9.]+) MiB")
        found = (pattern.search(line) for _, line in self.lines)
        return sum(round(float(match.group(1)) * 2**20) for match in found if match)


class LogRouter:
    """Takes over llama.cpp's log for the life of the process."""

    def __init__(self, ffi: Any, lib: LlamaInterface) -> None:
        self._ffi, self._lib = ffi, lib
        self._local = threading.local()
        # llama.cpp keeps this function: it must live as long as the process.
        self._callback = ffi.callback(
            "void(enum ggml_log_level, char *, void *)", self._receive, onerror=keep
        )
        self._install()

    def _install(self) -> None:
        self._lib.llama_log_set(self._callback, self._ffi.NULL)

    @contextmanager
    def collect(self) -> Iterator[LogLines]:
        """Keep what this thread's calls write until the end of the block."""
        outer: LogLines | None = getattr(self._local, "collecting", None)
        collected = LogLines()
        self._install()  # whoever imports llama_cpp after us takes the log over
        self._local.collecting = collected
        try:
            yield collected
        finally:
            self._local.collecting = outer

    def _receive(self, level: int, text: Any, _data: Any) -> None:
        local = self._local
        if level == CONTINUED:
            level = getattr(local, "level", INFO)
        local.level = level
        # Graphs are described node by node: not even the text is looked at unless somebody wants it.
        if level == DEBUG and not logger.isEnabledFor(logging.DEBUG):
            return
        piece = bytes(self._ffi.string(text)).decode("utf-8", "replace")
        begun = getattr(local, "begun", "") + piece
        *lines, local.begun = begun.split("\n")
        for line in lines:
            if line.strip(" ."):
                self._take(level, line)

    def _take(self, level: int, line: str) -> None:
        collecting: LogLines | None = getattr(self._local, "collecting", None)
        if collecting is not None and level != DEBUG:
            collecting.lines.append((level, line))
        expected = level == WARN and EXPECTED.search(line)
        logger.log(logging.DEBUG if expected else LEVELS.get(level, logging.DEBUG), "%s", line)


def _plain(line: str) -> str:
    """A log line without the function that wrote it and llama.cpp's own chain of prefixes."""
    prefix = re.compile(r"^(?:(?:llama|ggml|gguf)_[\w:~]*|error loading model(?: \w+)?): ")
    line = line.strip()
    while (shorter := prefix.sub("", line)) != line:
        line = shorter
    return line
