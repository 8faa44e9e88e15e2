"""Rows of a saved data set, read without `datasets`."""

import subprocess
import sys
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import pytest
from datasets import Dataset, load_from_disk

from recipes.text2sql.data.arrow_rows import ArrowRows
from tests.launching import REPOSITORY


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """2,500 rows in two files, of two blocks each, in another order than they were made."""
    texts = {"number": list(range(3000)), "text": [f"Zürich {number}" * (number % 3) for number in range(3000)]}
    place = tmp_path_factory.mktemp("saved")
    Dataset.from_dict(texts).select(range(2999, 499, -1)).save_to_disk(str(place), num_shards=2)
    return place


def test_rows_are_those_that_datasets_reads(folder: Path) -> None:
    wanted, found = load_from_disk(str(folder)), ArrowRows(folder)
    assert found.table.column(0).num_chunks == 4, "more than one block and more than one file"
    assert len(found) == len(wanted) == 2500 and list(found) == list(wanted)
    assert found[2:5] == [wanted[number] for number in (2, 3, 4)]
    assert found[-1] == wanted[2499]
    with pytest.raises(IndexError):
        found[2500]


def test_a_selection_and_a_copy_in_another_process_have_the_same_rows(folder: Path) -> None:
    rows = ArrowRows(folder)
    chosen = rows.select([7, 2400, 1249]).select([2, 0])
    assert [row["number"] for row in chosen] == [rows[1249]["number"], rows[7]["number"]]
    copied = bytes(ForkingPickler.dumps(chosen))
    assert list(ForkingPickler.loads(copied)) == list(chosen) and len(copied) < 1000, "the rows do not travel"


def test_rows_need_neither_datasets_nor_pandas(folder: Path) -> None:
    program = (
        "import sys\nfrom pathlib import Path\nfrom recipes.text2sql.data.arrow_rows import ArrowRows\n"
        f"assert ArrowRows(Path({str(folder)!r}))[3]['number'] == 2996\n"
        "late = {'datasets', 'pandas', 'torch', 'transformers'} & set(sys.modules)\nassert not late, late"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
