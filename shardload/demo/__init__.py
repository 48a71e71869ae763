"""The demo models: two small chat models and one for embeddings, made by `tools/demo_models`."""

from __future__ import annotations

from importlib import resources
from pathlib import Path


def demo_folder() -> Path:
    """Return the folder that holds the demo models as plain files."""
    return Path(str(resources.files(__name__)))
