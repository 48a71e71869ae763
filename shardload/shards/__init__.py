"""Shards: tensors that come and go together, and the store of their packed bytes."""
