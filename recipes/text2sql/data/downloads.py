"""Where the official data are, under which licence, and whether what came can be read."""

from __future__ import annotations

import functools
from pathlib import Path

from recipes.text2sql.data import sources
from recipes.text2sql.sql.execution import check_database
from runner.recipe import Download, Source

SPIDER = "https://drive.usercontent.google.com/download?id=1403EGqzIDoHMdQF4c9Bkyl7dZLZ5Wt6J&export=download&confirm=t"
BIRD = "https://bird-bench.oss-cn-beijing.aliyuncs.com"
WIKISQL = "https://github.com/salesforce/WikiSQL/raw/master/data.tar.bz2"
GRETEL = (
    "https://huggingface.co/datasets/gretelai/synthetic_text_to_sql/resolve/740ab236e64503fba51be1101df7a1be83bf455d"
)
GRETEL_FILES = {
    "synthetic_text_to_sql_train.snappy.parquet": "2bee9ac07cf5057d36b5ea30fb47d948697e882f42bd1cc661185396287c0180",
    "synthetic_text_to_sql_test.snappy.parquet": "f2056edcd897db59c89d12bde149a36d4e242ac0d2c6d4d42b1f2bc764318993",
}
BIRD_DEV = "cdd6d19faeb45a23970b98d3ef6c40a87987c95459c2cf12076897a60cf5a630"


def downloads() -> dict[str, Source]:
    """The four data sets by name."""
    return {
        "spider": Source(
            "CC BY-SA 4.0",
            "https://yale-lily.github.io/spider",
            (Download(SPIDER, "spider_data.zip", unpack=True, without="spider_data"),),
            functools.partial(_check, "spider"),
        ),
        "bird": Source(
            "CC BY-SA 4.0",
            "https://bird-bench.github.io",
            (
                Download(f"{BIRD}/dev.zip", "dev.zip", BIRD_DEV, unpack=True),
                Download(f"{BIRD}/train.zip", "train.zip", unpack=True),
            ),
            functools.partial(_check, "bird"),
        ),
        "wikisql": Source(
            "BSD-3-Clause",
            "https://github.com/salesforce/WikiSQL",
            (Download(WIKISQL, "data.tar.bz2", unpack=True, without="data"),),
            functools.partial(_check, "wikisql"),
        ),
        "gretel": Source(
            "Apache-2.0",
            "https://huggingface.co/datasets/gretelai/synthetic_text_to_sql",
            tuple(Download(f"{GRETEL}/{name}", name, sha256) for name, sha256 in GRETEL_FILES.items()),
            functools.partial(_check, "gretel"),
        ),
    }


def _check(name: str, folder: Path) -> str:
    counts = []
    for split in ("train", "validation"):
        found = sources.entries(name, str(folder), split)
        lost = {entry["db_id"] for entry in found if not (entry["database"] or entry["schema"] or entry["material"])}
        counts.append(f"{len(found):,} for {split}" + (f" ({len(lost)} databases are not there)" if lost else ""))
        for database in {entry["database"] for entry in found if entry["database"]}:
            check_database(database)
    return f"questions: {', '.join(counts)}"
