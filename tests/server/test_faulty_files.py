"""Files that cannot be served, or change while they are: what clients hear, and that the others go on."""

from __future__ import annotations

import os
import re
import shutil
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from tiny_gguf import sentence_piece, write_llama

from shardload.config import parse_config
from shardload.demo import demo_folder

pytestmark = pytest.mark.real

SETTINGS = """
folders = ["."]
[server]
port = 0
[memory]
budget = "{budget}"
[engine]
ctx = {ctx}
parallel = 1
threads = 1
queue = 1
[models.huge]
file = "fable.gguf"
ctx = 400000
"""
ROOM_FOR_ONE, LONG_CTX = "40MiB", 16384
"""KV caches of 16 MiB: two do not fit, whatever part of their weights models have in memory."""


def copy_demo(name, target):
    """A demo model under another name; a file that was there is replaced, as editors and downloads do."""
    fresh = target.with_suffix(".part")
    shutil.copyfile(demo_folder() / f"{name}.gguf", fresh)
    os.replace(fresh, target)


@pytest.fixture
def folder(tmp_path):
    for name in ("fable", "pirate"):
        copy_demo(name, tmp_path / f"{name}.gguf")
    write_llama(tmp_path / "letters.gguf", tokens=sentence_piece(byte_tokens=False))
    write_llama(tmp_path / "strange.gguf", architecture="nonesuch")
    (tmp_path / "cut.gguf").write_bytes((tmp_path / "fable.gguf").read_bytes()[:100_000])
    return tmp_path


@pytest.fixture
def url(folder, serving_files):
    with serving_files(
        parse_config(SETTINGS.format(budget="1GiB", ctx=256), folder / "shardload.toml")
    ) as url:
        yield url


@pytest.fixture
def tight_url(folder, serving_files):
    config = parse_config(SETTINGS.format(budget=ROOM_FOR_ONE, ctx=LONG_CTX), folder / "shardload.toml")
    with serving_files(config) as url:
        yield url


def refused(error_of, url, model, **options):
    body = {"model": model, "prompt": "the end", "max_tokens": 4, **options}
    answer = httpx.post(f"{url}/v1/completions", json=body, timeout=60)
    return answer.status_code, error_of(answer)


def test_text_that_a_vocabulary_cannot_encode(url, say, error_of):
    assert say(url, "letters", "the end")
    for prompt in ("the \N{SNOWMAN}", "0123", "the \x00"):
        status, error = refused(error_of, url, "letters", prompt=prompt)
        assert (status, error["type"]) == (400, "invalid_request_error")
        assert repr(prompt[-1]) in error["message"] or repr(prompt[0]) in error["message"]
    assert say(url, "letters", "the end")


def test_an_open_that_fails_has_a_reason_and_others_go_on(url, say, error_of):
    alone = say(url, "fable", max_tokens=200, ignore_eos=True)
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(say, url, "fable", max_tokens=200, ignore_eos=True)
        for _ in range(3):
            status, error = refused(error_of, url, "strange")
            assert status == 503
            assert "unknown model architecture: 'nonesuch'" in error["message"]
        assert running.result(60) == alone
    states = {each["name"]: each for each in httpx.get(f"{url}/models").json()["models"]}
    assert states["strange"]["state"] == "failed"
    assert "nonesuch" in states["strange"]["error"]


def test_a_file_that_is_cut_short_says_so(url, error_of):
    status, error = refused(error_of, url, "cut")
    assert status == 503
    assert "the file has 100000: it is cut short" in error["message"]
    assert "cut" not in [model["id"] for model in httpx.get(f"{url}/v1/models").json()["data"]]


def test_a_file_replaced_while_it_is_open(url, folder, say):
    fable, pirate = say(url, "fable"), say(url, "pirate")
    assert fable != pirate
    copy_demo("pirate", folder / "fable.gguf")
    assert say(url, "fable") == pirate
    (folder / "junk").write_bytes(b"no model")
    os.replace(folder / "junk", folder / "fable.gguf")
    assert say(url, "fable") == pirate


def test_a_file_deleted_while_it_is_open(url, folder, say, error_of):
    fable = say(url, "fable")
    (folder / "fable.gguf").unlink()
    assert say(url, "fable") == fable
    assert httpx.post(f"{url}/models/unload", json={"model": "fable"}, timeout=60).status_code == 200
    status, error = refused(error_of, url, "fable")
    assert status == 404
    assert error["code"] == "model_not_found"
    copy_demo("fable", folder / "fable.gguf")
    while httpx.get(f"{url}/v1/models/fable").status_code != 200:
        pass  # the folder was looked at a moment ago
    assert say(url, "fable") == fable


def test_a_model_that_fits_nowhere(tight_url, say, error_of):
    status, error = refused(error_of, tight_url, "huge")
    assert status == 503
    assert f"the budget is 40.0 MiB ({40 * 2**20} bytes)" in error["message"]
    assert re.search(r"'huge' needs [0-9.]+ MiB \([0-9]{9} bytes\)", error["message"])
    assert say(tight_url, "fable")


def test_all_that_could_leave_are_pinned(tight_url, say, error_of):
    def pin(pinned):
        httpx.post(f"{tight_url}/models/pin", json={"model": "fable", "pinned": pinned}, timeout=60)

    assert say(tight_url, "fable")
    pin(True)
    status, error = refused(error_of, tight_url, "pirate")
    assert status == 503
    assert "pinned models hold: fable" in error["message"]
    pin(False)
    assert say(tight_url, "pirate")


def test_a_full_queue(url, say, error_of):
    long = {"model": "fable", "prompt": "x", "ignore_eos": True, "stream": True, "n": 64}

    def holders():
        models = httpx.get(f"{url}/models").json()["models"]
        return next(model["leases"] + model["queued"] for model in models if model["name"] == "fable")

    with ThreadPoolExecutor(1) as pool:
        with httpx.stream("POST", f"{url}/v1/completions", json=long, timeout=60):
            waiting = pool.submit(say, url, "fable", n=8, max_tokens=200, ignore_eos=True)
            while holders() < 2:
                assert not waiting.done()
            answer = httpx.post(f"{url}/v1/completions", json=long, timeout=60)
            assert answer.status_code == 429
            assert int(answer.headers["retry-after"]) >= 1
            assert "'fable'" in error_of(answer)["message"]
            assert say(url, "pirate")
        assert waiting.result(60)
