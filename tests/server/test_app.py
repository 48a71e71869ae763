from __future__ import annotations

import pytest

from shardload.errors import (
    AllPinned,
    InsufficientMemory,
    OpenFailed,
    Overloaded,
    PromptTooLong,
    RequestError,
    ShardloadError,
    ShuttingDown,
    UnencodableText,
)

pytestmark = pytest.mark.anyio


async def test_a_chat_completion(serve):
    async with serve() as served:
        response = await served.chat(temperature=0.5, max_tokens=7, seed=-1, stop="x", top_k=3)
    assert response.status_code == 200
    body = response.json()
    assert body["object"] == "chat.completion"
    assert body["model"] == "ada"
    assert body["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "Hello there", "refusal": None},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ]
    assert body["usage"]["prompt_tokens"] == 3
    assert body["usage"]["total_tokens"] == 5
    assert body["timings"]["predicted_n"] == 2
    assert response.headers["x-shardload-model"] == "ada"
    assert response.headers["x-shardload-rule"] == "name"
    options = served.service.plans[0].request.options
    assert (options.temperature, options.max_tokens, options.seed, options.stop, options.top_k) == (
        0.5,
        7,
        None,
        ("x",),
        3,
    )


async def test_max_completion_tokens_is_the_newer_name(serve):
    async with serve() as served:
        await served.chat(max_tokens=7, max_completion_tokens=9)
    assert served.service.plans[0].request.options.max_tokens == 9


async def test_headers_and_key_reach_the_router(serve):
    async with serve() as served:
        await served.client.post(
            "/v1/completions",
            json={"model": "ada", "prompt": "x"},
            headers={"X-Tier": "gold", "Authorization": "Bearer secret"},
        )
    plan = served.service.plans[0]
    assert plan.headers["x-tier"] == "gold"
    assert plan.key == "secret"


async def test_choices_are_told_apart(serve, answer):
    async with serve() as served:
        mixed = answer("ada").say("a", index=1).say("b", index=0).say("c", index=1)
        served.service.answers.append(mixed.end(index=0, last=False).end(index=1, reason="length"))
        body = (await served.chat(n=2)).json()
    assert [
        (each["index"], each["message"]["content"], each["finish_reason"]) for each in body["choices"]
    ] == [
        (0, "b", "stop"),
        (1, "ac", "length"),
    ]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": "hi"}, "messages"),
        ({"messages": [{"role": "user", "content": 3}]}, "messages[0].content"),
        ({"messages": [{"role": "owl", "content": ""}]}, "messages[0].role"),
        ({"messages": []}, "messages"),
        ({"messages": ["x"]}, "messages[0]"),
        ({"max_tokens": "many"}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"max_tokens": -5}, "max_tokens"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": 10**400}, "temperature"),
        ({"top_p": 2}, "top_p"),
        ({"n": 0}, "n"),
        ({"n": True}, "n"),
        ({"n": 10**30}, "n"),
        ({"stop": [1]}, "stop[0]"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"logit_bias": {"9" * 5000: 1}}, "logit_bias"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 50}, "top_logprobs"),
        ({"tools": [3]}, "tools[0]"),
        ({"keep_alive": "soon"}, "keep_alive"),
        ({"model": None}, "model"),
        ({"model": 3}, "model"),
        ({"response_format": "json"}, "response_format"),
    ],
)
async def test_wrong_types_name_the_field(serve, error_of, fields, param):
    async with serve() as served:
        response = await served.chat(**fields)
        assert response.status_code == 400
        error = error_of(response)
        assert error["type"] == "invalid_request_error"
        assert error["param"] == param
        assert param.split("[")[0].split(".")[-1] in error["message"]
        assert (await served.chat()).status_code == 200


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"nonsense",
        b'{"model": "ada",}',
        b"[1, 2]",
        b'"text"',
        b"null",
        b'{"model": "a\xff"}',
        b'{"model": "\\ud800"}',
        b"\xff\xfe{\x00}\x00",
        b'{"messages": ' + b"[" * 200_000,
        b'{"unknown": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"messages": ' + b'{"a":' * 100_000 + b"1" + b"}" * 100_000 + b"}",
    ],
)
@pytest.mark.parametrize(
    "path", ["/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/models/load"]
)
async def test_bodies_that_are_no_requests(serve, error_of, path, body):
    async with serve() as served:
        response = await served.client.post(path, content=body)
        assert response.status_code == 400
        assert error_of(response)["type"] == "invalid_request_error"
        assert (await served.chat()).status_code == 200


async def test_a_request_without_a_body(serve, error_of):
    async with serve() as served:
        response = await served.client.post("/v1/chat/completions")
        assert (response.status_code, error_of(response)["message"]) == (400, "the request has no body")


async def test_a_missing_field_is_named(serve, error_of):
    async with serve() as served:
        response = await served.client.post("/v1/chat/completions", json={"messages": []})
    assert error_of(response)["message"] == "model is missing"
    assert error_of(response)["param"] == "model"


async def test_unknown_fields_and_content_types_are_tolerated(serve):
    async with serve() as served:
        assert (await served.chat(service_tier="auto", unheard_of={"deep": [1]})).status_code == 200
        response = await served.client.post(
            "/v1/completions",
            content=b'{"model": "ada", "prompt": "x"}',
            headers={"content-type": "text/plain"},
        )
    assert response.status_code == 200


async def test_an_unknown_model_is_told_which_there_are(serve, error_of):
    async with serve() as served:
        response = await served.chat(model="nobody")
    assert response.status_code == 404
    error = error_of(response)
    assert error["code"] == "model_not_found"
    assert error["available"] == ["ada", "grace", "org/model"]
    assert "org/model" in error["message"]


@pytest.mark.parametrize("path", ["/nowhere", "/v1", "/v1/chat/completions/", "/v1/models/"])
async def test_unknown_paths(serve, error_of, path):
    async with serve() as served:
        response = await served.client.get(path)
    assert response.status_code == 404
    assert error_of(response)["message"]


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/v1/chat/completions", "POST"),
        ("DELETE", "/v1/embeddings", "POST"),
        ("POST", "/v1/models", "GET"),
        ("PUT", "/models/load", "POST"),
    ],
)
async def test_wrong_methods(serve, error_of, method, path, allowed):
    async with serve() as served:
        response = await served.client.request(method, path)
    assert response.status_code == 405
    assert allowed in response.headers["allow"]
    assert allowed in error_of(response)["message"]


@pytest.mark.parametrize(
    ("failure", "status", "code", "extra"),
    [
        (RequestError("no", param="tools"), 400, None, {"param": "tools"}),
        (
            PromptTooLong(600, 512),
            400,
            "context_length_exceeded",
            {"prompt_tokens": 600, "context_tokens": 512},
        ),
        (UnencodableText("no tokens for it"), 400, "unencodable_text", {}),
        (Overloaded("ada", 64, 2.5), 429, "rate_limit_exceeded", {}),
        (OpenFailed("ada", "bad magic"), 503, "model_open_failed", {}),
        (
            InsufficientMemory("ada", 10, 5),
            503,
            "insufficient_memory",
            {"needed_bytes": 10, "budget_bytes": 5},
        ),
        (AllPinned("ada", 10, 5, ["grace"]), 503, "all_pinned", {"pinned": ["grace"]}),
        (ShuttingDown(), 503, "shutting_down", {}),
        (ShardloadError("odd"), 500, "internal_error", {}),
    ],
)
@pytest.mark.parametrize("stream", [True, False])
async def test_failures_before_the_answer_are_statuses(serve, error_of, failure, status, code, extra, stream):
    async with serve() as served:
        served.service.failure = failure
        response = await served.chat(stream=stream)
    assert response.status_code == status
    error = error_of(response)
    assert error["code"] == code
    assert error["message"] == str(failure)
    assert extra.items() <= error.items()
    assert response.headers.get("retry-after") == ("3" if status == 429 else None)


@pytest.mark.parametrize("stream", [True, False])
async def test_a_fault_is_a_500_and_the_server_goes_on(serve, error_of, caplog, stream):
    async with serve() as served:
        served.service.failure = ZeroDivisionError("secret detail")
        response = await served.chat(stream=stream)
        assert response.status_code == 500
        assert "secret" not in error_of(response)["message"]
        assert "secret detail" in caplog.text
        served.service.failure = None
        assert (await served.chat()).status_code == 200
        assert len(served.stack.in_flight) == 0


async def test_completions(serve):
    async with serve() as served:
        response = await served.client.post(
            "/v1/completions", json={"model": "ada", "prompt": "Say: ", "echo": True}
        )
        tokens = await served.client.post("/v1/completions", json={"model": "ada", "prompt": [1, 2]})
        many = await served.client.post("/v1/completions", json={"model": "ada", "prompt": [[1, 2], [3]]})
    body = response.json()
    assert body["object"] == "text_completion"
    assert body["choices"] == [
        {"index": 0, "text": "Say: Hello there", "logprobs": None, "finish_reason": "stop"}
    ]
    assert tokens.status_code == many.status_code == 200
    assert [plan.request.prompts for plan in served.service.plans] == [
        ("Say: ",),
        ([1, 2],),
        ([1, 2], [3]),
    ]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [1, "a"]}, "prompt"),
        ({"prompt": {"a": 1}}, "prompt"),
        ({"prompt": [[1, "a"]]}, "prompt"),
        ({"prompt": [None]}, "prompt"),
        ({"prompt": [1], "echo": True}, "echo"),
        ({"prompt": "a", "echo": True, "logprobs": 1}, "echo"),
        ({"prompt": "a", "suffix": "b"}, "suffix"),
        ({"prompt": "a", "logprobs": 99}, "top_logprobs"),
    ],
)
async def test_wrong_completions(serve, error_of, fields, param):
    async with serve() as served:
        response = await served.client.post("/v1/completions", json={"model": "ada", **fields})
    assert response.status_code == 400
    assert error_of(response)["param"].split("[")[0] == param


async def test_logprobs(serve, answer, logprob):
    from shardload.answer import AnswerDelta

    def scripted():
        return answer("ada").put(AnswerDelta(0, "Hé", (logprob("H", -0.5), logprob("é", -1.5)))).end()

    async with serve() as served:
        served.service.answers += [scripted(), scripted()]
        chat = await served.chat(logprobs=True, top_logprobs=2)
        text = await served.client.post(
            "/v1/completions", json={"model": "ada", "prompt": "x", "logprobs": 2}
        )
    content = chat.json()["choices"][0]["logprobs"]["content"]
    assert [each["token"] for each in content] == ["H", "é"]
    assert content[1]["bytes"] == [0xC3, 0xA9]
    assert content[0]["top_logprobs"][1] == {"token": "�", "logprob": -9999.0, "bytes": [255]}
    assert text.json()["choices"][0]["logprobs"] == {
        "tokens": ["H", "é"],
        "token_logprobs": [-0.5, -1.5],
        "top_logprobs": [{"H": -0.5, "�": -9999.0}, {"é": -1.5, "�": -9999.0}],
        "text_offset": [0, 1],
    }
    assert [plan.request.options.top_logprobs for plan in served.service.plans] == [2, 2]


async def test_embeddings_as_numbers_and_as_base64(serve):
    async with serve() as served:
        numbers = await served.client.post("/v1/embeddings", json={"model": "ada", "input": ["a", "b"]})
        packed = await served.client.post(
            "/v1/embeddings", json={"model": "ada", "input": [1, 2], "encoding_format": "base64"}
        )
    body = numbers.json()
    assert [each["index"] for each in body["data"]] == [0, 1]
    assert body["data"][0]["embedding"] == pytest.approx([0.6, 0.8])
    assert body["usage"] == {"prompt_tokens": 5, "total_tokens": 5}
    assert packed.json()["data"][0]["embedding"] == "mpkZP83MTD8="
    assert numbers.headers["x-shardload-model"] == "ada"


async def test_more_texts_than_one_answer_holds(serve, error_of):
    async with serve() as served:
        body = {"model": "grace", "input": ["x"] * 2049}
        response = await served.client.post("/v1/embeddings", json=body)
        assert response.status_code == 400
        assert (error_of(response)["param"], "2049" in error_of(response)["message"]) == ("input", True)
        body["input"].pop()
        assert len((await served.client.post("/v1/embeddings", json=body)).json()["data"]) == 2048


async def test_a_root_that_says_where_to_go(serve):
    async with serve() as served:
        body = (await served.client.get("/")).json()
    assert body["name"] == "shardload"
    assert {"/v1/chat/completions", "/models/{id}/shards"} < set(body["paths"])
