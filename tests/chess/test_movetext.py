"""Tags and movetext of every usual form, against what they mean and against python-chess."""

import io
import logging
import random

import chess.pgn
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from game_files import prepare_text, read
from glassmoe.chess import pgn as preparing
from glassmoe.chess.characters import move_text
from glassmoe.data import sources

MODES = pytest.mark.parametrize("checked", [True, False])


# --- tags ---


@MODES
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('[Event "x"]\n[Result "1-0"] 1. e4 e5 2. Nf3 1-0\n', ["1.e4 e5 2.Nf3"]),
        ('[Event "x"] [Result "1-0"] 1. e4 e5 2. Nf3 1-0\n\n[Event "y"]\n\n1. d4 *', ["1.e4 e5 2.Nf3", "1.d4"]),
        ('[Event "x"][Result "1-0"]1. e4 e5\n2. Nf3 1-0\n[Event "y"] 1. d4', ["1.e4 e5 2.Nf3", "1.d4"]),
        ('[Event "x"] 1. e4 e5 1-0 [Event "y"] [Site "s"] 1. d4 *', ["1.e4 e5", "1.d4"]),
        ('[Event "x"]\n[Black-Type "program"]\n[White.Elo "1"]\n[Site "?"]\n\n1. e4 e5 *', ["1.e4 e5"]),
        ('[Event "x"]\na line that does not belong\n[Site "?"]\n\n1. e4 e5 *', ["1.e4 e5"]),
        ('[Event "x"]\n{ after 1. e4 } ; or d4\n[Site "?"]\n\n1. e4 e5 *', ["1.e4 e5"]),
        ('[Event "x"]\n[Date 2020.01.01]\n[Site]\n[Round "?"]\n\n1. e4 e5 *', ["1.e4 e5"]),
        ('[Event"x"]\n[ Site "?" ]\n\t[Round  "?" ] \n\n1. e4 e5 *', ["1.e4 e5"]),
        ('[Event "the "best" game"] [Site "a \\"b\\"] c"] 1. e4 e5 *', ["1.e4 e5"]),
        ('[Event "not closed\n[Site "?"]\n\n1. e4 e5 *\n\n[Event "y"]\n\n1. d4 *', ["1.e4 e5", "1.d4"]),
        ('[Event "x"]\n\n1. e4 e5 *\n[White "no Event"] 1. d4 d5 *', ["1.e4 e5", "1.d4 d5"]),
        ('[White "a"]\n\n[Event "x"]\n\n1. e4 e5 *', ["1.e4 e5"]),
        ('[Event "x"]\n\na line in front\n1. e4 e5 *', ["1.e4 e5"]),
        ('[Event "x"]\n\n1. e4 [%clk 0:03:00] e5\n[%clk 0:02:00]\n2. Nf3 *', ["1.e4 e5 2.Nf3"]),
    ],
)
def test_tags_are_read_as_tokens(text, expected, checked):
    assert read(text, checked) == ([f";{line}" for line in expected], [])


FEN = "rnbqkbnr/pppppppp/8/8/8/8/PPPPPPPP/RNBQKBN1 w Qkq - 0 1"


@MODES
@pytest.mark.parametrize("tag", ['[Variant "Chess960"]', f'[FEN "{FEN}"]', f"[FEN {FEN}]", '[SetUp "1"]'])
@pytest.mark.parametrize(
    "form",
    [
        '[Event "x"] [Site "s"] TAG [Result "*"]\n\n1. e4 e5 *',
        '[Event "x"] TAG 1. e4 e5 *',
        '[Event "x"]\n  TAG\n[Black-Type "x"]\n\n1. e4 e5 *',
        '[Event "x"]\nTAG\n[Black-Type "x"]\n[Site "?"]\n\n1. e4 e5 *',
        '[Event "x"]\nTAG\na stray line\n[Site "?"]\n\n1. e4 e5 *',
        '[Event "x"]\nTAG\na stray line\n\n[Site "?"]\n\n1. e4 e5 *',
        '[Event "x"]\nTAG\n\n{ a comment with e4 }\n[Site "?"]\n\n1. e4 e5 *',
        'TAG\n\n[Event "x"]\n\n1. e4 e5 *',
        'TAG\n[Event "x"]\n1. e4 e5 *',
    ],
)
def test_other_start_positions_never_pass_for_the_standard_one(tag, form, checked):
    reason = "variant" if "Variant" in tag else "set-up position"
    after = '\n\n[Event "y"]\n\n1. d4 d5 *\n'
    assert read(form.replace("TAG", tag) + after, checked) == ([";1.d4 d5"], [(0, reason)])


def test_chunks_are_not_cut_within_tags(tmp_path, monkeypatch):
    games = "".join(
        f'[Variant "{"Chess960" if number % 3 else "Standard"}"]\n\n[Event "{number}"]\n\n1. {move} *\n'
        for number, move in enumerate(["e4", "d4", "c4", "f4", "a4", "h4", "Nf3", "b3", "g3"])
    )
    for size in (1, 40, 90, 200):
        monkeypatch.setattr("glassmoe.chess.game_files.CHUNK_BYTES", size)
        monkeypatch.setattr(sources, "_READ_BYTES", 7)
        texts, manifest = prepare_text(tmp_path, games, overwrite=True)
        assert texts == [";1.e4", ";1.f4", ";1.Nf3"]
        assert {reason: entry["count"] for reason, entry in manifest["skipped"].items()} == {"variant": 6}


# --- moves and annotation ---

ANNOTATIONS = """
! !? ?! ?? $1 $146 N TN D + ++ # = +- -+ +/- -/+ +/= =/+ += =+ \u00b1 \u2213 \u2a72 \u2a71 \u221e \u2192 \u25a1
e.p. ep ch dbl mate \u2014 \u2013 - \u2026 ... 0:03 0:03:00 12:30.5 [%clk_0:03:00] [%emt_1.5] +0.35 -1.2/14 0.00 35 3.2s
\u00bd \u00bd-\u00bd (1.d4) {x} <> | ~ diagram better Fritz (=)
"""


@MODES
@pytest.mark.parametrize("mark", ANNOTATIONS.split())
def test_annotation_is_not_a_move(mark, checked):
    mark = mark.replace("_", " ")
    if mark.startswith("\u00bd"):
        assert read(f'[Event "x"]\n\n1. e4 e5 2. Nf3 {mark}', checked) == ([";1.e4 e5 2.Nf3"], [])
        return
    for movetext in (
        f"1. e4 {mark} e5 2. Nf3 {mark} Nc6 3. Bc4 *",
        f"1. e4 e5 {mark} 2. Nf3 Nc6 3. Bc4 {mark} *",
        f"{mark} 1. e4 e5 2. Nf3 Nc6 3. Bc4 *" if mark != "diagram" else "1. e4 e5 2. Nf3 Nc6 3. Bc4 diagram *",
    ):
        assert read(f'[Event "x"]\n\n{movetext}', checked) == ([";1.e4 e5 2.Nf3 Nc6 3.Bc4"], []), movetext


@MODES
@pytest.mark.parametrize(
    "mark", ["!", "!?N", "N", "TN", "+-", "\u00b1", "=", "+/=", "$14", "\u2026", ",", "/0:05", "!!$3D"]
)
def test_annotation_behind_a_move(mark, checked):
    movetext = f"1.e4{mark} e5{mark} 2.Nf3{mark} Nc6{mark} 3.Bc4{mark} *"
    assert read(f'[Event "x"]\n\n{movetext}', checked) == ([";1.e4 e5 2.Nf3 Nc6 3.Bc4"], [])


@MODES
@pytest.mark.parametrize("dash", "-\u2010\u2011\u2012\u2013\u2014\u2212")
@pytest.mark.parametrize("encoding", ["utf-8", "cp1252"])
def test_typographic_dashes(dash, encoding, checked):
    if encoding == "cp1252" and dash not in "-\u2013\u2014":
        return
    text = (
        f"1. e4 e5 2. Ng1{dash}f3 Nc6 3. Bc4 Bc5 4. O{dash}O Nf6 1{dash}0\n\n1. d4 \u00bd{dash}\u00bd\n1. c4 0{dash}1"
    )
    expected = ";1.e4 e5 2.Nf3 Nc6 3.Bc4 Bc5 4.O-O Nf6".replace("Nf3", "Nf3" if checked else "Ng1f3")
    assert read(text.encode(encoding), checked) == ([expected, ";1.d4", ";1.c4"], [])


@MODES
@pytest.mark.parametrize("before", ["a4 b5 axb5 a6 bxa6 Nc6 a7 Rb8", "a2a4 b7b5 a4b5 a7a6 b5a6 b8c6 a6a7 a8b8"])
@pytest.mark.parametrize(
    "spelling",
    ["a8=Q", "a8Q", "a8q", "a8=q", "a8/Q", "a8(Q)", "a8=(Q)", "a8 (Q)", "a8 = Q", "a8:Q", "a8\n=Q", "a8=\nQ"],
)
@pytest.mark.parametrize("mark", ["", "!", "+-", " N"])
def test_promotions(before, spelling, mark, checked):
    texts, skipped = read(f'[Event "x"]\n\n{move_text(before.split())[1:]} 5. {spelling}{mark} d6 1-0', checked)
    assert (texts, skipped) == ([";1.a4 b5 2.axb5 a6 3.bxa6 Nc6 4.a7 Rb8 5.a8=Q d6"], [])


@MODES
@pytest.mark.parametrize(
    ("uci", "san"), [("a7a8q", "a8=Q"), ("a7b8n", "axb8=N"), ("a7a8=R", "a8=R"), ("a7-a8b", "a8=B")]
)
def test_promotions_in_coordinates(uci, san, checked):
    texts, skipped = read(f"1. a4 b5 2. axb5 a6 3. bxa6 Nc6 4. a7 Rb8 5. {uci} d6", checked)
    assert (texts, skipped) == ([f";1.a4 b5 2.axb5 a6 3.bxa6 Nc6 4.a7 Rb8 5.{san} d6"], [])


@MODES
@pytest.mark.parametrize("move", ["a8", "a7xb8", "a8=", "a8=K", "Na8=Q"])
def test_a_promotion_without_its_piece_is_skipped(move, checked):
    texts, skipped = read(f"1. a4 b5 2. axb5 a6 3. bxa6 Nc6 4. a7 Rb8 5. {move} d6", checked)
    assert texts == [] and len(skipped) == 1


def test_coordinates_name_their_pieces_even_when_trusted(monkeypatch):
    text = "1. e2e4 e7e5 2. g1f3 b8c6 3. f1-b5 g8f6 4. e1g1\n\n1. d4 d5"
    expected = ";1.e4 e5 2.Nf3 Nc6 3.Bb5 Nf6 4.O-O"
    assert read(text, checked=False) == read(text) == ([expected, ";1.d4 d5"], [])
    monkeypatch.setattr(preparing, "_board", lambda: None)
    assert read(text, checked=False) == ([";1.d4 d5"], [(0, "moves in coordinates")])


@MODES
@pytest.mark.parametrize("null", ["--", "Z0", "..", "0000", "@@@@", "\u2014\u2014"])
@pytest.mark.parametrize(
    "movetext", ["1. e4 e5 2. Bc4 NULL 3. Qh5 Nc6", "1. e4 NULL", "1. NULL e5 2. e4", "1. e4 e5 2. NULL Nc6 3. d4"]
)
def test_null_moves_end_the_game(null, movetext, checked):
    texts, skipped = read(f'[Event "x"]\n\n{movetext.replace("NULL", null)} *\n\n[Event "y"]\n\n1. d4 d5 *', checked)
    assert (texts, skipped) == ([";1.d4 d5"], [(0, "null move")])
    variation = f'[Event "x"]\n\n1. e4 e5 (1... {null} 2. d4) 2. Nf3 *'
    assert read(variation, checked) == ([";1.e4 e5 2.Nf3"], [])


@MODES
@pytest.mark.parametrize(
    "movetext",
    [
        "1. e4 pass 2. d4 d5",
        "1. e4 e5 2. Sf3 Nc6",
        "1. e4 e5 2. \u2658f3 Nc6",
        "1. e4 e5 2. N Nc6 3. d4",
        "1. e4 hello 2. d4 d5",
        "1. e4 e5 2. Nf9 Nc6",
    ],
)
def test_no_move_is_lost_without_a_word(movetext, checked):
    texts, skipped = read(f'[Event "x"]\n\n{movetext} *', checked)
    assert texts == [] and len(skipped) == 1


@pytest.mark.parametrize("checked", [True, False])
@pytest.mark.parametrize("movetext", ["5. e4 e5 6. Nf3 Nc6", "2. e4 e5", "12... e4 13. e5", "{White} 31. e4 e5"])
def test_the_rest_of_a_game_is_no_game(movetext, checked):
    assert read(f'[Event "x"]\n\n{movetext} *', checked) == ([], [(0, "wrong move number")])


def test_trusted_games_need_the_right_numbers():
    for movetext in ("1. e4 e5 2. Nf3 3. d4 Nc6", "1. e4 e5 3. Nf3", "1. e4 e5 2... Nf3", "2. e4 e5"):
        assert read(movetext, checked=False) == ([], [(0, "wrong move number")])
    for movetext in (
        "1. e4 1... e5 2. Nf3",
        "1. e4 1. ... e5 2. Nf3",
        "1 e4 e5 2 Nf3",
        "1.e4 1..e5 2.Nf3",
        "e4 e5 Nf3",
    ):
        assert read(movetext, checked=False) == ([";1.e4 e5 2.Nf3"], [])
    assert read("1. e4 e5 2. Nf3 better Nc6", checked=False) == ([], [(0, "foreign characters")])


# --- against python-chess ---

logging.getLogger("chess.pgn").setLevel(logging.CRITICAL)
TAGS = [
    '[Event "x"]',
    '[Black-Type "program"]',
    '[Variant "Chess960"]',
    '[Variant "Standard"]',
    f'[FEN "{FEN}"]',
    f'[FEN "{chess.STARTING_FEN}"]',
    '[White "A "B" [C"]',
    "[Bad",
    "[Bad x]",
    "; a comment with 1. e4",
    "% escaped [FEN",
]
MARKS = [
    " ",
    "!",
    "?!",
    " $7",
    " {1. d4 ( }",
    " (1. d4 d5)",
    " N",
    " +-",
    " \u00b1",
    " [%clk 0:01]",
    " 0:03",
    " better",
]
MARKS += [" 0000", " Z0", " --", "\n", " ; rest of the line (\n", "\n% escaped {\n", " e4", " Ke7", " \u2014 "]


@st.composite
def pgn_games(draw):
    """A game as text: tags, legal moves in several spellings, and annotation, null moves and mistakes between them."""
    rng = random.Random(draw(st.integers(0, 10_000)))
    tags = draw(st.lists(st.sampled_from(TAGS), max_size=4))
    start = ['[Event "g"]', *tags, *draw(st.sampled_from([[], ['[Site "?"]'], ["", '[Site "?"]']]))]
    numbers = draw(st.sampled_from(["{}. ", "{}.", "{} ", ""]))
    marked = draw(st.floats(0, 0.3))
    board, words = chess.Board(), []
    for ply in range(draw(st.integers(0, 40))):
        moves = list(board.legal_moves)
        if not moves:
            break
        move = rng.choice(sorted(moves, key=lambda move: (move.promotion or 0, move.uci()))[-8:])
        spellings = [board.san(move), board.lan(move), board.uci(move), board.san(move).replace("O-O", "0-0")]
        spellings += [board.san(move).replace("=", "").rstrip("+#"), board.san(move).replace("=Q", "=q")]
        number = numbers.format(ply // 2 + 1) if ply % 2 == 0 else ""
        mark = rng.choice(MARKS) if rng.random() < marked else ""
        words.append(number + spellings[rng.choice([0, 0, 0, 1, 2, 3, 4, 5])] + mark)
        board.push(move)
    return "\n".join(start) + "\n\n" + " ".join(words) + draw(st.sampled_from(["", " *", " 1-0", " 1/2-1/2"])) + "\n\n"


class MainLines(chess.pgn.GameBuilder):
    """Games without variations, whose mistakes are no matter."""

    def begin_variation(self):
        return chess.pgn.SKIP

    def end_variation(self):
        pass


def read_by_python_chess(text):
    """The games that python-chess reads without an error, from the standard position and without null moves."""
    stream, texts = io.StringIO(text), []
    while game := chess.pgn.read_game(stream, Visitor=MainLines):
        board, sans = chess.Board(), []
        moves = list(game.mainline_moves())
        usual = game.board() == board and not game.headers.is_chess960()
        if game.errors or not usual or not moves or not all(moves):
            continue
        for move in moves:
            sans.append(board.san(move))
            board.push(move)
        texts.append(move_text(sans))
    return texts


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.lists(pgn_games(), min_size=1, max_size=3).map("".join))
def test_the_same_games_and_moves_as_python_chess(text):
    expected = read_by_python_chess(text)
    assert read(text)[0] == expected
    # Without a board a wrong move may pass, but no legal game is lost, and none becomes another one.
    trusted = read(text, checked=False)[0]
    assert set(read("\n".join(trusted), kind="lines")[0]) <= set(expected)
    if "better" not in text:  # a remark that no move number follows is trusted only to a board
        assert len(trusted) >= len(expected)
