"""The servers that are measured, each as processes bound to loopback that end with their block."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tools.bench.cgroups import Limit

ROOT = Path(__file__).resolve().parents[2]
PEER_PYTHON = ROOT / ".venv" / "peers" / "bin" / "python"
START_SECONDS = 180.0
STOP_SECONDS = 15.0
POLL_SECONDS = 0.02
SPARE_BYTES = 2**30
COMMAND = ("-m", "shardload_server.cli")


class NotMeasurable(Exception):
    """Raised when a row cannot be measured here, with the reason for the table."""


@dataclass(frozen=True, slots=True)
class Target:
    """Where to ask: a base URL for each model, and the process behind it."""

    urls: Mapping[str, str]
    names: Mapping[str, str]
    pid: int


@dataclass(frozen=True, slots=True)
class PeerSettings:
    """How a peer is started; None leaves llama.cpp's default."""

    label: str
    threads: int | None = None
    poll: int | None = None
    plain_buffers: bool = False
    environment: Mapping[str, str] = field(default_factory=dict)


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def shardload(
    models: Mapping[str, Path],
    *,
    threads: int,
    slots: int,
    ctx_tokens: int,
    cache: Path,
    budget: str | None = "64GiB",
    settings: str = "",
    limit: Limit | None = None,
    command: Sequence[str] = COMMAND,
) -> Iterator[Target]:
    """One shardload server with all models; each is asked for by its file's name.

    What it keeps for later is in ``cache``. ``budget`` of None leaves it to the server; ``settings`` is more
    of its configuration file.
    """
    port = free_port()
    words = [sys.executable, *command, "serve", *map(str, models.values()), "--port", str(port)]
    words += ["--threads", str(threads), "--parallel", str(slots), "--ctx", str(ctx_tokens)]
    words += ["--budget", budget] if budget else []
    if settings:
        config = cache / f"{port}.toml"
        config.write_text(settings)
        words += ["--config", str(config)]
    url = f"http://127.0.0.1:{port}"
    with process(words, url + "/health", kept_in(cache), limit) as pid:
        yield Target(dict.fromkeys(models, url), {name: path.stem for name, path in models.items()}, pid)


def models_of(target: Target) -> dict[str, dict[str, Any]]:
    """What a shardload server says of each of its models, by name."""
    with urllib.request.urlopen(f"{next(iter(target.urls.values()))}/models") as answer:
        return {model["name"]: model for model in json.load(answer)["models"]}


def kept_in(cache: Path) -> dict[str, str]:
    """The environment in which our processes keep what they keep for later in that folder."""
    return {"XDG_CACHE_HOME": str(cache)}


def stored(cache: Path) -> list[Path]:
    """The files of the packed store."""
    return [path for path in (cache / "shardload" / "store").rglob("*") if path.is_file()]


def finished(*words: str, cache: Path | None = None) -> str:
    """Run Python to the end of its work, in a process of its own; gives what it prints."""
    environment = {**os.environ, **(kept_in(cache) if cache else {})}
    done = subprocess.run(
        [sys.executable, *words], capture_output=True, text=True, cwd=ROOT, env=environment, check=False
    )
    if done.returncode != 0:
        reason = ((done.stderr or done.stdout).strip().splitlines() or ["died"])[-1]
        raise NotMeasurable(f"{' '.join(words)}: {reason}")
    return done.stdout


def child(*arguments: str, cache: Path | None = None) -> dict[str, Any]:
    """What ``tools.bench.child`` measures, where nothing else has used the memory."""
    result: dict[str, Any] = json.loads(finished("-m", "tools.bench.child", *arguments, cache=cache))
    return result


@contextmanager
def peers(
    models: Mapping[str, Path],
    settings: PeerSettings,
    *,
    slots: int,
    ctx_tokens: int,
    limit: Limit | None = None,
) -> Iterator[Target]:
    """One xllamacpp process per model, each with a copy of the file that is its own."""
    if not PEER_PYTHON.exists():
        raise NotMeasurable("xllamacpp is not installed: start with tools/bench/run")
    with ExitStack() as stack:
        urls: dict[str, str] = {}
        pid = 0
        for name, path in models.items():
            port = free_port()
            urls[name] = f"http://127.0.0.1:{port}"
            command = [str(PEER_PYTHON), str(Path(__file__).with_name("peer.py")), str(peer_copy(path))]
            command += ["--port", str(port), "--slots", str(slots), "--ctx", str(ctx_tokens)]
            command += ["--threads", str(settings.threads)] if settings.threads is not None else []
            command += ["--poll", str(settings.poll)] if settings.poll is not None else []
            # Some virtual machines advertise AMX and trap on it; Q8_0 has no other repacked form.
            command += ["--plain-buffers"] if settings.plain_buffers or cpu_claims_amx() else []
            running = process(command, urls[name] + "/health", settings.environment, limit)
            pid = stack.enter_context(running)
        yield Target(urls, dict.fromkeys(models, "model"), pid)


def peer_copy(model: Path) -> Path:
    """The same bytes in another file, made on first use.

    How one program reads a file decides how its pages lie in memory; shared, it is the same for both.
    """
    copy = model.with_name(f"{model.stem}-peer{model.suffix}")
    size = model.stat().st_size
    if copy.exists() and copy.stat().st_size == size and copy.stat().st_mtime >= model.stat().st_mtime:
        return copy
    check_room(model.parent, size, copy.name)
    unfinished = copy.with_suffix(".part")
    shutil.copyfile(model, unfinished)
    unfinished.replace(copy)
    return copy


def check_room(folder: Path, wanted_bytes: int, what: str) -> None:
    """Raise NotMeasurable where new files would leave too little of the disk to others."""
    if shutil.disk_usage(folder).free < wanted_bytes + SPARE_BYTES:
        raise NotMeasurable(f"no room on the disk for {what}, {wanted_bytes} bytes")


def cpu_claims_amx() -> bool:
    """Whether the processor says that it has AMX."""
    cpuinfo = Path("/proc/cpuinfo")
    return cpuinfo.exists() and "amx_int8" in cpuinfo.read_text()


@contextmanager
def behind_nginx(target: Target) -> Iterator[Target]:
    """One port in front of several servers: a path prefix per model chooses."""
    nginx = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if nginx is None:
        raise NotMeasurable("nginx is not installed: apt-get install nginx")
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "nginx.conf"
        config.write_text(_nginx_config(target.urls, port, folder))
        command = [nginx, "-c", str(config), "-e", f"{folder}/error.log", "-p", folder]
        urls = {name: f"http://127.0.0.1:{port}/{name}" for name in target.urls}
        with process(command, f"{next(iter(urls.values()))}/health"):
            yield Target(urls, target.names, target.pid)


def _nginx_config(urls: Mapping[str, str], port: int, folder: str) -> str:
    locations = "".join(
        f"location /{name}/ {{ proxy_pass {url}/; proxy_buffering off; proxy_http_version 1.1; "
        'proxy_set_header Connection ""; proxy_read_timeout 600s; }\n'
        for name, url in urls.items()
    )
    paths = "".join(
        f"{kind}_temp_path {folder}/{kind};\n"
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    return (
        f"daemon off; pid {folder}/pid; worker_processes 1;\nevents {{}}\n"
        f"http {{ access_log off; {paths} server {{ listen 127.0.0.1:{port};\n{locations} }} }}\n"
    )


@contextmanager
def process(
    command: Sequence[str],
    health_url: str,
    environment: Mapping[str, str] | None = None,
    limit: Limit | None = None,
) -> Iterator[int]:
    """Run a command until the block ends; raises NotMeasurable if it dies before it answers."""
    with tempfile.TemporaryFile() as log:
        words = limit.command(command) if limit else command
        running = subprocess.Popen(
            words, stdout=log, stderr=log, cwd=ROOT, env={**os.environ, **(environment or {})}
        )
        try:
            _await_answer(running, health_url, command)
            yield running.pid
        except NotMeasurable as error:
            log.seek(0)
            tail = log.read().decode(errors="replace").strip().splitlines()[-3:]
            raise NotMeasurable(f"{error}: {' / '.join(tail)}") from error
        finally:
            running.terminate()
            try:
                running.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                running.kill()
                running.wait()


def _await_answer(running: subprocess.Popen[bytes], url: str, command: Sequence[str]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if (code := running.poll()) is not None:
            died = signal.Signals(-code).name if code < 0 else f"exit code {code}"
            raise NotMeasurable(f"{Path(command[0]).name} ended at once ({died})")
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(POLL_SECONDS)
    raise NotMeasurable(f"{Path(command[0]).name} did not answer in {START_SECONDS:.0f} s")
