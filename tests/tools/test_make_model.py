from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType
from gguf.quants import dequantize

from shardload.gguf import GGUFFile
from shardload.llama import Model
from tools.make_model import (
    FILE_TYPES,
    Size,
    random_rows,
    tuned,
    vocabulary,
    write_hollow_model,
    write_like,
    write_model,
)

SMALL = Size(dim=256, layers=2, heads=4, kv_heads=2, ff=512, vocabulary=600, ctx_tokens=128)
MIXTURE = replace(SMALL, experts=4)
LABELS = {"Q4_K": "Q4_K_S", "MXFP4": "MXFP4_MOE"}


@pytest.mark.parametrize("kind", FILE_TYPES)
def test_every_type_is_a_model_that_we_can_read(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "made.gguf"
    write_model(path, SMALL, kind=kind)
    with GGUFFile(path) as made:
        assert made.file_type == LABELS.get(kind, kind)
        assert made.vocabulary_size == 600
        assert set(made.quantization) == {kind, "F32"}
        assert made.tensors["blk.1.ffn_down.weight"].ne == (512, 256)


@pytest.mark.parametrize("kind", FILE_TYPES)
def test_a_mixture_of_experts(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "made.gguf"
    write_model(path, MIXTURE, kind=kind)
    with GGUFFile(path) as made:
        assert made.metadata["llama.expert_count"] == 4
        assert made.metadata["llama.expert_used_count"] == 2
        assert made.tensors["blk.1.ffn_down_exps.weight"].ne == (512, 256, 4)
        assert str(made.tensors["blk.1.ffn_down_exps.weight"].type) == kind
        assert made.tensors["blk.1.ffn_gate_inp.weight"].ne == (256, 4)
        assert str(made.tensors["blk.1.ffn_gate_inp.weight"].type) == "F32"


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_K", "F16"])
@pytest.mark.parametrize("size", [SMALL, MIXTURE])
def test_a_hollow_model_has_the_same_header_and_size(tmp_path: Path, kind: str, size: Size) -> None:
    whole, hollow = (tmp_path / name / "made.gguf" for name in ("whole", "hollow"))
    for path, write in ((whole, write_model), (hollow, write_hollow_model)):
        path.parent.mkdir()
        write(path, size, kind=kind)
    assert hollow.stat().st_size == whole.stat().st_size
    with GGUFFile(whole) as one, GGUFFile(hollow) as other:
        assert one.tensors == other.tensors
        assert one.header_bytes == other.header_bytes


@pytest.mark.parametrize("kind", sorted(set(FILE_TYPES) - {"F16", "F32"}))
def test_weights_are_of_sensible_size(kind: str) -> None:
    deviation = 0.7 / 512**0.5
    blocks = random_rows(np.random.default_rng(1), 256, 512, deviation, kind)
    values = dequantize(blocks, GGMLQuantizationType[kind])
    assert values.shape == (256, 512)
    assert float(values.std()) == pytest.approx(deviation, rel=0.15)
    assert abs(float(values.mean())) < 0.12 * deviation
    # Blocks of one scale could change places and nobody would see it.
    assert len(np.unique(blocks.reshape(256, -1)[:, 0])) > 1


def plain(file: GGUFFile) -> dict[str, object]:
    """The metadata with arrays as lists, which can be compared."""
    single = (str, int, float, bool)
    return {key: value if isinstance(value, single) else list(value) for key, value in file.metadata.items()}


def test_a_fine_tune_leaves_a_share_of_the_bytes(tmp_path: Path) -> None:
    base, tune, again, other = (tmp_path / f"{name}.gguf" for name in ("base", "tune", "again", "other"))
    write_model(base, MIXTURE, kind="Q4_K")
    for path, seed in ((tune, 2), (again, 2), (other, 3)):
        write_like(path, base, change=0.5, seed=seed)
    with GGUFFile(base) as before, GGUFFile(tune) as after, GGUFFile(other) as third:
        assert after.metadata["general.name"] == "tune"
        assert {**plain(after), "general.name": "base"} == plain(before)
        sizes = {name: tensor.nbytes for name, tensor in before.tensors.items()}
        same = [name for name in sizes if np.array_equal(before.tensor(name), after.tensor(name))]
        assert sum(sizes[name] for name in same) / sum(sizes.values()) == pytest.approx(0.5, abs=0.06)
        assert after.tensors.keys() == before.tensors.keys()
        assert same == [name for name in sizes if np.array_equal(before.tensor(name), third.tensor(name))]
        changed = next(name for name in sizes if name not in same)
        assert not np.array_equal(after.tensor(changed), third.tensor(changed))
        assert again.stat().st_size == tune.stat().st_size


def test_only_the_metadata_changes(tmp_path: Path) -> None:
    base, copy = tmp_path / "base.gguf", tmp_path / "under another name.gguf"
    write_model(base, SMALL, kind="Q4_0")
    write_like(copy, base, change=0)
    with GGUFFile(base) as before, GGUFFile(copy) as after:
        assert after.metadata["general.name"] == "under another name"
        assert all(np.array_equal(before.tensor(name), after.tensor(name)) for name in before.tensors)


def test_what_a_fine_tune_changes() -> None:
    sizes = {
        "output.weight": 40,
        "blk.0.ffn_up_exps.weight": 30,
        "blk.0.attn_q.weight": 20,
        "output_norm": 10,
    }
    assert tuned(sizes, 0.0) == set()
    assert tuned(sizes, 0.2) == {"blk.0.attn_q.weight"}
    assert tuned(sizes, 0.6) == {"blk.0.attn_q.weight", "blk.0.ffn_up_exps.weight"}
    assert tuned(sizes, 1.0) == {"blk.0.attn_q.weight", "blk.0.ffn_up_exps.weight", "output.weight"}


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
