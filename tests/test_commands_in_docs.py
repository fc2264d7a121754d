"""Commands of the pages run as they stand, in every shell: what it would read otherwise is quoted."""

import re
import shlex

import pytest

from recipes.configuration.signature import ROOT

PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])


@pytest.mark.parametrize("page", PAGES, ids=[page.name for page in PAGES])
def test_brackets_are_quoted(page):
    commands = re.findall(r"^    (python (?:train|evaluate|export)\.py.*)$", page.read_text(encoding="utf-8"), re.M)
    for command in commands:
        lexer = shlex.shlex(command, posix=False, punctuation_chars=False)
        lexer.whitespace_split, lexer.commenters = True, "#"
        bare = [word for word in lexer if "[" in word and word[0] not in "'\""]
        assert not bare, f"{command}: quote {bare}, which zsh takes for a pattern of file names"
