"""How the database's tables came to be: Alembic's environment and its chain of versions."""
