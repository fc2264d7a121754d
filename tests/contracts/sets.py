"""Every data source by its YAML, over the smallest set in its layout.

A source that reads files has ``layouts/NAME.py`` with ``write(root)``, which makes eight classes or so of six small
images, and ``QUICK``: keys that let such a set stand for the published one.
"""

from functools import cache
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory

from bench import names
from partners import node

from recipes.building.make import make_data

LAYOUTS = Path(__file__).parent / "layouts"
_WRITTEN = TemporaryDirectory(prefix="layouts_")  # goes with the process
#: Keys of every source that has them: small, quick, and two training batches at least.
SMALL = {"batch_size": 6, "eval_batch_size": 32, "num_workers": 0, "image_size": 16, "resize_size": None}
SMALL |= {"limit_train": 80, "val_fraction": 0.34}  # two validation images of each class, to find one another


def check_layout(name):
    """Fail for a source of files without a set to read."""
    assert (LAYOUTS / f"{name}.py").is_file(), (
        f"write tests/contracts/layouts/{name}.py: write(root) leaves the smallest set in the layout that "
        f"configs/data/{name}.yaml reads, and QUICK holds keys that let it stand for the published one"
    )


@cache
def settings(name):
    """The part of a configuration; its images are written once a process."""
    part = node("data", name)
    small = {key: value for key, value in SMALL.items() if key in part}
    if part.get("image_size", 224) < 224:
        del small["image_size"]  # Omniglot's own is small, and not any size will do
    if "root" in part:
        check_layout(name)
        layout, root = import_module(f"layouts.{name}"), Path(_WRITTEN.name) / name
        root.mkdir()
        layout.write(root)
        small |= {"root": str(root), **layout.QUICK}
    return part | small | ({"limit_train": None} if "root" in part else {})


def source(name, seed=0, noise=None, **changes):
    """A data module of its own, set up."""
    return make_data(settings(name) | changes, seed, noise)


NAMES = names("data")
