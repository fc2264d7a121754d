"""Command lines nobody would write, and many a hurried person does: none may end in a traceback or hang.

    python -m benchmarks.fuzz_command_lines [--lines 300] [--seed 0] [--limit 60]

Draws words for train, evaluate, export and resume: wrong keys and values, odd characters, extreme numbers, unknown
parts, keys given twice, paths that lead nowhere, mixes of parts that were never tried together. Most lines stop at
their configuration; the others train for one update or an epoch of 24 images. Counts exit codes and faults: a
traceback, an internal error, a hang, an exit code that means nothing, an error without a message.
"""

from __future__ import annotations

import argparse
import os
import random
import tempfile
from collections.abc import Callable
from pathlib import Path

from benchmarks.children import Ended, preload, run_child, summary
from benchmarks.timing import save
from recipes.cli import evaluate, export, train
from recipes.configuration.catalogue import groups, options

Program = Callable[[list[str]], int]
TINY = [
    "recipe=grocery_baseline", "backbone=test_efficientnet", "data.batch_size=8", "data.limit_train=24",
    "data.limit_test=24", "data.val_fraction=0.02", "data.num_workers=0", "trainer.max_epochs=1",
    "trainer.accelerator=cpu", "callback=[]",
]  # fmt: skip
KEYS = [
    "seed", "name", "output", "max_time", "save_every", "stop_after", "recipe", "data.root", "data.batch_size",
    "data.eval_batch_size", "data.val_fraction", "data.limit_train", "data.limit_test",
    "data.drop_last", "data.samples_per_class", "data.select_on", "data.image_size", "data.worker_timeout_s",
    "data.augment", "backbone.name", "backbone.in_channels", "backbone.kwargs", "backbone.kwargs.img_size",
    "backbone.kwargs.drop_rate", "backbone.mean", "backbone.std", "backbone.pretrained", "backbone.freeze",
    "backbone.freeze_norm", "head.dim", "head.bias", "head.scale", "task.micro_batches", "task.clip_norm",
    "task.ema_decay", "task.nonfinite", "task.max_nonfinite", "loss.smoothing", "loss.margin", "optimizer.name",
    "optimizer.lr", "optimizer.momentum", "optimizer.weight_decay", "optimizer.layer_decay", "optimizer.kwargs",
    "optimizer.kwargs.betas", "schedule.name", "schedule.warmup_fraction", "schedule.min_lr", "schedule.milestones",
    "schedule.decay_rate", "trainer.max_epochs", "trainer.devices", "trainer.precision", "trainer.strategy",
    "trainer.num_nodes", "trainer.check_val_every_n_epoch", "evaluator.classification.num_mistakes", "evaluator",
    "regularizer", "mixing.alpha", "surgery.ghost_bn", "callback", "data", "loss", "_target_", "data._target_",
]  # fmt: skip
#: Only looked at: with these a line may rightly start processes, or wait for other machines.
SHOWN_KEYS = [*KEYS, "trainer.devices", "trainer.strategy", "trainer.num_nodes", "data.num_workers"]
VALUES = [
    "0", "1", "2", "3", "7", "-1", "-0.5", "0.1", "0.5", "1e-12", "1e400", "nan", "inf", "-inf", "1e38",
    "9223372036854775807", "9" * 25, "9" * 5000, "true", "false", "null", "", "''", "none", "abc", "[]", "{}",
    "[1,2]", "[[1],[2]]", "{a: 1}", "{_target_: os.system}", "${seed}", "${oc.env:HOME}", "${nothing}", "a b",
    "a,b", "a=b", "ü", "日本", "\udcff", "a\nb", "\t", "#x", "@x", "~x", "'x", '"x', "[", "{", "]", "x" * 5000,
    "../..", "/dev/null", "/nowhere", "/etc", "sgd", "adamw", "lion", "muon", "adafactor", "1d", "2s", "99999999999h",
    "0x10", "1_000", "007", "+1", "[" * 60 + "]" * 60, "linear", "cosine", "auto", "16-mixed", "32-true",
]  # fmt: skip
BACKBONES = [
    "conv4", "cifar_resnet20", "test_vit", "test_convnext", "test_resnet", "test_efficientnet", "test_mambaout",
    "resnet10t", "vit_tiny_patch16_224", "test_byobnet", "resnet51", "hf-hub:a/b", "resnet18_small",
]  # fmt: skip


def lines(count: int, seed: int, folder: Path, run: Path) -> list[tuple[Program, list[str]]]:
    """Programs and their words, a function of the seed."""
    draw = random.Random(seed)
    kinds = [configuration, _trained, _mixed, _mixed, _evaluated, _exported, _resumed, _damaged]
    drawn = []
    for number in range(count):
        program, words = draw.choice(kinds)(draw, folder, run)
        if program is train and not any(word.startswith(("resume=", "output=")) for word in words):
            words.append(f"output={folder}/runs_{number}")
        drawn.append((program, words))
    return drawn


def _word(draw: random.Random, keys: list[str] = KEYS) -> str:
    key, value = draw.choice(keys), draw.choice(VALUES)
    if key == "output" and value.startswith(("/", ".")):
        value = "runs"  # nothing is written outside the folder of the fuzz
    if draw.random() < 0.1:  # a slip of the hand
        place = draw.randrange(len(key))
        key = key[:place] + draw.choice("xyz._-") + key[place + draw.randrange(2) :]
    return draw.choice(["", "", "", "", "", "+", "++", "~"]) + f"{key}={value}"


def _words(draw: random.Random, most: int, keys: list[str] = KEYS) -> list[str]:
    words = [_word(draw, keys) for _ in range(draw.randint(1, most))]
    return words + [draw.choice(words)] if draw.random() < 0.1 else words


def configuration(draw: random.Random, folder: Path, run: Path) -> tuple[Program, list[str]]:
    """A line that stops before anything is built."""
    wrong = [["-m"], ["--confg"], ["-x"], ["--allow"], ["--allow", "os"], ["--traceback "]]
    flag = draw.choice(wrong) if draw.random() < 0.3 else []
    words = _words(draw, 3, SHOWN_KEYS) if draw.random() < 0.9 else []
    return train, [f"recipe={draw.choice(options('recipe'))}", *words, "--config", *flag]


def _trained(draw: random.Random, folder: Path, run: Path) -> tuple[Program, list[str]]:
    words = _words(draw, 1)
    endless = any("epochs" in word for word in words)  # rightly so, where an extreme number was drawn
    return train, [*TINY, *(["stop_after=1"] if endless or draw.random() < 0.5 else []), *words]


def _mixed(draw: random.Random, folder: Path, run: Path) -> tuple[Program, list[str]]:
    """Parts that were never tried together."""
    chosen = [group for group in groups() if options(group) and group not in ("data", "trainer", "backbone")]
    words = [f"{group}={draw.choice(options(group))}" for group in draw.sample(chosen, draw.randint(1, 3))]
    if draw.random() < 0.5:
        words.append(f"backbone={draw.choice(BACKBONES)}")
    if draw.random() < 0.2:
        words.append(f"data={draw.choice(options('data'))}")
    return train, [*TINY, *words, "stop_after=2"]


def _evaluated(draw: random.Random, folder: Path, run: Path) -> tuple[Program, list[str]]:
    keys = ["data.root", "data.limit_test", "data.eval_batch_size", "device", "output", "evaluator", "data", "backbone"]
    subject = draw.choice(
        [f"checkpoint={run}", f"checkpoint={draw.choice(VALUES)}", f"backbone={draw.choice(BACKBONES)}"]
    )
    words = [f"{draw.choice(keys)}={draw.choice(VALUES)}" for _ in range(draw.randint(0, 2))]
    words = [word.replace("output=", f"output={folder}/o") for word in words]
    asked = draw.choice(["predict", "classification", "retrieval", "[]", "[classification,retrieval]"])
    return evaluate, [subject, *([f"evaluator={asked}"] if draw.random() < 0.6 else []), *words]


def _exported(draw: random.Random, folder: Path, run: Path) -> tuple[Program, list[str]]:
    output = draw.choice([f"{folder}/{draw.randrange(10**9)}.safetensors", *VALUES[-40:]])
    if not output.startswith("/"):
        output = f"{folder}/{output}"
    return export, [draw.choice([f"checkpoint={run}", f"checkpoint={draw.choice(VALUES)}"]), f"output={output}"]


def _resumed(draw: random.Random, folder: Path, run: Path) -> tuple[Program, list[str]]:
    place = draw.choice([str(run), f"{run}/checkpoints", *VALUES])
    keys = [key for key in KEYS if "epochs" not in key]
    return train, [f"resume={place}", *(_words(draw, 2, keys) if draw.random() < 0.7 else [])]


def _damaged(draw: random.Random, folder: Path, run: Path) -> tuple[Program, list[str]]:
    """A run directory with one file changed."""
    copy = folder / f"copy_{draw.randrange(10**9)}"
    for path in run.rglob("*"):
        if path.is_file():
            (copy / path.relative_to(run)).parent.mkdir(parents=True, exist_ok=True)
            (copy / path.relative_to(run)).write_bytes(path.read_bytes())
    names = ["status.json", "config.yaml", "results.json", "metrics.csv", "checkpoints/last.ckpt", "command.txt"]
    file = copy / draw.choice(names)
    match draw.randrange(5):
        case 0:
            file.unlink()
        case 1:
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
        case 2:
            file.write_bytes(b"")
        case 3:
            file.write_bytes(b"\xff\xfe{[" * 9)
        case 4:
            file.unlink(), file.mkdir()
    words = {train: [f"resume={copy}"], evaluate: [f"checkpoint={copy}"], export: [f"checkpoint={copy}"]}
    program = draw.choice([train, train, evaluate, export])
    return program, words[program]


def fuzz(count: int, seed: int, limit_s: float) -> list[Ended]:
    """Run that many lines; how each ended."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        home = os.getcwd()
        os.chdir(folder)  # a relative output= stays in here
        first = run_child(train, [*TINY, "name=first", f"output={folder}/runs", "save_every=1"], folder / "log", 300)
        assert first.code == 0, first.text
        run = folder / "runs" / "grocery_baseline" / "first"
        ended = []
        for program, words in lines(count, seed, folder, run):
            ended.append(run_child(program, words, folder / "log", limit_s))
            if ended[-1].fault:
                shown = [word if len(word) < 200 else f"{word[:60]}... ({len(word)})" for word in words]
                print(f"{ended[-1].fault}: {program.__name__} {shown}\n{ended[-1].text[-2500:]}\n", flush=True)
        os.chdir(home)
    return ended


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--lines", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=float, default=60.0, help="seconds after which a line hangs")
    given = parser.parse_args()
    preload()
    os.environ["HF_HUB_OFFLINE"] = "1"  # nothing is fetched
    ended = fuzz(given.lines, given.seed, given.limit)
    save("fuzz_command_lines", {"lines": len(ended), "seed": given.seed, **summary(ended)})
    assert not any(one.fault for one in ended)


if __name__ == "__main__":
    main()
