"""The configuration file: its schema, and errors that name the line to look at.

Attributes are called as the keys in the file are. A value of the schema that stands for bytes or
for a duration is written by people (``"12GiB"``, ``"5m"``) and arrives here as a plain number of
bytes or seconds.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_type_hints

import msgspec

from shardload.errors import ConfigError
from shardload.quantities import parse_budget, parse_bytes, parse_bytes_or_none, parse_duration
from shardload.toml_lines import KeyPath, key_lines

Count = Annotated[int, msgspec.Meta(ge=0)]
Positive = Annotated[int, msgspec.Meta(ge=1)]
Port = Annotated[int, msgspec.Meta(ge=0, le=65535)]
FLOAT_LIMIT, FLOAT_LEAST = (2 - 2.0**-23) * 2.0**127, 2.0**-126
"""llama.cpp computes in 32 bits: beyond the one is infinity, below the other soon nothing."""
Finite = Annotated[float, msgspec.Meta(ge=-FLOAT_LIMIT, le=FLOAT_LIMIT)]
NotNegative = Annotated[float, msgspec.Meta(ge=0, le=FLOAT_LIMIT)]
MoreThanNothing = Annotated[float, msgspec.Meta(ge=FLOAT_LEAST, le=FLOAT_LIMIT)]
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
PositiveShare = Annotated[float, msgspec.Meta(ge=FLOAT_LEAST, le=1)]
CountOrAll = Annotated[int, msgspec.Meta(ge=-1, le=2**31 - 1)]
KvType = Literal["f16", "q8_0", "q4_0"]
TokenId = Annotated[str, msgspec.Meta(pattern=r"^[0-9]{1,9}$")]
HostName = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9._-]+$")]
StopText = Annotated[str, msgspec.Meta(min_length=1)]
S = TypeVar("S", bound="_Section")


class _Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A table of the file: unknown keys are refused."""


class ServerConfig(_Section, frozen=True):
    """``[server]``: the port and what may come in through it.

    ``allowed_hosts``: further names by which requests may ask for this server while it has no keys.
    """

    host: str = "127.0.0.1"
    port: Port = 8080
    api_keys: tuple[str, ...] = ()
    api_key_file: str = ""
    allowed_hosts: tuple[HostName, ...] = ()
    max_body_bytes: Positive = 32 * 1024 * 1024
    shutdown_seconds: Annotated[float, msgspec.Meta(ge=0)] = 30.0
    progress_comments: bool = True


class MemoryConfig(_Section, frozen=True):
    """``[memory]``: ``budget`` is bytes; None stands for 80 % of what is available."""

    budget: Positive | None = None


class EngineConfig(_Section, frozen=True):
    """``[engine]``: defaults of every model. 0: ``ctx`` by the model, ``threads`` by the machine."""

    ctx: Count = 0
    kv_type: KvType = "f16"
    parallel: Annotated[int, msgspec.Meta(ge=1, le=256)] = 4
    threads: Annotated[int, msgspec.Meta(ge=0, le=1024)] = 0
    gpu_layers: Annotated[int, msgspec.Meta(ge=-1)] = 0
    queue: Positive = 64
    keep_alive: float = 300.0
    batch: Annotated[int, msgspec.Meta(ge=1, le=65536)] = 512


class ParkingConfig(_Section, frozen=True):
    """``[parking]``: where conversations wait that lost their place; 0 bytes: not there.

    ``directory``: files of the user's cache where it is empty. After ``idle`` seconds without a request a
    model's KV memory is given back; below 0: never.
    """

    memory: Count = 2**30
    disk: Count = 8 * 2**30
    directory: str = ""
    idle: float = 60.0


class StoreConfig(_Section, frozen=True):
    """``[store]``: where packed weights are kept, in at most ``limit`` bytes; empty: the user's cache."""

    enabled: bool = True
    directory: str = ""
    limit: Positive = 20 * 2**30


class ParametersConfig(_Section, frozen=True):
    """``[models.NAME.parameters]``: what a request may leave out; only checked, kept as a mapping.

    The ranges are those of a request's own options, so that a value out of them is never blamed on a client.
    """

    temperature: NotNegative | None = None
    top_k: CountOrAll | None = None
    top_p: PositiveShare | None = None
    min_p: Share | None = None
    typical_p: PositiveShare | None = None
    repeat_penalty: MoreThanNothing | None = None
    repeat_last_n: CountOrAll | None = None
    presence_penalty: Finite | None = None
    frequency_penalty: Finite | None = None
    logit_bias: dict[TokenId, Finite] | None = None
    seed: Annotated[int, msgspec.Meta(ge=0, lt=2**32 - 1)] | None = None
    grammar: str | None = None
    max_tokens: Annotated[int, msgspec.Meta(ge=1, lt=2**31)] | None = None
    stop: Annotated[list[StopText], msgspec.Meta(max_length=16)] | None = None
    ignore_eos: bool | None = None


class ModelConfig(_Section, frozen=True):
    """``[models.NAME]``: a file under a name, a virtual model on a ``base``, or settings of a found file.

    None leaves a setting to ``[engine]`` or, for a virtual model, to its base.
    """

    file: str | None = None
    base: str | None = None
    aliases: tuple[str, ...] = ()
    ctx: Count | None = None
    kv_type: KvType | None = None
    parallel: Annotated[int, msgspec.Meta(ge=1, le=256)] | None = None
    pin: bool = False
    preload: bool = False
    keep_alive: float | None = None
    system: str | None = None
    chat_template: str | None = None
    parameters: dict[str, Any] = {}


class RouteMatch(_Section, frozen=True):
    """``match`` of a route: every key that is given must hold for the request."""

    model: str | None = None
    endpoint: Literal["chat", "completion", "embedding"] | None = None
    min_prompt_tokens: Count | None = None
    max_prompt_tokens: Count | None = None
    min_context_tokens: Count | None = None
    tools: bool | None = None
    json_schema: bool | None = None
    images: bool | None = None
    headers: dict[str, str] = {}
    key: str | None = None


class RouteConfig(_Section, frozen=True):
    """One ``[[routes]]`` rule; the first that matches chooses."""

    name: str
    target: str
    fallbacks: tuple[str, ...] = ()
    match: RouteMatch = RouteMatch()


class ConfigSource(msgspec.Struct, frozen=True):
    """Where a configuration came from: its path, and the line of each key."""

    path: str
    lines: Mapping[KeyPath, int]

    def error(self, message: str, *keys: str | int) -> ConfigError:
        """Compose an error at the line of ``keys``, or of the nearest table around it."""
        for end in range(len(keys), 0, -1):
            if (line := self.lines.get(keys[:end])) is not None:
                return ConfigError(message, path=self.path, line=line)
        return ConfigError(message, path=self.path)


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that can be configured; paths are absolute when they come from a file."""

    folders: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    server: ServerConfig = ServerConfig()
    memory: MemoryConfig = MemoryConfig()
    engine: EngineConfig = EngineConfig()
    parking: ParkingConfig = ParkingConfig()
    store: StoreConfig = StoreConfig()
    models: dict[str, ModelConfig] = {}
    routes: tuple[RouteConfig, ...] = ()
    source: ConfigSource | None = None

    def error(self, message: str, *keys: str | int) -> ConfigError:
        """Compose an error about the value at ``keys``, with file and line where there is one."""
        return self.source.error(message, *keys) if self.source else ConfigError(message)


_TABLES: dict[str, type[_Section]] = {
    "server": ServerConfig,
    "memory": MemoryConfig,
    "engine": EngineConfig,
    "parking": ParkingConfig,
    "store": StoreConfig,
}
_PATHS = (("server", "api_key_file"), ("parking", "directory"), ("store", "directory"))
_NO_CHOICE = "Invalid enum value "
_TOP_LEVEL = ("folders", "files", "models", "routes", *_TABLES)


def load_config(path: str | Path) -> Config:
    """Read a configuration file; raises ConfigError with the line of the key at fault."""
    path = Path(path).expanduser()
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(error.strerror or str(error), path=str(path)) from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"not UTF-8 text: {error.reason}", path=str(path)) from error
    return parse_config(text, path)


def parse_config(text: str, path: str | Path) -> Config:
    """Make a Config of TOML text; relative paths in it are taken from the folder of ``path``."""
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        message, line = _syntax_error(str(error), text)
        raise ConfigError(message, path=str(path), line=line) from error
    source = ConfigSource(path=str(path), lines=key_lines(text))
    _refuse_unknown(raw, _TOP_LEVEL, source, ())
    folder = Path(path).expanduser().absolute().parent
    tables = {name: _section(raw.get(name, {}), kind, source, (name,)) for name, kind in _TABLES.items()}
    for table, key in _PATHS:
        if path_text := getattr(tables[table], key):
            tables[table] = msgspec.structs.replace(tables[table], **{key: _absolute(path_text, folder)})
    return Config(
        folders=_paths(raw.get("folders", []), folder, source, ("folders",)),
        files=_paths(raw.get("files", []), folder, source, ("files",)),
        models=_models(raw.get("models", {}), folder, source),
        routes=_routes(raw.get("routes", []), source),
        source=source,
        **tables,  # type: ignore[arg-type]
    )


def _models(raw: Any, folder: Path, source: ConfigSource) -> dict[str, ModelConfig]:
    _expect(raw, dict, "a table of models", source, ("models",))
    models = {}
    for name, value in raw.items():
        where = ("models", name)
        if not name or name == "auto":
            raise source.error(f"a model cannot be called {name!r}", *where)
        model = _section(value, ModelConfig, source, where)
        if model.file is not None and model.base is not None:
            raise source.error(f"the model {name!r} has both file and base: give one", *where, "base")
        if model.parameters:
            _section(model.parameters, ParametersConfig, source, (*where, "parameters"))
        if model.file is not None:
            model = msgspec.structs.replace(model, file=_absolute(model.file, folder))
        models[name] = model
    return models


def _routes(raw: Any, source: ConfigSource) -> tuple[RouteConfig, ...]:
    _expect(raw, list, "an array of tables, [[routes]]", source, ("routes",))
    routes: dict[str, RouteConfig] = {}
    for index, value in enumerate(raw):
        where = ("routes", index)
        _expect(value, dict, "a table", source, where)
        match = _section(value.get("match", {}), RouteMatch, source, (*where, "match"))
        route = _section({**value, "match": {}}, RouteConfig, source, where)
        if route.name in routes:
            raise source.error(f"two routes are called {route.name!r}", *where, "name")
        routes[route.name] = msgspec.structs.replace(route, match=match)
    return tuple(routes.values())


def _section(raw: Any, kind: type[S], source: ConfigSource, where: KeyPath) -> S:
    _expect(raw, dict, "a table", source, where)
    _refuse_unknown(raw, kind.__struct_fields__, source, where)
    values = {}
    for key, value in raw.items():
        try:
            values[key] = _PARSERS[key](value) if key in _PARSERS else value
        except ValueError as error:
            raise source.error(f"{_dotted((*where, key))}: {error}", *where, key) from error
    try:
        return msgspec.convert(values, kind)
    except msgspec.ValidationError as error:
        message, place = re.split(r" - at (?:`key` in )?`\$|$", str(error), maxsplit=1)
        keys = where + _place(place.rstrip("`"))
        if message.startswith(_NO_CHOICE):
            choices = re.findall(r"'(\w+)'", str(get_type_hints(kind)[str(keys[-1])]))
            message = f"{message.removeprefix(_NO_CHOICE)} is not one of {', '.join(choices)}"
        raise source.error(f"{_dotted(keys)}: {message[:1].lower()}{message[1:]}", *keys) from error


def _place(text: str) -> KeyPath:
    """Read msgspec's path of a value, up to a key that it does not tell (``[...]``)."""
    keys: list[str | int] = []
    for name, index in re.findall(r"\.([^.\[]+)|\[(\d+)\]", text):
        keys.append(name or int(index))
    return tuple(keys)


def _refuse_unknown(
    raw: Mapping[str, Any], known: Sequence[str], source: ConfigSource, where: KeyPath
) -> None:
    for key in raw:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
            raise source.error(f"unknown key {_dotted((*where, key))!r}: {hint}", *where, key)


def _expect(raw: Any, kind: type, what: str, source: ConfigSource, where: KeyPath) -> None:
    if not isinstance(raw, kind):
        raise source.error(f"{_dotted(where)} must be {what}", *where)


def _paths(raw: Any, folder: Path, source: ConfigSource, where: KeyPath) -> tuple[str, ...]:
    _expect(raw, list, "an array of paths", source, where)
    for index, value in enumerate(raw):
        _expect(value, str, "a path", source, (*where, index))
    return tuple(_absolute(value, folder) for value in raw)


def _absolute(path: str, folder: Path) -> str:
    return str(folder / Path(path).expanduser())


def _dotted(keys: KeyPath) -> str:
    text = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in keys)
    return text.removeprefix(".")


def _syntax_error(message: str, text: str) -> tuple[str, int]:
    found = re.search(r" \(at line (\d+), column \d+\)$", message)
    if found:
        return message[: found.start()], int(found[1])
    return message.removesuffix(" (at end of document)"), text.count("\n") + 1


_PARSERS: dict[str, Callable[[object], int | float]] = {
    "budget": parse_budget,
    "memory": parse_bytes_or_none,
    "disk": parse_bytes_or_none,
    "idle": parse_duration,
    "limit": parse_bytes,
    "max_body_bytes": parse_bytes,
    "keep_alive": parse_duration,
    "shutdown_seconds": parse_duration,
}
