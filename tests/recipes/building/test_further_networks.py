"""``teacher`` and ``peer``: a tiny distillation and a tiny mutual learning, resumed bit for bit."""

import sys

import pytest
import torch
from resuming import last
from tiny import TINY

import recipes
from recipes.checkpoints.load import load_checkpoint, save_checkpoint
from recipes.configuration.problems import ConfigError
from recipes.processes.stop import Stopped
from recipes.running.self_check import differing

PARTS = '''
import torch
from torch.nn import functional as F
from lightning_modules.part import Regularizer

class Distill(Regularizer):
    """Cross-entropy with the scores of another network."""
    needs = frozenset({"logits"})

    def __init__(self, *, network: str = "teacher", mutual: bool = False) -> None:
        super().__init__()
        self.network, self.mutual = network, mutual

    @property
    def views(self):
        return ("main", f"{self.network}/main")

    def forward(self, outputs, batch, step):
        own, other = outputs["main"].class_scores, outputs[f"{self.network}/main"].class_scores
        loss = -(other.detach().softmax(1) * own.log_softmax(1)).sum(1)
        return loss + F.cross_entropy(other, batch.label, reduction="none") if self.mutual else loss

class Mimic(Distill):
    """The features alone, to which classes do not matter."""
    needs = frozenset()

    def forward(self, outputs, batch, step):
        return (outputs["main"].features - outputs[f"{self.network}/main"].features).square().mean(1)
'''
SMALL = ["backbone=conv4", "backbone.kwargs.channels=[4,8]"]


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    root = tmp_path_factory.mktemp("parts")
    (root / "further_pkg").mkdir()
    (root / "further_pkg" / "parts.py").write_text(PARTS)
    sys.path.insert(0, str(root))
    yield "further_pkg"
    sys.path.remove(str(root))
    sys.modules.pop("further_pkg.parts", None)


@pytest.fixture(scope="module")
def build(package, tmp_path_factory):
    output = tmp_path_factory.mktemp("runs")
    common = [*TINY, *SMALL, "data.limit_train=24", "trainer.max_epochs=2", "evaluator=[]", f"output={output}"]

    def make(name, *words):
        return recipes.build("grocery_baseline", [*common, f"name={name}", *words], allow=[package])

    make.output = output
    return make


@pytest.fixture(scope="module")
def teacher(build):
    run = build("teacher", "seed=7")
    run.run()
    return run.directory


DISTILL = "regularizer=[further_pkg.parts.Distill]"
UNTAUGHT = ["teaching=live", "teaching.check=false"]  # a few updates leave a teacher at chance level
PEER = [DISTILL, "regularizer.distill.network=peer", "regularizer.distill.mutual=true"]


def resumed(build, package, name, *words, change=()):
    """The last checkpoints of a run in one go, and of the same in two sessions."""
    build(f"{name}_whole", *words).run()
    broken = build(f"{name}_broken", *words, "stop_after=4")
    with pytest.raises(Stopped):
        broken.run()
    recipes.resume_run(broken.directory, ["stop_after=null", *change], allow=[package]).run()
    return [last(build.output, "grocery_baseline", f"{name}_{which}") for which in ("whole", "broken")]


def test_a_teacher_is_looked_at_and_resumed_bit_for_bit(build, package, teacher):
    whole, again = resumed(build, package, "kd", DISTILL, *UNTAUGHT, f"teacher={teacher}")
    assert not (found := [line for line in differing(whole, again) if "config" not in line]), found[:5]
    keys = [key for key in whole["training"]["task"] if key.startswith("parts.networks.")]
    assert keys == ["parts.networks.teacher._extra_state"], "its weights are in no checkpoint, their checksum is"
    text = (build.output / "grocery_baseline" / "kd_whole" / "networks.txt").read_text()
    assert text.startswith(f"teacher={teacher} (sha256 ")


def test_other_weights_are_refused_by_name(build, package, teacher, tmp_path):
    content = load_checkpoint(teacher)
    content.pop("format_version")
    save_checkpoint(tmp_path / "same.ckpt", content)
    broken = build("moved", DISTILL, *UNTAUGHT, f"teacher={teacher}", "stop_after=2")
    with pytest.raises(Stopped):
        broken.run()
    content["network"]["head.bias"] += 1
    save_checkpoint(tmp_path / "other.ckpt", content)
    words = ["stop_after=null", f"teacher={tmp_path / 'other.ckpt'}"]
    with pytest.raises(ConfigError, match="teacher=.*other.ckpt has weights with the checksum .*; give the same file"):
        recipes.resume_run(broken.directory, words, allow=[package]).run()
    recipes.resume_run(
        broken.directory, ["stop_after=null", f"teacher={tmp_path / 'same.ckpt'}"], allow=[package]
    ).run()


def test_classes_in_another_order_are_brought_into_that_of_the_data(build, teacher, tmp_path):
    content = load_checkpoint(teacher)
    content.pop("format_version")
    back = list(reversed(range(40)))
    content["classes"] = [content["classes"][i] for i in back]
    for key in ("head.weight", "head.bias"):
        content["network"][key] = content["network"][key][back]
    save_checkpoint(tmp_path / "back.ckpt", content)
    runs = [build("x", DISTILL, f"teacher={place}") for place in (teacher, tmp_path / "back.ckpt")]
    image = torch.rand(2, 3, 48, 48)
    first, second = (run.task.parts.networks["teacher"](image).logits for run in runs)
    assert torch.equal(first, second)
    assert "teacher: its classes are put into the order of the data" in runs[1].reports["networks"]


def test_other_classes_give_features_and_no_logits(build, teacher, tmp_path):
    content = load_checkpoint(teacher)
    content.pop("format_version")
    content["classes"][3] = "Durian"
    save_checkpoint(tmp_path / "other.ckpt", content)
    words = [f"teacher={tmp_path / 'other.ckpt'}"]
    message = (
        "distill needs the logits of the teacher, and its 40 classes are not the 40 of the data: '.*' is none of them; "
        "fine-tune it on this data first"
    )
    with pytest.raises(ConfigError, match=message):
        build("x", DISTILL, *words)
    run = build("x", "regularizer=[further_pkg.parts.Mimic]", *words)
    output = run.task.parts.networks["teacher"](torch.rand(1, 3, 48, 48))
    assert output.logits is None and output.features is not None
    assert [line.partition(" ")[0].partition("=")[0] for line in run.reports["networks"]] == ["teacher", "teacher:"]


@pytest.mark.parametrize("key", ["teacher", "peer"])
def test_a_network_that_nobody_reads_is_refused(build, teacher, key):
    with pytest.raises(ConfigError, match=f"no part of this run reads a view of the network '{key}', so that {key}="):
        build("x", f"{key}={teacher}")


def test_a_teacher_that_cannot_see_the_images(build, tmp_path):
    import timm
    from safetensors.torch import save_file

    save_file(timm.create_model("vit_tiny_patch16_224", num_classes=40).state_dict(), tmp_path / "vit.safetensors")
    with pytest.raises(
        ConfigError, match=r"teacher vit_tiny_patch16_224 cannot run on this data's images of 48x48 .* another teacher"
    ):
        words = ["teaching=live", "teaching.image_size=data"]
        build("x", DISTILL, *words, f"teacher=vit_tiny_patch16_224@{tmp_path / 'vit.safetensors'}")


def test_a_peer_trains_and_is_resumed_bit_for_bit(build, package):
    whole, again = resumed(build, package, "peer", *PEER, "peer=conv4")
    assert not (found := [line for line in differing(whole, again) if "config" not in line]), found[:5]
    before = build("x", *PEER, "peer=conv4")
    after = whole["training"]["task"]
    start = before.task.parts.networks["peer"].state_dict()
    assert all(f"parts.networks.peer.{key}" in after for key in start)
    assert not torch.equal(after["parts.networks.peer.head.weight"], start["head.weight"])
    mine = before.task.network.state_dict()
    key = "backbone.blocks.0.0.weight"
    assert start[key].shape == mine[key].shape and not torch.equal(start[key], mine[key]), "a name is a new network"
    alone = build("x").task.network.state_dict()
    assert all(torch.equal(alone[key], mine[key]) for key in alone), "the first one starts as it does without a peer"


def test_a_peer_starts_from_a_run_or_is_of_another_backbone(build, teacher):
    peer = build("x", *PEER, f"peer={teacher}").task.parts.networks["peer"]
    wanted = load_checkpoint(teacher)["network"]
    assert all(torch.equal(value, wanted[key]) for key, value in peer.state_dict().items()) and peer.training
    other = build("x", *PEER, "peer=test_resnet").task.parts.networks["peer"]
    assert other.backbone_name == "test_resnet" and other.head.num_classes == 40
