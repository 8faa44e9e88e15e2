"""Files as the field writes them are read as meant; mistakes in them are refused by name, and none is read as data."""

import gzip
import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recipes.microbiome import study as studies
from recipes.microbiome.fitting import fit
from recipes.microbiome.metadata import read_metadata
from recipes.microbiome.sequences import read_fasta
from recipes.microbiome.settings import DataSettings
from recipes.microbiome.study import Study, open_study
from recipes.microbiome.tables import read_table
from recipes.microbiome.unifrac import Phylogeny, distances
from runner.errors import DataError

SEQUENCES = ["ACGTACGTACGTACGTACGTAC", "ACGTACGTACGTACGTACGTAA", "TTGTACGCACGTACGTACGTAC", "GGGTACGTCCGTACGTACGTAC"]
TABLE = "".join(f"{s}\t{row}\n" for s, row in zip(SEQUENCES, ["5\t0\t4", "3\t7\t4", "0\t1\t4", "2\t0\t4"], strict=True))
HEADER = "#OTU ID\ts1\ts2\ts3\n"
TREE = "((A:1,B:2):3,(C:4,D:5):6);"


def written(tmp_path: Path, name: str, content: str | bytes) -> Path:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def message(action: Callable[[], object]) -> str:
    """What a mistake is answered: at most three lines."""
    with pytest.raises(DataError) as raised:
        action()
    assert len(str(raised.value).splitlines()) <= 3, str(raised.value)
    return str(raised.value)


# Metadata ---------------------------------------------------------------------------------------------

ROWS = "s1\t5.5\tgut\ns2\t6.0\tskin\ns3\t7.25\tgut\n"


@pytest.mark.parametrize(
    "text",
    [
        "sample-id\tph\tbody\n" + ROWS,
        "#SampleID\tph\tbody\n" + ROWS,
        "#Sample ID\tph\tbody\n" + ROWS,
        "#OTU ID\tph\tbody\n" + ROWS,
        "id\tph\tbody\n" + ROWS,
        "SampleID\tph\tbody\n#q2:types\tnumeric\tcategorical\n" + ROWS,
        "sample_name\tph\tbody\n#Q2:TYPES\t\tcategorical\n" + ROWS,
        "# Exported on Monday\n# by hand\nsample-id\tph\tbody\n" + ROWS,
        "\n\t\t\n# note\tof the lab\n\nsample-id\tph\tbody\n\n" + ROWS + "\n\t\t\n",
        "sample-id\tph\tbody\ns1\t5.5\tgut\n# s9 was lost\ns2\t6.0\tskin\n\ns3\t7.25\tgut",
        " sample-id \t ph\tbody \n  s1 \t 5.5\tgut \n" + "s2\t6.0\tskin\ns3 \t7.25\tgut\n",
        "﻿sample-id\tph\tbody\r\n" + ROWS.replace("\n", "\r\n"),
        "sample-id\tph\tbody\r" + ROWS.replace("\n", "\r"),
        'sample-id\tph\tbody\n"s1"\t"5.5"\t"gut"\n' + "s2\t6.0\tskin\ns3\t7.25\tgut\n",
        "sample-id\tph\tbody\t\t\n" + ROWS.replace("gut\n", "gut\t\t\n"),
    ],
)
def test_metadata_in_every_form_of_qiime_2_are_the_same(tmp_path: Path, text: str) -> None:
    read = read_metadata(written(tmp_path, "m.tsv", text))
    assert read.ids == ("s1", "s2", "s3")
    assert read.columns["ph"] == ("5.5", "6.0", "7.25") and read.columns["body"] == ("gut", "skin", "gut")
    assert len(read.columns) == 3


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("id\tph\tph\n" + ROWS, ["two columns called 'ph'", "line 1"]),
        ("# note\nid\tbody \t body\n" + ROWS, ["two columns called 'body'", "line 2"]),
        ("id\tph\tbody\ns1\t5\tgut\ns1\t6\tskin\n", ["'s1' twice", "2, 3"]),
        ("id\tph\tbody\ns1\t5\tgut\n s1 \t6\tskin\n", ["'s1' twice"]),
        ('id\tph\tbody\ns1\t5\t"gut\ns2\t6\tskin\ns3\t7\tgut"\n', ["line 2", "line 4", "gut"]),
        ('id\tph\tbody\ns1\t5\t"gut\ns2\t6\tskin\ns3\t7\tgut\n', ["quotation marks", "line 2"]),
        ('id\tph\tbody\ns1\t5\t"gut" wall\ns2\t6\tskin\n', ["quotation marks", "line 2"]),
        ("id\tph\ns1\t5\tgut\n", ["Line 2", "3 cells", "'gut'"]),
        ("id\tph\n\t5\n", ["Line 2", "no sample id"]),
        ("id\tph\ns1\t5\nid\tph\ns2\t6\n", ["Line 3", "repeats the header"]),
        ("id\tph\t\ns1\t5\tgut\n", ["Line 2", "'gut'"]),
        ("id\t\tph\ns1\tgut\t5\n", ["Column 2", "no name"]),
        ("id\tph\n#q2:types\tnumber\ns1\t5\n", ["'number'", "'ph'", "numeric or categorical"]),
        ("id,ph\ns1,5\n", ["tab-separated", "commas"]),
        ("id\tph\n", ["0 samples"]),
        ("", ["0 samples"]),
        ("id\tsite\ns1\tZürich\ns2\tZörich\n".encode("latin-1"), ["not UTF-8", "line 2", "0xfc", "iconv"]),
        ("id\tsite\ns1\tZürich\n".encode("utf-16"), ["UTF-16", "iconv"]),
        (b"id\tsite\ns1\tZ\0\n", ["zero bytes"]),
    ],
)
def test_mistakes_in_metadata_are_named_and_refused(tmp_path: Path, text: str | bytes, named: list[str]) -> None:
    said = message(lambda: read_metadata(written(tmp_path, "m.tsv", text)))
    assert all(each in said for each in [*named, "m.tsv"]), said


def test_an_excel_workbook_is_named(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "m.xlsx", "w") as archive:
        archive.writestr("xl/workbook.xml", "<workbook/>")
    assert "Excel" in message(lambda: read_metadata(tmp_path / "m.xlsx"))


# The target -------------------------------------------------------------------------------------------


def study_with(tmp_path: Path, cells: list[str], declared: str = "", **settings: Any) -> Study:
    """A study whose target holds these cells."""
    names = [f"s{number}" for number in range(len(cells))]
    counts = "".join(f"{sequence}\t" + "\t".join(["3"] * len(cells)) + "\n" for sequence in SEQUENCES)
    table = written(tmp_path, "t.tsv", "#OTU ID\t" + "\t".join(names) + "\n" + counts)
    lines = [f"{name}\t{cell}" for name, cell in zip(names, cells, strict=True)]
    types = [f"#q2:types\t{declared}"] if declared else []
    metadata = written(tmp_path, "m.tsv", "\n".join(["sample-id\tph", *types, *lines]) + "\n")
    return open_study(DataSettings(table=str(table), metadata=str(metadata), target="ph", **settings))


NUMBERS = ["5.1", "6.2", "7.3", "4.4", "5.5", "6.6", "7.7", "8.8"]


@pytest.mark.parametrize(
    ("cells", "named"),
    [
        ([*NUMBERS, "n.d."], ["8 numbers and 1 other", "'n.d.'", "--data.missing_values 'n.d.'"]),
        ([*NUMBERS, "<4", "<4", "below limit"], ["'<4' (2)", "'below limit' (1)"]),
        ([*NUMBERS, "7.1 pH"], ["'7.1 pH'"]),
        ([*NUMBERS, "1_000"], ["'1_000'"]),
        ([*NUMBERS, "inf"], ["'inf'"]),
        ([cell.replace(".", ",") for cell in NUMBERS], ["decimal comma", "'5,1'", "point"]),
        ([*NUMBERS[:6], "7,7", "8,8"], ["decimal comma", "'7,7'"]),
        ([f"1,{number}00" for number in range(1, 9)], ["between thousands", "'1,100'"]),
        ([*NUMBERS, "1,234,567"], ["between thousands", "'1,234,567'"]),
        ([*NUMBERS, "1,234.5", "n.d."], ["between thousands", "'1,234.5'"]),
        ([f"{cell} pH" for cell in NUMBERS], ["8 different values in 8 samples"]),
        ([f"2024-01-0{number}" for number in range(1, 9)], ["8 different values"]),
    ],
)
def test_words_among_numbers_are_refused_and_never_become_classes(
    tmp_path: Path, cells: list[str], named: list[str]
) -> None:
    said = message(lambda: study_with(tmp_path, cells))
    assert all(each in said for each in [*named, "'ph'", "m.tsv", "--data.task classification"]), said
    # Who means classes says so.
    assert len(study_with(tmp_path, cells, task="classification").sample_ids) == len(cells)


@pytest.mark.parametrize(
    ("cells", "declared"),
    [
        (["CD", "CD", "control", "cd"], None),
        (["control", "Control", "CD", "CD"], "categorical"),
        (["not inflamed", "not  inflamed", "inflamed", "inflamed"], None),
    ],
)
def test_classes_of_two_spellings_are_refused(tmp_path: Path, cells: list[str], declared: str | None) -> None:
    said = message(lambda: study_with(tmp_path, cells * 2, declared))
    assert "two classes" in said and "Write them alike" in said and "'ph'" in said
    assert len(study_with(tmp_path, cells * 2, declared, task="classification").sample_ids) == 8


def test_words_for_missing_are_listed_and_left_out(tmp_path: Path) -> None:
    for cells, settings, words in [
        ([*NUMBERS, "NA", "not collected", ""], {}, "NA, empty, not collected"),
        ([*NUMBERS, "#N/A"], {}, "#N/A"),
        ([*NUMBERS, "-", "?"], {"missing_values": "-,?"}, "-, ?"),
        ([*NUMBERS, "unknown", "None"], {}, "None, unknown"),
        ([*NUMBERS, "n.d.", "-999"], {"missing_values": "n.d., -999"}, "-999, n.d."),
    ]:
        study = study_with(tmp_path, cells, **settings)
        assert len(study.sample_ids) == 8
        assert any(f"{len(cells) - 8} of {len(cells)} samples have no ph: left out ({words})" in x for x in study.notes)
    # Among words, None is a class, as in no antibiotic.
    study = study_with(tmp_path, ["None", "penicillin"] * 4 + ["NA"])
    assert len(study.sample_ids) == 8 and set(study.metadata["ph"]) == {"None", "penicillin"}


def test_declared_types_are_honoured(tmp_path: Path) -> None:
    def classes(cells: list[str], declared: str = "", **settings: Any) -> tuple[str, ...]:
        study = study_with(tmp_path, cells, declared, **settings)
        own = DataSettings(table="t", metadata=str(tmp_path / "m.tsv"), target="ph", **settings)
        return fit(study, own, np.arange(len(cells)), True).classes

    codes = ["1", "2", "1", "2", "1", "1"]
    assert classes(codes, "categorical") == ("1", "2")
    assert classes(codes, "numeric") == ()
    assert classes(codes, "categorical", task="regression") == ()
    assert "holds 2 different whole numbers" in " ".join(study_with(tmp_path, codes).notes)
    assert not study_with(tmp_path, codes, "numeric").notes
    assert "'wet' (3)" in message(lambda: study_with(tmp_path, ["wet", "dry"] * 3, "numeric"))
    assert "0 numbers" in message(lambda: study_with(tmp_path, ["wet", "dry"] * 3, task="regression"))


# Ids --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("in_table", "in_metadata", "named"),
    [
        (["00123", "00124", "00125"], ["123", "124", "125"], ["'00123'", "'123'", "alike"]),
        (["S1", "S2", "S3"], ["s1", "s2", "s3"], ["'S1'", "'s1'", "alike"]),
        (["a-1", "a-2", "a-3"], ["a.1", "a.2", "a.3"], ["'a-1'", "'a.1'"]),
        (["1.10", "1.20", "1.30"], ["1.1", "1.2", "1.3"], ["'1.10'", "'1.1'"]),
        (["x1", "x2", "x3"], ["y1", "y2", "y3"], ["'x1'", "'y1'"]),
    ],
)
def test_ids_that_match_no_sample_are_explained(
    tmp_path: Path, in_table: list[str], in_metadata: list[str], named: list[str]
) -> None:
    table = written(tmp_path, "t.tsv", "#OTU ID\t" + "\t".join(in_table) + "\n" + TABLE)
    rows = "".join(f"{name}\tgut\n" for name in in_metadata)
    metadata = written(tmp_path, "m.tsv", "sample-id\tbody\n" + rows)
    said = message(lambda: open_study(DataSettings(table=str(table), metadata=str(metadata))))
    assert all(each in said for each in named), said
    # One that matches is enough to go on, and the others are counted, with examples.
    metadata = written(tmp_path, "m.tsv", f"sample-id\tbody\n{in_table[2]}\tgut\n" + rows)
    if in_metadata[2] != in_table[2]:
        notes = " ".join(open_study(DataSettings(table=str(table), metadata=str(metadata))).notes)
        assert f"2 of 3 samples are not in {metadata}: left out ({in_table[0]}, {in_table[1]})" in notes
        assert "3 of 4 rows" in notes and repr(in_metadata[0]) in notes


def test_ids_in_another_column_are_found_and_blanks_around_them_do_not_matter(tmp_path: Path) -> None:
    table = written(tmp_path, "t.tsv", HEADER.replace("s1", " s1 ") + TABLE)
    metadata = written(tmp_path, "m.tsv", "index\tsample-id\n1\ts1\n2\ts2\n3\ts3\n")
    assert "'sample-id'" in message(lambda: open_study(DataSettings(table=str(table), metadata=str(metadata))))
    metadata = written(tmp_path, "m.tsv", "id\tbody\ns1\tgut\ns2\tgut\ns3\tgut\n")
    study = open_study(DataSettings(table=str(table), metadata=str(metadata)))
    # Ids go out as they came.
    assert study.sample_ids == (" s1 ", "s2", "s3")


# Tables -----------------------------------------------------------------------------------------------


def biom_table(tmp_path: Path, counts: np.ndarray, features: list[str], samples: list[str]) -> Path:
    biom = pytest.importorskip("biom")
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "t.biom", "w") as file:
        biom.Table(counts, features, samples).to_hdf5(file, "test")
    return tmp_path / "t.biom"


def test_tables_in_every_format_are_the_same(tmp_path: Path) -> None:
    biom = pytest.importorskip("biom")
    counts = np.array([[5, 0, 4], [3, 7, 4], [0, 1, 4], [2, 0, 4]], float)
    version_2 = biom_table(tmp_path, counts, SEQUENCES, ["s1", "s2", "s3"]).read_bytes()
    version_1 = biom.Table(counts, SEQUENCES, ["s1", "s2", "s3"]).to_json("test").encode()
    described = TABLE.replace("\n", "\tk__Bacteria; p__\n")
    texts = [HEADER + TABLE, "# Constructed from biom file\n" + HEADER + TABLE, "\ts1\ts2\ts3\r\n" + TABLE]
    texts += [HEADER.replace("s3\n", "s3\ttaxonomy\n") + described, HEADER + TABLE.replace("\t5", "\t5.0")]
    texts += ['"ASV"\t"s1"\t"s2"\t"s3"\n' + TABLE]
    # A tab at the end of each line.
    texts += [(HEADER + TABLE).replace("\n", "\t\n"), (HEADER + TABLE).replace("\n", "\t\t\r\n")]
    files = [version_2, version_1, json.dumps(json.loads(version_1), indent=1).encode(), *map(str.encode, texts)]
    files += [gzip.compress(content) for content in files[:4]]
    with zipfile.ZipFile(tmp_path / "artifact", "w") as archive:
        archive.writestr("8c2e/data/feature-table.biom", version_2)
    files.append((tmp_path / "artifact").read_bytes())
    for number, content in enumerate(files):
        table = read_table(written(tmp_path, f"{number}.table", content))
        assert (table.sample_ids, table.feature_ids) == (["s1", "s2", "s3"], SEQUENCES), number
        assert (table.counts.toarray() == counts.T).all(), number


@pytest.mark.parametrize(
    ("text", "named"),
    [
        (HEADER + TABLE.replace("\t5\t", "\t0.5\t"), ["0.5", "shares", "counts of reads"]),
        (HEADER + TABLE.replace("\t5\t", "\t-5\t"), ["-5", "negative"]),
        (HEADER + TABLE.replace("\t5\t", "\tnan\t"), ["missing"]),
        (HEADER + TABLE.replace("\t5\t", "\t\t"), ["Line 2", "''", "'s1'"]),
        (HEADER + TABLE.replace("\t5\t", "\t5,0\t"), ["Line 2", "'5,0'"]),
        (HEADER + TABLE.replace("\t5\t", "\tmany\t"), ["Line 2", "'many'"]),
        (HEADER.replace("s2", "s1") + TABLE, ["sample 's1' twice"]),
        (HEADER + TABLE + TABLE, ["ASV 'ACGT", "twice"]),
        ("s1\ts2\ts3\n" + TABLE, ["Line 2", "4 columns", "col.names"]),
        (HEADER, ["no ASV"]),
        (b"\x1f\x8b\x08\x00broken", ["damaged"]),
        (b"PK\x03\x04broken", ["damaged"]),
        ("hello", ["hello"]),
        (b"\x89HDF\r\n\x1a\nbroken", ["BIOM"]),
        ("{}", ["BIOM"]),
    ],
)
def test_mistakes_in_tables_are_named_and_refused(tmp_path: Path, text: str | bytes, named: list[str]) -> None:
    said = message(lambda: read_table(written(tmp_path, "t.tsv", text)))
    assert all(each in said for each in [*named, "t.tsv"]), said


def test_a_transposed_table_is_named(tmp_path: Path) -> None:
    rows = "".join(f"s{number}\t1\t2\t3\t4\n" for number in (1, 2, 3))
    table = written(tmp_path, "t.tsv", "sample\t" + "\t".join(SEQUENCES) + "\n" + rows)
    assert "exchanged" in message(lambda: open_study(DataSettings(table=str(table))))
    # With ids in place of sequences, the FASTA file and the metadata tell.
    table = written(tmp_path, "t.tsv", "sample\ta\tb\tc\td\n" + rows)
    fasta = written(tmp_path, "s.fasta", "".join(f">{n}\n{s}\n" for n, s in zip("abcd", SEQUENCES, strict=True)))
    metadata = written(tmp_path, "m.tsv", "id\tbody\ns1\tgut\ns2\tgut\n")
    for files in ({"sequences": str(fasta)}, {"metadata": str(metadata)}):
        assert "exchanged" in message(lambda files=files: open_study(DataSettings(table=str(table), **files)))


# Sequences --------------------------------------------------------------------------------------------


def test_sequences_in_every_form_are_the_same(tmp_path: Path) -> None:
    table = written(tmp_path, "t.tsv", HEADER + "".join(f"{n}\t1\t2\t3\n" for n in "abcd"))
    plain = "".join(f">{n}\n{s}\n" for n, s in zip("abcd", SEQUENCES, strict=True))
    for content in [
        plain,
        plain.replace("\n>", " \n\n>").replace(">a", ">a size=3 from somewhere"),
        "".join(f">{n}\n{s[:7]}\n{s[7:15]}\n {s[15:]}\n" for n, s in zip("abcd", SEQUENCES, strict=True)),
        "".join(f">{n}\n{s.lower().replace('t', 'u')}\n" for n, s in zip("abcd", SEQUENCES, strict=True)),
        "".join(f">{n}\n--{s[:5]}.-{s[5:]}\n" for n, s in zip("abcd", SEQUENCES, strict=True)),
        "; a comment\n" + plain.replace("\n", "\r\n"),
        "﻿" + plain,
        gzip.compress(plain.encode()),
    ]:
        fasta = written(tmp_path, "s.fasta", content)
        study = open_study(DataSettings(table=str(table), sequences=str(fasta)))
        assert study.sequences == tuple(SEQUENCES)
    aligned = str(written(tmp_path, "g.fasta", plain.replace("AC", "A-C")))
    study = open_study(DataSettings(table=str(table), sequences=aligned))
    assert f"4 of 4 sequences in {aligned} are aligned" in " ".join(study.notes)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        (">a\nACGT\n>b\nAC\n>a\nACGA\n", ["'a' twice"]),
        (">a\nACGT\n>\nACGA\n", ["without a name", "line 3"]),
        ("@a\nACGT\n+\n!!!!\n", ["FASTQ"]),
        ("ACGT\n>a\nACGT\n", ["line 1", "'ACGT'"]),
        ("", ["no FASTA"]),
        (b">a\nAC\xffGT\n", ["not UTF-8"]),
    ],
)
def test_mistakes_in_sequences_are_named_and_refused(tmp_path: Path, text: str | bytes, named: list[str]) -> None:
    said = message(lambda: read_fasta(written(tmp_path, "s.fasta", text)))
    assert all(each in said for each in [*named, "s.fasta"]), said


def test_asvs_without_letters_are_counted_by_kind(tmp_path: Path) -> None:
    table = written(tmp_path, "t.tsv", HEADER + "".join(f"{n}\t1\t2\t1\n" for n in "abcd"))
    fasta = written(tmp_path, "s.fasta", f">a\n{SEQUENCES[0]}\n>b\n\n>c\nACGNNT\n")
    notes = " ".join(open_study(DataSettings(table=str(table), sequences=str(fasta))).notes)
    assert "1 of 4 ASVs have no sequence" in notes and "with 25.00% of the reads" in notes
    assert "1 of 4 ASVs have an empty sequence" in notes and "1 of 3 ASVs have letters other" in notes
    fasta = written(tmp_path, "s.fasta", ">x\nACGT\n")
    said = message(lambda: open_study(DataSettings(table=str(table), sequences=str(fasta))))
    assert "'a'" in said and "'x'" in said and "--data.sequences" in said


# Trees ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("((A,B),(C,D));", ["6 of 6 branches", "no length", "--data.missing_lengths"]),
        ("((A:1,B:2),(C:4,D:5):6);", ["1 of 6 branches", "no length"]),
        ("((A:1,B):3,(C:4,D:5):6);", ["1 of 6 branches"]),
        ("(A:1,B:2,(C:4,D:5):6);", ["no root", "3 branches", "midpoint"]),
        ("(A:1,B:2,C:4,D:5);", ["no root", "4 branches"]),
        ("((A:1,B:-2):3,(C:4,D:5):6);", ["length -2"]),
        ("((A:1,B:nan):3,(C:4,D:5):6);", ["length nan"]),
        ("((A:1,B:inf):3,(C:4,D:5):6);", ["length inf"]),
        ("((A:0,B:0):0,(C:0,D:0):0);", ["length 0"]),
        ("((A:1,A:2):3,(C:4,D:5):6);", ["two tips called A"]),
        ("((A:1,:2):3,(C:4,D:5):6);", ["1 tips without a name"]),
        ("A;", ["one node"]),
        ("((A:1,B:2):3,(C:4,D:5):6);((A:1,B:2):3,(C:4,D:5):6);", ["2 trees"]),
        ("#NEXUS\nbegin trees;", ["NEXUS"]),
        ("((A:1,B:2):3", ["newick"]),
        ("", ["newick"]),
    ],
)
def test_a_tree_on_which_unifrac_is_not_defined_is_refused(text: str, named: list[str]) -> None:
    pytest.importorskip("skbio")
    said = message(lambda: Phylogeny.from_newick(text, "tree.nwk"))
    assert all(each in said for each in [*named, "tree.nwk"]), said


@pytest.mark.filterwarnings("ignore")
def test_settings_say_what_an_undefined_tree_means() -> None:
    skbio: Any = pytest.importorskip("skbio")
    from skbio.diversity import beta_diversity

    counts = np.array([[1, 0, 0, 2], [0, 3, 1, 0], [1, 1, 1, 0]])

    def agrees(text: str, wanted: str, **settings: Any) -> None:
        own = distances(counts, Phylogeny.from_newick(text, **settings).rows_of("ABCD"))
        tree = skbio.TreeNode.read([wanted], format="newick")
        reference = beta_diversity("unweighted_unifrac", counts, taxa=list("ABCD"), tree=tree, validate=False)
        assert np.abs(own - np.asarray(reference.data)).max() < 1e-6

    agrees("((A:1,B:2),(C:4,D:5):6);", "((A:1,B:2):1,(C:4,D:5):6);", missing_lengths="one")
    agrees("((A:1,B:2),(C:4,D:5):6);", "((A:1,B:2):0,(C:4,D:5):6);", missing_lengths="zero")
    agrees("((A,B),(C,D));", "((A:1,B:1):1,(C:1,D:1):1);", missing_lengths="one")
    agrees("(A:1,B:2,(C:4,D:5):6);", "(A:1,B:2,(C:4,D:5):6);", root="top")
    # The longest path leads from B to D, 13 long: its middle is 0.5 below the top's end of the branch to C and D.
    agrees("(A:1,B:2,(C:4,D:5):6);", "((A:1,B:2):4.5,(C:4,D:5):1.5);", root="midpoint")
    # One branch at the top is a root of its own, as scikit-bio takes it.
    agrees("(((A:1,B:2):3,(C:4,D:5):6):1);", "(((A:1,B:2):3,(C:4,D:5):6):1);")
    assert "length 0" in message(lambda: Phylogeny.from_newick("((A,B),C);", "t", missing_lengths="zero"))


def test_asvs_missing_in_the_tree_are_counted_or_refused(tmp_path: Path) -> None:
    pytest.importorskip("skbio")
    table = written(tmp_path, "t.tsv", HEADER + TABLE)
    one, two, three, _ = SEQUENCES
    tree = written(tmp_path, "tree.nwk", f"(({one}:1,{two}:2):3,{three}:1);")
    files = {"table": str(table), "tree": str(tree)}
    assert "1 of 4 ASVs are no tips" in " ".join(open_study(DataSettings(**files)).notes)
    said = message(lambda: open_study(DataSettings(**files, missing_tips="refuse")))
    assert "1 of 4 ASVs" in said and "GGGT" in said
    alone = written(tmp_path, "tree.nwk", f"({one}:1,x:2);")
    assert "One ASV" in message(lambda: open_study(DataSettings(table=str(table), tree=str(alone))))


def test_a_study_whose_file_changed_is_read_again(tmp_path: Path) -> None:
    table = written(tmp_path, "t.tsv", HEADER + TABLE)
    settings = DataSettings(table=str(table))
    before = studies.read_study(settings)
    assert studies.read_study(settings) is before
    written(tmp_path, "t.tsv", HEADER + TABLE.replace("\t5\t", "\t55\t"))
    assert studies.read_study(settings).counts.sum() == before.counts.sum() + 50
    shutil.rmtree(tmp_path)
