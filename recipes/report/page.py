"""``write_report``: everything a run left, on one self-contained HTML page.

The page asks nobody for anything: style is inline and allowed by its hash, pictures are data URIs, there is no script,
and its content security policy forbids the rest.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path

from lightning_modules.evaluators.result import Evaluation, Table
from lightning_modules.surgery.changes import is_module_line
from recipes.report.bounded import bounded_evaluation, bounded_run, short
from recipes.report.classes import per_class_accuracy
from recipes.report.confusion import confused_pairs, heat_map
from recipes.report.curves import learning_charts, method_charts, network_notes, part_notes, timing_charts
from recipes.report.gallery import query_galleries
from recipes.report.line_chart import Chart, line_chart
from recipes.report.markup import Child, Markup, element
from recipes.report.mistakes import mistake_gallery
from recipes.report.numbers import label, number, quantity
from recipes.report.pictures import picture_rows
from recipes.report.run_files import RunFiles, read_run
from recipes.report.scatter import scatter_maps
from recipes.report.style import STYLE
from recipes.report.summary import cards, header, metric_cards, results_table, selected_and_last, timing_facts

LONG = 60  # characters of a cell that may break into lines
MAIN = "classification"  # the evaluator whose numbers stand at the top of the page


def write_report(run_dir: Path, evaluations: Mapping[str, Evaluation]) -> Path:
    """Write ``run_dir/report.html`` and return its path.

    Args:
        run_dir: directory of a run; reads ``config.yaml``, ``command.txt``, ``environment.json``, ``metrics.csv`` and
            ``results.json`` there. Each may be missing.
        evaluations: what each evaluator found, by its name; every field may be empty. Where there are several, each
            has a section, and ``classification``, else the first one, gives the main numbers.

    Raises:
        FileNotFoundError: there is no such directory.
        ValueError: a JSON file of the run cannot be read.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_report(Path(folder), {"classification": Evaluation(metrics={"accuracy": 0.5})}).name
        'report.html'
    """
    run = read_run(run_dir)
    path = Path(run_dir) / "report.html"
    # Class names come from file names, which may hold bytes that are no text.
    path.write_bytes(render(run, evaluations).encode("utf-8", errors="replace"))
    return path


def render(run: RunFiles, evaluations: Mapping[str, Evaluation]) -> str:
    """The page as text."""
    run = bounded_run(run)
    evaluations = {short(name): bounded_evaluation(one) for name, one in evaluations.items()}
    digest = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=policy),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", f"{run.recipe} · {run.name}"),
        element("style", Markup(STYLE)),
    )
    body = element("body", element("main", _sections(run, evaluations)))
    return f"<!doctype html>\n{element('html', head, body, lang='en')}\n"


def _sections(run: RunFiles, evaluations: Mapping[str, Evaluation]) -> list[Markup]:
    names = sorted(evaluations, key=lambda name: name != MAIN)  # stable: the others keep their order
    main = evaluations[names[0]] if names else Evaluation()
    further = {name: evaluations[name] for name in names[1:]}
    said = [*network_notes(run), *(f"{part}: {words}." for part, words in part_notes(run))]
    notes = [element("p", words, class_="section-note") for words in said]
    return [
        header(run, main),
        cards(run, main),
        _section("Learning", _grid([*learning_charts(run), selected_and_last(run)])),
        _section("Method", _grid(method_charts(run)), lead=notes),
        _section("Surgery", *_surgery(run)),
        *([_one_section(names[0], main)] if further else _single_sections(main)),
        *(_one_section(name, one, metric_cards(one)) for name, one in further.items()),
        _section("Timing", _grid([*timing_charts(run), timing_facts(run)])),
        _section("Reproduce", *_reproduce(run, main, further)),
    ]


def _single_sections(evaluation: Evaluation) -> list[Markup]:
    """The only evaluator: its findings are sections of the page."""
    return [
        _section("Evaluation", *_charts_and_tables(evaluation)),
        _section("Classes", *_classes(evaluation)),
        _section("Embedding", *scatter_maps(evaluation.maps)),
        _section("Retrieved images", *query_galleries(evaluation.queries)),
        _section("Pictures", *picture_rows(evaluation.pictures)),
        _section("Most confident mistakes", mistake_gallery(evaluation.mistakes)),
    ]


def _one_section(name: str, evaluation: Evaluation, numbers: Child = None) -> Markup:
    """One of several evaluators: everything it found under its name."""
    gallery = mistake_gallery(evaluation.mistakes)
    title = element("h3", "Most confident mistakes") if gallery else None
    found = [*scatter_maps(evaluation.maps), *query_galleries(evaluation.queries), *picture_rows(evaluation.pictures)]
    return _section(
        label(name), numbers, *_charts_and_tables(evaluation), *_classes(evaluation), *found, title, gallery
    )


def _charts_and_tables(evaluation: Evaluation) -> list[Markup]:
    """Charts and narrow tables in a grid, then the wide tables."""
    figures = [line_chart(Chart(title, curve.x, curve.lines, x_label=curve.x_label, share=curve.percent))
               for title, curve in evaluation.figures.items()]  # fmt: skip
    tables = {title: _table_card(title, table) for title, table in evaluation.tables.items()}
    narrow = [card for title, card in tables.items() if _is_narrow(evaluation.tables[title])]
    wide = [card for card in tables.values() if card not in narrow]
    return [_grid([*figures, *narrow]), *wide]


def _is_narrow(table: Table) -> bool:
    """Whether it fits a card of the grid, beside charts."""
    wide = max((sum(len(str(cell)) for cell in row) for row in table.rows), default=0) > 60
    return len(table.columns) <= 4 and len(table.rows) <= 12 and not wide


def _section(title: str, *parts: Child, lead: Child = None) -> Markup:
    """A titled section; nothing where it would be empty."""
    filled = [part for part in parts if part]
    if not filled:
        return Markup("")
    return element("section", element("h2", title), lead, element("div", filled, class_="stack"))


def _grid(charts: list[Markup]) -> Markup:
    filled = [chart for chart in charts if chart]
    return element("div", filled, class_="grid") if filled else Markup("")


def _classes(evaluation: Evaluation) -> list[Markup]:
    if evaluation.confusion is None or not evaluation.confusion.sum():
        return []
    counts, names = evaluation.confusion, evaluation.classes
    errors = [part for part in (heat_map(counts, names), confused_pairs(counts, names)) if part]
    return [per_class_accuracy(counts, names), element("div", errors, class_="errors")]


def _table_card(title: str, table: Table) -> Markup:
    """The table under its title, without columns in which nothing stands."""
    filled = [i for i in range(len(table.columns)) if any(row[i] not in (None, "") for row in table.rows)]
    names = [table.columns[i] for i in filled]
    rows = [[quantity(table.columns[i], row[i]) for i in filled] for row in table.rows]
    told = len(names) == 1 and label(names[0]) == title  # the title says what stands in the one column
    content = _wide_table([] if told else [name.replace("_", " ") for name in names], rows)
    return element("div", element("h3", title), element("div", content, class_="scroll", tabindex=0), class_="card")


def _wide_table(columns: Iterable[str], rows: Iterable[Iterable[str]]) -> Markup:
    head = element("tr", [element("th", name, scope="col") for name in columns])
    body = [[element("td", cell, class_="long" if len(cell) > LONG else None) for cell in row] for row in rows]
    return element("table", element("thead", head) if columns else None,
                   element("tbody", [element("tr", row) for row in body]), class_="wide")  # fmt: skip


def _surgery(run: RunFiles) -> list[Markup]:
    """What each surgery did, in the open; its modules one by one, folded away."""
    lines = run.surgery.splitlines()
    if not lines:
        return []
    heads = [element("p", line.strip(), class_="section-note") for line in lines if not is_module_line(line)]
    modules = [line for line in lines if is_module_line(line)]
    return [element("div", heads), _folded(f"{len(modules)} modules", element("pre", "\n".join(modules)))]


def _reproduce(run: RunFiles, main: Evaluation, further: Mapping[str, Evaluation]) -> list[Markup]:
    """The command in the open; what is long, folded away."""
    parts = []
    if run.command:
        command = element("pre", run.command, class_="command")
        parts.append(element("div", element("h3", "Command"), command, class_="card"))
    if run.config:
        parts.append(_folded("Configuration", element("pre", run.config)))
    if run.environment:
        rows = [element("tr", element("th", key, scope="row"), element("td", "none" if value is None else str(value)))
                for key, value in run.environment.items()]  # fmt: skip
        parts.append(_folded("Environment", element("table", rows, class_="facts")))
    if run.results or main.metrics or further:
        parts.append(_folded("All results", results_table(run, main, further)))
    if run.metrics:
        parts.append(_folded("All epochs", _epochs(run)))
    return parts


def _folded(title: str, content: Markup) -> Markup:
    return element("details", element("summary", title), element("div", content, class_="scroll", tabindex=0))


def _epochs(run: RunFiles) -> Markup:
    rows = zip(*run.metrics.values(), strict=True)
    return _wide_table(run.metrics, (["" if cell is None else number(cell) for cell in row] for row in rows))
