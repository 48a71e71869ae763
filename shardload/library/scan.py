"""Which model files there are, and what they are called."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from shardload.config import Config
from shardload.gguf.splits import SPLIT_NAME
from shardload.library.entry import FileKey
from shardload.library.facts import file_key

SUFFIX = ".gguf"


def find_files(config: Config, earlier: Mapping[str, Path] | None = None) -> dict[str, Path]:
    """Map names to the files of the configuration, in the order of names; split models by their first part.

    What was found ``earlier`` keeps its name when another file comes that is called alike, and names that the
    configuration builds on stay without their file. Raises ConfigError for a folder that is not there.
    """
    named = {name: Path(model.file) for name, model in config.models.items() if model.file is not None}
    found = set(_first_parts(_listed(config)))
    if earlier is None:
        return dict(sorted({**name_files(found, taken=named), **named}.items()))
    kept = {name: path for name, path in earlier.items() if path in found and name not in named}
    needed = {*config.models, *(model.base for model in config.models.values())}
    gone = {name: path for name, path in earlier.items() if path not in found and name in needed}
    aliases = {alias for model in config.models.values() for alias in model.aliases}
    new = name_files(found.difference(kept.values()), taken={*named, *kept, *aliases})
    return dict(sorted({**gone, **new, **kept, **named}.items()))


def survey(config: Config) -> dict[Path, FileKey]:
    """The state of every file that may be a model, or a part of one: what differs makes another catalog.

    Raises ConfigError for a folder that is not there, and reads no file.
    """
    named = (Path(model.file) for model in config.models.values() if model.file is not None)
    states: dict[Path, FileKey] = {}
    for path in (*_listed(config), *named):
        with suppress(OSError):  # gone again, or a link to nowhere
            states[path] = file_key((path,))
    return states


def _listed(config: Config) -> Iterator[Path]:
    for keys, paths in (("folders", config.folders), ("files", config.files)):
        for index, text in enumerate(paths):
            path = Path(text).absolute()
            if path.is_dir():
                yield from _walk(path)
            elif keys == "folders":
                raise config.error(f"the folder {text} does not exist", keys, index)
            else:
                yield path


def name_files(paths: Iterable[Path], taken: Collection[str]) -> dict[str, Path]:
    """Name each file by itself, with as many of its folders in front as it takes to tell it from others."""
    names: dict[str, Path] = {}
    waiting = sorted(paths)
    deepest = max((len(path.parts) for path in waiting), default=0)
    for folders in range(deepest):
        groups: dict[str, list[Path]] = {}
        for path in waiting:
            groups.setdefault(model_name(path, folders), []).append(path)
        unique = {name: group[0] for name, group in groups.items() if len(group) == 1 and name not in taken}
        names |= unique
        waiting = [path for path in waiting if path not in unique.values()]
    # What is left differs in the suffix alone, such as models in 2 and in 3 parts in one folder.
    return names | {str(path): path for path in waiting}


def model_name(path: Path, folders: int = 0) -> str:
    """The name of a file without suffix and number of its part, after the last ``folders`` folders."""
    split = SPLIT_NAME.fullmatch(path.name)
    stem = split["prefix"] if split else path.name.removesuffix(SUFFIX)
    parents = [part for part in path.parts[:-1] if part != path.anchor]
    return "/".join([*(parents[-folders:] if folders else []), stem])


def _walk(folder: Path) -> Iterator[Path]:
    for root, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(root, name) for name in sorted(files) if _is_model_name(name))


def _is_model_name(name: str) -> bool:
    return name.endswith(SUFFIX) and not name.startswith(".")


def _first_parts(paths: Iterable[Path]) -> Iterator[Path]:
    """One path for each model: of split files the first part, whether or not it is there."""
    for path in paths:
        split = SPLIT_NAME.fullmatch(path.name)
        if split is None:
            yield path
        else:
            yield path.with_name(f"{split['prefix']}-00001-of-{split['count']}{SUFFIX}")
