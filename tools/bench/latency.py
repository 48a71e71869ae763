"""The rows about how soon a model is there: opening it, and knowing its file."""

from __future__ import annotations

from collections.abc import Iterator

from tools.bench.figures import Row, Setting, figure, paired, quotients
from tools.bench.pages import bring
from tools.bench.processes import child, peer_copy
from tools.make_model import Size, write_hollow_model

TEN_GIGABYTES = Size(dim=4096, layers=40, heads=32, kv_heads=8, ff=14336, vocabulary=128_000)


def opening(setting: Setting) -> Iterator[Row]:
    """Opening a model whose pages are warm, against llama.cpp's own load of a copy.

    It enters every page of the file, and would get our large ones from the page cache.
    """
    model = setting.models.plain()
    copy = peer_copy(model)
    bring([model, copy])
    touched: list[int] = []

    def ours(_turn: int) -> float:
        result = child("open", str(model))
        touched.append(int(result["touched_bytes"]))
        return float(result["seconds"])

    first, second = paired(setting.repeats, ours, lambda _turn: float(child("stock", str(copy))["seconds"]))
    yield Row(
        "opening a model, pages warm, against llama_model_load_from_file",
        figure([1000 * value for value in first], "ms"),
        figure([1000 * value for value in second], "ms"),
        quotients(first, second),
        1.0,
        "lower",
        note=f"{max(touched)} bytes of weights touched by the open",
    )


def header(setting: Setting) -> Iterator[Row]:
    """Knowing a file of 10 GB by its header, which lists a vocabulary of 128,000 tokens."""
    model = setting.models.folder / "header.gguf"
    if not model.exists():
        write_hollow_model(model, TEN_GIGABYTES)
    beyond: list[int] = []

    def ours(_turn: int) -> float:
        result = child("header", str(model))
        beyond.append(int(result["read_beyond_bytes"]))
        return 1000 * float(result["seconds"])

    first, second = paired(
        setting.repeats, ours, lambda _turn: 1000 * float(child("reader", str(model))["seconds"])
    )
    yield Row(
        "header of a 10 GB file with 128,000 tokens, against the gguf package's reader",
        figure(first, "ms"),
        figure(second, "ms"),
        tuple(first),
        50.0,
        "lower",
        "ms",
        note=f"{max(beyond)} bytes read beyond it",
    )
