"""Queries and what they found as rows of pictures: what the network takes for similar.

A hit and a miss differ in the line of the frame (solid, dashed), in a mark (tick, cross) and in colour, so a reader who
sees no colours, or hears the page, can tell them apart.
"""

from __future__ import annotations

from lightning_modules.evaluators.result import RankedImage, RankedQuery
from recipes.report.markup import Markup, element
from recipes.report.mistakes import data_uri
from recipes.report.numbers import number

TITLES = 4  # galleries of one evaluation
QUERIES = 10  # rows of one gallery
OPEN = 5  # of them not folded away
NEIGHBOURS = 10  # pictures of one row
LARGEST = 96  # pixels of the longer side, also the largest size shown
CRISP_BELOW = 48  # pixels: what is enlarged at least twice keeps hard pixel edges
COLOURS = 256  # of pictures that had to be made smaller: hundreds of them stand on a page


def query_galleries(queries: dict[str, list[RankedQuery]]) -> list[Markup]:
    """A card for each of the first ``TITLES`` lists that is not empty, and a line on those left out."""
    filled = {title: rows for title, rows in queries.items() if rows}
    cards = [_card(title, filled[title]) for title in list(filled)[:TITLES]]
    left = ", ".join(list(filled)[TITLES:])
    return [*cards, element("p", f"Not shown: {left}.", class_="note")] if left else cards


def score_text(value: float) -> str:
    """A score with three decimals, so that those of a row can be compared; large ones as other numbers.

    Example:
        >>> score_text(-0.5), score_text(0.98765)
        ('−0.500', '0.988')
    """
    return f"{value:.3f}".replace("-", "−") if abs(value) < 100 else number(value)


def _card(title: str, queries: list[RankedQuery]) -> Markup:
    rows = [_row(query) for query in queries[:QUERIES]]
    more = len(rows) - OPEN
    folded = element("details", element("summary", f"{more} more"), element("div", _list(rows[OPEN:])))
    return element("div", element("h3", title), _key(queries), _list(rows[:OPEN]), folded if more > 0 else None,
                   class_="card queries")  # fmt: skip


def _list(rows: list[Markup]) -> Markup:
    return element("ul", rows, class_="rows")


def _key(queries: list[RankedQuery]) -> Markup:
    """What the frames and numbers mean, and how much is not shown."""
    known = any(one.correct is not None for query in queries for one in query.neighbours)
    marks = ((True, "hit"), (False, "miss")) if known else ()
    items = [element("li", _mark(correct), words) for correct, words in marks]
    items.append(element("li", "Nearest first; the number is the score for the query."))
    if len(queries) > QUERIES:
        items.append(element("li", f"The first {QUERIES} of {number(len(queries))} queries."))
    if any(len(query.neighbours) > NEIGHBOURS for query in queries[:QUERIES]):
        items.append(element("li", f"The first {NEIGHBOURS} images of each."))
    return element("ul", items, class_="legend")


def _row(query: RankedQuery) -> Markup:
    shown = query.neighbours[:NEIGHBOURS]
    found = element("ul", [_neighbour(query, place, one) for place, one in enumerate(shown, 1)], class_="found")
    hits = [one.correct for one in shown if one.correct is not None]
    said = [f"{sum(hits)} of {len(hits)} hits"] if hits else [] if shown else ["no image found"]
    facts = (f"{query.score_name} {score_text(query.score)}", *said, f"#{query.index}")
    name = element("b", query.label, class_="name", title=query.label)
    about = element("div", name, [element("p", fact, class_="note") for fact in facts])
    picture = _picture(query, f"Query, image {query.index}: {query.label}")
    return element("li", element("div", picture, about, class_="query"), found if shown else None)


def _neighbour(query: RankedQuery, place: int, found: RankedImage) -> Markup:
    verdict = {True: "hit", False: "miss", None: None}[found.correct]
    words = f"Place {place}, {f'{verdict}, ' if verdict else ''}image {found.index}: {found.label}"
    score = element("p", score_text(found.score), class_="note")
    # The label of a hit is mostly the query's, and would only repeat it.
    same = found.correct and found.label == query.label
    name = None if same else element("p", found.label, class_="label wrong" if verdict == "miss" else "label")
    mark = None if found.correct is None else _mark(found.correct)
    frame = element("span", _picture(found, words), mark, class_=f"frame-{verdict or 'unknown'}")
    return element("li", frame, score, name, title=f"{words} (score {score_text(found.score)})")


def _picture(image: RankedImage | RankedQuery, words: str) -> Markup:
    crisp = max(image.picture.shape[:2]) < CRISP_BELOW
    return element("img", src=data_uri(image.picture, LARGEST, COLOURS), class_="crisp" if crisp else None, alt=words)


def _mark(correct: bool) -> Markup:
    """A tick or a cross on a disc, drawn: not every font has the characters."""
    strokes = ("4,8.5 7,11.5 12,5",) if correct else ("5,5 11,11", "11,5 5,11")
    lines = [element("polyline", points=points) for points in strokes]
    disc = element("circle", cx=8, cy=8, r=8)
    return element("svg", disc, lines, viewBox="0 0 16 16", class_="verdict good" if correct else "verdict bad",
                   aria_hidden="true")  # fmt: skip
