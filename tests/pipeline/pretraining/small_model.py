"""A job that trains a tiny model in a second."""

from __future__ import annotations

from typing import Any

from schemas.train_model import TrainModelSpec


def model_spec(output: str, **fields: Any) -> TrainModelSpec:
    """Documents of 15 words, a context each; fields can be replaced."""
    grammar = {"kind": "bigram", "num_words": 12, "words_per_document": 15, "repeat_share": 0.5, "repeat_words": 5}
    facts = {
        "network": {"layers": 1, "d_model": 16, "heads": 2, "context_length": 16, "positions": "learned"},
        "tokens": {
            "corpus": {"format": "grammar", "grammar": grammar, "num_documents": 300},
            "packing": {"mode": "document", "context_length": 16},
            "held_out_fraction": 0.1,
        },
        "tokenizer": {"kind": "words"},
        "steps": 30,
        "batch_tokens": 256,
        "optimiser": {"learning_rate": 0.01},
        "snapshots": [0, 3, 30],
        "held_out": {"num_tokens": 200, "evaluate_every_steps": 15},
        "checkpoint_every_steps": 7,
        "log_every_steps": 1,
        "trackers": [],
        "output": output,
    }
    return TrainModelSpec.model_validate(facts | fields)
