"""The models on disk, which of them are open, and who is using them."""
