from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardload.config import Config, ModelConfig, parse_config
from shardload.errors import ConfigError
from shardload.library.scan import find_files, model_name, name_files, survey


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


def test_what_was_found_earlier_keeps_its_name(tmp_path: Path) -> None:
    touch(tmp_path / "x" / "m.gguf")
    config = Config(folders=(str(tmp_path),))
    earlier = find_files(config)
    touch(tmp_path / "a" / "m.gguf")
    assert find_files(config, earlier) == {"a/m": tmp_path / "a" / "m.gguf", "m": tmp_path / "x" / "m.gguf"}
    (tmp_path / "x" / "m.gguf").unlink()
    assert find_files(config, earlier) == {"m": tmp_path / "a" / "m.gguf"}


def test_a_file_that_the_configuration_names_has_its_own_name_too(tmp_path: Path) -> None:
    file = tmp_path / "m.gguf"
    config = Config(folders=(str(tmp_path),), models={"other": ModelConfig(file=str(file))})
    earlier = find_files(config)
    assert earlier == {"other": file}
    touch(file)
    assert find_files(config, earlier) == {"m": file, "other": file}


def test_a_new_file_takes_no_alias(tmp_path: Path) -> None:
    touch(tmp_path / "x" / "m.gguf")
    config = Config(folders=(str(tmp_path),), models={"m": ModelConfig(aliases=("best",))})
    earlier = find_files(config)
    touch(tmp_path / "x" / "best.gguf")
    assert list(find_files(config, earlier)) == ["m", "x/best"]


def test_names_that_the_configuration_builds_on_stay_without_their_file(tmp_path: Path) -> None:
    touch(tmp_path / "m.gguf", tmp_path / "n.gguf", tmp_path / "o.gguf")
    models = {"v": ModelConfig(base="m"), "o": ModelConfig(ctx=64)}
    config = Config(folders=(str(tmp_path),), models=models)
    earlier = find_files(config)
    for name in "mno":
        (tmp_path / f"{name}.gguf").unlink()
    assert find_files(config, earlier) == {name: tmp_path / f"{name}.gguf" for name in "mo"}


def test_a_survey_sees_what_makes_a_difference(tmp_path: Path) -> None:
    touch(tmp_path / "m.gguf", tmp_path / "big-00001-of-00002.gguf", tmp_path / "n.gguf", tmp_path / "note")
    lone = tmp_path / "elsewhere" / "lone.bin"
    touch(lone)
    (tmp_path / "nowhere.gguf").symlink_to(tmp_path / "absent")
    config = Config(folders=(str(tmp_path),), models={"lone": ModelConfig(file=str(lone))})
    states = [survey(config)]
    touch(tmp_path / "big-00002-of-00002.gguf")
    states.append(survey(config))
    (tmp_path / "n.gguf").unlink()
    states.append(survey(config))
    (tmp_path / "m.gguf").write_bytes(b"more")
    states.append(survey(config))
    lone.write_bytes(b"more")
    states.append(survey(config))
    assert all(state not in states[:index] for index, state in enumerate(states))
    assert survey(config) == states[-1]
    assert len(states[-1]) == 4


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
