"""The ``shardload`` command."""

from __future__ import annotations


def main() -> None:
    """Run the command line; ends the process with its exit code."""
    from shardload_server.cli.app import app

    app(prog_name="shardload")
