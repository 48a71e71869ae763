"""The commands and their options; the work of each is in a module that is imported when it runs.

Nothing heavy may be imported here, the engine least of all: ``shardload --help`` has to be instant.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Annotated

import typer
from typer.core import TyperGroup

from shardload_server.cli import console
from shardload_server.cli.options import (
    DEFAULT_URL,
    ApiKeyFileOption,
    ApiKeysOption,
    BudgetOption,
    ConfigOption,
    CtxOption,
    GpuLayersOption,
    HostOption,
    JsonOption,
    KeyOption,
    KvTypeOption,
    ModelArgument,
    ParallelOption,
    PathsArgument,
    PortOption,
    StoreOption,
    ThreadsOption,
    UrlOption,
)
from shardload_server.cli.store_app import store_app
from shardload_server.cli.streams import BROKEN_PIPE

INTERRUPTED = 130
"""The exit code that shells give to what Ctrl-C ended."""


class Commands(TyperGroup):
    """Turns the errors that we foresee into one red line and exit code 1, and Ctrl-C into an end.

    So is a reader who has read enough: ``shardload inspect ... | head`` needs no complaint.
    """

    def invoke(self, ctx: typer.Context) -> object:  # type: ignore[override]
        """Run the chosen command; with ``--debug`` every error keeps its traceback."""
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
            return result
        except KeyboardInterrupt:
            raise typer.Exit(INTERRUPTED) from None
        except BrokenPipeError:
            raise typer.Exit(BROKEN_PIPE) from None
        except Exception as error:
            line = None if ctx.params.get("debug") else console.phrase(error)
            if line is None:
                raise
            console.complain(line)
            raise typer.Exit(1) from error


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Serve every GGUF model on this machine from one process, behind one port.",
)
config_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Look at a configuration file.")
route_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Look at the routing rules.")
app.add_typer(config_app, name="config")
app.add_typer(route_app, name="route")
app.add_typer(store_app, name="store")


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"shardload {version('shardload')}")
        raise typer.Exit


@app.callback()
def root(
    debug: Annotated[
        bool, typer.Option("--debug", envvar="SHARDLOAD_DEBUG", show_envvar=False, help="Show tracebacks.")
    ] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Serve every GGUF model on this machine from one process, behind one port."""
    # Commands say themselves what matters; without a handler Python would print warnings on its own.
    logging.getLogger("shardload").addHandler(logging.NullHandler())


@app.command()
def serve(
    context: typer.Context,
    paths: PathsArgument = None,
    config: ConfigOption = None,
    host: HostOption = None,
    port: PortOption = None,
    budget: BudgetOption = None,
    ctx: CtxOption = None,
    parallel: ParallelOption = None,
    kv_type: KvTypeOption = None,
    threads: ThreadsOption = None,
    gpu_layers: GpuLayersOption = None,
    api_key: ApiKeysOption = None,
    api_key_file: ApiKeyFileOption = None,
    store: StoreOption = None,
) -> None:
    """Serve models behind one OpenAI-compatible port."""
    from shardload_server.cli import serve as command

    options = command.ServeOptions(
        paths=tuple(paths or ()),
        config=config,
        host=host,
        port=port,
        budget=budget,
        ctx=ctx,
        parallel=parallel,
        kv_type=kv_type,
        threads=threads,
        gpu_layers=gpu_layers,
        api_keys=tuple(api_key or ()),
        api_key_file=api_key_file,
        store=store,
    )
    command.serve(options, debug=context.find_root().params["debug"])


@app.command()
def run(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A GGUF file, a server's model, or auto.")],
    prompt: Annotated[str | None, typer.Argument(metavar="PROMPT", help="Without: a conversation.")] = None,
    url: UrlOption = DEFAULT_URL,
    api_key: KeyOption = None,
    system: Annotated[str | None, typer.Option(metavar="TEXT", help="The system message.")] = None,
    temperature: Annotated[
        float | None, typer.Option(metavar="N", min=0.0, help="0: always the likeliest.")
    ] = None,
    seed: Annotated[int | None, typer.Option(metavar="N", help="Same seed, same text.")] = None,
    max_tokens: Annotated[int | None, typer.Option(metavar="N", min=1, help="Longest answer.")] = None,
    ctx: Annotated[int | None, typer.Option(metavar="N", min=0, help="Context tokens (files only).")] = None,
    store: StoreOption = None,
) -> None:
    """Chat in the terminal, with a file or a running server."""
    from shardload_server.cli import run as command
    from shardload_server.cli.talk import RunOptions

    options = RunOptions(
        model=model,
        url=url,
        api_key=api_key,
        system=system,
        temperature=temperature,
        seed=seed,
        max_tokens=max_tokens,
        ctx=ctx,
        store=store,
    )
    command.run(options, prompt)


@app.command("list")
def list_models(url: UrlOption = DEFAULT_URL, api_key: KeyOption = None, as_json: JsonOption = False) -> None:
    """List the models that a running server knows."""
    from shardload_server.cli import remote

    remote.list_models(remote.Server(url, api_key), as_json=as_json)


@app.command()
def ps(url: UrlOption = DEFAULT_URL, api_key: KeyOption = None, as_json: JsonOption = False) -> None:
    """Show what is open on a running server."""
    from shardload_server.cli import remote

    remote.show_open(remote.Server(url, api_key), as_json=as_json)


@app.command()
def load(
    model: ModelArgument,
    file: Annotated[
        Path | None, typer.Option("--file", metavar="FILE", help="Give the name another file of the folders.")
    ] = None,
    pin: Annotated[bool, typer.Option("--pin", help="Keep it until it is unpinned or unloaded.")] = False,
    keep_alive: Annotated[
        str | None, typer.Option(metavar="TIME", help="How long it stays when idle: 5m; -1: for ever.")
    ] = None,
    url: UrlOption = DEFAULT_URL,
    api_key: KeyOption = None,
) -> None:
    """Open a model on a running server."""
    from shardload_server.cli import remote

    remote.load(remote.Server(url, api_key), model, file=file, pin=pin, keep_alive=keep_alive)


@app.command()
def unload(model: ModelArgument, url: UrlOption = DEFAULT_URL, api_key: KeyOption = None) -> None:
    """Close a model on a running server when its requests are done, and unpin it."""
    from shardload_server.cli import remote

    remote.unload(remote.Server(url, api_key), model)


@app.command()
def pin(
    model: ModelArgument,
    off: Annotated[bool, typer.Option("--off", help="Let it leave again.")] = False,
    url: UrlOption = DEFAULT_URL,
    api_key: KeyOption = None,
) -> None:
    """Keep a model of a running server in memory, or let it go."""
    from shardload_server.cli import remote

    remote.pin(remote.Server(url, api_key), model, pinned=not off)


@app.command()
def inspect(
    files: Annotated[list[Path], typer.Argument(metavar="FILE", help="GGUF files; any part of a split one.")],
    shards: Annotated[
        bool, typer.Option("--shards", help="List the parts that enter and leave memory as one.")
    ] = False,
    tensors: Annotated[bool, typer.Option("--tensors", help="List every tensor.")] = False,
    metadata: Annotated[bool, typer.Option("--metadata", help="List every key.")] = False,
    ctx: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Tokens to count the KV cache for.")
    ] = None,
    store: StoreOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what is in a GGUF file and in memory, or what several share."""
    from shardload_server.cli.settings import configuration

    settings = configuration(config, store).store
    if len(files) > 1:
        from shardload_server.cli import compare

        if tensors or metadata or ctx:
            console.fail("--tensors, --metadata and --ctx are for one file", 2)
        compare.compare_files(files, settings, every_shard=shards, as_json=as_json)
        return
    from shardload_server.cli import inspect as command

    options = command.InspectOptions(shards, tensors, metadata, ctx, settings, as_json)
    command.inspect(files[0], options)


@app.command()
def pack(
    files: Annotated[list[Path], typer.Argument(metavar="FILE", help="GGUF files; any part of a split one.")],
    store: StoreOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Pack models into the store, so that their first open is fast."""
    from shardload_server.cli import pack as command
    from shardload_server.cli.settings import configuration

    command.pack_files(files, configuration(config, store).store, as_json=as_json)


@app.command()
def doctor(
    measure: Annotated[
        bool, typer.Option("--measure", help="Measure both orders of weights now: a minute on all cores.")
    ] = False,
    store: StoreOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check what this machine and this build can do."""
    from shardload_server.cli import doctor as command
    from shardload_server.cli.settings import configuration

    command.doctor(configuration(config, store), measure=measure, as_json=as_json)


@config_app.command("check")
def config_check(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A shardload.toml.")],
) -> None:
    """Check a configuration file; an error names its line."""
    from shardload_server.cli import serve as command

    command.check_config(file)


@route_app.command("explain")
def route_explain(
    request: Annotated[Path, typer.Argument(metavar="REQUEST.json", help="A request's body; -: stdin.")],
    config: ConfigOption = None,
    endpoint: Annotated[
        str | None, typer.Option(metavar="NAME", help="chat, completion or embedding.  [by the body]")
    ] = None,
    header: Annotated[list[str] | None, typer.Option(metavar="NAME:VALUE", help="Repeatable.")] = None,
    key: Annotated[str | None, typer.Option(metavar="KEY", help="The API key it came with.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Say which model would answer a request, and why."""
    from shardload_server.cli import explain as command

    command.explain(request, config, endpoint=endpoint, headers=tuple(header or ()), key=key, as_json=as_json)
