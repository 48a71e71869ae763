from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from concurrent.futures import Future
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest

from shardload.config import Config
from shardload.errors import ConfigError, HandleClosed
from shardload.runtime import Runtime


@asynccontextmanager
async def nothing(config: Config) -> AsyncIterator[Any]:
    yield config


@asynccontextmanager
async def broken(config: Config) -> AsyncIterator[Any]:
    raise ConfigError("no such folder")
    yield


def test_work_is_done_on_a_thread_of_its_own() -> None:
    runtime = Runtime(Config(), nothing)

    async def thread() -> int:
        return threading.get_ident()

    assert runtime.call(thread) == runtime.call(threading.get_ident) != threading.get_ident()
    runtime.close()
    runtime.close()
    assert runtime.closed
    with pytest.raises(HandleClosed):
        runtime.call(thread)


def test_whoever_is_interrupted_takes_the_work_along(monkeypatch: pytest.MonkeyPatch) -> None:
    started, cancelled = threading.Event(), threading.Event()

    async def work() -> None:
        started.set()
        try:
            await anyio.sleep_forever()
        finally:
            cancelled.set()

    class Interrupted:
        def __init__(self, future: Future[None]) -> None:
            self.cancel = future.cancel

        def result(self) -> None:
            assert started.wait(30)
            raise KeyboardInterrupt

    with contextlib.closing(Runtime(Config(), nothing)) as runtime:
        start = runtime._portal.start_task_soon
        with monkeypatch.context() as patch:
            patch.setattr(runtime._portal, "start_task_soon", lambda *args: Interrupted(start(*args)))
            with pytest.raises(KeyboardInterrupt):
                runtime.call(work)
        assert cancelled.wait(30)


def test_errors_of_the_parts_come_out() -> None:
    with pytest.raises(ConfigError, match="no such folder"):
        Runtime(Config(), broken)


def test_one_that_is_found_on_its_own_thread_is_stopped() -> None:
    runtime = Runtime(Config(), nothing)
    # As the garbage collector does, wherever it happens to run.
    runtime.call(lambda: runtime._close())
    runtime._thread.join(30)
    assert not runtime._thread.is_alive()
    assert runtime.closed
    runtime.close()


def test_forgetting_to_close_is_told() -> None:
    runtime = Runtime(Config(), nothing)
    with pytest.warns(ResourceWarning, match="never closed"):
        runtime.__del__()
    runtime.close()


FORGETFUL = """
from contextlib import asynccontextmanager
from shardload.config import Config
from shardload.runtime import Runtime

@asynccontextmanager
async def parts(config):
    try:
        yield config
    finally:
        print("taken apart")

runtime = Runtime(Config(), parts)
print("end")
"""


def test_a_program_that_forgets_to_close_still_ends_in_order() -> None:
    done = subprocess.run(
        [sys.executable, "-c", FORGETFUL], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.split("\n") == ["end", "taken apart", ""]


OPEN = """
import os, sys, threading
import shardload
from shardload.demo import demo_folder
from shardload.errors import HandleClosed

model = shardload.open(demo_folder() / "pirate.gguf")
model.generate("Hello", max_tokens=2)
"""
OUTLIVING = """
def work():
    threading.main_thread().join()
    model.generate("Hello", max_tokens=2)
    shardload.open(demo_folder() / "fable.gguf").generate("Hello", max_tokens=2)

threading.Thread(target=work).start()
"""
FORKING = """
if (child := os.fork()) == 0:
    try:
        model.generate("Hello", max_tokens=2)
    except HandleClosed:
        sys.exit(4)
_, status = os.waitpid(child, 0)
model.generate("Hello", max_tokens=2)
sys.exit(os.waitstatus_to_exitcode(status))
"""


@pytest.mark.real
@pytest.mark.parametrize(
    ("rest", "code", "told"),
    [
        pytest.param("", 0, "", id="at its last line"),
        pytest.param("model.generate('Once ' * 200, max_tokens=2)", 0, "", id="with what is to be parked"),
        pytest.param("sys.exit(3)", 3, "", id="exits"),
        pytest.param("raise KeyError('mine')", 1, "KeyError: 'mine'", id="fails"),
        pytest.param("answer = model.chat('Hello', stream=True); next(iter(answer))", 0, "", id="answers"),
        pytest.param(OUTLIVING, 0, "", id="leaves a thread"),
        pytest.param(
            FORKING, 4, "", id="forks", marks=pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
        ),
    ],
)
def test_models_that_nobody_closes_end_with_the_program(rest: str, code: int, told: str) -> None:
    done = subprocess.run([sys.executable, "-c", OPEN + rest], capture_output=True, text=True, timeout=60)
    *above, last = done.stderr.splitlines() or [""]
    assert (done.returncode, last) == (code, told), done.stderr
    assert [line.split(",")[0] for line in above if line.startswith("  File")] == (
        ['  File "<string>"'] if told else []
    ), done.stderr
