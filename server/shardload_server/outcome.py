"""How each request ended: counted, logged, and for what nobody foresaw answered in our own words."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from shardload_server.errors import failure_of
from shardload_server.metrics import NO_MODEL, Metrics
from shardload_server.responses import failure_response, header_text

CLIENT_LEFT = 499
OUTCOME = "shardload.outcome"

logger = logging.getLogger("shardload.server")


@dataclass(slots=True)
class Outcome:
    """What is known of a request so far; ``status`` stays 0 until something is sent, or known better."""

    started_seconds: float = field(default_factory=time.perf_counter)
    status: int = 0
    model: str = NO_MODEL

    @property
    def seconds(self) -> float:
        """Since the request came in."""
        return time.perf_counter() - self.started_seconds


class OutcomeMiddleware:
    """Wraps everything else; an exception that comes this far is a 500, and the process goes on."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        outcome = scope[OUTCOME] = Outcome()

        async def noting(message: Message) -> None:
            if message["type"] == "http.response.start":
                outcome.status = outcome.status or message["status"]
            await send(message)

        try:
            await self.app(scope, receive, noting)
        except ClientDisconnect:  # in the middle of the body
            outcome.status = CLIENT_LEFT
        except Exception as error:
            logger.exception("%s %s failed", scope["method"], scope["path"])
            if not outcome.status:
                await failure_response(failure_of(error))(scope, receive, noting)
            outcome.status = 500
        finally:
            _record(scope, outcome)


def outcome_of(scope: Scope) -> Outcome:
    """The outcome of the request that ``scope`` belongs to."""
    outcome: Outcome = scope[OUTCOME]
    return outcome


def _record(scope: Scope, outcome: Outcome) -> None:
    endpoint = getattr(scope.get("endpoint"), "__name__", "other")
    stack = getattr(scope["app"].state, "stack", None)
    if stack is not None:
        metrics: Metrics = stack.metrics
        metrics.count_request(endpoint, outcome.status or CLIENT_LEFT, outcome.model)
    logger.info(
        "%s %s -> %s %s(%.0f ms)",
        scope["method"],
        header_text(scope["path"]),  # decoded, it may hold line ends
        outcome.status or CLIENT_LEFT,
        f"by {outcome.model} " if outcome.model else "",
        outcome.seconds * 1000,
    )
