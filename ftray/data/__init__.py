"""Sources to token shards to deterministic batches."""
