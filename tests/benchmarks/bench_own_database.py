"""Ten questions about a database that is in no data set: how many answers of a trained text2sql model are right.

RELAY_RUN=runs/spider-lora OMP_NUM_THREADS=1 python -m pytest tests/benchmarks/bench_own_database.py -s \
    -o 'python_files=bench_*.py'

RELAY_RUN is the folder of a run; RELAY_FLAGS holds more flags of `relay predict`. The gold queries were written before
any answer was looked at. An answer is right if it has the rows of the gold query, columns in any order.
"""

import json
import os
import random
import shlex
import sqlite3
import subprocess
import sys
from collections import Counter
from itertools import permutations
from pathlib import Path

import pytest

from tests.launching import REPOSITORY

RUN = os.environ.get("RELAY_RUN", "")
TABLES = """
CREATE TABLE customers (customer_id INTEGER PRIMARY KEY, name TEXT, town TEXT, member_since INTEGER);
CREATE TABLE mechanics (mechanic_id INTEGER PRIMARY KEY, name TEXT, hourly_rate REAL);
CREATE TABLE bicycles (bicycle_id INTEGER PRIMARY KEY, customer_id INTEGER REFERENCES customers (customer_id),
    brand TEXT, kind TEXT, frame_size INTEGER);
CREATE TABLE repairs (repair_id INTEGER PRIMARY KEY, bicycle_id INTEGER REFERENCES bicycles (bicycle_id),
    mechanic_id INTEGER REFERENCES mechanics (mechanic_id), repair_date TEXT, work TEXT, hours REAL, price REAL);
"""
# (question, gold query)
QUESTIONS = [
    ("How many bicycles are there?", "SELECT count(*) FROM bicycles"),
    ("Which brands of bicycle are there?", "SELECT DISTINCT brand FROM bicycles"),
    ("What are the names of the customers who live in Lyon?", "SELECT name FROM customers WHERE town = 'Lyon'"),
    ("What is the average price of a repair?", "SELECT avg(price) FROM repairs"),
    (
        "How many bicycles of each kind are there?",
        "SELECT kind, count(*) FROM bicycles GROUP BY kind",
    ),
    (
        "Show the name of the mechanic with the highest hourly rate.",
        "SELECT name FROM mechanics ORDER BY hourly_rate DESC LIMIT 1",
    ),
    (
        "How many repairs did each mechanic do? Show the name and the number.",
        "SELECT m.name, count(*) FROM repairs r JOIN mechanics m ON m.mechanic_id = r.mechanic_id"
        " GROUP BY m.mechanic_id",
    ),
    (
        "What is the total price of all repairs of bicycles of the brand Kestrel?",
        "SELECT sum(r.price) FROM repairs r JOIN bicycles b ON b.bicycle_id = r.bicycle_id WHERE b.brand = 'Kestrel'",
    ),
    (
        "Which customers have no bicycle? Give their names.",
        "SELECT name FROM customers WHERE customer_id NOT IN (SELECT customer_id FROM bicycles)",
    ),
    (
        "Give the names of the customers whose bicycles had more than three repairs in total.",
        "SELECT c.name FROM customers c JOIN bicycles b ON b.customer_id = c.customer_id"
        " JOIN repairs r ON r.bicycle_id = b.bicycle_id GROUP BY c.customer_id HAVING count(*) > 3",
    ),
]

pytestmark = pytest.mark.skipif(not RUN or not Path(RUN).is_dir(), reason="RELAY_RUN names no folder")


def workshop(path: Path) -> Path:
    """A bicycle workshop: 14 customers, two of them without a bicycle, 18 bicycles, 4 mechanics, 45 repairs."""
    numbers = random.Random(16)
    names = ["Ada", "Bruno", "Chloe", "Dario", "Elif", "Farid", "Greta", "Hugo", "Ines", "Jonas", "Kaya", "Luca"]
    names += ["Mira", "Nils"]
    towns = ["Lyon", "Vienne", "Grenoble"]
    brands, kinds = ["Kestrel", "Moulin", "Norvald", "Tarn"], ["city", "mountain", "racing", "cargo"]
    work = ["brakes", "chain", "wheel", "lights", "gears"]
    connection = sqlite3.connect(path)
    connection.executescript(TABLES)
    add = connection.executemany
    add("INSERT INTO customers VALUES (?, ?, ?, ?)",
        [(n, name, numbers.choice(towns), numbers.randint(2009, 2026)) for n, name in enumerate(names, 1)])  # fmt: skip
    add("INSERT INTO mechanics VALUES (?, ?, ?)",
        [(1, "Olga", 38.5), (2, "Pavel", 42.0), (3, "Quim", 35.0), (4, "Rosa", 47.5)])  # fmt: skip
    owners = list(range(1, 13)) + [numbers.randint(1, 12) for _ in range(6)]
    add("INSERT INTO bicycles VALUES (?, ?, ?, ?, ?)",
        [(n, owner, numbers.choice(brands), numbers.choice(kinds), numbers.choice([48, 52, 56, 60]))
         for n, owner in enumerate(owners, 101)])  # fmt: skip
    for number in range(1, 46):
        hours = numbers.choice([0.5, 1.0, 1.5, 2.0, 3.0])
        day = f"202{numbers.randint(4, 6)}-{numbers.randint(1, 12):02}-{numbers.randint(1, 28):02}"
        row = (number, numbers.randint(101, 118), numbers.randint(1, 4), day, numbers.choice(work), hours)
        connection.execute("INSERT INTO repairs VALUES (?, ?, ?, ?, ?, ?, ?)", (*row, round(12 + 41.3 * hours, 2)))
    connection.commit()
    connection.close()
    return path


def is_same(found: list[tuple[object, ...]], wanted: list[tuple[object, ...]]) -> bool:
    """Whether both hold the same rows, in any order of rows and columns; numbers to six digits."""

    def rounded(rows: list[tuple[object, ...]]) -> Counter[tuple[object, ...]]:
        return Counter(tuple(round(v, 6) if isinstance(v, float) else v for v in row) for row in rows)

    if not wanted or not found or len(found[0]) != len(wanted[0]):
        return found == wanted
    orders = permutations(range(len(wanted[0])))
    return any(rounded([tuple(row[n] for n in order) for row in found]) == rounded(wanted) for order in orders)


def test_ten_questions_about_a_workshop(tmp_path: Path) -> None:
    database = workshop(tmp_path / "workshop.sqlite")
    (tmp_path / "questions.txt").write_text("".join(question + "\n" for question, _ in QUESTIONS), encoding="utf-8")
    output = tmp_path / "answers.jsonl"
    command = [sys.executable, "-m", "runner", "predict", str(Path(RUN).absolute()), "--db", str(database)]
    command += ["--questions", str(tmp_path / "questions.txt"), "--output", str(output)]
    subprocess.run([*command, *shlex.split(os.environ.get("RELAY_FLAGS", ""))], check=True, cwd=REPOSITORY)
    answers = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    assert len(answers) == len(QUESTIONS)
    connection = sqlite3.connect(f"file:{database}?mode=ro", uri=True)
    right = 0
    for (question, gold), answer in zip(QUESTIONS, answers, strict=True):
        wanted = connection.execute(gold).fetchall()
        assert wanted
        try:
            found = None if answer["error"] else connection.execute(answer["sql"]).fetchall()
        except sqlite3.Error:
            found = None
        is_right = found is not None and is_same(found, wanted)
        right += is_right
        print(f"{'right' if is_right else 'WRONG'}  {question}\n       {answer['sql']}")
    print(f"{right} of {len(QUESTIONS)} right")
