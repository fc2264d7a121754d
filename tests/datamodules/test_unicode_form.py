"""Names in two Unicode forms are one name."""

from datamodules.labels.unicode_form import differing_in_form, in_composed_form, same_names

COMPOSED, DECOMPOSED = "caf\u00e9", "cafe\u0301"


def test_forms_of_one_name() -> None:
    assert in_composed_form(DECOMPOSED) == COMPOSED == in_composed_form(COMPOSED) and in_composed_form("cafe") == "cafe"
    assert in_composed_form("\ufb01") == "\ufb01", "a ligature is another letter, not another form"
    assert differing_in_form(["cafe", COMPOSED, "x", DECOMPOSED]) == (COMPOSED, DECOMPOSED)
    assert differing_in_form(["cafe", COMPOSED, COMPOSED]) is None


def test_same_names_in_the_same_order() -> None:
    assert same_names(["a", COMPOSED], ("a", DECOMPOSED))
    assert not same_names(["a", COMPOSED], [DECOMPOSED, "a"]) and not same_names(["a"], ["a", "b"])
