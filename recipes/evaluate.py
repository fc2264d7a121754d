"""Evaluation of a checkpoint, or of a backbone as it is, without a trainer."""

from __future__ import annotations

import copy
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recipes.boundary import refusing
from recipes.compose import compose_config
from recipes.plain import value_problems
from recipes.signature import TARGET
from recipes.stored import stored_config, without_download
from recipes.validate import ConfigError, group_problems, problems_of
from recipes.words import set_words, split_words

Part = dict[str, Any]
FEATURES = "lightning_modules.heads.embedding.Embedding"
RETRIEVE = "evaluate its features with evaluator=[retrieval]"
EMBEDS = "the head of this checkpoint gives an embedding and none; take evaluator=[retrieval]"
FOLDER = "datamodules.unlabelled.Unlabelled"
UNUSED = (
    "it keeps embeddings, which evaluator=[retrieval] and utilization read; not of data that may leave out files "
    "(data.on_unreadable=substitute)"
)
UNLABELLED = ["root", "eval_batch_size", "num_workers", "max_pixels"]  # keys of data that a folder of images takes


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


@dataclass(frozen=True, slots=True)
class Subject:
    """What is evaluated: a network, and what is known of it.

    Attributes:
        network: builds it, on the CPU, once the data are found.
        data: the data part it is evaluated on, unless another is given.
        classes: it was trained on; None for none.
        preprocessing: of its images; None where the data decide.
        folder: what evaluators write goes into a folder below.
        seed: of the run.
        noise: the noise part of its training labels, which evaluators that read the training part see too.
    """

    network: Callable[[], Any]
    data: Part
    classes: tuple[str, ...] | None
    preprocessing: dict[str, Any] | None
    folder: Path
    seed: int
    noise: Part | None = None


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
    """Rebuild the network of a checkpoint, or take a backbone as it is, and run evaluators on it.

    Args:
        data_words: ``data.key=value`` words applied to the data of the checkpoint's recipe.
        evaluator: parts by name.
        checkpoint: a file, or a run directory.
        backbone: a backbone whose pooled features are the embedding, in place of a checkpoint; needs ``data``.
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
    from recipes.make import make

    with refusing():
        where, place = _device(device), _cache_folder(cache)
        runs = {name: make(part, group="evaluator") for name, part in evaluator.items()}
        subject = _subject(checkpoint, backbone, data, data_words, evaluator)
        given = any(word.path == "data.root" for word in split_words(data_words)[0])
        root = subject.data.get("root") if data or given else None
        folder = _new(Path(output) if output else subject.folder / time.strftime("%Y-%m-%d_%H-%M-%S"))
        kept = FeatureCache(place) if place is not None or len(runs) > 1 else None
        sources = {name: _source(run, subject, root, folder, kept) for name, run in runs.items()}
        network = subject.network()
        for name, run in runs.items():
            _check(run, subject, network, *sources[name])
        network = network.to(where).eval()
        folder.mkdir(parents=True)
        results = _results(runs, {name: data for name, (data, *_) in sources.items()}, network, folder)
    if place is not None and kept is not None and not kept.asked:
        warnings.warn(f"cache={cache} was not used: {UNUSED}", stacklevel=2)
    return results


def _cache_folder(cache: str | None) -> Path | None:
    folder = None if cache is None else Path(cache).expanduser()
    if folder is not None and folder.exists() and not folder.is_dir():
        raise ConfigError([f"cache={cache} is no folder; name one, or one that does not exist yet"])
    return folder


def _results(runs: dict[str, Any], sources: dict[str, Any], network: Any, folder: Path) -> dict[str, dict[str, float]]:
    """Metrics of every evaluator, in results.json and a report; those of one that reads what another does come from the
    same pass.

    Raises:
        Exception: of the first evaluator that failed; what the others found out is written before. Nothing is left
            behind where nothing was found out.
    """
    from lightning_modules.evaluators.base import evaluate_all
    from recipes.directory import write_json
    from recipes.report.page import write_report

    evaluations: dict[str, Any] = {}
    failed: dict[str, Exception] = {}
    try:
        for reads in dict.fromkeys(run.reads for run in runs.values()):
            same = {name: run for name, run in runs.items() if run.reads == reads}
            done, broken = evaluate_all(same, network, sources[next(iter(same))])
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
) -> Subject:
    _check_subject(checkpoint, backbone, data)
    if backbone is not None and data is not None:
        return _of_backbone(backbone, data)
    assert checkpoint is not None
    from recipes.checkpoint import load_checkpoint
    from recipes.checkpoint_form import check_evaluable
    from recipes.make import rebuild_network

    content = load_checkpoint(checkpoint, check_evaluable)
    where = f"the checkpoint {checkpoint}"
    config = stored_config(content, where)
    node = data or change_data(without_download(config["data"]), data_words, evaluators=evaluator)
    path = Path(checkpoint)
    run = path if path.is_dir() else path.parent.parent if path.parent.name == "checkpoints" else path.parent
    classes = tuple(content["classes"])

    def network() -> Any:
        return rebuild_network(config, len(classes), content["network"], where)

    noise = None if data else config.get("noise")
    return Subject(network, node, classes, content["preprocessing"], run / "evaluations", config["seed"], noise)


def _of_backbone(backbone: Part, data: Part) -> Subject:
    """A backbone whose pooled features are the embedding."""
    from recipes.make import build_network

    def network() -> Any:
        return build_network(backbone, {}, {"_target_": FEATURES, "dim": None}, 1)[0]

    return Subject(network, data, None, None, Path("evaluations") / str(backbone.get("name", "backbone")), 0)


def change_data(node: Part, words: Sequence[str], evaluators: dict[str, Part] | None = None) -> Part:
    """A copy of the data part with ``data.key=value`` words applied and checked."""
    predicts = set(evaluators or {}) == {"predict"}  # any folder of images takes the place of the recipe's data
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


def _device(name: str) -> Any:
    import torch

    try:
        return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
    except RuntimeError as error:
        raise ConfigError([f"device={name} is not a device; choose auto, cpu, cuda or cuda:NUMBER"]) from error


def _source(run: Any, subject: Subject, root: str | None, folder: Path, cache: Any = None) -> tuple[Any, int, int]:
    """What an evaluator reads, and channels and size of the images.

    Labelled: the test part of the data module. Unlabelled: every image below ``data.root``.
    """
    from lightning_modules.evaluators.base import EvaluationData
    from recipes.make import make_data

    classes = subject.classes
    if run.reads == "unlabelled":
        from datamodules.unlabelled import Unlabelled

        if classes is None or subject.preprocessing is None:
            raise ConfigError(["a backbone alone predicts no classes; give checkpoint=PATH of a classifier"])
        if root is None:
            raise ConfigError(["data.root must be given: data.root=FOLDER with the images to predict"])
        keys = {key: subject.data[key] for key in UNLABELLED if key in subject.data}
        images = Unlabelled(subject.preprocessing, **{**keys, "root": root})
        data = EvaluationData(images.dataloader(), classes, paths=images.paths, output=folder)
        return data, 3, subject.preprocessing["image_size"]
    module = make_data(subject.data, subject.seed, subject.noise)
    return test_data(module, folder, cache), module.channels, module.image_size


def _check(run: Any, subject: Subject, network: Any, data: Any, channels: int, image_size: int) -> None:
    """Refuse a network that cannot give what an evaluator reads, or takes no such images, and other classes."""
    from datamodules.unicode_form import same_names
    from recipes.probe import check_takes

    classes = subject.classes
    if run.reads_logits and classes is not None and "logits" not in network.head.gives:
        raise ConfigError([f"evaluator {type(run).__name__} reads class scores, and {EMBEDS}"])
    found = tuple(data.classes)
    if run.reads == "labelled" and run.compares == "network" and (classes is None or not same_names(found, classes)):
        if classes is None:
            raise ConfigError([f"a backbone alone knows no classes; {RETRIEVE}"])
        raise ConfigError([_class_difference(classes, found)])
    check_takes(network, channels, image_size)


def test_data(module: Any, folder: Path, cache: Any = None) -> Any:
    """The test part of a data module that is set up, as evaluators read it; embeddings may be kept in a FeatureCache,
    unless only reading tells which images there are."""
    from lightning_modules.evaluators.base import EvaluationData

    return EvaluationData(
        batches=module.test_dataloader(),
        classes=module.classes_of("test"),
        output=folder,
        train=module.train_eval_dataloader,
        is_query=module.test_is_query,
        picture=module.test_picture,
        key=module.key,
        cache=None if module.leaves_out else cache,
    )


def _class_difference(trained: tuple[str, ...], found: tuple[str, ...]) -> str:
    if len(trained) != len(found):
        return f"the checkpoint was trained for {len(trained)} classes, the data has {len(found)}"
    pair = next((a, b) for a, b in zip(trained, found, strict=True) if a != b)
    return f"class names differ from those of the checkpoint: {pair[0]!r} there, {pair[1]!r} in the data at its place"


def _new(folder: Path) -> Path:
    """The folder, or with a number behind its name where it exists."""
    number, first = 2, folder
    while folder.exists():
        folder, number = first.with_name(f"{first.name}_{number}"), number + 1
    return folder


def _print(name: str, metrics: dict[str, float]) -> None:
    shown = [f"{key} {value:.4f}" if isinstance(value, float) else f"{key} {value}" for key, value in metrics.items()]
    print(f"{name}: {', '.join(shown)}", flush=True)
