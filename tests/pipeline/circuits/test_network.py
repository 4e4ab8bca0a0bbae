"""Gates: their slope, exactness at both ends, and the switch that keeps norms as they were."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.circuits.gate import gate
from pipeline.circuits.network import MaskedNetwork, load_decoder
from pipeline.circuits.nodes import Nodes
from pipeline.circuits.tasks.pairs import Pairs, make_pairs
from pipeline.models.hooks import resolve, tap
from pipeline.networks import build_network
from pipeline.tokens.tokenizer import Tokenizer
from schemas.circuit import TaskSpec
from schemas.errors import ModelError
from schemas.model import ModelSpec
from schemas.network import LOCATIONS, LaurelResidual, NetworkSpec

SMALL = NetworkSpec(layers=2, d_model=12, heads=2, d_mlp=20, bigram_table=True, activation_fraction=0.5)


def small(seed: int = 3, *, freeze: bool = False) -> MaskedNetwork:
    decoder = build_network(SMALL, 40, seed)
    decoder.train(False)
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed)) * 0.3)
    number = Nodes(SMALL).number
    means = torch.randn(number, generator=torch.Generator().manual_seed(seed))
    return MaskedNetwork(decoder, means, freeze_norm_scale=freeze)


def prompts(seed: int = 0) -> Pairs:
    generator = torch.Generator().manual_seed(seed)
    answers = torch.tensor([[5, 6], [5, 6], [7, 8], [7, 8]])
    return Pairs(torch.randint(40, (4, 9), generator=generator), torch.tensor([9, 7, 5, 9]), answers)


@given(st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=8), st.floats(0.1, 4))
def test_a_gate_has_the_slope_of_the_sigmoid(values: list[float], temperature: float) -> None:
    leaf = torch.tensor(values, requires_grad=True)
    found = gate(leaf, temperature)
    assert found.tolist() == [float(value > 0) for value in values]
    weights = torch.arange(1.0, len(values) + 1)
    (found * weights).sum().backward()
    twin = torch.tensor(values, requires_grad=True)
    (torch.sigmoid(twin / temperature) * weights).sum().backward()
    torch.testing.assert_close(leaf.grad, twin.grad)


def test_nodes_are_numbered_by_layer_location_and_channel() -> None:
    nodes = Nodes(SMALL)
    assert nodes.number == 2 * (4 * 12 + 3 * 12 + 20)
    assert [place.location for place in nodes.places] == [*LOCATIONS, *LOCATIONS]
    place, channel = nodes.where(nodes.place(1, "attn_k").start + 7)
    assert (place.layer, place.location, channel, nodes.head(place, channel)) == (1, "attn_k", 7, 1)


def test_open_gates_change_nothing_and_margins_are_those_of_the_logits() -> None:
    network, pairs = small(), prompts()
    intact = network.margins(pairs)
    assert torch.equal(network.margins(pairs, torch.ones(network.nodes.number)), intact)
    logits = network.decoder(pairs.token_ids).logits
    rows = torch.arange(4)
    last = logits[rows, pairs.lengths - 1]
    torch.testing.assert_close(intact, last[rows, pairs.answers[:, 0]] - last[rows, pairs.answers[:, 1]])


def test_a_shut_gate_holds_its_node_at_the_mean() -> None:
    network, pairs = small(), prompts()
    neurons, out = network.nodes.place(1, "mlp_neuron"), network.nodes.place(1, "mlp_out")
    gates = torch.ones(network.nodes.number)
    gates[neurons.start + 4] = 0
    seen: dict[str, torch.Tensor] = {}
    # Hooks run in the order in which they are added, so these see what the network itself computes.
    handles = [
        tap(site, lambda acts, name=site.name: seen.__setitem__(name, acts.clone()))  # type: ignore[misc]
        for site in resolve(network.decoder.model, [neurons.hook, out.hook])
    ]
    with torch.no_grad():
        network.margins(pairs, gates)
    for handle in handles:
        handle.remove()
    expected = seen[neurons.hook].clone()
    expected[..., 4] = network._means[neurons.start + 4]
    block = network.decoder.model.blocks[1]
    torch.testing.assert_close(seen[out.hook], block.mlp_out(block.mlp.down_proj(expected)))


def test_frozen_norms_divide_by_what_they_divide_by_in_the_intact_network() -> None:
    frozen, plain, pairs = small(freeze=True), small(), prompts()
    all_open = torch.ones(frozen.nodes.number)
    torch.testing.assert_close(frozen.margins(pairs, all_open), plain.margins(pairs))
    gates = all_open.clone()
    gates[frozen.nodes.place(1, "mlp_out").nodes] = 0
    gates[frozen.nodes.place(1, "attn_out").nodes] = 0
    # Behind the last block there is only the last norm: by hand, from the stream with and without what layer 1 writes.
    streams: list[torch.Tensor] = []
    handle = frozen.decoder.model.ln_f.register_forward_pre_hook(lambda _, args: streams.append(args[0]))
    with torch.no_grad():
        found = frozen.margins(pairs, gates)
    handle.remove()
    intact, ablated = streams
    norm, rows = frozen.decoder.model.ln_f, torch.arange(4)
    scale = (intact.square().mean(-1, keepdim=True) + norm.eps).sqrt()
    hidden = (ablated / scale * norm.weight)[rows, pairs.lengths - 1]
    weights = frozen.decoder.lm_head.weight + 0
    logits = hidden @ weights.T + frozen.decoder.bigram.weight[pairs.token_ids[rows, pairs.lengths - 1]]
    expected = logits[rows, pairs.answers[:, 0]] - logits[rows, pairs.answers[:, 1]]
    torch.testing.assert_close(found, expected)
    assert not torch.allclose(found, plain.margins(pairs, gates))


def test_other_networks_are_refused(tmp_path: object) -> None:
    decoder = build_network(SMALL.model_copy(update={"residual": LaurelResidual()}), 40, 0)
    decoder.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="residual of kind 'laurel'"):
        load_decoder(ModelSpec(path=str(tmp_path), device="cpu"))


def test_the_planted_network_knows_its_task(network: MaskedNetwork, tokenizer: Tokenizer) -> None:
    pairs = make_pairs("single_double_quote", tokenizer, TaskSpec(pairs=64), "search")
    assert ((network.margins(pairs) * pairs.signs) > 3).all()
