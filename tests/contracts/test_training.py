"""Numbers that stay finite in every precision and batch, inputs left alone, and an effect that is really there."""

import copy

import pytest
import torch
from bench import EPOCHS, EVERY, PARTS, SIZE, TRAINED, Bench, canonical, each, equal, finite, names, owned, same
from partners import command, node

from kernels.batch import Step
from lightning_modules.step import run_step

#: What an empty seat means, and what synchronizes nothing with one process.
PLAIN = {"loss": "cross_entropy", "gradient": "sum", "reweighting": "uniform", "surgery": "sync_bn"}
WEIGHTED = [part for part in PARTS if "weight" in node(*part)]
#: A batch norm has no variance of one value; the task refuses such batches.
WITHOUT_BATCH_NORM = [part for part in TRAINED if not any("backbone" in word for word in command([part]))]


def without(kind, name):
    """The words of what stands beside a part, without the part itself."""
    return [word for word in command([(kind, name)]) if word.partition("=")[0].partition(".")[0] != kind]


@EVERY
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "autocast"])
def test_terms_and_gradients_are_finite(make_network, kind, name, precision):
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    bench = Bench(make_network, [(kind, name)], dtype=dtype, autocast=precision == "autocast").run()
    assert finite([value for terms in bench.history for value in terms.values()])
    assert all(value.dtype == torch.float32 for terms in bench.history for value in terms.values())
    assert finite([p.grad for p in bench.weights()]) and finite(bench.tensors())
    assert all(p.grad is not None for p in owned(bench.parts)), "a trained module of the part gets no gradient"


@each(TRAINED)
def test_a_partial_batch(make_network, kind, name):
    check_batches(make_network, kind, name, [13, 2, 31])


@each(WITHOUT_BATCH_NORM)
@pytest.mark.parametrize("index", [[], [5]], ids=["empty", "one"])
def test_a_batch_of_one_and_of_none(make_network, kind, name, index):
    check_batches(make_network, kind, name, index)


def check_batches(make_network, kind, name, index):
    bench = Bench(make_network, [(kind, name)]).run(range(EPOCHS // 2))
    for epoch in range(EPOCHS // 2, EPOCHS):
        result = bench.step(canonical(index, epoch), epoch, 2 * epoch)
    assert finite(result.terms.values()) and finite(bench.tensors()) and finite([p.grad for p in bench.weights()])


@pytest.mark.parametrize("name", names("loss"))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_losses_of_batches_with_nothing_to_compare(make_network, name, dtype):
    """Of no sample, of one, of one for each class and of one class: finite, and in the graph."""
    for index in ([], [5], [0, 1, 2], [13, 2, 31]):
        bench = Bench(make_network, [("loss", name)], dtype=dtype)
        result = bench.step(canonical(index, dtype=dtype), 0, 0)
        assert finite(result.terms.values()) and finite([p.grad for p in bench.weights()]), index
        assert index or not any(result.terms.values()), "a loss of no sample is none"


def vars_of(output):
    """The tensors of an output that are there."""
    found = {name: getattr(output, name) for name in ("features", "logits", "embedding")}
    return {name: value for name, value in found.items() if value is not None}


@EVERY
def test_inputs_are_left_alone(make_network, kind, name):
    bench = Bench(make_network, [(kind, name)]).run(range(EPOCHS - 1))
    batch, seen = canonical(range(SIZE), EPOCHS - 1), []
    before = copy.deepcopy(batch)

    def forward(image, **keys):
        output = network(image, **keys)
        seen.append((output, copy.deepcopy(output.detach())))
        return output

    network = bench.network
    step = Step(EPOCHS - 1, 38, seed=0, network=network, forward=forward, batch_size=SIZE)
    result = run_step(bench.parts, batch, step)
    bench.parts.commit(result.whole(), step)
    for field in ("image", "label", "index", "second_image", "clean_label", "survived_steps"):
        assert torch.equal(getattr(batch, field), getattr(before, field)), field
    assert batch.partner is batch.ratio is batch.clean_image is None and batch.extra == {}
    for output, copied in seen:
        assert same(vars_of(output), vars_of(copied))


@pytest.mark.parametrize(("kind", "name"), WEIGHTED, ids=[f"{kind}/{name}" for kind, name in WEIGHTED])
def test_weight_zero_is_the_baseline_bit_for_bit(make_network, kind, name):
    off = Bench(make_network, [(kind, name)], weight=0.0).run()
    plain = Bench(make_network, words=without(kind, name)).run()
    assert equal(off.weights(), plain.weights())
    assert off.parts.idle() == [], "switched off on purpose is not an error"


@EVERY
def test_it_really_changes_something(make_network, kind, name):
    """Beside the partners that its header names: other weights come out than with an empty seat."""
    bench = Bench(make_network, [(kind, name)])
    # An empty seat is a loss on class scores, which the head of a loss on embeddings does not give.
    plain = Bench(make_network, words=[] if kind in ("head", "loss") else without(kind, name)).run()
    start = copy.deepcopy(bench.weights())
    bench.run()
    assert all(not torch.equal(a, b) for a, b in zip(start, bench.weights(), strict=True)), "a weight was never trained"
    assert bench.parts.idle() == []
    backbones = [list(one.network.backbone.parameters()) for one in (bench, plain)]
    assert equal(*backbones) == (PLAIN.get(kind) == name), "see PLAIN; or give it a header with quick words"
    assert kind != "surgery" or str(bench.network.backbone) != str(plain.network.backbone), "no module was changed"


@EVERY
def test_global_random_state_is_untouched_and_runs_repeat(make_network, kind, name):
    """Draws of a part are functions of seed and update (dropout aside, which shipped parts leave off)."""
    first = Bench(make_network, [(kind, name)])
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first.run()
    assert torch.equal(torch.get_rng_state(), state)
    assert equal(first.tensors(), Bench(make_network, [(kind, name)]).run().tensors())
