"""Text tasks: the next character, from parts of a file that do not overlap."""

import gzip
import math
import os
from pathlib import Path

import pytest
import torch
from automl_plugins.tasks.text import text
from hypothesis import given
from hypothesis import strategies as st

from automl import Direction, Split, UsageError
from automl.testing import check_task

REPOSITORY = Path(__file__).parents[2]
DATA = Path(os.environ.get("AUTOML_DATA_DIR", REPOSITORY.parent / "shared" / "data"))
SHAKESPEARE = DATA / "tinyshakespeare" / "tinyshakespeare.txt.gz"


def written(path, content):
    path.write_text(content, encoding="utf-8", newline="")
    return path


def examples_of(task, split):
    """Return the text of each example; its last character is the target."""
    inputs, targets = task.split(split)
    labels = task.preparation.labels
    before = inputs.reshape(len(inputs), task.context, task.classes)
    assert (before.sum(2) == 1).all()
    rows = torch.cat([before.argmax(2), targets[:, None]], 1).tolist()
    return ["".join(labels[n] for n in row) for row in rows]


@pytest.fixture
def rhyme(tmp_path):
    return written(tmp_path / "rhyme.txt", "one, two, buckle my shoe; three, four, knock.\n" * 20)


def test_it_passes_the_task_suite(rhyme):
    task = text(file=rhyme, context=5)
    check_task(task)
    letters = "".join(sorted(set(rhyme.read_text())))
    assert task.preparation.labels == tuple(letters)
    assert task.signature.input_shape == (5 * len(letters),)
    assert task.signature.output_shape == (len(letters),)
    assert task.signature.blocks[1] == (len(letters), 2 * len(letters))
    assert len(task.signature.blocks) == 5
    assert next(iter(task.metrics.items())) == ("loss", Direction.MINIMIZE)


@given(
    content=st.text("abé\n\r", min_size=60, max_size=200).filter(lambda t: len(set(t[:40])) > 1),
    context=st.integers(1, 5),
    shares=st.tuples(st.floats(0.1, 0.3), st.floats(0.1, 0.3)),
    most=st.integers(1, 300),
)
def test_each_split_has_its_own_part_of_the_text(tmp_path_factory, content, context, shares, most):
    file = written(tmp_path_factory.mktemp("text") / "t.txt", content)
    validation, test = shares
    options = {"context": context, "examples": most, "validation": validation, "test": test}
    task = text(file=file, **options)
    tested, chosen = round(len(content) * test), round(len(content) * validation)
    cuts = [0, len(content) - tested - chosen, len(content) - tested, len(content)]
    for split, start, stop in zip(Split, cuts, cuts[1:], strict=False):
        found = examples_of(task, split)
        part = content[start:stop]
        there = [part[n : n + context + 1] for n in range(len(part) - context)]
        kept = set(task.preparation.labels)
        there = ["".join(c if c in kept else "\ufffd" for c in each) for each in there]
        # In the order of the text, each place at most once.
        at = iter(there)
        assert all(each in at for each in found)
        assert len(found) == min(len(there), max(1, round(most * len(part) / len(content))))


def test_the_seed_selects_the_examples(rhyme):
    digests = [text(file=rhyme, examples=50, seed=seed).digest() for seed in (0, 0, 1)]
    assert digests[0] == digests[1] != digests[2]


def test_rare_and_new_characters_are_merged(tmp_path):
    file = written(tmp_path / "a.txt", "abab" * 50 + "c" + "ab" * 20 + "abxyz" * 4)
    assert text(file=file, context=2).preparation.labels == ("a", "b", "c", "\ufffd")
    few = text(file=file, context=2, alphabet=2)
    assert few.preparation.labels == ("a", "b", "\ufffd")
    assert "\ufffd" in "".join(examples_of(few, Split.TEST))
    marked = written(tmp_path / "b.txt", "ab\ufffd" * 60)
    assert text(file=marked, context=2).preparation.labels == ("a", "b", "\ufffd")


def test_bits_are_converted_nats(rhyme):
    task = text(file=rhyme)
    outputs = torch.zeros(8, task.classes)
    found = task.evaluate(outputs, torch.arange(8))
    assert found["loss"] == pytest.approx(math.log(task.classes))
    assert found["bits_per_character"] == pytest.approx(math.log2(task.classes))
    assert found.keys() == task.metrics.keys()


def test_a_gzipped_file_is_the_same_task(rhyme, tmp_path):
    packed = tmp_path / "rhyme.txt.gz"
    packed.write_bytes(gzip.compress(rhyme.read_bytes()))
    assert text(file=packed).digest() == text(file=rhyme).digest()


def test_other_encodings_and_byte_order_marks(tmp_path):
    content = "Köln am Rhein, Bonn am Rhein.\n" * 20
    plain = written(tmp_path / "a.txt", content)
    marked = written(tmp_path / "b.txt", "\ufeff" + content)
    latin = tmp_path / "c.txt"
    latin.write_bytes(content.encode("latin-1"))
    with pytest.raises(UsageError, match=r"c.txt, line 1: not in utf-8: set its encoding"):
        text(file=latin)
    digests = {text(file=plain).digest(), text(file=marked).digest()}
    assert digests == {text(file=latin, encoding="latin-1").digest()}


@pytest.mark.parametrize(
    ("content", "options", "said"),
    [
        ("", {}, "has 0 characters"),
        ("short", {}, "has 5 characters, of which .*split .*: use a longer text"),
        ("a" * 500, {}, "contains only the character 'a'"),
        ("\ufffd" * 500, {}, "contains only the character '\ufffd'"),
        ("ab" * 600, {"max_megabytes": 0}, "larger than 0 MB"),
        ("abc" * 300_000, {"examples": 10**6, "max_megabytes": 1}, "take .* lower examples"),
        ("ab" * 500, {"context": 0}, "context must be at least 1, got 0"),
        ("ab" * 500, {"examples": 0}, "examples must be at least 1"),
        ("ab" * 500, {"alphabet": 0}, "alphabet must be at least 1"),
        ("ab" * 500, {"test": 0.6, "validation": 0.5}, "must be shares"),
        ("ab" * 500, {"encoding": "klingon"}, "unknown encoding: klingon"),
    ],
)
def test_unusable_texts_are_reported_in_one_line(tmp_path, content, options, said):
    with pytest.raises(UsageError, match=said) as caught:
        text(file=written(tmp_path / "a.txt", content), **options)
    assert "\n" not in str(caught.value)


def test_files_that_cannot_be_read(rhyme, tmp_path):
    with pytest.raises(UsageError, match=r"cannot read .*No such file"):
        text(file=tmp_path / "none.txt")
    with pytest.raises(UsageError, match=r"cannot read .*directory"):
        text(file=tmp_path)
    packed = bytearray(gzip.compress(rhyme.read_bytes()))
    packed[len(packed) // 2] ^= 0xFF
    broken = tmp_path / "broken.gz"
    for content in (packed, packed[:20], b"no gzip"):
        broken.write_bytes(content)
        with pytest.raises(UsageError, match="cannot read"):
            text(file=broken)


@pytest.mark.skipif(
    not SHAKESPEARE.exists(), reason="no tinyshakespeare in AUTOML_DATA_DIR or ../shared/data"
)
def test_the_real_shakespeare_has_65_characters():
    task = text(file=SHAKESPEARE)
    assert task.classes == 65
    assert [len(task.split(split)[1]) for split in Split] == [16_000, 2_000, 2_000]
    # Without a context, the frequencies of characters already give 4.8 bits.
    counts = torch.bincount(task.split(Split.TRAIN)[1], minlength=65).double()
    logits = (counts + 1).log().expand(2_000, 65)
    assert task.evaluate(logits, task.split(Split.TEST)[1])["bits_per_character"] < 4.9
