"""Embeddings are read where nothing has changed, bit for bit, and computed again where anything has."""

import os
import stat

import pytest
import torch
from torch import nn

from lightning_modules.evaluators.base import EvaluationData, evaluate_all
from lightning_modules.evaluators.classification import ClassificationEvaluator
from lightning_modules.evaluators.embedded import Embedded
from lightning_modules.evaluators.feature_cache import NAMES, FeatureCache, features_key
from lightning_modules.evaluators.retrieval import RetrievalEvaluator
from lightning_modules.evaluators.utilization import Utilization

EVALUATORS = {"retrieval": RetrievalEvaluator(ks=[1]), "utilization": Utilization()}


class Source:
    """Test images 0..19 and training images 20..39, and how often each part was read."""

    def __init__(self, make_batch, cache, name="set"):
        self.make_batch, self.cache, self.name = make_batch, cache, name
        self.read = {"test": 0, "train_eval": 0}

    def part(self, name):
        self.read[name] += 1
        start = 20 * (name == "train_eval")
        for first in (start, start + 10):
            yield self.make_batch(range(first, first + 10), dtype=torch.float32)

    @property
    def data(self):
        return EvaluationData(
            batches=self.part("test"),
            classes=("a", "b", "c"),
            train=lambda: self.part("train_eval"),
            key=lambda part: f"{self.name}/{part}",
            cache=self.cache,
        )

    def evaluate(self, network, evaluators=EVALUATORS):
        """Metrics of each, and the parts that were read for them."""
        before = dict(self.read)
        # The generator counts when it is started, so a part that nobody iterates over is not read.
        done, failed = evaluate_all(evaluators, network, self.data)
        assert not failed
        metrics = {name: evaluation.metrics for name, evaluation in done.items()}
        return metrics, {part for part, count in self.read.items() if count > before[part]}


@pytest.fixture
def network(make_network):
    return make_network(batch_norm=True, dtype=torch.float32).eval()


@pytest.fixture
def rows(network, make_batch):
    """The rows of the test part, as they are computed."""
    batches = [make_batch(range(first, first + 10), dtype=torch.float32) for first in (0, 10)]
    kept = Embedded(network, EvaluationData(batches, ("a",)))
    with torch.no_grad():
        for batch in batches:
            kept.add(batch, network(batch.image))
    return kept.whole()


def equal(ours, theirs):
    return all(a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_evaluators_of_one_command_embed_each_part_once(network, make_batch):
    plain = Source(make_batch, None)
    expected, read = plain.evaluate(network)
    assert read == {"test", "train_eval"}
    source = Source(make_batch, FeatureCache())
    retrieval = {"retrieval": EVALUATORS["retrieval"]}
    assert source.evaluate(network, retrieval) == ({"retrieval": expected["retrieval"]}, {"test"})
    utilization = {"utilization": EVALUATORS["utilization"]}
    assert source.evaluate(network, utilization) == ({"utilization": expected["utilization"]}, {"train_eval"})
    assert source.evaluate(network) == (expected, set())
    assert source.evaluate(network) == (expected, set()), "nobody changed what is kept"


def test_an_evaluator_that_reads_images_gets_them_all_the_same(network, make_batch):
    expected, _ = Source(make_batch, None).evaluate(network, {"c": ClassificationEvaluator(), **EVALUATORS})
    source = Source(make_batch, FeatureCache())
    source.evaluate(network)
    both = {"c": ClassificationEvaluator(), **EVALUATORS}
    assert source.evaluate(network, both) == (expected, {"test"})


def one_weight(network):
    with torch.no_grad():
        network.backbone.conv.weight[0, 0, 0, 0] += 1e-6


def one_statistic(network):
    network.backbone.norm.running_mean[0] += 1e-6


def another_module(network):
    network.backbone.dropout = nn.ReLU()


def another_setting(network):
    network.backbone.norm.eps = 1e-3


def a_setting_that_no_repr_shows(network):
    network.backbone._slopes = [0.5]


def another_surgery(network):
    network.surgery_config = {"tract": {"_target_": "x"}}


def another_type(network):
    network.double()


CHANGES = [
    one_weight,
    one_statistic,
    another_module,
    another_setting,
    a_setting_that_no_repr_shows,
    another_surgery,
    another_type,
]


@pytest.mark.parametrize("on_disk", [False, True])
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_rows_of_another_network_are_not_read(make_network, make_batch, tmp_path, change, on_disk):
    def source(cache=None):
        return Source(make_batch, FeatureCache(tmp_path / "kept") if on_disk else cache)

    cache = FeatureCache()
    first, second = (make_network(batch_norm=True, dtype=torch.float32).eval() for _ in range(2))
    everything = {"test", "train_eval"}
    assert source(cache).evaluate(first)[1] == everything
    assert source(cache).evaluate(second)[1] == set(), "the same weights in another object"
    change(second)
    found, read = source(cache).evaluate(second)
    assert read == everything and found == Source(make_batch, None).evaluate(second)[0]
    assert source(cache).evaluate(first)[1] == set(), "what was kept before is still there"


def test_rows_of_other_data_are_not_read(network, make_batch, tmp_path):
    folder = tmp_path / "kept"
    assert Source(make_batch, FeatureCache(folder)).evaluate(network)[1] == {"test", "train_eval"}
    assert Source(make_batch, FeatureCache(folder), name="other").evaluate(network)[1] == {"test", "train_eval"}
    assert Source(make_batch, FeatureCache(folder)).evaluate(network)[1] == set()


def test_precision_and_libraries_are_in_the_key(network, monkeypatch):
    one = features_key(network, "data")
    assert features_key(network, "data") == one != features_key(network, "other data")
    with torch.autocast("cpu", torch.bfloat16):
        assert features_key(network, "data") != one
    monkeypatch.setattr("lightning_modules.evaluators.feature_cache.version", lambda package: "0")
    assert features_key(network, "data") != one


def test_a_plain_tensor_of_a_module_is_in_the_key_and_use_changes_nothing(network):
    keys = set()
    for value in (0.0, 1.0):
        network.backbone.offsets = torch.zeros(5000)
        network.backbone.offsets[2500] = value
        keys.add(features_key(network, "data"))
        network(torch.rand(2, 3, 5, 5))
        keys.add(features_key(network, "data"))
    assert len(keys) == 2


def test_files_are_read_bit_for_bit(rows, tmp_path):
    folder = tmp_path / "not" / "there"
    FeatureCache(folder).keep("a" * 64, rows)
    (path,) = folder.iterdir()
    assert path.name == "a" * 64 + ".safetensors", "and nothing half written beside it"
    assert path.stat().st_size < sum(value.nbytes for value in rows) + 2000
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(folder.stat().st_mode) & 0o666
    assert equal(FeatureCache(folder).read("a" * 64), rows)
    assert FeatureCache(folder).read("b" * 64) is None and FeatureCache().read("a" * 64) is None


@pytest.mark.filterwarnings("ignore:the embeddings are not kept in")
@pytest.mark.parametrize("damage", ["one bit", "cut", "empty", "another key", "text", "folder", "another shape"])
def test_a_file_that_is_not_what_was_kept_is_passed_over(network, make_batch, tmp_path, damage):
    expected, _ = Source(make_batch, FeatureCache(tmp_path)).evaluate(network)
    for path in list(tmp_path.iterdir()):
        content = bytearray(path.read_bytes())
        content[-3] ^= damage == "one bit"
        path.unlink()
        if damage == "folder":
            path.mkdir()
        elif damage == "another key":
            FeatureCache(tmp_path).keep("c" * 64, tuple(torch.zeros(2, 2) for _ in NAMES))
            os.replace(tmp_path / f"{'c' * 64}.safetensors", path)
        elif damage == "another shape":
            path.write_bytes(content.replace(b'"shape":[20,4]', b'"shape":[4,20]'))
        else:
            path.write_bytes({"cut": content[:-9], "empty": b"", "text": b"nothing"}.get(damage, bytes(content)))
    with pytest.warns(UserWarning, match="is passed over, and the embeddings are computed again: "):
        found, read = Source(make_batch, FeatureCache(tmp_path)).evaluate(network)
    assert found == expected and read == {"test", "train_eval"}
    if damage != "folder":
        assert Source(make_batch, FeatureCache(tmp_path)).evaluate(network) == (expected, set()), "and written anew"


def test_a_folder_that_cannot_be_written_costs_a_warning(network, make_batch, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.warns(UserWarning, match="the embeddings are not kept in .*file"):
        found, _ = Source(make_batch, FeatureCache(tmp_path / "file")).evaluate(network)
    assert found == Source(make_batch, None).evaluate(network)[0]
