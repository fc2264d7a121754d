"""What the source never does: run text, unpickle, load unsafely, or hand a string to a shell."""

import ast
import configparser
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted(
    path
    for folder in ("kernels", "datamodules", "lightning_modules", "recipes", "benchmarks", ".")
    for path in ((ROOT / folder).rglob("*.py") if folder != "." else ROOT.glob("*.py"))
)
CALLS = {"eval", "exec", "compile", "__import__"}
UNPICKLING = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "shelve", "marshal", "joblib"}
#: The only file that reads pickles, with an unpickler that knows numpy arrays and nothing else.
UNPICKLERS = {"datamodules/sources/cifar.py": {"Unpickler", "UnpicklingError"}}
#: The only files that import a module by a name that is not written in them.
#: The first two check a name before they import it; the last imports the files of this library.
IMPORTERS = {"recipes/building/make.py", "recipes/configuration/kinds.py", "benchmarks/children.py"}
FLOORS = {"lightning": (2, 6, 6), "torch": (2, 11), "hydra-core": (1, 3, 8)}


def violations(source: str, name: str = "x.py") -> list[str]:
    found = []
    for node in ast.walk(ast.parse(source)):
        found += (
            [f"{name}:{node.lineno} {problem}" for problem in _problems(node, name)] if hasattr(node, "lineno") else []
        )
    return found


def _problems(node, name):
    if isinstance(node, ast.Import | ast.ImportFrom):
        modules = {alias.name for alias in node.names} if isinstance(node, ast.Import) else {node.module or ""}
        if modules & UNPICKLING and name not in UNPICKLERS:
            yield "imports a module that unpickles"
    if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "pickle":
        yield from [f"pickle.{node.attr}"] if node.attr not in UNPICKLERS.get(name, set()) else []
    if not isinstance(node, ast.Call):
        return
    called, keywords = ast.unparse(node.func), {item.arg: ast.unparse(item.value) for item in node.keywords}
    if called in CALLS or called.startswith("builtins."):
        yield called
    if called == "torch.load" and keywords.get("weights_only") != "True":
        yield "torch.load without weights_only=True"
    if re.fullmatch(r"yaml\.(load|load_all|unsafe_load|full_load)(_all)?", called):
        yield f"{called}; use recipes.configuration.plain.read_yaml or yaml.safe_load"
    if called in ("np.load", "numpy.load") and keywords.get("allow_pickle") != "False":
        yield "numpy.load without allow_pickle=False"
    if keywords.get("shell", "False") != "False" or re.fullmatch(r"os\.(system|popen)|subprocess\.getoutput", called):
        yield "a shell"
    if keywords.get("trust_remote_code", "False") != "False" or called.startswith("torch.hub."):
        yield "code from a hub"
    if called.endswith("import_module") and not isinstance(node.args[0], ast.Constant) and name not in IMPORTERS:
        yield "imports what a text names"


def test_there_are_sources():
    assert len(SOURCES) > 80 and all((ROOT / name).is_file() for name in {*UNPICKLERS, *IMPORTERS})


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_source_runs_nothing_from_files(path):
    assert violations(path.read_text(encoding="utf-8"), path.relative_to(ROOT).as_posix()) == []


@pytest.mark.parametrize(
    "line",
    [
        "import pickle", "from pickle import loads", "import shelve", "eval('1')", "exec(x)", "__import__('os')",
        "torch.load(p)", "torch.load(p, weights_only=False)", "yaml.load(t, Loader=yaml.SafeLoader)",
        "yaml.full_load(t)", "yaml.unsafe_load(t)", "np.load(p)", "np.load(p, allow_pickle=True)",
        "subprocess.run('x', shell=True)", "os.system('x')", "os.popen('x')", "torch.hub.load('a', 'b')",
        "f(trust_remote_code=True)", "import_module(name)", "importlib.import_module(f'{x}')", "compile(x, '', 'exec')",
    ],
)  # fmt: skip
def test_the_check_sees_each_of_them(line):
    assert len(violations(line)) >= 1


@pytest.mark.parametrize("line", ["model.eval()", "torch.compile(f)", "re.compile('x')", "yaml.safe_load(t)"])
def test_the_check_lets_others_pass(line):
    assert violations(line) == []


def test_version_floors():
    """Older versions have known holes: lightning's stolen wheels, torch's loader, hydra's targets."""
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    stated = dict(re.findall(r"^([\w-]+)>=([\d.]+)", parser["options"]["install_requires"], flags=re.MULTILINE))
    for package, floor in FLOORS.items():
        assert tuple(map(int, stated[package].split("."))) >= floor, package
