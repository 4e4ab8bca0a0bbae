"""The two ends of a training run: dictionaries as they start, and the folders that hold them when they are done."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from importlib import metadata

import torch

from pipeline.dictionaries import initialise
from pipeline.dictionaries.dictionary import Dictionary
from pipeline.dictionaries.folder import save_dictionary
from pipeline.dictionaries.geometric_median import geometric_median
from pipeline.order.eligible import EligibleRows
from pipeline.order.feed import scales
from pipeline.store.arriving import FeedStore
from pipeline.training import kernels, shards
from pipeline.training.checkpoint import Progress
from pipeline.training.end_to_end_model import EndToEndModels
from pipeline.training.sampling import sample_rows
from pipeline.training.trainer import DictionaryTrainer
from pipeline.training.world import World
from schemas.dictionary import DictionaryRecord
from schemas.train import TrainSpec

_PACKAGES = ("headworks", "torch", "numpy", "ray")


def start(
    spec: TrainSpec,
    store: FeedStore,
    points: Sequence[str],
    eligible: EligibleRows,
    latents: World,
    *,
    device: torch.device,
    num_threads: int,
) -> list[DictionaryTrainer]:
    """A trainer for each dictionary of the spec, at step 0, of the latents that this rank holds.

    ``eligible``: the rows that it is to see.
    """
    factors = scales(store, points, spec.normalise)
    means = {point: torch.tensor(store.statistics[point].mean, dtype=torch.float64) for point in points}
    chosen = kernels.choose(device, torch.float32, num_threads)
    models = EndToEndModels(spec, store, eligible, device)
    trainers = []
    for wanted in spec.dictionaries:
        d_source = {point: store.hook_points[point] for point in wanted.sources}
        d_target = {point: store.hook_points[point] for point in wanted.target_points}
        mine = shards.latents_of(wanted.num_latents, latents)
        dictionary = Dictionary(wanted, d_source, d_target, factors, latents=mine, device=device)
        initialise.fill(dictionary, _medians(store, d_target, eligible) if initialise.wants_median(wanted) else means)
        term = models.term(dictionary)
        trainers.append(
            DictionaryTrainer(
                dictionary,
                chosen,
                max_gradient_norm=spec.max_gradient_norm,
                end_to_end=term,
                divergence=spec.divergence,
            )
        )
    return trainers


def _medians(store: FeedStore, points: Iterable[str], eligible: EligibleRows) -> dict[str, torch.Tensor]:
    return {point: geometric_median(sample_rows(store, point, eligible)) for point in points}


def write(spec: TrainSpec, store: FeedStore, progress: Progress, dictionary: Dictionary) -> DictionaryRecord:
    """``OUTPUT/NAME/dictionary.safetensors`` and ``dictionary.json`` with the whole provenance."""
    name = dictionary.spec.name
    record = DictionaryRecord(
        spec=dictionary.spec,
        d_source=dictionary.d_source,
        d_target=dictionary.d_target,
        scales=dictionary.scales,
        store_fingerprint=store.fingerprint,
        # The documents of a store in another order are those of the table that its rows come from.
        table_fingerprint=(store.record.shuffled or store.record.exported or store).table_fingerprint,
        model=store.record.identity.get("model", {}),
        train_spec=spec.model_dump(mode="json"),
        steps=progress.step,
        tokens=progress.rows,
        metrics=progress.metrics[name],
        versions=_versions(),
    )
    return save_dictionary(f"{spec.output.rstrip('/')}/{name}", dictionary, record)


def _versions() -> dict[str, str]:
    """Versions of what computed the result; a package that is not installed took no part."""
    installed = {distribution.name.lower() for distribution in metadata.distributions() if distribution.name}
    return {package: metadata.version(package) for package in _PACKAGES if package in installed}
