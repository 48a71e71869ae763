"""Models and contexts that the garbage collector finds at the worst of moments."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from packable import linux_only
from tiny_gguf import write_llama

FORGOTTEN = """
import gc, sys, warnings
sys.path[:0] = {path!r}
from pathlib import Path
from shardload.llama import Context, ContextParams, Model
from shardload.llama.loading import Loading
warnings.simplefilter("ignore")
gc.disable()
first, second = {models!r}
forgotten = Model.open([Path(first)])
if {context}:
    forgotten = Context(forgotten, ContextParams(ctx_tokens=256, threads=1, threads_batch=1))
forgotten.itself = forgotten
del forgotten
def collecting(real):
    def call(*arguments):
        gc.collect()
        return real(*arguments)
    return call
def is_mapped(path):
    return path in Path("/proc/self/maps").read_text()
Loading.mapped, Loading.map_file = collecting(Loading.mapped), collecting(Loading.map_file)
with Model.open([Path(second)]) as model:
    assert {{mapping.path for mapping in model.mappings}} == {{second}}, model.mappings
    assert model.lazily_mapped
    assert is_mapped(first), "weights were freed under a load"
    Model.open([Path(second)]).close()
    assert not is_mapped(first), "weights were not found, or never freed"
    assert is_mapped(second)
"""


@linux_only
@pytest.mark.parametrize("context", [False, True])
def test_a_forgotten_model_may_be_found_in_the_middle_of_a_load(
    llama_path: Path, tmp_path: Path, context: bool
) -> None:
    models = [str(llama_path), str(write_llama(tmp_path / "second.gguf", seed=2))]
    code = FORGOTTEN.format(path=sys.path, models=models, context=context)
    child = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert child.returncode == 0, child.stderr


COUNTED = """
import gc, sys, warnings
sys.path[:0] = {path!r}
from pathlib import Path
from shardload.llama import Context, ContextParams, Model
from shardload.llama.handle import Handle
warnings.simplefilter("ignore")
gc.disable()
params = ContextParams(ctx_tokens=256, threads=1, threads_batch=1)
pointer = Handle.pointer
with Model.open([Path({model!r})]) as model:
    context = Context(model, params)
    context.itself = context
    del context
    def collecting(handle):
        gc.collect()
        return pointer.fget(handle)
    Handle.pointer = property(collecting)
    context = Context(model, params)
    Handle.pointer = pointer
assert model.vocab.tokenize("the")
context.close()
assert model._users == 0
"""


def test_a_forgotten_context_may_be_found_while_users_are_counted(llama_path: Path) -> None:
    code = COUNTED.format(path=sys.path, model=str(llama_path))
    child = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert child.returncode == 0, child.stderr
