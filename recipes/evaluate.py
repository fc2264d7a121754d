"""Evaluation of a checkpoint, without a trainer."""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from recipes.compose import compose_config
from recipes.stored import stored_config, without_download
from recipes.validate import ConfigError, group_problems, unknown_key

Part = dict[str, Any]
UNLABELLED = ["root", "eval_batch_size", "num_workers", "max_pixels"]  # keys of data that a folder of images takes


def configure(words: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """The configuration of an evaluation, and the words that change the data of the checkpoint's own recipe."""
    replaced = any(word.startswith("data=") for word in words)
    data_words = [] if replaced else [word for word in words if word.startswith("data.")]
    rest = [word for word in words if word not in data_words]
    return compose_config(rest, root="evaluate", target="recipes.evaluate.evaluate_checkpoint"), data_words


def evaluate_checkpoint(
    data_words: Sequence[str] = (),
    *,
    checkpoint: str,
    evaluator: dict[str, Part],
    data: Part | None = None,
    output: str | None = None,
    device: str = "auto",
) -> dict[str, dict[str, float]]:
    """Rebuild the network of a checkpoint and run evaluators on it.

    Args:
        data_words: ``data.key=value`` words applied to the data of the checkpoint's recipe.
        checkpoint: a file, or a run directory.
        evaluator: parts by name.
        data: another data module than the recipe's.
        output: folder for the files evaluators write.
        device: auto, cpu, cuda, ...

    Returns:
        Metrics of each evaluator; also written to results.json in the output folder.

    Raises:
        ConfigError: a checkpoint or data that cannot be used, with the reason.
    """
    from recipes.checkpoint import load_checkpoint
    from recipes.directory import write_json
    from recipes.make import make, rebuild_network

    try:
        content = load_checkpoint(checkpoint)
        config = stored_config(content)
        node = data or change_data(without_download(config["data"]), data_words, evaluators=evaluator)
        root = node.get("root") if data or any(word.startswith("data.root=") for word in data_words) else None
        network = rebuild_network(config, len(content["classes"]), content["network"]).to(_device(device)).eval()
        folder = _output_folder(checkpoint, output)
        runs = {name: make(part, group="evaluator") for name, part in evaluator.items()}
        sources = {name: _source(run.reads, node, root, content, folder, config["seed"]) for name, run in runs.items()}
        folder.mkdir(parents=True)  # nothing is left behind where the data were refused
        results: dict[str, dict[str, float]] = {}
        for name, run in runs.items():
            results[name] = run(network, sources[name]).metrics
            _print(name, results[name])
    except (ValueError, FileNotFoundError) as error:
        raise error if isinstance(error, ConfigError) else ConfigError([str(error)]) from error
    write_json(folder / "results.json", results)
    print(folder)
    return results


def change_data(node: Part, words: Sequence[str], evaluators: dict[str, Part] | None = None) -> Part:
    """A copy of the data part with ``data.key=value`` words applied and checked."""
    from omegaconf import OmegaConf

    changed = copy.deepcopy(node)
    dotted = [word.removeprefix("data.") for word in words]
    merged = OmegaConf.to_container(OmegaConf.merge(changed, OmegaConf.from_dotlist(dotted)))
    assert isinstance(merged, dict)
    if set(evaluators or {}) == {"predict"}:  # any folder of images takes the place of the recipe's data
        keys = [word.partition("=")[0] for word in dotted]
        problems = [unknown_key(f"data.{key}", UNLABELLED) for key in keys if key not in UNLABELLED]
    else:
        problems = group_problems("data", merged)
    if problems:
        raise ConfigError(problems)
    return merged  # type: ignore[return-value]


def _device(name: str) -> Any:
    import torch

    try:
        return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
    except RuntimeError as error:
        raise ConfigError([f"device={name} is not a device; choose auto, cpu, cuda or cuda:NUMBER"]) from error


def _source(reads: str, node: Part, root: str | None, content: dict[str, Any], folder: Path, seed: int) -> Any:
    """Labelled: the test part of the data module. Unlabelled: every image below ``data.root``."""
    from lightning_modules.evaluators.base import EvaluationData
    from recipes.make import make

    classes = tuple(content["classes"])
    if reads == "unlabelled":
        from datamodules.unlabelled import Unlabelled

        if root is None:
            raise ConfigError(["data.root must be given: data.root=FOLDER with the images to predict"])
        keys = {key: node[key] for key in UNLABELLED if key in node}
        images = Unlabelled(content["preprocessing"], **{**keys, "root": root})
        return EvaluationData(images.dataloader(), classes, paths=images.paths, output=folder)
    module = make(node, seed, group="data")
    module.setup()
    if tuple(module.classes) != classes:
        raise ConfigError([_class_difference(classes, tuple(module.classes))])
    return EvaluationData(module.test_dataloader(), classes, output=folder, train=module.train_eval_dataloader)


def _class_difference(trained: tuple[str, ...], found: tuple[str, ...]) -> str:
    if len(trained) != len(found):
        return f"the checkpoint was trained for {len(trained)} classes, the data has {len(found)}"
    pair = next((a, b) for a, b in zip(trained, found, strict=True) if a != b)
    return f"class names differ from those of the checkpoint: {pair[0]!r} there, {pair[1]!r} in the data at its place"


def _output_folder(checkpoint: str, output: str | None) -> Path:
    path = Path(checkpoint)
    run = path if path.is_dir() else path.parent.parent if path.parent.name == "checkpoints" else path.parent
    folder = Path(output) if output else run / "evaluations" / time.strftime("%Y-%m-%d_%H-%M-%S")
    number, first = 2, folder
    while folder.exists():
        folder, number = first.with_name(f"{first.name}_{number}"), number + 1
    return folder


def _print(name: str, metrics: dict[str, float]) -> None:
    shown = [f"{key} {value:.4f}" if isinstance(value, float) else f"{key} {value}" for key, value in metrics.items()]
    print(f"{name}: {', '.join(shown)}", flush=True)
