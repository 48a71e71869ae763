"""Conversations as text: messages, templates, grammars for JSON, and tool calls."""
