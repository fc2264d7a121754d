"""The composition matrix: every pair of parts of all kinds trains together, or is refused with a reason."""

import pytest
from bench import ALL, kinds
from matrix import BASE, compositions, kind_pairs, outcome, pairs_of, refusal
from partners import command

from recipes.configuration.problems import ConfigError


@pytest.mark.filterwarnings("ignore:the embeddings look collapsed")
@pytest.mark.parametrize(("one", "other"), kind_pairs(), ids=["+".join(pair) for pair in kind_pairs()])
def test_every_pair_trains_or_is_refused_with_a_reason(one, other, tmp_path, record_property):
    trained, refused, broken = [], {}, {}
    for pair in pairs_of(one, other):
        name = "+".join("/".join(part) for part in pair)
        try:
            lines = outcome(pair, tmp_path)
        except Exception as error:  # whatever it is, the others are looked at too
            broken[name] = f"{type(error).__name__}: {error}"
            continue
        if lines:
            refused[name] = lines
        else:
            trained.append(name)
    record_property("matrix", {"trained": trained, "refused": refused, "broken": broken})
    assert not broken, "\n".join(f"{name}: {error}" for name, error in broken.items())


def test_the_matrix_has_every_kind_with_every_other():
    seen = {frozenset(pair) for pair in kind_pairs()}
    assert seen >= {frozenset((one, other)) for one in kinds() for other in kinds() if one != other}
    assert {frozenset(("regularizer",)), frozenset(("surgery",)), frozenset(("evaluator",))} <= seen
    assert {part for kinds in kind_pairs() for pair in pairs_of(*kinds) for part in pair} == set(ALL)
    assert sum(len(pairs_of(*kinds)) for kinds in kind_pairs()) >= 2700


def test_the_matrix_refuses_what_it_must_and_only_that(tmp_path):
    """What a person would say of these pairs, so that a part that refuses too much is seen as well."""

    def refused(*pair):
        return outcome(pair, tmp_path)

    saf, metrix, arc_face = ("regularizer", "saf"), ("mixing", "metrix"), ("loss", "arc_face")
    assert "cannot be combined with mixing" in refused(saf, ("mixing", "mixup"))[0]
    assert "needs pair_form" in refused(metrix, arc_face)[0]
    assert "needs embedding" in refused(arc_face, ("head", "linear"))[0]
    assert "replaces the same batch norms" in refused(("surgery", "bcn"), ("surgery", "ghost_bn"))[0]
    assert "of this data has others" in refused(("data", "cub"), ("evaluator", "classification"))[-1]
    for pair in [
        (saf, ("regularizer", "mesa")),
        (("regularizer", "mesa"), ("mixing", "mixup")),
        (("gradient", "sam"), metrix),
        (("surgery", "tract"), ("surgery", "ws")),
        (("surgery", "bcn"), arc_face),
        (("data", "cub"), arc_face),
    ]:
        assert refused(*pair) is None, pair


def test_partners_that_contradict_each_other_are_tried_in_both_orders(monkeypatch):
    one, other = ("loss", "arc_face"), ("regularizer", "saf")
    assert compositions((one, other)) == [command((one, other), BASE)]
    said = {one: ["head=embedding"], other: ["head=linear"]}
    monkeypatch.setattr("partners.said", lambda field, *part: said.get(part, []) if field == "partners" else [])
    monkeypatch.setattr("matrix.said", lambda field, *part: said.get(part, []))
    assert [[word for word in words if "head" in word] for words in compositions((one, other))] == [
        ["head=linear"],
        ["head=embedding"],
    ]


@pytest.mark.parametrize(
    ("message", "why"),
    [
        ("weight must not be negative, got -1", "not refused but broken"),
        ("these parts cannot work together:", "not refused but broken"),
        ("these parts cannot work together:\n- saf cannot be combined with mixing: untested", "sentence of 8 words"),
    ],
)
def test_another_error_is_no_refusal_and_untested_no_reason(message, why):
    with pytest.raises(AssertionError, match=why):
        refusal(ConfigError([message]))
