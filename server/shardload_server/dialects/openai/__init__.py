"""The OpenAI protocol: chat completions, completions, embeddings, models and the shape of errors."""
