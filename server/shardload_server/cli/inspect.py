"""``shardload inspect``: a file's facts, and a picture of what of it is in memory."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from shardload.errors import format_bytes
from shardload.gguf import GGUFFile
from shardload_server.cli import console
from shardload_server.cli.inspection import (
    Block,
    Inspection,
    KeptTensor,
    KeyValues,
    Pages,
    Residency,
    ShardLine,
    TensorLine,
    inspect_file,
    matters,
)

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table
    from rich.text import Text

    from shardload.config import StoreConfig

VOCABULARY_KINDS = {
    "llama": "SentencePiece",
    "gpt2": "byte-level BPE",
    "bert": "WordPiece",
    "t5": "Unigram",
    "rwkv": "RWKV",
}
DEFAULT_CTX_TOKENS = 4096


@dataclass(frozen=True, slots=True)
class InspectOptions:
    """What is asked for beside the facts."""

    shards: bool
    tensors: bool
    metadata: bool
    ctx_tokens: int | None
    store: StoreConfig
    as_json: bool


def inspect(path: Path, options: InspectOptions) -> None:
    """Print what is in a file; raises GGUFError for one that is not a model."""
    with GGUFFile.open(path) as gguf:
        found = inspect_file(
            gguf,
            _residency(gguf),
            _key_values(gguf, options.ctx_tokens),
            shards=options.shards,
            tensors=options.tensors,
            metadata=options.metadata,
            kept=_kept(gguf, options),
        )
    if options.as_json:
        console.print_json(found)
        return
    out = console.stdout()
    for part in _pages(found):
        out.print(part)


def _kept(gguf: GGUFFile, options: InspectOptions) -> dict[str, KeptTensor]:
    from shardload_server.cli.kept import kept_tensors

    return kept_tensors(gguf, options.store) if options.shards else {}


def _residency(gguf: GGUFFile) -> Residency:
    from shardload.memory import PAGE_BYTES

    return Residency([_file_pages(path) for path in gguf.paths], PAGE_BYTES)


def _file_pages(path: Path) -> Pages | None:
    from shardload.memory import resident_pages
    from shardload.memory.pages import mapped

    # Of a file that is neither ours nor writable, Linux claims that all of it is in memory.
    ours = hasattr(os, "geteuid") and os.geteuid() in (0, path.stat().st_uid)
    if not ours and not os.access(path, os.W_OK):
        return None
    with path.open("rb") as file:
        length = os.fstat(file.fileno()).st_size
        with mapped(file.fileno(), 0, length) as address:
            return resident_pages(address, length)


def _key_values(gguf: GGUFFile, ctx_tokens: int | None) -> KeyValues:
    from shardload.library.estimate import kv_bytes, memory_shape

    ctx = ctx_tokens or min(gguf.context_length or DEFAULT_CTX_TOKENS, DEFAULT_CTX_TOKENS)
    shape = memory_shape(gguf)
    return KeyValues(shape.kv_bytes_per_token, ctx, kv_bytes(shape, ctx))


def _pages(found: Inspection) -> list[RenderableType]:
    table = _block_table(found) if found.shards is None else _shard_table(found.shards)
    parts: list[RenderableType] = [_title(found), _facts(found), "", table]
    if found.tensors is not None:
        parts += ["", _tensor_table(found)]
    if found.metadata is not None:
        parts += ["", _metadata_table(found.metadata)]
    return parts


def _title(found: Inspection) -> Text:
    from rich.text import Text

    return Text.assemble((found.name, "bold"), "  ", (found.files[0], "dim"), overflow="fold")


def _facts(found: Inspection) -> Table:
    from rich.table import Table

    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in fact_lines(found):
        grid.add_row("  " + name, value)
    return grid


def fact_lines(found: Inspection) -> list[tuple[str, str]]:
    """The facts as pairs of a name and a phrase."""
    files = "1 file" if len(found.files) == 1 else f"{len(found.files)} files"
    unknown = "not in the header"
    return [
        ("architecture", found.architecture or unknown),
        ("parameters", format_count(found.parameter_count)),
        ("quantisation", _mix(found)),
        ("context", f"{found.context_length} tokens" if found.context_length else unknown),
        ("vocabulary", _vocabulary(found)),
        ("chat template", "yes" if found.chat_template else "no"),
        ("blocks", _block_line(found)),
        ("size", f"{format_bytes(found.size_bytes)} in {files}, header {format_bytes(found.header_bytes)}"),
        ("KV cache", _kv_line(found.key_values)),
        ("in memory", _share(found.resident_bytes, sum(block.bytes for block in found.blocks))),
    ]


def format_count(count: int) -> str:
    """A number of parameters for people: ``1.1 B``."""
    for limit, unit in ((10**9, "B"), (10**6, "M"), (10**3, "K")):
        if count >= limit:
            return f"{count / limit:.2f} {unit}" if count < 10 * limit else f"{count / limit:.1f} {unit}"
    return str(count)


def _mix(found: Inspection) -> str:
    total = sum(found.quantization.values()) or 1
    mix = ", ".join(f"{kind} {100 * size / total:.1f} %" for kind, size in found.quantization.items())
    return f"{mix} of the bytes" + (f" (labelled {found.file_type})" if found.file_type else "")


def _vocabulary(found: Inspection) -> str:
    vocabulary = found.vocabulary
    if vocabulary.tokens is None:
        return "none"
    kind = VOCABULARY_KINDS.get(vocabulary.kind or "", vocabulary.kind or "unknown kind")
    pre = f", split as {vocabulary.pre}" if vocabulary.pre and vocabulary.pre != "default" else ""
    return f"{vocabulary.tokens} tokens, {kind}{pre}"


def _block_line(found: Inspection) -> str:
    sizes = [block.bytes for block in found.blocks if "blk." in block.name]
    if not sizes:
        return "none"
    each = format_bytes(min(sizes))
    if min(sizes) != max(sizes):
        each += f" to {format_bytes(max(sizes))}"
    return f"{len(sizes)} of {each}" + (f", width {found.embedding_length}" if found.embedding_length else "")


def _kv_line(values: KeyValues) -> str:
    if not values.bytes:
        return "none"
    return (
        f"{format_bytes(values.bytes_per_token)} per token, "
        f"{format_bytes(values.bytes)} for {values.ctx_tokens} tokens"
    )


def _share(resident: int | None, total: int) -> str:
    if resident is None:
        return "not to be known on this system"
    return f"{format_bytes(resident)} of {format_bytes(total)} ({console.percent(resident / max(total, 1))})"


def _block_table(found: Inspection) -> Table:
    made = console.table("part", "tensors", "bytes", "in memory", "", numbers=("tensors", "bytes", ""))
    for block in found.blocks:
        made.add_row(block.name, str(block.tensors), format_bytes(block.bytes), bar(block), _percent(block))
    return made


def _shard_table(shards: Sequence[ShardLine]) -> Table:
    known = any(shard.shared_with or shard.packed_bytes for shard in shards)
    more = ("packed", "shared with") if known else ()
    numbers = ("bytes", "", "packed")
    made = console.table("shard", "types", "bytes", "in memory", "", *more, numbers=numbers, narrow=known)
    for shard in shards:
        cells: list[RenderableType] = [
            shard.name,
            _types(shard),
            format_bytes(shard.bytes),
            bar(shard, known),
            _percent(shard),
        ]
        if known:
            cells += [format_bytes(shard.packed_bytes), console.few(shard.shared_with, 1)]
        made.add_row(*cells)
    return made


def _types(shard: ShardLine) -> str:
    """The types that make up most of a shard; norms of a few bytes are not worth a word."""
    named = [kind for kind, nbytes in shard.types.items() if matters(nbytes, shard.bytes)]
    return " ".join(named)


def _percent(line: Block | ShardLine | TensorLine) -> str:
    if line.resident_bytes is None:
        return "?"
    return console.percent(line.resident_bytes / max(line.bytes, 1))


def bar(block: Block | ShardLine, short: bool = False) -> Text:
    """The block's bytes from left to right: full cells are in memory, shaded ones in part, light ones not."""
    from rich.text import Text

    text = Text(no_wrap=True)
    for share in halved(halved(block.cells)) if short else block.cells:
        if share >= 0.995:
            text.append("█", "green")
        elif share > 0:
            text.append("▒", "yellow")
        else:
            text.append("░", "bright_black")
    return text


def halved(cells: Sequence[float]) -> list[float]:
    """The same bar with half as many cells."""
    return [sum(cells[at : at + 2]) / len(cells[at : at + 2]) for at in range(0, len(cells), 2)]


def _tensor_table(found: Inspection) -> Table:
    made = console.table("tensor", "type", "shape", "bytes", "in memory", numbers=("bytes", "in memory"))
    for line in found.tensors or ():
        shape = " x ".join(str(extent) for extent in line.shape)
        made.add_row(line.name, line.type, shape, format_bytes(line.bytes), _percent(line))
    return made


def _metadata_table(metadata: dict[str, object]) -> Table:
    from rich.text import Text

    made = console.table("key", "value")
    for key, value in metadata.items():
        made.add_row(key, Text(value_line(value), overflow="fold"))
    return made


def value_line(value: object, limit: int = 200) -> str:
    """A metadata value in one line, cut to ``limit`` characters."""
    if isinstance(value, dict):
        first = ", ".join(value_line(element, 24) for element in value["first"])
        more = ", ..." if value["count"] > len(value["first"]) else ""
        return f"{value['count']} x {value['type']}: {first}{more}"
    line = repr(value)[1:-1] if isinstance(value, str) else str(value)
    return line if len(line) <= limit else f"{line[:limit]}... ({len(line)} characters)"
