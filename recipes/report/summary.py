"""The head of the page: the number the run was made for, then cards with the rest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kernels.wilson import wilson_interval
from lightning_modules.evaluators.result import Evaluation
from recipes.report.curves import repeats
from recipes.report.markup import Markup, element
from recipes.report.numbers import duration, label, number, path_label, percent, quantity
from recipes.report.run_files import RunFiles, flatten

LEAD = ("accuracy", "loss", "seed", "wall_seconds", "images_per_second", "peak_memory_mb")  # the first among the cards
CARDS = 12  # more would push the curves off the first screen; the table of results has them all


def header(run: RunFiles, evaluation: Evaluation) -> Markup:
    """Recipe, run and the main number."""
    metrics = _test_metrics(run, evaluation)
    kind = "Training report" if run.config else "Evaluation"
    title = element("div", element("p", kind, class_="eyebrow"), element("h1", run.recipe),
                    element("p", run.name, class_="run"))  # fmt: skip
    main = _main_metric(run, metrics)
    if main is None:
        return element("header", title)
    name, value = main
    hero = element("div", element("p", name, class_="eyebrow"), element("p", value, class_="hero"),
                   element("p", _context(evaluation) if name == "Test accuracy" else "", class_="note"))  # fmt: skip
    return element("header", title, hero)


def cards(run: RunFiles, evaluation: Evaluation) -> Markup:
    """Further numbers: those of the test set, of validation, then of the run."""
    entries: list[tuple[str, str]] = []
    main = _main_metric(run, _test_metrics(run, evaluation))
    splits = {"test": _test_metrics(run, evaluation), "val": _numbers(run.results.get("val"))}
    for split, metrics in splits.items():
        for key, value in metrics.items():
            if key == "images":
                continue  # stands beside the main number
            entries.append((_title(split, key), quantity(key, value)))
    if run.epochs:
        entries.append(("Epochs", str(len(run.epochs))))
    entries += [
        (label(key), quantity(key, value)) for key, value in _numbers(run.results).items() if key != "last_epoch"
    ]
    return _cards([entry for entry in dict.fromkeys(entries) if entry != main][:CARDS])


def metric_cards(evaluation: Evaluation) -> Markup:
    """The metrics of an evaluator that is not the main one."""
    return _cards([(label(key), quantity(key, value)) for key, value in evaluation.metrics.items()])


def _cards(entries: list[tuple[str, str]]) -> Markup:
    if not entries:
        return Markup("")
    return element("dl", [element("div", element("dt", k), element("dd", v)) for k, v in entries], class_="cards")


def results_table(run: RunFiles, main: Evaluation, further: Mapping[str, Evaluation]) -> Markup:
    """Everything in results.json and in the metrics of every evaluator, whatever the keys are."""
    facts: dict[str, Any] = {f"test/{key}": value for key, value in _test_metrics(run, main).items()}
    facts |= flatten({"evaluators": {name: evaluation.metrics for name, evaluation in further.items()}})
    facts |= flatten(run.results)
    rows = [element("tr", element("th", key, scope="row"), element("td", quantity(key, value)))
            for key, value in facts.items()]  # fmt: skip
    return element("table", rows, class_="facts")


def selected_and_last(run: RunFiles) -> Markup:
    """Validation of the selected epoch beside that of the last one: how much was lost by training on, if anything."""
    best, last, facts = (_numbers(tree) for tree in (run.results.get("val"), run.results.get("val_last"), run.results))
    if not last or "selected_epoch" not in facts or "last_epoch" not in facts:
        return Markup("")
    columns = {f"val/{name}": (best.get(name), value) for name, value in last.items()}
    rows = [
        element("tr", element("th", path_label(name.removeprefix("val/")), scope="row"),
                [element("td", quantity(name, value), class_="num") for value in pair])
        for name, pair in columns.items() if not repeats(name, columns)
    ]  # fmt: skip
    words = [f"{word} {number(facts[f'{word}_epoch'])}" for word in ("selected", "last")]
    head = element("tr", element("th", "epoch", scope="col"),
                   [element("th", word, scope="col", class_="num") for word in words])  # fmt: skip
    named = run.results.get("selected_by")
    by = f"Selected by {', '.join(map(str, named))}." if isinstance(named, list) and named else ""
    note = element("p", by, class_="note") if by else None
    table = element("table", element("thead", head), element("tbody", rows))
    return element("div", element("h3", "Selected and last epoch"), table, note, class_="card")


def timing_facts(run: RunFiles) -> Markup:
    """Times, rates and memory among the results, and how much of the wall time the epochs' training took."""
    units = ("_seconds", "_per_second", "_mb")
    facts = {label(key): quantity(key, value) for key, value in flatten(run.results).items() if key.endswith(units)}
    training = sum(value for value in run.metrics.get("seconds", []) if value is not None)
    wall = run.results.get("wall_seconds")
    if training and "train_seconds" not in run.results:
        facts["Train time"] = duration(training)
    if training and isinstance(wall, int | float) and wall >= training:
        facts["Rest: set-up, validation, evaluation"] = duration(wall - training)
    rows = [element("tr", element("th", key, scope="row"), element("td", text, class_="num"))
            for key, text in facts.items()]  # fmt: skip
    table = element("table", element("tbody", rows))
    return element("div", element("h3", "Whole run"), table, class_="card") if rows else Markup("")


def _context(evaluation: Evaluation) -> str:
    """How far the main number can be trusted: images, interval, chance."""
    if evaluation.confusion is None or not evaluation.confusion.sum():
        return ""
    correct, total = int(evaluation.confusion.trace()), int(evaluation.confusion.sum())
    low, high = wilson_interval(correct, total)
    interval = f"{100 * low:.1f}–{percent(high)}"
    return f"{number(total)} images · 95 % interval {interval} · chance {percent(1 / len(evaluation.classes))}"


def _main_metric(run: RunFiles, metrics: dict[str, float]) -> tuple[str, str] | None:
    for key in ("robust_accuracy", "corruption_accuracy"):  # the clean accuracy beside it would flatter
        if key in metrics:
            return _title("test", key), quantity(key, metrics[key])
    if "accuracy" in metrics:
        return "Test accuracy", quantity("accuracy", metrics["accuracy"])
    validation = _numbers(run.results.get("val"))
    if not metrics and "accuracy" in validation:
        return "Val accuracy", quantity("accuracy", validation["accuracy"])
    for key, value in metrics.items():
        return _title("test", key), quantity(key, value)
    return None


def _title(split: str, key: str) -> str:
    """``Test recall@1``, ``Val ECE``."""
    name = label(key)
    return f"{split.capitalize()} {name if name[:2].isupper() else name[:1].lower() + name[1:]}"


def _test_metrics(run: RunFiles, evaluation: Evaluation) -> dict[str, float]:
    metrics = {**evaluation.metrics, **_numbers(run.results.get("test"))}
    return {key.removeprefix("test/"): value for key, value in metrics.items()}


def _numbers(tree: Any) -> dict[str, float]:
    """The numbers directly in ``tree``, those of ``LEAD`` first; none where it is no dict."""
    items = tree.items() if isinstance(tree, dict) else ()
    found = {str(k): v for k, v in items if isinstance(v, int | float) and not isinstance(v, bool)}
    return {key: found[key] for key in sorted(found, key=lambda key: LEAD.index(key) if key in LEAD else len(LEAD))}
