"""evaluate.py on the checkpoint of a real run: the same figures, predictions for any folder, and refusals."""

import csv
import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import recipes
from datamodules.sources.grocery import Grocery
from kernels.batch import Batch
from lightning_modules.evaluators.base import EvaluationData
from lightning_modules.evaluators.predict import Predict
from lightning_modules.heads.linear import Linear
from recipes.building.make import rebuild_network
from recipes.building.networks import Reference
from recipes.building.subject import Subject, network_for, source_of
from recipes.checkpoints.load import load_checkpoint, save_checkpoint
from recipes.checkpoints.stored import stored_config
from recipes.cli import evaluate
from recipes.configuration.problems import ConfigError


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The directory of a small run, and its results."""
    words = ["backbone=test_efficientnet", "data.batch_size=32", "data.limit_train=128", "data.limit_test=80"]
    words += ["trainer.max_epochs=2", "trainer.accelerator=cpu", "name=one"]
    words += [f"output={tmp_path_factory.mktemp('runs')}"]
    run = recipes.build("grocery_baseline", words)
    return run, run.run()


@pytest.fixture(scope="module")
def tiles():
    """Four real photographs, ``[48, 48, 3]`` uint8, and the whole test part."""
    data = Grocery()
    data.setup()
    return [data.test_picture(i) for i in (0, 25, 500, 999)]


@pytest.fixture
def folder(tmp_path, tiles):
    """The photographs as PNG files, one of them in a folder below and one with a formula for a name."""
    root = tmp_path / "photos"
    (root / "below").mkdir(parents=True)
    names = ["a.png", "b.png", "below/c.png", "=cmd('x').png"]
    for name, tile in zip(names, tiles, strict=True):
        Image.fromarray(np.asarray(tile)).save(root / name)
    return root


def evaluated(run):
    """The folder the newest evaluation wrote."""
    return max((run.directory / "evaluations").iterdir(), key=lambda path: path.stat().st_mtime_ns)


@pytest.mark.parametrize("target", ["checkpoints/best.ckpt", ""], ids=["file", "run directory"])
def test_the_same_figures_as_the_run(trained, target, capsys):
    run, results = trained
    assert evaluate([f"checkpoint={run.directory / target}", "device=cpu"]) == 0
    found = json.loads((evaluated(run) / "results.json").read_text())
    expected = results["test"] | {"loss": pytest.approx(results["test"]["loss"], rel=1e-6)}  # another memory format
    assert found == {"classification": expected}
    assert f"accuracy {results['test']['accuracy']:.4f}" in capsys.readouterr().out


def test_keys_of_the_data_can_be_changed(trained, tmp_path):
    run, _ = trained
    words = [f"checkpoint={run.directory}", f"output={tmp_path / 'out'}", "data.limit_test=40"]
    words += ["data.eval_batch_size=7"]
    assert evaluate(words) == 0
    first = json.loads((tmp_path / "out" / "results.json").read_text())["classification"]
    assert first["images"] == 40
    assert evaluate(words) == 0, "an existing output is kept, and a second one made beside it"
    assert json.loads((tmp_path / "out_2" / "results.json").read_text())["classification"] == first


def expected_rows(run, tiles):
    """Class names and probabilities by decreasing probability, from the checkpoint and plain code."""
    content = load_checkpoint(run.directory)
    network = rebuild_network(stored_config(content), 40, content["network"]).eval()
    pixels = torch.stack([torch.tensor(np.asarray(tile)).permute(2, 0, 1) for tile in tiles]).float() / 255
    with torch.no_grad():
        scores = network(pixels).logits.double().numpy()
    shares = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    return [[(content["classes"][c], row[c]) for c in np.argsort(-row)[:5]] for row in shares]


def test_predictions_for_a_folder(trained, folder, tiles):
    run, _ = trained
    before = sorted(folder.rglob("*"))
    assert evaluate([f"checkpoint={run.directory}", "evaluator=predict", f"data.root={folder}"]) == 0
    with open(evaluated(run) / "predictions.csv", newline="", encoding="utf-8") as file:
        header, *rows = list(csv.reader(file))
    assert header == ["path", *(f"{what}_{k}" for k in range(1, 6) for what in ("class", "probability"))]
    order = ["./=cmd('x').png", "a.png", "b.png", "below/c.png"]
    assert [row[0] for row in rows] == order, "a name that a spreadsheet would run begins with ./"
    assert all((folder / row[0]).is_file() for row in rows)
    expected = expected_rows(run, tiles)
    for row, best in zip(rows, [expected[3], *expected[:3]], strict=True):
        assert row[1::2] == [name for name, _ in best]
        assert [float(cell) for cell in row[2::2]] == pytest.approx([share for _, share in best], abs=2e-6)
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize("name", ["photos #2", "~t", "2024", "x: y"])
def test_the_folder_is_the_one_that_was_typed(trained, folder, monkeypatch, name):
    """Beside it lies one whose name is what YAML would have read."""
    monkeypatch.chdir(folder.parent)
    (folder / "below").rename(folder.parent / name)
    assert evaluate([f"checkpoint={trained[0].directory}", "evaluator=predict", f"data.root={name}"]) == 0
    rows = (evaluated(trained[0]) / "predictions.csv").read_text(encoding="utf-8").splitlines()
    assert len(rows) == 2 and rows[1].startswith('"c.png",')


def test_class_names_cannot_carry_a_formula(trained, tmp_path, tiles):
    network = trained[0].task.network
    images = torch.tensor(np.asarray(tiles[0])).permute(2, 0, 1)[None].float() / 255
    batch = Batch(images, torch.tensor([-1]), torch.tensor([0]))
    classes = tuple(f"{start}{i}" for i, start in enumerate("=+-@" * 10))
    data = EvaluationData([batch], classes, paths=["+x.png"], output=tmp_path)
    Predict(top=40)(network, data)
    with open(tmp_path / "predictions.csv", newline="", encoding="utf-8") as file:
        row = list(csv.reader(file))[1]
    assert row[0] == "./+x.png" and all(cell.startswith("'") for cell in row[1::2])
    assert {cell[1:] for cell in row[1::2]} == set(classes)


@pytest.mark.parametrize("found", [("cafe\u0301",), ("cafe",)])
def test_class_names_of_the_data_may_have_another_unicode_form(found, monkeypatch, tmp_path):
    """A checkpoint of a Linux machine, class folders of a Mac."""
    data = SimpleNamespace(
        setup=lambda: None, classes_of=lambda part: found, test_dataloader=list, train_eval_dataloader=list,
        test_is_query=None, test_picture=None, key=None, leaves_out=False, channels=3, image_size=8,
        test_paths=list, preprocessing=dict,
    )  # fmt: skip
    monkeypatch.setattr("recipes.building.subject.make_data", lambda *_, **__: data)
    monkeypatch.setattr("recipes.building.subject.check_takes", lambda *_: None)
    run = SimpleNamespace(reads="labelled", reads_logits=False, compares="network")
    network = SimpleNamespace(head=Linear(4, 1))
    subject = Subject(lambda: Reference(network, ("caf\u00e9",), None, "x"), {}, tmp_path)
    source = source_of(run, subject, None, tmp_path)
    if found == ("cafe",):
        with pytest.raises(
            ConfigError, match="class names differ from those of the checkpoint: 'caf\u00e9' there, 'cafe'"
        ):
            network_for(run, subject, source)
    else:
        assert network_for(run, subject, source) is network and source.data.classes == found


def refused(words, capsys):
    assert evaluate(words) == 2
    return capsys.readouterr().err


def test_other_classes_are_refused_and_nothing_is_left(trained, tmp_path, tiles, capsys):
    run, _ = trained
    for part in ("train", "test"):
        for name in ("apple", "pear"):
            (tmp_path / "tree" / part / name).mkdir(parents=True)
            Image.fromarray(np.asarray(tiles[0])).save(tmp_path / "tree" / part / name / "x.png")
    words = [f"checkpoint={run.directory}", "data=folder", f"data.root={tmp_path / 'tree'}", "data.val_fraction=0"]
    words += ["data.num_workers=0", "data.batch_size=1", f"output={tmp_path / 'out'}"]
    assert "the checkpoint was trained for 40 classes, the data has 2" in refused(words, capsys)
    assert not (tmp_path / "out").exists()
    content = load_checkpoint(run.directory)
    content["classes"][7] = "Durian"
    content.pop("format_version")
    save_checkpoint(tmp_path / "renamed.ckpt", content)
    error = refused([f"checkpoint={tmp_path / 'renamed.ckpt'}", f"output={tmp_path / 'out'}"], capsys)
    assert "class names differ from those of the checkpoint: 'Durian' there" in error
    assert not (tmp_path / "out").exists()


def test_weights_of_another_number_of_classes(trained, tmp_path, capsys):
    content = load_checkpoint(trained[0].directory)
    content["network"]["head.weight"] = content["network"]["head.weight"][:3]
    content.pop("format_version")
    save_checkpoint(tmp_path / "cut.ckpt", content)
    error = refused([f"checkpoint={tmp_path / 'cut.ckpt'}"], capsys)
    assert "head.weight: [3, 256] in the file, [40, 256] in the network" in error


def test_words_that_cannot_work(trained, tmp_path, folder, capsys):
    run, _ = trained
    checkpoint = f"checkpoint={run.directory}"
    shutil.rmtree(run.directory / "evaluations", ignore_errors=True)
    for words, message in {
        ("evaluator=predict",): "data.root must be given: data.root=FOLDER",
        ("evaluator=predict", "data.rot=x"): "data.rot is not a key; did you mean data.root?",
        ("evaluator=predict", f"data.root={tmp_path / 'nothing'}"): "data.root must be a folder of images",
        ("data.root=x",): "data.root is not a key",
        ("data.limit_test=many",): "data.limit_test='many' has the wrong type; allowed: int | None",
        ("evaluator=predic",): "evaluator=predic is not known; did you mean predict?",
        ("device=gpu7",): "device=gpu7 is not a device; choose auto, cpu",
        ("device=cuda:99",): "device=cuda:99 cannot be had here",
    }.items():
        assert message in refused([checkpoint, *words], capsys), words
    assert "give either checkpoint=PATH or backbone=NAME" in refused([], capsys)
    assert not (run.directory / "evaluations").exists()


def test_a_broken_image_is_named(trained, folder, capsys):
    (folder / "b.png").write_bytes((folder / "b.png").read_bytes()[:60])
    error = refused([f"checkpoint={trained[0].directory}", "evaluator=predict", f"data.root={folder}"], capsys)
    assert "cannot read image" in error and "b.png" in error


def test_training_refuses_an_evaluator_of_unlabelled_images():
    with pytest.raises(ValueError, match="evaluator predict reads a folder of images without labels"):
        recipes.build("grocery_baseline", ["backbone=test_efficientnet", "+evaluator=predict"])
