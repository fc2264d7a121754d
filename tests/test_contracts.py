"""Contracts that every part keeps, found by its YAML: a part added tomorrow is tested the moment its file exists.

Each part takes its seat beside the simplest others on the tiny network and trains a whole canonical run: ``EPOCHS``
epochs of two updates on sixteen samples that come back every epoch, long enough for shipped schedules to switch on.
"""

import copy
from contextlib import nullcontext
from itertools import combinations, product

import pytest
import torch
import yaml

from kernels.batch import Batch, Output, Step
from lightning_modules.evaluators.base import EvaluationData, Evaluator
from lightning_modules.gradients.base import Gradient
from lightning_modules.heads.base import Head
from lightning_modules.heads.linear import Linear
from lightning_modules.losses.contrastive import Contrastive
from lightning_modules.losses.cross_entropy import CrossEntropy
from lightning_modules.part import Attack, Context, Loss, Mixing, Regularizer, Reweighting, Teacher
from lightning_modules.parts import Parts
from lightning_modules.step import run_step
from recipes.catalogue import CONFIGS
from recipes.make import make

#: Folders of configs/ that hold no part; tests of their own cover them. Every other folder needs a contract.
NO_PARTS = {"backbone", "callback", "data", "optimizer", "recipe", "schedule", "surgery", "task", "trainer"}
#: What a kind is, for parts that take a seat in a training step.
TRAINED = {
    "attack": Attack,
    "gradient": Gradient,
    "head": Head,
    "loss": Loss,
    "mixing": Mixing,
    "regularizer": Regularizer,
    "reweighting": Reweighting,
}
CONTRACTS = TRAINED | {"evaluator": Evaluator}
AT_LEAST = {"loss": 16, "regularizer": 2, "mixing": 3, "head": 3, "gradient": 1, "reweighting": 1, "evaluator": 3}
PLAIN = {"loss": "cross_entropy", "gradient": "sum", "reweighting": "uniform"}
EPOCHS, SIZE, CLASSES, TRAIN = 20, 8, 3, 40


def nodes(kind):
    """{name: node} of every YAML of a kind."""
    found = {}
    for path in sorted((CONFIGS / kind).glob("*.yaml")):
        node = yaml.safe_load(path.read_text(encoding="utf-8"))
        found[path.stem] = node if "_target_" in node else node[path.stem]
    return found


def kinds(configs=CONFIGS):
    """Every folder of configs/ that holds parts."""
    return sorted({path.parent.name for path in configs.glob("*/*.yaml")} - NO_PARTS)


def check_contracts(found):
    """Fail for a kind that no test of this file would look at."""
    for kind in found:
        assert kind in CONTRACTS, (
            f"write a contract for kind {kind}: its parts are in configs/{kind}/ and untested here"
        )


KINDS = [kind for kind in kinds() if kind in TRAINED]
PARTS = [(kind, name) for kind in KINDS for name in nodes(kind)]
EVERY = pytest.mark.parametrize(("kind", "name"), PARTS, ids=[f"{kind}/{name}" for kind, name in PARTS])


class Shift(Attack):
    def forward(self, batch, step):
        return batch.replace(image=(batch.image + 0.1).clamp(0, 1), clean_image=batch.image)


class Steady(Teacher):
    @torch.no_grad()
    def forward(self, batch, step):
        return Output(logits=torch.ones(len(batch), CLASSES).to(batch.image), features=batch.image.mean((2, 3)))


class Both(Linear):
    """A head for whoever needs an embedding, also beside those who need logits."""

    gives = frozenset({"logits", "embedding"})
    embedding_dim = CLASSES

    def forward(self, features_BD, label=None):
        output = super().forward(features_BD, label)
        output.embedding = output.logits
        return output


class Bench:
    """A network and parts with the given ones in their seats, and the canonical run over them."""

    def __init__(self, make_network, chosen=(), dtype=torch.float32, autocast=False, seed=0, **changes):
        built = [(kind, name, build(kind, name, seed, **changes)) for kind, name in chosen]
        seats = {kind: part for kind, _, part in built if kind not in ("head", "regularizer")}
        every = [part for _, _, part in built]
        views = {view for part in every for view in part.views} | {need for part in every for need in part.needs}
        if views & {"adversarial", "attack"}:
            seats.setdefault("attack", Shift())
        if "teacher" in views:
            seats.setdefault("teacher", Steady())
        regularizers = {name: part for kind, name, part in built if kind == "regularizer"}
        head = next((part for kind, _, part in built if kind == "head"), None)
        self.network = make_network(seed=seed, batch_norm=False, dtype=torch.float32)
        if head is not None:
            self.network.head = head
        elif "embedding" in views:
            self.network.head = Both(4, CLASSES)
        self.network.to(dtype)
        pairs = "pair_form" in views or "logits" not in self.network.head.gives
        loss = seats.pop("loss", Contrastive() if pairs else CrossEntropy())
        self.parts = Parts(loss, regularizers, **seats, head=self.network.head)
        self.parts.setup(context(self.network))
        self.optimizer = torch.optim.SGD([*self.network.parameters(), *owned(self.parts)], 0.1, momentum=0.9)
        self.dtype, self.autocast, self.history = dtype, autocast, []

    def step(self, batch, epoch, update):
        network = self.network.train()
        step = Step(epoch, update, seed=0, network=network, forward=network, batch_size=len(batch))
        self.optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16) if self.autocast else nullcontext():
            result = run_step(self.parts, batch, step)
        self.optimizer.step()
        self.parts.commit(*result.whole(), step)
        return result

    def run(self, epochs=range(EPOCHS)):
        for epoch in epochs:
            for half in range(2):
                batch = canonical(range(SIZE * half, SIZE * half + SIZE), epoch, self.dtype)
                self.history.append(self.step(batch, epoch, 2 * epoch + half).terms)
            self.parts.end_epoch()
        return self

    def tensors(self):
        """Everything training has changed: weights, and state of the parts."""
        return [*self.network.state_dict().values(), *self.parts.state_dict().values()]

    def weights(self):
        return list(self.network.parameters())


def build(kind, name, seed=0, **changes):
    torch.manual_seed(seed)
    return make(nodes(kind)[name] | changes, *((4, CLASSES) if kind == "head" else ()))


def owned(parts):
    return [p for p in parts.parameters() if p.requires_grad]


def context(network):
    return Context(CLASSES, TRAIN, max_epochs=EPOCHS, steps_per_epoch=2, network=network)


def canonical(index, epoch=0, dtype=torch.float32):
    """Images of these samples with noise of this epoch; every field that a part may read is there."""
    index = torch.tensor(list(index))
    generator = torch.Generator().manual_seed(epoch)
    image = torch.rand(TRAIN, 3, 5, 5, generator=torch.Generator().manual_seed(99))
    noise = 0.1 * torch.rand(TRAIN, 3, 5, 5, generator=generator)
    first, second = ((image * 0.9 + n)[index].to(dtype) for n in (noise, noise.flip(-1)))
    label = (index * 7 + index // 3) % CLASSES
    return Batch(first, label, index, second_image=second, clean_label=label, survived_steps=index % 4)


def equal(ours, theirs):
    return len(ours) == len(theirs) and all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def finite(tensors):
    return all(bool(tensor.isfinite().all()) for tensor in tensors if tensor.is_floating_point())


def test_every_kind_has_a_contract():
    check_contracts(kinds())
    assert set(AT_LEAST) <= set(kinds())


def test_the_first_part_of_a_new_kind_is_seen(tmp_path):
    for kind in ("attack", "data", "purification", "nothing_yet"):
        (tmp_path / kind).mkdir()
    for kind in ("attack", "data", "purification"):
        (tmp_path / kind / "first.yaml").write_text("_target_: a.b.C")
    assert kinds(tmp_path) == ["attack", "purification"]
    check_contracts(["attack"])
    with pytest.raises(AssertionError, match="write a contract for kind purification"):
        check_contracts(kinds(tmp_path))


@pytest.mark.parametrize("kind", sorted({*AT_LEAST, *KINDS}))
def test_every_yaml_of_a_kind_was_found(kind):
    assert len(nodes(kind)) >= AT_LEAST.get(kind, 1)
    listed = EVALUATORS if kind == "evaluator" else [name for other, name in PARTS if other == kind]
    assert sorted(nodes(kind)) == sorted(listed)


EVALUATORS = sorted(nodes("evaluator"))


@pytest.mark.parametrize(("kind", "name"), [*PARTS, *(("evaluator", name) for name in EVALUATORS)])
def test_builds_as_what_its_folder_says(kind, name):
    part = build(kind, name)
    assert isinstance(part, CONTRACTS[kind])
    assert type(part).__module__ == f"lightning_modules.{CONFIGS_TO_FOLDERS.get(kind, kind + 's')}.{name}"


CONFIGS_TO_FOLDERS = {"loss": "losses", "mixing": "mixing"}


@EVERY
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "autocast"])
def test_terms_and_gradients_are_finite(make_network, kind, name, precision):
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    bench = Bench(make_network, [(kind, name)], dtype, autocast=precision == "autocast").run()
    assert finite([value for terms in bench.history for value in terms.values()])
    assert all(value.dtype == torch.float32 for terms in bench.history for value in terms.values())
    assert finite([p.grad for p in bench.weights()]) and finite(bench.tensors())
    assert all(p.grad is not None for p in owned(bench.parts)), "a trained module of the part gets no gradient"


@EVERY
@pytest.mark.parametrize("index", [[5], [13, 2, 31]], ids=["one", "partial"])
def test_small_batches(make_network, kind, name, index):
    bench = Bench(make_network, [(kind, name)]).run(range(EPOCHS // 2))
    for epoch in range(EPOCHS // 2, EPOCHS):
        result = bench.step(canonical(index, epoch), epoch, 2 * epoch)
    assert finite(result.terms.values()) and finite(bench.tensors()) and finite([p.grad for p in bench.weights()])


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
    bench.parts.commit(*result.whole(), step)
    for field in ("image", "label", "index", "second_image", "clean_label", "survived_steps"):
        assert torch.equal(getattr(batch, field), getattr(before, field)), field
    assert batch.partner is batch.ratio is batch.clean_image is None and batch.extra == {}
    for output, copied in seen:
        assert same(vars_of(output), vars_of(copied))


@EVERY
def test_a_resumed_run_equals_the_uninterrupted_one(make_network, kind, name):
    whole = Bench(make_network, [(kind, name)]).run()
    first = Bench(make_network, [(kind, name)]).run(range(EPOCHS // 2))
    fresh = Bench(make_network, [(kind, name)], seed=1)
    for what in ("network", "parts", "optimizer"):
        state = copy.deepcopy(getattr(first, what).state_dict())
        getattr(fresh, what).load_state_dict(state)
    fresh.run(range(EPOCHS // 2, EPOCHS))
    assert equal(fresh.tensors(), whole.tensors())
    assert [list(terms) for terms in fresh.history] == [list(terms) for terms in whole.history[EPOCHS:]]
    assert fresh.parts.report() == whole.parts.report() and fresh.parts.idle() == whole.parts.idle()


def vars_of(output):
    """The tensors of an output that are there."""
    found = {name: getattr(output, name) for name in ("features", "logits", "embedding")}
    return {name: value for name, value in found.items() if value is not None}


def frozen(part):
    """A copy of all that a state_dict holds: tensors, and what get_extra_state gives."""
    return copy.deepcopy(dict(part.state_dict()))


def same(ours, theirs):
    """Equal bit for bit: tensors by dtype and value, plain values by type too; nan equals itself."""
    if isinstance(ours, torch.Tensor) and isinstance(theirs, torch.Tensor):
        return ours.dtype == theirs.dtype and torch.allclose(ours, theirs, rtol=0, atol=0, equal_nan=True)
    if isinstance(ours, dict) and isinstance(theirs, dict):
        return list(ours) == list(theirs) and all(same(ours[key], theirs[key]) for key in ours)
    if isinstance(ours, list | tuple) and isinstance(theirs, list | tuple):
        return len(ours) == len(theirs) and all(same(a, b) for a, b in zip(ours, theirs, strict=True))
    return type(ours) is type(theirs) and repr(ours) == repr(theirs)


def told(bench):
    """All that the parts say, read in the order of a run: the row of the epoch, the report, who never acted."""
    return bench.parts.end_epoch(), bench.parts.report(), bench.parts.idle()


@EVERY
def test_a_part_writes_state_only_in_commit(make_network, kind, name):
    """An update that is computed and left out leaves no trace, neither in the state nor in what follows."""
    bench = Bench(make_network, [(kind, name)]).run(range(EPOCHS - 1))
    twin, epoch = copy.deepcopy(bench), EPOCHS - 1
    before = frozen(bench.parts), frozen(bench.network.head)
    step = Step(epoch, 2 * epoch, seed=0, network=bench.network, forward=bench.network, batch_size=SIZE)
    run_step(bench.parts, canonical(range(SIZE), epoch), step, micro_batches=2)
    assert same((frozen(bench.parts), frozen(bench.network.head)), before)
    for each in (bench, twin):
        each.step(canonical(range(SIZE, 2 * SIZE), epoch), epoch, 2 * epoch + 1)
    assert same(bench.tensors(), twin.tensors()) and same(told(bench), told(twin))


@EVERY
def test_all_state_travels_in_a_checkpoint(make_network, tmp_path, kind, name):
    """Saved inside an epoch in which the part acts, and loaded by fresh parts: they go on and report the same."""
    whole, epoch = Bench(make_network, [(kind, name)]).run(range(EPOCHS // 2)), EPOCHS // 2
    whole.step(canonical(range(SIZE), epoch), epoch, 2 * epoch)
    saved = {what: getattr(whole, what).state_dict() for what in ("network", "parts", "optimizer")}
    torch.save(saved, tmp_path / "state.pt")
    fresh = Bench(make_network, [(kind, name)], seed=1)
    for what, state in torch.load(tmp_path / "state.pt", weights_only=True).items():
        getattr(fresh, what).load_state_dict(state)
    for bench in (whole, fresh):
        bench.history = [bench.step(canonical(range(SIZE, 2 * SIZE), epoch), epoch, 2 * epoch + 1).terms]
    assert same(told(fresh), told(whole))
    for bench in (whole, fresh):
        bench.run(range(epoch + 1, EPOCHS))
    assert same(fresh.history, whole.history) and same(fresh.tensors(), whole.tensors())
    assert same(told(fresh), told(whole))


def test_the_two_contracts_above_can_fail(make_network):
    """A part that counts in its forward, and one that keeps state beside the state_dict, are caught."""

    class Counts(Regularizer):
        def __init__(self):
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))
            self.beside = 0

        def forward(self, outputs, batch, step):
            self.calls += 1
            return 0 * outputs["main"].class_scores.sum(1)

        def commit(self, outputs, batch, step):
            self.beside += 1

        def report(self):
            return {"updates": self.beside}

    bench, other = Bench(make_network), Bench(make_network)
    for each in (bench, other):
        each.parts.regularizers["counts"] = Counts()
        each.parts._writers.append(each.parts.regularizers["counts"])
    before = frozen(bench.parts)
    bench.step(canonical(range(SIZE)), 0, 0)
    assert not same(frozen(bench.parts), before)
    other.parts.load_state_dict(bench.parts.state_dict())
    assert same(frozen(other.parts), frozen(bench.parts)) and not same(told(other), told(bench))


@EVERY
def test_a_deepcopy_lives_its_own_life(make_network, kind, name):
    bench = Bench(make_network, [(kind, name)]).run(range(EPOCHS // 2))
    twin, before = copy.deepcopy(bench), [tensor.clone() for tensor in bench.tensors()]
    twin.run(range(EPOCHS // 2, EPOCHS))
    assert equal(bench.tensors(), before) and not equal(bench.weights(), twin.weights())
    bench.run(range(EPOCHS // 2, EPOCHS))
    assert equal(bench.tensors(), twin.tensors())


WEIGHTED = [(kind, name) for kind, name in PARTS if "weight" in nodes(kind)[name]]


@pytest.mark.parametrize(("kind", "name"), WEIGHTED, ids=[f"{kind}/{name}" for kind, name in WEIGHTED])
def test_weight_zero_is_the_baseline_bit_for_bit(make_network, kind, name):
    off = Bench(make_network, [(kind, name)], weight=0.0).run()
    beside = [("loss", "contrastive")] if "pair_form" in build(kind, name).needs else []
    plain = Bench(make_network, beside).run()
    assert equal(off.weights(), plain.weights())
    assert off.parts.idle() == [], "switched off on purpose is not an error"


@EVERY
def test_it_really_changes_something(make_network, kind, name):
    plain, bench = Bench(make_network).run(), Bench(make_network, [(kind, name)])
    start = copy.deepcopy(bench.weights())
    bench.run()
    assert all(not torch.equal(a, b) for a, b in zip(start, bench.weights(), strict=True)), "a weight was never trained"
    assert bench.parts.idle() == []
    if PLAIN.get(kind) == name:
        assert equal(bench.weights(), plain.weights()), "an empty seat means this very part"
    elif kind != "head":  # another head starts from other weights anyway
        assert not equal(list(bench.network.backbone.parameters()), list(plain.network.backbone.parameters()))


@EVERY
def test_global_random_state_is_untouched_and_runs_repeat(make_network, kind, name):
    """Draws of a part are functions of seed and update (dropout aside, which shipped parts leave off)."""
    first = Bench(make_network, [(kind, name)])
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first.run()
    assert torch.equal(torch.get_rng_state(), state)
    assert equal(first.tensors(), Bench(make_network, [(kind, name)]).run().tensors())


def chosen(kind):
    return [pair for pair in PARTS if pair[0] == kind]


PAIRS = [pair for one, other in combinations(KINDS, 2) for pair in product(chosen(one), chosen(other))]
PAIRS += combinations(chosen("regularizer"), 2)


def check_refusal(error):
    """A ValueError of the composition, not any other that building and setting up could raise."""
    first, *problems = str(error).splitlines()
    assert first == "these parts cannot work together:" and problems, f"not refused but broken: {error!r}"


def test_another_error_is_no_refusal():
    with pytest.raises(AssertionError, match="not refused but broken: ValueError.'weight must"):
        check_refusal(ValueError("weight must not be negative, got -1"))


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: "+".join(name for _, name in pair))
def test_composition_matrix(make_network, pair):
    """Every pair trains, or is refused before the first batch with the reason that one of the two declares."""
    try:
        bench = Bench(make_network, pair)
    except ValueError as error:
        check_refusal(error)
        declared = [reason for kind, name in pair for reason in build(kind, name).refuses.values()]
        for line in str(error).splitlines()[1:]:
            subject, _, reason = line.partition(": ")
            assert reason in declared or " needs " in subject, line
            assert len(reason.split()) >= 8, "a reason is a sentence"
        return
    start = copy.deepcopy(bench.weights())
    bench.run([0, EPOCHS // 2])
    assert finite(bench.tensors()) and not equal(start, bench.weights())
    names = {name for terms in bench.history for name in terms}
    assert {name for kind, name in pair if kind == "regularizer"} <= names, "a regularizer left no term"


def test_the_matrix_refuses_what_it_must_and_little_else(make_network):
    refused = []
    for pair in PAIRS:
        try:
            Bench(make_network, pair)
        except ValueError as error:
            check_refusal(error)
            refused.append({name for _, name in pair})
    assert {"saf", "mixup"} in refused and {"saf", "cutmix"} in refused and {"mesa", "mixup"} not in refused
    # What trains an embedding and what reads class scores have no head in common, and mixed labels make no pairs.
    apart = [pair for pair in refused if not any(_embeds(name) for name in pair)]
    assert len(PAIRS) >= 150 and len(apart) <= (len(PAIRS) - len(refused)) / 4


def _embeds(name):
    return name in ("embedding", "metrix") or (
        name in nodes("loss") and "embedding" in make(nodes("loss")[name]).needs
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", EVALUATORS)
def test_an_evaluator_only_looks(make_network, tmp_path, name, dtype):
    """On a network of any type in training mode: finite metrics, the same twice, and nothing changed."""
    network, evaluator = make_network(batch_norm=True, dtype=dtype).train(), build("evaluator", name)
    batches = [canonical(range(start, start + SIZE)) for start in range(0, TRAIN, SIZE)]
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
