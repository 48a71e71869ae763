from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardload.errors import RequestError
from shardload_server.dialects.openai.requests import ChatBody, CompletionBody, EmbeddingBody
from shardload_server.parsing import parse_body

BODIES = (ChatBody, CompletionBody, EmbeddingBody)
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=8,
)
names = sorted({name for body in BODIES for name in body.__struct_fields__} - {"model"})
bodies = st.fixed_dictionaries({"model": st.text()}, optional=dict.fromkeys(names, json_values))


def refusal(raw, kind):
    """The error that a body gets; None for a request that is taken."""
    try:
        request = parse_body(raw, kind).request()
        request.check()
    except RequestError as error:
        return error
    return None


@given(st.binary(max_size=200), st.sampled_from(BODIES))
def test_bytes_of_any_kind_are_a_request_or_an_error(raw, kind):
    error = refusal(raw, kind)
    assert error is None or str(error)


@given(bodies, st.sampled_from(BODIES))
def test_values_of_any_type_are_a_request_or_an_error_that_names_the_field(value, kind):
    error = refusal(msgspec.json.encode(value), kind)
    assert error is None or error.param


@given(st.text(), st.lists(st.text(), max_size=4) | st.text(), st.integers(1, 8))
def test_what_is_sent_is_what_is_asked(model, prompt, n):
    if prompt == []:
        return
    raw = msgspec.json.encode({"model": model, "prompt": prompt, "n": n, "new_field": [{}]})
    request = parse_body(raw, CompletionBody).request()
    assert (request.model, request.n) == (model, n)
    assert request.prompts == ((prompt,) if isinstance(prompt, str) else tuple(prompt))


@pytest.mark.parametrize(
    ("seed", "asked"),
    [(None, None), (-1, None), (0, 0), (7, 7), (-2, 2**32 - 3), (2**32 - 1, 0), (2**70, 2**70 % (2**32 - 1))],
)
def test_seeds_of_any_size(seed, asked):
    raw = msgspec.json.encode({"model": "m", "prompt": "p"})[:-1] + b',"seed":%b}' % (
        b"null" if seed is None else b"%d" % seed
    )
    request = parse_body(raw, CompletionBody).request()
    assert request.options.seed == asked
    request.check()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("tools", [{}] * 1025),
        ("messages", [{}] * 65_537),
        ("logit_bias", dict.fromkeys(map(str, range(262_145)), 1)),
    ],
)
def test_lists_that_are_too_long(field, value):
    body = {"model": "a", "messages": [{"role": "user", "content": "a"}], field: value}
    assert refusal(msgspec.json.encode(body), ChatBody).param == field
