"""The ``shardload`` command."""

from __future__ import annotations


def main() -> None:
    """Run the command line; ends the process with its exit code."""
    from shardload_server.cli.app import app
    from shardload_server.cli.streams import standard_streams

    with standard_streams():
        app(prog_name="shardload")
