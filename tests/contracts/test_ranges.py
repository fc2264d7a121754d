"""Every numeric key of every part states its range, and both the configuration and the constructor hold it."""

import ast
import inspect
import math
from importlib import import_module

import pytest
import yaml

from kernels.ranges import Range
from recipes.configuration.annotation import range_of, without_ranges
from recipes.configuration.catalogue import CONFIGS, groups
from recipes.configuration.signature import ROOMS, matches, place_of, signature
from recipes.configuration.source import ROOT
from recipes.configuration.validate import problems_of

ROOTS = ["recipes.building.assemble.assemble", "recipes.evaluate.evaluate_checkpoint"]


def parts_in(node):
    """Every dict with a target, at any depth."""
    if isinstance(node, dict):
        yield from [node] if "_target_" in node else []
        node = list(node.values())
    for item in node if isinstance(node, list) else []:
        yield from parts_in(item)


SHIPPED = [part for path in sorted(CONFIGS.rglob("*.yaml")) for part in parts_in(yaml.safe_load(path.read_text()))]


def in_groups():
    """What could be named beside what is: public classes in the folders of the groups."""
    for place in sorted({place_of(group) for group in groups() if group != "recipe"} - {"lightning_modules."}):
        base = ROOT.joinpath(*place.rstrip(".").split("."))
        for path in sorted(base.rglob("*.py")) if base.is_dir() else [base.with_suffix(".py")]:
            if not path.is_file():
                continue  # a place that is one function
            module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            for node in ast.parse(path.read_text()).body:
                if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                    yield f"{module}.{node.name}"


TARGETS = sorted({part["_target_"] for part in SHIPPED} | set(ROOTS))
EVERYTHING = sorted({*TARGETS, *in_groups()})


def ranges_of(annotation):
    return [found for node in ast.walk(annotation) if isinstance(node, ast.expr) and (found := range_of(node))]


NUMERIC = {
    target: {name: key.stated for name, key in signature(target).items() if ranges_of(key.stated)} for target in TARGETS
}


def step(stated: Range) -> float:
    return 1 if stated.whole else 1e-9


def inside(stated: Range):
    """A number at each end of the range, or near an open one."""
    one = int if stated.whole else float
    for end, is_open, sign in ((stated.low, stated.low_open, 1), (stated.high, stated.high_open, -1)):
        yield one(max(min(end, 1e9), -1e9) + (sign * step(stated) if is_open else 0))


def outside(stated: Range):
    """The nearest number beyond each end, and what is no number of this kind."""
    for end, is_open, sign in ((stated.low, stated.low_open, -1), (stated.high, stated.high_open, 1)):
        if abs(end) < 1e300:
            beyond = end + (0 if is_open else sign * step(stated) * max(1, abs(end)))
            yield int(beyond) if stated.whole else beyond
    yield from (math.nan, math.inf, -math.inf, True)


def shaped(annotation, number):
    """A number as the key wants it: itself, or in a list or a dict."""
    plain, forms = without_ranges(annotation), (lambda x: x, lambda x: [x], lambda x: {"name": x})
    return next(form(number) for form in forms if matches(plain, form(1)))


def refused(annotation):
    """Values of one key that its ranges exclude."""
    stated = ranges_of(annotation)
    numbers = [number for one in stated for number in outside(one)]
    return [shaped(annotation, number) for number in numbers if not any(one.holds(number) for one in stated)]


def problem(target, name, value):
    return [line for line in problems_of({name: value}, target, "part") if line.startswith(f"part.{name}=")]


def test_the_scan_sees_every_group_and_many_keys():
    assert len(TARGETS) > 50 and len(EVERYTHING) > len(TARGETS) and sum(map(len, NUMERIC.values())) > 200
    named = {target.rpartition(".")[0] for target, keys in NUMERIC.items() if keys}
    assert {
        "lightning_modules.losses.triplet",
        "lightning_modules.optimization",
        "recipes.processes.trainer",
        "recipes.building.assemble",
    } <= named


@pytest.mark.parametrize("target", EVERYTHING)
def test_every_number_states_a_range(target):
    for name, key in signature(target).items():
        nodes = list(ast.walk(key.stated))
        ranged = {node.slice.elts[0] for node in nodes if isinstance(node, ast.expr) and range_of(node)}
        bare = {node.id for node in nodes if isinstance(node, ast.Name) and node not in ranged}
        assert not {"int", "float"} & bare, f"{name}: {key.type_name} states no range"


def test_a_number_in_a_yaml_is_one_with_a_range():
    for part in SHIPPED:
        for name, value in part.items():
            if isinstance(value, int | float) and not isinstance(value, bool):
                annotation = signature(part["_target_"])[name].stated
                assert ranges_of(annotation) or "Literal" in ast.unparse(annotation), (part["_target_"], name)
                assert not problem(part["_target_"], name, value)


@pytest.mark.parametrize("target", TARGETS)
def test_a_configuration_is_held_to_the_range(target):
    for name, annotation in NUMERIC[target].items():
        for number in [number for stated in ranges_of(annotation) for number in inside(stated)]:
            assert not problem(target, name, shaped(annotation, number)), (name, number)
        for value in refused(annotation):
            (line,) = problem(target, name, value)
            assert "is out of range; allowed: " in line or "has the wrong type; allowed: " in line
        assert any("is out of range; allowed: " in problem(target, name, value)[0] for value in refused(annotation))


@pytest.mark.parametrize("target", TARGETS)
def test_a_constructor_is_held_to_the_range(target):
    module, _, called = target.rpartition(".")
    make = getattr(import_module(module), called)
    needed = {name: "." for name, key in signature(target).items() if key.required}
    for name, annotation in NUMERIC[target].items():
        for value in refused(annotation):
            with pytest.raises(ValueError, match=rf"^{name}=.* is out of range; allowed: "):
                make(**{**needed, name: value})


@pytest.mark.parametrize("target", TARGETS)
def test_defaults_are_inside(target):
    module, _, called = target.rpartition(".")
    found = getattr(import_module(module), called)
    defaults = {}
    for owner in reversed(found.__mro__) if inspect.isclass(found) else [found]:
        if owner.__module__.split(".")[0] in ROOMS:
            parameters = inspect.signature(owner).parameters.values()
            defaults |= {item.name: item.default for item in parameters if item.kind is item.KEYWORD_ONLY}
    for name in signature(target):
        value = list(defaults[name]) if isinstance(defaults[name], tuple) else defaults[name]
        assert value is inspect.Parameter.empty or not problem(target, name, value), name
