"""A frozen network: no gradient, always in eval mode, not in the checkpoint, whose checksum is."""

import copy

import pytest
import torch

from lightning_modules.frozen import Frozen, state_digest


def test_it_is_looked_at_and_not_trained(make_network, make_batch):
    network = make_network(batch_norm=True, dropout=0.5)
    frozen = Frozen(network).train()
    assert not network.training and not any(p.requires_grad for p in network.parameters())
    assert not list(frozen.parameters()) and list(frozen.state_dict()) == ["_extra_state"]
    image = make_batch([0, 1]).image
    assert torch.equal(frozen(image).logits, frozen(image).logits) and not frozen(image).logits.requires_grad


def test_it_follows_its_owner(make_network, make_batch):
    owner = torch.nn.ModuleDict({"teacher": Frozen(make_network())})
    before = owner["teacher"].checksum()
    owner.float()
    assert owner["teacher"].network.head.weight.dtype == torch.float32
    assert owner["teacher"].checksum() == before, "that of the weights as they came"
    twin = copy.deepcopy(owner)
    assert twin["teacher"].network is not owner["teacher"].network


def test_other_weights_are_refused_on_resume(make_network):
    state = Frozen(make_network(seed=0)).state_dict()
    Frozen(make_network(seed=0)).load_state_dict(state)
    with pytest.raises(ValueError, match="the frozen network has weights with the checksum .*; give the same file"):
        Frozen(make_network(seed=1)).load_state_dict(state)
    Frozen(make_network(seed=1), checked=False).load_state_dict(Frozen(make_network(), checked=False).state_dict())


def test_the_digest_is_of_names_types_and_values():
    state = {"a": torch.zeros(2), "b": torch.ones(2, dtype=torch.int64)}
    same = {"b": torch.ones(2, dtype=torch.int64), "a": torch.zeros(2)}
    others = [{**state, "a": torch.zeros(2, 1)}, {**state, "a": torch.tensor([0.0, 1e-9])}, {"a": state["a"]}]
    assert state_digest(state) == state_digest(same)
    assert len({state_digest(one) for one in [state, *others]}) == 4
