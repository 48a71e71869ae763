from __future__ import annotations

import logging
import threading

import pytest

from shardload_native.library import Llama, load
from shardload_native.log import CONTINUED, DEBUG, ERROR, INFO, WARN, LogLines


@pytest.fixture
def llama() -> Llama:
    return load()


def say(llama: Llama, level: int, text: str) -> None:
    """Log as llama.cpp does."""
    llama.log._receive(level, llama.ffi.new("char[]", text.encode()), llama.ffi.NULL)


def test_levels(llama: Llama, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, logger="shardload.llama"):
        say(llama, DEBUG, "\n")  # ends what an earlier load has begun: a row of dots
        caplog.clear()
        for level in (DEBUG, INFO, WARN, ERROR):
            say(llama, level, f"line {level}\n")
    assert [(record.levelno, record.message) for record in caplog.records] == [
        (logging.DEBUG, "line 1"),
        (logging.DEBUG, "line 2"),
        (logging.INFO, "line 3"),
        (logging.WARNING, "line 4"),
    ]


def test_what_is_expected_is_not_told(llama: Llama, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, logger="shardload.llama"):
        say(llama, WARN, "load: adding 32000 dummy tokens\n")
    assert [record.levelno for record in caplog.records if "dummy" in record.message] == [logging.DEBUG]


def test_lines_are_put_together(llama: Llama) -> None:
    with llama.log.collect() as log:
        say(llama, WARN, "one ")
        say(llama, CONTINUED, "two")
        say(llama, CONTINUED, " three\nfour\n")
        say(llama, INFO, ".")
        say(llama, CONTINUED, "..\n")
    assert list(log.lines) == [(WARN, "one two three"), (WARN, "four")]


def test_each_thread_keeps_its_own(llama: Llama) -> None:
    with llama.log.collect() as log:
        other = threading.Thread(target=say, args=(llama, ERROR, "elsewhere\n"))
        other.start()
        other.join()
        say(llama, ERROR, "here\n")
        with llama.log.collect() as inner:
            say(llama, ERROR, "inside\n")
    say(llama, ERROR, "afterwards\n")
    assert [line for _, line in log.lines] == ["here"]
    assert [line for _, line in inner.lines] == ["inside"]


def test_bytes_that_are_no_text(llama: Llama) -> None:
    with llama.log.collect() as log:
        llama.log._receive(ERROR, llama.ffi.new("char[]", b"\xff\n"), llama.ffi.NULL)
    assert list(log.lines) == [(ERROR, "\ufffd")]


def test_reasons() -> None:
    log = LogLines()
    assert log.reason() == "llama.cpp gave no reason"
    log.lines.append((WARN, "llama_model_load: not an error"))
    log.lines.append(
        (ERROR, "llama_model_load: error loading model: error loading model vocabulary: no vocab")
    )
    log.lines.append((ERROR, "llama_model_load_from_file_impl: failed to load model"))
    assert log.reason() == "no vocab"


def test_sizes() -> None:
    log = LogLines()
    log.lines.append((INFO, "llama_kv_cache:        CPU KV buffer size =     2.00 MiB"))
    log.lines.append((INFO, "llama_kv_cache:      CUDA0 KV buffer size =     0.50 MiB"))
    assert log.mebibytes("KV buffer size") == 5 * 2**19
    assert log.mebibytes("compute buffer size") == 0


def test_the_log_is_taken_back_from_llama_cpp_python(llama: Llama) -> None:
    import llama_cpp  # takes the log over when it is imported

    assert llama_cpp.__version__ == llama.version
    with llama.log.collect() as log:
        params = llama.lib.llama_model_default_params()
        assert llama.lib.llama_model_load_from_file(b"/no/such/file", params) == llama.ffi.NULL
    assert "/no/such/file" in log.reason()
