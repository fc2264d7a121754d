"""How fast the command line answers, as a share of the time of ``import torch``.

    python -m benchmarks.command_line [--repeats 9]

Whole processes, in turn: ``python -c "import torch"`` against ``--help``, a misspelled recipe and a bad key.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
from collections.abc import Callable

from benchmarks.timing import interleave, ratio, save
from recipes.configuration.signature import ROOT

WORDS = {"help": ["--help"], "misspelled recipe": ["recipe=cifar_saff"], "bad key": ["data.rooot=1"]}


def process(*words: str) -> Callable[[], object]:
    return lambda: subprocess.run([sys.executable, *words], capture_output=True, check=False, cwd=ROOT)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=9)
    options = parser.parse_args()
    candidates = {"import torch": process("-c", "import torch")}
    candidates |= {name: process("train.py", *words) for name, words in WORDS.items()}
    times = interleave(candidates, options.repeats)
    rows: dict[str, object] = {
        "repeats": options.repeats,
        "seconds": {name: round(statistics.median(values), 3) for name, values in times.items()},
        "share of import torch (median, quartiles)": {
            name: [round(value, 3) for value in ratio(times, name, "import torch")] for name in WORDS
        },
    }
    save("command_line", rows)


if __name__ == "__main__":
    main()
