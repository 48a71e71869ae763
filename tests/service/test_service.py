from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest
from fakes import FakeVocab
from service_fakes import (
    ASKED,
    GREEDY,
    FakeCatalog,
    FakeManager,
    FakeStatus,
    ask,
    count_wakes,
    make_entry,
    read,
)

from shardload.chat.messages import Message
from shardload.config import RouteConfig, RouteMatch
from shardload.errors import (
    InsufficientMemory,
    ModelNotFound,
    OpenFailed,
    Overloaded,
    PromptTooLong,
    RequestError,
    ShardloadError,
    ShuttingDown,
)
from shardload.service import ChatRequest, CompletionRequest, EmbeddingRequest, Options, Service


async def test_a_chat(service: Service, manager: FakeManager) -> None:
    answer = await service.start(service.plan(ChatRequest("small", ASKED, options=GREEDY)))
    assert len(manager.leases) == 1
    assert (answer.model, answer.rule, answer.choices) == ("small", "name", 1)
    assert answer.id.startswith("chatcmpl-")
    deltas = [delta async for delta in answer]
    assert "".join(delta.text for delta in deltas) == "<Hi>"
    assert [delta.finish is not None for delta in deltas] == [False] * (len(deltas) - 1) + [True]
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (3, 4)
    assert manager.leases == []
    await answer.aclose()
    assert [delta async for delta in answer] == []


async def test_several_prompts_with_several_choices(service: Service, manager: FakeManager) -> None:
    request = CompletionRequest("small", ("a", list(b"bc")), n=2, options=GREEDY)
    answer = await service.start(service.plan(request))
    assert answer.id.startswith("cmpl-")
    assert await read(answer) == {0: "<a>", 1: "<a>", 2: "<bc>", 3: "<bc>"}
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (4, 14)
    assert manager.leases == []


@pytest.mark.parametrize("n", [1, 3])
async def test_the_loop_of_a_patient_reader_sleeps(
    service: Service, manager: FakeManager, monkeypatch: pytest.MonkeyPatch, n: int
) -> None:
    manager.reply = lambda prompt: "x" * 120
    await ask(service, ChatRequest("small", ASKED, options=GREEDY))
    runner = manager.runners["small", "generate"]
    wakes = count_wakes(asyncio.get_running_loop(), runner, monkeypatch)
    answer = await service.start(service.plan(ChatRequest("small", ASKED, n=n, options=GREEDY)))
    answer.be_patient()
    assert await read(answer) == dict.fromkeys(range(n), "x" * 120)
    assert 0 < len(wakes) < 15


async def test_seeded_choices_differ_and_repeat(service: Service, manager: FakeManager) -> None:
    manager.reply = None
    request = CompletionRequest("small", ("a",), n=3, options=Options(seed=7, max_tokens=20, temperature=5))
    first = await ask(service, request)
    assert len(set(first.values())) == 3
    assert await ask(service, request) == first


async def test_a_seed_has_a_context_of_its_own(catalog: FakeCatalog, manager: FakeManager) -> None:
    catalog.found.append(make_entry("same", base="small", parameters={"seed": 5}))
    service = Service(catalog, manager)  # type: ignore[arg-type]
    for model, options in (("small", GREEDY), ("small", Options(seed=0)), ("same", GREEDY)):
        await ask(service, ChatRequest(model, ASKED, options=options))
    assert [lease.kind for lease in manager.history] == ["generate", "seeded", "seeded"]


async def test_a_virtual_model(service: Service) -> None:
    assert await ask(service, ChatRequest("pirate", ASKED)) == {0: "<Ar"}
    own = ChatRequest("pirate", (Message("system", "Be."), *ASKED), options=Options(max_tokens=6))
    assert await ask(service, own) == {0: "<Be.\nH"}


async def test_no_tokens_at_all(service: Service, manager: FakeManager) -> None:
    answer = await service.start(
        service.plan(CompletionRequest("small", ("a",), n=2, options=Options(max_tokens=0)))
    )
    deltas = [delta async for delta in answer]
    assert [(delta.index, delta.text, delta.finish and delta.finish.reason) for delta in deltas] == [
        (0, "", "length"),
        (1, "", "length"),
    ]
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (2, 0)
    assert manager.leases == []


async def test_options_reach_the_engine(service: Service) -> None:
    options = Options(temperature=0, stop=("b",), top_logprobs=1)
    answer = await service.start(service.plan(CompletionRequest("small", ("abc",), options=options)))
    deltas = [delta async for delta in answer]
    assert "".join(delta.text for delta in deltas) == "<a"
    assert deltas[0].logprobs[0].text == "<"
    assert deltas[-1].finish is not None
    assert deltas[-1].finish.stop_string == "b"


async def test_tool_calls(catalog: FakeCatalog, manager: FakeManager) -> None:
    said = 'Well. <tool_call>{"name": "add", "arguments": {"x": 1}}</tool_call>'
    manager.reply = lambda prompt: said
    template = "{% if tools %}{{ tools[0].name }}{% endif %}"
    able = frozenset({"completion", "chat", "tools"})
    catalog.found = [make_entry("helper", chat_template=template, capabilities=able)]
    service = Service(catalog, manager)  # type: ignore[arg-type]
    plain = await ask(service, ChatRequest("helper", ASKED, options=GREEDY))
    assert plain == {0: said}
    request = ChatRequest("helper", ASKED, tools=({"name": "add"},), n=2, options=GREEDY)
    deltas = [delta async for delta in await service.start(service.plan(request))]
    for index in (0, 1):
        mine = [delta for delta in deltas if delta.index == index]
        assert "".join(delta.text for delta in mine) == "Well."
        (call,) = [call for delta in mine for call in delta.tool_calls]
        assert (call.name, call.arguments) == ("add", '{"x":1}')
        assert [delta.finish_reason for delta in mine] == [None] * (len(mine) - 1) + ["tool_calls"]
    cut = ChatRequest("helper", ASKED, tools=({"name": "add"},), options=Options(temperature=0, max_tokens=3))
    last = [delta async for delta in await service.start(service.plan(cut))][-1]
    assert (last.finish_reason, last.tool_calls) == ("length", ())


async def test_json_reaches_the_engine_as_a_grammar(
    service: Service, manager: FakeManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    grammars: list[str | None] = []
    answer = await service.start(service.plan(ChatRequest("small", ASKED, options=GREEDY)))
    await read(answer)
    runner = manager.runners["small", "generate"]
    make = runner.sampler
    monkeypatch.setattr(
        runner, "sampler", lambda params, history: grammars.append(params.grammar) or make(params, history)
    )
    for form in (
        {"type": "json_object"},
        {"type": "json_schema", "json_schema": {"schema": {"type": "integer"}}},
    ):
        await ask(service, ChatRequest("small", ASKED, response_format=form, options=GREEDY))
    assert grammars[0] is not None
    assert grammars[0].startswith("root   ::= object")
    assert grammars[1] is not None
    assert "integral-part" in grammars[1]


async def test_two_grammars_are_one_too_many(service: Service, manager: FakeManager) -> None:
    request = ChatRequest(
        "small", ASKED, response_format={"type": "json_object"}, options=Options(grammar="root ::= [a-z]")
    )
    with pytest.raises(RequestError, match="cannot be combined"):
        await service.start(service.plan(request))
    assert manager.leases == []


@pytest.mark.parametrize("n", [1, 2])
async def test_a_bad_grammar_is_blamed_on_the_field_that_it_came_by(
    service: Service, manager: FakeManager, monkeypatch: pytest.MonkeyPatch, n: int
) -> None:
    monkeypatch.setattr("shardload.service.schema_grammar", lambda schema: "bad")
    schema = {"type": "json_schema", "json_schema": {"schema": {"type": "integer"}}}
    for fields, param in (
        ({"options": Options(grammar="bad")}, "grammar"),
        ({"response_format": schema}, "response_format"),
    ):
        with pytest.raises(RequestError, match="the grammar does not parse") as caught:
            await ask(service, ChatRequest("small", ASKED, n=n, **fields))
        assert caught.value.param == param
    assert manager.leases == []


async def test_a_grammar_with_too_many_readings_reaches_no_engine(
    service: Service, manager: FakeManager
) -> None:
    grammar = "root ::= a{0,2000}\na ::= b{0,2000}\nb ::= [a-zA-Z ,.]"
    with pytest.raises(RequestError, match="readings") as caught:
        await ask(service, ChatRequest("small", ASKED, options=Options(grammar=grammar)))
    assert caught.value.param == "grammar"
    assert manager.leases == []


async def test_a_response_format_wins_over_the_models_own_grammar(
    catalog: FakeCatalog, manager: FakeManager
) -> None:
    catalog.found = [make_entry("bound", parameters={"temperature": 0, "grammar": "bad"})]
    service = Service(catalog, manager)  # type: ignore[arg-type]
    asked = ChatRequest("bound", ASKED, response_format={"type": "json_object"})
    assert await ask(service, asked) == {0: "<Hi>"}
    with pytest.raises(RequestError, match="the grammar does not parse"):
        await ask(service, ChatRequest("bound", ASKED))
    assert manager.leases == []


async def test_long_tools_are_rendered_on_another_thread(catalog: FakeCatalog, manager: FakeManager) -> None:
    threads: list[int] = []

    class Noting(FakeVocab):
        def tokenize(self, text: str, *, add_special: bool = True, parse_special: bool = False) -> list[int]:
            threads.append(threading.get_ident())
            return super().tokenize(text, add_special=add_special)

    manager.vocab = Noting()
    able = frozenset({"completion", "chat", "tools"})
    catalog.found = [make_entry("able", chat_template="{{ tools | length }}", capabilities=able)]
    service = Service(catalog, manager)  # type: ignore[arg-type]
    tools = ({"type": "function", "function": {"name": "a", "description": "x" * 50_000}},)
    assert await ask(service, ChatRequest("able", ASKED, tools=tools, options=GREEDY)) == {0: "<1>"}
    assert threads != [threading.get_ident()]


async def test_a_long_text_is_tokenised_on_another_thread(catalog: FakeCatalog, manager: FakeManager) -> None:
    threads: list[int] = []

    class Noting(FakeVocab):
        def tokenize(self, text: str, *, add_special: bool = True, parse_special: bool = False) -> list[int]:
            if len(text) > 100:
                threads.append(threading.get_ident())
            return super().tokenize(text, add_special=add_special)

    manager.vocab = Noting()
    catalog.found = [make_entry("wide", ctx_tokens=60_000)]
    service = Service(catalog, manager)  # type: ignore[arg-type]
    for length in (1000, 50_000):
        prompt = "x" * length
        request = ChatRequest(
            "wide", (Message("user", prompt),), options=Options(temperature=0, max_tokens=1)
        )
        assert await ask(service, request) == {0: "<"}
    here = threading.get_ident()
    assert [thread == here for thread in threads] == [True, False]


@pytest.mark.parametrize(
    ("request_", "param"),
    [
        (ChatRequest("small", (Message("user", "x" * 600),)), "messages"),
        (CompletionRequest("small", ("a", "x" * 600)), "prompt"),
    ],
)
async def test_a_prompt_too_long_gives_everything_back(
    service: Service, manager: FakeManager, request_: Any, param: str
) -> None:
    with pytest.raises(PromptTooLong, match="601 tokens and the context holds 512") as caught:
        await service.start(service.plan(request_))
    assert caught.value.param == param
    assert manager.leases == []
    assert await ask(service, ChatRequest("small", ASKED, options=GREEDY)) == {0: "<Hi>"}


@pytest.mark.parametrize(
    ("request_", "error"),
    [
        (ChatRequest("nobody", ASKED), ModelNotFound),
        (ChatRequest("vectors", ASKED), RequestError),
        (ChatRequest("small", ()), RequestError),
        (ChatRequest("small", ASKED, options=Options(temperature=-1)), RequestError),
        (ChatRequest("small", ASKED, tools=({},)), RequestError),
    ],
)
def test_a_plan_opens_nothing(
    service: Service, manager: FakeManager, request_: Any, error: type[ShardloadError]
) -> None:
    with pytest.raises(error):
        service.plan(request_)
    assert manager.history == []


async def test_the_wrong_door(service: Service) -> None:
    with pytest.raises(RequestError):
        await service.start(service.plan(EmbeddingRequest("vectors", ("a",))))
    with pytest.raises(RequestError):
        await service.embed(service.plan(ChatRequest("small", ASKED)))


@pytest.mark.parametrize(
    "failure",
    [OpenFailed("large", "no"), InsufficientMemory("large", 9, 1), Overloaded("large", 64, 1.0)],
)
async def test_a_fallback_takes_over(catalog: FakeCatalog, manager: FakeManager, failure: Exception) -> None:
    routes = (RouteConfig(name="first", target="large", fallbacks=("small",)),)
    service = Service(catalog, manager, routes)  # type: ignore[arg-type]
    manager.failures["large"] = failure
    answer = await service.start(service.plan(ChatRequest("auto", ASKED, options=GREEDY)))
    assert (answer.model, answer.rule) == ("small", "first")
    assert await read(answer) == {0: "<Hi>"}


async def test_when_nobody_can_the_first_error_is_told(catalog: FakeCatalog, manager: FakeManager) -> None:
    routes = (RouteConfig(name="first", target="large", fallbacks=("small",)),)
    service = Service(catalog, manager, routes)  # type: ignore[arg-type]
    manager.failures = {"large": OpenFailed("large", "broken"), "small": Overloaded("small", 64, 1.0)}
    with pytest.raises(OpenFailed, match="broken"):
        await service.start(service.plan(ChatRequest("auto", ASKED)))
    manager.failures = {"large": ShuttingDown()}
    with pytest.raises(ShuttingDown):
        await service.start(service.plan(ChatRequest("auto", ASKED)))


async def test_a_named_model_has_no_fallback(service: Service, manager: FakeManager) -> None:
    manager.failures["large"] = OpenFailed("large", "broken")
    with pytest.raises(OpenFailed):
        await service.start(service.plan(ChatRequest("large", ASKED)))
    assert manager.history == []


async def test_auto_prefers_what_is_in_memory(service: Service, manager: FakeManager) -> None:
    manager.statuses = [FakeStatus("small", "closed", 100, None), FakeStatus("large", "open", 900, 900)]
    assert service.plan(ChatRequest("auto", ASKED)).model == "large"
    assert service.plan(ChatRequest("small", ASKED)).model == "small"
    assert manager.statuses_asked == 1


def test_rules_see_headers_and_the_key(catalog: FakeCatalog, manager: FakeManager) -> None:
    match = RouteMatch(headers={"X-Tier": "gold"}, key="secret")
    routes = (RouteConfig(name="gold", target="large", match=match),)
    service = Service(catalog, manager, routes)  # type: ignore[arg-type]
    plan = service.plan(ChatRequest("auto", ASKED), headers=[("x-tier", "gold")], key="secret")
    assert (plan.model, plan.rule) == ("large", "gold")
    assert service.plan(ChatRequest("auto", ASKED)).rule == "auto"


async def test_keep_alive_and_progress_reach_the_manager(service: Service, manager: FakeManager) -> None:
    seen: list[Any] = []
    request = ChatRequest("small", ASKED, options=Options(keep_alive_seconds=9, max_tokens=1))
    await read(await service.start(service.plan(request), seen.append))
    await service.embed(service.plan(EmbeddingRequest("vectors", ("a",), keep_alive_seconds=3)), seen.append)
    assert [(lease.kind, lease.keep_alive_seconds) for lease in manager.history] == [
        ("generate", 9),
        ("embed", 3),
    ]
    assert seen == ["small", "vectors"]
