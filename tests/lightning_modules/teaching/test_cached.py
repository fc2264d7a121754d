"""A cached teacher in a plain loop: what is kept, what comes back, and what is refused."""

import copy

import pytest
import torch

from kernels.batch import Output
from lightning_modules.losses.cross_entropy import CrossEntropy
from lightning_modules.part import Regularizer
from lightning_modules.parts import Parts
from lightning_modules.regularizers.distilling import Distilling
from lightning_modules.regularizers.kd import KD
from lightning_modules.step import run_step
from lightning_modules.teaching.cached import Cached
from lightning_modules.teaching.record import Record
from lightning_modules.teaching.training_images import TrainingImages

TRAIN = 40


class Norms(Regularizer):
    views = ("main", "teacher/main")
    reads_of_teacher = frozenset({"norms"})


class Features(Norms):
    reads_of_teacher = frozenset({"features"})


class Undeclared(Regularizer):
    views = ("main", "teacher/main")


class Maps(Norms):
    maps = ("final",)


class Wrong(Norms):
    reads_of_teacher = frozenset({"logits", "gradients"})


def images(**changes):
    facts = {"key": lambda: "data", "index": torch.arange(0, TRAIN, 2), "augmented": True, "augmentations": 3}
    return TrainingImages(**facts | changes)


@pytest.fixture
def make(make_network, tmp_path):
    def build(parts=None, networks=1, facts=None, **keys):
        nets = [make_network(seed=7 + i, dtype=torch.float32) for i in range(networks)]
        teacher = Cached(folder=str(tmp_path / "kept"), **keys).teacher(nets, [None] * networks)
        both = Parts(CrossEntropy(), parts or {"kd": KD()}, networks={"teacher": teacher})
        teacher.lines = teacher.begin(both, facts or images())
        teacher.parts, teacher.computed = both, []
        teacher.network.register_forward_hook(lambda module, given, gave: teacher.computed.append(len(given[0])))
        return teacher

    return build


@pytest.fixture
def batch_of(make_batch):
    def make(index, shown=0):
        batch = make_batch(index, seed=shown, dtype=torch.float32)
        return batch.replace(augmentation=torch.full_like(batch.index, shown))

    return make


def test_it_computes_once_and_reads_from_then_on(make, batch_of):
    teacher = make()
    first, second = batch_of([0, 2, 4, 6]), batch_of([0, 2, 4, 6], shown=2)
    wanted = [teacher.network(batch.image).logits for batch in (first, second)]
    teacher.computed.clear()
    for _ in range(3):
        for batch, logits in zip((first, second), wanted, strict=True):
            output = teacher(batch.image, batch=batch)
            assert torch.equal(output.logits, logits) and output.features is None
    assert teacher.computed == [4, 4, 4], "the first batch that is read is computed once more, and compared"
    mixed = batch_of([8, 0, 10, 2])
    assert torch.equal(teacher(mixed.image, batch=mixed).logits, teacher.network(mixed.image).logits)
    assert teacher.computed[3:] == [4, 4], "one row that is not there, and the whole batch is computed"
    assert teacher.file.filled() == 10


def test_another_process_reads_what_is_kept(make, batch_of):
    batch = batch_of([0, 2])
    wanted = make()(batch.image, batch=batch)
    other = make()
    other._batches = 1  # not the one that is checked
    assert torch.equal(other(batch.image, batch=batch).logits, wanted.logits) and not other.computed
    twin = copy.deepcopy(other)
    assert torch.equal(twin(batch.image, batch=batch).logits, wanted.logits)


def test_one_batch_in_a_hundred_of_the_first_epoch_is_checked(make, batch_of):
    teacher, batch = make(facts=images(index=torch.arange(600))), batch_of([0, 2])
    for _ in range(401):
        teacher(batch.image, batch=batch)
    assert len(teacher.computed) == 1 + 3, "batches 0, 100, 200; from 300 on an epoch of 600 samples is read"


@pytest.mark.parametrize(
    ("parts", "widths"),
    [
        ({"kd": KD()}, {"logits": 3}),
        ({"norms": Norms()}, {"norms": 1}),
        ({"features": Features()}, {"features": 4}),
        ({"kd": KD(), "norms": Norms()}, {"logits": 3, "norms": 1}),
        ({"features": Features(), "norms": Norms()}, {"features": 4}),
        ({"undeclared": Undeclared()}, {"logits": 3, "features": 4}),
    ],
)
def test_only_what_is_read_is_kept(make, batch_of, parts, widths):
    teacher, batch = make(parts), batch_of([0, 2, 4])
    live = teacher.network(batch.image)
    for _ in range(3):
        output = teacher(batch.image, batch=batch)
        assert teacher.record.widths == widths
        assert (output.logits is not None) == ("logits" in widths)
        assert (output.features is not None) == ("features" in widths)
        if "norms" in widths:
            assert torch.equal(output.auxiliary["feature_norm"], live.features.norm(dim=1))
    assert f"{', '.join(f'{n} {k}' for k, n in widths.items())} of 20 images in 3 augmentations" in teacher.lines[0]


def test_terms_say_what_they_read():
    assert Distilling.reads_of_teacher == {"features"} and KD.reads_of_teacher == {"logits"}


def test_half_as_large_and_the_same_whether_computed_or_read(make, batch_of):
    teacher, batch = make(dtype="float16"), batch_of([0, 2, 4])
    first, second = (teacher(batch.image, batch=batch).logits for _ in range(2))
    live = teacher.network(batch.image).logits
    assert torch.equal(first, second) and first.dtype == torch.float32 and torch.equal(first, live.half().float())
    assert teacher.record.width == make().record.width / 2


def test_the_file_is_named_after_all_that_decides_it(make, make_network, batch_of):
    batch, names = batch_of([0, 2]), []
    others = [
        {},
        {},
        {"facts": images(key=lambda: "other")},
        {"facts": images(augmentations=4)},
        {"facts": images(precision="bf16-mixed")},
        {"parts": {"norms": Norms()}},
        {"dtype": "float16"},
        {"precision": "bf16"},
        {"networks": 2},
    ]
    for keys in others:
        teacher = make(**keys)
        teacher(batch.image, batch=batch)
        names.append(teacher.file.path.name)
    assert names[0] == names[1] and len(set(names)) == len(names) - 1


def test_an_image_without_augmentation_has_one_row(make, batch_of):
    teacher = make(facts=images(augmented=False, augmentations=None))
    assert teacher.rows == 20 and "20 images are kept" in teacher.lines[0]
    assert make(facts=images(visits=2)).rows == 20 * 3 * 2


def test_a_step_hands_it_the_batch(make, make_network, batch_of, make_step):
    teacher, network = make(), make_network(dtype=torch.float32)
    batch = batch_of([0, 2, 4, 6])
    run_step(teacher.parts, batch, make_step(network), micro_batches=2)
    assert teacher.file.filled() == 4 and teacher.computed == [2, 2]


def test_without_a_batch_it_computes(make, batch_of):
    teacher, batch = make(), batch_of([1, 3])
    output = teacher(batch.image)
    assert output.features is not None and teacher.file is None


def test_a_wrong_row_ends_the_run(make, batch_of):
    teacher, batch = make(), batch_of([0, 2, 4])
    teacher(batch.image, batch=batch)
    wrong = teacher.record.rows(Output(logits=teacher.network(batch.image).logits * 1.05))
    teacher.file.write(teacher._rows_of(batch), wrong)
    message = (
        r"\.rows: the row of sample \d, augmentation 0, is 0.05 of its largest entry away .* rounding explains 0.01: "
        "the file, or the images, are not what its name says; remove the file"
    )
    with pytest.raises(ValueError, match=message):
        teacher(batch.image, batch=batch)


def test_what_other_devices_round_is_taken(make, batch_of):
    teacher, batch = make(), batch_of([0, 2, 4])
    teacher(batch.image, batch=batch)
    close = teacher.record.rows(Output(logits=teacher.network(batch.image).logits * 1.0005))
    teacher.file.write(teacher._rows_of(batch), close)
    teacher(batch.image, batch=batch)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_not_kept(make, batch_of, value):
    teacher, batch = make(), batch_of([0, 2])
    teacher.network.networks[0].head.bias.data[1] = value
    with pytest.raises(ValueError, match="logits of the teacher do not fit into float32: NaN or infinite"):
        teacher(batch.image, batch=batch)
    assert teacher.file.filled() == 0


def test_numbers_that_float16_does_not_hold():
    with pytest.raises(ValueError, match="into float16: its largest number is 65504; take teaching.dtype=float32"):
        Record({"logits": 2}, "float16").rows(Output(logits=torch.tensor([[1e5, 0.0]])))


def test_more_digits_than_rows_have():
    with pytest.raises(ValueError, match="the teacher gives logits in float64, and rows in float32 would lose them"):
        Record({"logits": 2}).rows(Output(logits=torch.zeros(1, 2, dtype=torch.float64)))


@pytest.mark.parametrize("output", [Output(), Output(logits=torch.zeros(1, 3))])
def test_an_output_that_lacks_what_is_kept(output):
    with pytest.raises(ValueError, match="2 logits of the teacher are to be kept, and it gives (nothing|3)"):
        Record({"logits": 2}).rows(output)


def test_a_batch_without_augmentations(make, make_batch):
    batch = make_batch([0, 2], dtype=torch.float32)
    with pytest.raises(ValueError, match="does not say which augmentations it shows; set data.augmentations"):
        make()(batch.image, batch=batch)


@pytest.mark.parametrize(("index", "shown"), [([1], 0), ([39], 0), ([0], 3)])
def test_samples_that_have_no_row(make, batch_of, index, shown):
    batch = batch_of(index, shown)
    with pytest.raises(ValueError, match="none of the training part, or augmentations that are not below 3, and for"):
        make()(batch.image, batch=batch)


def test_a_part_that_reads_what_there_is_not(make):
    with pytest.raises(ValueError, match="wrong says that it reads gradients of the teacher; allowed: features, l"):
        make({"wrong": Wrong()})


def test_nothing_to_keep(make):
    with pytest.raises(ValueError, match="teaching=cached keeps .*: it gives logits, and the parts read features"):
        make({"features": Features()}, networks=2)


def test_feature_maps(make):
    with pytest.raises(ValueError, match="teaching=cached: a part reads feature maps of teacher/main, which are as la"):
        make({"maps": Maps()})


def test_files_that_may_be_substituted(make):
    with pytest.raises(ValueError, match="teaching=cached: data.on_unreadable=substitute shows another image"):
        make(facts=images(substituted=True))


def test_images_first(make_network, batch_of):
    teacher = Cached().teacher([make_network(dtype=torch.float32)], [None])
    batch = batch_of([0])
    with pytest.raises(ValueError, match=r"has to know the images first; call begin\(parts, images\)"):
        teacher(batch.image, batch=batch)
