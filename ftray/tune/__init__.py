"""Searching over run configs: many trials on one base, decided by Ray Tune."""
