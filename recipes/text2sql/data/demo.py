"""The embedded data: databases of fourteen domains and questions about them, made from a seed on first use.

Every database is a real SQLite file with a parent table (a shop, a club, ...) and a child table (its things) joined by
a foreign key. Every pair executes to a non-trivial result. The dev split asks queries that never occur in training; two
whole databases are held back.
"""

import dataclasses
import hashlib
import json
import os
import random
import shutil
import sqlite3
import uuid
from collections.abc import Iterator
from pathlib import Path

from runner.parts.cache import cache_folder

VERSION = 1
HELD_OUT = ("vineyard", "museum")

FIRST = "Ada Ben Clara David Elena Felix Grace Hugo Iris Jonas Karin Leo Maria Nils Olga Paul Rosa Samuel Tara Victor".split()
LAST = (
    "Adler Brown Costa Dubois Evans Fischer Garcia Hansen Ivanov Jensen Keller Lopez Moreau Novak Olsen Peters".split()
)
PLACES = (
    "Aarhus Bergen Bologna Cork Dresden Ghent Girona Graz Leeds Lyon Malmo Nantes Porto Riga Split Tartu Turin".split()
)
ADJECTIVES = (
    "Amber Ancient Blue Bright Broken Crimson Distant Golden Green Hidden Little Lost Quiet Red Silver Wild".split()
)


@dataclasses.dataclass(frozen=True)
class Domain:
    """What a database is about: a parent table, a child table, and the words for them."""

    db_id: str
    parent: str
    parents: str
    child: str
    children: str
    nouns: tuple[str, ...]
    """Second words of the children's names."""
    kind: str
    """The children's category column."""
    kinds: tuple[str, ...]
    first: tuple[str, str, int, int]
    """A number of the children: column, words, lowest, highest."""
    second: tuple[str, str, int, int]
    date: tuple[str, str]
    """A year of the children: column, the verb for it."""


def _domain(text: str) -> Domain:
    names, nouns, kind, kinds, first, second, date = (part.strip() for part in text.split("|"))
    db_id, parent, parents, child, children = names.split()
    number = [(column, words.replace("-", " "), int(low), int(high)) for column, words, low, high in
              (first.split(), second.split())]  # fmt: skip
    column, verb = date.split()
    return Domain(db_id, parent, parents, child, children, tuple(nouns.split()), kind, tuple(kinds.split()),
                  number[0], number[1], (column, verb))  # fmt: skip


DOMAINS = tuple(
    _domain(line)
    for line in """
bookshop author authors book books | Garden River Letter Shadow House Winter | genre | novel poetry history crime | price price 5 60 | pages number-of-pages 80 900 | year published
clinic doctor doctors patient patients | Reed Stone Wood Field Hill Lake | blood_group | A B AB O | weight weight 45 120 | height height 150 205 | year admitted
airline airline airlines flight flights | Arrow Comet Falcon Star Wind Cloud | class | economy business charter cargo | distance distance 200 9000 | seats number-of-seats 40 400 | year launched
zoo keeper keepers animal animals | Bear Fox Owl Lynx Otter Crane | diet | carnivore herbivore omnivore insectivore | weight weight 2 900 | age age 1 40 | year acquired
football club clubs player players | Striker Walker Runner Keeper Hunter Porter | position | goalkeeper defender midfielder forward | goals number-of-goals 0 60 | salary salary 20000 900000 | year signed
restaurant chef chefs dish dishes | Soup Pie Curry Salad Stew Roast | course | starter main dessert side | price price 4 45 | calories calories 90 1400 | year introduced
record_label artist artists album albums | Nights Roads Songs Echoes Waves Dreams | style | jazz rock folk soul | copies copies-sold 500 90000 | tracks number-of-tracks 5 24 | year released
university teacher teachers course courses | Logic Systems Studies Theory Methods Practice | level | bachelor master doctoral evening | credits number-of-credits 2 30 | students number-of-students 8 400 | year started
car_dealer maker makers car cars | Cruiser Rover Sprint Nomad Comet Pilot | fuel | petrol diesel electric hybrid | power horsepower 60 600 | price price 8000 120000 | year built
fleet captain captains ship ships | Pearl Queen Gull Tide Anchor Voyager | type | ferry tanker trawler cruiser | length length 20 350 | crew crew-size 4 900 | year built
film_studio director directors film films | Storm Station Promise Island Mirror Return | category | drama comedy thriller documentary | budget budget 1 300 | minutes running-time 60 220 | year released
hotel owner owners room rooms | Suite Loft Chamber Studio Terrace Corner | view | sea garden street mountain | rate nightly-rate 40 800 | area area 12 140 | year renovated
farm farmer farmers field fields | Meadow Acre Slope Hollow Plain Ridge | crop | wheat barley maize rye | size size 2 300 | harvest harvest 10 4000 | year planted
company manager managers project projects | Engine Portal Bridge Signal Atlas Beacon | status | planned active paused finished | budget budget 10 5000 | hours number-of-hours 20 9000 | year started
vineyard grower growers wine wines | Reserve Valley Cellar Hillside Estate Selection | colour | white rose sparkling orange | price price 6 240 | bottles number-of-bottles 200 30000 | year bottled
museum curator curators exhibit exhibits | Vase Mask Portrait Coin Statue Tapestry | material | bronze marble clay silk | value value 100 90000 | weight weight 1 700 | year acquired
""".strip().splitlines()
)


@dataclasses.dataclass(frozen=True)
class Pair:
    """A question, its query, and the database it is about."""

    question: str
    query: str
    db_id: str
    database: str


@dataclasses.dataclass(frozen=True)
class DemoData:
    """The splits."""

    train: list[Pair]
    dev: list[Pair]
    held_out: list[Pair]


def build(cache_dir: Path | None = None, seed: int = 0) -> DemoData:
    """The embedded data, made on first use and read from the cache later."""
    source = hashlib.blake2b(f"{VERSION}/{seed}".encode() + Path(__file__).read_bytes(), digest_size=6).hexdigest()
    folder = (cache_dir or cache_folder()) / f"text2sql-demo-{source}"
    if not folder.is_dir():
        draft = folder.with_name(f".draft-{folder.name}-{uuid.uuid4().hex[:8]}")
        _make(draft, seed)
        try:
            os.rename(draft, folder)
        except OSError:
            # Another process was faster; what it made is the same.
            shutil.rmtree(draft)
    splits = []
    for split in ("train", "dev", "held_out"):
        entries = json.loads((folder / f"{split}.json").read_text(encoding="utf-8"))
        splits.append([Pair(**entry, database=str(database_path(folder, entry["db_id"]))) for entry in entries])
    return DemoData(*splits)


def database_path(folder: Path, db_id: str) -> Path:
    """Where a database is, as in Spider."""
    return folder / "database" / db_id / f"{db_id}.sqlite"


def _make(folder: Path, seed: int) -> None:
    splits: dict[str, list[dict[str, str]]] = {"train": [], "dev": [], "held_out": []}
    for domain in DOMAINS:
        chance = random.Random(f"{seed}/{domain.db_id}")
        path = database_path(folder, domain.db_id)
        path.parent.mkdir(parents=True)
        _fill(path, domain, chance)
        pairs: dict[str, list[str]] = {}
        connection = sqlite3.connect(path)
        for _ in range(1500):
            question, query = next(_ask(connection, domain, chance))
            if _is_telling(connection, query):
                pairs.setdefault(query, []).append(question)
        connection.close()
        queries = sorted(pairs)
        chance.shuffle(queries)
        for number, query in enumerate(queries):
            questions = list(dict.fromkeys(pairs[query]))
            split = "held_out" if domain.db_id in HELD_OUT else "dev" if number < 22 else "train"
            for question in questions[: 1 if split != "train" else 3]:
                if split != "held_out" or number < 150:
                    splits[split].append({"question": question, "query": query, "db_id": domain.db_id})
    for split, entries in splits.items():
        (folder / f"{split}.json").write_text(json.dumps(entries, indent=0), encoding="utf-8")


def _fill(path: Path, domain: Domain, chance: random.Random) -> None:
    """Create a parent table of 24 rows and a child table of 240."""
    d = domain
    connection = sqlite3.connect(path)
    connection.execute(f"CREATE TABLE {d.parent} (id INTEGER PRIMARY KEY, name TEXT, city TEXT, age INTEGER)")
    connection.execute(
        f"CREATE TABLE {d.child} (id INTEGER PRIMARY KEY, name TEXT, {d.kind} TEXT, {d.first[0]} INTEGER, "
        f"{d.second[0]} INTEGER, {d.date[0]} INTEGER, {d.parent}_id INTEGER REFERENCES {d.parent} (id))"
    )
    names = [f"{first} {last}" for first in FIRST for last in LAST]
    for number, name in enumerate(chance.sample(names, 24), 1):
        row = (number, name, chance.choice(PLACES[:10]), chance.randint(24, 70))
        connection.execute(f"INSERT INTO {d.parent} VALUES (?, ?, ?, ?)", row)
    titles = [f"{adjective} {noun}" for adjective in ADJECTIVES for noun in d.nouns]
    for number in range(1, 241):
        title = titles[number - 1] if number <= len(titles) else f"{chance.choice(titles)} {number}"
        row = (
            number,
            title,
            chance.choice(d.kinds),
            chance.randint(d.first[2], d.first[3]),
            chance.randint(d.second[2], d.second[3]),
            chance.randint(1995, 2024),
            chance.randint(1, 22),
        )
        connection.execute(f"INSERT INTO {d.child} VALUES (?, ?, ?, ?, ?, ?, ?)", row)
    connection.commit()
    connection.close()


def _is_telling(connection: sqlite3.Connection, query: str) -> bool:
    """Whether the result says something: some rows, but not everything; no zero, no null."""
    rows = connection.execute(query).fetchall()
    return 0 < len(rows) < 200 and all(value not in (None, 0) for row in rows for value in row)


def _ask(connection: sqlite3.Connection, d: Domain, chance: random.Random) -> Iterator[tuple[str, str]]:
    """One question and query of a random family."""
    pick = chance.choice
    column, words, *_ = pick((d.first, d.second))
    value = connection.execute(f"SELECT {column} FROM {d.child} WHERE id = {chance.randint(1, 240)}").fetchone()[0]
    year = chance.randint(1998, 2021)
    kind, city, count = pick(d.kinds), pick(PLACES[:10]), chance.randint(2, 9)
    person = connection.execute(f"SELECT name FROM {d.parent} WHERE id = {chance.randint(1, 22)}").fetchone()[0]
    (more, sign) = pick((("more", ">"), ("less", "<")))
    (most, order) = pick((("highest", "DESC"), ("lowest", "ASC")))
    (average, function) = pick((("average", "AVG"), ("total", "SUM"), ("highest", "MAX"), ("lowest", "MIN")))
    show = pick(("show", "list", "give me", "what are"))
    join = f"FROM {d.child} AS t1 JOIN {d.parent} AS t2 ON t1.{d.parent}_id = t2.id"
    label = d.kind.replace("_", " ")
    families = [
        (
            (f"{show} the names of all {kind} {d.children}", f"which {d.children} have the {label} {kind} ?",
             f"names of the {d.children} whose {label} is {kind}", f"find every {kind} {d.child} by name"),
            f"SELECT name FROM {d.child} WHERE {d.kind} = '{kind}'",
        ),
        (
            (f"{show} the {d.children} with a {words} of {more} than {value}", f"which {d.children} have {more} than {value} {words} ?",
             f"names of {d.children} where the {words} is {more} than {value}", f"find {d.children} whose {words} is {more} than {value}"),
            f"SELECT name FROM {d.child} WHERE {column} {sign} {value}",
        ),
        (
            (f"how many {kind} {d.children} are there ?", f"count the {kind} {d.children}",
             f"what is the number of {d.children} with {label} {kind} ?", f"number of {kind} {d.children}"),
            f"SELECT COUNT(*) FROM {d.child} WHERE {d.kind} = '{kind}'",
        ),
        (
            (f"what is the {average} {words} of {kind} {d.children} ?", f"{average} {words} among the {kind} {d.children}",
             f"give the {average} {words} for {d.children} with {label} {kind}", f"tell me the {average} {words} of all {kind} {d.children}"),
            f"SELECT {function}({column}) FROM {d.child} WHERE {d.kind} = '{kind}'",
        ),
        (
            (f"how many {d.children} are there for each {label} ?", f"count the {d.children} per {label}",
             f"number of {d.children} by {label}", f"for every {label} , how many {d.children} exist ?"),
            f"SELECT {d.kind}, COUNT(*) FROM {d.child} GROUP BY {d.kind}",
        ),
        (
            (f"what is the {average} {words} for each {label} ?", f"{average} {words} of {d.children} per {label}",
             f"{show} every {label} with its {average} {words}", f"by {label} , what is the {average} {words} ?"),
            f"SELECT {d.kind}, {function}({column}) FROM {d.child} GROUP BY {d.kind}",
        ),
        (
            (f"which {d.child} has the {most} {words} ?", f"name the {d.child} with the {most} {words}",
             f"what is the name of the {d.child} of {most} {words} ?", f"find the {d.child} whose {words} is {most}"),
            f"SELECT name FROM {d.child} ORDER BY {column} {order} LIMIT 1",
        ),
        (
            (f"{show} the {count} {d.children} with the {most} {words}", f"which {count} {d.children} have the {most} {words} ?",
             f"names of the {count} {d.children} of {most} {words}", f"find the {count} {d.children} whose {words} is {most}"),
            f"SELECT name FROM {d.child} ORDER BY {column} {order} LIMIT {count}",
        ),
        (
            (f"which {d.children} were {d.date[1]} after {year} and are {kind} ?", f"{show} the {kind} {d.children} {d.date[1]} after {year}",
             f"names of {kind} {d.children} that were {d.date[1]} after {year}", f"find {kind} {d.children} {d.date[1]} later than {year}"),
            f"SELECT name FROM {d.child} WHERE {d.kind} = '{kind}' AND {d.date[0]} > {year}",
        ),
        (
            (f"which {d.children} were {d.date[1]} between {year} and {year + 3} ?", f"{show} the {d.children} {d.date[1]} from {year} to {year + 3}",
             f"names of {d.children} {d.date[1]} in the years {year} to {year + 3}", f"find {d.children} that were {d.date[1]} between {year} and {year + 3}"),
            f"SELECT name FROM {d.child} WHERE {d.date[0]} BETWEEN {year} AND {year + 3}",
        ),
        (
            (f"{show} the {d.children} of {person}", f"which {d.children} belong to {person} ?",
             f"names of the {d.children} of the {d.parent} {person}", f"find all {d.children} that {person} has"),
            f"SELECT t1.name {join} WHERE t2.name = '{person}'",
        ),
        (
            (f"how many {d.children} do {d.parents} from {city} have ?", f"count the {d.children} of {d.parents} in {city}",
             f"number of {d.children} whose {d.parent} is from {city}", f"how many {d.children} belong to {d.parents} of {city} ?"),
            f"SELECT COUNT(*) {join} WHERE t2.city = '{city}'",
        ),
        (
            (f"which {d.parent} has the most {d.children} ?", f"name the {d.parent} with the largest number of {d.children}",
             f"who is the {d.parent} with most {d.children} ?", f"find the {d.parent} that has the most {d.children}"),
            f"SELECT t2.name {join} GROUP BY t2.id ORDER BY COUNT(*) DESC LIMIT 1",
        ),
        (
            (f"which {d.parents} have more than {count} {d.children} ?", f"{show} the {d.parents} with more than {count} {d.children}",
             f"names of {d.parents} that have over {count} {d.children}", f"find {d.parents} having more than {count} {d.children}"),
            f"SELECT t2.name {join} GROUP BY t2.id HAVING COUNT(*) > {count}",
        ),
        (
            (f"what is the {average} {words} of the {d.children} of {person} ?", f"{average} {words} for the {d.children} of {person}",
             f"give the {average} {words} among {d.children} that belong to {person}", f"tell me the {average} {words} of all {d.children} of {person}"),
            f"SELECT {function}(t1.{column}) {join} WHERE t2.name = '{person}'",
        ),
        (
            (f"which {kind} {d.children} have a {words} above the average ?", f"{show} {kind} {d.children} with more than the average {words}",
             f"names of {kind} {d.children} whose {words} is above average", f"find the {kind} {d.children} with above average {words}"),
            f"SELECT name FROM {d.child} WHERE {d.kind} = '{kind}' AND {column} > (SELECT AVG({column}) FROM {d.child})",
        ),
        (
            (f"which {d.parents} have no {kind} {d.children} ?", f"{show} the {d.parents} without any {kind} {d.children}",
             f"names of {d.parents} that do not have a {kind} {d.child}", f"find {d.parents} with no {kind} {d.children}"),
            f"SELECT name FROM {d.parent} WHERE id NOT IN (SELECT {d.parent}_id FROM {d.child} WHERE {d.kind} = '{kind}')",
        ),
        (
            (f"{show} the names of {d.parents} from {city}", f"which {d.parents} live in {city} ?",
             f"names of all {d.parents} in {city}", f"find the {d.parents} whose city is {city}"),
            f"SELECT name FROM {d.parent} WHERE city = '{city}'",
        ),
        (
            (f"in which cities do {d.parents} over {count * 5 + 20} live ?", f"{show} the different cities of {d.parents} older than {count * 5 + 20}",
             f"distinct cities where {d.parents} are over {count * 5 + 20}", f"cities of {d.parents} whose age is more than {count * 5 + 20}"),
            f"SELECT DISTINCT city FROM {d.parent} WHERE age > {count * 5 + 20}",
        ),
        (
            (f"which {d.parents} have both {d.kinds[0]} and {kind} {d.children} ?", f"{show} {d.parents} with {d.kinds[0]} as well as {kind} {d.children}",
             f"names of {d.parents} having {d.kinds[0]} and also {kind} {d.children}", f"find {d.parents} who have {d.kinds[0]} {d.children} and {kind} {d.children}"),
            f"SELECT t2.name {join} WHERE t1.{d.kind} = '{d.kinds[0]}' INTERSECT SELECT t2.name {join} WHERE t1.{d.kind} = '{kind}'",
        ),
    ]  # fmt: skip
    phrasings, query = pick(families)
    yield pick(phrasings), query
