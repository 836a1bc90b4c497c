"""Accounts: API keys, their limits, and what was used with them, in one database."""
