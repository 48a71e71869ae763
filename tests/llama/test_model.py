from __future__ import annotations

import ctypes
import gc
import logging
import os
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import gguf
import numpy as np
import psutil
import pytest
from copied_gguf import copy_model, split_model
from tiny_gguf import write_llama

from shardload import memory
from shardload.engine.runner import Run
from shardload.errors import HandleClosed, LoadFailed
from shardload.llama import Context, ContextParams, Model, ModelParams
from shardload.memory.mapped import mapped_files

linux_only = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="lazy mapping is for Linux")


def test_facts_of_a_model(model: Model, llama_path: Path) -> None:
    assert model.path == llama_path
    assert model.architecture == "llama"
    assert (model.n_embd, model.n_layer, model.n_ctx_train) == (64, 2, 512)
    assert model.n_vocab == model.vocab.n_tokens
    assert model.n_params * 4 == model.size_bytes
    assert model.pooling is None
    assert model.metadata("llama.block_count") == "2"
    assert model.metadata("no.such.key") is None


@pytest.mark.parametrize(
    ("number", "pooling"), [(0, "none"), (1, "mean"), (4, "rank"), (5, None), (12, None), (34, None)]
)
def test_pooling_is_what_the_file_says(
    tmp_path: Path, llama_path: Path, number: int, pooling: str | None
) -> None:
    path = copy_model(
        llama_path, tmp_path / "p.gguf", lambda writer: writer.add_uint32("llama.pooling_type", number)
    )
    with Model.open([path]) as model:
        assert model.pooling == pooling


def test_a_model_whose_facts_cannot_be_read_is_closed(
    llama_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(model: Model, key: str) -> str | None:
        raise MemoryError(key)

    mapped = dict(mapped_files()._files)
    monkeypatch.setattr(Model, "metadata", fail)
    with pytest.raises(MemoryError) as caught:
        Model.open([llama_path])
    # What was raised still keeps the half of a model.
    assert caught.value.__traceback__ is not None
    assert mapped_files()._files == mapped


@linux_only
def test_opening_touches_no_weight(disk_path: Path) -> None:
    path = write_llama(disk_path / "large.gguf", dim=512, hidden=8192, layers=2)
    size = path.stat().st_size
    assert size > 100 * 2**20
    with open(path, "rb") as file:
        os.fsync(file.fileno())
    memory.drop_file_cache(path)
    before = memory.file_resident_bytes(path)
    assert before == 0
    with Model.open([path]) as model:
        assert model.lazily_mapped
        # Reading the header makes the kernel read ahead by a window of its own.
        assert (model.resident_bytes() or 0) < size // 4
        with Context(model, ContextParams(ctx_tokens=256, threads=1, threads_batch=1)):
            assert (model.resident_bytes() or 0) < size // 4


@linux_only
def test_mappings_are_what_is_mapped(model: Model, llama_path: Path) -> None:
    assert {mapping.path for mapping in model.mappings} == {str(llama_path.resolve())}
    for mapping in model.mappings:
        with open(llama_path, "rb") as file:
            file.seek(mapping.offset)
            expected = file.read(64)
        assert ctypes.string_at(mapping.address, 64) == expected
        assert mapping.offset + mapping.length <= llama_path.stat().st_size + memory.PAGE_BYTES


@linux_only
def test_pages_leave_and_come_back(disk_path: Path) -> None:
    path = write_llama(disk_path / "m.gguf", dim=256, hidden=4096)
    with open(path, "rb") as file:
        os.fsync(file.fileno())
    with Model.open([path]) as model:
        for mapping in model.mappings:
            memory.populate_read(mapping.address, mapping.length)
        full = model.resident_bytes()
        assert full == path.stat().st_size
        for mapping in model.mappings:
            memory.page_out(mapping.address, mapping.length)
        assert (model.resident_bytes() or 0) < full // 2


def test_plain_load_works_without_the_hooks(llama_path: Path) -> None:
    with Model.open([llama_path], ModelParams(lazy=False)) as model:
        assert not model.lazily_mapped
        assert model.mappings == ()
        assert model.vocab.tokenize("the")


def test_extra_buffers_read_what_they_copy(tmp_path: Path) -> None:
    path = write_llama(tmp_path / "q.gguf", quantised=gguf.GGMLQuantizationType.Q4_0)
    prompt = [Run(0, 0, [1, 260, 262, 270], "last")]
    answers = []
    for extra in (False, True):
        with (
            Model.open([path], ModelParams(use_extra_bufts=extra)) as model,
            Context(model, ContextParams(ctx_tokens=256, threads=1, threads_batch=1)) as context,
        ):
            assert model.lazily_mapped == (sys.platform.startswith("linux") and not extra)
            assert context.decode(prompt)
            answers.append(context.logits(0).copy())
    np.testing.assert_allclose(answers[0], answers[1], rtol=0.1, atol=0.5)


def test_split_models_open_whole(tmp_path: Path, llama_path: Path) -> None:
    parts = [tmp_path / f"m-0000{number}-of-00002.gguf" for number in (1, 2)]
    split_model(llama_path, parts)
    with Model.open(parts) as model, Model.open([llama_path]) as whole:
        assert model.paths == tuple(parts)
        assert model.size_bytes == whole.size_bytes
        if sys.platform.startswith("linux"):
            assert {mapping.path for mapping in model.mappings} == {str(part.resolve()) for part in parts}


def test_a_failed_load_carries_the_reason(tmp_path: Path) -> None:
    path = write_llama(tmp_path / "foo.gguf", architecture="foo")
    with pytest.raises(LoadFailed, match="unknown model architecture: 'foo'"):
        Model.open([path])
    with pytest.raises(LoadFailed, match=r"absent\.gguf"):
        Model.open([tmp_path / "absent.gguf"])


def test_a_failed_load_does_not_hurt_the_next(tmp_path: Path, llama_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(llama_path.read_bytes()[:-100_000])
    with pytest.raises(LoadFailed):
        Model.open([broken])
    with Model.open([llama_path]) as model:
        assert model.vocab.tokenize("the")


def test_llama_cpp_writes_to_logging(llama_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, logger="shardload.llama"), Model.open([llama_path]):
        pass
    assert any("llama_model_loader" in record.message for record in caplog.records)
    assert [record for record in caplog.records if record.levelno == logging.INFO][-1].message.startswith(
        f"opened {llama_path}"
    )


def test_progress_is_told_and_may_stop_the_load(llama_path: Path) -> None:
    seen: list[float] = []

    def watch(done: float) -> bool:
        seen.append(done)
        return True

    Model.open([llama_path], progress=watch).close()
    assert seen == sorted(seen)
    assert seen[-1] == 1.0
    with pytest.raises(LoadFailed, match="given up"):
        Model.open([llama_path], progress=lambda done: False)

    def fail(done: float) -> bool:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        Model.open([llama_path], progress=fail)


def test_closed_models_say_so(llama_path: Path) -> None:
    model = Model.open([llama_path])
    model.close()
    model.close()
    assert model.closed
    for use in (
        lambda: model.pointer,
        lambda: model.metadata("general.architecture"),
        lambda: model.resident_bytes(),
        lambda: model.vocab.tokenize("the"),
        lambda: Context(model, ContextParams(ctx_tokens=256, threads=1, threads_batch=1)),
    ):
        with pytest.raises(HandleClosed):
            use()


def test_a_context_keeps_its_model(llama_path: Path) -> None:
    model = Model.open([llama_path])
    context = Context(model, ContextParams(ctx_tokens=256, threads=1, threads_batch=1))
    model.close()
    assert context.piece(5) is not None
    assert model.vocab.tokenize("the")
    context.close()
    with pytest.raises(HandleClosed):
        model.vocab.tokenize("the")


def test_forgotten_handles_are_warned_about(llama_path: Path) -> None:
    model: Model | None = Model.open([llama_path])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = None
        gc.collect()
    assert model is None
    assert [str(warning.message) for warning in caught] == [f"unclosed model {llama_path}"]
    Model.open([llama_path]).close()  # frees it


def test_opening_and_closing_leaks_nothing(llama_path: Path) -> None:
    def cycle(times: int) -> None:
        for _ in range(times):
            with (
                Model.open([llama_path]) as model,
                Context(model, ContextParams(ctx_tokens=256, threads=1, threads_batch=1)),
            ):
                pass

    process = psutil.Process()
    cycle(10)
    before = process.memory_info().rss
    cycle(50)
    assert process.memory_info().rss - before < 8 * 2**20
    if sys.platform.startswith("linux"):
        assert str(llama_path) not in Path("/proc/self/maps").read_text()


def test_two_threads_may_open_at_once(llama_path: Path) -> None:
    opened: list[Model] = []

    def work() -> None:
        opened.extend(Model.open([llama_path]) for _ in range(5))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(opened) == 20
    lazy = sys.platform.startswith("linux")
    assert all(model.lazily_mapped == lazy for model in opened)
    for model in opened:
        model.close()


def test_importing_the_package_opens_no_library() -> None:
    code = (
        "import sys, shardload.llama; sys.exit('llama_cpp' in sys.modules or '_cffi_backend' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_opening_a_model_does_not_import_llama_cpp(llama_path: Path) -> None:
    code = (
        "import sys, pathlib; from shardload.llama import Model;"
        f"Model.open([pathlib.Path({str(llama_path)!r})]).close();"
        "sys.exit('llama_cpp' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
