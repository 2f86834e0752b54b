"""`automl fingerprint`: one fingerprint for each function, and why candidates agree or differ."""

import json
from pathlib import Path

import pytest
import shapes
import toys
from commands import in_process

FILE = str(Path(shapes.__file__))
PARTS = ("--task", f"{Path(toys.__file__)}:blobs", "--trainer", f"{FILE}:Brief")


@pytest.fixture
def fingerprint(tmp_path, monkeypatch, capsys):
    """Runs the command on a space and lines of decisions."""
    monkeypatch.chdir(tmp_path)

    def run(space, decisions, *options):
        lines = (d if isinstance(d, str) else json.dumps(d) for d in decisions)
        Path("decisions.jsonl").write_text("\n".join(lines) + "\n")
        arguments = (f"{FILE}:{space}", *PARTS, "--decisions", "decisions.jsonl", *options)
        return in_process(capsys, ("fingerprint", *arguments))

    return run


WRITINGS = [{"how": how} for how in shapes.WRITINGS]
MODULES = [{"added": added, "scale": scale} for scale in (1, 3) for added in (False, True)]


def test_equal_functions_have_equal_fingerprints(fingerprint):
    said = fingerprint("writings", [*WRITINGS, WRITINGS[0]])
    assert said.code == 0
    found = said.events
    assert [event["decisions"] for event in found] == [*WRITINGS, WRITINGS[0]]
    assert all(
        set(event)
        == {"decisions", "l0", "l1", "fingerprint", "level", "live_parameters", "seconds"}
        for event in found
    )
    same, other, again = found[:5], found[5], found[6]
    assert len({event["fingerprint"] for event in same}) == 1
    assert other["fingerprint"] != same[0]["fingerprint"]
    assert [event["level"] for event in found] == [None, "L1", "L1", "L1", "L1", None, "L0"]
    assert {event["live_parameters"] for event in same} == {2 * 8 * 5 + 3 * 9}
    assert (again["l0"], again["fingerprint"]) == (same[0]["l0"], same[0]["fingerprint"])


def test_modules_are_distinguished_by_their_functions(fingerprint):
    found = fingerprint("modules", MODULES).events
    assert [event["l1"] for event in found] == [None] * 4
    assert [event["level"] for event in found] == [None, "L2", None, "L2"]
    names = [event["fingerprint"] for event in found]
    assert (names[0], names[2]) == (names[1], names[3])
    assert names[0] != names[2]


@pytest.mark.parametrize(
    ("space", "two", "says"),
    [
        ("writings", [WRITINGS[0], WRITINGS[0]], ["equal at L0: equal decisions"]),
        ("writings", WRITINGS[:2], ["how (plain, commuted)", "equal at L1"]),
        ("writings", [WRITINGS[2], WRITINGS[4]], ["doubled", "sums are flattened", "equal at L1"]),
        ("writings", WRITINGS[4:], ["different at L2", "differs by"]),
        ("modules", MODULES[2:], ["no graph", "equal at L2", "live parameters"]),
        ("modules", MODULES[1:3], ["different at L2"]),
    ],
)
def test_it_explains_where_two_candidates_agree_or_differ(fingerprint, space, two, says):
    said = fingerprint(space, two, "--explain")
    assert said.code == 0
    for text in says:
        assert text in said.out


@pytest.mark.parametrize(
    ("decisions", "options", "says"),
    [
        (['{"how": "plain"'], (), "decisions.jsonl, line 1: not valid JSON"),
        (["", "[1]"], (), "decisions.jsonl, line 2: expected an object"),
        ([{"how": "plain"}], ("--explain",), "expected two lines of decisions, got 1"),
        (
            [{"how": "nothing"}],
            (),
            "decisions.jsonl, line 1: decision 'how': expected one of 'plain', 'commuted'",
        ),
        ([{"how": 3}], (), "line 1: decision 'how': expected one of 'plain', "),
        (
            ["", {}],
            (),
            "line 2: space shapes.py:writings asks for decision 'how', one of 'plain', 'commuted'",
        ),
        (
            [{"hwo": "plain"}],
            (),
            "but it is missing; given: hwo",
        ),
        ([{"how": "plain"}, {}], ("--explain",), "but it is missing; given: nothing"),
        ([{"how": "plain"}], ("-o", "cache.levels=L1"), "L0 is always in use"),
    ],
)
def test_unreadable_decisions_are_reported_in_one_line(fingerprint, decisions, options, says):
    said = fingerprint("writings", decisions, *options)
    assert said.code == 2
    assert len(said.err.strip().splitlines()) == 1
    assert says in said.err
    assert "FixedTrial" not in said.err
    assert "Distribution" not in said.err


def test_a_space_that_raises_is_named_in_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text("def space(trial, task):\n    raise TypeError('boom')\n")
    Path("decisions.jsonl").write_text("{}\n")
    said = in_process(capsys, ("fingerprint", "mine.py:space", "--decisions", "decisions.jsonl"))
    expected = "error: decisions.jsonl, line 1: space mine.py:space: TypeError: boom\n"
    assert (said.code, said.err) == (2, expected)


def test_a_candidate_without_a_deterministic_function_is_reported(fingerprint):
    options = ("-o", "space.kinds=clock,nan", "-o", "space.writings=1")
    decisions = [{"how": how, "unused": 1} for how in ("clock", "nan")]
    found = fingerprint("bad", decisions, *options).events
    assert [event["verdict"] for event in found] == ["non-deterministic", "degenerate"]
    assert all(event["reason"] for event in found)


def test_unused_decisions_are_named(fingerprint):
    said = fingerprint("writings", [{"how": "plain", "bogus": 1}], "-o", "cache.levels=L0,L1")
    assert said.code == 0
    assert "does not ask for: bogus; it asks for how" in said.err
