"""The text that is there when none is given: little stories, made from a seed on this machine."""

import os
import random
import uuid
from pathlib import Path

NAMES = (
    "Anna Ben Clara David Emma Felix Greta Hugo Ida Jonas Klara Leo Mia Nils Olga Paul Rosa Sam Tilda Willem".split()
)
ANIMALS = "cat dog fox hen goat owl duck mouse hare horse sheep toad".split()
PLACES = "garden,forest,kitchen,market,river,old mill,school,harbour,barn,meadow,library,station".split(",")
THINGS = "key,red ball,lantern,book,small boat,loaf of bread,blue hat,drum,map,silver bell,basket,kite".split(",")
MOODS = "happy sad tired curious angry proud shy brave".split()
WEATHER = "It was raining.,The sun was out.,Snow had fallen.,The wind was strong.,It was late.,It was early.".split(",")
TURNS = (
    "{name} lost the {thing} near the {place}.",
    "{name} found a {thing} in the {place}.",
    "A {animal} took the {thing} and ran to the {place}.",
    "The {animal} would not leave the {place}.",
    "{name} and {other} went to the {place} to look for the {thing}.",
    '"Where is my {thing}?" asked {name}. "{other} has it," said the {animal}.',
    '"Come with me to the {place}," said {other}, "and bring the {thing}."',
    "{other} was {mood}, because the {thing} was gone.",
    "They waited for the {animal}, but only {number} birds came.",
)
ENDS = (
    "In the end {name} gave the {thing} to {other}, and both were {mood}.",
    "So the {animal} went home, and {name} kept the {thing}.",
    "{name} slept well that night, with the {thing} beside the bed.",
    "Since then the {animal} lives in the {place} with {name}.",
)


def stories(number: int = 1500, seed: int = 0) -> str:
    """That many stories, an empty line between two; the same for the same seed."""
    chance = random.Random(seed)
    told = []
    for _ in range(number):
        name, other = chance.sample(NAMES, 2)
        words = {
            "name": name,
            "other": other,
            "animal": chance.choice(ANIMALS),
            "place": chance.choice(PLACES),
            "thing": chance.choice(THINGS),
            "mood": chance.choice(MOODS),
            "number": str(chance.randint(2, 9)),
        }
        start = f"{name} had a {words['animal']} and a {words['thing']}. {chance.choice(WEATHER)}"
        turns = chance.sample(TURNS, chance.randint(2, 4))
        told.append(" ".join(part.format(**words) for part in (start, *turns, chance.choice(ENDS))))
    return "\n\n".join(told) + "\n"


def write(folder: Path) -> Path:
    """The stories as a file in `folder`; a file with other content, such as half of them, is replaced."""
    path, content = folder / "stories.txt", stories().encode()
    if not path.is_file() or path.read_bytes() != content:
        folder.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(f".{path.name}-{uuid.uuid4().hex[:8]}")
        draft.write_bytes(content)
        os.replace(draft, path)
    return path
