"""The Lightning trainer of a run."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.accelerators import MPSAccelerator
from lightning.pytorch.plugins.environments import SLURMEnvironment, TorchElasticEnvironment
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from kernels.ranges import range_checked
from lightning_modules.host_memory import keep_freed_memory
from recipes.processes.strategy import choose_strategy, devices_of_torchrun


@range_checked
def create_trainer(
    callbacks: Sequence[Callback] = (),
    *,
    max_epochs: Annotated[int, "x >= 1"],
    accelerator: str = "auto",
    devices: Annotated[int, "x >= -1"] | str | list[Annotated[int, "x >= 0"]] = 1,
    strategy: str = "auto",
    num_nodes: Annotated[int, "x >= 1"] = 1,
    process_timeout_s: Annotated[int, "1 <= x <= 31536000"] = 1200,
    precision: Literal["32-true", "bf16-mixed", "64-true"] = "32-true",
    deterministic: bool = False,
    check_val_every_n_epoch: Annotated[int, "x >= 1"] = 1,
) -> Trainer:
    """A trainer without the parts of Lightning that this library replaces (bar, logger, checkpoints, samplers).

    Args:
        callbacks: observers.
        max_epochs: length of the run; every schedule scales with it.
        accelerator: auto, cpu, gpu, ... On Apple's MPS there is no float64, which state of this library needs: auto
            takes the CPU there, and mps is refused.
        devices: how many, or which; auto takes all, so the shipped YAML asks for it only with ``strategy: ddp``.
        strategy: auto, ddp, or ddp_find_unused_parameters_true where a parameter may get no gradient in some updates;
            auto is ddp where there are several devices or machines.
        num_nodes: machines.
        process_timeout_s: seconds that a process waits for the others before it ends. The death of a process on the
            same machine is noticed in seconds; this is for a machine that is lost, or a process that hangs.
        precision: 32-true, bf16-mixed or 64-true. fp16 needs a loss scaler, which manual optimization with several
            gradient passes does not have; bf16 needs none.
        deterministic: only deterministic algorithms; needed for bitwise equal runs on a GPU.
        check_val_every_n_epoch: validate every n epochs.

    Raises:
        ValueError: a value out of range, a precision that is not supported, or devices that this machine does not have.
    """
    if precision not in ("32-true", "bf16-mixed", "64-true"):
        raise ValueError(f"trainer.precision={precision} is not supported; allowed: 32-true, bf16-mixed, 64-true")
    chosen = choose_strategy(strategy, devices, num_nodes, process_timeout_s)
    devices = devices_of_torchrun(devices, num_nodes)
    _quiet()
    keep_freed_memory()
    try:
        trainer = Trainer(
            max_epochs=max_epochs,
            accelerator=_without_mps(accelerator),
            devices=devices,
            strategy=chosen,
            num_nodes=num_nodes,
            precision=precision,
            deterministic=deterministic,
            check_val_every_n_epoch=check_val_every_n_epoch,
            callbacks=list(callbacks),
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
            inference_mode=False,  # an evaluator that attacks needs gradients inside of a validation
            plugins=_environment(),
        )
    except (MisconfigurationException, TypeError, ValueError) as error:
        raise ValueError(
            f"trainer.accelerator={accelerator} with trainer.devices={devices} cannot be had here: {error}; "
            "trainer.accelerator=auto trainer.devices=1 runs everywhere"
        ) from error
    # Signals are answered by stop.py. Lightning's answer to SIGTERM saves nothing and is a collective inside the
    # handler; and when it gives "its" handlers back it takes away torch's for SIGCHLD, without which a loader process
    # that was killed is noticed only after data.worker_timeout_s.
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
    return trainer


def _environment() -> list[Any]:
    """SLURM without Lightning's requeue, which passes a job id from the environment to a shell."""
    slurm = SLURMEnvironment.detect() and not TorchElasticEnvironment.detect()  # torchrun wins, as in Lightning
    return [SLURMEnvironment(auto_requeue=False)] if slurm else []


def _without_mps(accelerator: str) -> str:
    """The CPU where Lightning would choose Apple's MPS by itself; an error where it was asked for."""
    if not MPSAccelerator.is_available() and accelerator != "mps":
        return accelerator
    if accelerator in ("mps", "gpu"):
        raise ValueError(
            f"trainer.accelerator={accelerator}: Apple's MPS has no float64, which state of this library needs; use "
            "trainer.accelerator=cpu"
        )
    return "cpu" if accelerator == "auto" else accelerator


def _quiet() -> None:
    """Silence what Lightning says about things this library decides itself."""
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*logging interval.*")
    warnings.filterwarnings("ignore", message=".*treespec, LeafSpec.*")
    warnings.filterwarnings("ignore", message=".*in eval mode at the start of training.*")
    warnings.filterwarnings("ignore", message=".*but have no `val_dataloader`.*")
    warnings.filterwarnings("ignore", message=".*GPU available but not used.*")
    warnings.filterwarnings("ignore", message=".*sync_dist=True.*")
    warnings.filterwarnings("ignore", message=".*Total length of `.*` across ranks is zero.*")
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)
