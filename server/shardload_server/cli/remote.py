"""The commands that talk to a running server."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shardload.errors import format_bytes
from shardload_server.cli import console
from shardload_server.cli.options import DEFAULT_URL

if TYPE_CHECKING:
    import httpx
    from rich.table import Table

LOAD_TIMEOUT_SECONDS = 600.0
MODELS_PATH = "/models"


@dataclass(frozen=True, slots=True)
class Server:
    """Where a server is, and the key to it."""

    url: str
    api_key: str | None = None

    @contextmanager
    def client(self) -> Iterator[httpx.Client]:
        """A client of the server; a refused connection becomes advice."""
        import httpx

        headers = {"Authorization": f"Bearer {self.api_key}"} if self.api_key else {}
        timeout = httpx.Timeout(10.0, read=LOAD_TIMEOUT_SECONDS)
        base = self.url if "://" in self.url else f"http://{self.url}"
        try:
            with httpx.Client(base_url=base.rstrip("/"), headers=headers, timeout=timeout) as client:
                yield client
        except httpx.ConnectError as error:
            if (reason := _no_host(error)) is not None:
                console.fail(f"{self.url} is no URL of a server: {reason}; write it like {DEFAULT_URL}")
            console.fail(
                f"no server answers at {self.url}: start one with `shardload serve`, "
                "or say where it is with --url or SHARDLOAD_URL"
            )

    def request(self, method: str, path: str, body: dict[str, object] | None = None) -> Any:
        """One request; returns the decoded JSON, and ends the command on any status but 2xx."""
        with self.client() as client:
            return checked(client.request(method, path, json=body))


def _no_host(error: BaseException) -> str | None:
    """Why a name leads to no address; None where it was not the name that failed."""
    import socket

    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, socket.gaierror):
            return cause.strerror
        cause = cause.__cause__ or cause.__context__
    return None


def checked(response: httpx.Response) -> Any:
    """The decoded JSON of an answer, or the end of the command with the server's own words."""
    import json

    try:
        body = json.loads(response.content)
    except ValueError:
        body = None
    if not response.is_success or body is None:
        console.fail(_refusal(response, body))
    return body


def _refusal(response: httpx.Response, body: Any) -> str:
    error = body.get("error") if isinstance(body, dict) else None
    message = error.get("message") if isinstance(error, dict) else None
    if message is None:
        return f"{response.url} answered {response.status_code}, and not as a shardload server does"
    if response.status_code == 401:
        return f"{message} (give it with --api-key or SHARDLOAD_API_KEY)"
    return str(message)


def _models(server: Server) -> list[dict[str, Any]]:
    """The server's catalog; other servers answer the same path, each in its own way."""
    body = server.request("GET", MODELS_PATH)
    models = body.get("models") if isinstance(body, dict) else None
    if not isinstance(models, list) or not all(isinstance(m, dict) and "state" in m for m in models):
        console.fail(f"{server.url} answers, but not as a shardload server does")
    return models


def list_models(server: Server, *, as_json: bool) -> None:
    """Print every model of the catalog."""
    models = _models(server)
    if as_json:
        console.print_json(models)
        return
    made = console.table("model", "state", "size", "context", "for", numbers=("size", "context"))
    for model in models:
        purpose = ", ".join(sorted(model.get("capabilities", ())))
        made.add_row(
            name_line(model),
            state_line(model) + (", pinned" if model["pinned"] else ""),
            format_bytes(model["size_bytes"]),
            str(model["ctx_tokens"]),
            purpose,
        )
    console.stdout().print(made)


def name_line(model: dict[str, Any]) -> str:
    """A model's name with its aliases, as tables show it."""
    aliases = model.get("aliases") or ()
    return f"{model['name']} ({', '.join(aliases)})" if aliases else str(model["name"])


def show_open(server: Server, *, as_json: bool) -> None:
    """Print the models that are open or on their way."""
    models = [model for model in _models(server) if model["state"] != "closed"]
    if as_json:
        console.print_json(models)
        return
    out = console.stdout()
    if not models:
        out.print("no model is open")
        return
    out.print(_use_table(models))
    if there := [model for model in models if model["state"] != "failed"]:
        out.print()
        out.print(_memory_table(there))
    for model in models:
        if model.get("error"):
            console.complain(f"{model['name']}: {model['error']}")


def _use_table(models: Sequence[dict[str, Any]]) -> Table:
    made = console.table(
        "model", "state", "in memory", "requests", "leaves", numbers=("in memory", "requests")
    )
    for model in models:
        made.add_row(
            model["name"],
            state_line(model),
            f"{format_bytes(_present_bytes(model))} of {format_bytes(model['size_bytes'])}",
            requests(model),
            leaving(model),
        )
    return made


def _present_bytes(model: dict[str, Any]) -> int:
    """What of the weights is in memory, mapped or private."""
    share = model.get("warm_share")
    return round(share * model["size_bytes"]) if share is not None else model["resident_bytes"] or 0


def _memory_table(models: Sequence[dict[str, Any]]) -> Table:
    keys = {
        "shared": "shared_bytes",
        "packed": "packed_bytes",
        "prompts": "second_layout_bytes",
        "private": "private_bytes",
        "read in": "page_in_bytes",
        "sent out": "page_out_bytes",
    }
    made = console.table("model", *keys, "waited", numbers=(*keys, "waited"), narrow=True)
    for model in models:
        cells = [console.short_bytes(model.get(key) or 0) for key in keys.values()]
        made.add_row(model["name"], *cells, f"{model.get('page_wait_seconds') or 0:.1f} s")
    return made


def state_line(model: dict[str, Any]) -> str:
    """A model's state, with what part of its weights is in memory."""
    share = model.get("warm_share")
    if share is None or model["state"] in ("opening", "failed") or (model["state"] == "closed" and not share):
        return str(model["state"])
    return f"{model['state']}, {console.percent(share)} warm"


def requests(model: dict[str, Any]) -> str:
    """How many requests hold a model, and how many wait for it."""
    return f"{model['leases']}, {model['queued']} wait" if model["queued"] else str(model["leases"])


def leaving(model: dict[str, Any]) -> str:
    """When an idle model will be closed, in words."""
    if model["pinned"]:
        return "pinned"
    seconds = model.get("expires_in_seconds")
    if model["leases"] or seconds is None:
        return "in use" if model["leases"] else "when room is needed"
    return f"in {seconds:.0f} s" if seconds < 120 else f"in {seconds / 60:.0f} min"


def load(server: Server, model: str, *, file: Path | None, pin: bool, keep_alive: str | None) -> None:
    """Open a model, or give its name another file."""
    body: dict[str, object] = {"model": model}
    if file is not None:
        body["path"] = str(file.expanduser().absolute())
    if pin:
        body["pin"] = True
    if keep_alive is not None:
        body["keep_alive"] = keep_alive
    server.request("POST", f"{MODELS_PATH}/load", body)
    console.stdout().print(
        f"{model} is open" + (f" on {file}" if file else "") + (" and pinned" if pin else "")
    )


def unload(server: Server, model: str) -> None:
    """Close a model, which is not pinned any more."""
    unpinned = server.request("POST", f"{MODELS_PATH}/unload", {"model": model}).get("unpinned")
    console.stdout().print(
        f"{model} is closed" + (f"; no longer pinned: {', '.join(unpinned)}" if unpinned else "")
    )


def pin(server: Server, model: str, *, pinned: bool) -> None:
    """Pin a model, or let it go."""
    server.request("POST", f"{MODELS_PATH}/pin", {"model": model, "pinned": pinned})
    console.stdout().print(f"{model} is {'pinned' if pinned else 'no longer pinned'}")
