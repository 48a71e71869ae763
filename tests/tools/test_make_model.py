from __future__ import annotations

from pathlib import Path

import pytest

from shardload.gguf import GGUFFile
from shardload.llama import Model
from tools.make_model import FILE_TYPES, Size, vocabulary, write_hollow_model, write_model

SMALL = Size(dim=256, layers=2, heads=4, kv_heads=2, ff=512, vocabulary=600, ctx_tokens=128)


@pytest.mark.parametrize("kind", FILE_TYPES)
def test_every_type_is_a_model_that_we_can_read(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "made.gguf"
    write_model(path, SMALL, kind=kind)
    with GGUFFile(path) as made:
        assert made.file_type == ("Q4_K_S" if kind == "Q4_K" else kind)
        assert made.vocabulary_size == 600
        assert set(made.quantization) == {kind, "F32"}
        assert made.tensors["blk.1.ffn_down.weight"].ne == (512, 256)


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_K"])
def test_a_hollow_model_has_the_same_header_and_size(tmp_path: Path, kind: str) -> None:
    whole, hollow = (tmp_path / name / "made.gguf" for name in ("whole", "hollow"))
    for path, write in ((whole, write_model), (hollow, write_hollow_model)):
        path.parent.mkdir()
        write(path, SMALL, kind=kind)
    assert hollow.stat().st_size == whole.stat().st_size
    with GGUFFile(whole) as one, GGUFFile(hollow) as other:
        assert one.tensors == other.tensors
        assert one.header_bytes == other.header_bytes


def test_weights_are_of_sensible_size(tmp_path: Path) -> None:
    path = tmp_path / "made.gguf"
    write_model(path, SMALL, kind="Q8_0")
    with GGUFFile(path) as made:
        values = made.tensor("blk.0.attn_q.weight", dequantize=True)
        assert float(values.std()) == pytest.approx(0.7 / 256**0.5, rel=0.05)


def test_the_same_seed_gives_the_same_file(tmp_path: Path) -> None:
    paths = [tmp_path / name / "made.gguf" for name in "abc"]
    for path, seed in zip(paths, (1, 1, 2), strict=True):
        path.parent.mkdir()
        write_model(path, SMALL, seed=seed)
    first, again, other = (path.read_bytes() for path in paths)
    assert first == again != other


def test_the_vocabulary_has_every_size_and_no_token_twice() -> None:
    for size in (300, 32000):
        tokens, scores, types = vocabulary(size)
        assert len(set(tokens)) == len(tokens) == len(scores) == len(types) == size


@pytest.mark.real
def test_any_text_survives_the_vocabulary(tmp_path: Path) -> None:
    path = tmp_path / "made.gguf"
    write_model(path, SMALL, kind="F32")
    with Model.open([path]) as model:
        text = "Hello babe, miku tako? 1\n中"
        assert model.vocab.detokenize(model.vocab.tokenize(text, add_special=False)).strip() == text
