"""SQLite files for the tests of text2sql."""

import sqlite3
from pathlib import Path

from recipes.text2sql.sql.schema import Schema, table_statements


def create_empty_database(schema: Schema, path: Path) -> None:
    """Write a SQLite file with the schema's tables, without rows."""
    connection = sqlite3.connect(path)
    for statement in table_statements(schema):
        connection.execute(statement)
    connection.commit()
    connection.close()
