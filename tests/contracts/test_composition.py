"""The composition matrix: every pair of parts trains together, or is refused with a reason."""

import copy
from itertools import combinations, product

import pytest
from bench import EPOCHS, KINDS, PARTS, Bench, build, equal, finite, nodes

from recipes.make import make


def chosen(kind):
    return [pair for pair in PARTS if pair[0] == kind]


PAIRS = [pair for one, other in combinations(KINDS, 2) for pair in product(chosen(one), chosen(other))]
PAIRS += combinations(chosen("regularizer"), 2)


def check_refusal(error):
    """A ValueError of the composition, not any other that building and setting up could raise."""
    first, *problems = str(error).splitlines()
    assert first == "these parts cannot work together:" and problems, f"not refused but broken: {error!r}"


def test_another_error_is_no_refusal():
    with pytest.raises(AssertionError, match="not refused but broken: ValueError.'weight must"):
        check_refusal(ValueError("weight must not be negative, got -1"))


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: "+".join(name for _, name in pair))
def test_composition_matrix(make_network, pair):
    """Every pair trains, or is refused before the first batch with the reason that one of the two declares."""
    try:
        bench = Bench(make_network, pair)
    except ValueError as error:
        check_refusal(error)
        declared = [reason for kind, name in pair for reason in build(kind, name).refuses.values()]
        for line in str(error).splitlines()[1:]:
            subject, _, reason = line.partition(": ")
            assert reason in declared or " needs " in subject, line
            assert len(reason.split()) >= 8, "a reason is a sentence"
        return
    start = copy.deepcopy(bench.weights())
    bench.run([0, EPOCHS // 2])
    assert finite(bench.tensors()) and not equal(start, bench.weights())
    names = {name for terms in bench.history for name in terms}
    assert {name for kind, name in pair if kind == "regularizer"} <= names, "a regularizer left no term"


def test_the_matrix_refuses_what_it_must_and_little_else(make_network):
    refused = []
    for pair in PAIRS:
        try:
            Bench(make_network, pair)
        except ValueError as error:
            check_refusal(error)
            refused.append({name for _, name in pair})
    assert {"saf", "mixup"} in refused and {"saf", "cutmix"} in refused and {"mesa", "mixup"} not in refused
    # What trains an embedding and what reads class scores have no head in common, and mixed labels make no pairs.
    apart = [pair for pair in refused if not any(_embeds(name) for name in pair)]
    assert len(PAIRS) >= 150 and len(apart) <= (len(PAIRS) - len(refused)) / 4


def _embeds(name):
    return name in ("embedding", "metrix") or (name in nodes("loss") and "embedding" in make(nodes("loss")[name]).needs)
