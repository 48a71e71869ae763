from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from tiny_gguf import finish
from typer.testing import CliRunner, Result

from shardload_server.cli.app import app


@pytest.fixture
def invoke(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Run a command line on an 80 column terminal without settings from outside."""
    monkeypatch.setenv("COLUMNS", "80")
    for name in ("SHARDLOAD_URL", "SHARDLOAD_API_KEY", "SHARDLOAD_DEBUG"):
        monkeypatch.delenv(name, raising=False)
    runner = CliRunner()

    def run(*arguments: str | Path, stdin: str | None = None) -> Result:
        return runner.invoke(app, [str(argument) for argument in arguments], input=stdin)

    return run


@pytest.fixture
def model_file(tmp_path: Path) -> Path:
    """A small two-block model that no llama.cpp ever opens."""
    path = tmp_path / "small.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("Small")
    writer.add_context_length(1024)
    writer.add_embedding_length(64)
    writer.add_block_count(2)
    writer.add_feed_forward_length(128)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(["<unk>", "<s>", "</s>", "a", "b"])
    writer.add_chat_template("{{ messages }}")
    writer.add_tensor("token_embd.weight", np.ones((5, 64), np.float32))
    for block in range(2):
        writer.add_tensor(f"blk.{block}.attn_q.weight", np.ones((64, 64), np.float16))
        writer.add_tensor(f"blk.{block}.ffn_up.weight", np.ones((128, 64), np.float16))
    writer.add_tensor("output.weight", np.ones((5, 64), np.float32))
    finish(writer)
    return path


class FakeServer:
    """Answers with what a test puts into ``answers`` and remembers what it was asked."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.answers: dict[str, tuple[int, bytes]] = {}
        self.asked: list[tuple[str, str, Any, str | None]] = []

    def answer(self, path: str, body: object, status: int = 200) -> None:
        """Answer a path with JSON."""
        self.answers[path] = (status, json.dumps(body).encode())

    def stream(self, path: str, *events: object) -> None:
        """Answer a path with server-sent events."""
        lines = [f"data: {json.dumps(event)}\n\n" for event in events]
        self.answers[path] = (200, (": opening\n\n" + "".join(lines) + "data: [DONE]\n\n").encode())


@pytest.fixture
def fake_server() -> Iterator[FakeServer]:
    """A server on a port of its own, for the time of a test."""

    class Handler(BaseHTTPRequestHandler):
        def reply(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(length)) if length else None
            fake.asked.append((self.command, self.path, body, self.headers.get("Authorization")))
            status, content = fake.answers.get(self.path, (404, b"not here"))
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = reply

        def log_message(self, *_: object) -> None:
            """Tests print nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        fake = FakeServer(f"http://127.0.0.1:{server.server_port}")
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield fake
        server.shutdown()
        thread.join()
