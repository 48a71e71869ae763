from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from shardload.config import parse_config
from shardload.errors import (
    ConfigError,
    CorruptGGUF,
    MissingSplit,
    ModelNotFound,
    NoSuchFile,
    NotGGUF,
    OpenFailed,
    RequestError,
)
from shardload.library.catalog import Catalog

Make = Callable[..., Path]


def catalog(tmp_path: Path, text: str = "") -> Catalog:
    return Catalog.from_config(parse_config(f"folders = ['.']\n{text}", tmp_path / "shardload.toml"))


def test_entry_of_a_found_file(tmp_path: Path, make_model: Make) -> None:
    path = make_model("plain.gguf", tokenizer__chat_template="{% if tools %}{% endif %}")
    entry = catalog(tmp_path).get("plain")
    assert (entry.name, entry.path, entry.paths, entry.base) == ("plain", path, (path,), None)
    assert (entry.ctx_tokens, entry.slots, entry.context_length) == (512, 4, 512)
    assert (entry.kind, set(entry.capabilities)) == ("generate", {"completion", "chat", "tools"})
    assert (entry.architecture, entry.parameter_count, entry.size_bytes) == (
        "llama",
        192,
        path.stat().st_size,
    )
    state = path.stat()
    assert entry.file_key == ((state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns),)
    assert entry.created == int(state.st_mtime)
    assert (entry.chat_template, entry.system, entry.keep_alive_seconds) == (
        "{% if tools %}{% endif %}",
        None,
        None,
    )


@pytest.mark.parametrize(
    ("architecture", "pooling", "kind", "capabilities"),
    [
        ("bert", 1, "embed", {"embedding"}),
        ("bert", None, "embed", {"embedding"}),
        ("qwen3", 3, "embed", {"embedding"}),
        ("qwen3", 4, "embed", set()),
        ("qwen3", 0, "generate", {"completion"}),
    ],
)
def test_kinds(
    tmp_path: Path,
    make_model: Make,
    architecture: str,
    pooling: int | None,
    kind: str,
    capabilities: set[str],
) -> None:
    keys = {} if pooling is None else {f"{architecture}__pooling_type": pooling}
    make_model("m.gguf", architecture=architecture, **keys)
    entry = catalog(tmp_path).get("m")
    assert (str(entry.kind), set(entry.capabilities)) == (kind, capabilities)


def test_context_defaults(tmp_path: Path, make_model: Make) -> None:
    make_model("long.gguf", llama__context_length=131072)
    make_model("short.gguf", llama__context_length=256)
    entries = catalog(tmp_path, "[models.short]\nctx = 1024")
    assert [entry.ctx_tokens for entry in entries.entries()] == [4096, 1024]
    entries = catalog(tmp_path, "[engine]\nctx = 2048\nparallel = 2\n[models.short]\nctx = 0\nparallel = 8")
    assert [(entry.ctx_tokens, entry.slots) for entry in entries.entries()] == [(2048, 2), (256, 8)]


def test_the_type_of_the_cache(tmp_path: Path, make_model: Make) -> None:
    make_model("a.gguf")
    make_model("b.gguf")
    models = catalog(
        tmp_path,
        "[engine]\nkv_type = 'q8_0'\n[models.b]\nkv_type = 'q4_0'\n"
        "[models.c]\nbase = 'b'\n[models.d]\nbase = 'b'\nkv_type = 'f16'",
    )
    assert {entry.name: entry.kv_type for entry in models.entries()} == {
        "a": "q8_0",
        "b": "q4_0",
        "c": "q4_0",
        "d": "f16",
    }
    assert catalog(tmp_path).get("a").kv_type == "f16"


def test_virtual_models(tmp_path: Path, make_model: Make) -> None:
    path = make_model("root.gguf")
    models = catalog(
        tmp_path,
        """
        [models.root]
        aliases = ["r"]
        keep_alive = 60
        pin = true
        parameters = { temperature = 0.5, top_k = 10 }
        [models.middle]
        base = "r"
        system = "Be brief."
        ctx = 128
        parameters = { temperature = 0.1 }
        [models.top]
        base = "middle"
        chat_template = "T"
        parallel = 1
        """,
    )
    assert models.names() == ("middle", "root", "top")
    top, middle, root = models.get("top"), models.get("middle"), models.get("r")
    assert (root.name, root.pin, top.pin) == ("root", True, False)
    assert (middle.base, top.base, top.path) == ("root", "middle", path)
    assert dict(top.parameters) == {"temperature": 0.1, "top_k": 10}
    assert (top.system, top.ctx_tokens, top.slots, top.keep_alive_seconds) == ("Be brief.", 128, 1, 60)
    assert (top.chat_template, middle.chat_template) == ("T", None)
    assert "chat" in top.capabilities
    assert top.file_key == root.file_key
    assert models.dependents("middle") == ("middle", "root", "top")


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("[models.a]\nbase = 'b'\n[models.b]\nbase = 'a'", 5, "in a circle: a -> b -> a"),
        ("[models.a]\nbase = 'a'", 3, "in a circle: a -> a"),
        (
            "[models.a]\nbase = 'nowhere'",
            3,
            "the base 'nowhere' of the model 'a' does not exist; there are: root",
        ),
        ("[models.a]\npin = true", 2, "the model 'a' is no file that was found"),
        ("[models.a]\nbase = 'root'\naliases = ['root']", 4, "the alias 'root' is the name of a model"),
        (
            "[models.root]\naliases = ['x']\n[models.b]\nbase = 'x'\naliases = ['x']",
            6,
            "alias of both 'root' and 'b'",
        ),
    ],
)
def test_contradictions(tmp_path: Path, make_model: Make, text: str, line: int, says: str) -> None:
    make_model("root.gguf")
    with pytest.raises(ConfigError) as caught:
        catalog(tmp_path, text)
    assert says in str(caught.value)
    assert caught.value.line == line


def test_unknown_model_names_those_there_are(tmp_path: Path, make_model: Make) -> None:
    make_model("one.gguf")
    with pytest.raises(ModelNotFound, match="'three' does not exist; available: one") as caught:
        catalog(tmp_path).get("three")
    assert caught.value.available == ("one",)


def test_files_that_are_no_models_stop_nobody(tmp_path: Path, make_model: Make) -> None:
    good = make_model("good.gguf")
    (tmp_path / "cut.gguf").write_bytes(good.read_bytes()[:100])
    (tmp_path / "empty.gguf").touch()
    (tmp_path / "part-00002-of-00002.gguf").write_bytes(good.read_bytes())
    (tmp_path / "dir.gguf").mkdir()
    make_model("lora.gguf", general__type="adapter")
    make_model("eye.gguf", architecture="clip")
    text = "[models.twin]\nbase = 'cut'\n[models.absent]\nfile = 'absent.gguf'"
    models = catalog(tmp_path, text)
    assert models.names() == ("good",)
    kinds = {path.name: type(error) for path, error in models.problems.items()}
    assert kinds["cut.gguf"] is CorruptGGUF
    assert kinds["empty.gguf"] is NotGGUF
    assert kinds["absent.gguf"] is NoSuchFile
    assert kinds["part-00001-of-00002.gguf"] in (MissingSplit, NoSuchFile)
    assert {"lora.gguf", "eye.gguf"} <= kinds.keys()
    for name in ("cut", "twin", "part", "absent", "lora"):
        with pytest.raises(OpenFailed, match=name):
            models.get(name)


def test_a_folder_and_a_file_without_permission(tmp_path: Path, make_model: Make) -> None:
    path = make_model("secret.gguf")
    folder = tmp_path / "folder.gguf"
    folder.mkdir()
    config = parse_config(f"models.a.file = '{folder}'\nmodels.b.file = '{path}'", tmp_path / "x.toml")
    path.chmod(0)
    try:
        models = Catalog(config)
    finally:
        path.chmod(0o600)
    broken = {"a"} if os.geteuid() == 0 else {"a", "b"}
    assert set(models.names()) == {"a", "b"} - broken


def test_allowed(tmp_path: Path, make_model: Make) -> None:
    inside, outside = make_model("served/a.gguf"), make_model("other/b.gguf")
    single = make_model("lone/c.gguf")
    (tmp_path / "served" / "link.gguf").symlink_to(outside)
    text = f"folders = ['served']\nfiles = ['{single}']"
    models = Catalog(parse_config(text, tmp_path / "shardload.toml"))
    assert models.allowed(inside)
    assert models.allowed(tmp_path / "served" / ".." / "served" / "new.gguf")
    assert models.allowed(single)
    assert not models.allowed(tmp_path / "lone" / "d.gguf")
    assert not models.allowed(tmp_path / "served" / ".." / "other" / "d.gguf")
    assert not models.allowed("/etc/passwd")
    assert not models.allowed(tmp_path / "served" / "a\0.gguf")
    (tmp_path / "served" / "circle.gguf").symlink_to(tmp_path / "served" / "circle.gguf")
    assert not models.allowed(tmp_path / "served" / "circle.gguf")


def test_replace(tmp_path: Path, make_model: Make) -> None:
    old, new = make_model("a.gguf"), make_model("later/b.gguf", llama__context_length=300)
    models = catalog(tmp_path, "[models.v]\nbase = 'a'")
    assert models.prepare("a", new).entry.path == new
    assert models.get("a").path == old
    assert models.replace("a", new).ctx_tokens == 300
    assert (models.get("a").path, models.get("v").path) == (new, new)
    models.adopt(models.rescanned())
    assert models.get("v").path == new
    with pytest.raises(RequestError, match="virtual one on 'a'"):
        models.replace("v", old)
    with pytest.raises(RequestError, match="outside the served folders"):
        models.replace("a", Path("/etc/passwd"))
    (tmp_path / "bad.gguf").write_bytes(old.read_bytes()[:90])
    with pytest.raises(CorruptGGUF):
        models.replace("a", tmp_path / "bad.gguf")
    with pytest.raises(ModelNotFound):
        models.replace("z", old)
    assert models.get("a").path == new


def test_replace_reads_the_own_file_again(tmp_path: Path, make_model: Make) -> None:
    make_model("a.gguf")
    models = catalog(tmp_path)
    before = models.get("a")
    make_model("a.gguf", llama__context_length=1000)
    assert models.get("a") is before
    assert models.replace("a").context_length == 1000


def test_rescan_and_adopt(tmp_path: Path, make_model: Make) -> None:
    make_model("a.gguf")
    models = catalog(tmp_path)
    make_model("b.gguf")
    models.adopt(models.rescanned())
    assert models.names() == ("a", "b")
    version = models.version
    models.adopt(Catalog(parse_config("files = ['b.gguf']", tmp_path / "x.toml")))
    assert models.names() == ("b",)
    assert models.version > version


def test_kept_files(tmp_path: Path, make_model: Make) -> None:
    make_model("a.gguf")
    other = make_model("elsewhere/other.gguf")
    models = Catalog(parse_config("files = ['a.gguf']", tmp_path / "x.toml"), {"a": other, "gone": other})
    assert models.names() == ("a",)
    assert models.get("a").path == other
    models.adopt(models.rescanned())
    assert models.get("a").path == other
