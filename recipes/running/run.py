"""A run: train, evaluate, report. What ``recipes.build`` returns and ``train.py`` runs."""

from __future__ import annotations

import json
import os
import signal
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

from lightning.pytorch import Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from datamodules.base import ImageData
from datamodules.order.loader import LoaderDied
from lightning_modules.evaluators.base import Evaluator, evaluate_all
from lightning_modules.evaluators.feature_cache import FeatureCache
from lightning_modules.evaluators.result import Evaluation
from lightning_modules.surgery.changes import is_module_line
from lightning_modules.tasks.task import Task
from lightning_modules.teaching.teacher import Teacher
from recipes.checkpoints.form import check_evaluable, check_resumable
from recipes.checkpoints.load import CheckpointStore
from recipes.configuration.boundary import begun, explanation, first_line, ran_out_of_memory, write_traceback
from recipes.configuration.compose import to_yaml
from recipes.configuration.problems import ConfigError
from recipes.processes.lock import alone_in
from recipes.processes.peers import Peers
from recipes.processes.stop import Stopped, StopRequest, seconds
from recipes.running.directory import (
    environment,
    is_finished,
    open_directory,
    peak_memory_mb,
    write_json,
    write_status,
    write_text,
)
from recipes.running.going_on import check_same, load_stored, where
from recipes.running.keeper import Keeper
from recipes.running.recorder import Recorder
from recipes.running.teacher_check import check_teacher, read_teacher
from recipes.running.test_data import test_data


class NeverActed(RuntimeError):
    """A part that was asked for had no effect in the whole run."""

    exit_code = 1


class OutOfMemory(RuntimeError):
    """The device or the host has too little memory for the run."""


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
        reports: dict[str, list[str]],
        init: dict[str, str] | None = None,
        command: str | None = None,
        resume: Path | None = None,
    ) -> None:
        self.config, self.data, self.task, self.trainer = config, data, task, trainer
        self.evaluators, self.reports, self.init, self.resume = evaluators, reports, init, resume
        self.command = command or f"recipes.build({config['recipe']!r}, ...).run()"
        self.directory: Path | None = None

    def run(self, stop: StopRequest | None = None) -> dict[str, Any]:
        """Train, select by validation, read the test set once, write results and report.

        A run that was interrupted goes on where it was; one that is finished is left as it is.

        Args:
            stop: what listens for requests to stop where the run is a part of something longer; None listens itself.

        Returns:
            What stands in results.json.

        Raises:
            ConfigError: the run directory belongs to another run, or the images are absent.
            ProcessFailed: another process of the run failed.
            Stopped: a signal or the wall-time budget ended it; everything is saved.
            NeverActed: a part had no effect; everything is written before this is raised.
            Exception: that of an evaluator; what training and the other evaluators gave is in results.json.
        """
        if self.data.absent:
            raise ConfigError([self.data.absent])
        if stop is None:
            stop = StopRequest(seconds(self.config["max_time"]))
            with stop.listening():
                return self.run(stop)
        with stop.serving(self._kill_processes), Peers(self.trainer, stop, self._gave_up) as peers:
            if getattr(rank_zero_only, "rank", 0) > 0:  # the first process writes and evaluates
                if peers.follow():
                    with begun(None):
                        self._fit(self._keeper(None, None, None, stop), stop, peers)
                return {}
            self.directory, going_on = self._open()
            with alone_in(self.directory):
                return self._run(self.directory, going_on, stop, peers)

    def _run(self, directory: Path, going_on: bool, stop: StopRequest, peers: Peers) -> dict[str, Any]:
        if is_finished(directory):
            print(f"{directory} is finished; its results are in results.json", flush=True)
            return cast(dict[str, Any], json.loads((directory / "results.json").read_text(encoding="utf-8")))
        self._describe(directory)
        write_status(directory, "running", pid=os.getpid())
        try:
            with stop.as_stopped():
                results = self._train_and_evaluate(directory, going_on, stop, peers)
        except Stopped as error:
            position = {"epoch": self.task.epoch, "batches_done": self.task.batches_done, "update": self.task.update}
            write_status(directory, "interrupted", reason=error.reason, exit_code=error.exit_code, **position)
            raise
        except BaseException as error:
            with suppress(OSError):  # a full disk may be what the error is about
                write_status(directory, "failed", error=f"{type(error).__name__}: {error}")
            write_traceback(directory, error)
            if ran_out_of_memory(error):
                raise OutOfMemory(self._memory_advice(error)) from error
            raise
        write_status(directory, "finished")
        if idle := self.task.parts.idle():
            raise NeverActed(
                f"{', '.join(idle)} never had an effect in this run: results.json says when it could have; lower its "
                "start_epoch, train longer (trainer.max_epochs), or leave it out"
            )
        return results

    def _train_and_evaluate(self, directory: Path, going_on: bool, stop: StopRequest, peers: Peers) -> dict[str, Any]:
        store = CheckpointStore(directory / "checkpoints")
        store.clean()
        found = store.newest("last", form=check_resumable) if going_on else None
        content, path = found if found else (None, None)
        if going_on and content is None:
            refuse_to_start_over(directory)
        if content is not None:
            check_same(content, self.config, self.data, self.task, self.trainer.world_size)
            self.init = init if isinstance(init := content.get("init"), dict) else None
            # For status.json, where a stop comes before training; the keeper sets them in every process.
            (self.task.epoch, self.task.batches_done), self.task.update = content["position"], content["update"]
            print(f"going on from {path}: {where(content)}", flush=True)
        elif isinstance(teacher := dict(self.task.parts.networks.items()).get("teacher"), Teacher):
            check_teacher(teacher, self.data, self.trainer.strategy.root_device, directory)
        recorder = Recorder(directory, content["record"] if content else None)
        keeper = self._keeper(recorder, content, path, stop)
        try:
            peers.lead()
            self._fit(keeper, stop, peers)
        finally:
            recorder.close()
        stop.raise_if_requested(f"trained to the end; python train.py resume={directory} evaluates")
        try:
            evaluations, failed = self._evaluate(directory, recorder)
        except Exception as error:  # what training found out is kept all the same
            evaluations, failed = {}, {"the weights": error}
        stop.raise_if_requested(f"evaluating; python train.py resume={directory} evaluates again")
        results = self._results(recorder, evaluations)
        results |= {"evaluation_failed": {name: _told(error) for name, error in failed.items()}} if failed else {}
        write_json(directory / "results.json", results)
        self.task.parts.files(directory / "parts")
        from recipes.report.page import write_report

        report = write_report(directory, evaluations)
        if failed:
            raise next(iter(failed.values()))
        print(f"{_summary(results)}\n{report}", flush=True)
        return results

    def _keeper(self, recorder: Recorder | None, content: Any, path: Path | None, stop: StopRequest) -> Keeper:
        keys = {name: self.config[name] for name in ("save_every", "stop_after")}
        return Keeper(recorder, self._facts(), stop, content, path, **keys)

    def _fit(self, keeper: Keeper, stop: StopRequest, peers: Peers) -> None:
        """Train; afterwards every process is on its own again, so that evaluation sees the whole test set."""
        self.task.observers = [*self.task.observers, *([keeper.recorder] if keeper.recorder else []), keeper]
        self.task.failure_directory = self.directory
        self.task.training_data = self.data.train_eval_dataloader
        self.task.restore_good = keeper.restore_good
        self.task.stop_requested = lambda: stop.reason is not None
        stop.may_break = lambda: self.task.between_updates
        stop.training = True
        try:
            with peers.explaining():
                self._fit_as_lightning_does()
        except Stopped:
            raise
        except LoaderDied:
            if stop.reason is None or peers.several:  # others may be elsewhere
                raise
            if self.task.between_updates:  # the signal also ended a loader process; the last update is complete
                keeper.save(self.task)
            stop.raise_if_requested("a loader process ended with it; what was saved is valid, and resume=RUN goes on")
        finally:
            stop.training = peers.failed  # a launcher that ends the rest does not break into the report of it
            keeper.wait()
        peers.part()

    def _fit_as_lightning_does(self) -> None:
        """Where Lightning's teardown fails over what ended training, that comes out, and not what it led to."""
        try:
            self.trainer.fit(self.task, datamodule=self.data)
        except Exception as error:
            first = error.__context__
            if first is None or explanation(error) is not None or explanation(first) is None:
                raise
            raise first from None

    def _memory_advice(self, error: BaseException) -> str:
        size, peak = self.config["data"]["batch_size"], peak_memory_mb()
        return (
            f"out of memory with data.batch_size={size} (peak {peak:.0f} MB); what was saved is valid. Run the batch "
            "in pieces with task.micro_batches=2, or take a smaller data.batch_size, trainer=bf16 or a smaller net. "
            f"The system said: {first_line(error)}"
        )

    def _gave_up(self, state: str, message: str) -> None:
        """Say in the directory what ends this process at once."""
        if self.directory is not None:
            write_status(self.directory, state, error=message)

    def _kill_processes(self) -> None:
        """End the processes that the launcher started, before this one ends at once."""
        launcher = self.trainer.strategy.launcher
        if launcher is not None:
            launcher.kill(signal.SIGKILL)

    def _open(self) -> tuple[Path, bool]:
        """The run's directory, and whether there is something in it to go on with."""
        if self.resume is not None:
            return self.resume, True
        return open_directory(
            self.config["output"], self.config["recipe"], self.config["name"], self.config["seed"], self.config
        )

    def _describe(self, directory: Path) -> None:
        """Write what says how the run came to be; what a killed process did not come to write is made up for."""
        if not (directory / "environment.json").is_file():
            write_json(directory / "environment.json", environment())
        with open(directory / "command.txt", "a", encoding="utf-8") as file:  # one line a session
            file.write(self.command + "\n")
        for name, lines in self.reports.items():
            if lines:  # of a run that goes on, those of its start stay
                write_text(directory / f"{name}.txt", "\n".join(lines) + "\n")
                print(*(line for line in lines if not is_module_line(line)), sep="\n", flush=True)
        if not (directory / "config.yaml").is_file():  # last: with it the directory is that of a run
            write_text(directory / "config.yaml", to_yaml(self.config))

    def _facts(self) -> dict[str, Any]:
        """What a checkpoint needs to be understood without its run directory."""
        return {
            "config": to_yaml(self.config),
            "classes": list(self.data.classes),
            "preprocessing": self.data.preprocessing(),
            "data": {"manifest": self.data.manifest_parts(), "split": self.data.split_record()},
            **({"init": self.init} if self.init else {}),
        }

    def _evaluate(self, directory: Path, recorder: Recorder) -> tuple[dict[str, Evaluation], dict[str, Exception]]:
        """Every evaluator on the test set, with the weights validation selected: what they gave, and which failed."""
        store, update = CheckpointStore(directory / "checkpoints"), int(recorder.best["update"])
        found = store.newest("best", update, check_evaluable) or store.newest("best", form=check_evaluable)
        if found is None:
            raise FileNotFoundError(
                f"no checkpoint in {directory / 'checkpoints'} verifies as the best one (update {update}); evaluate "
                "another with python evaluate.py checkpoint=FILE"
            )
        if found[0].get("update") != update:
            warnings.warn(
                f"the weights that validation selected (update {update}) are not there; tested are those of "
                f"{found[1]} (update {found[0].get('update')})",
                stacklevel=2,
            )
        network = self.task.evaluated_network
        load_stored(network, found[0]["network"], found[1])
        network.to(self.trainer.strategy.root_device)  # type: ignore[union-attr, operator]  # fit leaves it on the CPU
        data = test_data(self.data, directory, FeatureCache(), str(found[1]))
        return evaluate_all(self.evaluators, network, data)  # type: ignore[arg-type]

    def _results(self, recorder: Recorder, evaluations: dict[str, Evaluation]) -> dict[str, Any]:
        rows, best = recorder.rows, recorder.best
        train_seconds = sum(row["seconds"] for row in rows)
        tests = {name: evaluation.metrics for name, evaluation in evaluations.items()}
        main = "classification" if "classification" in tests else next(iter(tests), "")
        return {
            "recipe": self.config["recipe"],
            "seed": self.config["seed"],
            "test": tests.pop(main, {}),
            **({"evaluators": tests} if tests else {}),
            "val": _validated(best),
            "selected_epoch": best.get("epoch"),
            **_selection(self.task.validation.selecting, rows),
            "epochs": len(rows),
            "updates": rows[-1]["update"] if rows else 0,
            "parts": self.task.parts.report(),
            **self.task.guard.report(),
            **(read_teacher(self.directory) if self.directory else {}),
            "parameters": sum(p.numel() for p in self.task.network.parameters()),
            "wall_seconds": recorder.seconds,
            "train_seconds": train_seconds,
            "images_per_second": sum(r["seconds"] * r["images_per_second"] for r in rows) / max(train_seconds, 1e-9),
            "peak_memory_mb": peak_memory_mb(),
            "split": self.data.split_record(),
            **({"unreadable": found} if (found := self.data.unreadable()) else {}),
        }


def _validated(row: dict[str, float]) -> dict[str, float]:
    return {name.removeprefix("val/"): value for name, value in row.items() if name.startswith("val/")}


def _selection(selecting: dict[str, float], rows: list[dict[str, float]]) -> dict[str, Any]:
    """What selected, as the key ``select`` names it, and the validation of the last epoch beside the selected one's."""
    last = next((row for row in reversed(rows) if _validated(row)), None)
    if last is None:
        return {}
    names = [("-" if sign < 0 else "") + column.removeprefix("val/") for column, sign in selecting.items()]
    return {"selected_by": names, "val_last": _validated(last), "last_epoch": last["epoch"]}


def refuse_to_start_over(directory: Path) -> None:
    """A run with checkpoints that cannot be read is no fresh one: training anew would write over them.

    Raises:
        ConfigError: naming them.
    """
    if held := sorted((directory / "checkpoints").glob("last*.ckpt")):
        names = ", ".join(path.name for path in held)
        raise ConfigError(
            [
                f"none of {names} in {directory / 'checkpoints'} can be read (the warnings say why), and the run is "
                "not started over; repair or remove them, or choose another name="
            ]
        )


def _told(error: Exception) -> str:
    return explanation(error) or f"{type(error).__name__}: {first_line(error)}"


def _summary(results: dict[str, Any]) -> str:
    test = results["test"]
    tested = "".join(f"test {name} {test[name]:.2%}, " for name in ("accuracy", "recall@1", "map@r") if name in test)
    return f"{tested}{results['epochs']} epochs in {results['train_seconds']:.0f} s of training"
