"""``shardload doctor``: what this machine and this build can do, and what is wrong."""

from __future__ import annotations

import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil
import typer

from shardload._version import __version__
from shardload.config import Config
from shardload.errors import UnsupportedLlama, format_bytes
from shardload.llama.facts import LlamaFacts, llama_facts
from shardload.memory import available_bytes, cgroup_limit_bytes
from shardload.memory.pressure import Trigger, pressure_files
from shardload_server.cli import console
from shardload_server.cli.checks import Check, Verdict
from shardload_server.cli.orders import NOTE, order_table, orders_check
from shardload_server.cli.storage import store_check

STYLES = {"ok": "green", "note": "yellow", "bad": "red"}
PACKAGES = ("gguf", "numpy", "starlette", "uvicorn", "httptools", "cffi", "msgspec")
FEW_FILES = 1024


def doctor(config: Config, *, measure: bool = False, as_json: bool) -> None:
    """Print what was found; exit code 1 when something cannot be used."""
    from rich.text import Text

    checks = [
        _versions(),
        *_llama(),
        _cpu(),
        _memory(),
        pressure_check(),
        _limits(),
        store_check(config.store),
        orders_check(config.engine, measure=measure),
    ]
    if as_json:
        console.print_json(checks)
    else:
        made = console.table("", "what", "found")
        for check in checks:
            made.add_row(Text(check.verdict, STYLES[check.verdict]), check.name, check.detail)
        out = console.stdout()
        out.print(made)
        if orders := next((check.orders for check in checks if check.orders), None):
            out.print()
            out.print(order_table(orders))
            out.print(NOTE, soft_wrap=not out.is_terminal)
    if any(check.verdict == "bad" for check in checks):
        raise typer.Exit(1)


def _versions() -> Check:
    python = (
        f"Python {platform.python_version()}, {platform.system()} {platform.release()} {platform.machine()}"
    )
    packages = ", ".join(f"{name} {_version(name)}" for name in PACKAGES)
    return Check("shardload", "ok", f"{__version__}; {python}; {packages}")


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "missing"


def _llama() -> list[Check]:
    try:
        facts = llama_facts()
    except UnsupportedLlama as error:
        return [Check("llama.cpp", "bad", str(error))]
    return llama_checks(facts, linux=sys.platform.startswith("linux"))


def llama_checks(facts: LlamaFacts, *, linux: bool) -> list[Check]:
    """What to say of llama.cpp."""
    gpu = "with GPU offload" if facts.gpu_offload else "on the CPU"
    mapping: Verdict = "ok" if facts.lazy_mapping else "bad" if linux else "note"
    return [
        Check("llama.cpp", "ok", f"llama-cpp-python {facts.version}, ggml {facts.ggml_version}, {gpu}"),
        Check("kernels", "ok", " ".join(facts.features) or "nothing beyond the baseline"),
        Check("AMX", "note" if facts.amx == "traps" else "ok", f"{facts.amx}: {facts.amx_detail}"),
        Check("lazy mapping", mapping, facts.lazy_mapping_detail),
        _packed_check(facts),
    ]


def _packed_check(facts: LlamaFacts) -> Check:
    if not facts.buffer_types:
        return Check(
            "packed weights", "ok", "none: this processor computes on all weights as files have them"
        )
    kinds = ", ".join(facts.buffer_types)
    if facts.maps_packed:
        return Check("packed weights", "ok", f"{kinds}, mapped from the store")
    return Check("packed weights", "note", f"{kinds}, as copies of each process: they cannot be mapped here")


def _cpu() -> Check:
    physical, logical = psutil.cpu_count(logical=False), psutil.cpu_count()
    usable = len(psutil.Process().cpu_affinity()) if hasattr(psutil.Process, "cpu_affinity") else logical
    return Check(
        "CPU", "ok", f"{_cpu_name()}; {physical} cores, {logical} threads, {usable} for this process"
    )


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())


def _memory() -> Check:
    total, available, limit = psutil.virtual_memory().total, available_bytes(), cgroup_limit_bytes()
    group = f"limit of the control group {format_bytes(limit)}" if limit else "no control group limits it"
    return Check("memory", "ok", f"{format_bytes(available)} available of {format_bytes(total)}; {group}")


def pressure_check(root: Path = Path("/")) -> Check:
    """How a want of memory of others is noticed."""
    trigger = Trigger.open(pressure_files(root))
    if trigger is None:
        return Check("pressure", "ok", "the kernel has no alarm for us: memory is looked at every second")
    trigger.close()
    return Check("pressure", "ok", f"the kernel's alarm at {trigger.path}")


def _limits() -> Check:
    try:
        import resource
    except ImportError:  # Windows
        return Check("limits", "ok", "none on this system")
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    locked = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    phrases = [f"{'any number of' if files < 0 else files} open files"]
    phrases.append(f"{'any' if locked < 0 else format_bytes(locked)} locked memory")
    few = 0 <= files < FEW_FILES
    advice = f"; fewer than {FEW_FILES} files bound the connections: ulimit -n" if few else ""
    return Check("limits", "note" if few else "ok", ", ".join(phrases) + advice)
