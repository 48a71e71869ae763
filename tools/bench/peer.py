"""One model behind llama.cpp's own server engine: runs where xllamacpp is installed, until it is killed.

Settings that are not given stay as llama.cpp has them.
"""

from __future__ import annotations

import argparse
import signal

import xllamacpp  # type: ignore[import-not-found]


def main() -> None:
    """Serve one model."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--slots", type=int, required=True)
    parser.add_argument("--ctx", type=int, required=True)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--poll", type=int)
    parser.add_argument(
        "--plain-buffers", action="store_true", help="without repacked weights, AMX among them"
    )
    given = parser.parse_args()
    params = xllamacpp.CommonParams()
    params.model.path = given.model
    params.hostnames, params.port = ["127.0.0.1"], given.port
    params.n_parallel, params.n_ctx, params.kv_unified = given.slots, given.ctx, True
    params.verbosity = 0
    params.no_extra_bufts = given.plain_buffers
    if given.threads is not None:
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = given.threads
    if given.poll is not None:
        params.cpuparams.poll = params.cpuparams_batch.poll = given.poll
    server = xllamacpp.Server(params)
    print(server.listening_address, flush=True)
    signal.pause()


if __name__ == "__main__":
    main()
