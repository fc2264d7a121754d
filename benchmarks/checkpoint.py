"""How long training stands still for a checkpoint, beside ``torch.save`` of the same tensors to the same folder.

    python -m benchmarks.checkpoint [--backbone resnet50] [--folder .] [--repeats 15]

The content is that of ``last.ckpt``: network, and the state of AdamW. ``foreground`` is the time until ``save`` returns
and training goes on, ``whole`` the time until the file has its name (flush, sha256, renames), with nothing beside it.
``torch.save`` against itself shows the noise; it writes a new file each time, as overwriting one is slower (some file
systems flush what was cut to nothing and written again).
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections import defaultdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.timing import interleave, ratio, save
from lightning_modules.backbones.timm_backbone import create_backbone
from recipes.checkpoints.load import CheckpointStore
from recipes.checkpoints.read import tensor_bytes


def training_state(backbone: str) -> dict[str, Any]:
    """What a run of ``backbone`` with AdamW keeps, after one update."""
    network = create_backbone(name=backbone).model
    optimizer = torch.optim.AdamW(network.parameters())
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    state = network.state_dict()
    return {"network": state, "training": {"task": dict(state), "optimizers": [optimizer.state_dict()]}}


def measure(content: dict[str, Any], folder: Path, repeats: int) -> dict[str, list[float]]:
    """Seconds of each candidate, in turn; those of ``foreground`` are the first part of those of ``whole``."""
    store, times = CheckpointStore(folder), defaultdict[str, list[float]](list)

    def plain(name: str) -> None:
        start = time.perf_counter()
        torch.save(content, folder / "plain.pt")
        times[name].append(time.perf_counter() - start)
        (folder / "plain.pt").unlink()

    def checkpoint() -> None:
        start = time.perf_counter()
        store.save("last", content)
        times["foreground"].append(time.perf_counter() - start)
        store.wait()
        times["whole"].append(time.perf_counter() - start)

    candidates = {name: partial(plain, name) for name in ("torch.save", "torch.save again")}
    interleave({**candidates, "whole": checkpoint}, repeats)
    return {name: values[-repeats:] for name, values in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--backbone", default="resnet50")
    parser.add_argument("--folder", default=".", help="on the file system to measure; a new folder in it is removed")
    parser.add_argument("--repeats", type=int, default=15)
    options = parser.parse_args()
    content = training_state(options.backbone)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        times = measure(content, Path(folder), options.repeats)
    rows: dict[str, object] = {
        "backbone": options.backbone,
        "megabytes": round(tensor_bytes(content) / 1e6, 1),
        "repeats": options.repeats,
        "milliseconds": {name: round(1e3 * statistics.median(values), 2) for name, values in times.items()},
        "over torch.save (median, quartiles)": {
            name: [round(value, 3) for value in ratio(times, name, "torch.save")]
            for name in ("torch.save again", "foreground", "whole")
        },
    }
    save(f"checkpoint_{options.backbone}", rows)


if __name__ == "__main__":
    main()
