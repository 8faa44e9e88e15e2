"""The settings of microbiome: the stage and its losses, and the groups data and model."""

from __future__ import annotations

import dataclasses
import functools
from typing import Annotated, Literal

from runner.errors import ConfigError
from runner.parts.dimensions import check_attention
from runner.parts.setting_types import (
    MOST,
    AtLeast0,
    AtLeast1,
    AtLeast2,
    NotNegative,
    Range,
    Share,
    ShareBelow1,
    check_ranges,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataSettings:
    """The samples, and how they are split."""

    table: str | None = None
    """Feature table of reads: .biom, .qza, or text with tabs and ASVs in rows; none: the embedded study, generated from
    a seed."""
    sequences: str | None = None
    """FASTA file (or .qza) of the ASVs; none: the table's feature ids are the sequences."""
    tree: str | None = None
    """Newick tree (or .qza) whose tips are the table's feature ids; UniFrac is computed on it."""
    tree_root: Literal["required", "midpoint", "top"] = "required"
    """A tree with three or more branches at its top has no root. required: refuse it; midpoint: root it in the middle
    of its longest path; top: take its top for the root."""
    missing_lengths: Literal["refuse", "one", "zero"] = "refuse"
    """Branches of the tree without a length. refuse: stop; one, zero: take this length for each of them."""
    missing_tips: Literal["leave_out", "refuse"] = "leave_out"
    """ASVs that are no tips of the tree. leave_out: drop them, and print how many; refuse: stop."""
    metadata: str | None = None
    """Tab-separated metadata, with sample ids in the first column."""
    target: str | None = None
    """Metadata column to predict; in the embedded study: target (a number) or half (a class)."""
    task: Literal["auto", "regression", "classification"] = "auto"
    """What the target is; auto: regression if every value is a number, or as #q2:types of the metadata declare it."""
    missing_values: str | None = None
    """Cells of the metadata that mean that nothing was measured, with commas between them: "n.d.,-999". The usual ones
    (empty, NA, n/a, not collected) are missing anyway; None and unknown are missing among numbers."""
    group: str | None = None
    """Metadata column of subjects, sites or studies; a group is never cut between splits."""
    split: Literal["grouped", "random"] = "grouped"
    """grouped: keep groups together; random: cut through groups, which leaks."""
    split_file: str | None = None
    """JSON file of the split: test_ids, validation_ids, or folds (lists of sample ids)."""
    validation_fraction: ShareBelow1 = 0.2
    """Share of the samples for validation."""
    test_fraction: ShareBelow1 = 0.0
    """Share of the samples for the test split."""
    num_folds: AtLeast0 = 0
    """Number of folds of a cross-validation; 0: use the shares instead."""
    fold: AtLeast0 = 0
    """Fold that is held out, counted from 0."""
    split_seed: AtLeast0 = 0
    """Seed of the split, and of the random choices in evaluation."""
    rarefy_depth: AtLeast0 = 0
    """Reads sampled from each sample without replacement, again at every visit in training; 0: all reads."""
    min_reads: AtLeast0 = 1
    """Samples with fewer reads are left out."""
    max_bp: AtLeast1 = 150
    """Nucleotides of an ASV that the model reads; the rest is cut."""
    distance: Literal["unweighted", "weighted", "weighted_normalized"] = "unweighted"
    """Kind of UniFrac to learn."""
    distance_from: Literal["auto", "batch", "matrix"] = "auto"
    """Compute UniFrac per micro-batch, or look it up in one matrix; auto: a matrix for up to 4096 samples without
    rarefaction."""
    demo_samples: Annotated[int, Range(4, MOST)] = 240
    """Embedded study: number of samples."""
    demo_asvs: AtLeast2 = 300
    """Embedded study: number of ASVs."""
    demo_seed: AtLeast0 = 0
    """Embedded study: seed of everything in it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """The network."""

    hidden_size: AtLeast1 = 128
    """Width of every stack."""
    num_attention_heads: AtLeast1 = 4
    """Number of heads of every attention."""
    asv_layers: AtLeast0 = 4
    """Layers over the nucleotides of an ASV."""
    sample_layers: AtLeast0 = 4
    """Layers over the ASVs of a sample."""
    encoder_layers: AtLeast0 = 4
    """Further layers before the embedding; the count head, and a target read from tokens, do not use them."""
    count_layers: AtLeast0 = 4
    """Layers of the count head."""
    target_layers: AtLeast0 = 4
    """Layers of the target head."""
    embedding_size: AtLeast1 = 128
    """Number of learned branches, or of numbers in an embedding of the Tanimoto form; the tanh form has hidden_size."""
    dropout: ShareBelow1 = 0.1
    """Dropout of every stack, as a share."""
    token_limit: AtLeast1 = 1024
    """ASVs of a sample that the model reads, the most abundant first."""
    patch_size: AtLeast1 = 1
    """Neighbouring nucleotides that share one position of the ASV encoder; 5 is some ten times faster than 1."""
    asv_chunk_size: AtLeast0 = 0
    """ASVs encoded at a time, with activations computed again in the backward pass; 0: all at once."""
    nuc_mask: ShareBelow1 = 0.15
    """Share of the nucleotides that is hidden in a masked ASV."""
    masked_asvs: Share = 1.0
    """Share of a micro-batch's distinct ASVs that are masked in training; in stage predict, masked copies beside the
    complete ASVs."""
    distance: Literal["branches", "tanimoto", "tanh"] = "branches"
    """Distance between embeddings. branches: shared learned branches; tanimoto: Tanimoto distance of any vectors; tanh:
    tanh of the Euclidean distance, as in the guide."""
    count_embedding: bool = False
    """Give the sample encoder the relative abundance of each ASV."""
    rank_embedding: bool = False
    """Give the sample encoder the rank of each ASV by abundance; without it, a sample is a set."""
    target_from: Literal["branches", "tokens"] = "branches"
    """Input of the target head. branches: the learned branches, with a linear layer; tokens: the ASVs of the sample,
    with a stack of layers (as in the guide)."""
    linear_readout: bool = True
    """Stage predict: begin with a penalised linear readout of ASVs, k-mers and the tree's branches, fitted on the
    training samples before the first step; the network learns what it leaves."""
    readout_shrinkage: NotNegative = 3.0
    """Beside the linear readout: penalty on the square of what the network adds to it; 3 leaves a quarter of what the
    training samples alone would ask for."""
    target_dropout: ShareBelow1 = 0.0
    """Share of the branches that is dropped before the target is predicted from them."""
    freeze_base: bool = False
    """Stage predict: freeze the pre-trained encoder: no gradient, no dropout, no optimiser state."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class StageSettings:
    """The stage, its losses, and the two groups of settings."""

    stage: Literal["pretrain", "predict"] = "pretrain"
    """pretrain: learn UniFrac and nucleotides, without labels; predict: learn the target, usually with --init_from a
    pre-trained run."""
    unifrac_penalty: NotNegative = 1.0
    """Weight of the UniFrac loss: mean squared error over the pairs of a micro-batch."""
    asv_penalty: NotNegative = 1.0
    """Weight of the UniFrac loss between ASVs (up to 1024 of the micro-batch), each as a sample of its own; unweighted
    UniFrac only."""
    nuc_penalty: NotNegative = 1.0
    """Weight of the nucleotide loss: mean cross-entropy over the hidden nucleotides, in nats."""
    count_penalty: NotNegative = 1.0
    """Weight of the count loss in stage predict: divergence of the relative abundances, in nats."""
    target_penalty: NotNegative = 1.0
    """Weight of the target loss: smooth L1 of the standardised target, or cross-entropy of the classes."""
    data_settings: DataSettings = DataSettings()
    model_settings: ModelSettings = ModelSettings()

    @property
    def is_frozen(self) -> bool:
        """Whether stage 1's part does not train."""
        return self.stage == "predict" and self.model_settings.freeze_base

    @property
    def wants_unifrac(self) -> bool:
        """Whether there is a UniFrac loss; a frozen base could learn nothing from it."""
        return self.unifrac_penalty > 0 and not self.is_frozen and (self.stage == "pretrain" or self.has_tree)

    @property
    def wants_asv_pairs(self) -> bool:
        """Whether there is a UniFrac loss between ASVs."""
        return self.wants_unifrac and self.asv_penalty > 0 and self.data_settings.distance == "unweighted"

    @property
    def wants_nucleotides(self) -> bool:
        """Whether there is a nucleotide loss."""
        return self.nuc_penalty > 0 and self.model_settings.nuc_mask > 0 and not self.is_frozen

    @property
    def wants_counts(self) -> bool:
        """Whether there is a count loss."""
        return self.stage == "predict" and self.count_penalty > 0

    @property
    def wants_target(self) -> bool:
        """Whether there is a target loss."""
        return self.stage == "predict" and self.target_penalty > 0

    @property
    def wants_readout(self) -> bool:
        """Whether the target begins with a linear readout."""
        return self.wants_target and self.model_settings.linear_readout

    @property
    def has_tree(self) -> bool:
        """Whether the study has a tree."""
        return self.data_settings.table is None or self.data_settings.tree is not None

    @functools.cached_property
    def source(self) -> DataSettings:
        """The data settings, with a target where the embedded study needs one."""
        if self.data_settings.table is None and self.stage == "predict" and self.data_settings.target is None:
            return dataclasses.replace(self.data_settings, target="target")
        return self.data_settings

    @property
    def reading(self) -> tuple[int, int, int]:
        """How many ASVs of a sample and letters of an ASV the model reads, and how many letters make a patch."""
        return self.model_settings.token_limit, self.source.max_bp, self.model_settings.patch_size


def check(settings: StageSettings) -> None:
    """Raise ConfigError for values that are out of range or contradict each other, before anything takes time."""
    data, model = settings.data_settings, settings.model_settings
    check_ranges(settings)
    if data.num_folds and not data.fold < data.num_folds >= 2:
        raise ConfigError(
            f"data.fold is {data.fold} of {data.num_folds}: type --data.num_folds of at least 2, and --data.fold from "
            "0 to num_folds - 1."
        )
    check_attention(model.hidden_size, model.num_attention_heads)
    losses = (settings.wants_unifrac, settings.wants_nucleotides, settings.wants_counts, settings.wants_target)
    if not any(losses):
        raise ConfigError("Every penalty is 0: there is nothing to learn. Give one of them a value above 0.")
    if settings.stage == "predict" and model.target_from == "branches" and model.distance != "branches":
        raise ConfigError(
            f"model.target_from branches needs branches, and model.distance is {model.distance}: type "
            "--model.target_from tokens."
        )
    if settings.wants_counts and (model.count_embedding or model.rank_embedding):
        given = "count" if model.count_embedding else "rank"
        raise ConfigError(
            f"model.{given}_embedding shows the model what the count loss asks of it: leave it out, or type "
            "--count_penalty 0."
        )


PENALTIES = ("unifrac_penalty", "asv_penalty", "nuc_penalty", "count_penalty", "target_penalty")


def without_effect(settings: StageSettings, changed: frozenset[str]) -> list[str]:
    """A line for each setting that the user changed and that has no effect beside the others."""
    data, model = settings.data_settings, settings.model_settings
    pretrain = settings.stage == "pretrain"
    by_file = data.split_file is not None
    shares = ("data.validation_fraction", "data.test_fraction")
    demo = tuple(f"data.demo_{name}" for name in ("samples", "asvs", "seed"))
    stage_2 = ("count_penalty", "target_penalty", "model.count_layers", "model.target_layers", "model.target_from")
    stage_2 += ("model.target_dropout", "model.freeze_base", "model.linear_readout", "model.readout_shrinkage")
    no_unifrac = "there is no UniFrac loss"
    # (names, whether they have no effect, beside what)
    idle: list[tuple[tuple[str, ...], bool, str]] = [
        (stage_2, pretrain, "stage is pretrain"),
        (("data.target", "data.task"), pretrain, "stage is pretrain, which learns without labels"),
        (demo, data.table is not None, "data.table is given"),
        (("data.tree_root", "data.missing_lengths", "data.missing_tips"), data.tree is None, "there is no data.tree"),
        (("data.task",), settings.stage == "predict" and not settings.wants_target, "target_penalty is 0"),
        (("data.split",), data.group is None, "there is no data.group"),
        (("data.split", "data.num_folds", *shares), by_file, "data.split_file decides"),
        (shares, data.num_folds > 0 and not by_file, "data.num_folds is given"),
        (("data.fold",), not data.num_folds and not by_file, "there is no data.num_folds and no data.split_file"),
        (("data.distance_from",), data.rarefy_depth > 0, "every visit of a sample is rarefied again"),
        (("data.distance", "data.distance_from"), not settings.wants_unifrac, no_unifrac),
        (("unifrac_penalty", "asv_penalty", "nuc_penalty"), settings.is_frozen, "model.freeze_base is on"),
        (("unifrac_penalty",), not pretrain and not settings.has_tree, "there is no data.tree"),
        (("asv_penalty",), not settings.is_frozen and not settings.wants_unifrac, no_unifrac),
        (("asv_penalty",), data.distance != "unweighted", f"it is for unweighted, not {data.distance}"),
        (("model.nuc_mask", "model.masked_asvs"), not settings.wants_nucleotides, "there is no nucleotide loss"),
        (("nuc_penalty",), model.nuc_mask == 0 and not settings.is_frozen, "model.nuc_mask is 0"),
        (("model.embedding_size",), model.distance == "tanh", "model.distance is tanh, which has hidden_size"),
        (("model.count_layers",), not pretrain and not settings.wants_counts, "count_penalty is 0"),
        (("model.target_layers",), not pretrain and model.target_from == "branches", "model.target_from is branches"),
        (("model.target_dropout",), not pretrain and model.target_from == "tokens", "model.target_from is tokens"),
        (("model.readout_shrinkage",), not pretrain and not model.linear_readout, "model.linear_readout is off"),
        (("model.target_layers", "model.target_from", "model.target_dropout", "model.linear_readout"),
         not pretrain and not settings.wants_target, "target_penalty is 0"),
    ]  # fmt: skip
    reasons: dict[str, str] = {}
    for names, is_idle, reason in idle:
        for name in names:
            if is_idle and name in changed:
                reasons.setdefault(name, reason)
    return [f"{name} has no effect: {reason}." for name, reason in reasons.items()]
