"""``cache_activations_runner_cfg.json``: how SAELens (v6) itself would have been asked for the dataset.

Its fields are those of ``CacheActivationsRunnerConfig``, so ``CacheActivationsRunnerConfig(**json)`` works; SAELens
puts this file beside a dataset that it uploads. It knows one hook point: the first of the dataset is named.
"""

from __future__ import annotations

from typing import Any

from schemas.fields import Dtype
from schemas.store import StoreRecord

CONFIG = "cache_activations_runner_cfg.json"


def runner_config(
    record: StoreRecord,
    hook_points: dict[str, int],
    *,
    dtype: Dtype,
    context_length: int,
    num_contexts: int,
    file_bytes: int,
    output: str,
) -> dict[str, Any]:
    """All fields; those of which the store's spec says nothing have an empty value or the library's default."""
    model = record.spec.get("model", {})
    tokens = record.spec.get("tokens", {})
    corpus = tokens.get("corpus", {})
    hook, width = next(iter(hook_points.items()))
    return {
        "dataset_path": corpus.get("path") or ", ".join(corpus.get("urls", [])),
        "model_name": model.get("path", ""),
        "model_batch_size": max(1, record.spec.get("batch_tokens", context_length) // context_length),
        "hook_name": hook,
        "d_in": width,
        "training_tokens": num_contexts * context_length,
        "context_size": context_length,
        "model_class_name": "AutoModelForCausalLM",
        "new_cached_activations_path": output,
        "shuffle": False,
        "seed": tokens.get("seed", 0),
        "dtype": dtype,
        "device": "cpu",
        "buffer_size_gb": file_bytes / 1e9,
        "hf_repo_id": None,
        "hf_num_shards": None,
        "hf_revision": "main",
        "hf_is_private_repo": False,
        "model_kwargs": {},
        "model_from_pretrained_kwargs": {"revision": model["revision"]} if model.get("revision") else {},
        "compile_llm": False,
        "llm_compilation_mode": None,
        "prepend_bos": tokens.get("packing", {}).get("begin_context", "bos") == "bos",
        "seqpos_slice": [None],
        "streaming": True,
        "autocast_lm": False,
        "dataset_trust_remote_code": None,
        "use_chat_formatting": False,
    }
