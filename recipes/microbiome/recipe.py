"""Microbiome: an encoder of sequences learns UniFrac and hidden nucleotides, then predicts what is known of samples."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from tyro.conf import Suppress

import runner.recipe
from recipes.microbiome.settings import DataSettings, ModelSettings
from runner.errors import ConfigError
from runner.recipe import Batch, Loss

if TYPE_CHECKING:
    from recipes.microbiome.data import Example, Examples, Fitted, Study


# Pairs of ASVs grow as their square: this many make half a million.
MOST_ASVS_ALONE = 1024


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe(runner.recipe.Recipe):
    """Settings and verbs of microbiome."""

    stage: Literal["pretrain", "predict"] = "pretrain"
    """pretrain: UniFrac and nucleotides, without labels; predict: the target, mostly with --init_from a pretraining."""
    unifrac_penalty: float = 1.0
    """Weight of the UniFrac loss: mean squared error over the pairs of a micro-batch."""
    asv_penalty: float = 1.0
    """Weight of that loss over (up to 1024) ASVs of the micro-batch, each as a sample of its own; only unweighted."""
    nuc_penalty: float = 1.0
    """Weight of the nucleotide loss: mean cross-entropy over the hidden nucleotides, in nats."""
    count_penalty: float = 1.0
    """Weight of the count loss of stage predict: divergence of the relative abundances, in nats."""
    target_penalty: float = 1.0
    """Weight of the target loss: smooth L1 of the standardised target, or cross-entropy of the classes."""
    data_settings: DataSettings = DataSettings()
    model_settings: ModelSettings = ModelSettings()
    assets: Suppress[Path | None] = None
    """Folder of what was fitted; the runner's to set."""

    couples_examples: ClassVar[bool] = True
    changeable_settings: ClassVar[frozenset[str]] = frozenset(
        f"data.{name}" for name in ("table", "sequences", "tree", "metadata", "split_file", "distance_from")
    ) | {"model.asv_chunk_size"}
    memory_advice: ClassVar[str] = (
        "Lower --micro_batch_size or --model.token_limit, or set --model.asv_chunk_size 64 (or lower)."
    )

    def __post_init__(self) -> None:
        for name in ("unifrac_penalty", "asv_penalty", "nuc_penalty", "count_penalty", "target_penalty"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"{name} is {getattr(self, name)}: type --{name} with a number of at least 0.")
        sizes = self.model_settings
        if sizes.hidden_size % sizes.num_attention_heads:
            raise ConfigError(
                f"model.hidden_size is {sizes.hidden_size}, which {sizes.num_attention_heads} heads do not divide: "
                "change one of them."
            )
        if self.stage == "predict" and sizes.target_from == "branches" and sizes.distance != "branches":
            raise ConfigError(
                f"model.target_from branches needs branches, and model.distance is {sizes.distance}: type "
                "--model.target_from tokens."
            )
        if self.wants_counts and (sizes.count_embedding or sizes.rank_embedding):
            given = "count" if sizes.count_embedding else "rank"
            raise ConfigError(
                f"model.{given}_embedding shows the model what the count loss asks of it: leave it out, or type "
                "--count_penalty 0."
            )

    @staticmethod
    def presets() -> Mapping[str, Mapping[str, Any]]:
        """Named settings."""
        from recipes.microbiome.presets import presets

        return presets()

    # Which losses there are ---------------------------------------------------------------------------

    @property
    def is_frozen(self) -> bool:
        """Whether stage 1's part is left as it is."""
        return self.stage == "predict" and self.model_settings.freeze_base

    @property
    def wants_unifrac(self) -> bool:
        """Whether the UniFrac loss is asked for; a frozen base could learn nothing from it."""
        return self.unifrac_penalty > 0 and not self.is_frozen and (self.stage == "pretrain" or self._has_tree)

    @property
    def wants_nucleotides(self) -> bool:
        """Whether the nucleotide loss is asked for."""
        return self.nuc_penalty > 0 and self.model_settings.nuc_mask > 0 and not self.is_frozen

    @property
    def wants_counts(self) -> bool:
        """Whether the count loss is asked for."""
        return self.stage == "predict" and self.count_penalty > 0

    @property
    def wants_target(self) -> bool:
        """Whether the target loss is asked for."""
        return self.stage == "predict" and self.target_penalty > 0

    @property
    def _has_tree(self) -> bool:
        return self.data_settings.table is None or self.data_settings.tree is not None

    @functools.cached_property
    def source(self) -> DataSettings:
        """The data settings, with the embedded study's own target where it is the study."""
        if self.data_settings.table is None and self.stage == "predict" and self.data_settings.target is None:
            return dataclasses.replace(self.data_settings, target="target")
        return self.data_settings

    # Data ---------------------------------------------------------------------------------------------

    @property
    def study(self) -> Study:
        """What the settings name; read once."""
        from recipes.microbiome.data import read_study

        if self.wants_unifrac and not self._has_tree:
            raise ConfigError(
                "The UniFrac loss was asked for without a tree: type --data.tree tree.nwk, or --unifrac_penalty 0."
            )
        if self.wants_target and self.source.target is None:
            raise ConfigError(
                "Stage predict has no target: type --data.metadata metadata.tsv --data.target COLUMN, or "
                "--target_penalty 0."
            )
        return read_study(self.source)

    @functools.cached_property
    def splits(self) -> dict[str, Any]:
        """Rows of the study by split."""
        from recipes.microbiome.splits import partition

        return partition(self.study, self.source)

    def data_files(self, split: str) -> list[Path]:
        """The files of the study; its samples are divided into the splits."""
        source = self.source
        given = (source.table, source.sequences, source.tree, source.metadata, source.split_file)
        return [Path(file) for file in given if file is not None]

    def prepare(self, folder: Path) -> Recipe:
        """Fit the normalisation and the column majority on the training samples, or take what is there."""
        bound = dataclasses.replace(self, assets=folder)
        # Another stage's file can be there as well, inherited with its weights; it is not ours.
        if _read_fitted(folder, self.fingerprint) is None:
            fitted = bound._fit()
            content = {"settings": self.fingerprint, "fitted": fitted.to_json()}
            (folder / "microbiome.json").write_text(json.dumps(content, indent=1), encoding="utf-8")
        return bound

    @property
    def fingerprint(self) -> dict[str, Any]:
        """The settings that what is fitted depends on."""
        return {"stage": self.stage, **dataclasses.asdict(self.source)}

    @functools.cached_property
    def fitted(self) -> Fitted:
        """What `prepare` fitted."""
        found = _read_fitted(self.assets, self.fingerprint) if self.assets is not None else None
        return found or self._fit()

    def _fit(self) -> Fitted:
        from recipes.microbiome.data import fit, unread
        from recipes.microbiome.splits import leaking_groups

        study, splits = self.study, self.splits
        for note in [*study.notes, *unread(study, self.source.max_bp, self.model_settings.token_limit)]:
            print(f"data: {note}", flush=True)
        if self.stage == "predict" and self.unifrac_penalty > 0 and not self.is_frozen and not self._has_tree:
            print("note: without --data.tree this stage learns nothing from UniFrac.", flush=True)
        leaking = leaking_groups(study, self.source, splits)
        if leaking:
            print(
                f"warning: {leaking} groups ({self.source.group}) have samples both in training and held out, so the "
                "scores flatter; --data.split grouped without a split_file keeps them together.",
                flush=True,
            )
        return fit(study, self.source, splits["train"], self.wants_target)

    def data(self, split: str) -> Examples:
        """The samples of a split."""
        import numpy as np

        from recipes.microbiome.data import Examples

        rows = self.splits.get(split, np.zeros(0, int))
        return Examples(self.study, rows, self.source.rarefy_depth, split == "train", self.source.split_seed)

    @functools.cached_property
    def distance_matrix(self) -> tuple[Any, Any] | None:
        """(place of each study row, distances between the training samples), where one matrix is to serve them.

        What is held out is not in it.
        """
        import numpy as np

        from recipes.microbiome.unifrac import distances

        rows = self.splits["train"]
        auto = self.source.distance_from == "auto" and len(rows) <= 4096
        if self.source.rarefy_depth or not (auto or self.source.distance_from == "matrix"):
            return None
        assert self.study.phylogeny is not None
        place = np.full(len(self.study.sample_ids), -1)
        place[rows] = np.arange(len(rows))
        matrix = distances(self.study.counts[rows], self.study.phylogeny, self.source.distance)
        return place, matrix.astype(np.float32)

    def batch_distances(self, examples: list[Example]) -> Any:
        """(examples, examples): UniFrac of the very reads that the examples hold, float32."""
        import numpy as np

        from recipes.microbiome.data import counts_of
        from recipes.microbiome.unifrac import distances

        if examples[0].scored is None and self.distance_matrix is not None:
            place, matrix = self.distance_matrix
            rows = place[[example.sample for example in examples]]
            return matrix[np.ix_(rows, rows)]
        assert self.study.phylogeny is not None
        table = counts_of(examples, self.study.counts.shape[1])
        return distances(table, self.study.phylogeny, self.source.distance).astype(np.float32)

    def collate(self, examples: list[Example]) -> Batch:
        """The distinct ASVs of the examples, what each example has of them, and the losses' targets."""
        import numpy as np
        import torch

        from recipes.microbiome.data import model_inputs, target_values

        distinct, inputs = model_inputs(self.study, examples, *self.reading)
        tensors = {name: torch.from_numpy(values) for name, values in inputs.items()}
        tokens, training = inputs["tokens"], examples[0].scored is None
        if self.wants_nucleotides:
            mask = self._mask(tokens, distinct, training)
            if self.stage == "predict":
                # What the heads read has no holes, in training as in use: ASVs to be filled in are encoded beside it.
                holes = mask.any(1)
                tensors["tokens"] = torch.from_numpy(np.concatenate([tokens, tokens[holes]]))
                mask = np.concatenate([np.zeros_like(mask), mask[holes]])
            tensors["mask"] = torch.from_numpy(mask)
        if self.wants_unifrac:
            tensors["distances"] = torch.from_numpy(self.batch_distances(examples))
            if self.asv_penalty and self.source.distance == "unweighted":
                from recipes.microbiome.unifrac import tip_distances

                assert self.study.phylogeny is not None
                random = np.random.default_rng(np.random.randint(2**31) if training else self.source.split_seed)
                alone = np.sort(random.permutation(len(distinct))[:MOST_ASVS_ALONE])
                apart = tip_distances(self.study.phylogeny, distinct[alone])
                tensors["alone"] = torch.from_numpy(alone)
                tensors["asv_distances"] = torch.from_numpy(apart.astype(np.float32))
        if self.wants_target:
            values = target_values(self.study, self.source, self.fitted)
            assert values is not None
            own = values[[example.sample for example in examples]]
            if not self.fitted.classes:
                own = (own - self.fitted.mean) / self.fitted.deviation
            tensors["target"] = torch.from_numpy(own.astype(np.int64 if self.fitted.classes else np.float32))
        return Batch(tensors, weight=len(examples), tokens=int((tokens > 0).sum()), extra={"examples": examples})

    @property
    def reading(self) -> tuple[int, int, int]:
        """How much of a sample and of an ASV the model reads, and in what patches."""
        return self.model_settings.token_limit, self.source.max_bp, self.model_settings.patch_size

    def _mask(self, tokens: Any, asvs: Any, training: bool) -> Any:
        """What is hidden: by the runner's seed in training, by the ASV in evaluation, so that it stays the same."""
        import numpy as np

        from recipes.microbiome.data import mask_letters

        rate = self.model_settings.nuc_mask
        if not training:
            own = [mask_letters(row[None], rate, np.random.default_rng((self.source.split_seed, int(asv))))
                   for row, asv in zip(tokens, asvs, strict=True)]  # fmt: skip
            return np.concatenate(own) if own else np.zeros(tokens.shape, bool)
        random = np.random.default_rng(np.random.randint(2**31))
        mask = mask_letters(tokens, rate, random)
        mask[random.random(len(tokens)) >= self.model_settings.masked_asvs] = False
        return mask

    # Model --------------------------------------------------------------------------------------------

    def model(self) -> Any:
        """The stacks of this stage; what no loss reaches does not train."""
        from recipes.microbiome.model import MicrobiomeModel, Shape

        sizes = {
            field.name: getattr(self.model_settings, field.name)
            for field in dataclasses.fields(self.model_settings)
            if field.name not in ("nuc_mask", "masked_asvs", "freeze_base")
        }
        outputs = 0
        if self.wants_target:
            outputs = len(self.fitted.classes) or 1
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
            self._standardise(model)
        return model

    def inherit(self, model: Any, tensors: dict[str, Any]) -> None:
        """Take stage 1's encoder, for which the heads are fresh; or all of another stage 2, to go on with it."""
        if not model.inherit(tensors, self.fitted.letters):
            self._standardise(model)

    def _standardise(self, model: Any) -> None:
        """Fit the scale of what the target is read off on (up to 512) training samples, as evaluation sees them."""
        import numpy as np
        import torch

        from recipes.microbiome.answering import batches
        from recipes.microbiome.data import Examples

        if not model.reads_branches:
            return
        rows = np.random.default_rng(self.source.split_seed).permutation(self.splits["train"])[:512]
        examples = Examples(self.study, rows, self.source.rarefy_depth, False, self.source.split_seed)
        training = model.training
        model.eval()
        with torch.no_grad():
            outputs = [model(*given, wants_embeddings=False) for given in batches(self, self.study, examples)]
        model.standardise(torch.cat([output.branches for output in outputs]))
        model.train(training)

    def loss(self, model: Any, batch: Batch) -> Loss:
        """The weighted losses of the micro-batch, each a mean over what it scores, times the number of samples."""
        import torch
        import torch.nn.functional as F

        from recipes.microbiome.model import embedding_distances, in_full

        size = len(batch["asvs"])
        output = model(
            batch["tokens"],
            batch.tensors.get("mask"),
            batch["asvs"],
            batch["is_there"],
            batch["abundance"],
            wants_embeddings=self.wants_unifrac,
            alone=batch.tensors.get("alone"),
        )
        losses: dict[str, Any] = {}
        logs: dict[str, Any] = {}
        with torch.autocast(batch["asvs"].device.type, enabled=False):
            if self.wants_unifrac:
                assert output.embeddings is not None
                predicted = embedding_distances(output.embeddings, output.lengths, output.scale)
                upper = torch.triu_indices(size, size, 1, device=predicted.device)
                errors = (predicted - batch["distances"])[upper[0], upper[1]].square()
                losses["unifrac"] = self.unifrac_penalty * errors.sum() / max(1, len(errors))
                # A sample alone has no pair: that is no loss of nothing, but none.
                logs["unifrac_loss"] = errors.detach().mean() if len(errors) else torch.nan
                if output.asv_embeddings is not None:
                    predicted = embedding_distances(output.asv_embeddings, output.asv_lengths, output.scale)
                    upper = torch.triu_indices(len(predicted), len(predicted), 1, device=predicted.device)
                    errors = (predicted - batch["asv_distances"])[upper[0], upper[1]].square()
                    losses["asv"] = self.asv_penalty * errors.sum() / max(1, len(errors))
                    logs["asv_loss"] = errors.detach().mean() if len(errors) else torch.nan
            if self.wants_nucleotides:
                hidden = batch["tokens"][batch["mask"]].long() - 1
                guesses = in_full(output.nucleotides)
                losses["nucleotide"] = self.nuc_penalty * F.cross_entropy(guesses, hidden, reduction="sum")
                losses["nucleotide"] = losses["nucleotide"] / max(1, len(hidden))
                if len(hidden):
                    logs["nucleotide_accuracy"] = (guesses.argmax(1) == hidden).float().mean()
                    logs["nucleotide_loss"] = losses["nucleotide"].detach() / self.nuc_penalty
                else:
                    logs |= {"nucleotide_accuracy": torch.nan, "nucleotide_loss": torch.nan}
            if self.wants_counts:
                logits = output.counts.masked_fill(~batch["is_there"], -1e4).log_softmax(1)
                shares = batch["abundance"] / batch["abundance"].sum(1, keepdim=True)
                divergence = (torch.xlogy(shares, shares) - shares * logits).sum(1).mean()
                losses["count"] = self.count_penalty * divergence
                logs["count_loss"] = divergence.detach()
            if self.wants_target:
                losses["target"] = self.target_penalty * self._target_loss(output.target, batch["target"])
                logs["target_loss"] = losses["target"].detach() / self.target_penalty
            if not losses:
                raise ConfigError("Every penalty is 0: there is nothing to learn. Give one of them a value above 0.")
            total = torch.stack(list(losses.values())).sum()
        return Loss(total * size, logs=logs)

    def _target_loss(self, guess: Any, target: Any) -> Any:
        import torch.nn.functional as F

        if self.fitted.classes:
            # A class that training has not seen cannot be scored by the loss; the metrics count it as wrong.
            known = target >= 0
            total = F.cross_entropy(guess, target.clamp(min=0), reduction="none")
            return (total * known).sum() / known.sum().clamp(min=1)
        return F.smooth_l1_loss(guess.squeeze(1), target)

    # Use ----------------------------------------------------------------------------------------------

    def predict(self, model: Any, batch: Batch) -> list[Any]:
        """Per sample: embedding, prediction in the target's unit, and how many hidden nucleotides were found."""
        import numpy as np
        import torch

        from recipes.microbiome.data import patched

        examples: list[Example] = batch.extra["examples"]
        device = batch["asvs"].device
        whole = batch["tokens"][: int(batch["asvs"].max()) + 1]
        output = model(whole, None, batch["asvs"], batch["is_there"], batch["abundance"])
        rows: list[dict[str, Any]] = []
        for number, example in enumerate(examples):
            row: dict[str, Any] = {"sample": self.study.sample_ids[example.sample], "row": example.sample}
            row["embedding"] = output.embeddings[number].float().tolist()
            if output.lengths is not None:
                row["length"] = output.lengths[number].item()
            if self.source.group is not None and self.source.group in self.study.metadata:
                row["group"] = self.study.metadata[self.source.group][example.sample]
            rows.append(row)
        if self.wants_target:
            from recipes.microbiome.data import target_values

            values = target_values(self.study, self.source, self.fitted)
            if self.fitted.classes:
                guesses = output.target.softmax(1).tolist()
            else:
                guesses = (output.target.squeeze(1) * self.fitted.deviation + self.fitted.mean).tolist()
            for row, guess in zip(rows, guesses, strict=True):
                row["predicted"] = guess
                if values is not None:
                    row["target"] = float(values[row["row"]])
        scored = [example.scored for example in examples if example.scored is not None and len(example.scored)]
        if self.wants_nucleotides and scored:
            asvs = np.concatenate(scored)
            tokens = patched(self.study, asvs, *self.reading[1:])
            mask = self._mask(tokens, asvs, training=False)
            _, guesses = model.asv_encoder(torch.from_numpy(tokens).to(device), torch.from_numpy(mask).to(device))
            majority = np.broadcast_to(_padded(self.fitted.majority, tokens.shape[1]), tokens.shape)
            found = np.zeros(tokens.shape, bool)
            found[mask] = guesses.argmax(1).cpu().numpy() + 1 == tokens[mask]
            by_majority = mask & (majority == tokens)
            counts = np.stack([asvs, mask.sum(1), found.sum(1), by_majority.sum(1)], 1)
            start = 0
            for row, example in zip(rows, examples, strict=True):
                own = len(example.scored) if example.scored is not None else 0
                row["nucleotides"] = counts[start : start + own].tolist()
                start += own
        return rows

    def score(self, rows: list[Any]) -> dict[str, float]:
        """UniFrac over all pairs of the split, nucleotides beside the column majority, and the target."""
        from recipes.microbiome.score import nucleotide_scores, target_scores

        scores: dict[str, float] = {}
        if self.wants_unifrac:
            scores |= self._distance_scores(rows)
        if self.wants_nucleotides:
            seen = set(self.study.counts[self.splits["train"]].indices.tolist())
            found = {asv: counts for row in rows for asv, *counts in row.get("nucleotides", ())}
            scores |= nucleotide_scores(found, seen)
        if self.wants_target and rows:
            scores |= target_scores(rows, not self.fitted.classes, "group" in rows[0])
        return scores

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Request:
        """A study to describe; without a table, the one that the model was trained on."""

        table: str = ""
        """BIOM table (.biom or .qza) of the samples; empty: those of the training."""
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

    def answer(self, model: Any, request: Request) -> str:
        """Write the tables and figures of a study, and say how well they agree with what is known."""
        from recipes.microbiome.answering import write
        from recipes.microbiome.data import open_study

        if request.table:
            sequences, tree, metadata = request.sequences or None, request.tree or None, request.metadata or None
            needs = max(1, self.source.rarefy_depth)
            study = open_study(request.table, sequences, tree, metadata, min_reads=needs)
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
        if min(longest, self.source.max_bp) > int(model.trained_letters):
            raise ConfigError(
                f"These ASVs have {longest} nucleotides, the model learned from {int(model.trained_letters)}.\n"
                "Trim them to that length, or train with longer ones."
            )
        return write(model, self, study, request.output, request.color_by or None, parts)

    def _distance_scores(self, rows: list[Any]) -> dict[str, float]:
        from recipes.microbiome.score import distance_scores

        true, predicted = self.compare_distances(rows)
        return distance_scores(true, predicted)

    def compare_distances(self, rows: list[Any]) -> tuple[Any, Any]:
        """(UniFrac, distances of the embeddings) between all samples of `rows`, each (samples, samples)."""
        import numpy as np
        import torch

        from recipes.microbiome.data import Examples
        from recipes.microbiome.model import embedding_distances, tanh_scale
        from recipes.microbiome.unifrac import distances

        own = np.array([row["row"] for row in rows], int)
        examples = Examples(self.study, own, self.source.rarefy_depth, False, self.source.split_seed)
        assert self.study.phylogeny is not None
        true = distances(examples.table(), self.study.phylogeny, self.source.distance)
        embeddings = torch.tensor([row["embedding"] for row in rows])
        lengths = torch.tensor([row["length"] for row in rows]) if "length" in rows[0] else None
        predicted = embedding_distances(embeddings, lengths, tanh_scale(self.model_settings.hidden_size))
        return true, predicted.double().numpy()


def _read_fitted(folder: Path | None, fingerprint: dict[str, Any]) -> Fitted | None:
    """What was fitted with these settings; None where it was not, or with others."""
    from recipes.microbiome.data import Fitted

    file = folder / "microbiome.json" if folder is not None else None
    if file is None or not file.is_file():
        return None
    content = json.loads(file.read_text(encoding="utf-8"))
    return Fitted.from_json(content["fitted"]) if content["settings"] == fingerprint else None


def _padded(majority: tuple[int, ...], columns: int) -> Any:
    """The majority's letters for so many columns; 0, which is no letter, beyond what training had."""
    import numpy as np

    letters = np.zeros(columns, np.int32)
    letters[: min(columns, len(majority))] = majority[:columns]
    return letters
