"""Distributed fine-tuning on Ray: one base model, many adapters."""

__version__ = "0.1.0"
