"""How the report writes quantities: names of columns and keys become labels, values get units."""

from __future__ import annotations

import math
from typing import Any

SPACE = "\u00a0"
SHARE_NAMES = ("accuracy", "share", "ratio", "fraction", "recall", "precision", "top1", "top5", "ece", "probability",
               "map", "mrr", "robust", "worst", "tail")  # fmt: skip
ACRONYMS = {"ece": "ECE", "nll": "NLL", "kl": "KL", "lr": "Learning rate", "saf": "SAF", "mesa": "MESA", "gpu": "GPU",
            "cpu": "CPU", "ema": "EMA", "auroc": "AUROC", "id": "ID", "knn": "kNN", "sam": "SAM",
            "top1": "top-1", "top5": "top-5", "map": "mAP", "mrr": "MRR", "nmi": "NMI", "pgd": "PGD",
            "kd": "KD", "dkd": "DKD", "nd": "ND", "rkd": "RKD", "crd": "CRD", "dist": "DIST",
            "fitnet": "FitNet"}  # fmt: skip


def is_share(name: str) -> bool:
    """Whether a quantity of this name is a fraction that reads best as a percentage."""
    last = name.rsplit("/", 1)[-1].lower().partition("@")[0]  # recall@1 is a recall
    return any(last == word or last.endswith("_" + word) or last.startswith(word + "_") for word in SHARE_NAMES)


def label(name: str) -> str:
    """``images_per_second`` as ``Images / s``; the unit suffixes that ``quantity`` writes are dropped.

    Example:
        >>> label("peak_memory_mb"), label("trajectory_kl"), label("wall_seconds"), label("map@r")
        ('Peak memory', 'Trajectory KL', 'Wall time', 'mAP@R')
    """
    text = name.rsplit("/", 1)[-1].replace("_per_second", " / s").removesuffix("_mb")
    text = text[: -len("_seconds")] + "_time" if text.endswith("_seconds") else text
    words = [_word(word) for word in text.replace("_", " ").split()]
    if words and words[0].islower():
        words[0] = words[0].capitalize()
    return " ".join(words)


def path_label(name: str) -> str:
    """``label`` of every step of a path.

    Example:
        >>> path_label("robustness/pgd_accuracy")
        'Robustness · PGD accuracy'
    """
    return " · ".join(label(step) for step in name.split("/"))


def _word(word: str) -> str:
    """``map@r`` as ``mAP@R``: acronyms as they are written, also where a cut-off follows."""
    name, at, cut = word.partition("@")
    return ACRONYMS.get(name.lower(), name) + at + ("R" if cut == "r" else cut)


def number(value: float) -> str:
    """Four significant digits, thousands separated; large counts in millions, extreme values with an exponent."""
    if not math.isfinite(value):
        return {math.inf: "∞", -math.inf: "−∞"}.get(value, "—")
    size = abs(value)
    if value == int(value) and 1e7 <= size < 1e12:
        text = f"{value / 1e9:.3g}{SPACE}G" if size >= 1e9 else f"{value / 1e6:.3g}{SPACE}M"
    elif size and (size < 1e-3 or size >= 1e7):
        mantissa, _, exponent = f"{value:.2e}".partition("e")
        text = f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
    elif size >= 1000 or value == int(value):
        text = f"{round(value):,}".replace(",", "\u202f")
    else:
        text = f"{value:.4g}"
    return text.replace("-", "−")


def percent(value: float, decimals: int = 1) -> str:
    """A fraction as a percentage: 0.503 as ``50.3 %``."""
    return f"{100 * value:.{decimals}f}{SPACE}%" if math.isfinite(value) else "—"


def duration(seconds: float) -> str:
    """``83.2`` as ``1 min 23 s``."""
    if not math.isfinite(seconds):
        return "—"
    if seconds < 60:
        return f"{seconds:.1f}{SPACE}s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}{SPACE}h {minutes:02d}{SPACE}min" if hours else f"{minutes}{SPACE}min {rest:02d}{SPACE}s"


def quantity(name: str, value: Any) -> str:
    """The value under ``name`` as text, with the unit that the name implies."""
    if value is None:
        return "—"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if is_share(name) and 0 <= value <= 1:
        return percent(value)
    if name.endswith("_seconds"):
        return duration(value)
    if name.endswith("_mb"):
        return f"{value / 1024:.2f}{SPACE}GB" if value >= 1024 else f"{value:.0f}{SPACE}MB"
    if isinstance(value, int) and name.rsplit("/", 1)[-1] in ("seed", "year"):
        return str(value)
    return number(value)
