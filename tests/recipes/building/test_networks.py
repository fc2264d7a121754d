"""A network by reference: every kind gives the same network, and evaluate.py takes any of them."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from tiny import TINY

import recipes
from datamodules.sources.grocery import Grocery
from lightning_modules.backbones.classifier import own_classifier
from lightning_modules.backbones.timm_backbone import create_backbone
from recipes.building.networks import network_of, order_of
from recipes.checkpoints.load import load_checkpoint
from recipes.cli import evaluate
from recipes.exporting.export_checkpoint import export_checkpoint

WEIGHTS = Path(os.environ.get("DATA_ROOT", "/nonexistent")) / "weights"
SMALL = "test_efficientnet"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    words = [*TINY, f"backbone={SMALL}", "data.limit_train=16", "trainer.max_epochs=1", "evaluator=[]", "name=one"]
    built = recipes.build("grocery_baseline", [*words, f"output={tmp_path_factory.mktemp('runs')}"])
    built.run()
    return built


@pytest.fixture(scope="module")
def timms(tmp_path_factory):
    """timm's model with all of its 1000 classes, and its file in timm's key names."""
    torch.manual_seed(5)
    model = timm.create_model(SMALL).eval()
    model.bn1.running_mean.normal_()
    path = tmp_path_factory.mktemp("weights") / "lite.safetensors"
    save_file(model.state_dict(), path)
    return model, path


@pytest.fixture
def hub(timms, monkeypatch):
    """timm's hub, which holds that file."""

    def load(model, *args, filter_fn=None, num_classes=1000, **keys):
        state = timms[0].state_dict()
        if num_classes == 0:
            state = {key: value for key, value in state.items() if not key.startswith("classifier.")}
        model.load_state_dict(state)

    monkeypatch.setattr("timm.models._builder.load_pretrained", load)


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """Photographs in folders named as the second and the third of ImageNet's classes."""
    root, data = tmp_path_factory.mktemp("tree"), Grocery()
    data.setup()
    for part in ("train", "test"):
        for number, name in enumerate(("n01484850", "n01443537")):
            (root / part / name).mkdir(parents=True)
            for i in range(3):
                tile = np.asarray(data.test_picture(200 * number + i))
                Image.fromarray(tile).resize((160, 160)).save(root / part / name / f"{i}.png")
    return root


def folder_words(tree):
    return [f"data.root={tree}", "data.val_fraction=0", "data.num_workers=0", "data.batch_size=2",
            "data.image_size=48", "data.resize_size=48", "data=folder", "device=cpu"]  # fmt: skip


IMAGE = torch.rand(2, 3, 48, 48, generator=torch.Generator().manual_seed(0))


def test_a_run_its_checkpoint_and_its_export_are_one_network(run, tmp_path):
    best = load_checkpoint(run.directory)
    (file,) = export_checkpoint(checkpoint=str(run.directory), output=str(tmp_path / "one.safetensors"))
    found = [network_of(str(place)) for place in (run.directory, run.directory / "checkpoints" / "best.ckpt", file)]
    assert {reference.checksum for reference in found} == {found[0].checksum}
    for reference in found:
        assert reference.classes == tuple(best["classes"])
        assert reference.preprocessing["image_size"] == 48 and not reference.network.training
        assert torch.equal(reference.network(IMAGE).logits, found[0].network(IMAGE).logits)
    assert [reference.folder for reference in found] == [run.directory, run.directory, tmp_path]
    assert found[0].config["seed"] == 0 and found[2].config is None


def test_a_file_of_timm_and_a_name_of_timm_keep_the_classifier(timms, hub):
    model, path = timms
    found = [network_of(f"{SMALL}@{path}"), network_of(f"{SMALL}.r160_in1k")]
    assert found[0].checksum == found[1].checksum
    for reference in found:
        normalized = (IMAGE - torch.tensor(model.pretrained_cfg["mean"]).view(3, 1, 1)) / torch.tensor(
            model.pretrained_cfg["std"]
        ).view(3, 1, 1)
        torch.testing.assert_close(reference.network(IMAGE).logits, model(normalized), rtol=1e-4, atol=1e-5)
        assert len(reference.classes) == 1000 and reference.classes[:2] == ("n01440764", "n01443537")
        assert reference.preprocessing["image_size"] == 160


@pytest.mark.parametrize(
    "name", ["test_vit", "test_resnet", "test_convnext", "test_mambaout", "test_byobnet", "test_nfnet", "resnetv2_50"]
)
def test_one_linear_layer_behind_the_features_is_timms_classifier(name, tmp_path):
    model = timm.create_model(name).eval()
    save_file(model.state_dict(), tmp_path / "x.safetensors")
    size = model.pretrained_cfg["input_size"][-1]
    image = torch.rand(1, 3, size, size)
    network = network_of(f"{name}@{tmp_path / 'x.safetensors'}").network
    with torch.no_grad():
        torch.testing.assert_close(network(image).logits, model(network.normalize(image)), rtol=1e-4, atol=1e-5)


def test_several_heads_and_weights_without_one_are_no_classifier(tmp_path):
    keys = {"img_size": 32, "embed_dim": 8, "depth": 1, "num_heads": 2}
    model = timm.create_model("deit_tiny_distilled_patch16_224", **keys)
    save_file(model.state_dict(), tmp_path / "x.safetensors")
    backbone = create_backbone(name="deit_tiny_distilled_patch16_224", kwargs=keys)
    assert own_classifier(backbone, str(tmp_path / "x.safetensors")) is None
    body = timm.create_model(SMALL, num_classes=0)
    save_file(body.state_dict(), tmp_path / "body.safetensors")
    reference = network_of(f"{SMALL}@{tmp_path / 'body.safetensors'}")
    assert not reference.classifies and reference.classes is None
    assert reference.network(IMAGE).embedding is not None


def test_a_damaged_classifier_is_refused(timms, tmp_path):
    state = dict(timms[0].state_dict())
    state["classifier.weight"] = state["classifier.weight"] * float("nan")
    save_file(state, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match=f"the classifier of {SMALL} cannot be computed with: weight holds"):
        network_of(f"{SMALL}@{tmp_path / 'x.safetensors'}")


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("resnet81", r"teacher=resnet81 is not known; did you mean .*; a network is also a run directory, FILE.ckpt"),
        ("none.safetensors", "teacher=none.safetensors: there is no file none.safetensors"),
        ("resnet18@none.safetensors", "teacher=resnet18@none.safetensors: there is no file"),
        ("runs/none", "teacher=runs/none: there is no checkpoint runs/none"),
        ("resnet18.none", "resnet18 has no weights 'none'"),
        ("conv4", r"teacher=conv4: .*timm has no weights for conv4.*; a file of weights is teacher=conv4@FILE"),
        ("FILE", "the file does not say of which model its weights are; write teacher=NAME@"),
    ],
)
def test_what_is_no_reference(reference, message, timms):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        network_of(reference.replace("FILE", str(timms[1])) if reference == "FILE" else reference, "teacher")


def test_without_the_hub_a_name_says_how_to_do_without(monkeypatch):
    def unreachable(*args, **keys):
        raise OSError("no network")

    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", unreachable)
    message = "peer=resnet10t.c3_in1k: could not get timm's weights for .*; a file of weights is peer=resnet10t@FILE"
    with pytest.raises(FileNotFoundError, match=message):
        network_of("resnet10t.c3_in1k", "peer")


def test_the_order_of_classes_is_by_name():
    assert order_of(("a", "caf\u00e9", "b"), ("b", "cafe\u0301")) == [2, 1]
    assert order_of(("a", "b"), ("b", "c")) is None


def plain_accuracy(timms, tree):
    """timm's model on the folder, in plain code: the larger of two scores."""
    model, right, names = timms[0], 0, ("n01443537", "n01484850")
    for label, name in enumerate(names):
        for i in range(3):
            with Image.open(tree / "test" / name / f"{i}.png") as file:
                image = np.asarray(file.resize((48, 48), Image.Resampling.BICUBIC))
            pixels = torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float() / 255
            mean, std = (torch.tensor(model.pretrained_cfg[key]).view(3, 1, 1) for key in ("mean", "std"))
            with torch.no_grad():
                right += int(model((pixels - mean) / std)[0, 1:3].argmax()) == label
    return right / 6


def test_evaluating_a_timm_model_is_a_plain_timm_loop(timms, hub, tree, tmp_path, capsys):
    words = [f"backbone={SMALL}.r160_in1k", *folder_words(tree), "evaluator=[classification,retrieval]"]
    assert evaluate([*words, f"output={tmp_path / 'out'}"]) == 0, capsys.readouterr().err
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["classification"]["accuracy"] == pytest.approx(plain_accuracy(timms, tree))
    assert results["retrieval"]["queries"] == 6
    assert "the data has 2 of the 1000 classes of the backbone: only they are compared" in capsys.readouterr().out


def test_a_file_with_classes_is_evaluated_too(run, tmp_path, capsys):
    (file,) = export_checkpoint(checkpoint=str(run.directory), output=str(tmp_path / "one.safetensors"))
    assert evaluate([f"checkpoint={file}", "device=cpu"]) == 2
    assert "one.safetensors holds no recipe that says on which images; add data=NAME" in capsys.readouterr().err
    words = ["data=grocery", "data.limit_test=40", "device=cpu"]
    for place in (file, run.directory):
        assert evaluate([f"checkpoint={place}", *words, f"output={tmp_path}/out_{place.name}"]) == 0
    found = [
        json.loads((tmp_path / f"out_{place.name}" / "results.json").read_text()) for place in (file, run.directory)
    ]
    assert found[0]["classification"] == pytest.approx(found[1]["classification"], rel=1e-5)


def test_classes_that_a_timm_model_does_not_know(timms, tmp_path, capsys):
    words = [f"backbone={SMALL}", f"backbone.pretrained={timms[1]}", "data=grocery", "data.limit_test=40"]
    words += ["device=cpu", f"output={tmp_path / 'out'}"]
    assert evaluate(words) == 2
    error = capsys.readouterr().err
    assert "the backbone was trained for 1000 classes, the data has 40, and 'Golden-Delicious' is none of them" in error
    assert "evaluate its features with evaluator=[retrieval]" in error and not (tmp_path / "out").exists()


@pytest.mark.skipif(not WEIGHTS.is_dir(), reason="needs DATA_ROOT/weights")
def test_the_shared_cifar_classifiers_are_references():
    reference = network_of(f"cifar_resnet20@{WEIGHTS / 'cifar10_resnet20.safetensors'}")
    assert reference.classifies and reference.network.head.num_classes == 10 and reference.classes is None
    assert (
        network_of(f"tf_efficientnet_lite0@{WEIGHTS / 'tf_efficientnet_lite0.safetensors'}").classes[-1] == "n15075141"
    )
