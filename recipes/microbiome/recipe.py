"""Microbiome: an encoder of sequences learns UniFrac and hidden nucleotides, then predicts what is known of samples."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, cast

from tyro.conf import Suppress

import runner.recipe
from recipes.microbiome.settings import StageSettings, check, without_effect
from runner.errors import ConfigError
from runner.parts.installation import require
from runner.recipe import Batch, Loss

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn

    from recipes.microbiome.collating import DistanceTable, ReadoutScores
    from recipes.microbiome.examples import Example, Examples
    from recipes.microbiome.model import MicrobiomeModel
    from recipes.microbiome.prediction import Row
    from recipes.microbiome.readout import Readout
    from recipes.microbiome.study import Study
    from recipes.microbiome.target import Fitted
    from runner.parts.figures import Figure


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe(StageSettings, runner.recipe.Recipe):
    """Settings and verbs of microbiome."""

    assets: Suppress[Path | None] = None
    """Folder of what was fitted; the runner sets it."""

    first_settings: ClassVar[Sequence[str]] = ("data.table", "data.tree", "data.metadata", "data.target", "stage")
    couples_examples: ClassVar[bool] = True
    changeable_settings: ClassVar[frozenset[str]] = frozenset(
        f"data.{name}" for name in ("table", "sequences", "tree", "metadata", "split_file", "distance_from")
    ) | {"model.asv_chunk_size"}
    memory_advice: ClassVar[str] = (
        "Lower --micro_batch_size or --model.token_limit, or set --model.asv_chunk_size 64 (or lower)."
    )

    def __post_init__(self) -> None:
        check(self)

    @staticmethod
    def presets() -> Mapping[str, Mapping[str, object]]:
        """Named settings."""
        from recipes.microbiome.presets import presets

        return presets()

    def setting_notes(self, changed: frozenset[str]) -> list[str]:
        """Settings that the user changed and that have no effect beside the others."""
        return without_effect(self, changed)

    @property
    def best_metric(self) -> str:  # type: ignore[override]
        """The loss of the target where a linear readout is to be beaten, else of everything."""
        return "target_loss" if self.wants_readout else "loss"

    @property
    def evaluates_at_start(self) -> bool:
        """The linear readout alone is the first candidate for the best checkpoint."""
        return self.wants_readout

    def note_on_start(self, init_from: str | None) -> str:
        """What predicts, and which encoder the embeddings are from."""
        if not self.wants_readout:
            return ""
        found = "No evaluation after step 0 was better, so"
        if init_from is not None:
            return (
                f"{found} the weights are those of {init_from}, with the linear readout of this training beside them."
            )
        return (
            f"{found} the linear readout alone predicts, and the embeddings are those of an encoder that learned "
            "nothing. For embeddings, train with --stage pretrain and begin with --init_from RUN, or type --final last."
        )

    # Data ---------------------------------------------------------------------------------------------

    @property
    def study(self) -> Study:
        """What the settings name; read once."""
        self._check_packages()
        from recipes.microbiome.study import read_study

        if self.wants_unifrac and not self.has_tree:
            raise ConfigError(
                "The UniFrac loss was asked for without a tree: type --data.tree tree.nwk, or --unifrac_penalty 0."
            )
        if self.wants_target and self.source.target is None:
            raise ConfigError(
                "Stage predict has no target: type --data.metadata metadata.tsv --data.target COLUMN, or "
                "--target_penalty 0."
            )
        return read_study(self.source)

    def _check_packages(self) -> None:
        require(self.packages(), "The recipe microbiome", "microbiome")

    @functools.cached_property
    def splits(self) -> dict[str, np.ndarray]:
        """Rows of the study by split."""
        from recipes.microbiome.splits import partition

        return partition(self.study, self.source)

    def metrics(self) -> list[str]:
        """What `score` returns under these settings."""
        names = ["unifrac_r2", "unifrac_mse", "unifrac_spearman", "mantel_r", "mantel_p"] if self.wants_unifrac else []
        if self.wants_nucleotides:
            of_nucleotides = ["nucleotide_accuracy", "nucleotide_majority"]
            names += [*of_nucleotides, *(f"{name}/unseen" for name in of_nucleotides)]
        if self.wants_target:
            of_target = ["target_loss", "target_mae", "target_r2", "target_accuracy", "target_macro_f1", "target_auroc"]
            names += [*of_target, *(f"{name}/by_group" for name in of_target if name != "target_loss")]
            names += [f"{name}/readout" for name in of_target if self.wants_readout]
        return names

    def packages(self) -> dict[str, str | None]:
        """What reads tables and trees, and what scores them."""
        source, names = self.data_settings, ["scipy"]
        if source.table is not None:
            names += ["biom", "h5py"]
        if source.tree is not None:
            names.append("skbio")
        if self.wants_target:
            names.append("sklearn")
        return dict.fromkeys(names, "microbiome")

    def data_files(self, split: str) -> list[Path]:
        """The files of the study; its samples are divided into the splits."""
        source = self.source
        given = (source.table, source.sequences, source.tree, source.metadata, source.split_file)
        return [Path(file) for file in given if file is not None]

    def prepare(self, folder: Path) -> Recipe:
        """Fit the normalisation and the column majority on the training samples, or take what is there.

        What was fitted on other files with the same names is fitted anew, except where a model depends on it.
        """
        self._check_packages()
        bound = dataclasses.replace(self, assets=folder)
        if bound._found is not None and bound._has_model:
            return bound
        study = bound.study
        from recipes.microbiome.fitting import READOUT, content_of, fit_linear, fit_study, write_fitted

        content = content_of(study, bound.splits["train"])
        has_readout = not bound.wants_readout or (folder / READOUT).is_file()
        if bound._found is not None and bound._found[1] in (content, None) and has_readout:
            return bound
        fitted = fit_study(bound, study, bound.splits)
        if bound.wants_readout:
            fit_linear(bound, study, bound.splits["train"], fitted).save(folder / READOUT)
        write_fitted(folder, bound, fitted, content)
        return dataclasses.replace(self, assets=folder)

    def prepare_trained(self, folder: Path) -> Recipe:
        """Take what was fitted with these settings, whatever the files hold now: the weights depend on it."""
        self._check_packages()
        bound = dataclasses.replace(self, assets=folder)
        return bound if bound._found is not None else self.prepare(folder)

    @functools.cached_property
    def _found(self) -> tuple[Fitted, str | None] | None:
        """What was fitted with these settings, and a hash of the data; None where nothing was."""
        from recipes.microbiome.fitting import read_fitted

        return read_fitted(self.assets, self)

    @property
    def _has_model(self) -> bool:
        """Whether a trained model, or a run that goes on, depends on what is fitted."""
        if self.assets is None:
            return False
        folders = (self.assets, self.assets.parent)
        is_trained = any((folder / "model.safetensors").is_file() for folder in folders)
        return is_trained or any(self.assets.parent.glob("checkpoint-*"))

    @functools.cached_property
    def fitted(self) -> Fitted:
        """What `prepare` fitted."""
        from recipes.microbiome.fitting import fit_study

        return self._found[0] if self._found is not None else fit_study(self, self.study, self.splits)

    def data(self, split: str) -> Examples:
        """The samples of a split."""
        import numpy as np

        from recipes.microbiome.examples import Examples

        rows = self.splits.get(split, np.zeros(0, int))
        return Examples(self.study, rows, self.source.rarefy_depth, split == "train", self.source.split_seed)

    @functools.cached_property
    def distance_table(self) -> DistanceTable | None:
        """The distances between the training samples, where one matrix is to serve them."""
        from recipes.microbiome.collating import training_distances

        return training_distances(self, self.study, self.splits["train"]) if self.wants_unifrac else None

    def collate(self, examples: list[Example]) -> Batch:
        """The distinct ASVs of the examples, what each example has of them, and the losses' targets."""
        from recipes.microbiome.collating import collate

        return collate(self, self.study, self.fitted, examples, self.distance_table, self.readout_scores)

    @functools.cached_property
    def readout(self) -> Readout | None:
        """The linear readout, where there is one; weights of an older version have none."""
        from recipes.microbiome.fitting import READOUT, fit_linear
        from recipes.microbiome.readout import Readout

        file = self.assets / READOUT if self.assets is not None else None
        if not self.wants_readout or (file is not None and not file.is_file()):
            return None
        return Readout.load(file) if file else fit_linear(self, self.study, self.splits["train"], self.fitted)

    @functools.cached_property
    def readout_scores(self) -> ReadoutScores | None:
        """What the linear readout says of every sample of the study, in training and in evaluation."""
        if self.readout is None:
            return None
        scores = self.readout.scores(self.study)
        training = scores.copy()
        for row in self.splits["train"]:
            training[row] = self.readout.held_out.get(self.study.sample_ids[row], scores[row])
        return training, scores

    # Model --------------------------------------------------------------------------------------------

    def model(self) -> MicrobiomeModel:
        """The stacks of this stage; parameters that no loss reaches do not train."""
        from recipes.microbiome.fitting import standardise
        from recipes.microbiome.model import MicrobiomeModel, Shape

        sizes = {
            field.name: getattr(self.model_settings, field.name)
            for field in dataclasses.fields(self.model_settings)
            if field.name not in ("nuc_mask", "masked_asvs", "freeze_base", "readout_shrinkage")
        }
        outputs = (len(self.fitted.classes) or 1) if self.wants_target else 0
        model = MicrobiomeModel(
            Shape(**sizes, max_bp=self.source.max_bp, num_outputs=outputs, has_count_head=self.wants_counts)
        )
        model.trained_letters.fill_(self.fitted.letters)
        model.leave_out(nucleotides=not self.wants_nucleotides, embeddings=not self.wants_unifrac)
        if self.is_frozen:
            model.freeze_base()
        # Where a trained model's weights will follow, its data need not be here.
        places = (self.assets, self.assets.parent) if self.assets is not None else ()
        if places and not any((place / "model.safetensors").is_file() for place in places):
            standardise(self, self.study, self.splits["train"], model)
        return model

    def inherit(self, model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
        """Take stage 1's encoder, for which the heads are fresh; or all of a stage 2 of the same target."""
        from recipes.microbiome.fitting import has_same_target, standardise

        network = cast("MicrobiomeModel", model)
        takes_heads = has_same_target(self.assets, self, self.fitted)
        if not network.inherit(tensors, self.fitted.letters, takes_heads):
            standardise(self, self.study, self.splits["train"], network)

    def loss(self, model: nn.Module, batch: Batch) -> Loss:
        """The weighted losses of the micro-batch, each a mean over what it scores, times the number of samples."""
        from recipes.microbiome.losses import total_loss

        return total_loss(self, bool(self.fitted.classes), cast("MicrobiomeModel", model), batch)

    def end_step(self, model: nn.Module, statistics: Tensor) -> None:
        """Keep the target's features standardised while the encoder moves them."""
        cast("MicrobiomeModel", model).follow_branches(statistics)

    # Use ----------------------------------------------------------------------------------------------

    def predict(self, model: nn.Module, batch: Batch) -> list[Row]:
        """Per sample: embedding, prediction in the target's unit, and how many hidden nucleotides were found."""
        from recipes.microbiome.prediction import predicted_rows

        return predicted_rows(self, self.study, self.fitted, cast("MicrobiomeModel", model), batch)

    def score(self, rows: list[Row]) -> dict[str, float]:
        """UniFrac over all pairs of the split, nucleotides beside the column majority, and the target."""
        from recipes.microbiome.prediction import compare_distances
        from recipes.microbiome.score import distance_scores, nucleotide_scores, target_losses, target_scores

        scores: dict[str, float] = {}
        if self.wants_unifrac:
            scores |= distance_scores(*compare_distances(self, self.study, rows))
        if self.wants_nucleotides:
            seen = set(self.study.counts[self.splits["train"]].indices.tolist())
            found = {asv: counts for row in rows for asv, *counts in row.get("nucleotides", ())}
            scores |= nucleotide_scores(found, seen)
        if self.wants_target and rows:
            scores |= target_losses(rows, self.fitted)
            scores |= target_scores(rows, not self.fitted.classes, "group" in rows[0])
        return scores

    def figures(self, rows: list[Row]) -> list[Figure]:
        """UniFrac against the distance of embeddings; the target predicted against true, or its classes."""
        from recipes.microbiome.prediction import compare_distances
        from recipes.microbiome.score import distance_figure, target_figures
        from runner.parts.figures import some

        # Each pair of samples is a point, and UniFrac of all pairs would take as long as the score.
        few = some(rows, 100)
        found: list[Figure] = []
        if self.wants_unifrac and len(few) > 2:
            found.append(distance_figure(*compare_distances(self, self.study, few)))
        if self.wants_target and rows:
            found += target_figures(rows, self.fitted.classes)
        return found

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Request:
        """A study to describe; without a table, the one that the model was trained on."""

        table: str = ""
        """Feature table (.biom, .qza, or text with tabs) of the samples; empty: those of the training."""
        sequences: str = ""
        """FASTA file (or .qza) of its ASVs; empty: the feature ids are the sequences."""
        tree: str = ""
        """Newick tree (or .qza), to compare with UniFrac."""
        metadata: str = ""
        """Tab-separated metadata, to compare with what is known, and for colours."""
        color_by: str = ""
        """Metadata column that colours the embedding; empty: the target."""
        output: Path = Path("predictions")
        """Folder for predictions.tsv, embeddings.tsv, ordination.txt and report.html."""
        renamed_settings: ClassVar[Mapping[str, str]] = {"into": "output"}

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Files:
        """A cross-validation of a target: simple models, and trainings if asked for, in the same folds.

        The study is named as in a training: --data.table, --data.tree, --data.metadata, --data.target.
        """

        folds: int = 5
        """Number of folds; with --data.split_file, its folds are used."""
        group: str | None = None
        """Metadata column of subjects or sites: a group is held out in one fold. The same as --data.group."""
        max_steps: int = 0
        """Steps of a training of stage 2 in each fold; 0: only the simple models and the linear readout."""
        preset: str = "small"
        """Preset of these trainings. Their encoder is frozen."""
        init_from: str | None = None
        """Pre-trained run that these trainings begin from; none: a random encoder."""
        runs: Path = Path("runs/cross-validation")
        """Folder for these trainings; those that are finished are not repeated."""
        output: str | None = None
        """File for the predictions, one JSON object per sample and model."""

    def score_files(self, files: Files) -> tuple[str, list[dict[str, object]]]:
        """Cross-validate: a table of models, and a row per sample and model."""
        from recipes.microbiome.cross_validation import compare, fold_runs
        from recipes.microbiome.splits import number_of_folds

        if files.folds < 2:
            raise ConfigError(f"folds is {files.folds}: type --folds with a number of at least 2.")
        data = dataclasses.replace(self.source, group=files.group or self.source.group, num_folds=files.folds)
        if data.table is None and data.target is None:
            data = dataclasses.replace(data, target="target")
        recipe = dataclasses.replace(self, stage="predict", data_settings=data, count_penalty=0.0)
        study = recipe.study
        trains = (
            fold_runs(data, files.preset, files.max_steps, files.init_from, files.runs) if files.max_steps else None
        )
        comparison = compare(recipe, study, number_of_folds(data), trains)
        rows = [{"model": model, **row} for model, rows in comparison.rows.items() for row in rows]
        return comparison.text(), [{key: row[key] for key in row if key != "embedding"} for row in rows]

    def answer(self, model: nn.Module, request: Request) -> str:
        """Write the tables and figures of a study, and say how well they agree with what is known."""
        from recipes.microbiome.answering import write
        from recipes.microbiome.study import open_study

        network = cast("MicrobiomeModel", model)
        if request.table:
            files = dataclasses.replace(
                self.source,
                **{name: getattr(request, name) or None for name in ("table", "sequences", "tree", "metadata")},
                target=None,
                group=None,
                min_reads=1,
            )
            study = open_study(files)
            parts: list[str] = []
        else:
            study = self.study
            parts = [""] * len(study.sample_ids)
            for split, rows in self.splits.items():
                for row in rows:
                    parts[row] = split
        if request.color_by and request.color_by not in study.metadata:
            raise ConfigError(
                f"There is no metadata column {request.color_by!r}: type --color_by with one of "
                f"{', '.join(list(study.metadata)[:12]) or 'those in --metadata'}."
            )
        longest = max(map(len, study.sequences))
        if min(longest, self.source.max_bp) > int(network.trained_letters):
            raise ConfigError(
                f"These ASVs have {longest} nucleotides, the model learned from {int(network.trained_letters)}.\n"
                "Trim them to that length, or train with longer ones."
            )
        return write(network, self, study, self.fitted, self.readout, request.output, request.color_by or None, parts)
