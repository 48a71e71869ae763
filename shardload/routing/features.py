"""What rules can see of a request."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Endpoint = Literal["chat", "completion", "embedding"]


@dataclass(frozen=True, slots=True)
class RequestFeatures:
    """A request as the router sees it; token counts are estimates where no model has tokenised the text yet.

    ``context_tokens`` is what prompt and answer want together. Header names are in lower case.
    """

    endpoint: Endpoint
    model: str
    prompt_tokens: int = 0
    context_tokens: int = 0
    tools: bool = False
    json_schema: bool = False
    images: bool = False
    headers: Mapping[str, str] = field(default_factory=dict)
    key: str | None = None


def estimate_tokens(text: str) -> int:
    """A guess at the tokens of ``text``: four bytes each, which suits most vocabularies and languages."""
    return (len(text.encode("utf-8", "surrogatepass")) + 3) // 4
