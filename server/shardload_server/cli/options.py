"""Options that several commands have; nothing heavy may be imported here."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

DEFAULT_URL = "http://127.0.0.1:8080"
ConfigOption = Annotated[Path | None, typer.Option("--config", metavar="FILE", help="A shardload.toml.")]
UrlOption = Annotated[
    str,
    typer.Option(
        "--url", envvar="SHARDLOAD_URL", show_envvar=False, metavar="URL", help="The server.  [SHARDLOAD_URL]"
    ),
]
KeyOption = Annotated[
    str | None,
    typer.Option(
        "--api-key",
        envvar="SHARDLOAD_API_KEY",
        show_envvar=False,
        metavar="KEY",
        help="Its key.  [SHARDLOAD_API_KEY]",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
ModelArgument = Annotated[str, typer.Argument(metavar="MODEL", help="A model's name or alias.")]
StoreOption = Annotated[
    str | None,
    typer.Option(
        "--store",
        envvar="SHARDLOAD_STORE",
        show_envvar=False,
        metavar="DIR|off",
        help="The packed store.  [SHARDLOAD_STORE]",
    ),
]
