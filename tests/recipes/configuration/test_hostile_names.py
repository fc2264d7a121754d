"""Names that others chose (classes, files, metrics, runs): no markup in a page, no formula in a table, no path."""

import csv
import json
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from lightning_modules.evaluators.predict import name_cell, path_cell
from lightning_modules.evaluators.result import Curve, Evaluation, Mistake, Table
from recipes.configuration.problems import ConfigError
from recipes.configuration.validate import part_name_problems
from recipes.report.bounded import MAX_NAME, short
from recipes.report.page import write_report
from recipes.running.directory import open_directory

pytestmark = pytest.mark.fault
LONG = "long" * 2500
HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "</style><style>*{display:none}</style>",
    "</title><base href=//evil>",
    "</svg><a href=javascript:alert(1)>x</a>",
    "<!--",
    "]]>",
    "&lt;b&gt;<b>",
    "\x00\x07\x1b[2Jx\x85",
    "\u202egnp.exe",
    "\ud800 no text",
    LONG + "<i>",
    LONG + "<u>",
    "=HYPERLINK(1)",
]
TAGS = """html head meta title style body main header div p h1 h2 h3 section figure figcaption svg g line rect circle
polyline text ul li span b i dl dt dd table thead tbody tr th td details summary pre img"""
ATTRIBUTES = """lang charset http-equiv content name class role aria-label aria-hidden tabindex viewbox width height x y
x1 x2 y1 y2 cx cy r points transform fill-opacity title scope src alt"""


class Outline(HTMLParser):
    """Tags, attributes and text of a page as a browser would split them."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags, self.attributes, self.sources, self.text = set(), set(), [], []
        self.comments, self.contents = list[str](), list[str]()
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        self.contents += [value for name, value in attrs if name == "content"]
        self.sources += [value for name, value in attrs if name in ("src", "href", "action")]

    def handle_data(self, data):
        self.text.append(data)

    def handle_comment(self, data):
        self.comments.append(data)


def hostile_page(folder: Path) -> str:
    """A page on which every text that can come from elsewhere is hostile."""
    run = folder / "<b>recipe" / "<b>run"
    run.mkdir(parents=True)
    joined = "\n".join(name for name in HOSTILE if "\ud800" not in name)
    (run / "config.yaml").write_text(f"recipe: '<script>'\nnote: |\n  {joined}\n")
    (run / "command.txt").write_text(joined)
    (run / "environment.json").write_text(json.dumps({name: name for name in HOSTILE}))
    with open(run / "metrics.csv", "w", newline="", errors="replace") as file:
        csv.writer(file).writerows([["epoch", "val/accuracy", *HOSTILE], [0, 0.5, *range(len(HOSTILE))]])
    parts = {name: {"first_active_epoch": 0, name: name} for name in HOSTILE}
    results = {"test": {name: 0.5 for name in HOSTILE}, "val": {"accuracy": 0.5}, "parts": parts, "error": HOSTILE,
               "wall_seconds": 3.0, "<script>": {"<i>": "<u>"}}  # fmt: skip
    (run / "results.json").write_text(json.dumps(results))
    picture = np.zeros((4, 4, 3), np.uint8)
    count = len(HOSTILE)
    found = Evaluation(
        metrics={name: 0.5 for name in HOSTILE}, classes=list(HOSTILE), confusion=np.ones((count, count), int),
        mistakes=[Mistake(picture, name, name, 0.9, 3) for name in HOSTILE],
        tables={name: Table([name, "b"], [[name, name]]) for name in HOSTILE},
        figures={name: Curve([0.0, 1.0], {name: [0.1, 0.2] for name in HOSTILE}, name) for name in HOSTILE},
    )  # fmt: skip
    page = write_report(run, {"classification": found, **{name: found for name in HOSTILE[:3]}})
    assert page.name == "report.html" and page.parent == run
    return page.read_text(encoding="utf-8")


def test_no_element_attribute_or_request_comes_from_a_name(tmp_path):
    page = hostile_page(tmp_path)
    outline = Outline(page)
    assert outline.tags <= {*TAGS.split()} and outline.attributes <= {*ATTRIBUTES.split()} and not outline.comments
    assert all(source.startswith("data:image/png;base64,") for source in outline.sources) and outline.sources
    assert page.count("<style>") == page.count("</style>") == 1
    text = "".join(outline.text)
    assert all(name in text for name in HOSTILE[:9]), "names are shown as they are"
    bad = [letter for letter in page if (ord(letter) < 32 and letter not in "\t\n") or letter in "\x7f\x85\u202e"]
    assert not bad
    assert any(policy.startswith("default-src 'none'; ") for policy in outline.contents)


def test_long_names_do_not_swell_the_page(tmp_path):
    page = hostile_page(tmp_path)
    # In full only in texts that are shown as they are: configuration, command, environment, values of the results.
    assert page.count(LONG) == 14 and len(page) < 2_000_000
    assert short(LONG + "<i>") != short(LONG + "<u>") and len(short(LONG)) == MAX_NAME and short("x") == "x"


@pytest.mark.parametrize(
    ("text", "cell"),
    [
        ("=1+1", "'=1+1"), ("+1", "'+1"), ("-1", "'-1"), ("@SUM(A1)", "'@SUM(A1)"), ("  =1", "'  =1"), ("＝1", "'＝1"),
        ("\t=1", "\\t=1"), ("\r=1", "\\r=1"), ("a\nb", "a\\nb"), ("\x00", "\\x00"), ("\ud800", "\\ud800"),
        ("\u202ex", "\\u202ex"), ("cat.png", "cat.png"), ("Käse 3", "Käse 3"), ("﹢1", "'﹢1"), ("−1", "'−1"),
        ("\u200b=1", "'\u200b=1"), ("a\u00a0b\u3000c\u200bd", "a\u00a0b\u3000c\u200bd"), ("", ""),
    ],
)  # fmt: skip
def test_class_names_of_predictions_are_text(text, cell):
    assert name_cell(text) == cell
    cell.encode("utf-8")


@pytest.mark.parametrize("start", [*"=+-@＝＋－＠−﹣", " =", "\t", "\r", "\n", "\t=", "\u200b-", "\u00a0+", "\udcff@"])
def test_paths_of_predictions_are_no_formulas_and_the_same_paths(start):
    path = f"{start}1.png"
    assert path_cell(path) == f"./{path}" and Path("photos", path_cell(path)) == Path("photos", path)
    assert path_cell(f"below/{path}") == f"below/{path}"


@pytest.mark.parametrize(
    "name", ["../x", "/tmp/x", "..", ".", "a/b", "a\\b", "", "-x", ".x", "a\nb", "a\x00", "x" * 101, "ä"]
)
def test_names_of_runs_are_plain_file_names(tmp_path, name):
    with pytest.raises(ConfigError, match="must be a plain file name"):
        open_directory(str(tmp_path), "recipe", name, 0, {})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["../x", "a/b", "a.b", "", "1a", "x" * 65, "a b", "<b>", 3])
def test_names_of_parts_become_tags_and_keys(name):
    assert len(part_name_problems({"regularizer": {name: {}}})) == 1
    assert part_name_problems({"regularizer": {"saf_2": {}}, "evaluator": None}) == []
