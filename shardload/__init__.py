"""Serve every GGUF model on a machine from one process.

>>> import shardload
>>> with shardload.open(models / "fable.gguf") as model:
...     generation = model.generate("Once", max_tokens=4, temperature=0)
>>> generation.finish_reason
'length'
"""

from shardload._version import __version__
from shardload.answer import Answer, AnswerDelta
from shardload.api import Manager, OpenModel, open  # noqa: A004
from shardload.chat.messages import Message
from shardload.config import Config, load_config
from shardload.errors import ShardloadError
from shardload.generation import Generation
from shardload.gguf import GGUFFile
from shardload.requests import ChatRequest, CompletionRequest, EmbeddingRequest, Options
from shardload.service import Embeddings, Service

__all__ = [
    "Answer",
    "AnswerDelta",
    "ChatRequest",
    "CompletionRequest",
    "Config",
    "EmbeddingRequest",
    "Embeddings",
    "GGUFFile",
    "Generation",
    "Manager",
    "Message",
    "OpenModel",
    "Options",
    "Service",
    "ShardloadError",
    "__version__",
    "load_config",
    "open",
]
