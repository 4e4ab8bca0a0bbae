"""Which loss trains a dictionary."""

from __future__ import annotations

import torch

from pipeline.dictionaries.dictionary import Dictionary
from pipeline.training.batch_topk import BatchTopKObjective
from pipeline.training.dense import DenseObjective, Terms
from pipeline.training.gated import GatedTerms
from pipeline.training.gated_targets import GatedTargetsTerms
from pipeline.training.jumprelu import JumpReluTerms
from pipeline.training.kernels import Kernels
from pipeline.training.objective import Objective
from pipeline.training.p_anneal import PAnnealTerms
from pipeline.training.relu_l1 import ReluL1Terms
from pipeline.training.relu_tanh import ReluTanhTerms
from pipeline.training.resampling import Resampler
from pipeline.training.topk import TopKObjective
from schemas.activation import (
    BatchTopK,
    Gated,
    JumpRelu,
    MatryoshkaBatchTopK,
    ReluL1UnitNorm,
    ReluPAnneal,
    ReluTanh,
    TopK,
)


def objective_of(dictionary: Dictionary, kernels: Kernels) -> Objective:
    """The objective of a dictionary's spec; from now on the dictionary's products have the precision of training."""
    dictionary.product_dtype = torch.bfloat16 if dictionary.spec.compute_dtype == "bfloat16" else None
    activation = dictionary.spec.activation
    if isinstance(activation, TopK):
        return TopKObjective(dictionary, activation, kernels)
    if isinstance(activation, BatchTopK | MatryoshkaBatchTopK):
        return BatchTopKObjective(dictionary, activation, kernels)
    resampler = Resampler(dictionary, activation) if isinstance(activation, ReluL1UnitNorm) else None
    return DenseObjective(dictionary, _terms(dictionary), resampler)


def _terms(dictionary: Dictionary) -> Terms:
    activation = dictionary.spec.activation
    assert not isinstance(activation, TopK | BatchTopK | MatryoshkaBatchTopK)
    if isinstance(activation, JumpRelu) and activation.gate == "per_target":
        return GatedTargetsTerms(dictionary, activation)
    if isinstance(activation, JumpRelu):
        return JumpReluTerms(dictionary, activation)
    if isinstance(activation, Gated):
        return GatedTerms(dictionary, activation)
    if isinstance(activation, ReluTanh):
        return ReluTanhTerms(dictionary, activation)
    if isinstance(activation, ReluPAnneal):
        return PAnnealTerms(activation, dictionary.b_dec.device)
    return ReluL1Terms(dictionary, activation)
