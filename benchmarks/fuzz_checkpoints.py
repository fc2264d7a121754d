"""Damaged and hostile checkpoints: is every one refused with a message, or read as what it was?

    python -m benchmarks.fuzz_checkpoints [--mutations 300] [--seed 0]

Trains one update of a small recipe, changes its ``last.ckpt`` in one of the ways of ``MUTATIONS``, and reads it as
evaluation and as going on do, each in a forked process with little memory and time. Counts per way: ``equal`` (read as
it was), ``other`` (another content of the right form: weights, metrics or texts may be any), ``refused`` (a message),
``crashed`` (anything else) and ``hung``. The last two must be zero.
"""

from __future__ import annotations

import argparse
import io
import os
import pickletools
import random
import resource
import signal
import tempfile
import time
import traceback
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

import recipes
from recipes.building.make import rebuild_network
from recipes.checkpoints.form import check_evaluable, check_resumable
from recipes.checkpoints.load import load_checkpoint, save_checkpoint
from recipes.checkpoints.stored import stored_config
from recipes.processes.stop import Stopped
from recipes.running.going_on import position_problem
from recipes.running.self_check import differing

WORDS = ["backbone=test_efficientnet", "data.batch_size=4", "data.limit_train=8", "data.limit_test=8",
         "data.val_fraction=0.02", "trainer.max_epochs=2", "trainer.accelerator=cpu", "callback=[]", "evaluator=[]",
         "stop_after=3"]  # fmt: skip
OUTCOMES = ("equal", "other", "refused", "crashed", "hung")
MEMORY, SECONDS = 512 * 2**20, 20
ODD: list[Any] = [
    None,
    True,
    -1,
    10**9,
    10**30,
    float("nan"),
    "x",
    "../x",
    [],
    {},
    [[]],
    {"a": 1},
    (1, 2),
    0.5,
    "9" * 9,
]
TENSORS = [torch.zeros(0), torch.zeros(3), torch.full((2,), float("nan")), torch.ones(2, dtype=torch.int8),
           torch.zeros(1, dtype=torch.complex64), torch.ones(1, dtype=torch.bool)]  # fmt: skip
Draw = random.Random


def flip(data: bytes, draw: Draw) -> bytes:
    """Change a few bytes anywhere."""
    changed = bytearray(data)
    for _ in range(draw.choice((1, 1, 3, 20))):
        changed[draw.randrange(len(data))] = draw.randrange(256)
    return bytes(changed)


def cut(data: bytes, draw: Draw) -> bytes:
    """End early."""
    return data[: draw.randrange(len(data))]


def surround(data: bytes, draw: Draw) -> bytes:
    """Put bytes, another zip file or a legacy pickle in front or behind."""
    other = draw.choice((b"\0", b"PK\x05\x06" + bytes(18), b"\x80\x02}q\0.", data, draw.randbytes(30)))
    return draw.choice((other + data, data + other))


def edit_table(data: bytes, draw: Draw) -> bytes:
    """Put an odd number into the table at the end, or into a header."""
    starts = [n for n in range(len(data) - 4) if data[n : n + 4] in (b"PK\1\2", b"PK\3\4", b"PK\5\6", b"PK\6\6")]
    at = draw.choice(starts) + draw.randrange(4, 46)
    number = draw.choice((0, 1, 8, 0xFFFF, 0xFFFFFFFF, len(data), draw.randrange(2**32)))
    width = draw.choice((2, 4))
    return data[:at] + (number % 2 ** (8 * width)).to_bytes(width, "little") + data[at + width :]


def rename(data: bytes, draw: Draw) -> bytes:
    """Give records other names, a second time, in another case or another folder; leave some out or compress them."""
    records = _records(data)
    name, content = draw.choice(records)
    folder, _, inner = name.partition("/")
    names = (name.upper(), name, f"{folder}/{inner.upper()}", f"x/{inner}", f"{name}2", f"{folder}/data/99", "x")
    records.insert(draw.randrange(len(records) + 1), (draw.choice(names), draw.choice((content, b"", b"\x80\x02N."))))
    if draw.random() < 0.3:
        records.pop(draw.randrange(len(records)))
    return _archive(records, draw.choice((zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)))


def substitute(data: bytes, draw: Draw) -> bytes:
    """Put other instructions into the pickle, with the check sums right."""
    records = _records(data)
    at = next(n for n, (name, _) in enumerate(records) if name.endswith("/data.pkl"))
    name, content = records[at]
    places = [place for _, _, place in pickletools.genops(content) if place is not None]
    place = draw.choice(places)
    new = draw.choice(
        (
            draw.choice(pickletools.opcodes).code.encode("latin-1"),
            b"cos\nsystem\n",
            b"c__builtin__\nbytearray\n",
            b"ctorch\nFloatStorage\n",
            b"h\x00",
            b"(lh\x01a",
            b"\x8a\xff" + draw.randbytes(255),
            b"M" + draw.randbytes(2),
            b"J" + draw.randbytes(4),
            b"R",
            b"Q",
            b"}u",
            b")" * draw.choice((1, 2000)) + b"\x85" * draw.choice((1, 2000)),
        )
    )
    records[at] = (name, content[:place] + new + content[place + draw.choice((0, 1, 1, 2, 5)) :])
    return _archive(records)


def resize(data: bytes, draw: Draw) -> bytes:
    """Give the bytes of a storage another length, or those of another one."""
    records = _records(data)
    at = draw.choice([n for n, (name, _) in enumerate(records) if "/data/" in name])
    name, content = records[at]
    others = (content[:-1], content + b"\0", b"", content * 2, draw.choice(records)[1])
    records[at] = (name, draw.choice(others))
    return _archive(records)


def restate(data: bytes, draw: Draw) -> bytes:
    """Another content: keys left out, or with values of another kind."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.ckpt"
        path.write_bytes(data)
        content = load_checkpoint(path)
        content.pop("format_version")
        for _ in range(draw.choice((1, 1, 3))):
            _change(content, draw)
        save_checkpoint(path, content)
        return path.read_bytes()


MUTATIONS: list[Callable[[bytes, Draw], bytes]] = [
    flip, cut, surround, edit_table, rename, substitute, resize, restate, restate
]  # fmt: skip


def mutated(data: bytes, seed: int, number: int) -> tuple[str, bytes]:
    """Name and result of one mutation, a function of ``(seed, number)``."""
    draw = random.Random(f"{seed}/{number}")  # noqa: S311
    mutation = MUTATIONS[number % len(MUTATIONS)]
    return mutation.__name__, mutation(data, draw)


def source(folder: Path) -> Path:
    """A whole ``last.ckpt``, in the middle of an epoch after one that was validated."""
    run = recipes.build("grocery_baseline", [*WORDS, f"output={folder}", "name=source"])
    with suppress(Stopped):
        run.run()
    return folder / "grocery_baseline" / "source" / "checkpoints" / "last.ckpt"


def outcome(path: Path, whole: dict[str, Any]) -> str:
    """What reading a file comes to: as evaluation does it, and as going on with a run does."""
    try:
        content = load_checkpoint(path, check_evaluable)
        config = stored_config(content)
        rebuild_network(config, len(content["classes"]), content["network"])
        check_resumable(content, path)
        if problem := position_problem(content, config["trainer"]["max_epochs"], 2):
            raise ValueError(problem)
    except ValueError as error:
        if "weights_only" in str(error) or not str(error):
            raise AssertionError(f"no message of ours: {error}") from error
        return "refused"
    return "other" if differing(whole, content) else "equal"


def outcome_in_child(path: Path, whole: dict[str, Any]) -> tuple[str, str]:
    """``outcome`` in a process with limits, and what a crash said."""
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(reading)
        _limit()
        try:
            found = outcome(path, whole)
        except BaseException:
            found = f"crashed\n{traceback.format_exc()}"
        os.write(writing, found.encode()[:60_000])
        os._exit(0)
    os.close(writing)
    with open(reading, "rb") as pipe:
        kind, _, said = pipe.read().decode().partition("\n")
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        return ("hung" if number == signal.SIGALRM else "crashed"), signal.Signals(number).name
    return kind, said


def _limit() -> None:
    """Little more memory than there is now, and little time."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    limit = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    signal.alarm(SECONDS)


def _records(data: bytes) -> list[tuple[str, bytes]]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return [(record.filename, archive.read(record)) for record in archive.infolist()]


def _archive(records: list[tuple[str, bytes]], method: int = zipfile.ZIP_STORED) -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a name given twice is meant
        for name, content in records:
            archive.writestr(zipfile.ZipInfo(name), content, method)  # with a date that is not now's
    return target.getvalue()


def _change(content: dict[str, Any], draw: Draw) -> None:
    """Change one value, at any depth."""
    node: Any = content
    while True:
        key = draw.choice(list(node) if isinstance(node, dict) else range(len(node)))
        inner = node[key]
        if not isinstance(inner, dict | list) or not inner or draw.random() < 0.3:
            break
        node = inner
    if isinstance(node, dict) and draw.random() < 0.3:
        del node[key]
    else:
        node[key] = draw.choice(TENSORS if draw.random() < 0.3 else ODD)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mutations", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    counts: dict[str, Counter[str]] = {}
    with tempfile.TemporaryDirectory() as folder:
        path = source(Path(folder))
        data, whole, start = path.read_bytes(), load_checkpoint(path), time.monotonic()
        target = Path(folder) / "mutated.ckpt"
        for number in range(args.mutations):
            name, changed = mutated(data, args.seed, number)
            target.write_bytes(changed)
            kind, said = outcome_in_child(target, whole)
            counts.setdefault(name, Counter())[kind] += 1
            if kind in ("crashed", "hung"):
                print(f"{name}, number {number}: {kind}: {said}")
        seconds = time.monotonic() - start
    print(f"{'mutation':12} " + " ".join(f"{kind:>8}" for kind in OUTCOMES))
    for name, found in counts.items():
        print(f"{name:12} " + " ".join(f"{found[kind]:8}" for kind in OUTCOMES))
    total = sum(counts.values(), Counter[str]())
    print(f"{'all':12} " + " ".join(f"{total[kind]:8}" for kind in OUTCOMES) + f"   in {seconds:.0f} s")
    raise SystemExit(1 if total["crashed"] + total["hung"] else 0)


if __name__ == "__main__":
    main()
