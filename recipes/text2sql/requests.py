"""What `relay predict` may be asked."""

from __future__ import annotations

import dataclasses

from runner.errors import ConfigError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """Questions to answer."""

    db: str = "demo:bookshop"
    """SQLite file, folder of SQLite files, or demo:NAME for an embedded database."""
    question: str = "which author has the most books ?"
    """The question, in English."""
    questions: str | None = None
    """File of questions: one per line (QUESTION<TAB>NAME if --db is a folder), or .json, .jsonl, .csv or .tsv with
    question and db_id."""
    output: str | None = None
    """Write the answers to this .jsonl or .csv file instead of printing them."""
    interactive: bool = False
    """Prompt for questions until the input ends; /num_beams 4 changes a setting below."""
    batch_size: int = 16
    """Questions per batch."""
    constrained: bool | None = None
    """generation.constrained; the checkpoint's value if not given, as for the settings below."""
    num_beams: int | None = None
    """generation.num_beams"""
    temperature: float | None = None
    """generation.temperature"""
    top_p: float | None = None
    """generation.top_p"""
    num_candidates: int | None = None
    """generation.num_candidates"""
    execution_guided: bool | None = None
    """generation.execution_guided"""
    voting: bool | None = None
    """generation.voting"""
    seed: int | None = None
    """generation.seed"""

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ConfigError("Wanted: batch_size of at least 1.")
        if self.output is not None and self.questions is None:
            raise ConfigError("--output is for the answers to a file: type --questions FILE as well.")
