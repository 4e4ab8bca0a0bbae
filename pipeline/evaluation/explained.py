"""What an interpret job found, for the page of an evaluation."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.evaluation.trained import Trained
from pipeline.store.objects import Objects
from schemas.errors import MismatchError, MissingError

RESULT = "interpretation.json"


def read_interpretation(url: str | None, dictionaries: Sequence[Trained]) -> dict[str, Any] | None:
    """``interpretation.json`` at ``url``; None without one.

    Raises:
        MissingError: it is not there.
        MismatchError: it is of other dictionaries.
    """
    if url is None:
        return None
    folder = Objects(url)
    if not folder.exists(RESULT):
        raise MissingError(f"no {RESULT} at {url}: give the output of an interpret job that has finished")
    found: dict[str, Any] = json.loads(folder.read(RESULT))
    known = found["identity"]["dictionaries"]
    for trained in dictionaries:
        if known.get(trained.name) != trained.record.weights_sha256:
            raise MismatchError(
                f"{url} explains {'other weights of ' if trained.name in known else 'no '}dictionary {trained.name!r} "
                f"(it has {sorted(known)}): run the interpret job on these dictionaries"
            )
    return found


def explained_latents(found: Mapping[str, Any], name: str, fired: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Latents of a dictionary that have an explanation and fired, rarest first."""
    latents = np.array([one["latent"] for one in found["dictionaries"][name]["latents"]], dtype=np.int64)
    alive = latents[fired[latents] > 0]
    return alive[np.argsort(fired[alive], kind="stable")]


def with_explanations(features: list[dict[str, Any]], found: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    """The features, each with ``explanation`` and ``scores``: label and value in words, as the page shows them."""
    known = {one["latent"]: one for one in found["dictionaries"][name]["latents"]}
    return [
        feature | {"explanation": known[feature["latent"]]["explanation"], "scores": _scores(known[feature["latent"]])}
        for feature in features
    ]


def interpretation_figures(found: Mapping[str, Any] | None, name: str) -> dict[str, Any] | None:
    """What ``evaluation.json`` says of it: mean scores beside those of the controls."""
    if found is None:
        return None
    values = {key: value for key, value in found["dictionaries"][name].items() if key != "latents"}
    return {"explainer": found["identity"]["spec"]["explainer"]["kind"], **values}


def _scores(one: Mapping[str, Any]) -> list[list[str]]:
    scores = one["scores"]
    shown = [(kind, scores[kind]["accuracy"]) for kind in ("detection", "fuzzing")]
    shown.append(("simulation", (scores["simulation"] or {}).get("top_and_random")))
    return [[label, f"{value:.2f}"] for label, value in shown if value is not None]
