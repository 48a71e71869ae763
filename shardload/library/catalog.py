"""The models that there are: files found, names configured, virtual models resolved."""

from __future__ import annotations

import copy
import logging
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import TypeVar

from shardload.config import Config, ModelConfig
from shardload.errors import GGUFError, ModelNotFound, OpenFailed, RequestError
from shardload.library.entry import Kind, ModelEntry
from shardload.library.facts import FileFacts, file_key, read_facts
from shardload.library.scan import find_files

__all__ = ["Catalog", "Kind", "ModelEntry"]

T = TypeVar("T")

DEFAULT_CTX_TOKENS = 4096

logger = logging.getLogger("shardload.library")


@dataclass(frozen=True, slots=True)
class _State:
    """One consistent view; replaced as a whole."""

    config: Config
    found: Mapping[str, Path]
    """What was found for each name, though it may have been given another file since."""
    files: Mapping[str, FileFacts] = field(default_factory=dict)
    broken: Mapping[str, GGUFError] = field(default_factory=dict)
    entries: Mapping[str, ModelEntry] = field(default_factory=dict)
    aliases: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Replacement:
    """Another file for a name, read and ready to be served."""

    name: str
    facts: FileFacts
    entry: ModelEntry
    """What the name will stand for."""
    stays: bool
    """Whether a rescan keeps it."""


class Catalog:
    """Every model by name. Reads headers only; changed by its owner alone, on one thread."""

    def __init__(self, config: Config, keep: Mapping[str, Path] | None = None) -> None:
        """Scan the folders and read the headers.

        Names in ``keep`` have the file given there. Raises ConfigError where names or bases contradict.
        """
        self.version = 0
        """Changes with everything that a name stands for."""
        self._state = _State(config, {})
        self._replaced: Mapping[str, Path] = {}
        self._take(_build(config, keep or {}), keep or {})

    @classmethod
    def from_config(cls, config: Config) -> Catalog:
        """The catalog of a configuration; raises ConfigError."""
        return cls(config)

    @property
    def config(self) -> Config:
        """What the catalog was made from."""
        return self._state.config

    @property
    def problems(self) -> Mapping[Path, GGUFError]:
        """The files that cannot be served, and why."""
        return MappingProxyType({Path(error.path): error for error in self._state.broken.values()})

    def get(self, name: str) -> ModelEntry:
        """Find a model by name or alias.

        Raises ModelNotFound, and OpenFailed for a model whose file cannot be served.
        """
        state = self._state
        name = state.aliases.get(name, name)
        if (entry := state.entries.get(name)) is not None:
            return entry
        if (error := state.broken.get(name)) is not None:
            raise OpenFailed(name, str(error)) from error
        raise ModelNotFound(name, state.entries)

    def names(self) -> tuple[str, ...]:
        """Names of all servable models, sorted, without aliases."""
        return tuple(self._state.entries)

    def entries(self) -> tuple[ModelEntry, ...]:
        """All servable models, sorted by name."""
        return tuple(self._state.entries.values())

    def allowed(self, path: str | os.PathLike[str]) -> bool:
        """Whether a file may be served at a client's wish: it is in a served folder, or listed itself."""
        config, wanted = self._state.config, Path(path)
        if any(wanted == facts.path for facts in self._state.files.values()):
            return True
        try:
            real = wanted.resolve()
        except (ValueError, RuntimeError):  # a NUL, or links in a circle
            return False
        if any(real == facts.path.resolve() for facts in self._state.files.values()):
            return True
        folders = [Path(text) for text in (*config.folders, *config.files)]
        return any(folder.is_dir() and real.is_relative_to(folder.resolve()) for folder in folders)

    def prepare(self, name: str, path: Path | None = None) -> Replacement:
        """Read another file for a name, or (None) its own as it is now; changes nothing, on any thread.

        Raises ModelNotFound, RequestError for a path outside the served folders or a virtual name, and a
        GGUFError for a file that is no servable model.
        """
        name, facts = self._read(name, path)
        entry = self._derived({**self._state.files, name: facts}).entries[name]
        return Replacement(name, facts, entry, stays=path is not None)

    def commit(self, replacement: Replacement) -> ModelEntry:
        """Give a name the file that was prepared; virtual models on it follow."""
        name = replacement.name
        self._set(self._derived({**self._state.files, name: replacement.facts}))
        if replacement.stays:
            self._replaced = {**self._replaced, name: replacement.facts.path}
        return self._state.entries[name]

    def replace(self, name: str, path: Path | None = None) -> ModelEntry:
        """`prepare` and `commit`; nothing has changed when it raises."""
        return self.commit(self.prepare(name, path))

    def root(self, name: str) -> str:
        """The name with a file of its own that a name is, or stands on."""
        name = self.get(name).name
        while (base := self._state.entries[name].base) is not None:
            name = base
        return name

    def dependents(self, name: str) -> tuple[str, ...]:
        """A name and every virtual model on its file."""
        root = self.root(name)
        return tuple(other for other in self._state.entries if self.root(other) == root)

    def rescanned(self, held: Collection[str] = ()) -> Catalog:
        """The catalog that the same folders make now, on any thread; reads the headers of what has changed.

        Names that were given another file keep it, and those that are ``held`` keep their file as it was,
        whatever has become of it. Raises ConfigError where names or bases contradict, or a folder is gone.
        """
        other = copy.copy(self)
        keep = other._replaced
        other._take(_build(other.config, keep, other._state, held), keep)
        return other

    def adopt(self, other: Catalog) -> None:
        """Become what another catalog is."""
        self._replaced = other._replaced
        self._set(other._state)

    def _take(self, state: _State, keep: Mapping[str, Path]) -> None:
        for name, error in state.broken.items():
            # A file that is still being copied fails in another way at each look: it is told once.
            if name not in self._state.broken:
                logger.warning("cannot serve %s: %s", name, error)
        self._state = state
        self._replaced = {name: path for name, path in keep.items() if name in state.files}

    def _set(self, state: _State) -> None:
        self._state = state
        self.version += 1

    def _read(self, name: str, path: Path | None) -> tuple[str, FileFacts]:
        state = self._state
        name = state.aliases.get(name, name)
        if name not in state.files and name not in state.broken:
            entry = self.get(name)
            raise RequestError(
                f"the model {name!r} is a virtual one on {entry.base!r}: give that one another file",
                param="model",
            )
        if path is None:
            return name, read_facts(state.files[name].path)
        if not self.allowed(path):
            raise RequestError(f"{path} is outside the served folders", param="path")
        return name, read_facts(Path(path).absolute())

    def _derived(self, files: Mapping[str, FileFacts]) -> _State:
        broken = {name: error for name, error in self._state.broken.items() if name not in files}
        return _derive(replace(self._state, files=dict(sorted(files.items())), broken=broken))


def _build(
    config: Config, keep: Mapping[str, Path], earlier: _State | None = None, held: Collection[str] = ()
) -> _State:
    files: dict[str, FileFacts] = {}
    broken: dict[str, GGUFError] = {}
    known = {} if earlier is None else earlier.files
    held = known.keys() & held
    found = find_files(config, None if earlier is None else earlier.found)
    wanted = {**found, **{name: path for name, path in keep.items() if name in found}}
    for name in sorted({*wanted, *held}):
        try:
            files[name] = known[name] if name in held else _current_facts(wanted[name], known.get(name))
        except GGUFError as error:
            broken[name] = error
    return _derive(_State(config, found, files, broken))


def _current_facts(path: Path, known: FileFacts | None) -> FileFacts:
    try:
        if known is not None and known.path == path and file_key(known.paths) == known.file_key:
            return known
    except OSError:
        pass  # gone or unreadable: reading it says so properly
    return read_facts(path)


def _derive(state: _State) -> _State:
    """The same files with entries composed anew; reads nothing."""
    config, files, broken = state.config, state.files, state.broken
    state = replace(state, aliases=_aliases(config, {*files, *broken}))
    entries: dict[str, ModelEntry] = {}
    all_broken = dict(broken)
    for name in sorted({*files, *config.models}):
        chain = _chain(state, name)
        if (error := broken.get(chain[-1])) is not None:
            all_broken[name] = error
        else:
            entries[name] = _entry(config, chain, files[chain[-1]])
    return replace(state, broken=all_broken, entries=entries)


def _aliases(config: Config, file_names: set[str]) -> dict[str, str]:
    aliases: dict[str, str] = {}
    for name, model in config.models.items():
        for alias in model.aliases:
            if alias in file_names or alias in config.models or alias == "auto":
                raise config.error(f"the alias {alias!r} is the name of a model", "models", name, "aliases")
            if aliases.setdefault(alias, name) != name:
                message = f"{alias!r} is an alias of both {aliases[alias]!r} and {name!r}"
                raise config.error(message, "models", name, "aliases")
    return aliases


def _chain(state: _State, name: str) -> list[str]:
    """A name, its base, the base of that, down to the name that has a file."""
    config, chain = state.config, [name]
    while (base := _model(config, chain[-1]).base) is not None:
        base = state.aliases.get(base, base)
        if base in chain:
            loop = " -> ".join([*chain, base])
            raise config.error(f"virtual models in a circle: {loop}", "models", chain[-1], "base")
        if base not in config.models and base not in state.files and base not in state.broken:
            message = f"the base {base!r} of the model {chain[-1]!r} does not exist; there are: "
            message += ", ".join(sorted(state.files)) or "none"
            raise config.error(message, "models", chain[-1], "base")
        chain.append(base)
    root = chain[-1]
    if root not in state.files and root not in state.broken:
        there = ", ".join(sorted(state.files)) or "none"
        message = f"the model {root!r} is no file that was found ({there}): give it file or base"
        raise config.error(message, "models", root)
    return chain


def _model(config: Config, name: str) -> ModelConfig:
    return config.models.get(name) or ModelConfig()


def _entry(config: Config, chain: Sequence[str], facts: FileFacts) -> ModelEntry:
    models = [_model(config, name) for name in chain]
    own = models[0]
    parameters = {key: value for model in reversed(models) for key, value in model.parameters.items()}
    template = _first([model.chat_template or None for model in models]) or facts.chat_template
    wanted_ctx = _first([model.ctx for model in models])
    ctx_tokens = config.engine.ctx if wanted_ctx is None else wanted_ctx
    return ModelEntry(
        name=chain[0],
        path=facts.path,
        paths=facts.paths,
        aliases=own.aliases,
        base=chain[1] if len(chain) > 1 else None,
        ctx_tokens=ctx_tokens or min(facts.context_length or DEFAULT_CTX_TOKENS, DEFAULT_CTX_TOKENS),
        slots=_first([model.parallel for model in models]) or config.engine.parallel,
        parameters=MappingProxyType(parameters),
        system=_first([model.system for model in models]),
        chat_template=template,
        pin=own.pin,
        preload=own.preload,
        keep_alive_seconds=_first([model.keep_alive for model in models]),
        kind=facts.kind,
        capabilities=_capabilities(facts, template),
        architecture=facts.architecture,
        parameter_count=facts.parameter_count,
        size_bytes=facts.size_bytes,
        context_length=facts.context_length,
        file_key=facts.file_key,
        created=facts.created,
        memory=facts.memory,
        kv_type=_first([model.kv_type for model in models]) or config.engine.kv_type,
    )


def _first(values: Sequence[T | None]) -> T | None:
    return next((value for value in values if value is not None), None)


def _capabilities(facts: FileFacts, template: str | None) -> frozenset[str]:
    if facts.kind == "embed":
        return frozenset({"embedding"} if facts.embeds else ())
    able = {"completion"}
    if template is not None:
        able.add("chat")
        if "tools" in template:
            able.add("tools")
    return frozenset(able)
