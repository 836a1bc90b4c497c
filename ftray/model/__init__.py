"""Base models, the stacked-adapter layer, and adapters in and out."""
