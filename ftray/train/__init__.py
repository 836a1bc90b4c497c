"""Fine-tuning over Ray Train workers."""
