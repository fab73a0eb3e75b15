"""Rules: said in words and read back, applied to the letter, and chosen from examples."""

import random
from dataclasses import replace

import numpy as np
import pytest

from glassmoe.explaining.offline import by_rules, by_words, detect_by_rule
from glassmoe.explaining.rule_search import best_rule, telling_words
from glassmoe.explaining.rules import CLASSES, Rule, TokenPattern, parse
from glassmoe.explaining.spans import SPANS
from glassmoe.explaining.trials import ExplanationProtocol, trial
from glassmoe.explaining.windows import TokenText, Windows, joined
from planted_stores import planted, words_kind

ODD = [
    "\U0001f642",
    "\u05e9\u05dc\u05d5\u05dd",
    '"',
    "\\",
    "<b>&amp;</b>",
    "\x00\x1b",
    "\n",
    "\u2028",
    " after ",
    ' the token "x"',
    ", ",
]
PIECES = [
    " the",
    " of",
    " cat",
    " dog",
    " Runs",
    " ran",
    " running",
    " seeing",
    ".",
    "!",
    " He",
    "7",
    "\n",
    " BIG",
    " May",
    " 12",
    "...",
    "#yes",
    " Dr",
    "(",
    ")",
    " 10:30",
    *ODD,
]


def is_(*texts: str) -> TokenPattern:
    return TokenPattern("is", texts)


RULES = [
    Rule(is_(" the")),
    Rule(is_(" the", " of", '"', ", ")),
    Rule(TokenPattern(), is_(" of")),
    Rule(is_(" cat"), is_(" the")),
    Rule(TokenPattern("ends", ("ing",))),
    Rule(TokenPattern("begins", ("run",)), TokenPattern("class", ("the end of a sentence",))),
    Rule(TokenPattern("class", ("a capitalised word",)), is_(".")),
    Rule(TokenPattern("ends", (" that begins with ",))),
    Rule(end=" the cat"),
    Rule(first=8),
    Rule(first=-64),
    Rule(source="web"),
    *(Rule(source=each) for each in ODD),
    *(Rule(within=name) for name in SPANS),
    *(Rule(TokenPattern("class", (name,))) for name in CLASSES),
    *(Rule(is_(each), is_(each)) for each in ODD),
    *(Rule(end=each + each) for each in ODD),
]


SOURCES = ["web", "books", *ODD]


def windows(lines: list[list[str]], start: int = 0, sources: list[str] | None = None) -> Windows:
    """Windows of these pieces, without strengths, from a place in their rows on, of documents of these sources."""
    table = tuple(dict.fromkeys(piece for line in lines for piece in line))
    piece_EL = np.array([[table.index(piece) for piece in line] for line in lines])
    place_EL = np.broadcast_to(start + np.arange(piece_EL.shape[1]), piece_EL.shape)
    source_E = None if sources is None else np.array(sources, dtype=object)
    return Windows(table, piece_EL, place_EL, np.zeros(piece_EL.shape, np.float32), np.full(len(lines), -1), source_E)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.words()[:60])
def test_explanations_are_parsed_back_into_rules(rule: Rule) -> None:
    for token in ("token", "character", "move"):
        assert parse(rule.words(token)) == rule


@pytest.mark.parametrize(
    "text",
    [
        "",
        "colours",
        "fires on",
        'fires on the token "a',
        'fires on the token "\\q"',
        "fires on a blue word",
        "fires on the first 0 tokens of a row",
        "fires in documents of web",
        'fires in documents of "web" after "x"',
    ],
)
def test_text_that_is_no_rule(text: str) -> None:
    assert parse(text) is None


def naive(rule: Rule, pieces: list[str], at: int, place: int, source: str) -> bool:
    """Whether a rule names a token, by the words of its definition."""

    def holds(what: TokenPattern, piece: str) -> bool:
        text = piece.strip()
        return {
            "any": lambda: True,
            "is": lambda: piece in what.texts,
            "class": lambda: CLASSES[what.texts[0]](piece),
            "begins": lambda: text.startswith(what.texts[0]) and text != what.texts[0],
            "ends": lambda: text.endswith(what.texts[0]) and text != what.texts[0],
        }[what.kind]()

    if rule.source is not None:
        return source == rule.source
    if rule.within is not None:
        text, begin = "".join(pieces), len("".join(pieces[:at]))
        places = [begin + i for i, letter in enumerate(pieces[at]) if not letter.isspace()]
        first, last = (min(places), max(places)) if places else (0, -1)
        found = SPANS[rule.within].finditer(text)
        return any(match.start() <= last and first < match.end() for match in found)
    if rule.first is not None:
        return place < rule.first if rule.first > 0 else place >= -rule.first
    if rule.end is not None:
        return pieces[at] != "" and "".join(pieces[: at + 1]).endswith(rule.end)
    if rule.before is not None and (at == 0 or not holds(rule.before, pieces[at - 1])):
        return False
    return holds(rule.what, pieces[at])


def test_rules_are_applied_to_the_letter() -> None:
    rng = random.Random(0)
    lines = [rng.choices(PIECES, k=12) for _ in range(60)]
    sources = rng.choices(SOURCES, k=60)
    shown = windows(lines, start=3, sources=sources)
    for rule in RULES:
        expected = [
            [naive(rule, line, at, at + 3, source) for at in range(12)]
            for line, source in zip(lines, sources, strict=True)
        ]
        assert rule.hits(shown).tolist() == expected, rule.words()


def test_documents_of_a_source_by_hand() -> None:
    """Two windows of "web" and one of "books": the rule names all tokens of the two, and none where sources are not
    known. Fires in both of "web" and not in that of "books": balanced accuracy 1; in the first alone: (1 + 1/2) / 2."""
    lines, rule = [["a", "b"], ["b", "a"], ["a", "b"]], Rule(source="web")
    shown = windows(lines, sources=["web", "web", "books"])
    assert rule.hits(shown).tolist() == [[True, True], [True, True], [False, False]]
    assert rule.hits(shown[[2, 0]]).tolist() == [[False, False], [True, True]]
    assert not rule.hits(windows(lines)).any()
    assert parse('fires in documents of "web"') == rule
    # The pieces of all three windows are the same, so that nothing but the source tells them apart.
    firing = replace(shown[[0, 1]], strengths_EL=np.ones((2, 2), np.float32))
    found = best_rule(firing, shown[[2]])
    assert found is not None and (found.rule, found.windows) == (rule, 1.0)
    firing = replace(shown[[0]], strengths_EL=np.ones((1, 2), np.float32))
    found = best_rule(firing, shown[[1, 2]])
    assert found is not None and (found.rule, found.windows) == (rule, 0.75)


def test_windows_keep_their_sources_when_they_are_joined() -> None:
    web, books = windows([["a"]], sources=["web"]), windows([["b"], ["a"]], sources=["books", "web"])
    assert joined([books, web]).of_source("web").tolist() == [False, True, True]
    assert joined([books, windows([["a"]])]).source_E is None


VOCABULARY = [
    " the",
    " of",
    " cat",
    " dog",
    " Runs",
    " ran",
    " running",
    " seeing",
    " sleeping",
    ".",
    " He",
    " She",
    "7",
    ",",
    " a",
    " b",
]


@pytest.mark.parametrize(
    "fires, expected",
    [
        (lambda text, at: text[at] == " the", 'fires on the token " the"'),
        (lambda text, at: text[at] in " cat dog", 'fires on one of the tokens " cat", " dog"'),
        (lambda text, at: at > 0 and text[at - 1] == " of", 'fires on any token after the token " of"'),
        (lambda text, at: text[at].endswith("ing"), 'fires on a token that ends in "ing"'),
        (lambda text, at: text[at] == "7", "fires on a number"),
        (
            lambda text, at: at > 0 and text[at].istitle() and text[at - 1] == ".",
            "fires on a capitalised word after the end of a sentence",
        ),
        (lambda _, at: at < 8 and 8 - at, "fires on the first 8 tokens of a row"),
        (
            lambda text, at: at > 0 and text[at - 1 : at + 1] == [" a", " cat"],
            'fires on the token " cat" after the token " a"',
        ),
    ],
)
def test_planted_features_are_explained(fires: object, expected: str) -> None:
    store = planted(VOCABULARY, [fires], rows=240)
    shown = trial(TokenText(store, words_kind(VOCABULARY)), 0, ExplanationProtocol(10, 100)).explaining
    fires_E = shown.deciles_E >= 0
    found = best_rule(shown[fires_E], shown[~fires_E])
    assert found is not None and found.rule.words() == expected
    assert found.windows == 1.0 or "after" in expected


NAMES = [["web", "books", "talk"][number % 7 % 3] for number in range(240)]


def test_a_feature_of_a_source_is_explained_by_it() -> None:
    """It fires somewhere in most windows of one source, on pieces that stand in all."""
    rows, rng = iter(NAMES), np.random.default_rng(1)
    of_row: dict[int, str] = {}

    def fires(text: list[str], at: int) -> bool:
        return of_row.setdefault(id(text), next(rows) if at == 0 else "") == "web" and rng.random() < 0.4

    store = planted(VOCABULARY, [fires], rows=240).of_sources(NAMES)
    shown = trial(TokenText(store, words_kind(VOCABULARY)), 0, ExplanationProtocol(10, 100))
    (said,) = by_rules([shown])
    assert said.text == 'fires in documents of "web"'
    assert (detect_by_rule((said.text, shown)) == shown.fires_E).mean() > 0.9
    # Those who judge by words are not told of sources.
    (said,) = by_words([shown])
    assert said.text and "documents" not in said.text


def test_nothing_to_compare_gives_no_rule() -> None:
    some = windows([["a", "b"]])
    assert best_rule(some, some[:0]) is None and best_rule(some[:0], some) is None


def test_telling_words_by_hand() -> None:
    """Of 20 windows with "movie" against none: z is far above. Words of both sides and special tokens tell nothing."""
    firing = windows([[" the", " Movie", "<|endoftext|>"]] * 20)
    silent = windows([[" the", " cat", " of"]] * 20)
    assert telling_words(firing, silent) == ["movie"]
    assert telling_words(silent, silent) == []
