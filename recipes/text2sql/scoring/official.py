"""The official scores of Spider, its test suite, BIRD and WikiSQL, on files of predictions in their own formats.

Each agrees with its program pair by pair, quirks included, with these differences, all on purpose: a prediction
that writes, attaches or asks a PRAGMA is refused and scores 0 (the programs run it); where a program would stop
(its grammar cannot read the gold query, the gold query fails, a prediction is empty or takes too long), the pair
scores 0 and says why; and a pair whose database is not there has no score and does not count.

`spider_em`   exact set match, and hardness: `recipes.text2sql.spider_match`.
`spider_exec` execution as taoyds/spider has it: columns by what they select, rows in order, one database.
`test_suite`  execution as taoyds/test-suite-sql-eval has it: columns in any order, rows in order where the gold
              query says "order by", on every database of the folder. Zhong et al. 2020, arXiv 2010.02840.
`bird_ex`     the sets of rows are equal. Li et al. 2023, arXiv 2305.03111.
`bird_ves`    of those, the root of how many times faster the prediction is (VES), and BIRD's later steps (R-VES).
`wikisql_lf`  equality of the structured query, and of its results. Zhong et al. 2017, arXiv 1709.00103.
"""

from __future__ import annotations

import math
import re
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from recipes.text2sql.scoring import prediction_files, spider_match
from recipes.text2sql.scoring.databases import DatabaseFolder, ScoredPair, scoring_limits, spaced
from recipes.text2sql.scoring.wikisql import logical_form, wikisql_database
from recipes.text2sql.sql.execution import NOTHING, Execution, Limits, Row, check_database, execute, time_ratios
from runner.errors import ConfigError, DataError

LEVELS = (*spider_match.HARDNESS, "simple", "moderate", "challenging")
MEANING = {
    "spider_em": "Spider's exact set match: literals, DISTINCT, the number of LIMIT, join conditions do not count",
    "spider_exec": "execution as taoyds/spider: columns by what they select, rows in order, one database",
    "test_suite": "execution as taoyds/test-suite-sql-eval: columns in any order, every database of the folder",
    "bird_ex": "execution as BIRD: equal sets of rows",
    "bird_ves": "BIRD's valid efficiency: 0 where the rows differ, else the root of the gold query's relative time",
    "wikisql_lf": "WikiSQL's logical form: column, aggregate and the set of conditions",
}


def score_files(
    metric: str, gold: str, pred: str, folder: str | None, keep_distinct: bool = False, repeats: int = 100
) -> tuple[str, list[ScoredPair]]:
    """A table by hardness, and one row for each pair.

    `folder` holds the databases, `tables.json` and BIRD's questions in any of their usual places. Raises DataError
    for files that are missing or not in their format, ConfigError where `folder` is needed and not given.
    """
    if metric == "bird_ves" and repeats < 1:
        raise ConfigError(f"repeats is {repeats}: type a number of at least 1.")
    if metric == "wikisql_lf":
        found = prediction_files.wikisql(Path(gold), Path(pred))
        path = wikisql_database(Path(gold), Path(folder) if folder else None)
        if path is None:
            found.notes.append(f"no {Path(gold).stem}.db beside {gold}: nothing was executed")
        judged = logical_form(found.pairs, path)
        return _finished(metric, judged, found)
    if folder is None:
        raise ConfigError(f"{metric} needs the databases' folder: type --data.dir with the one that holds them.")
    data = DatabaseFolder(Path(folder))
    if metric.startswith("bird"):
        found = prediction_files.bird(Path(gold), Path(pred))
        judged = _bird(found.pairs, data, Path(gold), repeats if metric == "bird_ves" else None)
    else:
        found = prediction_files.spider(Path(gold), Path(pred))
        judge = {"spider_em": _exact, "spider_exec": _execution, "test_suite": _test_suite}[metric]
        judged = ({"index": index, **judge(*pair, data, keep_distinct)} for index, pair in enumerate(found.pairs))
    return _finished(metric, judged, found)


def _finished(metric: str, judged: Iterable[ScoredPair], found: prediction_files.Pairs) -> tuple[str, list[ScoredPair]]:
    """The table and the rows, with a bar on a terminal where they take longer than a second."""
    from tqdm import tqdm

    rows = list(tqdm(judged, total=len(found.pairs), unit="pair", dynamic_ncols=True, disable=None, delay=1))
    return "\n".join([_table(metric, rows), *(f"  note: {note}" for note in found.notes)]), rows


# Spider ------------------------------------------------------------------------------------------------


def _read_pair(
    predicted: str, gold: str, schema: spider_match.Schema | None
) -> tuple[spider_match.Query | None, spider_match.Query | None, str, str]:
    """Both queries, or what stands for the one that cannot be read; the gold one's hardness; and why."""
    if schema is None:
        return None, None, "unknown", "its database is neither a file nor in tables.json"
    try:
        wanted = spider_match.parse(gold, schema)
        level = spider_match.hardness(wanted)
    except (spider_match.Unparsable, IndexError, TypeError) as error:
        return None, None, "unknown", f"the official grammar cannot read the gold query: {error}"
    try:
        return spider_match.parse(predicted, schema), wanted, level, ""
    except spider_match.Unparsable as error:
        return spider_match.Query(), wanted, level, f"the official grammar cannot read it: {error}"


def _exact(predicted: str, gold: str, name: str, data: DatabaseFolder, _: bool) -> ScoredPair:
    schema = data.schema(name)
    ours, theirs, level, why = _read_pair(predicted, gold, schema)
    row: ScoredPair = {"score": 0, "hardness": level, "why": why, "db_id": name}
    if schema is None or ours is None or theirs is None:
        return row | ({"score": None} if schema is None else {})
    keys = data.foreign_keys(name)
    try:
        same, parts = spider_match.exact_match(
            spider_match.comparable(ours, schema, keys), spider_match.comparable(theirs, schema, keys)
        )
    except (TypeError, ValueError, IndexError):
        return row | {"why": "conditions without AND or OR between them, at which the official script stops"}
    differing = [part for part, agrees in parts.items() if not agrees]
    if not same and not why:
        row["why"] = f"differs in {', '.join(differing)}" if differing else "other tables"
    return row | {"score": int(same), "parts": {part: int(agrees) for part, agrees in parts.items()}}


def _execution(predicted: str, gold: str, name: str, data: DatabaseFolder, _: bool) -> ScoredPair:
    schema, path = data.schema(name), data.database(name)
    ours, theirs, level, why = _read_pair(predicted, gold, schema)
    row: ScoredPair = {"score": 0, "hardness": level, "why": why, "db_id": name}
    if schema is None or path is None:
        return row | {"score": None, "why": why or "no database"}
    if why or ours is None or theirs is None:
        # Without a SELECT that could be read there are no columns to compare, however well it runs.
        return row
    keys = data.foreign_keys(name)
    limits = scoring_limits(bad_text="strict")
    results = []
    for sql, query in ((predicted, ours), (gold, theirs)):
        result = _remembered(path, sql, limits)
        if result.error is not None:
            return row | {"why": f"{'the gold query' if query is theirs else 'it'} fails: {result.error}"}
        columns = {}
        try:
            for place, unit in enumerate(spider_match.comparable(query, schema, keys).select):
                # Aggregates are no part of what names a column; of two with one name, the last counts.
                expression = unit[1]
                columns[expression if expression[2] else expression[1]] = [values[place] for values in result.rows]
        except (IndexError, TypeError, ValueError):
            return row | {"why": "the official grammar sees more columns in it than there are, and the script stops"}
        results.append(columns)
    same = results[0] == results[1]
    return row | {"score": int(same), "why": "" if same else "other columns, rows or order"}


# The test suite ----------------------------------------------------------------------------------------


def _test_suite(predicted: str, gold: str, name: str, data: DatabaseFolder, keep_distinct: bool) -> ScoredPair:
    schema = data.schema(name)
    level = _read_pair(predicted, gold, schema)[2]
    row: ScoredPair = {"score": 0, "hardness": level, "why": "", "db_id": name}
    paths = data.suite(name)
    if not paths:
        return row | {"score": None, "why": "no database"}
    if not predicted:
        return row | {"why": "it is empty"}
    # The script's way with models that do not write values.
    predicted = _mended(predicted.replace("value", "1"), keep_distinct)
    gold = _mended(gold, keep_distinct)
    ordered = "order by" in gold.lower()
    limits = scoring_limits(bad_text="ignore")
    for path in paths:
        wanted = _remembered(path, gold, limits)
        found = _rows_of(execute(path, predicted, limits=limits))
        if wanted.error is not None:
            return row | {"why": f"the gold query fails on {path.name}: {wanted.error}"}
        if found.error is not None:
            return row | {"why": f"it fails on {path.name}: {found.error}"}
        if not same_denotation(wanted.rows, found.rows, ordered):
            return row | {"why": f"other rows on {path.name}"}
    return row | {"score": 1, "databases": len(paths)}


_THIS_YEAR = re.compile(r"YEAR\s*\(\s*CURDATE\s*\(\s*\)\s*\)\s*", re.IGNORECASE)
_LEXEMES = re.compile(
    r"""
    (?:--|\#[ ])[^\n]*?(?:\r\n|\r|\n|$) | /\*.*?\*/          # comments
    | `(?:``|[^`])*` | ´(?:´´|[^´])*´                        # names
    | '(?:''|\\'|[^'])*' | "(?:""|\\"|[^"])*" | (?<![\w\])])\[[^\]\[]+\]
    | (?<!\w)[$:?]\w+ | \\\w+ | (?:@|\#\#|\#)[^\W\d_]\w+      # placeholders and such
    | \w[$\#\w]* | .
    """,
    re.VERBOSE | re.DOTALL,
)


def _mended(sql: str, keep_distinct: bool) -> str:
    """The query as the script runs it: operators in one piece, and without DISTINCT only its first statement."""
    for apart, whole in (("> =", ">="), ("< =", "<="), ("! =", "!=")):
        sql = sql.replace(apart, whole)
    if not keep_distinct:
        kept, level, ended = [], 0, False
        for lexeme in _LEXEMES.findall(sql):
            level += {"(": 1, ")": -1}.get(lexeme, 0)
            if ended and not lexeme.isspace() and not lexeme.startswith(("--", "# ")):
                break
            kept += [] if lexeme.lower() == "distinct" else [lexeme]
            # Blanks and a comment behind the semicolon are still of the first statement.
            ended = ended or (lexeme == ";" and level <= 0)
        sql = "".join(kept)
    return _THIS_YEAR.sub("2020", sql)


def same_denotation(left: Sequence[Row], right: Sequence[Row], ordered: bool) -> bool:
    """Whether some order of the right side's columns makes its rows those of the left side, repeats counted.

    As in the official script, values of one row that are equal but written apart (1 and 1.0) can keep two rows
    from being compared at all.
    """
    if not left and not right:
        return True
    if len(left) != len(right) or len(left[0]) != len(right[0]):
        return False
    ours, theirs = map(_without_column_order, left), map(_without_column_order, right)
    if not (list(ours) == list(theirs) if ordered else set(ours) == set(theirs)):
        return False
    if ordered:
        return Counter(zip(*left, strict=True)) == Counter(zip(*right, strict=True))
    # A column can only stand for one with the same values; a prefix of columns that does not fit needs no more. Of
    # columns that are equal row for row one is enough: ten of nothing but NULL have millions of orders.
    columns = list(zip(*right, strict=True))
    values = [Counter(column) for column in columns]
    candidates = [
        [place for place, there in enumerate(values) if there == here]
        for here in (Counter(column) for column in zip(*left, strict=True))
    ]

    def fits(chosen: list[int]) -> bool:
        if len(chosen) > 1:
            width = len(chosen)
            if Counter(row[:width] for row in left) != Counter(tuple(row[place] for place in chosen) for row in right):
                return False
        if len(chosen) == len(candidates):
            return True
        rest = {columns[place]: place for place in candidates[len(chosen)] if place not in chosen}
        return any(fits([*chosen, place]) for place in rest.values())

    return all(candidates) and fits([])


def _without_column_order(row: Row) -> Row:
    return tuple(sorted(row, key=lambda value: str(value) + str(type(value))))


# BIRD --------------------------------------------------------------------------------------------------


def _bird(
    found: Iterable[tuple[str, str, str]], data: DatabaseFolder, gold: Path, repeats: int | None
) -> Iterator[ScoredPair]:
    levels = data.difficulties(gold)
    limits = scoring_limits(timeout_seconds=30.0, bad_text="strict", distinct=True)
    for index, (predicted, query, name) in enumerate(found):
        row: ScoredPair = {
            "index": index,
            "score": 0,
            "hardness": levels.get((name, spaced(query)), "unknown"),
            "why": "",
        }
        row["db_id"] = name
        path = data.database(name, of_bird=True)
        if path is None:
            yield row | {"score": None, "why": "no database"}
            continue
        check_database(path)
        wanted, ours = _remembered(path, query, limits), _rows_of(execute(path, predicted, limits=limits))
        if wanted.error is not None:
            row["why"] = f"the gold query fails: {wanted.error}"
        elif ours.error is not None:
            row["why"] = f"it fails: {ours.error}"
        elif set(ours.rows) != set(wanted.rows):
            row["why"] = "other rows"
        elif repeats is None:
            row["score"] = 1
        else:
            # Thirty seconds for each turn, as the program has it.
            row |= efficiency(time_ratios(path, predicted, query, repeats, 30.0 * repeats))
        yield row


def efficiency(ratios: Sequence[float]) -> ScoredPair:
    """Score (VES) and reward (R-VES) of a correct prediction, from the gold query's times over its own."""
    if ratios:
        mean, spread = statistics.fmean(ratios), statistics.pstdev(ratios)
        ratios = [ratio for ratio in ratios if abs(ratio - mean) < 3 * spread]
    if not ratios:
        return {"score": 0, "reward": 0, "why": "it could not be timed"}
    ratio = statistics.fmean(ratios)
    reward = next((step for least, step in ((2, 1.25), (1, 1), (0.5, 0.75), (0.25, 0.5)) if ratio >= least), 0.25)
    return {"score": math.sqrt(ratio), "reward": math.sqrt(reward), "ratio": ratio}


# Both --------------------------------------------------------------------------------------------------


def _rows_of(result: Execution) -> Execution:
    """A text without a statement runs, and finds nothing."""
    return Execution() if result.error == NOTHING else result


_kept: dict[tuple[Path, str, Limits], Execution] = {}
KEPT_RESULTS, KEPT_ROWS = 64, 10_000


def _remembered(path: Path, sql: str, limits: Limits) -> Execution:
    # Gold queries come back: most of Spider's have a neighbour that asks the same in other words. Large results are
    # not stored: sixty of a million rows are six gigabytes.
    key = (path, sql, limits)
    if key in _kept:
        return _kept[key]
    result = _rows_of(execute(path, sql, limits=limits))
    if len(result.rows) <= KEPT_ROWS:
        if len(_kept) >= KEPT_RESULTS:
            del _kept[next(iter(_kept))]
        _kept[key] = result
    return result


def _table(metric: str, rows: Sequence[ScoredPair]) -> str:
    """The mean of each hardness and of all, over the rows that have a score."""
    scored = [row for row in rows if row["score"] is not None]
    if rows and not scored:
        names = sorted({row["db_id"] for row in rows})
        raise DataError(
            f"None of the databases is there: {', '.join(names[:5])}{', ...' if len(names) > 5 else ''}.\n"
            "Type --data.dir with the folder that has DB_ID/DB_ID.sqlite in it, or in folders below it."
        )
    columns: dict[str, Callable[[ScoredPair], float]] = {metric: lambda row: row["score"]}
    if metric == "bird_ves":
        columns = {"VES": lambda row: 100 * row["score"], "R-VES": lambda row: 100 * row.get("reward", 0)}
        columns["bird_ex"] = lambda row: float("ratio" in row)
    if metric == "wikisql_lf":
        columns["ordered"] = lambda row: row.get("ordered", 0)
        if any("execution" in row for row in rows):
            columns["execution"] = lambda row: row.get("execution", 0)
    levels = [level for level in LEVELS if any(row["hardness"] == level for row in scored)]
    levels += sorted({row["hardness"] for row in scored} - set(levels))
    lines = [f"{metric}: {MEANING[metric]}", f"  {'':14}{'pairs':>7}" + "".join(f"{name:>13}" for name in columns)]
    for level in [*levels, "all"]:
        members = scored if level == "all" else [row for row in scored if row["hardness"] == level]
        means = [statistics.fmean(map(value, members)) if members else 0.0 for value in columns.values()]
        lines.append(f"  {level:14}{len(members):>7,}" + "".join(f"{mean:>13.4f}" for mean in means))
    if len(scored) < len(rows):
        names = sorted({row["db_id"] for row in rows if row["score"] is None})
        which = f"{', '.join(names[:5])}{', ...' if len(names) > 5 else ''}"
        lines.append(f"  {len(rows) - len(scored):,} more pairs could not be scored: no database {which}")
    unread = sum("cannot read it" in row["why"] for row in rows)
    if unread:
        lines.append(f"  {unread:,} predictions the official grammar cannot read")
    broken = sum("the gold query" in row["why"] for row in rows)
    if broken:
        lines.append(f"  {broken:,} pairs score 0 because their gold query fails or cannot be read")
    return "\n".join(lines)
