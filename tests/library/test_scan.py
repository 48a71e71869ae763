from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardload.config import Config, ModelConfig, parse_config
from shardload.errors import ConfigError
from shardload.library.scan import find_files, model_name, name_files


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def test_folders_are_walked(tmp_path: Path) -> None:
    touch(tmp_path / "a.gguf", tmp_path / "sub" / "b.gguf", tmp_path / "sub" / "note.txt")
    touch(tmp_path / ".hidden" / "c.gguf", tmp_path / ".d.gguf")
    assert find_files(Config(folders=(str(tmp_path),))) == {
        "a": tmp_path / "a.gguf",
        "b": tmp_path / "sub" / "b.gguf",
    }


def test_split_files_are_one_model(tmp_path: Path) -> None:
    touch(*(tmp_path / f"big-0000{part}-of-00003.gguf" for part in (2, 3)))
    found = {"big": tmp_path / "big-00001-of-00003.gguf"}
    assert find_files(Config(folders=(str(tmp_path),))) == found
    assert find_files(Config(files=(str(tmp_path / "big-00002-of-00003.gguf"),))) == found


def test_same_names_get_folders(tmp_path: Path) -> None:
    touch(tmp_path / "x" / "m.gguf", tmp_path / "y" / "m.gguf", tmp_path / "y" / "n.gguf")
    assert list(find_files(Config(folders=(str(tmp_path),)))) == ["n", "x/m", "y/m"]


def test_configured_names_win(tmp_path: Path) -> None:
    touch(tmp_path / "x" / "m.gguf", tmp_path / "other.gguf")
    config = Config(
        folders=(str(tmp_path / "x"),), models={"m": ModelConfig(file=str(tmp_path / "other.gguf"))}
    )
    assert find_files(config) == {"m": tmp_path / "other.gguf", "x/m": tmp_path / "x" / "m.gguf"}


def test_file_given_as_folder_and_folder_as_file(tmp_path: Path) -> None:
    touch(tmp_path / "x" / "m.gguf")
    assert list(find_files(Config(files=(str(tmp_path / "x"),)))) == ["m"]
    with pytest.raises(ConfigError, match=r"shardload.toml:2: the folder .*absent does not exist"):
        find_files(parse_config("\nfolders = ['absent']", tmp_path / "shardload.toml"))


@pytest.mark.parametrize(
    ("path", "folders", "name"),
    [
        ("/a/b/c.gguf", 0, "c"),
        ("/a/b/c.gguf", 1, "b/c"),
        ("/a/b/c.gguf", 9, "a/b/c"),
        ("/a/c-00001-of-00002.gguf", 0, "c"),
        ("/a/c.Q4_K_M.gguf", 0, "c.Q4_K_M"),
        ("/a/strange", 0, "strange"),
    ],
)
def test_model_name(path: str, folders: int, name: str) -> None:
    assert model_name(Path(path), folders) == name


@given(
    st.sets(
        st.lists(
            st.sampled_from(["a", "b", "a.gguf", "a-00001-of-00002.gguf", "a-00001-of-00003.gguf"]),
            min_size=1,
            max_size=4,
        ).map(lambda parts: Path("/", *parts))
    )
)
def test_every_file_gets_one_name(paths: set[Path]) -> None:
    names = name_files(paths, taken={})
    assert sorted(names.values()) == sorted(paths)
    assert names == name_files(sorted(paths, reverse=True), taken={})
