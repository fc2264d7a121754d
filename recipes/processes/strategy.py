"""How several processes train together: Lightning's DDP, with a launcher that leaves it to the run to end them."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

from lightning.fabric.utilities.distributed import _set_num_threads_if_needed
from lightning.pytorch.plugins.environments import TorchElasticEnvironment
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher
from torch.nn.parallel import DistributedDataParallel

#: What the switch is called; torch 2.15 renamed it.
_PARAMETERS = inspect.signature(DistributedDataParallel.__init__).parameters
_NO_BROADCAST = "forward_sync_buffers" if "forward_sync_buffers" in _PARAMETERS else "broadcast_buffers"
STRATEGIES = ("auto", "ddp", "ddp_find_unused_parameters_true")


class Launcher(_SubprocessScriptLauncher):
    """Starts the other processes of this machine, where nobody else has.

    Lightning's own kills the first process within five seconds of the end of any other one, also of one that was asked
    to stop: nothing is written then, and the exit code is that of SIGKILL. Here ``peers.Peers`` watches.
    """

    def start(self) -> None:
        """Start them now, instead of in ``launch``."""
        self.cluster_environment.validate_settings(num_devices=self.num_processes, num_nodes=self.num_nodes)
        if not self.cluster_environment.creates_processes_externally:
            self._call_children_scripts()

    def launch(self, function: Callable[..., Any], *args: Any, trainer: Any = None, **keys: Any) -> Any:
        if not self.procs:
            self.start()
        _set_num_threads_if_needed(num_processes=self.num_processes)
        return function(*args, **keys)


class DDP(DDPStrategy):
    """Gradients are averaged over the processes. Buffers are not broadcast: the task keeps them equal itself."""

    def __init__(self, timeout: timedelta, **keys: Any) -> None:
        super().__init__(timeout=timeout, **(keys | {_NO_BROADCAST: False}))

    def _configure_launcher(self) -> None:
        assert self.cluster_environment is not None
        self._launcher = Launcher(self.cluster_environment, self.num_processes, self.num_nodes)


def choose_strategy(name: str, devices: int | str | Sequence[int], num_nodes: int, timeout_s: int) -> str | DDP:
    """What Lightning's trainer is given: ``auto`` for one device, else ``DDP``.

    Raises:
        ValueError: a strategy that this library does not support.
    """
    if name not in STRATEGIES:
        raise ValueError(f"trainer.strategy={name} is not supported; allowed: {', '.join(STRATEGIES)}")
    one = str(devices) == "1" or (isinstance(devices, Sequence) and not isinstance(devices, str) and len(devices) == 1)
    if name == "auto" and one and num_nodes == 1:
        return "auto"
    keys = {"find_unused_parameters": True} if name.endswith("_true") else {}
    return DDP(timedelta(seconds=timeout_s), **keys)


def devices_of_torchrun(devices: Any, num_nodes: int) -> Any:
    """``devices``, or as many as torchrun started processes on this machine where they are left open.

    Raises:
        ValueError: torchrun started another number of processes than ``devices`` and ``num_nodes`` ask for.
    """
    if not TorchElasticEnvironment.detect():
        return devices
    here, everywhere = int(os.environ.get("LOCAL_WORLD_SIZE", 1)), int(os.environ["WORLD_SIZE"])
    if devices in ("auto", -1, "-1"):
        devices = here
    listed = devices.split(",") if isinstance(devices, str) and "," in devices else devices
    count = len(listed) if isinstance(listed, list | tuple) else int(listed)
    if count * num_nodes != everywhere:
        raise ValueError(
            f"torchrun started {everywhere} processes, {here} on each machine, and trainer.devices={devices} with "
            f"trainer.num_nodes={num_nodes} asks for {count * num_nodes}; set trainer.devices={here} "
            f"trainer.num_nodes={everywhere // here}"
        )
    return devices
