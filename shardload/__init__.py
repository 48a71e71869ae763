"""Serve every GGUF model on a machine from one process."""
