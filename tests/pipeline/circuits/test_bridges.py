"""Bridges: exact where the networks are the same, better with training, and interventions that move the dense read."""

from __future__ import annotations

import pytest
import torch

from pipeline.circuits.bridges import Bridges, gone_on, streams, sublayer_points
from pipeline.networks import HeadworksDecoderForCausalLM, build_network
from schemas.errors import MismatchError, SpecError
from schemas.network import NetworkSpec

POINTS = sublayer_points(2)


def decoder(width: int, seed: int, *, layers: int = 2) -> HeadworksDecoderForCausalLM:
    network = build_network(NetworkSpec(layers=layers, d_model=width, heads=2, d_mlp=16), 24, seed)
    network.requires_grad_(False)
    network.train(False)
    for parameter in network.parameters():
        parameter.mul_(8)
    return network


def tokens(seed: int) -> torch.Tensor:
    return torch.randint(24, (8, 10), generator=torch.Generator().manual_seed(seed))


def test_a_network_goes_on_from_its_own_stream() -> None:
    network = decoder(12, 0)
    kept, logits = streams(network, tokens(0), POINTS)
    assert list(kept) == POINTS
    for point in POINTS:
        torch.testing.assert_close(gone_on(network, tokens(0), point, kept[point]), logits)
    changed = gone_on(network, tokens(0), POINTS[1], kept[POINTS[1]] + 1)
    assert not torch.allclose(changed, logits)


def test_identities_join_a_network_to_itself() -> None:
    network = decoder(12, 0)
    bridges = Bridges(network, network, kept_share=1.0)
    with torch.no_grad():
        for bridge in bridges.bridges:
            for linear in (bridge.encode[0], bridge.decode):
                linear.weight.copy_(torch.eye(12))
                linear.bias.zero_()
        found = bridges.losses(tokens(1))
    assert max(float(found.nmse), float(found.kl_to_sparse), float(found.kl_to_dense)) == pytest.approx(0, abs=1e-5)


def test_the_nmse_is_one_for_bridges_that_say_nothing() -> None:
    bridges = Bridges(decoder(12, 0), decoder(20, 1))
    with torch.no_grad():
        for parameter in bridges.parameters():
            parameter.zero_()
        assert float(bridges.losses(tokens(1)).nmse) == pytest.approx(2 * len(POINTS))


def test_training_brings_the_networks_together() -> None:
    dense, sparse = decoder(12, 0), decoder(20, 1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        bridges = Bridges(dense, sparse, kept_share=0.5)
    assert sum(parameter.numel() for parameter in bridges.parameters()) == 4 * (12 * 20 * 2 + 12 + 20)
    optimiser = torch.optim.Adam(bridges.parameters(), lr=1e-2)
    before = bridges.losses(tokens(99))
    for step in range(40):
        optimiser.zero_grad()
        bridges.losses(tokens(step)).total().backward()
        optimiser.step()
    after = bridges.losses(tokens(99))
    assert float(after.nmse.detach()) < 0.95 * float(before.nmse.detach())
    assert float(after.kl_to_sparse.detach()) < 0.7 * float(before.kl_to_sparse.detach())
    assert float(after.kl_to_dense.detach()) < 0.7 * float(before.kl_to_dense.detach())


@pytest.mark.parametrize("sublayer", [0, 1, 2, 3])
def test_an_intervention_moves_the_dense_read_as_the_bridged_stream_does(sublayer: int) -> None:
    """Of a read (stream over its scale, times a gain) that changes by ``change`` the stream changes by ``change`` times
    scale over gain; the bridge maps that, and the dense norm reads it."""
    dense, sparse = decoder(12, 0), decoder(20, 1)
    norm_of = {0: "0.ln_1", 1: "0.ln_2", 2: "1.ln_1", 3: "1.ln_2"}[sublayer]
    norms = [network.model.blocks.get_submodule(norm_of) for network in (dense, sparse)]
    for seed, norm in enumerate(norms):
        norm.weight.copy_(torch.rand(norm.weight.shape, generator=torch.Generator().manual_seed(seed)) + 0.5)
    bridges = Bridges(dense, sparse)
    bridge = bridges.bridges[sublayer]
    sparse_scale, dense_scale, change = 3.0, 2.0, 0.7
    row = torch.zeros(20)
    row[5] = change * sparse_scale / norms[1].weight[5]
    with torch.no_grad():
        expected = (bridge.decode(row) - bridge.decode(torch.zeros(20))) / dense_scale * norms[0].weight
    ratio = sparse_scale / dense_scale
    found = bridges.intervention(POINTS[sublayer], 5, change, scale_ratio=ratio, strength=1.0)
    torch.testing.assert_close(found, expected)
    half = bridges.intervention(POINTS[sublayer], 5, change, scale_ratio=ratio, strength=0.5)
    torch.testing.assert_close(half, found / 2)


def test_a_channel_that_is_not_read_cannot_be_changed() -> None:
    dense, sparse = decoder(12, 0), decoder(20, 1)
    sparse.model.blocks[0].ln_2.weight[5] = 0
    with pytest.raises(SpecError, match="does not read channel 5 at"):
        Bridges(dense, sparse).intervention(POINTS[1], 5, 1.0, scale_ratio=1.0, strength=1.0)


def test_networks_of_other_depth_are_refused() -> None:
    with pytest.raises(MismatchError, match="the dense network has 2 layers and 24 tokens, the sparse one 1"):
        Bridges(decoder(12, 0), decoder(12, 1, layers=1))
