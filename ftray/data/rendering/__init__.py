"""Rows to token ids: formats, chat templates, tokenizers, and what is learned."""
