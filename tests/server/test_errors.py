from __future__ import annotations

import pytest
from starlette.exceptions import HTTPException

from shardload import errors
from shardload.errors import ShardloadError
from shardload_server.errors import failure_of

EXAMPLES = {
    errors.AllPinned: ("m", 2, 1, ["n"]),
    errors.InsufficientMemory: ("m", 2, 1),
    errors.OpenFailed: ("m", "why"),
    errors.ModelNotFound: ("m", ["n"]),
    errors.Overloaded: ("m", 1, 1.0),
    errors.PromptTooLong: (2, 1),
    errors.LoadFailed: ("m", "why"),
    errors.DecodeFailed: (-1,),
    errors.ShuttingDown: (),
    errors.NoSuchFile: ("m.gguf",),
    errors.UnreadableFile: ("m.gguf",),
    errors.GGUFError: ("m.gguf", "why"),
    errors.StoreError: ("/store", "why"),
}


def tree(kind: type[ShardloadError]) -> set[type[ShardloadError]]:
    return {kind}.union(*(tree(child) for child in kind.__subclasses__()))


def example(kind: type[ShardloadError]) -> ShardloadError:
    arguments = next((EXAMPLES[base] for base in kind.__mro__ if base in EXAMPLES), ("why",))
    return kind(*arguments)


@pytest.mark.parametrize("kind", sorted(tree(ShardloadError), key=lambda kind: kind.__name__))
def test_every_error_of_the_tree_has_a_status(kind):
    failure = failure_of(example(kind))
    assert 400 <= failure.status < 600
    assert failure.message
    assert failure.type == ("invalid_request_error" if failure.status in (400, 404) else failure.type)


def test_a_subclass_is_told_like_its_nearest_parent():
    class Stricter(errors.PromptTooLong):
        pass

    assert failure_of(Stricter(2, 1)).code == "context_length_exceeded"


def test_what_is_final_need_not_be_tried_again():
    assert failure_of(errors.InsufficientMemory("m", 2, 1)).headers == {"x-should-retry": "false"}
    assert failure_of(errors.Overloaded("m", 1, 0.2)).headers == {"retry-after": "1"}


def test_an_unavailable_model_may_say_when():
    class Later(errors.ModelUnavailable):
        retry_after_seconds = 4.2

    assert failure_of(Later("later")).headers == {"retry-after": "5"}


def test_what_nobody_foresaw_gives_nothing_away():
    failure = failure_of(KeyError("/home/secret"))
    assert failure.status == 500
    assert "secret" not in failure.message


def test_statuses_of_the_framework():
    assert failure_of(HTTPException(418)).message == "I'm a Teapot"
    assert failure_of(HTTPException(500)).type == "server_error"
