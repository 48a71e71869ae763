from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from shardload.llama.encodable import CONTROL
from shardload.llama.pieces import STRIPS_LEFT, TOKENS_IN_PART, ControlTokens

TOKENS = ControlTokens([("<s>", CONTROL), ("</s>", CONTROL), ("<mask>", CONTROL | STRIPS_LEFT), ("a", 0)])


@given(st.lists(st.sampled_from(["<s>", "</s>", "<mask>", "a", " ", "<", "s>"]), max_size=2000))
def test_parts_are_the_text_and_begin_with_a_control_token(pieces: list[str]) -> None:
    content = "".join(pieces)
    parts = list(TOKENS.parts(content))
    assert "".join(parts) == content
    for part in parts[1:]:
        assert part.startswith(("<s>", "</s>"))
    for part in parts:
        assert part.count("<s>") + part.count("</s>") <= TOKENS_IN_PART


def test_a_vocabulary_without_control_tokens_cuts_nothing() -> None:
    assert list(ControlTokens([("a", 0)]).parts("<s>" * 5000)) == ["<s>" * 5000]
    assert list(TOKENS.parts("")) == [""]
