"""The linear readout of classes, on studies with few subjects and several samples of each."""

import dataclasses

import numpy as np
import pytest
import scipy.sparse
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from recipes.microbiome import readout
from recipes.microbiome.baselines import Fold, linear_on_presence, linear_readout
from recipes.microbiome.demo import LETTERS, coalescent, evolve
from recipes.microbiome.fitting import fit, target_values
from recipes.microbiome.readout import UNSEEN, held_out_scores, inner_folds, logistic, standard_error
from recipes.microbiome.settings import DataSettings, StageSettings
from recipes.microbiome.splits import partition
from recipes.microbiome.study import Study
from recipes.microbiome.unifrac import Phylogeny

SETTINGS = DataSettings(table="t", tree="t", metadata="m", target="diagnosis", group="subject", num_folds=3)


def study_by_subject(seed: int, subjects: int = 24, samples: int = 150, num_asvs: int = 800) -> Study:
    """Each subject has ASVs of its own, in most of its samples; sixty ASVs are more frequent in one of two diagnoses.

    Abundances differ between subjects at random, and say nothing of the diagnosis.
    """
    random = np.random.default_rng(seed)
    parents, lengths = coalescent(num_asvs, random)
    letters = evolve(parents, lengths, 64, 0.5, random)[:num_asvs]
    letters[:, :6] = np.arange(num_asvs)[:, None] // 4 ** np.arange(6) % 4  # no two are the same
    sequences = tuple("".join(LETTERS[row]) for row in letters)
    phylogeny = Phylogeny.from_parents(parents, lengths, [*sequences, *[None] * (num_asvs - 1)])
    is_ill = np.isin(np.arange(subjects), random.permutation(subjects)[: subjects * 10 // 24])
    subject = np.repeat(np.arange(subjects), random.multinomial(samples - 4 * subjects, [1 / subjects] * subjects) + 4)
    frequency = np.tile(np.clip(random.beta(0.25, 4, num_asvs), 0.002, 0.95), (subjects, 1))
    marking = random.permutation(num_asvs)[:60]
    frequency[:, marking] = np.where(is_ill[:, None] == (np.arange(60) < 30), 0.25, 0.6)
    has = random.random((subjects, num_asvs)) < frequency
    present = has[subject] & (random.random((samples, num_asvs)) < 0.75)
    expected = random.lognormal(0, 1, (subjects, num_asvs))[subject] * random.lognormal(0, 1.5, num_asvs) * present
    counts = np.stack([random.multinomial(5000, row / row.sum()) for row in expected])
    return Study(
        tuple(f"sample-{number}" for number in range(samples)),
        sequences,
        scipy.sparse.csr_matrix(counts.astype(float)),
        phylogeny,
        {
            "diagnosis": tuple("ill" if is_ill[each] else "well" for each in subject),
            "subject": tuple(f"subject-{each}" for each in subject),
        },
    )


def fold_of(study: Study, number: int) -> Fold:
    data = dataclasses.replace(SETTINGS, fold=number)
    splits = partition(study, data)
    fitted = fit(study, data, np.arange(len(study.sample_ids)), True)
    settings = StageSettings(stage="predict", data_settings=data)
    return Fold(settings, study, fitted, splits["train"], splits["validation"])


@pytest.mark.parametrize("seed", [0, 1])
def test_where_presence_tells_subjects_apart_the_readout_is_about_as_good_as_logistic_regression_on_it(
    seed: int,
) -> None:
    study = study_by_subject(seed)
    found: dict[str, list[float]] = {"readout": [], "presence": []}
    truth: list[float] = []
    for number in range(3):
        fold = fold_of(study, number)
        found["readout"] += linear_readout(fold)[:, 1].tolist()
        found["presence"] += linear_on_presence(fold)[:, 1].tolist()
        truth += fold.values[fold.out].tolist()
    areas = {name: roc_auc_score(truth, scores) for name, scores in found.items()}
    assert areas["presence"] > 0.7, areas
    assert areas["readout"] > areas["presence"] - 0.04, areas


def test_no_inner_fold_cuts_a_subject(monkeypatch: pytest.MonkeyPatch) -> None:
    study = study_by_subject(0, subjects=12, samples=80, num_asvs=300)
    fold = fold_of(study, 0)
    subjects = np.array(study.metadata["subject"])[fold.train]
    seen = []

    def spy(kernel: np.ndarray, wanted: np.ndarray, folds: np.ndarray, *rest: object) -> np.ndarray:
        seen.append(folds)
        return held_out_scores(kernel, wanted, folds, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(readout, "held_out_scores", spy)
    linear_readout(fold)
    assert len(seen) > 5
    for folds in seen:
        assert all(len(np.unique(folds[subjects == name])) == 1 for name in np.unique(subjects))


@pytest.mark.parametrize("classes", [2, 3])
def test_held_out_logits_are_those_of_logistic_regression_without_the_fold(classes: int) -> None:
    random = np.random.default_rng(classes)
    labels = random.integers(classes, size=60)
    features = random.normal(size=(60, 8)) + labels[:, None]
    folds = inner_folds(None, 60, 1)
    wanted = np.eye(classes)[labels]
    penalties = np.array([0.3, 3.0])
    found = held_out_scores(features @ features.T, wanted, folds, penalties, logistic)
    for number, penalty in enumerate(penalties):
        for fold in range(5):
            train, out = folds != fold, folds == fold
            model = LogisticRegression(C=1 / penalty, class_weight="balanced", tol=1e-6, max_iter=1000)
            expected = model.fit(features[train], labels[train]).predict_proba(features[out])
            given = np.exp(found[number][out])
            assert np.allclose(given / given.sum(1, keepdims=True), expected, atol=0.01)


def test_a_class_without_training_samples_is_unlikely_and_not_impossible() -> None:
    wanted = np.eye(3)[np.array([0, 1] * 5)]
    kernel = np.diag(np.ones(10))
    (weights, level), *_ = logistic(kernel, wanted, np.array([1.0]))
    assert level[2] == UNSEEN and not weights[:, 2].any() and np.isfinite(weights).all()
    # One class alone: nothing is fitted.
    (weights, level), *_ = logistic(kernel, np.eye(2)[np.zeros(10, int)], np.array([1.0]))
    assert level.tolist() == [0.0, UNSEEN] and not weights.any()


@pytest.mark.parametrize(("share", "shifts"), [(0.06, True), (0.45, False)])
def test_the_share_of_a_class_counts_only_where_that_helps(share: float, shifts: bool) -> None:
    random = np.random.default_rng(0)
    groups = [f"g{number // 20}" for number in range(400)]
    labels = np.repeat(random.random(20) < share, 20).astype(int) if not shifts else random.random(400) < share
    logits = (2 * labels - 1)[:, None] * np.array([-0.5, 0.5]) + random.normal(0, 1, (400, 2))
    _, shift = readout._calibrate(logits, np.eye(2)[labels.astype(int)], groups)
    assert bool(shift.any()) == shifts
    if shifts:
        assert shift[0] - shift[1] == pytest.approx(np.log((1 - labels.mean()) / labels.mean()))


def test_the_standard_error_counts_groups() -> None:
    values = np.random.default_rng(0).normal(size=50)
    alone = standard_error(values, None)
    assert alone == pytest.approx(values.std(ddof=1) / 50**0.5)
    # Each sample four times, in one group: no more is known.
    fourfold = standard_error(np.repeat(values, 4), [str(number // 4) for number in range(200)])
    assert fourfold == pytest.approx(alone)
    assert standard_error(values, ["one"] * 50) == pytest.approx(alone)


def test_targets_of_both_kinds_agree_with_their_values() -> None:
    study = study_by_subject(1, subjects=12, samples=80, num_asvs=300)
    fold = fold_of(study, 1)
    probabilities = linear_readout(fold)
    values = target_values(study, SETTINGS, fold.fitted)
    assert values is not None and set(values) == {0.0, 1.0}
    assert np.allclose(probabilities.sum(1), 1) and (probabilities > 0).all()


def test_the_largest_directions_of_many_samples_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    # The spectrum of real tables falls steeply.
    values = random.normal(size=(400, 600)) / np.arange(1, 601) ** 0.7
    values -= values.mean(0)
    kernel = values @ values.T
    kernel /= np.trace(kernel) / len(kernel)
    logits = kernel[:, :5].sum(1) / kernel[:, :5].sum(1).std()
    wanted = np.eye(2)[(logits + random.normal(size=400) > 0).astype(int)]
    folds = np.arange(400) % 4
    full = held_out_scores(kernel, wanted, folds, np.array([0.1]), logistic)[0][:, 1]
    monkeypatch.setattr(readout, "MOST_DIRECTIONS", 120)
    few = held_out_scores(kernel, wanted, folds, np.array([0.1]), logistic)[0][:, 1]
    assert np.corrcoef(full, few)[0, 1] > 0.99
    monkeypatch.setattr(readout, "MOST_DIRECTIONS", 2)
    assert np.corrcoef(full, held_out_scores(kernel, wanted, folds, np.array([0.1]), logistic)[0][:, 1])[0, 1] < 0.95


@pytest.mark.parametrize("size", [12, 30])
def test_equal_samples_have_equal_logits(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setattr(readout, "MOST_DIRECTIONS", 20)
    wanted = np.eye(3)[np.arange(size) % 3]
    found = held_out_scores(np.zeros((size, size)), wanted, np.arange(size) % 4, np.array([0.1, 1]), logistic)
    assert found.shape == (2, size, 3) and np.allclose(found, 0)
