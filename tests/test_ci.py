"""The gate runs what the README says, and the lock has every package that setup.cfg asks for."""

import configparser
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / ".ci" / "readme_commands.py"
INSTALL = 'pip install -c requirements.lock -e ".[dev]"'


@pytest.fixture(scope="module")
def readme_commands():
    spec = spec_from_file_location("readme_commands", SCRIPT)
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.readme_commands


def test_the_gate_runs_exactly_these_commands(tmp_path):
    """From any folder; the lines of other sections are none of it."""
    printed = subprocess.run([sys.executable, SCRIPT], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert printed.splitlines() == [INSTALL, "python train.py", "python -m pytest"]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("## Start", "## Begin"),
        ("    pip", "pip"),
        (" && python train.py", ""),
        (" && python train.py", " && "),
        (f"    {INSTALL} && python -m pytest\n", ""),
        ("-c requirements.lock -e", "-e"),
        ("    pip", "    python train.py --help\n    pip"),
    ],
)
def test_a_readme_without_them(readme_commands, old, new):
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(readme_commands(text)) == 3 and old in text
    with pytest.raises(ValueError, match="Start of README.md holds the indented lines .*; write two lines INSTALL"):
        readme_commands(text.replace(old, new, 1))


def test_the_lock_holds_what_the_package_asks_for():
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    asked = parser["options"]["install_requires"] + parser["options.extras_require"]["dev"]
    lines = [line for line in (ROOT / "requirements.lock").read_text().splitlines() if not line.startswith("#")]
    locked = {canonicalize_name(name): version for name, _, version in (line.partition("==") for line in lines)}
    for requirement in map(Requirement, asked.split()):
        assert locked[canonicalize_name(requirement.name)] in requirement.specifier, requirement
