"""Rows into packs and global batches: a function of data, config, seed and step."""
