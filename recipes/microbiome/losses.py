"""The losses of both stages: UniFrac, hidden nucleotides, abundances and the target."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from recipes.microbiome.model import MicrobiomeModel, OnHost, Output, embedding_distances, feature_statistics, in_full
from runner.parts.sending import sent
from runner.recipe import Batch, Loss

if TYPE_CHECKING:
    from recipes.microbiome.settings import StageSettings

Logs = dict[str, Tensor | float]


def total_loss(settings: StageSettings, is_classification: bool, model: MicrobiomeModel, batch: Batch) -> Loss:
    """The weighted losses of the micro-batch, each a mean over what it scores, times the number of samples."""
    on_host = OnHost(batch.on_host("tokens"), batch.on_host("mask") if "mask" in batch.tensors else None)
    output: Output = model(
        batch["tokens"],
        batch.tensors.get("mask"),
        batch["asvs"],
        batch["is_there"],
        batch["abundance"],
        wants_embeddings=settings.wants_unifrac,
        alone=batch.tensors.get("alone"),
        linear=batch.tensors.get("linear"),
        on_host=on_host,
    )
    losses: list[Tensor] = []
    logs: Logs = {}
    with torch.autocast(batch["asvs"].device.type, enabled=False):
        if settings.wants_unifrac:
            losses.append(_unifrac_loss(output, batch["distances"], settings.unifrac_penalty, logs))
            if settings.wants_asv_pairs:
                losses.append(_asv_loss(output, batch["asv_distances"], settings.asv_penalty, logs))
        if settings.wants_nucleotides:
            losses.append(_nucleotide_loss(output, on_host, settings.nuc_penalty, logs))
        if settings.wants_counts:
            divergence = _count_loss(output, batch)
            losses.append(settings.count_penalty * divergence)
            logs["count_loss"] = divergence.detach()
        if settings.wants_target:
            assert output.target is not None
            loss = settings.target_penalty * _target_loss(output.target, batch["target"], is_classification)
            losses.append(loss)
            logs["target_loss"] = loss.detach() / settings.target_penalty
            if output.addition is not None:
                penalty = settings.target_penalty * settings.model_settings.readout_shrinkage
                losses.append(0.5 * penalty * output.addition.square().mean())
        total = torch.stack(losses).sum()
    moving = None if settings.is_frozen else output.features
    statistics = None if moving is None else feature_statistics(moving)
    return Loss(total * len(batch["asvs"]), logs=logs, statistics=statistics)


def _unifrac_loss(output: Output, wanted: Tensor, penalty: float, logs: Logs) -> Tensor:
    """The weighted mean squared error over the pairs of samples; 0 where there is no pair."""
    assert output.embeddings is not None
    errors = _pair_errors(embedding_distances(output.embeddings, output.lengths, output.scale), wanted)
    # A sample alone has no pair: nothing was scored, which is not a loss of 0.
    logs["unifrac_loss"] = errors.detach().mean() if len(errors) else torch.nan
    return penalty * errors.sum() / max(1, len(errors))


def _asv_loss(output: Output, wanted: Tensor, penalty: float, logs: Logs) -> Tensor:
    """The same between ASVs, each as a sample of its own."""
    assert output.asv_embeddings is not None
    errors = _pair_errors(embedding_distances(output.asv_embeddings, output.asv_lengths, output.scale), wanted)
    logs["asv_loss"] = errors.detach().mean() if len(errors) else torch.nan
    return penalty * errors.sum() / max(1, len(errors))


def _pair_errors(predicted: Tensor, wanted: Tensor) -> Tensor:
    """(pairs,): the squared errors above the diagonal."""
    upper = torch.triu_indices(len(predicted), len(predicted), 1, device=predicted.device)
    return (predicted - wanted)[upper[0], upper[1]].square()


def _nucleotide_loss(output: Output, on_host: OnHost, penalty: float, logs: Logs) -> Tensor:
    """The weighted mean cross-entropy of the hidden letters."""
    assert output.nucleotides is not None
    hidden = sent(torch.from_numpy(on_host.tokens[on_host.mask].astype(np.int64) - 1), output.nucleotides.device)
    guesses = in_full(output.nucleotides)
    loss = penalty * F.cross_entropy(guesses, hidden, reduction="sum") / max(1, len(hidden))
    if len(hidden):
        logs["nucleotide_accuracy"] = (guesses.argmax(1) == hidden).float().mean()
        logs["nucleotide_loss"] = loss.detach() / penalty
    else:
        logs |= {"nucleotide_accuracy": torch.nan, "nucleotide_loss": torch.nan}
    return loss


def _count_loss(output: Output, batch: Batch) -> Tensor:
    """The divergence of the predicted from the true relative abundances, a mean over the samples."""
    assert output.counts is not None
    logits = output.counts.masked_fill(~batch["is_there"], -1e4).log_softmax(1)
    shares = batch["abundance"] / batch["abundance"].sum(1, keepdim=True)
    return (torch.xlogy(shares, shares) - shares * logits).sum(1).mean()


def _target_loss(guess: Tensor, target: Tensor, is_classification: bool) -> Tensor:
    if is_classification:
        # A class that training has not seen cannot be scored by the loss; the metrics count it as wrong.
        known = target >= 0
        total = F.cross_entropy(guess, target.clamp(min=0), reduction="none")
        return (total * known).sum() / known.sum().clamp(min=1)
    return F.smooth_l1_loss(guess.squeeze(1), target)
