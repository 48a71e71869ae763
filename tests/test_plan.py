from __future__ import annotations

import pytest

from shardload.chat.messages import ImagePart, Message, TextPart
from shardload.errors import RequestError
from shardload.plan import features_of
from shardload.requests import ChatRequest, CompletionRequest, EmbeddingRequest, Options
from shardload.routing import RequestFeatures


def test_features_of_a_chat() -> None:
    request = ChatRequest(
        "auto",
        (Message("user", (TextPart("x" * 40), ImagePart("http://a/b.png"))),),
        tools=({"type": "function"},),
        response_format={"type": "json_schema", "json_schema": {"schema": {}}},
        options=Options(max_tokens=100),
    )
    assert features_of(request, [("X-Tier", "gold")], "secret") == RequestFeatures(
        endpoint="chat",
        model="auto",
        prompt_tokens=20,
        context_tokens=120,
        tools=True,
        json_schema=True,
        images=True,
        headers={"x-tier": "gold"},
        key="secret",
    )


def test_features_of_completions_are_those_of_the_longest_prompt() -> None:
    features = features_of(CompletionRequest("m", ("x" * 40, list(range(30)))))
    assert (features.endpoint, features.prompt_tokens, features.context_tokens) == ("completion", 30, 30)


def test_features_of_embeddings() -> None:
    features = features_of(EmbeddingRequest("m", ("x" * 40, (1, 2))), {"A": "b"})
    assert (features.endpoint, features.prompt_tokens) == ("embedding", 10)
    assert features.headers == {"a": "b"}


@pytest.mark.parametrize(
    ("form", "param"),
    [
        ({}, "response_format"),
        ({"type": "xml"}, "response_format"),
        ({"type": "json_schema"}, "response_format.json_schema.schema"),
        ({"type": "json_schema", "json_schema": {"schema": []}}, "response_format.json_schema.schema"),
    ],
)
def test_a_response_format_that_there_is_not(form: dict[str, object], param: str) -> None:
    with pytest.raises(RequestError) as caught:
        features_of(ChatRequest("m", (Message("user", "Hi"),), response_format=form))
    assert caught.value.param == param
