"""Activations on their way to host memory: rounded as the store rounds, whole, on CPU and on CUDA."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline.collection.staging import NUM_BUFFERS, HostStaging, PinnedRing, open_staging
from pipeline.store.words import to_words
from schemas.fields import Dtype

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def activations(seed: int, *shapes: tuple[int, ...], device: str = "cpu") -> dict[str, torch.Tensor]:
    source = torch.Generator().manual_seed(seed)
    return {f"hook{i}": (torch.randn(shape, generator=source) * 1e3).to(device) for i, shape in enumerate(shapes)}


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_the_host_rounds_as_the_store_does(dtype: Dtype) -> None:
    acts = activations(1, (2, 5, 8), (2, 5, 3))
    staging = open_staging(torch.device("cpu"), dtype)
    staged = staging.stage(acts, staging.start())
    arrived = staged.wait()
    for hook, tensor in acts.items():
        np.testing.assert_array_equal(arrived.words[hook], to_words(tensor.numpy(), dtype))
    assert arrived.copy_s == 0.0
    assert arrived.forward_s > 0.0
    staged.release()


def test_lossy_rows_come_as_float32_for_the_writer_to_round() -> None:
    acts = activations(2, (1, 4, 8))
    staging = HostStaging(torch.float32)
    (words,) = staging.stage(acts, staging.start()).wait().words.values()
    np.testing.assert_array_equal(words, acts["hook0"].numpy())
    assert isinstance(open_staging(torch.device("cpu"), "int8"), HostStaging)


def test_a_tensor_that_lies_across_memory_arrives_in_order() -> None:
    across = activations(3, (6, 4, 8))["hook0"].transpose(0, 1)
    staging = HostStaging(torch.bfloat16)
    words = staging.stage({"hook": across}, staging.start()).wait().words["hook"]
    np.testing.assert_array_equal(words, to_words(np.ascontiguousarray(across.numpy()), "bfloat16"))


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_the_device_rounds_as_the_host_does(dtype: Dtype) -> None:
    acts = activations(4, (2, 5, 8), (2, 5, 3), device="cuda")
    staging = open_staging(torch.device("cuda"), dtype)
    assert isinstance(staging, PinnedRing)
    staged = staging.stage(acts, staging.start())
    arrived = staged.wait()
    for hook, tensor in acts.items():
        np.testing.assert_array_equal(arrived.words[hook], to_words(tensor.cpu().numpy(), dtype))
    staged.release()


@pytest.mark.gpu
@needs_cuda
def test_buffers_take_turns_while_the_device_computes_and_no_batch_overwrites_another() -> None:
    staging = PinnedRing(torch.device("cuda"), torch.bfloat16)
    weights = torch.randn(512, 512, device="cuda")
    under_way, expected = [], []
    for batch in range(5 * NUM_BUFFERS):
        started = staging.start()
        acts = activations(batch, (4, 8 + batch, 512), device="cuda")["hook0"]
        for _ in range(20):
            acts = acts @ weights / 32
        expected.append(acts.clone())
        under_way.append(staging.stage({"hook": acts}, started))
        del acts
        if len(under_way) == NUM_BUFFERS:
            staged, before = under_way.pop(0), expected.pop(0)
            arrived = staged.wait()
            np.testing.assert_array_equal(arrived.words["hook"], to_words(before.cpu().numpy(), "bfloat16"))
            assert arrived.forward_s > 0
            assert arrived.copy_s > 0
            staged.release()


@pytest.mark.gpu
@needs_cuda
def test_a_batch_that_nobody_waited_for_gives_its_buffer_back() -> None:
    staging = PinnedRing(torch.device("cuda"), torch.float16, num_buffers=1)
    for batch in range(3):
        staging.stage(activations(batch, (2, 3, 4), device="cuda"), staging.start()).release()
