"""Odd files among the images of a training set and of a folder to predict: each is read, or named in one message.

    python -m benchmarks.fuzz_images [--files 60] [--seed 0] [--limit 60]

For every file: ``train.py data=folder`` for one epoch with the file among the training images (a file that cannot be
read ends the run or is passed over, as ``data.on_unreadable`` says), and ``evaluate.py evaluator=predict`` with the
file in a folder. Counts exit codes and faults: a traceback, an internal error, a hang, an error without a message.
"""

from __future__ import annotations

import argparse
import io
import os
import random
import shutil
import socket
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.children import Ended, preload, run_child, summary
from benchmarks.timing import save
from recipes.cli import evaluate, train

NAMES = [
    "odd.png",
    "ODD.JPG",
    "odd\u202f1.png",
    "日本.png",
    "-12.png",
    "@home.png",
    "a b.png",
    "=1+1.png",
    "x" * 240 + ".png",
]
MODES = ["RGB", "L", "1", "P", "RGBA", "LA", "CMYK", "YCbCr", "LAB", "HSV", "I;16", "I", "F"]
FORMATS = {"RGB": "JPEG", "L": "PNG", "1": "PNG", "P": "GIF", "RGBA": "WEBP", "LA": "PNG", "CMYK": "JPEG"}


def picture(draw: random.Random, mode: str = "RGB", size: tuple[int, int] | None = None) -> Image.Image:
    """Noise in any mode of Pillow."""
    width, height = size or (draw.choice([1, 2, 17, 40, 300]), draw.choice([1, 3, 40, 64]))
    noise = np.random.default_rng(draw.randrange(2**32)).integers(0, 256, (height, width, 3), np.uint8)
    if mode == "I;16":
        return Image.fromarray(noise[..., 0].astype(np.uint16) * 257)
    return Image.fromarray(noise).convert("RGB" if mode in ("LAB", "HSV") else mode)


def encoded(image: Image.Image, form: str, **settings: Any) -> bytes:
    """The bytes of a file."""
    file = io.BytesIO()
    image.save(file, form, **settings)
    return file.getvalue()


def of_a_mode(draw: random.Random, path: Path) -> None:
    mode = draw.choice(MODES)
    form = FORMATS.get(mode) or "TIFF"
    path.write_bytes(encoded(picture(draw, mode), form))


def truncated(draw: random.Random, path: Path) -> None:
    content = encoded(picture(draw, size=(64, 64)), draw.choice(["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP"]))
    path.write_bytes(content[: draw.choice([0, 1, 8, 30, len(content) // 2, len(content) - 1])])


def flipped(draw: random.Random, path: Path) -> None:
    content = bytearray(encoded(picture(draw, size=(64, 64)), draw.choice(["PNG", "JPEG", "GIF", "TIFF", "WEBP"])))
    for _ in range(draw.choice([1, 20])):
        content[draw.randrange(min(len(content), 300))] = draw.randrange(256)
    path.write_bytes(bytes(content))


def animated(draw: random.Random, path: Path) -> None:
    frames = [picture(draw, size=(20, 20)) for _ in range(3)]
    path.write_bytes(
        encoded(frames[0], draw.choice(["GIF", "PNG", "WEBP", "TIFF"]), save_all=True, append_images=frames[1:])
    )


def turned(draw: random.Random, path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = draw.choice([0, 3, 6, 8, 99])
    path.write_bytes(encoded(picture(draw, size=(40, 20)), "JPEG", exif=exif))


def huge(draw: random.Random, path: Path) -> None:
    header = struct.pack(">IIBBBBB", draw.choice([0, 30_000, 2**31 - 1]), 30_000, 8, 2, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + b"IHDR" + header + bytes(20))


def of_another_kind(draw: random.Random, path: Path) -> None:
    path.write_bytes(
        draw.choice([b"<svg/>", b"%PDF-1.4", b"%!PS-Adobe", b"\x00" * 999, b"hello\n", b"PK\x03\x04" + bytes(99)])
    )


def a_fifo(draw: random.Random, path: Path) -> None:
    os.mkfifo(path)


def a_socket(draw: random.Random, path: Path) -> None:
    home = os.getcwd()
    os.chdir(path.parent)  # the names of sockets are short
    try:
        with socket.socket(socket.AF_UNIX) as own:
            own.bind(path.name[-100:])
        os.rename(path.name[-100:], path.name)
    finally:
        os.chdir(home)


def a_link(draw: random.Random, path: Path) -> None:
    path.symlink_to(draw.choice(["nowhere.png", path.name, "/dev/zero", "/dev/null", "0.png", "."]))


def a_folder(draw: random.Random, path: Path) -> None:
    path.mkdir()
    if draw.random() < 0.5:
        picture(draw).save(path / "inside.png")


def unreadable(draw: random.Random, path: Path) -> None:
    path.write_bytes(encoded(picture(draw), "PNG"))
    path.chmod(0)


KINDS: list[Callable[[random.Random, Path], None]] = [
    of_a_mode, of_a_mode, truncated, flipped, flipped, animated, turned, huge, of_another_kind, a_fifo, a_socket,
    a_link, a_folder, unreadable,
]  # fmt: skip
TRAIN = [
    "recipe=grocery_baseline", "backbone=test_efficientnet", "data=folder", "data.image_size=32", "data.batch_size=4",
    "data.val_fraction=0.2", "trainer.max_epochs=1", "trainer.accelerator=cpu", "callback=[]",
]  # fmt: skip


def tree(root: Path) -> None:
    """Two classes of six good images in each part."""
    for part in ("train", "test"):
        for number in range(12):
            folder = root / part / "ab"[number % 2]
            folder.mkdir(parents=True, exist_ok=True)
            picture(random.Random(number), size=(40, 36)).save(folder / f"{number // 2}.png")


def fuzz(count: int, seed: int, limit_s: float) -> list[Ended]:
    """Two programs for each file; how each ended."""
    draw, ended = random.Random(seed), []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        root, words = folder / "tree", [*TRAIN, f"data.root={folder / 'tree'}", f"output={folder / 'runs'}"]
        tree(root)
        first = run_child(train, [*words, "name=first"], folder / "log", 300)
        assert first.code == 0, first.text
        shutil.copytree(root / "test" / "a", folder / "photos")
        for number in range(count):
            kind = KINDS[number % len(KINDS)]
            places = [
                where / draw.choice(NAMES) for where in (root / draw.choice(["train", "test"]) / "a", folder / "photos")
            ]
            for place in places:
                kind(draw, place)
            policy = draw.choice(["raise", "substitute"])
            extra = [
                f"data.on_unreadable={policy}",
                "data.max_substituted=1.0",
                f"data.num_workers={draw.randrange(2)}",
            ]
            predict = [f"checkpoint={folder / 'runs' / 'grocery_baseline' / 'first'}", "evaluator=predict"]
            predict += [f"data.root={folder / 'photos'}", f"output={folder / 'out'}"]
            for program, given in ((train, [*words, *extra]), (evaluate, predict)):
                ended.append(run_child(program, given, folder / "log", limit_s))
                if ended[-1].fault:
                    print(f"{ended[-1].fault}: {kind.__name__} {places}\n{ended[-1].text[-2500:]}\n", flush=True)
            for place in places:
                shutil.rmtree(place) if place.is_dir() and not place.is_symlink() else place.unlink()
    return ended


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--files", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=float, default=60.0, help="seconds after which a program hangs")
    given = parser.parse_args()
    preload()
    ended = fuzz(given.files, given.seed, given.limit)
    save("fuzz_images", {"files": given.files, "seed": given.seed, **summary(ended)})
    assert not any(one.fault for one in ended)


if __name__ == "__main__":
    main()
