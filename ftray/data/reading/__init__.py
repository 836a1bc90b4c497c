"""Rows out of files: what kinds there are, where they lie, and where each row is in them."""
