"""UniFrac and Faith's diversity as matrix products: equal to scikit-bio, whatever the tree looks like."""

import importlib.util
from typing import Any

import numpy as np
import pytest

from recipes.microbiome import demo, unifrac
from recipes.microbiome.unifrac import Phylogeny, branch_presence, distances
from runner.errors import DataError
from tests.launching import SHARED

DATA = SHARED / "microbiome"
needs_skbio = pytest.mark.skipif(importlib.util.find_spec("skbio") is None, reason="scikit-bio is not installed")
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the real studies are not here")


def faith_diversity(counts: Any, phylogeny: Phylogeny) -> np.ndarray:
    """(samples,): the length of all branches that a sample has; independent of pairs of samples."""
    return np.matmul(*branch_presence(unifrac.as_rows(counts), phylogeny))


def newick(parents: list[int], lengths: list[float], names: list[str], root_length: float = 0.0) -> str:
    """The tree as newick, with a length on the root where it has one."""
    children: dict[int, list[int]] = {}
    for node, parent in enumerate(parents):
        children.setdefault(parent, []).append(node)

    def written(node: int) -> str:
        inside = f"({','.join(map(written, children[node]))})" if node in children else names[node]
        length = root_length if parents[node] < 0 else lengths[node]
        return f"{inside}:{length!r}" if length or parents[node] >= 0 else inside

    return written(children[-1][0]) + ";"


def small_study(root_length: float) -> tuple[Any, list[str], str]:
    """(counts of 14 samples, ASV names, newick); the last sample but one is the first's double."""
    random = np.random.default_rng(3)
    parents, lengths = demo.coalescent(40, random)
    names = [f"tip{number}" for number in range(40)]
    counts = random.poisson(0.5, (14, 40)) * random.integers(1, 30, (14, 40))
    counts[12] = counts[0]
    return counts, names, newick(parents, lengths, names, root_length)


@needs_skbio
@pytest.mark.parametrize("root_length", [0.0, 0.37])
@pytest.mark.filterwarnings("ignore")
def test_every_metric_equals_scikit_bio_with_and_without_a_length_on_the_root(root_length: float) -> None:
    import io

    from skbio import TreeNode
    from skbio.diversity import alpha_diversity, beta_diversity

    counts, names, text = small_study(root_length)
    tree: Any = TreeNode.read(io.StringIO(text), format="newick")
    phylogeny = Phylogeny.from_newick(text).rows_of(names)
    for metric, options in [
        ("unweighted", {}),
        ("weighted", {"normalized": False}),
        ("weighted_normalized", {"normalized": True}),
    ]:
        name = f"{metric.split('_')[0]}_unifrac"
        # scikit-bio's validation refuses a tree with a length on the root; its arithmetic does not.
        oracle = beta_diversity(name, counts, taxa=names, tree=tree, validate=not root_length, **options)
        assert np.abs(distances(counts, phylogeny, metric) - oracle.data).max() < 1e-6, metric  # type: ignore[arg-type]
    oracle = alpha_diversity("faith_pd", counts, taxa=names, tree=tree, validate=not root_length)
    assert np.abs(faith_diversity(counts, phylogeny) - np.asarray(oracle)).max() < 1e-6


@needs_data
def test_a_real_table_and_tree_equal_scikit_bio() -> None:
    biom = pytest.importorskip("biom")
    table = biom.load_table(str(DATA / "tiny" / "table.biom"))
    reference = np.load(DATA / "tiny" / "reference_skbio_0.7.4.npz")
    phylogeny = Phylogeny.from_newick((DATA / "tiny" / "tree.nwk").read_text()).rows_of(table.ids("observation"))
    order = [list(table.ids()).index(name) for name in reference["ids"]]
    counts = table.matrix_data.T.tocsr()[order]
    for metric in ("unweighted", "weighted_normalized"):
        assert np.abs(distances(counts, phylogeny, metric) - reference[metric]).max() < 1e-6
    assert np.abs(faith_diversity(counts, phylogeny) - reference["faith_pd"]).max() < 1e-6


def test_by_hand() -> None:
    phylogeny = Phylogeny.from_newick("((a:1,b:2):3,(c:4,d:5):6);").rows_of("abcd")
    counts = np.array([[1, 1, 0, 0], [9, 0, 0, 0], [0, 0, 1, 3]])
    expected = [[0, 2 / 6, 1], [2 / 6, 0, 1], [1, 1, 0]]
    assert np.allclose(distances(counts, phylogeny), expected)
    assert np.allclose(faith_diversity(counts, phylogeny), [6, 4, 15])
    # Samples 0 and 1 differ by a half of a's and of b's branch.
    assert np.isclose(distances(counts, phylogeny, "weighted")[0, 1], 0.5 * 1 + 0.5 * 2)


def test_cutting_the_branches_into_groups_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    made = demo.make(num_samples=30, num_asvs=50)
    whole = distances(made.counts, made.phylogeny)
    monkeypatch.setattr(unifrac, "LARGEST_BLOCK", 200)
    assert np.abs(distances(made.counts, made.phylogeny) - whole).max() < 1e-12


@pytest.mark.parametrize("num_chosen", [40, 17, 1])
def test_tips_in_any_order_and_a_part_of_them_have_the_branches_of_the_whole_tree(num_chosen: int) -> None:
    counts, names, text = small_study(0.37)
    whole = Phylogeny.from_newick(text)
    chosen = np.random.default_rng(0).permutation(40)[:num_chosen]
    part = whole.rows_of(names[tip] for tip in chosen)
    reads = unifrac.as_rows(counts[:, chosen])
    # The slow way: each tip's own list of branches.
    below = (reads @ part.ancestors).toarray()
    presence, lengths = unifrac.branch_presence(reads, part)
    found = np.flatnonzero(below.any(0))
    assert np.array_equal(presence, below[:, found] > 0) and np.array_equal(lengths, whole.lengths[found])
    shares, _ = unifrac.branch_shares(reads, part)
    assert np.allclose(shares, below[:, found] / np.maximum(reads.sum(1), 1e-300), rtol=1e-12, atol=0)


def test_doubles_and_empty_samples_are_at_distance_0() -> None:
    phylogeny = Phylogeny.from_newick("((a:1,b:2):3,c:4);").rows_of("abc")
    counts = np.array([[1, 0, 2], [1, 0, 2], [0, 0, 0], [0, 0, 0]])
    for metric in ("unweighted", "weighted", "weighted_normalized"):
        result = distances(counts, phylogeny, metric)
        assert np.isfinite(result).all()
        assert result[0, 1] == 0 and result[2, 3] == 0


def test_the_presence_of_branches_is_a_tanimoto_kernel() -> None:
    """What the model's distance rests on: UniFrac is 1 - S / (a_i + a_j - S) with S an inner product."""
    made = demo.make(num_samples=20, num_asvs=40)
    presence, lengths = unifrac.branch_presence(made.counts, made.phylogeny)
    vectors = presence * np.sqrt(lengths)
    shared = vectors @ vectors.T
    own = np.square(vectors).sum(1)
    assert np.allclose(1 - shared / (own[:, None] + own - shared), distances(made.counts, made.phylogeny))


@needs_skbio
def test_a_deep_tree_and_odd_names_are_read() -> None:
    text = "('it''s one':1,"
    for number in range(3000):
        text += f"(t_{number}:1,"
    text += "last:1" + "):1" * 3000 + ");"
    phylogeny = Phylogeny.from_newick(text)
    assert phylogeny.names[0] == "it's one" and "t_7" in phylogeny.names
    assert np.isclose(phylogeny.ancestors[-1].sum(), 3002)


@needs_skbio
@pytest.mark.parametrize(
    ("text", "said"),
    [("((a:1,b:2)", "newick"), ("((a:1,a:2):3,c:1);", "two tips"), ("((a:1,b:-2):3,c:1);", "length -2")],
)
def test_a_broken_tree_is_an_error_that_says_so(text: str, said: str) -> None:
    with pytest.raises(DataError, match=said):
        Phylogeny.from_newick(text, "tree.nwk")


def test_the_embedded_study_is_the_same_for_a_seed_and_follows_its_gradient() -> None:
    from scipy.stats import rankdata

    def spearmanr(left: np.ndarray, right: np.ndarray) -> float:
        return float(np.corrcoef(rankdata(left), rankdata(right))[0, 1])

    one, two = demo.make(1, 60, 80), demo.make(1, 60, 80)
    assert one.sequences == two.sequences and (one.counts != two.counts).nnz == 0
    assert len(set(one.sequences)) == 80
    apart = np.abs(one.gradient[:, None] - one.gradient)[np.triu_indices(60, 1)]
    unlike = distances(one.counts, one.phylogeny)[np.triu_indices(60, 1)]
    assert spearmanr(apart, unlike) > 0.6
    # Relatives on the tree have like sequences.
    letters = np.array([list(sequence) for sequence in one.sequences])
    mismatches = (letters[:, None] != letters[None]).mean(2)[np.triu_indices(80, 1)]
    ancestors = one.phylogeny.ancestors
    shared = np.asarray((ancestors.multiply(one.phylogeny.lengths) @ ancestors.T).todense())[np.triu_indices(80, 1)]
    assert spearmanr(shared, mismatches) < -0.6


def test_each_tip_can_be_a_sample_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    made = demo.make(num_samples=2, num_asvs=30)
    chosen = np.array([4, 7, 29])
    samples = np.zeros((3, 30))
    samples[np.arange(3), chosen] = 1
    found = unifrac.tip_distances(made.phylogeny, chosen)
    assert np.allclose(found, distances(samples, made.phylogeny)) and found.dtype == np.float32
    # A larger tree has no table of all, and the same bits.
    monkeypatch.setattr(unifrac, "MOST_TIPS_TOGETHER", 29)
    monkeypatch.setattr(unifrac.Phylogeny, "tip_table", None)
    assert np.array_equal(unifrac.tip_distances(made.phylogeny, chosen), found)
