from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tools.bench.figures import Row, figure, paired, quotients
from tools.bench.load import Ask, one, prompt, together, total_rate
from tools.bench.processes import NotMeasurable, child, peer_copy
from tools.make_model import Size, write_hollow_model


def test_pairs_are_measured_in_turns_and_the_first_does_not_count() -> None:
    order: list[str] = []

    def ours(turn: int) -> float:
        order.append(f"ours {turn}")
        return 10.0 + turn

    def theirs(turn: int) -> float:
        order.append(f"theirs {turn}")
        return 5.0

    first, second = paired(2, ours, theirs)
    assert (first, second) == ([11.0, 12.0], [5.0, 5.0])
    assert order == ["theirs 0", "ours 0", "ours 1", "theirs 1", "theirs 2", "ours 2"]
    assert quotients(first, second) == (2.2, 2.4)


def test_a_row_is_judged_by_its_median() -> None:
    higher = Row("speed", "", "", (0.5, 1.0, 3.0), 1.0, "higher")
    lower = Row("memory", "", "", (50.0, 70.0, 80.0), 60.0, "lower", "MiB")
    assert (higher.value, higher.met) == (1.0, True)
    assert not lower.met


def test_a_figure_shows_its_spread() -> None:
    assert figure([2.0, 1.0, 4.0], "tok/s") == "2.0 [1.0, 4.0] tok/s"


def test_prompts_share_no_beginning() -> None:
    firsts = {prompt(seed).split()[0] for seed in range(50)}
    assert len(firsts) > 40


def test_peers_have_files_of_their_own(tmp_path: Path) -> None:
    model = tmp_path / "m.gguf"
    model.write_bytes(b"one")
    copy = peer_copy(model)
    assert copy.read_bytes() == b"one"
    assert not copy.samefile(model)
    made = copy.stat().st_ino
    assert peer_copy(model).stat().st_ino == made
    model.write_bytes(b"other")
    assert peer_copy(model).read_bytes() == b"other"


def test_no_room_for_a_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tmp_path / "m.gguf"
    model.write_bytes(b"one")
    monkeypatch.setattr("tools.bench.processes.SPARE_BYTES", 2**80)
    with pytest.raises(NotMeasurable, match=r"no room on the disk for m-peer\.gguf, 3 bytes"):
        peer_copy(model)


def test_a_header_is_timed_in_a_process_of_its_own(tmp_path: Path) -> None:
    small = Size(dim=256, layers=1, heads=4, kv_heads=2, ff=512, vocabulary=600)
    write_hollow_model(tmp_path / "m.gguf", small)
    assert child("header", str(tmp_path / "m.gguf"))["seconds"] > 0
    assert child("reader", str(tmp_path / "m.gguf"))["seconds"] > 0


@pytest.fixture
def url() -> Iterator[str]:
    """A server whose answers always have three tokens."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.end_headers()
            for event in (b'{"a":1}', b'{"a":2}', b'{"usage":{"completion_tokens":3}}', b"[DONE]"):
                self.wfile.write(b"data: " + event + b"\n\n")

        def log_message(self, *_: object) -> None:
            """Tests print nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_answers_are_timed_and_counted(url: str) -> None:
    answers = together([Ask(url, "m", "hi", 3)] * 2)
    assert [answer.tokens for answer in answers] == [3, 3]
    assert all(answer.asked <= answer.first <= answer.last for answer in answers)
    assert total_rate(answers) > 0


def test_an_answer_of_another_length_is_no_measurement(url: str) -> None:
    with pytest.raises(RuntimeError, match="made 3 tokens of 4"):
        one(Ask(url, "m", "hi", 4))
