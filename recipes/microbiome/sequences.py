"""ASV sequences from FASTA files, and their letters as tokens."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from recipes.microbiome.files import read_text
from runner.errors import DataError


def read_fasta(path: Path) -> dict[str, str]:
    """Sequences by the first word of their header, of a FASTA file (also `.gz`) or a `.qza` with one.

    Lines are joined and blanks removed; letters stay as they are. Raises DataError for a name that occurs twice, a
    record without a name, and a file in another format.
    """
    found: dict[str, list[str]] = {}
    name = None
    lines = read_text(path, "dna-sequences.fasta").split("\n")
    first = next((line for line in lines if line.strip()), "")
    if first.startswith("@"):
        raise DataError(f"{path} looks like FASTQ: it begins with {first[:30]!r}. Wanted: the ASVs as FASTA.")
    for number, line in enumerate(lines, 1):
        if line.startswith(">"):
            name = (line[1:].split() or [""])[0]
            if not name:
                raise DataError(f"{path} has a sequence without a name in line {number}; wanted: >id.")
            if name in found:
                raise DataError(f"{path} has the sequence {name[:60]!r} twice; wanted: each ASV once.")
            found[name] = []
        elif name is not None:
            found[name].append("".join(line.split()))
        elif line.strip() and not line.startswith(";"):
            raise DataError(
                f"{path} holds no FASTA record in line {number}, but {line.strip()[:30]!r}; wanted: lines of >id, and "
                "sequences below them."
            )
    if not found:
        raise DataError(f"{path} holds no FASTA record; wanted: lines of >id, and sequences below them.")
    return {name: "".join(parts) for name, parts in found.items()}


def cleaned(sequence: str) -> str:
    """Upper case, with T for U and without the gaps of an alignment."""
    return sequence.upper().replace("U", "T").replace("-", "").replace(".", "")


TOKEN_OF = np.zeros(256, np.int8)
TOKEN_OF[[ord(letter) for letter in "ACGT"]] = [1, 2, 3, 4]


def tokenize(sequences: Sequence[str], max_bp: int) -> np.ndarray:
    """(sequences, longest) of 1 to 4 for A, C, G, T, and 0 after the end; letters beyond `max_bp` are cut."""
    letters = [sequence[:max_bp].encode("ascii") for sequence in sequences]
    longest = max(map(len, letters), default=0)
    # Padded as bytes: an array operation for each sequence took half of a micro-batch's time.
    together = b"".join([own.ljust(longest, b"\0") for own in letters])
    return TOKEN_OF[np.frombuffer(together, np.uint8)].reshape(len(letters), longest)
