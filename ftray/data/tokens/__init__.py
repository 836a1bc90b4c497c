"""Token shards: made by Ray Data, kept in the storage root, read by key."""
