"""``init``: what is loaded, what is not and why, and that a run that goes on needs the file no more."""

import pytest
import timm
import torch
from resuming import finish, go_on, last
from safetensors.torch import save_file
from tiny import TINY

import recipes
from recipes.building.initialization import initialize
from recipes.building.networks import network_of
from recipes.checkpoints.load import load_checkpoint, save_checkpoint
from recipes.configuration.problems import ConfigError
from recipes.running.self_check import differing

WORDS = [*TINY, "data.limit_train=16", "trainer.max_epochs=2", "evaluator=[]"]
SMALL = ["backbone=conv4", "backbone.kwargs.channels=[4,8]"]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    run = recipes.build("grocery_baseline", [*WORDS, *SMALL, "name=first", f"output={tmp_path_factory.mktemp('runs')}"])
    run.run()
    return run.directory


def build(tmp_path, name, *words):
    return recipes.build("grocery_baseline", [*WORDS, f"output={tmp_path}", f"name={name}", *words])


def report(run):
    """{first word of a line of the summary: the rest}."""
    return dict(line.split(": ", 1) for line in run.reports["init"][1:] if not line.startswith("  "))


def test_equal_networks_start_as_the_other_ended(source, tmp_path):
    run = build(tmp_path, "equal", *SMALL, f"init={source}", "seed=3")
    wanted = load_checkpoint(source)["network"]
    found = run.task.network.state_dict()
    assert found.keys() == wanted.keys() and all(torch.equal(found[key], wanted[key]) for key in wanted)
    summary = report(run)
    assert summary["loaded"].startswith(f"{len(wanted)} weights")
    assert summary["resampled"] == summary["left as initialized"] == summary["unused"] == "none"


def test_other_classes_and_other_widths_are_left_as_initialized(source, tmp_path):
    content = load_checkpoint(source)
    content.pop("format_version")
    content["classes"][0] = "Durian"
    save_checkpoint(tmp_path / "other.ckpt", content)
    plain = build(tmp_path, "plain", "backbone=conv4", "backbone.kwargs.channels=[4,6,8]")
    run = build(
        tmp_path, "part", "backbone=conv4", "backbone.kwargs.channels=[4,6,8]", f"init={tmp_path / 'other.ckpt'}"
    )
    found, before, given = (
        net.state_dict() for net in (run.task.network, plain.task.network, network_of(str(source)).network)
    )
    lines = {line.split(": ")[0].split()[-1]: line for line in run.reports["init"] if line.startswith("  ")}
    assert lines["backbone.blocks.0.0.weight"] == "  changed backbone.blocks.0.0.weight: loaded"
    assert torch.equal(found["backbone.blocks.0.0.weight"], given["backbone.blocks.0.0.weight"])
    for key, reason in {
        "backbone.blocks.1.0.weight": r"[8, 4, 3, 3] there, [6, 4, 3, 3] here",
        "head.weight": "its classes are others",
        "backbone.blocks.2.0.weight": "other.ckpt has none",
    }.items():
        assert lines[key].startswith(f"  left {key}: as initialized, ") and lines[key].endswith(reason)
        assert torch.equal(found[key], before[key]), "and no draw of the initialization has moved"


def test_position_embeddings_are_resampled_and_the_classifier_is_another(tmp_path):
    torch.manual_seed(0)
    save_file(timm.create_model("test_vit").state_dict(), tmp_path / "vit.safetensors")
    run = build(
        tmp_path, "vit", "backbone=test_vit", "backbone.kwargs.img_size=48", f"init=test_vit@{tmp_path}/vit.safetensors"
    )
    summary = report(run)
    assert summary["resampled"] == "1 weights (backbone.pos_embed)"
    assert summary["left as initialized"] == "2 weights (head.weight, head.bias)"
    assert any("its classes are others" in line for line in run.reports["init"])


def test_weights_of_a_plain_network_come_in_front_of_surgery(source, tmp_path):
    run = build(tmp_path, "ws", *SMALL, f"init={source}", "surgery=[ws]", "optimizer.weight_decay=0")
    assert report(run)["left as initialized"] == "none"


def test_constants_of_the_images_come_along_unless_they_are_stated(source, tmp_path):
    stated = ["backbone.mean=[0.1,0.1,0.1]", "backbone.std=[0.2,0.2,0.2]"]
    run = build(tmp_path, "stated", *SMALL, *stated, f"init={source}")
    assert torch.allclose(run.task.network.normalize.mean, torch.tensor(0.1).double())
    assert report(run)["left as initialized"] == "2 weights (normalize.mean, normalize.std)"
    other = build(tmp_path, "first", *SMALL, *stated)
    found = network_of(str(source)).network
    initialize(found, recipes_reference(other.task.network), tuple(other.data.classes), own_constants=False)
    assert torch.allclose(found.normalize.std, torch.tensor(0.2).double())


def recipes_reference(network):
    from recipes.building.networks import Reference

    return Reference(network, None, None, "other")


def test_what_cannot_be_a_start(source, tmp_path):
    with pytest.raises(
        ConfigError, match="none of its weights fits the backbone test_resnet; .* choose backbone=conv4"
    ):
        build(tmp_path, "x", "backbone=test_resnet", f"init={source}")
    with pytest.raises(ConfigError, match="init=conv5 is not known; did you mean conv4"):
        build(tmp_path, "x", "init=conv5")


def test_a_run_that_goes_on_needs_the_file_no_more_and_takes_no_other(source, tmp_path):
    file = tmp_path / "start.ckpt"
    content = load_checkpoint(source)
    content.pop("format_version")
    save_checkpoint(file, content)
    words = [*SMALL, f"init={file}"]
    assert finish(build(tmp_path, "whole", *words)) is None
    assert finish(build(tmp_path, "broken", *words, "stop_after=3")) is not None
    folder = tmp_path / "grocery_baseline" / "broken"
    assert "loaded: " in (folder / "init.txt").read_text()
    for path in tmp_path.glob("start.ckpt*"):
        path.unlink()
    with pytest.raises(ConfigError, match="init is .*start.ckpt' in the run and 'resnet18' now"):
        recipes.resume_run(folder, ["init=resnet18"])
    assert go_on(tmp_path, "grocery_baseline", "broken", "stop_after=null") is None
    whole, again = (last(tmp_path, "grocery_baseline", name) for name in ("whole", "broken"))
    assert whole["init"] == again["init"] == {"reference": str(file), "checksum": network_of(str(source)).checksum}
    found = [line for line in differing(whole, again) if "config" not in line]
    assert not found, found[:5]
