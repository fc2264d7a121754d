"""What the two fuzzers draw, the part that takes seconds: command lines that stop early, odd files that are read."""

import os
import random
import shutil

import numpy as np
import pytest

from benchmarks.fuzz_command_lines import configuration
from benchmarks.fuzz_images import KINDS, NAMES, tree
from datamodules.sources.folder import Folder
from datamodules.sources.unlabelled import Unlabelled
from recipes.cli import train

pytestmark = pytest.mark.fault


def test_command_lines_end_in_one_message(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    draw, codes = random.Random(1), []
    for _ in range(60):
        _, words = configuration(draw, tmp_path, tmp_path)
        if "-m" in words:  # starts processes
            continue
        codes.append(train(words))
        shown = capsys.readouterr()
        assert codes[-1] in (0, 2) and bool(shown.err) == (codes[-1] == 2), (words, shown)
        assert "Traceback" not in shown.err and "internal error" not in shown.err, (words, shown.err)
    assert set(codes) == {0, 2} and not list(tmp_path.iterdir())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("seed", range(3))
def test_odd_files_are_read_or_named(seed, tmp_path):
    draw = random.Random(seed)
    tree(tmp_path)
    for kind in KINDS:
        path = tmp_path / "train" / "a" / draw.choice(NAMES)
        kind(draw, path)
        for part in ("train", "train/a"):
            try:
                if part == "train":
                    data = Folder(0, root=str(tmp_path), image_size=16, batch_size=4, val_fraction=0.0)
                    data.setup()
                    pictures = data.source("train")
                    data.manifest_parts()
                else:
                    data = Unlabelled(
                        {"image_size": 16, "resize_size": 16, "interpolation": "bilinear"}, root=tmp_path / part
                    )
                    pictures = data.source
                for position in range(len(pictures)):
                    assert pictures.picture(position).dtype == np.uint8
            except ValueError as error:  # UnreadableImage, or a folder where an image should lie
                assert path.name in str(error), (kind, error)
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else os.unlink(path)
