"""What the tests of a retrieval report make: queries, maps, and the outline of a page."""

from __future__ import annotations

from html.parser import HTMLParser

import numpy as np

from lightning_modules.evaluators.result import RankedImage, RankedQuery, Scatter


class Outline(HTMLParser):
    """Tags with their attributes, and the text, as a browser would split them."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.comments: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def handle_comment(self, data: str) -> None:
        self.comments.append(data)

    def count(self, tag: str, class_: str | None = None) -> int:
        return sum(t == tag and (class_ is None or class_ in (a.get("class") or "").split()) for t, a in self.tags)


def picture(size: int = 8, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(size).integers(0, 256, (size, size, channels), dtype=np.uint8)


def query(name: str = "cat", labels: str = "cat dog", score: float = 0.5) -> RankedQuery:
    """A query that found images of these classes."""
    found = [RankedImage(picture(), one, one == name, 0.9 - i / 8, 30 + i) for i, one in enumerate(labels.split())]
    return RankedQuery(picture(), name, 7, score, found, "AP")


def clusters(classes: int, points: int, seed: int = 0) -> Scatter:
    """Classes around random centres, as many points each, in random order."""
    rng = np.random.default_rng(seed)
    group = rng.permutation(np.arange(points) % classes)
    xy = rng.normal(size=(classes, 2))[group] * [12, 6] + rng.normal(size=(points, 2)) * 0.3
    names = [f"class {i}" for i in range(classes)]
    return Scatter(xy[:, 0].tolist(), xy[:, 1].tolist(), group.tolist(), names, "first", "second", "How it was made.")
