"""llama.cpp's objects as owned handles: models, vocabularies, contexts and samplers."""

from __future__ import annotations

from shardload.llama.context import Context, ContextParams
from shardload.llama.model import Model, ModelParams
from shardload.llama.sampler import Sampler
from shardload.llama.vocab import Vocab

__all__ = ["Context", "ContextParams", "Model", "ModelParams", "Sampler", "Vocab"]
