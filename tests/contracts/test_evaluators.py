"""Evaluators on a network of any type in training mode."""

import copy

import pytest
import torch
from bench import CLASSES, EVALUATORS, SIZE, TRAIN, build, canonical, each, enlarged, equal, finite

from lightning_modules.evaluators.base import EvaluationData


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@each(EVALUATORS)
def test_an_evaluator_only_looks(make_network, tmp_path, kind, name, dtype):
    """On a network of any type in training mode: finite metrics, the same twice, and nothing changed."""
    network, evaluator = make_network(batch_norm=True, dtype=dtype).train(), build(kind, name)
    batches = [enlarged(canonical(range(start, start + SIZE)), [evaluator]) for start in range(0, TRAIN, SIZE)]
    kept, before = copy.deepcopy(batches), copy.deepcopy(network.state_dict())
    names = tuple(f"class {c}" for c in range(CLASSES))
    paths = [f"{i}.png" for i in range(TRAIN)]
    data = EvaluationData(batches, names, paths=paths, output=tmp_path, train=lambda: iter(batches))
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first, second = evaluator(network, data), evaluator(network, data)
    assert torch.equal(torch.get_rng_state(), state) and network.training
    assert first.metrics and first.metrics == second.metrics
    assert finite([torch.tensor(float(value)) for value in first.metrics.values()])
    assert equal([*network.state_dict().values()], [*before.values()]) and all(
        p.grad is None for p in network.parameters()
    )
    for batch, copied in zip(batches, kept, strict=True):
        assert torch.equal(batch.image, copied.image) and torch.equal(batch.label, copied.label)
