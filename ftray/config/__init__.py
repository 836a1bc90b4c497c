"""Configuration trees: strict, frozen, loaded by one loader."""
