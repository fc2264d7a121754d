"""Accuracy of each class as sorted bars. HTML rather than SVG, so names wrap and columns flow with the page."""

from __future__ import annotations

from scipy.sparse import csr_array

from recipes.report.markup import Markup, element
from recipes.report.numbers import number, percent

ALL_UP_TO = 120  # classes; beyond it only both ends are shown
WORST, BEST = 40, 20


def per_class_accuracy(confusion: csr_array, classes: list[str]) -> Markup:
    """One bar a class, the weakest first; classes without an image are left out and counted.

    Args:
        confusion: ``[C, C]`` counts, rows are true classes.
        classes: C names.
    """
    totals, correct = confusion.sum(axis=1), confusion.diagonal()
    present = [i for i in range(len(classes)) if totals[i] > 0]
    order = sorted(present, key=lambda i: (correct[i] / totals[i], classes[i]))
    notes = [f"{len(classes) - len(present)} classes have no image in this set."] if len(present) < len(classes) else []
    if len(order) > ALL_UP_TO:
        notes.append(f"{len(order)} classes: the {WORST} weakest and the {BEST} strongest.")
        order = order[:WORST] + order[-BEST:]
    rows = [_bar(classes[i], int(correct[i]), int(totals[i])) for i in order]
    note = element("p", " ".join(notes), class_="note") if notes else None
    return element("div", element("h3", "Accuracy per class"), note, element("ul", rows, class_="bars"), class_="card")


def _bar(name: str, correct: int, total: int) -> Markup:
    share = correct / total
    # The width stands in an SVG attribute: the page's policy allows no style attribute.
    rail = element("rect", width="100%", height="100%", class_="rail")
    fill = element("rect", width=f"{100 * share:.1f}%", height="100%", class_="fill")
    bar = element("svg", rail, fill, aria_hidden="true")
    value = element("b", percent(share, 0))
    return element("li", element("span", name, class_="name"), bar, value,
                   title=f"{name}: {number(correct)} of {number(total)} right")  # fmt: skip
