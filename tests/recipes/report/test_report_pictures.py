"""Rows of pictures on the page, the robust accuracy at its top, and tables of sentences in full width."""

from __future__ import annotations

import base64
import html
import io
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lightning_modules.evaluators.result import CaptionedPicture, Evaluation, PictureRow, Table
from recipes.report.page import write_report
from recipes.report.pictures import ROWS, picture_rows

HOSTILE = "<script>alert(1)</script>\"'&"


def picture(seed: int, caption: str = "Lemon", size: tuple[int, int] = (4, 6)) -> CaptionedPicture:
    return CaptionedPicture(np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8), caption)


def page(folder: Path, **evaluations: Evaluation) -> str:
    return write_report(folder, evaluations).read_text(encoding="utf-8")


def test_every_pixel_and_word_is_there_and_nothing_else(tmp_path: Path) -> None:
    row = PictureRow([picture(0, HOSTILE), picture(1, "taken for Lime"), picture(2, "difference")], 17, "APGD-CE")
    text = page(tmp_path, robustness=Evaluation(pictures={HOSTILE: [row]}))
    shown = re.findall(r'<img src="data:image/png;base64,([^"]+)" class="crisp" alt="([^"]+)"', text)
    assert len(shown) == 3
    for (data, alt), one in zip(shown, row.pictures, strict=True):
        assert (np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))) == one.picture).all()
        assert html.unescape(alt) == f"Image 17: {one.caption}"
    assert "APGD-CE · #17" in text and "<script" not in text and text.count("<figcaption>") == 3


def test_no_rows_no_card_and_not_too_many() -> None:
    assert picture_rows({"None": []}) == []
    (card,) = picture_rows({"Many": [PictureRow([picture(i)], i) for i in range(ROWS + 5)]})
    assert card.count("<img") == ROWS and "#0<" in card and f"#{ROWS}<" not in card


def test_long_words_are_cut(tmp_path: Path) -> None:
    row = PictureRow([picture(0, "c" * 10_000)], 1, "n" * 10_000)
    text = page(tmp_path, one=Evaluation(pictures={"Title": [row]}), other=Evaluation(metrics={"accuracy": 0.5}))
    assert "c" * 200 not in text and "n" * 200 not in text and "c" * 90 in text and "n" * 90 in text


def test_the_robust_accuracy_leads(tmp_path: Path) -> None:
    """Also where the clean one stands before it, which would flatter."""
    text = page(tmp_path, robustness=Evaluation(metrics={"accuracy": 0.9, "robust_accuracy": 0.312, "tail_30": 0.05}))
    assert re.search(r'<p class="eyebrow">Test robust accuracy</p><p class="hero">31\.2\u00a0%</p>', text)
    assert "5.0\u00a0%" in text


def test_a_table_of_sentences_gets_the_width_of_the_page(tmp_path: Path) -> None:
    tables = {"Short": Table(["a", "b"], [["x", 1.0]]), "Long": Table(["check"], [["word " * 20]]),
              "High": Table(["a"], [["x"]] * 13)}  # fmt: skip
    text = page(tmp_path, robustness=Evaluation(tables=tables))
    grid = text[text.index('<div class="grid">') :].split("</table></div></div></div>")[0]
    assert "Short" in grid and "Long" not in grid and "High" not in grid and "Long" in text and "High" in text


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CaptionedPicture(np.zeros((2, 2, 3)), "x"), r"captioned picture is float64 \[2, 2, 3\]; it must be"),
        (lambda: PictureRow([picture(0)], -1), "index of a row of pictures is -1; it must be a position"),
        (lambda: PictureRow(["x"], 1), "pictures of a row hold a str; they must hold CaptionedPicture only"),  # type: ignore[list-item]
        (lambda: Evaluation(pictures={"t": [1]}), "pictures under 't' hold a int; they must hold PictureRow only"),  # type: ignore[list-item]
    ],
)
def test_what_is_no_row_of_pictures(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_accuracy_under_corruptions_stands_at_the_top(tmp_path):
    metrics = {"accuracy": 0.9, "corruption_accuracy": 0.5, "extra_accuracy": 0.6}
    text = write_report(tmp_path, {"corruptions": Evaluation(metrics=metrics)}).read_text(encoding="utf-8")
    assert re.search(r'<p class="eyebrow">Test corruption accuracy</p><p class="hero">50\.0\u00a0%</p>', text)
    assert text.count("Test corruption accuracy") == 1 and "Test extra accuracy" in text
