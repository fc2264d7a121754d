"""``evaluate.py query=... index=...``: the neighbours that the evaluation saw, and what is refused."""

import json
import shutil
from pathlib import Path

import faiss
import numpy as np
import pytest
import torch
from PIL import Image

import recipes
from lightning_modules.evaluators.retrieval_saved import load_gallery
from recipes.checkpoints.load import load_checkpoint, save_checkpoint
from recipes.cli import evaluate
from tests.recipes.test_evaluate_embedding import SMALL, TINY

SAVE = ["evaluator=[retrieval]", "evaluator.retrieval.save=true", "evaluator.retrieval.num_queries=0"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run whose test pictures come from no files: its folder is the index."""
    words = [*TINY[:-1], *SAVE, f"output={tmp_path_factory.mktemp('runs')}", "name=run"]
    built = recipes.build(overrides=words)
    built.run()
    return built.directory


@pytest.fixture(scope="module")
def photos(run, tmp_path_factory):
    """The first two pictures of the gallery, as files."""
    folder = tmp_path_factory.mktemp("photos")
    pictures = np.load(run / "pictures.npy")
    for name, picture in zip(("a.png", "-b, c=d.png"), pictures, strict=False):
        Image.fromarray(picture).save(folder / name)
    return folder


@pytest.fixture
def index(run, tmp_path):
    """A copy of the index that may be damaged; its checkpoint stays where it was."""
    copy = tmp_path / "index"
    copy.mkdir()
    for name in ("gallery.json", "embeddings.npz", "pictures.npy"):
        shutil.copy(run / name, copy)
    change(copy, checkpoint=str(run / "checkpoints" / "best.ckpt"))
    return copy


def change(folder, **facts):
    path = folder / "gallery.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | facts))


def answers(folder):
    return json.loads((folder / "neighbours.json").read_text())


def test_a_photograph_of_the_gallery_finds_itself(run, photos, tmp_path, capsys):
    assert evaluate([f"query={photos}", f"index={run}", "k=3", f"output={tmp_path / 'out'}", "device=cpu"]) == 0
    found = {one["query"]: one["neighbours"] for one in answers(tmp_path / "out")}
    assert {name: near[0]["item"] for name, near in found.items()} == {"a.png": 0, "-b, c=d.png": 1}
    assert all(len(near) == 3 and near[0]["score"] == pytest.approx(1, abs=1e-6) for near in found.values())
    gallery = load_gallery(run)
    unit = torch.nn.functional.normalize(gallery.embeddings.double())
    expected = (unit[0] @ unit.T).topk(3)
    assert [one["item"] for one in found["a.png"]] == expected.indices.tolist()
    assert [one["score"] for one in found["a.png"]] == pytest.approx(expected.values.tolist(), abs=1e-6)
    assert [one["class"] for one in found["a.png"]] == [gallery.classes[i] for i in expected.indices.tolist()]
    printed = capsys.readouterr().out
    assert f"  1  1.0000  {gallery.classes[0]!r}  'image 0'" in printed
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Nearest images" in page and page.count("<img") == 8 and ">hit<" not in page and "-b, c=d.png" in page


def test_the_index_on_disk_is_in_the_order_of_the_gallery(run):
    gallery, stored = load_gallery(run), faiss.read_index(str(run / "index.faiss"))
    unit = torch.nn.functional.normalize(gallery.embeddings)
    assert stored.ntotal == len(gallery.classes) == 60
    assert np.allclose(stored.reconstruct_n(0, 60), unit.numpy(), atol=1e-6)
    best = load_checkpoint(run)
    assert gallery.preprocessing == best["preprocessing"] and gallery.paths is None
    facts = json.loads((run / "gallery.json").read_text())
    assert facts["checkpoint"].endswith("best.ckpt")


def test_one_image_is_asked_and_the_answer_lies_beside_the_index(index, photos):
    assert evaluate([f"query={photos / 'a.png'}", f"index={index}", "device=cpu"]) == 0
    (folder,) = (index / "queries").iterdir()
    (one,) = answers(folder)
    assert one["query"] == "a.png" and len(one["neighbours"]) == 8


def test_images_in_files_are_named_and_shown_from_them(run, tmp_path, capsys, monkeypatch):
    """A gallery with roles of files: the paths open the pictures, wherever the program is started."""
    rng = np.random.default_rng(0)
    for part in ("train", "test"):
        for name in ("x", "y"):
            folder = tmp_path / "data" / part / name
            folder.mkdir(parents=True)
            for i in range(3):
                Image.fromarray(rng.integers(0, 256, (60, 50, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    monkeypatch.chdir(tmp_path)
    data = ["data=folder", "data.root=data", "data.image_size=48", "data.batch_size=2"]
    assert evaluate([f"checkpoint={run}", *data, *SAVE, "output=index", "device=cpu"]) == 0
    assert not (tmp_path / "index" / "pictures.npy").exists()
    assert json.loads((tmp_path / "index" / "gallery.json").read_text())["paths"][0] == "../data/test/x/0.png"
    monkeypatch.chdir(tmp_path.parent)
    capsys.readouterr()
    words = [f"query={tmp_path / 'data' / 'test' / 'y' / '1.png'}", f"index={tmp_path / 'index'}", "device=cpu", "k=1"]
    assert evaluate(words) == 0
    assert str(tmp_path / "data" / "test" / "y" / "1.png") in capsys.readouterr().out
    (tmp_path / "data" / "test" / "y" / "1.png").rename(tmp_path / "moved.png")
    assert evaluate([f"query={tmp_path / 'moved.png'}", *words[1:]]) == 0, "its picture is a grey square now"


def test_the_weights_must_be_those_that_made_the_vectors(index, run, photos, tmp_path, capsys):
    words = [f"query={photos}", f"index={index}", "device=cpu"]
    content = load_checkpoint(run)
    save_checkpoint(tmp_path / "same.ckpt", content)
    assert evaluate([*words, f"checkpoint={tmp_path / 'same.ckpt'}", f"output={tmp_path / 'out'}"]) == 0
    name = next(iter(content["network"]))
    content["network"][name] = content["network"][name] + 1e-6
    save_checkpoint(tmp_path / "other.ckpt", content)
    assert evaluate([*words, f"checkpoint={tmp_path / 'other.ckpt'}"]) == 2
    assert "are not those that made the gallery" in capsys.readouterr().err
    change(index, checkpoint="gone.ckpt")
    assert evaluate(words) == 2
    assert "gone.ckpt, is gone; give checkpoint=PATH" in capsys.readouterr().err
    change(index, checkpoint=None)
    assert evaluate(words) == 2
    assert "made by a backbone without a checkpoint; give backbone=NAME" in capsys.readouterr().err
    assert evaluate([*words, "backbone=conv4", "checkpoint=x"]) == 2
    assert "give either checkpoint=PATH or backbone=NAME" in capsys.readouterr().err
    assert evaluate([*words, "backbone=conv4"]) == 2
    assert "the weights of backbone=conv4 are not those" in capsys.readouterr().err


def test_a_backbone_without_a_checkpoint_is_named_again(photos, tmp_path, monkeypatch):
    import recipes.building.make

    build = recipes.building.make.build_network
    monkeypatch.setattr(recipes.building.make, "build_network", lambda *args: (torch.manual_seed(0), build(*args))[1])
    words = ["backbone=conv4", *SMALL, *SAVE, f"output={tmp_path / 'index'}", "device=cpu"]
    assert evaluate(words) == 0
    words = [f"query={photos}", f"index={tmp_path / 'index'}", "backbone=conv4", f"output={tmp_path / 'out'}"]
    assert evaluate([*words, "device=cpu"]) == 0
    assert {one["query"] for one in answers(tmp_path / "out")} == {"a.png", "-b, c=d.png"}


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"metric": "dot"}, "metric='dot' is neither cosine nor l2"),
        ({"classes": ["a"]}, "1 classes for 60 embeddings"),
        ({"classes": "abc"}, "classes are no list of names"),
        ({"paths": [1] * 60}, "paths are no list of names"),
        ({"rows": [0, 900]}, "rows are no positions among 60 embeddings"),
        ({"rows": "x"}, "rows are no positions"),
        ({"weights": 5}, "checkpoint and weights are no text"),
        ({"rows": [0, 1], "classes": ["a", "b"]}, r"pictures of type uint8 and shape \(60, 48, 48, 3\) for 2"),
        ({"preprocessing": {"image_size": "48"}}, "preprocessing.image_size must be of type int"),
    ],
)
def test_a_gallery_of_another_form_is_refused(index, photos, facts, message, capsys):
    change(index, **facts)
    assert evaluate([f"query={photos}", f"index={index}"]) == 2
    assert __import__("re").search(message, capsys.readouterr().err)
    assert not (index / "queries").exists()


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 1
    path.write_bytes(data)


def embeddings_of(shape):
    def write(index):
        stored = dict(np.load(index / "embeddings.npz"))
        stored["embeddings"] = np.resize(stored["embeddings"], (len(stored["labels"]), *shape))
        np.savez(index / "embeddings.npz", **stored)

    return write


@pytest.mark.parametrize(
    "damage",
    [
        lambda index: (index / "embeddings.npz").write_bytes((index / "embeddings.npz").read_bytes()[:500]),
        lambda index: (index / "embeddings.npz").write_bytes(b""),
        lambda index: flip(index / "embeddings.npz"),
        lambda index: (index / "pictures.npy").write_bytes(b""),
        lambda index: (index / "gallery.json").write_text("[" * 200_000),
        embeddings_of(()),
        embeddings_of((4, 4)),
    ],
    ids=["cut", "empty", "flipped", "no pictures", "deep", "1-d", "3-d"],
)
def test_a_damaged_gallery_is_refused_in_one_message(index, photos, damage, capsys):
    damage(index)
    assert evaluate([f"query={photos}", f"index={index}", "device=cpu"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: the gallery in") and "internal" not in error and len(error.splitlines()) == 1
    assert not (index / "queries").exists()


def test_a_full_disk_leaves_no_half_written_gallery(run, tmp_path, monkeypatch, capsys):
    """Every file is written beside its name and moved, so that what is there is whole."""

    def cut(built, path):
        Path(path).write_bytes(b"half")
        raise RuntimeError("could not write: No space left on device")

    monkeypatch.setattr(faiss, "write_index", cut)
    words = [f"checkpoint={run}", *SAVE, f"output={tmp_path / 'full'}", "device=cpu"]
    assert evaluate(words) != 0 and "No space left on device" in capsys.readouterr().err
    names = {path.name for path in (tmp_path / "full").rglob("*") if path.is_file()}
    assert "index.faiss" not in names and not any(".part." in name for name in names)


def test_what_is_not_there_is_named(index, photos, tmp_path, capsys):
    for words, message in (
        ([f"query={tmp_path / 'none'}", f"index={index}"], "query= names an image, or a folder of images"),
        ([f"query={photos}", f"index={tmp_path}"], "there is no gallery.json in"),
        ([f"index={index}"], "query must be given"),
        ([f"query={photos}"], "index must be given"),
        ([f"query={photos}", f"index={index}", "k=0"], "k=0 is out of range"),
        ([f"query={index / 'embeddings.npz'}", f"index={index}"], "cannot read image"),
    ):
        assert evaluate(words) == 2
        assert message in capsys.readouterr().err
    preprocessing = json.loads((index / "gallery.json").read_text())["preprocessing"]
    change(index, preprocessing=preprocessing | {"channels": "grey"})
    assert evaluate([f"query={photos}", f"index={index}"]) == 2
    assert "images have one channel (grey)" in capsys.readouterr().err


def test_a_pickle_in_place_of_vectors_is_not_opened(index, photos, capsys):
    np.savez(index / "embeddings.npz", embeddings=np.array([{}], dtype=object), labels=np.zeros(60))
    assert evaluate([f"query={photos}", f"index={index}"]) == 2
    assert "cannot be read (Object arrays cannot be loaded when allow_pickle=False)" in capsys.readouterr().err
