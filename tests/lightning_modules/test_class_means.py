"""Class means of a network: streaming, over processes, and the file that keeps them."""

import multiprocessing
import queue
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file
from torch import distributed, nn

from kernels.batch import Batch, Output
from lightning_modules.class_counts import ClassCounts
from lightning_modules.class_means import KeptMeans, SavedMeans, class_means_of, load_class_means
from lightning_modules.frozen import Frozen
from lightning_modules.part import TrainingData

IMAGES = torch.rand(23, 3, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
LABELS = torch.arange(23) * 5 % 7 % 4  # of five classes, the last one does not occur


class Pooled(nn.Module):
    """The mean and the largest of each channel; batch norm and dropout, which eval mode keeps still."""

    def __init__(self):
        super().__init__()
        self.norm, self.dropout = nn.BatchNorm2d(3).double(), nn.Dropout(0.5)

    def forward(self, image):
        image = self.dropout(self.norm(image))
        return Output(features=torch.cat([image.mean((2, 3)), image.amax((2, 3))], 1))


def batches(*sizes):
    index = torch.arange(23)
    return [Batch(IMAGES[rows], LABELS[rows], rows) for rows in index.split(sizes)]


@pytest.mark.parametrize("sizes", [(23,), (1,) * 23, (8, 8, 7), (2, 20, 1)])
def test_any_split_gives_the_means_of_a_loop(sizes):
    network = Pooled()
    found = class_means_of(network, batches(*sizes), 5, "cpu")
    network.eval()
    with torch.no_grad():
        features = network(IMAGES).features
    for c in range(5):
        own = [features[i] for i in range(23) if int(LABELS[i]) == c]
        wanted = torch.stack(own).mean(0) if own else torch.zeros(6, dtype=torch.float64)
        torch.testing.assert_close(found.means()[c], wanted, rtol=0, atol=1e-14)
        assert int(found.counts[c]) == len(own)
    assert found.means().dtype == torch.float64 and int(found.counts[4]) == 0


def test_it_only_looks():
    network = Pooled()
    network.norm.eval()
    modes = [module.training for module in network.modules()]
    before = {key: value.clone() for key, value in network.state_dict().items()}
    state = torch.get_rng_state()

    def drawing():
        torch.rand(3)
        yield from batches(23)

    found = class_means_of(network, drawing(), 5, "cpu")
    assert torch.equal(torch.get_rng_state(), state) and not found.sums.requires_grad
    assert [module.training for module in network.modules()] == modes == [True, False, True]
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def test_what_there_can_be_no_means_of():
    with pytest.raises(ValueError, match="there is no image to take class means of; check data.root"):
        class_means_of(Pooled(), [], 5, "cpu")
    with pytest.raises(ValueError, match="labels from 0 to 3 for the means of 3 classes; they must be 0 to 2"):
        class_means_of(Pooled(), batches(23), 3, "cpu")

    class Several(nn.Module):
        def forward(self, image):
            return Output()

    with pytest.raises(ValueError, match="Several gives no features, of which .*; take a single network"):
        class_means_of(Several(), batches(23), 5, "cpu")


def share(rank):
    return [batch.split(2)[rank] for batch in batches(8, 8, 7)]


def child(rank, rendezvous, results):
    try:
        torch.set_num_threads(1)
        distributed.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
        found, counts = class_means_of(Pooled(), share(rank), 5, "cpu"), ClassCounts(5)
        counts.prepare(TrainingData(lambda: share(rank), Pooled(), torch.device("cpu")))
        results.put((rank, [found.sums.tolist(), found.counts.tolist(), counts.counts.tolist()]))
        distributed.destroy_process_group()
    except BaseException as error:
        results.put((rank, error))


@pytest.mark.fault
def test_two_processes_with_half_of_every_batch_have_the_means_of_all(tmp_path):
    context = multiprocessing.get_context("forkserver")
    results = context.Queue()
    processes = [context.Process(target=child, args=(r, tmp_path / "meet", results), daemon=True) for r in range(2)]
    for process in processes:
        process.start()
    try:
        found = dict(results.get(timeout=60) for _ in processes)
    except queue.Empty:
        pytest.fail("the processes waited for each other")
    finally:
        for process in processes:
            process.join(10)
            process.kill()
    for outcome in found.values():
        if isinstance(outcome, BaseException):
            raise outcome
    whole = class_means_of(Pooled(), batches(23), 5, "cpu")
    assert found[0] == found[1], "all processes have the same"
    torch.testing.assert_close(torch.tensor(found[0][0], dtype=torch.float64), whole.sums, rtol=0, atol=1e-13)
    assert found[0][1] == whole.counts.tolist() == found[0][2]


@pytest.fixture
def saved(tmp_path):
    found = class_means_of(Pooled(), batches(23), 5, "cpu")
    kept = SavedMeans(found.means(), found.counts, "abc", "key", ("a", "b", "c", "d", "ä"))
    kept.save(tmp_path / "means.safetensors")
    return kept, tmp_path / "means.safetensors"


def test_a_file_brings_back_what_was_saved(saved):
    kept, path = saved
    for asked in ({}, {"network": "abc", "data": "key", "width": 6, "num_classes": 5}):
        found = load_class_means(path, **asked)
        assert torch.equal(found.means, kept.means) and torch.equal(found.counts, kept.counts)
        assert (found.network, found.data, found.classes) == ("abc", "key", ("a", "b", "c", "d", "ä"))
    assert [file.name for file in path.parent.iterdir()] == ["means.safetensors"], "nothing half done is left"


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"network": "abd"}, "of the network with the checksum abc, and abd is asked for; compute them anew"),
        ({"data": "other"}, "of the data with the key key, and other is asked for; compute them anew"),
        ({"width": 7}, "of features of width 6, and 7 is asked for; compute them anew"),
        ({"num_classes": 4}, "of as many classes as 5, and 4 is asked for; compute them anew"),
        ({"width": 7, "num_classes": 4}, "of features of width 6, and 7 is asked for; of as many classes as 5, and 4"),
    ],
)
def test_means_of_something_else_are_refused(saved, asked, message):
    with pytest.raises(ValueError, match=message):
        load_class_means(saved[1], **asked)


def test_damaged_files_are_refused(tmp_path):
    path = tmp_path / "x.safetensors"
    means, counts = torch.zeros(2, 3, dtype=torch.float64), torch.tensor([1, 0])
    facts = {"format": "class_means/1", "network": "a", "data": "", "classes": "[]"}
    with pytest.raises(ValueError, match="x.safetensors is not a safetensors file, or is damaged"):
        load_class_means(path)
    cases = [
        ({"means": means, "counts": counts}, facts | {"format": "y"}, r"is no file of class means \(class_means/1 is"),
        ({"means": means}, facts, "is no file of class means"),
        ({"means": means.float(), "counts": counts}, facts, "holds means of type torch.float32 .* expected are finite"),
        ({"means": means + torch.nan, "counts": counts}, facts, "expected are finite float64"),
        ({"means": means, "counts": counts - 1}, facts, "of at least 0; compute the class means anew"),
        ({"means": means, "counts": counts[:1]}, facts, r"counts of type torch.int64 and shape \[1\]"),
        ({"means": means, "counts": counts}, facts | {"classes": '["a"]'}, "must name none or all of its 2 classes"),
        ({"means": means, "counts": counts}, facts | {"classes": "{"}, "names its classes in no form that can be read"),
    ]
    for tensors, stated, message in cases:
        save_file(tensors, path, stated)
        with pytest.raises(ValueError, match=message):
            load_class_means(path)


def test_kept_means_are_state(tmp_path):
    network = Frozen(Pooled())
    kept, again = (KeptMeans(network, 5, 6, lambda part: f"key of {part}") for _ in range(2))
    with pytest.raises(ValueError, match=r"there are no class means yet; call prepare\(data\) once, before the first"):
        kept.check(LABELS)
    kept.prepare(batches(23), torch.device("cpu"))
    again.load_state_dict(kept.state_dict())
    again.save(tmp_path / "x.safetensors")
    found = load_class_means(tmp_path / "x.safetensors", network=network.checksum(), data="key of train_eval")
    assert torch.equal(found.means, kept.means) and found.classes == ()


def test_a_class_without_a_mean_whose_label_occurs():
    kept = KeptMeans(Frozen(Pooled()), 5, 6)
    kept.prepare(batches(23), torch.device("cpu"))
    kept.check(LABELS)
    soft = torch.full((2, 5), 0.02, dtype=torch.float64)  # smoothed: every class has a share
    soft[:, 1] = 0.92
    kept.check(soft)
    for labels in (torch.tensor([0, 4, 4]), soft[:, [0, 4, 2, 3, 1]]):
        with pytest.raises(ValueError, match="class 4 has no mean: no training sample had this label .*; give prepare"):
            kept.check(labels)


def test_classes_that_all_have_means_are_not_looked_for():
    """No read of the device in a step, where every class has samples."""
    kept = KeptMeans(Frozen(Pooled()), 4, 6)
    kept.prepare(batches(23), torch.device("cpu"))
    kept.check(LABELS)
    kept.check(SimpleNamespace())  # not touched
