"""A run: train, evaluate, report. What ``recipes.build`` returns and ``train.py`` runs."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from datamodules.base import ImageData
from lightning_modules.evaluators.base import EvaluationData, Evaluator
from lightning_modules.evaluators.result import Evaluation
from lightning_modules.task import Task
from recipes.checkpoint import load_checkpoint
from recipes.compose import to_yaml
from recipes.directory import create_directory, environment, peak_memory_mb, write_json, write_text
from recipes.recorder import Recorder
from recipes.validate import ConfigError


class NeverActed(RuntimeError):
    """A part that was asked for had no effect in the whole run."""


class Run:
    """One configuration, built and ready.

    Attributes:
        config: the resolved configuration; a plain dict that nothing changes.
        data: the data module.
        task: the Lightning module, with ``network`` and ``parts``.
        trainer: the Lightning trainer.
        evaluators: by name.
        directory: the run directory, once ``run`` has made it.

    Example:
        >>> results = recipes.build("grocery_baseline", ["trainer.max_epochs=1"]).run()  # doctest: +SKIP
        >>> results["test"]["accuracy"]  # doctest: +SKIP
    """

    def __init__(
        self,
        config: dict[str, Any],
        data: ImageData,
        task: Task,
        trainer: Trainer,
        evaluators: dict[str, Evaluator],
        surgery_report: list[str],
        command: str | None = None,
    ) -> None:
        self.config, self.data, self.task, self.trainer = config, data, task, trainer
        self.evaluators, self.surgery_report = evaluators, surgery_report
        self.command = command or f"recipes.build({config['recipe']!r}, ...).run()"
        self.directory: Path | None = None

    def run(self) -> dict[str, Any]:
        """Train, select by validation, read the test set once, write results and report.

        Returns:
            What stands in results.json.

        Raises:
            ConfigError: the run directory exists, or the images are absent.
            NeverActed: a part had no effect; everything is written before this is raised.
        """
        if self.data.absent:
            raise ConfigError([self.data.absent])
        if getattr(rank_zero_only, "rank", 0) > 0:  # the first process writes and evaluates
            self._fit()
            return {}
        self.directory = directory = self._open()
        start = time.monotonic()
        recorder = Recorder(directory, self._facts(), self._state)
        self.task.observers.append(recorder)
        try:
            self._fit()
        finally:
            recorder.close()
        evaluations = self._evaluate(directory)
        results = self._results(recorder, evaluations, time.monotonic() - start)
        write_json(directory / "results.json", results)
        from recipes.report.page import write_report

        report = write_report(directory, evaluations)
        print(f"{_summary(results)}\n{report}", flush=True)
        if idle := self.task.parts.idle():
            raise NeverActed(
                f"{', '.join(idle)} never had an effect in this run: results.json says when it could have; lower its "
                "start_epoch, train longer (trainer.max_epochs), or leave it out"
            )
        return results

    def _fit(self) -> None:
        """Train; afterwards every process is on its own again, so that evaluation sees the whole test set."""
        self.trainer.fit(self.task, datamodule=self.data)
        if torch.distributed.is_initialized():
            torch.distributed.barrier()
            torch.distributed.destroy_process_group()

    def _open(self) -> Path:
        config = self.config
        directory = create_directory(config["output"], config["recipe"], config["name"], config["seed"])
        write_text(directory / "config.yaml", to_yaml(config))
        write_text(directory / "command.txt", self.command + "\n")
        write_json(directory / "environment.json", environment())
        if self.surgery_report:
            write_text(directory / "surgery.txt", "\n".join(self.surgery_report) + "\n")
        return directory

    def _facts(self) -> dict[str, Any]:
        """What a checkpoint needs to be understood without its run directory."""
        return {
            "config": to_yaml(self.config),
            "classes": list(self.data.classes),
            "preprocessing": self.data.preprocessing(),
            "data": {"manifest": self.data.manifest, "split": self.data.split_record()},
        }

    def _state(self) -> dict[str, Any]:
        """Training state beyond the evaluated network."""
        optimizers = self.trainer.optimizers
        return {"task": self.task.state_dict(), "optimizers": [optimizer.state_dict() for optimizer in optimizers]}

    def _evaluate(self, directory: Path) -> dict[str, Evaluation]:
        """Every evaluator on the test set, with the weights validation selected."""
        network = self.task.evaluated_network
        state = load_checkpoint(directory / "checkpoints" / "best.ckpt")["network"]
        network.load_state_dict(state)  # type: ignore[union-attr, operator]
        network.to(self.trainer.strategy.root_device)  # type: ignore[union-attr, operator]  # fit leaves it on the CPU
        data = EvaluationData(
            batches=self.data.test_dataloader(),
            classes=self.data.classes,
            output=directory,
            train=self.data.train_eval_dataloader,
        )
        return {name: evaluator(network, data) for name, evaluator in self.evaluators.items()}  # type: ignore[arg-type]

    def _results(self, recorder: Recorder, evaluations: dict[str, Evaluation], seconds: float) -> dict[str, Any]:
        rows, best = recorder.rows, recorder.best
        train_seconds = sum(row["seconds"] for row in rows)
        tests = {name: evaluation.metrics for name, evaluation in evaluations.items()}
        return {
            "recipe": self.config["recipe"],
            "seed": self.config["seed"],
            "test": tests.pop("classification", {}),
            **({"evaluators": tests} if tests else {}),
            "val": {name.removeprefix("val/"): value for name, value in best.items() if name.startswith("val/")},
            "selected_epoch": best.get("epoch"),
            "epochs": len(rows),
            "updates": rows[-1]["update"] if rows else 0,
            "parts": self.task.parts.report(),
            "parameters": sum(p.numel() for p in self.task.network.parameters()),
            "wall_seconds": seconds,
            "train_seconds": train_seconds,
            "images_per_second": sum(r["seconds"] * r["images_per_second"] for r in rows) / max(train_seconds, 1e-9),
            "peak_memory_mb": peak_memory_mb(),
            "split": self.data.split_record(),
        }


def _summary(results: dict[str, Any]) -> str:
    accuracy = results["test"].get("accuracy")
    tested = "" if accuracy is None else f"test accuracy {accuracy:.2%}, "
    return f"{tested}{results['epochs']} epochs in {results['train_seconds']:.0f} s of training"
