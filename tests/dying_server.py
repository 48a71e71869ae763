"""``shardload`` that is killed, as by ``kill -9``, as it is about to call a function for the n-th time.

``python dying_server.py MODULE:NAME CALL COMMAND...``; without a function the command runs as it is, but
with the rights of an ordinary user, whoever runs it.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
import os
import signal
import sys
from typing import Any

PR_CAPBSET_DROP = 24
FILE_CAPABILITIES = (1, 2, 3)
"""To write, to read and to own files whatever their modes say."""


def die_at(target: str, call: int) -> None:
    """Replace a function or a method by one that kills this process when it is called so often."""
    module_name, _, path = target.partition(":")
    *classes, name = path.split(".")
    owner = functools.reduce(getattr, classes, importlib.import_module(module_name))
    original = getattr(owner, name)
    left = call

    @functools.wraps(original)
    def dying(*arguments: Any, **options: Any) -> Any:
        nonlocal left
        left -= 1
        if not left:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*arguments, **options)

    setattr(owner, name, dying)


def become_ordinary(command: list[str]) -> None:
    """Start again without what lets a superuser pass over the modes of files."""
    libc = ctypes.CDLL(None, use_errno=True)
    for capability in FILE_CAPABILITIES:
        if os.geteuid() == 0 and libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0):
            raise OSError(ctypes.get_errno(), "the rights of a superuser cannot be given up")
    os.execv(sys.executable, [sys.executable, "-m", "shardload_server.cli", *command])


def main() -> None:
    target, call, *command = sys.argv[1:]
    if not target:
        become_ordinary(command)
    die_at(target, int(call))
    from shardload_server.cli import main

    sys.argv[1:] = command
    main()


if __name__ == "__main__":
    main()
