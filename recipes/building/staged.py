"""The stages of a recipe as one run: RUN/STAGE is the ordinary run directory of each, RUN says where they stand."""

from __future__ import annotations

import gc
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any, cast

from kernels.ranges import range_checked
from recipes.building.assemble import assemble
from recipes.configuration.boundary import refusing
from recipes.configuration.compose import to_yaml
from recipes.configuration.problems import ConfigError
from recipes.configuration.stages import listed
from recipes.processes.lock import alone_in
from recipes.processes.stop import Stopped, StopRequest, seconds
from recipes.running.directory import is_finished, open_directory, write_json, write_status, write_text
from recipes.running.run import Run

#: In the environment of the processes that a stage starts: its run directory.
VARIABLE = "RECIPES_STAGE"
#: Test metrics that are told side by side.
COMPARED = ("accuracy", "recall@1", "map@r")
SUMMARY = ("test", "evaluators", "val", "selected_epoch", "epochs", "updates", "train_seconds", "wall_seconds")


@range_checked
def assemble_stages(
    stages: dict[str, dict[str, Any]],
    command: str | None = None,
    resume: Path | None = None,
    needs_images: bool = False,
    *,
    recipe: str,
    seed: Annotated[int, "0 <= x <= 4294967295"] = 0,
    name: str | None = None,
    output: str = "runs",
    max_time: Annotated[int, "x > 0"] | Annotated[float, "x > 0"] | str | None = None,
) -> StagedRun:
    """Build every stage once, so that what is wrong with any of them is said before the first one trains.

    Args:
        stages: the ordinary configuration of each, in their order.
        command: the command line, for the record.
        resume: the run directory to go on in.
        needs_images: refuse data without images now.
        recipe: its name.
        seed: of the first stage, for the name of the run directory.
        name: of the run directory.
        output: folder of all runs.
        max_time: wall-time budget of all stages together.

    Raises:
        ConfigError: values or combinations of parts that cannot work, with the stage and the reason.
    """
    config = {"recipe": recipe, "seed": seed, "name": name, "output": output, "max_time": max_time, "stages": stages}
    with refusing():
        seconds(max_time)
    problems = list[str]()
    for stage, part in stages.items():
        finished = resume is not None and is_finished(resume / stage)
        read = [*listed(part.get("teacher")), part.get("peer")]
        if VARIABLE in os.environ or finished or any(reference in stages for reference in read):
            continue  # a stage to come has no weights yet, and parts may read them
        try:
            begins = None if part.get("init") in stages else part.get("init")
            _refuse_processes_from_outside(assemble(**{**part, "init": begins}, needs_images=needs_images))
        except ConfigError as error:
            problems += [f"stage {stage}: {line}" for line in error.problems]
    if problems:
        raise ConfigError(problems)
    return StagedRun(config, command, resume)


def _refuse_processes_from_outside(run: Run) -> None:
    """They would have to agree on the directory, and on who trains which stage."""
    environment = getattr(run.trainer.strategy, "cluster_environment", None)
    if run.trainer.world_size > 1 and environment is not None and environment.creates_processes_externally:
        raise ConfigError(
            [
                "the processes of a recipe with stages are started by itself (trainer.devices=N), not by torchrun or "
                "srun; there, train each stage as a recipe of its own, with init=RUN of the one before"
            ]
        )


class StagedRun:
    """The stages of one configuration, ready to be trained one after another.

    Attributes:
        config: ``recipe``, ``seed``, ``name``, ``output``, ``max_time`` and ``stages``; a plain dict.
        directory: the run directory, once ``run`` has made it.

    Example:
        >>> results = recipes.build("grocery_probe_finetune").run()  # doctest: +SKIP
        >>> results["stages"]["probe"]["test"]["accuracy"]  # doctest: +SKIP
    """

    def __init__(self, config: dict[str, Any], command: str | None = None, resume: Path | None = None) -> None:
        self.config, self.resume = config, resume
        self.stages: dict[str, dict[str, Any]] = config["stages"]
        self.command = command or f"recipes.build({config['recipe']!r}, ...).run()"
        self.directory: Path | None = None

    def run(self) -> dict[str, Any]:
        """Train and evaluate what is not finished yet.

        Returns:
            What stands in results.json: the results of the last stage, and a summary of each under ``stages``.

        Raises:
            ConfigError: the run directory belongs to another run, or the images are absent.
            Stopped: a signal or the wall-time budget ended it; everything is saved.
            Exception: what a stage raises, as ``Run.run``; the stages after it are not begun.
        """
        if place := os.environ.get(VARIABLE):  # started by a stage that trains in several processes
            return assemble(**self.stages[Path(place).name], resume=Path(place)).run()
        stop = StopRequest(seconds(self.config["max_time"]))
        with stop.listening():
            self.directory = self._open()
            with alone_in(self.directory):
                return self._run(self.directory, stop)

    def _open(self) -> Path:
        if self.resume is not None:
            return self.resume
        config = self.config
        return open_directory(config["output"], config["recipe"], config["name"], config["seed"], config)[0]

    def _run(self, directory: Path, stop: StopRequest) -> dict[str, Any]:
        if is_finished(directory):
            print(f"{directory} is finished; its results are in results.json", flush=True)
            return _read(directory)
        self._describe(directory)
        stage = ""
        try:
            with stop.as_stopped():  # also of what is between two stages
                for number, stage in enumerate(self.stages, start=1):
                    write_status(directory, "running", stage=stage, pid=os.getpid())
                    self._train(directory / stage, f"stage {stage} ({number} of {len(self.stages)})", stop)
                    # What a signal raises is lost where it falls into the collector's work behind a stage.
                    stop.raise_if_requested(f"behind stage {stage}, which is finished")
            results = self._results(directory)
            write_json(directory / "results.json", results)
            print(*_table(results["stages"]), sep="\n", flush=True)
        except Stopped as error:
            write_status(directory, "interrupted", stage=stage, reason=error.reason, exit_code=error.exit_code)
            message = f"{error}\nall stages: python train.py resume={directory}"
            raise Stopped(message, error.reason, error.exit_code) from error
        except BaseException as error:
            with suppress(OSError):  # a full disk may be what the error is about
                write_status(directory, "failed", stage=stage, error=f"{type(error).__name__}: {error}")
            raise
        write_status(directory, "finished")
        return results

    def _train(self, place: Path, said: str, stop: StopRequest) -> None:
        """One stage, in a run directory that says by itself what it is; one that is finished is left as it is."""
        if is_finished(place):
            print(f"{said} is finished", flush=True)
            return
        print(said, flush=True)
        (place / "checkpoints").mkdir(parents=True, exist_ok=True)
        run = assemble(**self.stages[place.name], command=self.command, resume=place, needs_images=True)
        with _for_processes(place):
            run.run(stop)
        del run
        gc.collect()  # network, optimizer and trainer hold each other: the memory is for the next stage

    def _describe(self, directory: Path) -> None:
        with open(directory / "command.txt", "a", encoding="utf-8") as file:  # one line a session
            file.write(self.command + "\n")
        if not (directory / "config.yaml").is_file():
            write_text(directory / "config.yaml", to_yaml(self.config))
        with suppress(OSError):
            (directory / "checkpoints").rmdir()  # each stage has its own

    def _results(self, directory: Path) -> dict[str, Any]:
        found = {stage: _read(directory / stage) for stage in self.stages}
        summary = {stage: {key: own[key] for key in SUMMARY if key in own} for stage, own in found.items()}
        return {**list(found.values())[-1], "recipe": self.config["recipe"], "stages": summary}


def _table(stages: dict[str, dict[str, Any]]) -> list[str]:
    """What each stage came to on the test part, where two can be compared."""
    width = max(map(len, stages))
    lines = []
    for stage, found in stages.items():
        told = [f"{name} {found['test'][name]:.2%}" for name in COMPARED if name in found["test"]]
        lines.append(f"  {stage:<{width}}  {', '.join(told)}")
    return ["test part, by stage:", *(line.rstrip() for line in lines)]


@contextmanager
def _for_processes(place: Path) -> Iterator[None]:
    """In the environment, which the processes that a stage starts inherit."""
    os.environ[VARIABLE] = str(place.resolve())
    try:
        yield
    finally:
        del os.environ[VARIABLE]


def _read(directory: Path) -> dict[str, Any]:
    return cast(dict[str, Any], json.loads((directory / "results.json").read_text(encoding="utf-8")))
