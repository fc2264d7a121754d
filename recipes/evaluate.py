"""Evaluation of a checkpoint, or of a backbone as it is, without a trainer."""

from __future__ import annotations

import copy
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from recipes.configuration.boundary import first_line, refusing
from recipes.configuration.compose import compose_config
from recipes.configuration.plain import value_problems
from recipes.configuration.problems import ConfigError
from recipes.configuration.signature import TARGET
from recipes.configuration.validate import group_problems, problems_of
from recipes.configuration.words import set_words, split_words

Part = dict[str, Any]
FOLDER = "datamodules.sources.unlabelled.Unlabelled"
UNUSED = (
    "it keeps embeddings, which evaluator=[retrieval] and utilization read; not of data that may leave out files "
    "(data.on_unreadable=substitute)"
)


def configure(words: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """The configuration of an evaluation, and the words that change the data of the checkpoint's own recipe."""
    found, problems = split_words(words)
    if problems:
        raise ConfigError(problems)
    replaced = any(word.path == "data" for word in found)
    data_words = [] if replaced else [word.typed for word in found if word.path.startswith("data.")]
    rest = [word for word in words if word not in data_words]
    config = compose_config(rest, root="evaluate", target="recipes.evaluate.evaluate_checkpoint")
    _check_subject(*(config.get(key) for key in ("checkpoint", "backbone", "data")))
    return config, data_words


def _check_subject(checkpoint: str | None, backbone: Part | None, data: Part | None) -> None:
    if (checkpoint is None) == (backbone is None):
        raise ConfigError(["give either checkpoint=PATH or backbone=NAME (with data=NAME): one of them is evaluated"])
    if backbone is not None and data is None:
        raise ConfigError(["backbone=NAME needs data=NAME: there is no recipe that says on which images"])


def evaluate_checkpoint(
    data_words: Sequence[str] = (),
    *,
    evaluator: dict[str, Part],
    checkpoint: str | None = None,
    backbone: Part | None = None,
    data: Part | None = None,
    output: str | None = None,
    device: str = "auto",
    cache: str | None = None,
) -> dict[str, dict[str, float]]:
    """Run evaluators on a network by reference (see ``recipes.building.networks``), or on a backbone as it is.

    Args:
        data_words: ``data.key=value`` words applied to the data of the checkpoint's recipe.
        evaluator: parts by name.
        checkpoint: a file (.ckpt, or .safetensors with ``data``), or a run directory.
        backbone: a backbone in place of a checkpoint; needs ``data``. With timm's weights it keeps timm's classifier; a
            weight tag in its name says which weights. Without, its pooled features are the embedding.
        data: another data module than the recipe's.
        output: folder for the files evaluators write.
        device: auto, cpu, cuda, ...
        cache: folder that keeps the embeddings of the data for later evaluations of the same network; None for none.

    Returns:
        Metrics of each evaluator; also written to results.json in the output folder, with a report.html.

    Raises:
        ConfigError: a checkpoint or data that cannot be used, with the reason, or an evaluator that could not say
            anything; what the others found out is written all the same.
    """
    from lightning_modules.evaluators.feature_cache import FeatureCache
    from recipes.building.make import make
    from recipes.building.subject import networks_for, source_of

    with refusing():
        where, place = device_of(device), _cache_folder(cache)
        runs = {name: make(part, group="evaluator") for name, part in evaluator.items()}
        subject = _subject(checkpoint, backbone, data, data_words, evaluator)
        given = any(word.path == "data.root" for word in split_words(data_words)[0])
        root = subject.data.get("root") if data or given else None
        folder = new_folder(Path(output) if output else subject.folder / time.strftime("%Y-%m-%d_%H-%M-%S"))
        kept = FeatureCache(place) if place is not None or len(runs) > 1 else None
        sources = {name: source_of(run, subject, root, folder, kept) for name, run in runs.items()}
        networks = networks_for(runs, subject, sources)
        for network in networks.values():
            network.to(where).eval()
        folder.mkdir(parents=True)
        results = _results(runs, {name: source.data for name, source in sources.items()}, networks, folder)
    if place is not None and kept is not None and not kept.asked:
        warnings.warn(f"cache={cache} was not used: {UNUSED}", stacklevel=2)
    return results


def _cache_folder(cache: str | None) -> Path | None:
    folder = None if cache is None else Path(cache).expanduser()
    if folder is not None and folder.exists() and not folder.is_dir():
        raise ConfigError([f"cache={cache} is no folder; name one, or one that does not exist yet"])
    return folder


def _results(
    runs: dict[str, Any], sources: dict[str, Any], networks: dict[str, Any], folder: Path
) -> dict[str, dict[str, float]]:
    """Metrics of every evaluator, in results.json and a report; those of one that reads what another does come from the
    same pass.

    Raises:
        Exception: of the first evaluator that failed; what the others found out is written before. Nothing is left
            behind where nothing was found out.
    """
    from lightning_modules.evaluators.base import evaluate_all
    from recipes.report.page import write_report
    from recipes.running.directory import write_json

    evaluations: dict[str, Any] = {}
    failed: dict[str, Exception] = {}
    try:
        for reads in dict.fromkeys(run.reads for run in runs.values()):
            same = {name: run for name, run in runs.items() if run.reads == reads}
            done, broken = evaluate_all(same, networks[reads], sources[next(iter(same))])
            evaluations, failed = evaluations | done, failed | broken
    finally:
        if not evaluations and not any(folder.iterdir()):
            folder.rmdir()
    results = {name: evaluations[name].metrics for name in runs if name in evaluations}
    for name, metrics in results.items():
        _print(name, metrics)
    if results:
        told = {"evaluation_failed": {name: str(error) for name, error in failed.items()}} if failed else {}
        write_json(folder / "results.json", results | told)
        print(write_report(folder, evaluations))
    for error in failed.values():
        raise error
    return results


def _subject(
    checkpoint: str | None,
    backbone: Part | None,
    data: Part | None,
    data_words: Sequence[str],
    evaluator: dict[str, Part],
) -> Any:
    from recipes.building.subject import of_backbone, of_checkpoint

    _check_subject(checkpoint, backbone, data)
    if backbone is not None and data is not None:
        return of_backbone(backbone, data)
    assert checkpoint is not None

    def change(own: Part) -> Part:
        if not own and not _predicts(evaluator):
            raise ConfigError([f"checkpoint={checkpoint} holds no recipe that says on which images; add data=NAME"])
        return change_data(own, data_words, evaluators=evaluator)

    return of_checkpoint(checkpoint, data, change)


def _predicts(evaluators: dict[str, Part] | None) -> bool:
    """Whether any folder of images takes the place of the recipe's data."""
    return set(evaluators or {}) == {"predict"}


def change_data(node: Part, words: Sequence[str], evaluators: dict[str, Part] | None = None) -> Part:
    """A copy of the data part with ``data.key=value`` words applied and checked."""
    predicts = _predicts(evaluators)
    parsed, problems = split_words(words)
    problems += [f"{word.shown}: write data.KEY=VALUE" for word in parsed if word.sign == "~"]
    config = {"data": {TARGET: FOLDER, "root": ""} if predicts else copy.deepcopy(node)}
    problems += set_words(config, parsed, "recipes.evaluate.evaluate_checkpoint").values()
    part = config["data"]
    problems += problems_of(part, FOLDER, "data") if predicts else group_problems("data", part)
    if problems := problems or value_problems(part, "data"):
        raise ConfigError(problems)
    said = {word.path.split(".")[1] for word in parsed}
    return node | {key: value for key, value in part.items() if key in said}


def device_of(name: str) -> Any:
    """The device that a word names."""
    import torch

    try:
        device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
    except RuntimeError as error:
        raise ConfigError([f"device={name} is not a device; choose auto, cpu, cuda or cuda:NUMBER"]) from error
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # no driver, no such number, another build
        raise ConfigError([f"device={name} cannot be had here ({first_line(error)}); choose device=auto"]) from error
    return device


def new_folder(folder: Path) -> Path:
    """The folder, or with a number behind its name where it exists."""
    number, first = 2, folder
    while folder.exists():
        folder, number = first.with_name(f"{first.name}_{number}"), number + 1
    return folder


def _print(name: str, metrics: dict[str, float]) -> None:
    shown = [f"{key} {value:.4f}" if isinstance(value, float) else f"{key} {value}" for key, value in metrics.items()]
    print(f"{name}: {', '.join(shown)}", flush=True)
