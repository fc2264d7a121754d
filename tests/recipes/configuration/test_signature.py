"""Schemas read from source agree with the real signatures, and types are checked as Python would."""

import ast
import inspect
from importlib import import_module

import pytest

from recipes.configuration.signature import ROOMS, UnknownTarget, matches, signature

TARGETS = [
    "lightning_modules.regularizers.saf.SAF",
    "lightning_modules.tasks.classification.Classification",
    "lightning_modules.optimization.create_optimizer",
    "lightning_modules.heads.linear.Linear",
    "lightning_modules.reweightings.uniform.Uniform",
    "recipes.building.assemble.assemble",
    "datamodules.sources.grocery.Grocery",
    "datamodules.sources.cifar.CIFAR100",
    "datamodules.sources.folder.Folder",
]


@pytest.mark.parametrize("target", TARGETS)
def test_keys_are_the_keyword_only_arguments(target):
    module, _, name = target.rpartition(".")
    found = getattr(import_module(module), name)
    expected = {}
    for owner in reversed(found.__mro__) if inspect.isclass(found) else [found]:
        if owner.__module__.split(".")[0] not in ROOMS or (inspect.isclass(owner) and "__init__" not in vars(owner)):
            continue
        parameters = inspect.signature(owner).parameters
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
            expected = {}  # passes nothing on
        expected |= {
            key: parameter.default is inspect.Parameter.empty
            for key, parameter in parameters.items()
            if parameter.kind is inspect.Parameter.KEYWORD_ONLY
        }
    assert {key: value.required for key, value in signature(target).items()} == expected


@pytest.mark.parametrize(
    ("annotation", "good", "bad"),
    [
        ("int", [0, -3], [True, 1.5, "1", None]),
        ("float", [0, 1.5], ["1", None, True]),
        ("bool", [True], [1, "true"]),
        ("str | None", ["a", None], [1, ["a"]]),
        ("list[int]", [[], [1, 2]], [[1.5], "12", 1]),
        ("dict[str, float]", [{}, {"a": 1}], [{"a": "x"}, []]),
        ("Literal['a', 'b']", ["a"], ["c", None]),
        ("Literal[1, 3]", [1, 3], [2, True, 1.0]),
        ("Annotated[float, 'x > 0']", [1, 0.5], [0, -1.0, True, "1", None]),
        ("Annotated[int, 'x >= 1'] | None", [1, None], [0, 1.5, True]),
        ("list[Annotated[float, '0 <= x <= 1']]", [[], [0, 1]], [[0.5, 1.5], 0.5]),
        ("dict[str, Annotated[int, 'x >= 1']]", [{"a": 1}], [{"a": 0}, {"a": 1.5}]),
        ("Annotated[int, 'x >= 0'] | Annotated[float, '0 < x < 1']", [0, 5, 0.5], [5.0, -1, 1.5]),
        ("Annotated[str, 'x > 0']", ["a"], [1]),
        ("Annotated[float, Field(gt=0)]", [-1.0], ["a"]),
        ("bool | str", [False, "file"], [1]),
        ("BatchAugment | None", [None, {"_target_": "x.Y"}], [{"crop": 1}, 3]),
    ],
)
def test_types(annotation, good, bad):
    tree = ast.parse(annotation, mode="eval").body
    assert all(matches(tree, value) for value in good)
    assert not any(matches(tree, value) for value in bad)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("os.system", "'os.system' is not a part of this library"),
        ("torch.hub.load", "is not a part of this library"),
        ("lightning_modules.nowhere.Thing", "there is no lightning_modules/nowhere.py"),
        ("lightning_modules.part.Nothing", "defines no 'Nothing'"),
    ],
)
def test_targets_outside_are_refused(target, message):
    with pytest.raises(UnknownTarget, match=message):
        signature(target)
