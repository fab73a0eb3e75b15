"""Kinds of text longer than a token, by hand: what belongs to each, and what does not; and rules that find them."""

import random
import re
from dataclasses import replace

import numpy as np
import pytest

from glassmoe.explaining.rule_search import best_rule
from glassmoe.explaining.rules import Rule
from glassmoe.explaining.spans import SPANS, within
from glassmoe.explaining.windows import Windows

CASES = {
    "a date": (
        ["12 May 2007", "May 12, 2007", "3rd of June", "2007-05-12", "4/7/1776", "September 1939", "Dec. 25"],
        ["May I go?", "12 cats", "chapter 4/7", "2007"],
    ),
    "a year": (["1066", "in 2024", "1984,"], ["12", "30000", "$1999", "1,999", "19.99", "0.1999", "1999.5"]),
    "a time of day": (["10:30", "9:05 p.m.", "5 pm", "23:59:59", "6 o'clock"], ["25:99", "5 people", "Mark 3 verse"]),
    "an amount of money": (["$5", "\u20ac 3,000.50", "$2 million", "40 dollars", "3 million euros"], ["5", "dollars"]),
    "a number with a unit": (
        ["5 km", "3.5%", "12-inch", "1,000 miles", "6 feet", "20 years"],
        ["5 cats", "kilometres"],
    ),
    "an ordinal number": (["21st", "the third", "First"], ["21", "thirds of it", "firsthand"]),
    "a hashtag": (["#now", "so #nice_1"], ["#1", "a#b", "# title"]),
    "text in capitals": (["NASA", "READ THIS NOW"], ["Nasa", "I am", "A b"]),
    "an ellipsis": (["wait...", "well. . . no", "oh\u2026"], ["..", "a. b. c"]),
    "an abbreviation": (["Dr. Who", "U.S.", "e.g.", "Smith vs. Jones"], ["Doctor.", "end. New", "a b"]),
    "a web address": (["http://a.org/x?y=1", "www.b.com", "me@c.net"], ["a.org is", "@me"]),
    "text in brackets": (["(so)", "[12]"], ["(open", "closed)"]),
    "a quotation": (['"yes, well"', "\u201cno\u201d"], ['5" and', "it's"]),
}


def test_every_kind_has_cases() -> None:
    assert set(CASES) == set(SPANS)


@pytest.mark.parametrize("name", SPANS)
def test_what_is_of_a_kind_and_what_is_not(name: str) -> None:
    yes, no = CASES[name]
    for text in yes:
        assert any(within(["so ", text, " then"], name)), text
    for text in no:
        assert not any(within(["so ", text, " then"], name)), text


def test_the_tokens_of_a_date_by_hand() -> None:
    tokens = ["on", " 1", "2", " May", " ", "2", "007", ",", " he"]
    assert within(tokens, "a date") == [False, True, True, True, False, True, True, False, False]
    assert within([], "a date") == [] and within(["", " "], "a date") == [False, False]


def test_matching_takes_no_more_than_linear_time() -> None:
    for text in ("1" * 20_000, "A" * 20_000, "(" * 20_000, '"' * 20_001, "a." * 10_000, ". " * 10_000, "1," * 10_000):
        for pattern in SPANS.values():
            assert len(re.findall(pattern, text[:2000])) <= len(text)
    assert not any(within(["(" * 50_000], "text in brackets"))


def test_a_feature_of_dates_is_explained() -> None:
    """It fires on days, months and years that stand together, and not where they stand alone."""
    rng = random.Random(0)
    months, words = [" January", " March", " May", " August", " October"], [" the", " cat", " sat", " of", " big"]
    lines, strengths = [], []
    for number in range(120):
        line = [rng.choice([*words, rng.choice(months), f" {rng.randint(1, 31)}"]) for _ in range(16)]
        at = rng.randint(1, 11)
        line[at - 1], line[at + 3] = " the", " cat"
        date = [f" {rng.randint(1, 28)}", rng.choice(months), f" {rng.randint(1700, 1999)}"]
        if number % 2:
            rng.shuffle(date)
            date = [" of", date[0], " of"]
        line[at : at + 3] = date
        # A day before a month by chance is a date too.
        inside = within(line, "a date")
        lines.append(line)
        strengths.append([float(each) for each in inside])
    shown = replace(windows(lines), strengths_EL=np.array(strengths, dtype=np.float32))
    fires_E = shown.strengths_EL.any(1)
    assert 40 < fires_E.sum() < 100
    found = best_rule(shown[fires_E], shown[~fires_E])
    assert found is not None and found.rule == Rule(within="a date") and found.windows == found.tokens == 1.0
    assert found.rule.words() == "fires within a date"


def windows(lines: list[list[str]]) -> Windows:
    """Windows of these pieces in which nothing fires."""
    table = tuple(dict.fromkeys(piece for line in lines for piece in line))
    piece_EL = np.array([[table.index(piece) for piece in line] for line in lines])
    place_EL = np.broadcast_to(np.arange(piece_EL.shape[1]), piece_EL.shape)
    return Windows(table, piece_EL, place_EL, np.zeros(piece_EL.shape, np.float32), np.full(len(lines), -1))
