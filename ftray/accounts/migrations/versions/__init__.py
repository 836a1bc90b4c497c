"""The versions, oldest first; a change of tables is a new file here, never an edit of an old one.

They name their columns themselves: the tables of `ftray.accounts.tables` are those of today.
"""
