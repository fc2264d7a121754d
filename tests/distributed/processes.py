"""Two processes that believe torchrun started them, forked from one server that has imported everything."""

import functools
import multiprocessing
import os
import socket
import sys
import time
from dataclasses import dataclass

WORLD = 2
#: A transformer without batch norm and three updates an epoch on the embedded photographs.
TINY = [
    "backbone=test_vit",
    "data.batch_size=8",
    "data.limit_train=24",
    "data.limit_test=21",
    "data.val_fraction=0.02",
    "trainer=ddp",
    "trainer.accelerator=cpu",
    "trainer.max_epochs=3",
    "callback=[]",
]
SAF = ["regularizer=saf", "regularizer.saf.lag=1", "regularizer.saf.start_epoch=0"]


def but(words, *changes):
    """Words with others in the place of those for the same keys; a key is said once."""
    keys = {change.partition("=")[0] for change in changes}
    return [*(word for word in words if word.partition("=")[0] not in keys), *changes]


@dataclass
class Ended:
    """How one process ended, and what it printed."""

    code: int
    text: str
    seconds: float


def _child(rank, world, port, function, args, log):
    file = os.open(log, os.O_WRONLY | os.O_CREAT)
    os.dup2(file, 1), os.dup2(file, 2)
    keys = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world, "MASTER_PORT": port}
    os.environ |= {key: str(value) for key, value in keys.items()}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "TORCHELASTIC_RUN_ID": "test", "OMP_NUM_THREADS": "1"}
    import torch
    from lightning.pytorch.utilities.rank_zero import rank_zero_only

    rank_zero_only.rank = rank  # read when it was imported, in the server
    torch.set_num_threads(1)
    sys.exit(function(rank, *args))


@functools.cache
def server():
    """The server, after all of its imports: no test's limit of time holds them."""
    context = multiprocessing.get_context("forkserver")
    first = context.Process(target=int)
    first.start()
    first.join()
    return context


def start(function, args, folder, world=WORLD):
    """Start ``function(rank, *args)`` in every process; what it returns is the exit code."""
    context = server()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    logs = [folder / f"log_{time.monotonic_ns()}_{rank}.txt" for rank in range(world)]
    processes = [
        context.Process(target=_child, args=(rank, world, port, function, args, log), daemon=True)
        for rank, log in enumerate(logs)
    ]
    for process in processes:
        process.start()
    return processes, logs


def finish(processes, logs, limit_s=60):
    """Wait for all; those that are late are killed, with exit code -9."""
    begin, seconds = time.monotonic(), []
    for process in processes:
        process.join(max(limit_s - (time.monotonic() - begin), 0))
        seconds.append(time.monotonic() - begin)
        process.kill()
        process.join()
    return [Ended(p.exitcode, log.read_text(), s) for p, log, s in zip(processes, logs, seconds, strict=True)]


def together(function, *args, folder, world=WORLD, limit_s=60):
    """How ``function(rank, *args)`` ended in each of ``world`` processes."""
    return finish(*start(function, args, folder, world), limit_s)


def saved(function, names, folder):
    """``{name: [what function(name, rank, 2) returned in each process]}``, with a process group around all of them."""
    ended = together(_save_all, function, names, folder, folder=folder)
    assert [process.code for process in ended] == [0] * WORLD, ended[-1].text
    import torch

    return {
        name: [torch.load(folder / f"{name}_{rank}.pt", weights_only=True) for rank in range(WORLD)] for name in names
    }


def _save_all(rank, function, names, folder):
    import torch

    torch.distributed.init_process_group("gloo")
    for name in names:
        torch.save(function(name, rank, WORLD), folder / f"{name}_{rank}.pt")
    torch.distributed.destroy_process_group()


def command(rank, words):
    """``python train.py`` with these words."""
    from recipes.cli import train

    return train(words)


def answer(run):
    """The exit code of a run that was built, with its message, as on the command line."""
    from recipes import cli

    return cli._main("train.py", lambda words: (run.run(), 0)[1], [])
