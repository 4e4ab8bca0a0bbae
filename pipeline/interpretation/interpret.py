"""The interpret job: a store and trained dictionaries in, explanations of latents with their scores out.

    1. cut contexts into windows, half for explaining, half for scoring                  windows.halves
    2. choose latents, read what they do on both halves                                  latents
    3. explain each from the first half                                                  Explainer
    4. score each on the second: detection, fuzzing, simulation; and two controls        scores
    5. write NAME.explanations.parquet of each dictionary and, last, interpretation.json

The same job over the same facts finds its interpretation.json and does nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.evaluation import belonging
from pipeline.evaluation.counting import Counter, Progress
from pipeline.evaluation.features import Pieces, choose_latents
from pipeline.evaluation.rows import are_eligible, eligible_rows
from pipeline.evaluation.trained import Trained, load_all
from pipeline.interpretation.chat import ChatClient
from pipeline.interpretation.chat_explainer import ChatTextExplainer
from pipeline.interpretation.explanation import Explainer
from pipeline.interpretation.latents import LatentValues, count_fired, read_values
from pipeline.interpretation.logit_explainer import DirectLogitExplainer, direct_logits, target_in_stream
from pipeline.interpretation.result import DEFINITIONS, dictionary_figures, explanations_table
from pipeline.interpretation.subject import Interpreted, Subject
from pipeline.interpretation.token_explainer import TokenTableExplainer
from pipeline.interpretation.windows import Windows, halves
from pipeline.models.load import load_model
from pipeline.models.precision import resolve_device
from pipeline.store.joined import AnyStore, JoinedStore, open_any
from pipeline.store.objects import Objects
from pipeline.training.points import points_of
from schemas.errors import SpecError
from schemas.fingerprint import fingerprint
from schemas.interpret import ChatExplainer, InterpretSpec, LogitExplainer, TokenExplainer

RESULT = "interpretation.json"


def interpret(spec: InterpretSpec, *, progress: Progress | None = None) -> dict[str, Any]:
    """Run the job; returns what ``interpretation.json`` holds.

    Raises:
        MissingError: no store, or no dictionaries.
        MismatchError: the dictionaries were trained on another model.
        SpecError: too little text, a latent that a dictionary does not have, an explainer that does not fit.
        UnreachableError: the server of explainer chat does not answer.
    """
    dictionaries = load_all(spec.dictionaries)
    store = open_any(spec.store, [point for trained in dictionaries for point in points_of(trained.train_spec)])
    device = resolve_device(belonging.model_spec(store))
    for trained in dictionaries:
        trained.dictionary.to(device)
        _require_latents(trained, spec)
    belonging.require_same_model(store, dictionaries)
    if isinstance(spec.explainer, LogitExplainer):
        _require_one_model(store, dictionaries)
    identity = _identity(spec, store, dictionaries)
    return _finished(spec, identity) or _Interpretation(spec, store, dictionaries, identity, progress).run()


def _identity(spec: InterpretSpec, store: AnyStore, dictionaries: Sequence[Trained]) -> dict[str, Any]:
    """What decides the result; how many questions are asked at a time does not."""
    asked = spec.model_dump(mode="json", exclude={"kind", "name", "store", "dictionaries", "output"})
    asked["explainer"] = {
        key: value for key, value in asked["explainer"].items() if key not in ("connections", "timeout")
    }
    return {
        "spec": asked,
        "store": store.fingerprint,
        "rows": store.num_rows,
        "dictionaries": {trained.name: trained.record.weights_sha256 for trained in dictionaries},
        "version": belonging.version(),
    }


def _finished(spec: InterpretSpec, identity: Mapping[str, Any]) -> dict[str, Any] | None:
    output = Objects(spec.output)
    if not output.exists(RESULT):
        return None
    found: dict[str, Any] = json.loads(output.read(RESULT))
    return found if found.get("fingerprint") == fingerprint(identity) else None


def _require_latents(trained: Trained, spec: InterpretSpec) -> None:
    beyond = [latent for latent in spec.latents if latent >= trained.dictionary.num_latents]
    if beyond:
        raise SpecError(
            f"latents names {beyond[:5]}, but dictionary {trained.name!r} has latents 0 to "
            f"{trained.dictionary.num_latents - 1}"
        )


def _require_one_model(store: AnyStore, dictionaries: Sequence[Trained]) -> None:
    if isinstance(store, JoinedStore):
        raise SpecError(
            "explainer logits needs the unembedding of one model, and the rows are of several stores; use explainer "
            "tokens"
        )
    for trained in dictionaries:
        target_in_stream(trained)


class _Interpretation:
    """One run of the job."""

    def __init__(
        self,
        spec: InterpretSpec,
        store: AnyStore,
        dictionaries: list[Trained],
        identity: dict[str, Any],
        progress: Progress | None,
    ) -> None:
        self._spec = spec
        self._store = store
        self._dictionaries = dictionaries
        self._identity = identity
        self._count = Counter(progress)

    def run(self) -> dict[str, Any]:
        """All steps, the result last."""
        spec, output = self._spec, Objects(self._spec.output)
        self._count.begin("windows", 1)
        both = halves(self._store, spec)
        pieces = belonging.tokenizer_of(self._store).pieces
        self._count.end()
        figures: dict[str, Any] = {}
        for trained in self._dictionaries:
            found, left_out = self._of_dictionary(trained, both, pieces)
            figures[trained.name] = dictionary_figures(found, left_out=left_out)
            output.write(f"{trained.name}.explanations.parquet", explanations_table(found))
        result = {
            "format": 1,
            "fingerprint": fingerprint(self._identity),
            "identity": self._identity,
            "store": {"fingerprint": self._store.fingerprint, "table_fingerprint": self._store.table_fingerprint},
            "model": belonging.model_facts(self._store),
            "windows": {"explaining": len(both[0]), "scoring": len(both[1]), "tokens": spec.context_tokens},
            "definitions": DEFINITIONS,
            "dictionaries": figures,
        }
        output.write(RESULT, (json.dumps(result, indent=1, allow_nan=False) + "\n").encode())
        return result

    def _of_dictionary(
        self, trained: Trained, both: tuple[Windows, Windows], pieces: Pieces
    ) -> tuple[list[Interpreted], int]:
        """And how many latents had too few examples."""
        store = self._store
        eligible = eligible_rows(store, trained)
        first, second = (half.masked(are_eligible(eligible, half.row)) for half in both)
        latents, fired = self._choose(trained, first)
        self._count.begin(f"activations of {trained.name}", int(first.eligible.sum() + second.eligible.sum()))
        explaining = read_values(store, trained, first, latents, self._count)
        scoring = read_values(store, trained, second, latents, self._count)
        self._count.end()
        subjects = self._subjects(latents, fired, (first, explaining), (second, scoring))
        vocab_size = 1 + max(int(half.token_id.max()) for half in both)
        with self._explainer(trained, [one.latent for one in subjects], pieces, vocab_size) as explainer:
            return self._interpreted(trained.name, subjects, explainer), len(latents) - len(subjects)

    def _choose(self, trained: Trained, windows: Windows) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Latents, and how often each of the dictionary is on in the explaining half."""
        self._count.begin(f"densities of {trained.name}", int(windows.eligible.sum()))
        fired = count_fired(self._store, trained, windows, self._count)
        self._count.end()
        if self._spec.latents:
            return np.array(self._spec.latents, dtype=np.int64), fired
        return choose_latents(fired, self._spec.num_latents), fired

    def _subjects(
        self,
        latents: npt.NDArray[np.int64],
        fired: npt.NDArray[np.int64],
        explaining: tuple[Windows, LatentValues],
        scoring: tuple[Windows, LatentValues],
    ) -> list[Subject]:
        """Those of the latents that are on and off often enough."""
        drawn = (
            Subject.drawn(
                latent,
                int(fired[latent]),
                (explaining[0], explaining[1].of(latent)),
                (scoring[0], scoring[1].of(latent)),
                self._spec,
            )
            for latent in latents.tolist()
        )
        return [subject for subject in drawn if subject is not None]

    def _interpreted(self, name: str, subjects: Sequence[Subject], explainer: Explainer) -> list[Interpreted]:
        """The second control takes the explanation of the next latent, of the last that of the first."""
        self._count.begin(f"explaining {name}", len(subjects))
        explanations = []
        for subject in subjects:
            explanations.append(explainer.explain(subject.evidence))
            self._count(1)
        self._count.end()
        self._count.begin(f"scoring {name}", len(subjects))
        found = []
        for index, subject in enumerate(subjects):
            scores = subject.scored(explanations[index].judge)
            controls: dict[str, Any] = {}
            if self._spec.controls and not isinstance(self._spec.explainer, LogitExplainer):
                controls["dealt_out"] = subject.scored(explainer.explain(subject.by_chance()).judge)
            if self._spec.controls and len(subjects) > 1:
                controls["another_latent"] = subject.scored(explanations[(index + 1) % len(subjects)].judge)
            found.append(Interpreted(subject.latent, subject.fired, explanations[index], scores, controls))
            self._count(1)
        self._count.end()
        return found

    @contextmanager
    def _explainer(
        self, trained: Trained, latents: Sequence[int], pieces: Pieces, vocab_size: int
    ) -> Iterator[Explainer]:
        match self._spec.explainer:
            case TokenExplainer() as asked:
                yield TokenTableExplainer(asked, pieces, vocab_size)
            case LogitExplainer() as asked:
                loaded = load_model(belonging.spliced_model_spec(self._store), with_head=True)
                belonging.require_model(self._store, loaded.identity)
                yield DirectLogitExplainer(asked, pieces, direct_logits(trained, latents, loaded))
            case ChatExplainer() as asked:
                with ChatClient(asked) as client:
                    yield ChatTextExplainer(client, pieces, asked.examples_per_question)
