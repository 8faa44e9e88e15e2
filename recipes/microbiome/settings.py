"""The settings of microbiome, by group: data, model."""

from __future__ import annotations

import dataclasses
from typing import Literal


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataSettings:
    """The samples, and how they are cut into splits."""

    table: str | None = None
    """BIOM table of reads (.biom or QIIME 2 .qza); none: the embedded study, made from a seed."""
    sequences: str | None = None
    """FASTA file (or .qza) of the ASVs; none: the table's feature ids are the sequences."""
    tree: str | None = None
    """Newick tree (or .qza) whose tips are the table's feature ids; UniFrac is measured on it."""
    metadata: str | None = None
    """Tab-separated metadata, sample ids in the first column."""
    target: str | None = None
    """Metadata column to predict; of the embedded study: target (a number) or half (a class)."""
    task: Literal["auto", "regression", "classification"] = "auto"
    """What the target is; auto: a regression where every value is a number."""
    group: str | None = None
    """Metadata column of subjects or sites: a group is never cut between splits."""
    split: Literal["grouped", "random"] = "grouped"
    """Whether groups stay together; random cuts through them, which leaks."""
    split_file: str | None = None
    """JSON file of the split: test_ids, validation_ids, or folds (lists of sample ids)."""
    validation_fraction: float = 0.2
    """Share of the samples that training is judged by."""
    test_fraction: float = 0.0
    """Share of the samples that is kept for the end."""
    num_folds: int = 0
    """Folds of a cross-validation; 0: shares instead."""
    fold: int = 0
    """Which fold is held out, counted from 0."""
    split_seed: int = 0
    """Seed of the split, and of what is drawn in evaluation."""
    rarefy_depth: int = 0
    """Reads drawn from each sample without replacement, anew at every visit in training; 0: all reads."""
    min_reads: int = 1
    """Samples with fewer reads are left out."""
    max_bp: int = 150
    """Nucleotides of an ASV that the model reads; the rest is cut."""
    distance: Literal["unweighted", "weighted", "weighted_normalized"] = "unweighted"
    """Kind of UniFrac to learn."""
    distance_from: Literal["auto", "batch", "matrix"] = "auto"
    """UniFrac per micro-batch, or looked up in one matrix; auto: a matrix up to 4096 samples without rarefaction."""
    demo_samples: int = 240
    """Embedded study: samples."""
    demo_asvs: int = 300
    """Embedded study: ASVs."""
    demo_seed: int = 0
    """Embedded study: seed of everything in it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """The network."""

    hidden_size: int = 128
    """Width of every stack."""
    num_attention_heads: int = 4
    """Heads of every attention."""
    asv_layers: int = 4
    """Layers over the nucleotides of an ASV."""
    sample_layers: int = 4
    """Layers over the ASVs of a sample."""
    encoder_layers: int = 4
    """Further layers towards the embedding; the count head and a target read off tokens do not see them."""
    count_layers: int = 4
    """Layers of the count head."""
    target_layers: int = 4
    """Layers of the target head."""
    embedding_size: int = 128
    """Learned branches, or numbers in an embedding of the Tanimoto form; the tanh form has hidden_size."""
    dropout: float = 0.1
    """Share dropped in every stack."""
    token_limit: int = 1024
    """ASVs of a sample that the model reads, the most abundant first."""
    patch_size: int = 1
    """Neighbouring nucleotides that share one place of the ASV encoder; 5 is some ten times faster than 1."""
    asv_chunk_size: int = 0
    """ASVs encoded at a time, their activations computed again in the backward pass; 0: all at once."""
    nuc_mask: float = 0.15
    """Share of the nucleotides hidden in an ASV that is masked."""
    masked_asvs: float = 1.0
    """Share of a micro-batch's distinct ASVs that are masked in training; in stage predict, beside the whole ones."""
    distance: Literal["branches", "tanimoto", "tanh"] = "branches"
    """Distance of embeddings: shared learned branches; tanimoto, of any vectors; tanh of Euclid's, the guide's."""
    count_embedding: bool = False
    """Tell the sample encoder the relative abundance of each ASV."""
    rank_embedding: bool = False
    """Tell the sample encoder the rank of each ASV by abundance; without it a sample is a set."""
    target_from: Literal["branches", "tokens"] = "branches"
    """What a target is read off: learned branches, by a line, or the sample, by a stack of its own (the guide's)."""
    target_dropout: float = 0.0
    """Share of the branches that are dropped before the target is read off them."""
    freeze_base: bool = False
    """Stage predict: leave the pre-trained encoder as it is, without gradient, dropout and optimiser state."""
