"""What training a model will take, and a stand-in for what it will make, so that jobs which use it can be planned."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import safetensors.numpy
import torch

from pipeline.networks import HeadworksDecoderConfig, HeadworksDecoderForCausalLM
from pipeline.pretraining.prepare import COMPLETE, is_own, output_folder, tokenizer_folder
from pipeline.store.objects import Objects
from pipeline.tokens.corpus import survey
from pipeline.tokens.own import make_tokenizer, save_tokenizer
from pipeline.tokens.tokenizer import Tokenizer, load_tokenizer
from pipeline.training.checkpoint import Checkpoints
from schemas.plan import JobPlan, ModelPlan, PlanAssumptions
from schemas.train_model import TrainModelSpec

_WEIGHT_BYTES = 4
_KEPT_BYTES = 4 * _WEIGHT_BYTES
"""Of a weight: itself, its gradient and two moments."""
_STATE_BYTES = 3 * _WEIGHT_BYTES
_CHECKPOINTS = 2
_LOGIT_COPIES = 3
"""Logits, their gradient and the probabilities."""


def plan_pretraining(spec: TrainModelSpec, assumptions: PlanAssumptions) -> JobPlan:
    """Reads no more of the corpus than its size.

    Raises:
        SpecError: the output is no folder of a disk. MissingError, ModelError: a tokenizer that is not there.
    """
    notes: list[str] = []
    steps = spec.steps - _steps_done(spec, notes)
    vocab_size = _vocab_size(spec)
    config = HeadworksDecoderConfig(network=spec.network.model_dump(mode="json"), vocab_size=vocab_size)
    with torch.device("meta"):
        network = HeadworksDecoderForCausalLM(config)
    parameters = sum(one.numel() for one in network.parameters())
    looked_up = sum(
        module.weight.numel() for module in network.modules() if isinstance(module, torch.nn.Embedding)
    ) - (network.lm_head.weight.numel() if spec.network.tied_embeddings else 0)  # fmt: skip
    net, length = spec.network, spec.tokens.packing.context_length
    flop_per_token = 6 * (parameters - looked_up) + 12 * net.layers * net.heads * net.head_width * length
    flop = float(flop_per_token) * steps * spec.batch_tokens
    rate = assumptions.rates.flop_per_s
    forward = spec.forward_tokens or -(-spec.batch_contexts // spec.workers.num_workers) * length
    folders = len(spec.snapshot_steps) + 1
    model = ModelPlan(
        parameters=parameters,
        tokens=steps * spec.batch_tokens,
        steps=steps,
        flop=flop,
        hours=None if rate is None else flop / rate / spec.workers.num_workers / 3600,
        snapshots=folders,
        size_bytes=parameters * (folders * _WEIGHT_BYTES + _CHECKPOINTS * _STATE_BYTES),
        memory_bytes=parameters * _KEPT_BYTES + _LOGIT_COPIES * 4 * forward * vocab_size,
    )
    if rate is None and steps:
        notes.append("the hours are not planned: give --flop-per-s, what one device really reaches")
    return JobPlan(name=spec.name, kind=spec.kind, output=spec.output, model=model, notes=notes)


@contextmanager
def stand_in(spec: TrainModelSpec) -> Iterator[Path]:
    """A folder for the time of the block that looks like the model that will be: its configuration and its tokenizer,
    made as the job makes it, and no weights."""
    with TemporaryDirectory(prefix="headworks-plan-") as place:
        folder = Path(place, "model")
        save_tokenizer(_tokenizer(spec), folder)
        config = HeadworksDecoderConfig(
            network=spec.network.model_dump(mode="json"),
            vocab_size=load_tokenizer(str(folder)).vocab_size,
            architectures=["HeadworksDecoderForCausalLM"],
        )
        config.save_pretrained(folder)
        safetensors.numpy.save_file({}, folder / "model.safetensors")
        yield folder


def is_trained(spec: TrainModelSpec) -> bool:
    """Whether an earlier run has finished it."""
    return Objects(spec.output).exists(COMPLETE)


def _tokenizer(spec: TrainModelSpec) -> Tokenizer:
    if tokenizer_folder(spec).exists():
        return load_tokenizer(str(tokenizer_folder(spec)))
    if is_own(spec.tokens):
        return make_tokenizer(spec.tokenizer, spec.tokens, survey(spec.tokens))
    return load_tokenizer(spec.tokens.tokenizer)


def _vocab_size(spec: TrainModelSpec) -> int:
    if tokenizer_folder(spec).exists() or not is_own(spec.tokens):
        return _tokenizer(spec).vocab_size
    return spec.tokenizer.vocab_size


def _steps_done(spec: TrainModelSpec, notes: list[str]) -> int:
    """Steps that an earlier run of the output has taken, whether or not it was the same: the job refuses another."""
    output_folder(spec)
    if is_trained(spec):
        notes.append(f"{spec.output} is trained already")
        return spec.steps
    steps = Checkpoints(spec.output).steps()
    if steps:
        notes.append(f"goes on from the checkpoint of step {steps[-1]:,}")
    return steps[-1] if steps else 0
