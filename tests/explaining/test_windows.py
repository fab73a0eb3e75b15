"""Windows: what tokens spell, what is marked, and texts that are hard to show."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from glassmoe.chess.tokens import CHARACTERS, MOVES
from glassmoe.data.corpus import Corpus
from glassmoe.explaining.windows import TokenText, Windows, joined, random_marks, with_marks
from glassmoe.inspect.examples import Examples
from text_files import made_up_texts, prepared

HARD = [
    "\U0001f468\u200d\U0001f469\u200d\U0001f467 family \U0001f642\U0001f642",
    "\u05e9\u05dc\u05d5\u05dd \u05e2\u05d5\u05dc\u05dd \u0645\u0631\u062d\u0628\u0627",
    "<script>alert('x')</script> &amp; <<b>>",
    "tab\t nul\x00 escape\x1b[31m \u2028 \ufeff",
]


def reader(kind: object, rows: list[list[int]]) -> tuple[TokenText, Examples]:
    rows_EL = np.array(rows)
    store = SimpleNamespace(tokens=lambda examples: rows_EL[examples.rows_E], sources_R=None)
    count = len(rows)
    examples = Examples(
        np.arange(count), np.zeros(count, int), np.zeros(rows_EL.shape, np.float32), np.zeros(count, int)
    )
    return TokenText(store, kind), examples


@pytest.mark.parametrize("text", HARD)
def test_pieces_of_any_text_join_to_it(tmp_path: Path, text: str) -> None:
    """Also where a character is spread over tokens: none of it is lost, and it is shown once."""
    prepared(tmp_path / "text", made_up_texts(60), tokenizer="train:270")
    kind = Corpus.open(tmp_path / "text").kind
    ids = kind.encode(text).tolist()
    found, examples = reader(kind, [ids])
    shown = found.windows(examples)
    assert shown.text(0) == kind.start_token + text
    assert len(shown.tokens(0)) == len(ids)


def test_a_window_that_begins_within_a_character(tmp_path: Path) -> None:
    prepared(tmp_path / "text", made_up_texts(60), tokenizer="train:257")
    kind = Corpus.open(tmp_path / "text").kind
    ids = kind.encode("\U0001f642 cat").tolist()[3:]
    found, examples = reader(kind, [ids])
    shown = found.windows(examples)
    assert shown.text(0).endswith(" cat") and len(shown.tokens(0)) == len(ids)


def test_pieces_of_games() -> None:
    found, examples = reader(CHARACTERS, [CHARACTERS.encode(";1.e4 e5").tolist()])
    assert found.windows(examples).text(0) == ";1.e4 e5"
    found, examples = reader(MOVES, [MOVES.encode("; e2e4 e7e5").tolist()])
    assert found.windows(examples).tokens(0) == [";", " e2e4", " e7e5"]


def test_marks_by_hand() -> None:
    assert with_marks(["a", "b", "c", "d"], [True, True, False, True]) == "<<ab>>c<<d>>"
    assert with_marks(["x <<", ">> y"], [False, True]) == "x < <<<> > y>>"


def test_what_is_marked_by_hand() -> None:
    """Above 0.3 of the maximum, and of every window where it fires the strongest token."""
    strengths = np.array([[1.0, 0.4, 0.2], [0.1, 0.0, 0.05], [0.0, 0.0, 0.0]], np.float32)
    shown = Windows(("a",), np.zeros((3, 3), int), np.zeros((3, 3), int), strengths, np.array([0, 9, -1]))
    assert shown.marked(1.0).tolist() == [[True, True, False], [True, False, False], [False] * 3]


def test_random_marks_are_as_many_on_average() -> None:
    shown = Windows(
        ("a",), np.zeros((2000, 8), int), np.zeros((2000, 8), int), np.zeros((2000, 8), np.float32), np.zeros(2000)
    )
    for count, expected in ((2.5, 2.5), (0.2, 1.0), (99.0, 8.0)):
        marks = random_marks(shown, count, np.random.default_rng(0))
        assert marks.sum(1).mean() == pytest.approx(expected, abs=0.05)
        assert set(marks.sum(1)) <= {int(expected), int(expected) + 1}


def test_joined_windows_keep_their_texts() -> None:
    one = Windows(("a", "b"), np.array([[0, 1]]), np.array([[0, 1]]), np.ones((1, 2), np.float32), np.array([3]))
    two = Windows(
        ("b", "c"), np.array([[0, 1], [1, 1]]), np.array([[4, 5]] * 2), np.zeros((2, 2), np.float32), np.array([-1, -1])
    )
    both = joined([one, two])
    assert [both.text(e) for e in range(3)] == ["ab", "bc", "cc"]
    assert both.deciles_E.tolist() == [3, -1, -1] and both.place_EL[1].tolist() == [4, 5]
