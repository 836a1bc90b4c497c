"""Runs and searches that are sent to a cluster, instead of being driven from this machine."""
