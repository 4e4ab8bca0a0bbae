"""The evaluate job: a store and trained dictionaries in, ``evaluation.json``, latents and ``report.html`` out.

    1. open both, refuse what does not belong together
    2. reconstruction figures on shuffled rows                              rows.measure
    3. cross-entropy of the spliced model on held-out contexts              cross_entropy
    4. features with their strongest contexts                               rows.find_features
    5. write NAME.latents.csv of each, report.html and, last, evaluation.json

The same job over the same facts finds its evaluation.json and does nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.evaluation import belonging
from pipeline.evaluation.contexts import Bounds, choose_contexts, read_tokens
from pipeline.evaluation.counting import Counter, Progress
from pipeline.evaluation.cross_entropy import CrossEntropy, context_batches, spliced_cross_entropies
from pipeline.evaluation.explained import (
    explained_latents,
    interpretation_figures,
    read_interpretation,
    with_explanations,
)
from pipeline.evaluation.features import Pieces
from pipeline.evaluation.figures import DEFINITIONS, SNAPSHOT_DEFINITIONS, figures_of, latents_table
from pipeline.evaluation.provenance import documents, facts
from pipeline.evaluation.reconstruction import Reconstruction
from pipeline.evaluation.rows import are_eligible, eligible_rows, find_features, measure, searched_contexts
from pipeline.evaluation.snapshots import latent_kinds, require_snapshots, snapshot_figures, with_kinds
from pipeline.evaluation.trained import Trained, load_all
from pipeline.evaluation.universality import UNIVERSALITY_DEFINITIONS, require_pairs, universality_figures
from pipeline.models.load import load_model
from pipeline.models.precision import resolve_device
from pipeline.order.eligible import EligibleRows
from pipeline.report.curves import read_metrics
from pipeline.report.page import ReportData, render
from pipeline.store.joined import AnyStore, JoinedStore, open_any
from pipeline.store.objects import Objects
from pipeline.training.points import points_of
from schemas.errors import SpecError
from schemas.evaluate import EvaluateSpec
from schemas.fingerprint import fingerprint

RESULT = "evaluation.json"
REPORT = "report.html"
METRICS = "metrics.jsonl"

_NO_SPLICE = (
    " Cross-entropy is left out: the rows are of several models, and a splice needs the sources of one forward."
)


def evaluate(spec: EvaluateSpec, *, progress: Progress | None = None) -> dict[str, Any]:
    """Run the job; returns what ``evaluation.json`` holds.

    Raises:
        MissingError: no store, or no dictionaries.
        MismatchError: the dictionaries were trained on another model or, for held-out rows, another token table.
        SpecError: no rows, or no held-out contexts, are left to measure on.
        DataError: the splice check fails, or numbers are not finite.
    """
    dictionaries = load_all(spec.dictionaries)
    store = open_any(spec.store, [point for trained in dictionaries for point in points_of(trained.train_spec)])
    device = resolve_device(belonging.model_spec(store))
    for trained in dictionaries:
        trained.dictionary.to(device)
    belonging.require(store, dictionaries, spec)
    require_snapshots(store, spec)
    require_pairs(dictionaries, spec)
    interpretation = read_interpretation(spec.interpretation, dictionaries)
    identity = _identity(spec, store, dictionaries, interpretation)
    return _finished(spec, identity) or _Evaluation(spec, store, dictionaries, interpretation, identity, progress).run()


def _identity(
    spec: EvaluateSpec, store: AnyStore, dictionaries: list[Trained], interpretation: Mapping[str, Any] | None
) -> dict[str, Any]:
    """What decides the result: two jobs of equal identity need only one evaluation."""
    places = {"kind", "name", "store", "dictionaries", "interpretation", "output"}
    return {
        "spec": spec.model_dump(mode="json", exclude=places),
        "interpretation": interpretation and interpretation["fingerprint"],
        "store": store.fingerprint,
        "rows": store.num_rows,
        "dictionaries": {trained.name: trained.record.weights_sha256 for trained in dictionaries},
        "version": belonging.version(),
    }


def _finished(spec: EvaluateSpec, identity: Mapping[str, Any]) -> dict[str, Any] | None:
    output = Objects(spec.output)
    if not (output.exists(RESULT) and output.exists(REPORT)):
        return None
    found: dict[str, Any] = json.loads(output.read(RESULT))
    return found if found.get("fingerprint") == fingerprint(identity) else None


class _Evaluation:
    """One run of the job."""

    def __init__(
        self,
        spec: EvaluateSpec,
        store: AnyStore,
        dictionaries: list[Trained],
        interpretation: Mapping[str, Any] | None,
        identity: dict[str, Any],
        progress: Progress | None,
    ) -> None:
        self._spec = spec
        self._interpretation = interpretation
        self._store = store
        self._dictionaries = dictionaries
        self._identity = identity
        self._count = Counter(progress)
        self._eligible: dict[str, EligibleRows] = {}

    def run(self) -> dict[str, Any]:
        """All steps, the result last."""
        spec = self._spec
        self._count.begin("reconstruction", len(self._dictionaries) * min(spec.max_rows, self._store.num_rows))
        measured = {
            trained.name: measure(
                self._store, trained, split=spec.rows, max_rows=spec.max_rows, seed=spec.seed, count=self._count
            )
            for trained in self._dictionaries
        }
        self._count.end()
        entropies = self._cross_entropies(measured) if spec.cross_entropy_tokens and not self._is_joined else {}
        result = self._with_universality(self._with_snapshots(self._result(measured, entropies)))
        features = self._features(measured)
        output = Objects(spec.output)
        for name, figures in measured.items():
            output.write(f"{name}.latents.csv", latents_table(figures).encode())
        output.write(REPORT, self._page(result, features).encode())
        output.write(RESULT, (json.dumps(result, indent=1, allow_nan=False) + "\n").encode())
        return result

    def _with_snapshots(self, result: dict[str, Any]) -> dict[str, Any]:
        asked, store, seed = self._spec.snapshots, self._store, self._spec.seed
        if asked is None or not isinstance(store, JoinedStore):
            return result
        result["snapshots"] = snapshot_figures(store, asked, seed=seed, count=self._count)
        result["definitions"] |= SNAPSHOT_DEFINITIONS
        for trained in self._dictionaries:
            kinds = latent_kinds(store, trained, self._eligible_of(trained), asked, seed=seed, count=self._count)
            result["dictionaries"][trained.name] = with_kinds(result["dictionaries"][trained.name], kinds)
        return result

    def _with_universality(self, result: dict[str, Any]) -> dict[str, Any]:
        asked = self._spec.universality
        if asked is not None:
            result["universality"] = universality_figures(
                self._store, self._dictionaries, asked, seed=self._spec.seed, count=self._count
            )
            result["definitions"] |= UNIVERSALITY_DEFINITIONS
        return result

    @property
    def _is_joined(self) -> bool:
        return isinstance(self._store, JoinedStore)

    def _cross_entropies(self, measured: Mapping[str, Reconstruction]) -> dict[str, CrossEntropy]:
        spec, store = self._spec, self._store
        contexts = choose_contexts(store, num_rows=spec.cross_entropy_tokens, split="held_out", seed=spec.seed)
        if not contexts:
            raise SpecError(
                f"cross_entropy_tokens is {spec.cross_entropy_tokens}, but {store.url} has no held-out contexts: "
                "collect with tokens.held_out_fraction above 0, or set cross_entropy_tokens: 0"
            )
        loaded = load_model(belonging.spliced_model_spec(store), with_head=True)
        belonging.require_model(store, loaded.identity)
        tokens = read_tokens(store, contexts)
        found: dict[str, CrossEntropy] = {}
        self._count.begin("cross-entropy", len(self._dictionaries) * sum(stop - start for start, stop in contexts))
        for rivals in self._rivals():
            eligible = are_eligible(self._eligible_of(rivals[0]), tokens.row)
            batches = list(context_batches(tokens, contexts, eligible))
            means = measured[rivals[0].name].mean_of_target
            found |= spliced_cross_entropies(loaded, rivals, batches, means, count=self._count)
        self._count.end()
        return found

    def _rivals(self) -> list[list[Trained]]:
        """Dictionaries of the same targets that leave out the same rows, whose ablations are the same too."""
        groups: dict[str, list[Trained]] = {}
        for trained in self._dictionaries:
            groups.setdefault(f"{list(trained.record.d_target)} {_row_key(trained)}", []).append(trained)
        return list(groups.values())

    def _features(self, measured: Mapping[str, Reconstruction]) -> dict[str, list[dict[str, Any]]]:
        spec, store = self._spec, self._store
        if spec.report.num_features == 0:
            return {trained.name: [] for trained in self._dictionaries}
        tokenizer = belonging.tokenizer_of(store)
        contexts = searched_contexts(store, spec.report, seed=spec.seed)
        self._count.begin("features", len(self._dictionaries) * sum(stop - start for start, stop in contexts))
        features = {
            trained.name: self._features_of(trained, measured[trained.name], contexts, tokenizer.pieces)
            for trained in self._dictionaries
        }
        self._count.end()
        return features

    def _features_of(
        self, trained: Trained, figures: Reconstruction, contexts: Sequence[Bounds], pieces: Pieces
    ) -> list[dict[str, Any]]:
        known = self._interpretation
        found = find_features(
            self._store,
            trained,
            figures,
            contexts,
            self._eligible_of(trained),
            self._spec.report,
            pieces=pieces,
            count=self._count,
            latents=None if known is None else explained_latents(known, trained.name, figures.fired),
        )
        return found if known is None else with_explanations(found, known, trained.name)

    def _eligible_of(self, trained: Trained) -> EligibleRows:
        """Scanned once for all dictionaries that leave out the same rows."""
        key = _row_key(trained)
        if key not in self._eligible:
            self._eligible[key] = eligible_rows(self._store, trained)
        return self._eligible[key]

    def _result(self, measured: Mapping[str, Reconstruction], entropies: Mapping[str, CrossEntropy]) -> dict[str, Any]:
        held_out = self._spec.rows == "held_out"
        return {
            "format": 1,
            "fingerprint": fingerprint(self._identity),
            "identity": self._identity,
            "store": {"fingerprint": self._store.fingerprint, "table_fingerprint": self._store.table_fingerprint},
            "model": belonging.model_facts(self._store),
            "rows": {
                "split": self._spec.rows,
                "text": (
                    "Reconstruction is measured on documents that training never saw."
                    if held_out
                    else "Reconstruction is measured on all documents, those that training saw included."
                )
                + (_NO_SPLICE if self._is_joined else ""),
            },
            "definitions": DEFINITIONS | (self._interpretation or {}).get("definitions", {}),
            "dictionaries": {
                trained.name: figures_of(
                    trained,
                    measured[trained.name],
                    entropies.get(trained.name),
                    interpretation_figures(self._interpretation, trained.name),
                )
                for trained in self._dictionaries
            },
        }

    def _title(self) -> str:
        if isinstance(self._store, JoinedStore):
            return ", ".join(self._store.stores)
        return belonging.model_spec(self._store).path.rstrip("/").rpartition("/")[2]

    def _page(self, result: dict[str, Any], features: dict[str, list[dict[str, Any]]]) -> str:
        folder = Objects(self._spec.dictionaries)
        content = folder.read(METRICS) if folder.exists(METRICS) else b""
        return render(
            ReportData(
                title=self._title(),
                evaluation=result,
                metrics=read_metrics(content, f"{self._spec.dictionaries}/{METRICS}"),
                features=features,
                num_searched_rows=min(self._spec.report.rows, self._store.num_rows),
                provenance=facts(self._spec, self._store, self._dictionaries),
                documents=documents(self._spec, self._store, self._dictionaries),
            )
        )


def _row_key(trained: Trained) -> str:
    """Equal for dictionaries that leave out the same rows of a store; hook points matter to norms alone."""
    rows = trained.train_spec.rows
    return json.dumps([rows.model_dump(mode="json"), trained.points if rows.max_norm_multiple > 0 else []])
