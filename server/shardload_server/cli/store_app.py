"""``shardload store`` and its commands; the work is in a module that is imported when one runs."""

from __future__ import annotations

from typing import Annotated

import typer

from shardload_server.cli.options import ConfigOption, JsonOption, StoreOption

store_app = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Look at the packed store, and make room in it."
)


@store_app.command("list")
def list_store(
    every_entry: Annotated[bool, typer.Option("--entries", help="List every tensor.")] = False,
    store: StoreOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show which models are packed, what they share, and their last use."""
    from shardload_server.cli import store as command
    from shardload_server.cli.settings import configuration

    command.list_store(configuration(config, store).store, every_entry=every_entry, as_json=as_json)


@store_app.command()
def verify(store: StoreOption = None, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Look at every byte; what is damaged is removed."""
    from shardload_server.cli import store as command
    from shardload_server.cli.settings import configuration

    command.verify(configuration(config, store).store, as_json=as_json)


@store_app.command()
def prune(
    limit: Annotated[
        str | None, typer.Option(metavar="BYTES", help="Remove the longest unused down to this: 10GiB.")
    ] = None,
    store: StoreOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Remove what no model file has, or another llama.cpp needs."""
    from shardload_server.cli import store as command
    from shardload_server.cli.settings import configuration

    command.prune(configuration(config, store).store, limit=limit, as_json=as_json)


@store_app.command()
def clear(store: StoreOption = None, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Remove everything; models that are open go on."""
    from shardload_server.cli import store as command
    from shardload_server.cli.settings import configuration

    command.clear(configuration(config, store).store, as_json=as_json)
