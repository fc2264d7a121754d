"""The Lightning trainer of a run."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence

from lightning.pytorch import Callback, Trainer


def create_trainer(
    callbacks: Sequence[Callback] = (),
    *,
    max_epochs: int,
    accelerator: str = "auto",
    devices: int | str | list[int] = "auto",
    strategy: str = "auto",
    num_nodes: int = 1,
    precision: str = "32-true",
    deterministic: bool = False,
    check_val_every_n_epoch: int = 1,
) -> Trainer:
    """A trainer without the parts of Lightning that this library replaces (bar, logger, checkpoints, samplers).

    Args:
        callbacks: observers.
        max_epochs: length of the run; every schedule scales with it.
        accelerator: auto, cpu, gpu, ...
        devices: how many, or which.
        strategy: auto or ddp.
        num_nodes: machines.
        precision: 32-true, bf16-mixed or 64-true. fp16 needs a loss scaler, which manual optimization with several
            gradient passes does not have; bf16 needs none.
        deterministic: only deterministic algorithms; needed for bitwise equal runs on a GPU.
        check_val_every_n_epoch: validate every n epochs.

    Raises:
        ValueError: a precision that is not supported.
    """
    if precision not in ("32-true", "bf16-mixed", "64-true"):
        raise ValueError(f"trainer.precision={precision} is not supported; allowed: 32-true, bf16-mixed, 64-true")
    if max_epochs < 1:
        raise ValueError(f"trainer.max_epochs must be at least 1, got {max_epochs}")
    _quiet()
    return Trainer(
        max_epochs=max_epochs,
        accelerator=accelerator,
        devices=devices,
        strategy=strategy,
        num_nodes=num_nodes,
        precision=precision,  # type: ignore[arg-type]
        deterministic=deterministic,
        check_val_every_n_epoch=check_val_every_n_epoch,
        callbacks=list(callbacks),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
    )


def _quiet() -> None:
    """Silence what Lightning says about things this library decides itself."""
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*logging interval.*")
    warnings.filterwarnings("ignore", message=".*treespec, LeafSpec.*")
    warnings.filterwarnings("ignore", message=".*in eval mode at the start of training.*")
    warnings.filterwarnings("ignore", message=".*but have no `val_dataloader`.*")
    warnings.filterwarnings("ignore", message=".*GPU available but not used.*")
    warnings.filterwarnings("ignore", message=".*sync_dist=True.*")
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)
