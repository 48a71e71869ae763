"""``shardload serve`` and ``shardload config check``."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from shardload.config import Config, load_config
from shardload.errors import ConfigError, format_bytes
from shardload.quantities import parse_budget
from shardload_server.cli import console
from shardload_server.cli.settings import configuration, size_of

if TYPE_CHECKING:
    from rich.table import Table

    from shardload.library.catalog import Catalog
    from shardload.library.entry import ModelEntry


@dataclass(frozen=True, slots=True)
class ServeOptions:
    """What the command line of ``shardload serve`` says; None leaves a value to the configuration."""

    paths: tuple[Path, ...] = ()
    config: Path | None = None
    host: str | None = None
    port: int | None = None
    budget: str | None = None
    ctx: int | None = None
    parallel: int | None = None
    kv_type: str | None = None
    threads: int | None = None
    gpu_layers: int | None = None
    api_keys: tuple[str, ...] = ()
    api_key_file: Path | None = None
    store: str | None = None


def configure(options: ServeOptions) -> Config:
    """The configuration file with the command line over it; without either, the demo models."""
    config = configuration(options.config, options.store)
    folders, files = _sorted_paths(options.paths)
    if not options.paths and options.config is None:
        folders = (_demo_folder(),)
    return msgspec.structs.replace(
        config,
        folders=(*config.folders, *folders),
        files=(*config.files, *files),
        server=_over(
            config.server,
            host=options.host,
            port=options.port,
            api_keys=(*config.server.api_keys, *options.api_keys) if options.api_keys else None,
            api_key_file=str(options.api_key_file.absolute()) if options.api_key_file else None,
        ),
        memory=_over(config.memory, budget=size_of("--budget", options.budget, parse_budget)),
        engine=_over(
            config.engine,
            ctx=options.ctx,
            parallel=options.parallel,
            kv_type=options.kv_type,
            threads=options.threads,
            gpu_layers=options.gpu_layers,
        ),
    )


def _over(section: Any, **values: object) -> Any:
    given = {name: value for name, value in values.items() if value is not None}
    return msgspec.structs.replace(section, **given)


def _sorted_paths(paths: tuple[Path, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    folders: list[str] = []
    files: list[str] = []
    for path in paths:
        full = path.expanduser().absolute()
        if full.is_dir():
            folders.append(str(full))
        elif full.exists():
            files.append(str(full))
        else:
            raise ConfigError("no such file or folder", path=str(path))
    return tuple(folders), tuple(files)


def _demo_folder() -> str:
    from shardload.demo import demo_folder

    return str(demo_folder())


def serve(options: ServeOptions, *, debug: bool = False) -> None:
    """Serve until a signal ends it."""
    from shardload.library.catalog import Catalog
    from shardload_server import runner

    config = configure(options)
    catalog = Catalog.from_config(config)
    if not catalog.entries():
        where = ", ".join((*config.folders, *config.files)) or "no file and no folder is named"
        problems = "".join(f"; {console.phrase(error)}" for error in catalog.problems.values())
        raise ConfigError(f"there is no model to serve: no usable .gguf in {where}{problems}")
    console.log_to_stderr("DEBUG" if debug else "INFO")
    runner.serve(
        config,
        ready=lambda port: announce(config, catalog, port),
        reload=(lambda: configure(options)) if options.config else None,
    )


def announce(config: Config, catalog: Catalog, port: int) -> None:
    """Say what is served, where, and how to ask it something."""
    from shardload.library.budget import budget_bytes

    out = console.stdout()
    out.print(model_table(catalog))
    url = base_url(config.server.host, port)
    out.print(f"\nmodels share {format_bytes(budget_bytes(config))} of memory")
    out.print(f"Serving on {url}   (Ctrl-C stops it)\n", style="bold")
    keyed = bool(config.server.api_keys or config.server.api_key_file)
    for line in curl_lines(url, catalog.entries(), keyed=keyed):
        out.print(line, soft_wrap=True)
    out.print()


def base_url(host: str, port: int) -> str:
    """The URL under which a client on this machine reaches the server."""
    reachable = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    return f"http://{reachable}:{port}"


def model_table(catalog: Catalog) -> Table:
    """One line per model."""
    made = console.table("model", "kind", "size", "context", numbers=("size", "context"))
    for entry in catalog.entries():
        name = f"{entry.name} ({', '.join(entry.aliases)})" if entry.aliases else entry.name
        kind = entry.architecture if entry.base is None else f"is {entry.base}"
        made.add_row(name, kind, format_bytes(entry.size_bytes), str(entry.ctx_tokens))
    return made


def curl_lines(url: str, entries: Any, *, keyed: bool) -> list[str]:
    """Requests to try: a conversation with each of the first models, and an embedding."""
    key = ' -H "Authorization: Bearer $SHARDLOAD_API_KEY"' if keyed else ""
    chat = [entry for entry in entries if entry.kind == "generate"][:2]
    embed = [entry for entry in entries if entry.kind == "embed"][:1]
    asked = {"input": "a small boat"}
    return [
        f"curl {url}/v1/models{key}",
        *(_curl(f"{url}/v1/{_endpoint(entry)}", key, _body(entry)) for entry in chat),
        *(_curl(f"{url}/v1/embeddings", key, {"model": entry.name} | asked) for entry in embed),
    ]


def _endpoint(entry: ModelEntry) -> str:
    return "chat/completions" if "chat" in entry.capabilities else "completions"


def _body(entry: ModelEntry) -> dict[str, object]:
    if "chat" in entry.capabilities:
        return {"model": entry.name, "messages": [{"role": "user", "content": "Who are you?"}]}
    return {"model": entry.name, "prompt": "Once upon a time", "max_tokens": 64}


def _curl(url: str, key: str, body: dict[str, object]) -> str:
    text = json.dumps(body, separators=(",", ":"), ensure_ascii=False).replace("'", "'\\''")
    return f"curl {url}{key} \\\n  -H 'Content-Type: application/json' \\\n  -d '{text}'"


def check_config(path: Path) -> None:
    """Read a configuration as the server would; raises ConfigError with the line at fault."""
    from shardload.library.catalog import Catalog
    from shardload.routing import check_routes
    from shardload_server.auth import configured_keys

    config = load_config(path)
    configured_keys(config.server)
    catalog = Catalog.from_config(config)
    for problem, error in catalog.problems.items():
        console.warn(console.phrase(error) or str(problem))
    check_routes(config, catalog)
    counts = f"{console.count(len(catalog.entries()), 'model')}, {console.count(len(config.routes), 'route')}"
    console.stdout().print(f"{path}: good; {counts}", soft_wrap=True)
