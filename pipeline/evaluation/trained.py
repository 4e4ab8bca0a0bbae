"""The dictionaries of a folder, and what one makes of a batch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from pipeline.dictionaries.codes import SparseCodes
from pipeline.dictionaries.dictionary import Dictionary
from pipeline.dictionaries.folder import RECORD, load_dictionary
from pipeline.evaluation.reconstruction import Firings
from pipeline.store.objects import Objects
from schemas.dictionary import DictionaryRecord
from schemas.errors import MissingError
from schemas.train import TrainSpec

CODE_ELEMENTS = 1 << 24
"""Pre-activations held at once: 64 MiB of float32."""


@dataclass(frozen=True)
class Trained:
    """A dictionary and the record that came with it."""

    dictionary: Dictionary
    record: DictionaryRecord

    @property
    def name(self) -> str:
        """Name in its spec, also its folder."""
        return self.record.spec.name

    @property
    def train_spec(self) -> TrainSpec:
        """The job that trained it."""
        return TrainSpec.model_validate(self.record.train_spec)

    @property
    def points(self) -> list[str]:
        """Hook points that it reads or predicts, and those of its whole train job where that filtered rows by norm."""
        train = self.train_spec
        specs = train.dictionaries if train.rows.max_norm_multiple > 0 else [self.record.spec]
        return list(dict.fromkeys(point for spec in specs for point in [*spec.sources, *spec.target_points]))

    @property
    def batch_rows(self) -> int:
        """Rows encoded at once."""
        return max(64, min(4096, CODE_ELEMENTS // self.dictionary.num_latents))

    @property
    def kind(self) -> str:
        """What people call it."""
        spec = self.record.spec
        if spec.is_transcoder and spec.groups == "cross_layer":
            return "cross-layer transcoder"
        if spec.is_transcoder:
            return "skip transcoder" if spec.skip else "transcoder"
        return "sparse autoencoder" if len(spec.sources) == 1 else "crosscoder"

    def apply(self, acts: Mapping[str, Tensor]) -> tuple[Firings, dict[str, Tensor]]:
        """Unscaled sources, hook point -> [B, D] -> what fired, and unscaled predictions of the targets."""
        scaled = self.dictionary.join_sources(acts)
        codes = self.dictionary.encode(scaled)
        return _firings(codes), self.dictionary.split_targets(self.dictionary.decode(codes, scaled))

    def encode(self, acts: Mapping[str, Tensor]) -> Firings:
        """Unscaled sources, hook point -> [B, D] -> what fired."""
        return _firings(self.dictionary.encode(self.dictionary.join_sources(acts)))


def load_all(url: str, *, device: str = "cpu") -> list[Trained]:
    """Every dictionary in the folder of a train job, in the order of its spec; or the one that ``url`` is.

    Raises:
        MissingError: there is none.
    """
    folder = Objects(url)
    if folder.exists(RECORD):
        places = [url]
    else:
        names = [key.split("/")[0] for key in folder.list() if key.count("/") == 1 and key.endswith(f"/{RECORD}")]
        places = [folder.at(name).url for name in names]
    if not places:
        raise MissingError(
            f"no dictionaries at {url}: expected NAME/{RECORD} or {RECORD}, found neither; "
            "give the output folder of a train job that has finished"
        )
    found = []
    for place in places:
        dictionary = load_dictionary(place, device=device)
        assert dictionary.record is not None
        found.append(Trained(dictionary, dictionary.record))
    return sorted(found, key=_place_in_job)


def _firings(codes: SparseCodes | Tensor) -> Firings:
    if isinstance(codes, SparseCodes):
        return Firings.from_sparse(codes.values, codes.indices)
    return Firings.from_dense(codes)


def _place_in_job(trained: Trained) -> tuple[int, str]:
    names = [spec.name for spec in trained.train_spec.dictionaries]
    return (names.index(trained.name) if trained.name in names else len(names), trained.name)
