"""The map of the code: every file that it names exists, and has the named definition."""

import ast
import re
from pathlib import Path

import pytest
from where_is import ANSWERS

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(("question", "file", "name"), ANSWERS, ids=[each[0] for each in ANSWERS])
def test_the_named_definition_exists(question, file, name):
    tree = ast.parse((ROOT / "automl" / file).read_text(encoding="utf-8"))
    kinds = ast.ClassDef | ast.FunctionDef
    assert name in {each.name for each in tree.body if isinstance(each, kinds)}
    assert f"](automl/{file})" in PAGE, f"ARCHITECTURE.md does not link the answer to: {question}"


def test_every_link_of_the_page_resolves():
    links = re.findall(r"\]\(([^)#]+)", PAGE)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_the_page_names_every_package():
    missing = [
        path.stem
        for path in (ROOT / "automl").iterdir()
        if not path.name.startswith("_") and path.suffix in ("", ".py")
        if not re.search(rf"\b{path.stem}\b", PAGE)
    ]
    assert missing == []
