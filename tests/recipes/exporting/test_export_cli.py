"""export.py on the checkpoint of a real run: plain timm loads the file and gives the run's own logits."""

import json

import pytest
import timm
import torch
from safetensors import safe_open

import recipes
from recipes.building.exported import load_exported
from recipes.building.make import rebuild_network
from recipes.checkpoints.load import load_checkpoint
from recipes.checkpoints.stored import stored_config
from recipes.cli import export


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The run of a small net, with an average of its weights."""
    words = ["backbone=test_efficientnet", "data.batch_size=32", "data.limit_train=128", "data.limit_test=80"]
    words += ["trainer.max_epochs=1", "trainer.accelerator=cpu", "task.ema_decay=0.5", "name=one"]
    run = recipes.build("grocery_baseline", [*words, f"output={tmp_path_factory.mktemp('runs')}"])
    run.run()
    return run


@pytest.fixture(scope="module")
def photographs(trained):
    """Real test images ``[80, 3, 48, 48]`` and the logits of the network the run selected."""
    content = load_checkpoint(trained.directory)
    network = rebuild_network(stored_config(content), 40, content["network"]).eval()
    images = next(iter(trained.data.test_dataloader())).image
    with torch.no_grad():
        return images, network(images).logits


def test_plain_timm_gives_the_logits_of_the_run(trained, photographs, capsys):
    assert export([f"checkpoint={trained.directory}"]) == 0
    path = trained.directory / "export" / "grocery_baseline.safetensors"
    assert capsys.readouterr().out.strip() == str(path)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    assert json.loads(metadata["classes"]) == list(trained.data.classes)
    stated = json.loads(metadata["preprocessing"])
    assert (stated["image_size"], stated["resize_size"], stated["input_size"]) == (48, 48, [3, 48, 48])
    model = timm.create_model("test_efficientnet", num_classes=40, checkpoint_path=str(path)).eval()
    images, expected = photographs
    mean, std = (torch.tensor(stated[name]).view(3, 1, 1) for name in ("mean", "std"))
    with torch.no_grad():
        torch.testing.assert_close(model((images - mean) / std), expected, rtol=0, atol=1e-4)
        torch.testing.assert_close(load_exported(path)[0](images).logits, expected, rtol=0, atol=1e-5)
    assert float(expected.std()) > 0, "logits that are all equal would prove nothing"


def test_the_average_is_what_is_exported(trained, photographs):
    images, expected = photographs
    with torch.no_grad():
        assert not torch.allclose(trained.task.network.eval()(images).logits, expected, rtol=0, atol=1e-4)


def test_a_cosine_head_lies_beside_the_backbone(trained, tmp_path, capsys, photographs):
    words = ["backbone=cifar_resnet20", "backbone.kwargs.width=2", "head=cosine", "data.limit_train=32"]
    words += ["data.batch_size=32", "data.limit_test=40", "trainer.max_epochs=1", "trainer.accelerator=cpu"]
    run = recipes.build("grocery_baseline", [*words, f"output={tmp_path}"])
    run.run()
    capsys.readouterr()
    target = tmp_path / "new" / "net.safetensors"
    assert export([f"checkpoint={run.directory / 'checkpoints' / 'last.ckpt'}", f"output={target}"]) == 0
    assert capsys.readouterr().out.split() == [str(target), str(target.with_suffix(".head.safetensors"))]
    images = photographs[0][:8]
    network = run.task.evaluated_network.eval()
    with torch.no_grad():
        torch.testing.assert_close(load_exported(target)[0](images).logits, network(images).logits, rtol=0, atol=1e-5)


def refused(words, capsys):
    assert export(words) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    return captured.err


def test_refusals(trained, tmp_path, capsys):
    checkpoint, target = f"checkpoint={trained.directory}", tmp_path / "net.safetensors"
    target.write_text("precious")
    assert f"{target} exists and is not overwritten; choose another output=" in refused(
        [checkpoint, f"output={target}"], capsys
    )
    assert target.read_text() == "precious"
    for words, message in {
        ("format=onnx",): "format='onnx' has the wrong type; allowed: Literal['timm']",
        (f"output={tmp_path / 'net.bin'}",): "timm tells the format by the ending; use net.safetensors",
        ("outptu=x",): "outptu is not a key; did you mean output?",
    }.items():
        assert message in refused([checkpoint, *words], capsys)
    assert "there is no checkpoint" in refused([f"checkpoint={tmp_path / 'none.ckpt'}"], capsys)
    assert "checkpoint must be given: checkpoint=VALUE (str)" in refused([], capsys)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["net.safetensors"]
