"""Groups by files alone: a dummy diagnostics part, and a whole group that nothing in this library knows."""

import json
import shutil
import sys

import pytest
import yaml
from tiny import TINY

import recipes
from recipes.checkpoints.load import CheckpointStore
from recipes.configuration import catalogue
from recipes.configuration.allow import allowing
from recipes.configuration.catalogue import group_of
from recipes.configuration.compose import compose_config
from recipes.configuration.help import help_text
from recipes.configuration.kinds import kinds_of
from recipes.configuration.problems import ConfigError
from recipes.processes.stop import Stopped
from recipes.running.self_check import differing

FORGETTING = '''
import torch
from lightning_modules.diagnostics.base import Diagnostics

class Forgetting(Diagnostics):
    """Forgetting events: how often a sample that was right is wrong at its next visit (Toneva et al. 2019)."""
    def __init__(self, *, view: str | None = None, start_epoch: int = 0) -> None:
        super().__init__(view=view)
        self.start_epoch = start_epoch

    def setup(self, context):
        self.register_buffer("right", torch.zeros(context.num_train, dtype=torch.bool))
        self.register_buffer("events", torch.zeros(context.num_train, dtype=torch.int64))
        self.register_buffer("visits", torch.zeros(context.num_train, dtype=torch.int64))

    def commit(self, result, step):
        index, label = result.batch.index, result.batch.label
        right = result.outputs[self.view].logits.argmax(1) == label
        self.events[index] += self.right[index] & ~right
        self.right[index], self.visits[index] = right, self.visits[index] + 1

    def end_epoch(self):
        return {"right": float(self.right.sum()), "visits": float(self.visits.sum())}

    def report(self):
        return {"events": int(self.events.sum())}

    def files(self, folder):
        (folder / "visits.json").write_text(str(self.visits.tolist()))

    def acted(self):
        return bool(self.visits.sum())
'''
GROUP = '''
from lightning_modules.part import Part

class Purification(Part):
    """A kind that nobody thought of."""

class Blur(Purification):
    def __init__(self, *, radius: float = 1.0) -> None:
        super().__init__()
        self.radius, self.updates = radius, 0

    def begin(self, step):
        self.updates += 1

    def report(self):
        return {"updates": self.updates}

class NoPart:
    """Derives from nothing whose moments are called."""
    def __init__(self, *, radius: float = 1.0) -> None: ...
'''
WORDS = ["backbone=test_efficientnet", "data.limit_train=24", "trainer.max_epochs=2", "evaluator=[]"]


@pytest.fixture
def package(tmp_path, monkeypatch):
    name = f"groups_{tmp_path.name}".replace("-", "_")
    (tmp_path / name).mkdir()
    (tmp_path / name / "forgetting.py").write_text(FORGETTING)
    (tmp_path / name / "purification.py").write_text(GROUP)
    monkeypatch.syspath_prepend(tmp_path)
    yield name
    for module in ("forgetting", "purification"):
        sys.modules.pop(f"{name}.{module}", None)


@pytest.fixture
def configs(tmp_path, monkeypatch):
    """A copy of configs/ to add files to."""
    folder = tmp_path / "configs"
    shutil.copytree(catalogue.CONFIGS, folder)
    monkeypatch.setattr(catalogue, "CONFIGS", folder)
    return folder


def declare(configs, name, declared, **parts):
    (configs / "group" / f"{name}.yaml").write_text(yaml.safe_dump(declared))
    (configs / name).mkdir(exist_ok=True)
    for part, node in parts.items():
        (configs / name / f"{part}.yaml").write_text(yaml.safe_dump(node))


def build(package, folder, name, *more):
    words = [*TINY, *WORDS, f"output={folder}", f"name={name}", *more]
    return recipes.build("grocery_baseline", words, allow=[package])


def last(run):
    return CheckpointStore(run.directory / "checkpoints").newest("last")[0]


def test_diagnostics_observe_and_resume_exactly(package, tmp_path):
    chosen = f"+diagnostics={package}.forgetting.Forgetting"
    whole, plain = build(package, tmp_path, "whole", chosen), build(package, tmp_path, "plain")
    results = whole.run()
    plain.run()
    assert not differing(last(whole)["network"], last(plain)["network"]), "observing changes nothing"
    name = "diagnostics/forgetting"
    assert results["parts"][name] == {"events": int(whole.task.parts.others[name].events.sum())}
    columns = (whole.directory / "metrics.csv").read_text().splitlines()[0].split(",")
    assert {f"{name}/right", f"{name}/visits"} <= set(columns)
    visits = json.loads((whole.directory / "parts" / name / "visits.json").read_text())
    assert sorted(set(visits)) == [0, 2] and visits.count(2) == 24, "each of the 24 samples in both epochs"
    assert not (plain.directory / "parts").exists()

    broken = build(package, tmp_path, "broken", chosen, "stop_after=4")
    with pytest.raises(Stopped):
        broken.run()
    again = recipes.resume_run(broken.directory, ["stop_after=null"], allow=[package])
    again.run()
    assert not (found := differing(last(whole), last(again))), found[:5]
    assert f"parts.others.{name}.events" in last(whole)["training"]["task"]


def test_diagnostics_by_files(package, configs):
    node = {"forgetting": {"_target_": f"{package}.forgetting.Forgetting", "start_epoch": 1}}
    declare(configs, "diagnostics", {"kind": group_of("diagnostics").kind, "default": []}, forgetting=node)
    assert "forgetting" in next(line for line in help_text("train.py").splitlines() if "  diagnostics (several" in line)
    with allowing([package]):
        config = compose_config(["+diagnostics=forgetting", "diagnostics.forgetting.start_epoch=0"])
    assert config["diagnostics"]["forgetting"]["start_epoch"] == 0
    with pytest.raises(ConfigError, match="it is outside this library; if you trust it, add --allow"):
        compose_config(["+diagnostics=forgetting"])


@pytest.mark.parametrize("several", [False, True])
def test_a_new_group_by_files_alone(package, configs, tmp_path, several):
    """It is in --help, composes, is held to its signature, is built as its kind, and takes part in the run."""
    node = {"_target_": f"{package}.purification.Blur", "radius": 2.0}
    declared = {"kind": f"{package}.purification.Purification", "default": [] if several else None}
    declare(configs, "purification", declared, blur={"blur": node} if several else node)
    [line] = [line for line in help_text("train.py").splitlines() if line.startswith("  purification")]
    assert line.endswith("blur") and ("several" in line) == several
    path, name = ("purification.blur", "purification/blur") if several else ("purification", "purification")
    with allowing([package]):
        assert "purification" not in compose_config([]), "empty by default"
        config = compose_config(["+purification=blur", f"{path}.radius=3"])
        with pytest.raises(ConfigError, match=f"{path}.radios is not a key; did you mean {path}.radius"):
            compose_config(["+purification=blur", f"{path}.radios=3"])
        with pytest.raises(ConfigError, match="purification=blurr is not known; did you mean blur"):
            compose_config(["purification=blurr"])
    assert config["purification"] == ({"blur": node | {"radius": 3}} if several else node | {"radius": 3})
    run = build(package, tmp_path, "trial", "purification=blur")
    results = run.run()
    assert results["parts"][name] == {"updates": 6} and run.task.parts.others[name].radius == 2.0
    with pytest.raises(ConfigError, match="makes no .*purification.Purification"):
        build(package, tmp_path, "other", f"purification={package}.forgetting.Forgetting")


def test_a_kind_that_takes_part_in_nothing(package, configs, tmp_path):
    node = {"_target_": f"{package}.purification.NoPart"}
    declare(configs, "purification", {"kind": f"{package}.purification.NoPart"}, none=node)
    with pytest.raises(ConfigError, match=r"purification: a NoPart takes part in nothing; let the kind .* derive from"):
        build(package, tmp_path, "trial", "purification=none")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("kind: a.B\nkinds: 1", "unexpected keyword argument 'kinds'.*its keys are kind, default, place"),
        ("default: x", "missing 1 required .*'kind'"),
        ("[1]", "purification.yaml declares no group"),
        ("kind: B", "kind='B' must be the dotted path of a class"),
        ("kind: a.B\ndefault: 3", "default=3 the name of a part, null, or a list of names"),
        ("kind: a.B\ndefault: [1]", r"default=\[1\] the name of a part"),
        ("kind: [", "purification.yaml declares no group"),
        ("kind: a.B\nplace: 7", "place=7 text or null"),
    ],
)
def test_declarations_that_cannot_be_read(configs, text, message):
    (configs / "group" / "purification.yaml").write_text(text)
    with pytest.raises(ValueError, match=f"(?s){message}"):
        group_of("purification")


@pytest.mark.parametrize("name", ["seed", "init", "stages", "resume", "query", "a.b", "a b", "2nd"])
def test_names_that_mean_something_else(configs, name):
    declare(configs, name, {"kind": "lightning_modules.part.Part"})
    with pytest.raises(ValueError, match=f"{name}' is a key of every run, or no name; take letters, digits and _"):
        group_of(name)


def test_a_kind_that_does_not_exist(configs):
    declare(configs, "purification", {"kind": "lightning_modules.part.Purification"})
    with pytest.raises(ValueError, match=r"configs/group/purification.yaml: there is no lightning_modules.part.Pur"):
        kinds_of("purification")
    declare(configs, "other", {"kind": "lightning_modules.part.split_view"})
    with pytest.raises(ValueError, match="split_view is no class"):
        kinds_of("other")
