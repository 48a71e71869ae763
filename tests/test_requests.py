from __future__ import annotations

import math
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardload.chat.messages import Message
from shardload.config import ParametersConfig
from shardload.engine.sampling import SamplingParams
from shardload.errors import RequestError
from shardload.requests import SEEDS, ChatRequest, CompletionRequest, EmbeddingRequest, Options


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("temperature", -0.1, "temperature must be at least 0, not -0.1"),
        ("temperature", math.nan, "temperature must be at least 0, not nan"),
        ("temperature", math.inf, "temperature must be finite in 32 bits, not inf"),
        ("temperature", "hot", "temperature must be a number"),
        ("temperature", True, "temperature must be a number"),
        ("top_p", 0, "top_p must be more than 0"),
        ("top_p", 1.01, "top_p must be between 0 and 1, not 1.01"),
        ("min_p", 2, "min_p must be between 0 and 1"),
        ("typical_p", 0.0, "typical_p must be more than 0"),
        ("top_k", 1.5, "top_k must be a whole number"),
        ("repeat_penalty", 0, "repeat_penalty must be more than 0"),
        ("repeat_last_n", -2, "repeat_last_n must be between -1 and 2147483647"),
        ("presence_penalty", math.inf, "presence_penalty must be finite"),
        ("max_tokens", -1, "max_tokens must be between 0 and 2147483647"),
        ("top_logprobs", 21, "top_logprobs must be between 0 and 20"),
        ("seed", SEEDS, f"seed must be between 0 and {SEEDS - 1}"),
        ("stop", ("a",) * 17, "stop has 17 strings, at most 16"),
        ("stop", ("a", ""), "stop must be strings that are not empty"),
        ("stop", (3,), "stop must be strings"),
        ("stop", 5, "stop must be strings"),
        ("ignore_eos", "no", "ignore_eos must be true or false"),
        ("temperature", 10**400, "temperature must be finite"),
        ("temperature", 1e39, "temperature must be finite in 32 bits, not 1e+39"),
        ("repeat_penalty", 1e-50, "repeat_penalty must be more than 0"),
        ("top_p", 1e-50, "top_p must be more than 0"),
        ("logit_bias", {1: -3.5e38}, "logit_bias must be finite in 32 bits"),
        ("presence_penalty", -(10**400), "presence_penalty must be finite"),
        ("logit_bias", {1: 10**400}, "logit_bias must be finite"),
        ("logit_bias", {math.inf: 1}, "logit_bias must give a number to each token id"),
        ("logit_bias", {1: math.inf}, "logit_bias must be finite"),
        ("logit_bias", {"x": 1}, "logit_bias must give a number to each token id"),
        ("logit_bias", 3, "logit_bias must give a number"),
        ("grammar", 3, "grammar must be a string"),
        ("temprature", 1, "there is no option 'temprature'; known are"),
    ],
)
def test_options_out_of_range_name_themselves(name: str, value: Any, words: str) -> None:
    with pytest.raises(RequestError) as caught:
        Options.of({name: value})
    assert caught.value.param == name
    assert words in str(caught.value)


@given(
    st.dictionaries(
        st.sampled_from(ParametersConfig.__struct_fields__),
        st.integers()
        | st.floats()
        | st.booleans()
        | st.text(max_size=2)
        | st.lists(st.text(max_size=2), max_size=20)
        | st.dictionaries(st.text("0123456789x", max_size=10), st.floats(), max_size=2),
        max_size=3,
    )
)
def test_what_a_configuration_may_say_is_in_range_for_every_request(values: dict[str, Any]) -> None:
    try:
        msgspec.convert(values, ParametersConfig)
    except msgspec.ValidationError:
        return
    Options.of(values)


def test_options_from_a_mapping() -> None:
    options = Options.of({"stop": "END", "logit_bias": {"7": -1}, "temperature": 0, "seed": None})
    assert options == Options(stop=("END",), logit_bias=((7, -1),), temperature=0)
    assert Options.of({"stop": ["a", "b"]}).stop == ("a", "b")


def test_a_requests_own_options_win() -> None:
    own = Options(temperature=0.0, ignore_eos=False)
    defaults = Options(temperature=1.0, top_k=5, ignore_eos=True)
    assert own.over(defaults) == Options(temperature=0.0, top_k=5, ignore_eos=False)


def test_what_nobody_says_is_left_to_the_engine() -> None:
    assert Options(max_tokens=5, stop=("a",)).sampling() == SamplingParams()
    assert Options(temperature=0.5, grammar="x").sampling(grammar="y") == SamplingParams(
        temperature=0.5, grammar="y"
    )


@given(st.integers(0, SEEDS - 1), st.integers(0, 127))
def test_choices_draw_with_seeds_of_their_own(seed: int, offset: int) -> None:
    drawn = Options(seed=seed).sampling(offset=offset).seed
    assert drawn is not None
    assert 0 <= drawn < SEEDS
    assert (drawn - seed) % SEEDS == offset


def test_without_a_seed_none_is_made_up() -> None:
    assert Options().sampling(offset=3).seed is None


ASKED = (Message("user", "Hi"),)


@pytest.mark.parametrize(
    ("request_", "param"),
    [
        (ChatRequest("a", ()), "messages"),
        (ChatRequest("a", ASKED, n=0), "n"),
        (ChatRequest("a", ASKED, n=129), "n"),
        (ChatRequest("a", ASKED, options=Options(top_p=2)), "top_p"),
        (CompletionRequest("a", ()), "prompt"),
        (CompletionRequest("a", ("x",) * 65, n=2), "prompt"),
        (CompletionRequest("a", ("x",), options=Options(seed=-1)), "seed"),
        (EmbeddingRequest("a", ()), "input"),
        (EmbeddingRequest("a", ("x",), dimensions=0), "dimensions"),
        (EmbeddingRequest("a", ("x",), keep_alive_seconds=math.nan), "keep_alive_seconds"),
    ],
)
def test_requests_name_the_field_at_fault(request_: Any, param: str) -> None:
    with pytest.raises(RequestError) as caught:
        request_.check()
    assert caught.value.param == param


def test_good_requests_pass() -> None:
    ChatRequest("a", ASKED, n=128).check()
    CompletionRequest("a", ("x", [1, 2]), n=64).check()
    EmbeddingRequest("a", ("x",), dimensions=3).check()
