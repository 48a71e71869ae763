from __future__ import annotations

from shardload_server.cli import main

main()
