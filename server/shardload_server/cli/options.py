"""What the command line takes, apart from the commands; nothing heavy may be imported here."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

DEFAULT_URL = "http://127.0.0.1:8080"
ConfigOption = Annotated[Path | None, typer.Option("--config", metavar="FILE", help="A shardload.toml.")]
UrlOption = Annotated[
    str,
    typer.Option(
        "--url",
        envvar="SHARDLOAD_URL",
        show_envvar=False,
        show_default=False,
        metavar="URL",
        help=f"The server.  [SHARDLOAD_URL, or {DEFAULT_URL}]",
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
        help="Where packed weights are kept.  [SHARDLOAD_STORE]",
    ),
]


KV_TYPES = ("f16", "q8_0", "q4_0")
"""What keys and values may be kept as."""


def _kv_type(name: str | None) -> str | None:
    """One of them; an enumeration's own complaint has words of the library that checks it."""
    if name is not None and name not in KV_TYPES:
        raise typer.BadParameter(f"{name!r} is none of {', '.join(KV_TYPES)}")
    return name


PathsArgument = Annotated[
    list[Path] | None,
    typer.Argument(metavar="FILE_OR_FOLDER", help="Models; without any: the demo models."),
]
HostOption = Annotated[str | None, typer.Option(metavar="ADDRESS", help="Where to listen.  [127.0.0.1]")]
PortOption = Annotated[
    int | None, typer.Option(metavar="N", min=0, max=65535, help="Port; 0: any free one.  [8080]")
]
BudgetOption = Annotated[
    str | None, typer.Option(metavar="BYTES", help="Memory for models: 12GiB.  [80% of what is available]")
]
CtxOption = Annotated[
    int | None,
    typer.Option(metavar="N", min=0, help="Context tokens per model.  [the model's, at most 4096]"),
]
ParallelOption = Annotated[
    int | None, typer.Option(metavar="N", min=1, max=256, help="Requests at once per model.  [4]")
]
KvTypeOption = Annotated[
    str | None,
    typer.Option(
        "--kv-type", metavar="TYPE", callback=_kv_type, help="Of the KV cache: f16, q8_0 or q4_0.  [f16]"
    ),
]
ThreadsOption = Annotated[
    int | None, typer.Option(metavar="N", min=0, help="Compute threads.  [all physical cores]")
]
GpuLayersOption = Annotated[
    int | None, typer.Option(metavar="N", min=-1, help="Layers on the GPU, for builds with one.  [0]")
]
ApiKeysOption = Annotated[
    list[str] | None,
    typer.Option(
        envvar="SHARDLOAD_API_KEY",
        show_envvar=False,
        metavar="KEY",
        help="A key to ask for; repeatable.  [SHARDLOAD_API_KEY]",
    ),
]
ApiKeyFileOption = Annotated[Path | None, typer.Option(metavar="FILE", help="A file with one key per line.")]
