"""The service: an OpenAI-compatible fine-tuning API, its queue, and the controller behind it."""
