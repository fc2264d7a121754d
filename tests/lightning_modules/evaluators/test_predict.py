"""Predictions: ranked as the softmax ranks, and nothing a spreadsheet would run."""

import csv
import math
import os

import pytest

from kernels.batch import Batch
from lightning_modules.evaluators.base import EvaluationData
from lightning_modules.evaluators.predict import Predict


@pytest.fixture
def rows(make_network, make_batch, tmp_path):
    network = make_network().train()
    batch: Batch = make_batch(list(range(4)))
    names = ["=1+1.png", "a.png", "-b.png", "c d.png"]
    data = EvaluationData([batch], ("@cmd", "plain", "third"), paths=names, output=tmp_path)
    metrics = Predict(top=5)(network, data).metrics
    assert metrics == {"images": 4} and network.training, "the mode is put back"
    with open(tmp_path / "predictions.csv", newline="", encoding="utf-8") as file:
        return network.eval(), batch, list(csv.reader(file))


def test_rows_are_ranked_softmax(rows):
    network, batch, (header, *lines) = rows
    assert header == ["path", *(f"{what}_{k}" for k in (1, 2, 3) for what in ("class", "probability"))]
    for image, line in zip(batch.image, lines, strict=True):
        scores = [math.exp(score) for score in network(image[None]).logits[0].tolist()]
        expected = sorted((score / sum(scores) for score in scores), reverse=True)
        assert [float(value) for value in line[2::2]] == pytest.approx(expected, abs=1e-6)


def test_cells_are_no_formulas(rows):
    _, _, (_, *lines) = rows
    assert [line[0] for line in lines] == ["./=1+1.png", "a.png", "./-b.png", "c d.png"]
    assert {cell for line in lines for cell in line[1::2]} == {"'@cmd", "plain", "third"}


# Names of real photographs and of files that are meant to break something: each is a file that exists.
NAMES = [
    "Screenshot 2024-05-01 at 9.41.07\u202fAM.png", "caf\u00e9\u00a0bar.png", "\u5199\u771f\u3000\uff11.png",
    "zero\u200bwidth.png", "-12.png", "@home.png", "=cmd('x').png", "+1.png", "\uff1d1.png", " -space first.png",
    "\ttab.png", "\rreturn.png", "line\nbreak.png", 'quo"te.png', '"', "comma,semi;colon.png", "a;=1+1.png",
    "'quoted'.png", "back\\slash.png", "\u202eturned.png", "\x1b[2Jescape.png", "cafe\u0301.png", "\udcff\udcfe.png",
    "-below/-x.png", "below/=x.png", "\U0001f469\u200d\U0001f52c.png", "trailing .png ",
]  # fmt: skip


def test_every_path_opens_its_image(make_network, make_batch, tmp_path):
    for name in NAMES:
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "photos" / name).write_bytes(os.fsencode(name))
    batch = make_batch(list(range(len(NAMES))))
    Predict(top=1)(make_network(), EvaluationData([batch], ("a", "b", "c"), paths=NAMES, output=tmp_path))
    with open(tmp_path / "predictions.csv", newline="", encoding="utf-8", errors="surrogateescape") as file:
        cells = [row["path"] for row in csv.DictReader(file)]
    assert [os.path.normpath(cell) for cell in cells] == NAMES
    assert [(tmp_path / "photos" / cell).read_bytes() for cell in cells] == [os.fsencode(name) for name in NAMES]
    assert not [cell for cell in cells if cell.startswith(tuple("=+-@\t\r\n\uff1d"))]
    assert sum(cell != name for cell, name in zip(cells, NAMES, strict=True)) == 9


def test_no_separator_of_a_spreadsheet_cuts_a_name(make_network, make_batch, tmp_path):
    data = EvaluationData([make_batch([0])], ("a", "b", "c"), paths=["a;=1+1.png"], output=tmp_path)
    Predict(top=1)(make_network(), data)
    for separator in ",;\t":
        with open(tmp_path / "predictions.csv", newline="", encoding="utf-8") as file:
            assert not [cell for row in csv.reader(file, delimiter=separator) for cell in row if cell.startswith("=")]


def test_needs_paths_and_a_place(make_network, make_batch):
    with pytest.raises(ValueError, match="top=0 is out of range; allowed: top >= 1"):
        Predict(top=0)
    with pytest.raises(ValueError, match="predictions need the images' paths and an output folder"):
        Predict()(make_network(), EvaluationData([make_batch([0])], ("a", "b", "c")))
