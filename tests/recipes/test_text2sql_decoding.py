"""Writing SQL: draws, votes, and the grammar of a schema."""

import dataclasses
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from recipes.text2sql import demo
from recipes.text2sql.decoding import Draw, most_voted, uniforms, write_candidates
from recipes.text2sql.recipe import Example, Recipe
from recipes.text2sql.sql import Schema
from runner.errors import ConfigError


@pytest.fixture(scope="session")
def bookshop() -> tuple[Schema, str]:
    database = next(pair.database for pair in demo.build().train if pair.db_id == "bookshop")
    return Schema.from_database(Path(database)), str(database)


@pytest.fixture(scope="session")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    return Recipe().prepare(tmp_path_factory.mktemp("assets"))


@pytest.fixture(scope="session")
def model(recipe: Recipe) -> Any:
    """Large random weights in fp64: what it writes depends on everything it reads."""
    torch.manual_seed(3)
    model = recipe.model().double().eval()
    model.set_experts_implementation("eager")  # The grouped product has no fp64.
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.4)
    return model


def generating(recipe: Recipe, **settings: Any) -> Recipe:
    return dataclasses.replace(recipe, generation_settings=dataclasses.replace(recipe.generation_settings, **settings))


def test_a_draw_has_the_distributions_shares() -> None:
    shares = torch.tensor([0.1, 0.6, 0.0, 0.3])
    dice = torch.rand(20_000, 1, generator=torch.Generator().manual_seed(0))
    scores = shares.log().expand(len(dice), 4)
    drawn = Draw(dice, 5)(torch.zeros(len(dice), 5), scores).argmax(-1)
    counts = Counter(drawn.tolist())
    assert counts[2] == 0
    for token, share in ((0, 0.1), (1, 0.6), (3, 0.3)):
        assert counts[token] / len(dice) == pytest.approx(share, abs=0.012)
    edges = Draw(torch.tensor([[0.0], [1 - 2**-24], [2.0]]), 5)(torch.zeros(3, 5), scores[:3]).argmax(-1)
    assert edges.tolist() == [1, 0, 1]


@pytest.mark.parametrize("settings", [{"num_beams": 3}, {"temperature": 1.5, "num_candidates": 3, "top_p": 0.95}])
def test_candidates_in_a_batch_are_those_of_one_by_one(recipe: Recipe, model: Any, settings: dict[str, Any]) -> None:
    asked = generating(recipe, max_new_tokens=10, **settings)
    examples = [asked.data("validation")[number] for number in (0, 40, 80, 599)]
    together = write_candidates(asked, model, examples)
    assert together == [write_candidates(asked, model, [example])[0] for example in examples]
    assert len({text for texts in together for text in texts}) == 12
    if "temperature" in settings:
        likeliest = write_candidates(generating(recipe, max_new_tokens=10), model, examples)
        assert [texts[0] for texts in together] == [texts[0] for texts in likeliest]
        other = write_candidates(generating(asked, seed=1), model, examples)
        assert [texts[0] for texts in other] == [texts[0] for texts in together] and other != together


def test_a_single_draw_is_drawn() -> None:
    example = Example(None, [1, 2], [], [])  # type: ignore[arg-type]
    assert (uniforms([example], 1, 5, 0) < 1).all()
    assert (uniforms([example], 2, 5, 0) < 1).all(-1).tolist() == [False, True]


@pytest.mark.parametrize(
    ("candidates", "chosen"),
    [
        # Two spellings with the same rows have more votes than the first.
        (["SELECT price FROM book", "SELECT name FROM book", "SELECT t1.name FROM book AS t1"], 1),
        # An order counts only where both ask for one.
        (["SELECT price FROM book", "SELECT name FROM book", "SELECT name FROM book ORDER BY id DESC"], 1),
        (["SELECT name FROM book ORDER BY id", "SELECT id FROM book", "SELECT name FROM book ORDER BY id DESC"], 0),
        # What fails has no vote, what finds nothing none beside what finds something.
        (["SELECT shelf FROM book", "SELECT shelf FROM book", "SELECT name FROM book"], 2),
        (["SELECT name FROM book WHERE id = -1", "SELECT MAX(id) FROM book WHERE id = -1", "SELECT name FROM book"], 2),
        (["SELECT", "SELECT name FROM book WHERE id = -1"], 1),
        (["SELECT", "SELECT shelf FROM book"], 0),
    ],
)
def test_the_vote(bookshop: tuple[Schema, str], candidates: list[str], chosen: int) -> None:
    schema, database = bookshop
    assert most_voted(candidates, database, schema) == candidates[chosen]


def test_the_vote_without_a_database(bookshop: tuple[Schema, str]) -> None:
    candidates = ["SELECT id FROM book", "SELECT name FROM book", "select T.name from book as T"]
    assert most_voted(candidates, None, bookshop[0]) == candidates[1]
    assert most_voted(candidates[:2], None, bookshop[0]) == candidates[0]


@pytest.mark.parametrize(
    "settings",
    [{"temperature": -1.0}, {"top_p": 0.0}, {"num_beams": 0}, {"temperature": 1.0, "num_beams": 2}, {"voting": True},
     {"temperature": 1.0, "voting": True}, {"num_beams": 2, "voting": True, "execution_guided": True}],
)  # fmt: skip
def test_settings_that_do_not_fit(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="generation"):
        generating(Recipe(), **settings)
