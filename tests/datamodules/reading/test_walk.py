"""The walk over folders of images: what is listed, in which order, and what is left out and counted."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
from PIL import Image

from datamodules.reading.walk import LeftOut, images_below
from datamodules.sources.unlabelled import Unlabelled

AS_TRAINED = {"image_size": 4, "resize_size": 4, "interpolation": "bicubic"}


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (5, 5)).save(path, "PNG")


def walked(folder: Path) -> tuple[list[str], str]:
    left = LeftOut()
    return images_below(folder, left), left.said(folder)


def test_links_are_followed_once_and_never_in_circles(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    for path in (root / "m" / "0.png", root / "1.png", outside / "2.png", outside / "deep" / "3.png"):
        picture(path)
    (root / "a").symlink_to(root / "m")  # before the folder by name, and yet the folder's own name is listed
    (root / "m" / "up").symlink_to(root)
    (root / "out").symlink_to(outside)
    (root / "out again").symlink_to(outside / "deep")
    (outside / "back").symlink_to(root)
    (root / "image.png").symlink_to(outside / "2.png")
    paths, left = walked(root)
    assert paths == ["1.png", "image.png", "m/0.png", "out/2.png", "out/deep/3.png"]
    assert left == "left out: links to folders that are read under another name: 4, the first 'a'"
    assert walked(root) == (paths, left)


def test_many_links_between_many_folders_end(tmp_path: Path) -> None:
    for i in range(12):
        picture(tmp_path / f"f{i}" / "x.png")
        for j in range(12):
            (tmp_path / f"f{i}" / f"to{j}").symlink_to(tmp_path / f"f{j}")
    assert walked(tmp_path)[0] == sorted(f"f{i}/x.png" for i in range(12))


def test_what_is_left_out_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture(tmp_path / "a.PNG")
    picture(tmp_path / ".hidden.png")
    picture(tmp_path / ".ipynb_checkpoints" / "a-checkpoint.png")
    picture(tmp_path / "b" / ".thumbnails" / "a.png")
    (tmp_path / "b" / "notes.txt").write_text("x")
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "gone.jpg").symlink_to(tmp_path / "nothing")
    (tmp_path / "loop.jpg").symlink_to(tmp_path / "loop.jpg")
    monkeypatch.chdir(tmp_path)  # addresses of sockets are short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket.png")
    paths, left = walked(tmp_path)
    assert paths == ["a.PNG"]
    expected = [
        "hidden names: 3, the first '.hidden.png'",
        "special files and links to nothing: 4, the first 'gone.jpg'",
        "names without .jpg .jpeg .png .webp .bmp .gif .tif .tiff: 1, the first 'b/notes.txt'",
    ]
    assert left == f"left out: {'; '.join(expected)}"
    with pytest.warns(UserWarning, match="left out: hidden names: 3, the first ") as caught:
        data = Unlabelled(AS_TRAINED, root=str(tmp_path))
    assert len(caught) == 1 and [len(batch) for batch in data.dataloader()] == [1]


def test_a_folder_that_cannot_be_opened_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As lost+found is, where the root of a disk is predicted."""
    picture(tmp_path / "a.png")
    picture(tmp_path / "closed" / "b.png")
    scan = os.scandir

    def refusing(path: str) -> object:
        if os.path.basename(path) == "closed":
            raise PermissionError(13, "Permission denied")
        return scan(path)

    monkeypatch.setattr(os, "scandir", refusing)
    assert walked(tmp_path) == (["a.png"], "left out: folders that cannot be opened: 1, the first 'closed'")


def test_no_image_says_what_there_was(tmp_path: Path) -> None:
    picture(tmp_path / ".cache" / "a.png")
    with pytest.raises(
        FileNotFoundError, match=r"no image in .*; images are .jpg, .*; left out: hidden names: 1, the first '.cache'"
    ):
        Unlabelled(AS_TRAINED, root=str(tmp_path))
