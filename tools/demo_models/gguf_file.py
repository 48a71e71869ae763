"""Write a trained network and its vocabulary as a GGUF file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
from network import Shape
from numpy.typing import NDArray
from vocabulary import Bytes, Pieces, Words

_BLOCK = ("attn_", "ffn_", "layer_")


@dataclass(frozen=True, slots=True)
class About:
    """What the file says of itself."""

    name: str
    description: str
    tags: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Protocol:
    """How a chat model is talked to: its template and the controls that it ends with."""

    template: str
    begin: str
    end: str
    turn_end: str
    begin_added: bool


def _general(writer: gguf.GGUFWriter, about: About, weights: Mapping[str, NDArray[np.float32]]) -> None:
    count = sum(weight.size for weight in weights.values())
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name(about.name)
    writer.add_description(about.description)
    writer.add_author("The shardload authors")
    writer.add_license("MIT")
    writer.add_tags(list(about.tags))
    writer.add_languages(["en"])
    writer.add_size_label(f"{count / 1000:.0f}K")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)


def _shape(writer: gguf.GGUFWriter, shape: Shape) -> None:
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(shape.blocks)
    writer.add_feed_forward_length(shape.hidden)
    writer.add_head_count(shape.heads)


def _tensors(writer: gguf.GGUFWriter, weights: Mapping[str, NDArray[np.float32]]) -> None:
    """Add matrices as F16 and vectors as F32, named as llama.cpp names them."""
    for name, weight in weights.items():
        small = weight.ndim == 1 or name.startswith("token_types")
        writer.add_tensor(name, weight.astype(np.float32 if small else np.float16))


def _finish(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_storyteller(
    path: Path,
    about: About,
    protocol: Protocol,
    shape: Shape,
    vocabulary: Pieces | Bytes,
    weights: Mapping[str, NDArray[np.float32]],
) -> None:
    """Write a chat model."""
    writer = gguf.GGUFWriter(path, "llama")
    _general(writer, about, weights)
    _shape(writer, shape)
    writer.add_head_count_kv(shape.heads_kv)
    writer.add_layer_norm_rms_eps(shape.epsilon)
    writer.add_rope_dimension_count(shape.head_width)
    writer.add_rope_freq_base(shape.rope_base)
    writer.add_vocab_size(shape.vocabulary)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    if isinstance(vocabulary, Pieces):
        writer.add_tokenizer_model("llama")
        writer.add_tokenizer_pre("default")
        writer.add_token_scores(vocabulary.scores)
        writer.add_unk_token_id(0)
        writer.add_add_space_prefix(False)
    else:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("llama-bpe")
        writer.add_token_merges([" ".join(pair) for pair in vocabulary.merges])
    writer.add_bos_token_id(vocabulary.ids[protocol.begin])
    writer.add_eos_token_id(vocabulary.ids[protocol.end])
    writer.add_eot_token_id(vocabulary.ids[protocol.turn_end])
    writer.add_pad_token_id(vocabulary.ids[protocol.end])
    writer.add_add_bos_token(protocol.begin_added)
    writer.add_add_eos_token(False)
    writer.add_chat_template(protocol.template)
    _tensors(writer, weights)
    _finish(writer)


def write_reader(
    path: Path, about: About, shape: Shape, vocabulary: Words, weights: Mapping[str, NDArray[np.float32]]
) -> None:
    """Write an embedding model with mean pooling."""
    writer = gguf.GGUFWriter(path, "bert")
    _general(writer, about, weights)
    _shape(writer, shape)
    writer.add_layer_norm_eps(shape.epsilon)
    writer.add_causal_attention(False)
    writer.add_pooling_type(gguf.PoolingType.MEAN)
    writer.add_vocab_size(shape.vocabulary)
    writer.add_token_type_count(2)
    writer.add_tokenizer_model("bert")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    writer.add_pad_token_id(vocabulary.ids["[PAD]"])
    writer.add_unk_token_id(vocabulary.ids["[UNK]"])
    writer.add_bos_token_id(vocabulary.ids["[CLS]"])
    writer.add_sep_token_id(vocabulary.ids["[SEP]"])
    writer.add_eos_token_id(vocabulary.ids["[SEP]"])
    writer.add_mask_token_id(vocabulary.ids["[MASK]"])
    _tensors(writer, weights)
    _finish(writer)
