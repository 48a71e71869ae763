"""A client that is cheap enough not to disturb what it measures: raw sockets, nothing decoded on the way."""

from __future__ import annotations

import asyncio
import json
import random
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

COUNTED = re.compile(rb'"completion_tokens":\s*(\d+)')
FIRST_WORD, LAST_WORD = 300, 600
SAMPLING = {"temperature": 0.8, "top_k": 40, "top_p": 0.95, "min_p": 0.05}


@dataclass(frozen=True, slots=True)
class Ask:
    """One completion to ask for: the answer has exactly ``tokens`` tokens. A prompt is text or tokens."""

    url: str
    model: str
    prompt: str | list[int]
    tokens: int


@dataclass(frozen=True, slots=True)
class Timed:
    """When an answer began and ended, on the monotonic clock in seconds."""

    asked: float
    first: float
    last: float
    tokens: int

    @property
    def first_seconds(self) -> float:
        """From the question to the first token."""
        return self.first - self.asked

    @property
    def decode_rate(self) -> float:
        """Tokens per second after the first."""
        return (self.tokens - 1) / (self.last - self.first)


def prompt(seed: int, words: int = 12) -> str:
    """Words that no other seed begins with, so that nothing of a prompt is in any cache."""
    source = random.Random(seed)
    return " ".join(
        "".join(source.choice("bdfgklmnprstvz") + source.choice("aeiou") for _ in range(3))
        for _ in range(words)
    )


def token_prompt(seed: int, count: int) -> list[int]:
    """Exactly so many tokens that no other seed begins with, of any of the made vocabularies."""
    source = random.Random(seed)
    return [source.randrange(FIRST_WORD, LAST_WORD) for _ in range(count)]


def together(asks: Sequence[Ask]) -> list[Timed]:
    """Ask all at the same time, each on its own connection, and wait for all."""

    async def gather() -> list[Timed]:
        return await asyncio.gather(*(_stream(ask) for ask in asks))

    return asyncio.run(gather())


def total_rate(answers: Sequence[Timed]) -> float:
    """Tokens per second of all answers together, from the first question to the last token."""
    tokens = sum(answer.tokens for answer in answers)
    return tokens / (max(answer.last for answer in answers) - min(answer.asked for answer in answers))


def one(ask: Ask) -> Timed:
    """Ask once and wait."""
    return together([ask])[0]


async def _stream(ask: Ask) -> Timed:
    parts = urlsplit(ask.url)
    body: dict[str, Any] = {
        "model": ask.model,
        "prompt": ask.prompt,
        "max_tokens": ask.tokens,
        "stream": True,
    }
    body |= {"ignore_eos": True, "cache_prompt": False, "stream_options": {"include_usage": True}, **SAMPLING}
    payload = json.dumps(body).encode()
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    asked = time.monotonic()
    writer.write(
        f"POST {parts.path}/v1/completions HTTP/1.1\r\nHost: {parts.netloc}\r\nConnection: close\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(payload)}\r\n\r\n".encode()
        + payload
    )
    first = last = 0.0
    received = bytearray()
    try:
        while chunk := await reader.read(65536):
            received += chunk
            last = time.monotonic()
            first = first or (last if b"data: {" in received else 0.0)
            if b"data: [DONE]" in chunk:
                break
    finally:
        writer.close()
    return Timed(asked, first, last, _tokens(ask, bytes(received)))


def _tokens(ask: Ask, received: bytes) -> int:
    """What the server counted; an answer of another length would make every rate wrong."""
    head, _, rest = received.partition(b"\r\n\r\n")
    if b" 200 " not in head.partition(b"\r\n")[0]:
        raise RuntimeError(f"{ask.model} answered {rest[:300].decode(errors='replace')}")
    found = COUNTED.findall(rest)
    counted = int(found[-1]) if found else 0
    if counted != ask.tokens:
        raise RuntimeError(f"{ask.url} made {counted} tokens of {ask.tokens}")
    return counted
