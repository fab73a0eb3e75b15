"""From files of games to a corpus: everything PGN holds, every packing, every way to be broken."""

import io
import time

import chess.pgn
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from game_files import PACK, as_pgn, pgn, prepare, prepare_text, read, synthetic
from glassmoe.checksums import read_json
from glassmoe.chess.characters import move_text
from glassmoe.chess.headers import header_blocks
from glassmoe.chess.pgn import prepare_chess
from glassmoe.chess.replay import Replayer
from glassmoe.chess.selfplay import play_game
from glassmoe.data import sources
from glassmoe.data.corpus import Corpus
from glassmoe.data.sources import Skip

ANNOTATED = """[Event "Caf\u00e9"]
[Site "?"]
[White "M\u00fcller, {J.}"]
[Black "(someone) ; $3"]
[Result "1-0"]

% an escaped line with 1. d4 and (
1. e4 $1 {[%clk 0:03:00] a comment
over lines; with ( and 2. Qh5} e5!? 2.Nf3 ( 2. f4 exf4 (2... d5 3. exd5 {deep ) } (3. d4)) 3. Nf3 ) 2... Nc6
3. Bb5 a6?! ; to the end of the line } 4. Bxc6
4. Ba4 Nf6 5. 0-0 Be7 1-0
"""
ANNOTATED_TEXT = ";1.e4 e5 2.Nf3 Nc6 3.Bb5 a6 4.Ba4 Nf6 5.O-O Be7"


# --- what PGN holds ---


@pytest.mark.parametrize("checked", [True, False])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "latin-1"])
@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_annotations_encodings_and_line_ends(tmp_path, checked, encoding, newline):
    raw = (ANNOTATED * 3).replace("\n", newline).encode(encoding)
    texts, manifest = prepare_text(tmp_path, raw, trust=not checked)
    assert texts == [ANNOTATED_TEXT]
    assert manifest["duplicates"] == 2 and manifest["skipped"] == {} and manifest["checked"] is checked


@pytest.mark.parametrize(
    ("movetext", "expected"),
    [
        ("1. e4 e5 2. Nf3", ";1.e4 e5 2.Nf3"),
        ("1 e4 e5 2 Nf3 1/2-1/2", ";1.e4 e5 2.Nf3"),
        ("1.\u00a0e4 e5\u00a02. Nf3\u00a0*", ";1.e4 e5 2.Nf3"),
        ("1.e4 1...e5 2.Nf3 2... Nc6 *", ";1.e4 e5 2.Nf3 Nc6"),
        ("1. e4 { comment } 1. ... e5 2. Nf3 0-1", ";1.e4 e5 2.Nf3"),
        ("e4 e5\n\n\nNf3", ";1.e4 e5 2.Nf3"),
        ("1. e4 d5 2. e5 f5 3. exf6 e.p. 1-0", ";1.e4 d5 2.e5 f5 3.exf6"),
        ("1. e4 d5 2. e5 f5 3. exf6e.p.", ";1.e4 d5 2.e5 f5 3.exf6"),
        ("1. f3 e5 2. g4 Qh4 0-1", ";1.f3 e5 2.g4 Qh4#"),
        ("1. f3 e5 2. g4 Qh4+ 0-1", ";1.f3 e5 2.g4 Qh4#"),
        ("1. e4+ e5# 2. Nf3", ";1.e4 e5 2.Nf3"),
        ("1. e4 f5 2. ef5 Nf6 3. Qh5", ";1.e4 f5 2.exf5 Nf6 3.Qh5+"),
        ("1. e4 d5 2. ed5 Qd5", ";1.e4 d5 2.exd5 Qxd5"),
        ("1. Ng1f3 e7e5 2. Nxe5", ";1.Nf3 e5 2.Nxe5"),
        ("1. e2-e4 e5 2. Ng1-f3", ";1.e4 e5 2.Nf3"),
        ("1. e4 e5 2. Nf3 Nf6 3. Bc4 Bc5 4. O-O 0-0", ";1.e4 e5 2.Nf3 Nf6 3.Bc4 Bc5 4.O-O O-O"),
        (
            "1. d4 d5 2. Nc3 Nc6 3. Bf4 Bf5 4. Qd2 Qd7 5. 0-0-0 O-O-O",
            ";1.d4 d5 2.Nc3 Nc6 3.Bf4 Bf5 4.Qd2 Qd7 5.O-O-O O-O-O",
        ),
        ("1. e4 e5 2. Bb5 c6 3. Nc3 d6 4. Nge2", None),
        # The knight on c3 is pinned, so one knight alone can go to e2 and SAN needs no hint.
        ("1. e4 e6 2. Nc3 Bb4 3. d3 d5 4. a3 d4 5. Nge2", None),
        ("1. Nf3 a6 2. d4 a5 3. Nbd2 a4 4. c3", None),
        ("1. a4 b5 2. axb5 a6 3. bxa6 Nc6 4. a7 Rb8 5. a8Q Ra8", None),
        ("1. a4 b5 2. axb5 a6 3. bxa6 Nc6 4. a7 Rb8 5. axb8=N", None),
        ("1. h4 g5 2. hxg5 h6 3. gxh6 Nf6 4. Rh3 a6 5. Ra3 a5 6. R1a2", "illegal move"),
        ("1. e4 e5 2. Ke2 Ke7 3. Ke3 Ke6 4. Kd4", "illegal move"),
        ("1. e4 e5 2. Nf3 d6 3. d3 a6 4. Nd2", "ambiguous move"),
        ("1. e4 e5 2. e5", "illegal move"),
        ("1. e4 e5 2. exd6", "illegal move"),
        ("1. d4 e6 2. c4 Bb4 3. a3", "illegal move"),
        ("1. f3 e5 2. g4 Qh4# 3. a3", "illegal move"),
        ("1. e4 e5 2. O-O", "illegal move"),
        ("1. e4 -- 2. d4", "null move"),
        ("1. e4 Z0 2. d4", "null move"),
        ("1. e4 e5 2. \u2658f3", "foreign characters"),
        ("1. e4 hello 2. d4", "foreign characters"),
        ("1. e4 N@e5 2. d4", "foreign characters"),
        ("1. e4 e9", "not a move"),
        ("1. e4 KKK", "not a move"),
        ("1. e4 d5 2. ed", "not a move"),
        ("1. e4 equal", ";1.e4"),  # a remark
        ("1. e4 (1. d4 e5", "unbalanced variation"),
        ("1. e4 ) e5", "unbalanced variation"),
        ("1-0", "no moves"),
        ("", "no moves"),
        ("{ nothing } *", "no moves"),
    ],
)
def test_movetext(movetext, expected):
    texts, skipped = read(f'[Event "x"]\n\n{movetext}\n')
    if expected is None:
        game = chess.pgn.read_game(io.StringIO(movetext))
        assert not game.errors
        board, sans = chess.Board(), []
        for move in game.mainline_moves():
            sans.append(board.san(move))
            board.push(move)
        expected = move_text(sans)
    if expected.startswith(";"):
        assert (texts, skipped) == ([expected], [])
    else:
        assert (texts, skipped) == ([], [(0, expected)])


def test_games_without_headers_are_separated():
    texts, skipped = read("1. e4 e5 1-0 1. d4 d5 0-1\n\n1. c4 c5\n\n1. Nf3 Nf6\n1/2-1/2")
    assert texts == [";1.e4 e5", ";1.d4 d5", ";1.c4 c5", ";1.Nf3 Nf6"]
    assert skipped == []


def test_one_broken_game_does_not_swallow_the_next():
    texts, skipped = read(pgn("e4 e5") + '[Event "x"]\n\n1. e4 {no end\n\n' + pgn("d4 d5") + pgn("e4 e4") + pgn("c4"))
    assert texts == [";1.e4 e5", ";1.e4", ";1.d4 d5", ";1.c4"]
    assert skipped == [(3, "illegal move")]


@pytest.mark.parametrize(
    "before",
    [
        '[Event "x"]\n\n1. e4 e5 1-0' + between
        for between in ("", " ", "  ", "\t ", " {White wins} ", " (1. d4) ", " $1", "{c}", " *")
    ]
    + ['[Event "x"]\n\n1. e4 e5' + between for between in ("", " ", "  ", "!? ", " O-O ", " e8=Q ", "#  ")],
)
def test_a_game_whose_tags_begin_within_a_line_has_its_own_start(before: str) -> None:
    tag = '[Event "y"] [Variant "Chess960"] 1. d4 d5 *\n'
    blocks = list(header_blocks((before + tag).encode()))
    assert len(blocks) == 2 and b"Chess960" in blocks[1][0] and b"Chess960" not in blocks[0][0]


@pytest.mark.parametrize("between", ["{c} ", ", ", ". ", "  "])
def test_tags_of_one_line_may_have_something_between_them(between: str) -> None:
    ((tags, text),) = header_blocks(f'[Event "x"] {between}[Variant "Chess960"] 1. d4 d5 *\n'.encode())
    assert b"Chess960" in tags and b"1. d4 d5" in text


@pytest.mark.parametrize(
    "movetext",
    ['1. e4 {see 1. d4 [White "x"] there} e5', '1. e4 ; after 1. d4 [White "x"]\ne5', '1. e4 {\n1. d4 [White "x"]} e5'],
)
def test_tags_in_comments_begin_no_game(movetext: str) -> None:
    ((_, text),) = header_blocks(f'[Event "x"]\n\n{movetext} *\n'.encode())
    assert b"e5" in text


def test_header_blocks_with_and_without_blank_lines():
    text = (
        '[Event "a"]\n\n[White "b"]\n\n1. e4\n[Event "c"]\n1. d4\n[White "no event"]\n\n1. c4 *\n'
        '[Event "d"]\n\n[Event "e"]\n\n1. f4'
    )
    texts, skipped = read(text)
    assert texts == [";1.e4", ";1.d4", ";1.c4", ";1.f4"]
    assert skipped == [(3, "no moves")]


@pytest.mark.parametrize(
    ("tags", "reason"),
    [
        ({"Variant": "Chess960"}, "variant"),
        ({"Variant": "Crazyhouse"}, "variant"),
        ({"Variant": "Standard"}, None),
        ({"FEN": "8/8/8/8/8/4k3/4P3/4K3 w - - 0 1"}, "set-up position"),
        ({"SetUp": "1", "FEN": "rnbqkbnr/pppppppp/8/8/8/8/PPPPPPPP/RNBQKBN1 w Qkq - 0 1"}, "set-up position"),
        ({"SetUp": "1"}, "set-up position"),
        ({"SetUp": "0"}, None),
        ({"FEN": "?"}, None),
        ({"FEN": ""}, None),
        ({"SetUp": "?", "FEN": "-", "Variant": "?"}, None),
        ({"SetUp": "1", "FEN": "?"}, "set-up position"),
        ({"SetUp": "1", "FEN": chess.STARTING_FEN}, None),
        ({"FEN": chess.STARTING_FEN.replace("w KQkq", "b KQkq")}, "set-up position"),
    ],
)
def test_start_positions(tags, reason):
    texts, skipped = read(pgn("e4 e5", **tags))
    assert (texts, skipped) == (([], [(0, reason)]) if reason else ([";1.e4 e5"], []))


def test_lines():
    lines = ";1.e4 e5 2.Nf3\n\n;1.e4 e4\nhello\r\n;\n;1.d4 d5 2.Nc3 Nf6 3.Bf4 Bf5 4.Qd2+"
    texts, skipped = read(lines, kind="lines")
    assert texts == [";1.e4 e5 2.Nf3", ";1.d4 d5 2.Nc3 Nf6 3.Bf4 Bf5 4.Qd2"]
    assert skipped == [(1, "illegal move"), (2, "not a line of chess text"), (3, "no moves")]
    trusted, _ = read(lines, checked=False, kind="lines")
    assert trusted == [";1.e4 e5 2.Nf3", ";1.e4 e4", ";1.d4 d5 2.Nc3 Nf6 3.Bf4 Bf5 4.Qd2+"]


def test_canonical_text_equals_python_chess_on_long_games():
    replayer = Replayer()
    for text in synthetic(40, seed=9, max_chars=900):
        game = chess.pgn.read_game(io.StringIO(text[1:].replace("+", "").replace("#", "")))
        assert not game.errors
        board, bare, sans = chess.Board(), [], []
        for move in game.mainline_moves():
            sans.append(board.san(move))
            bare.append(sans[-1].rstrip("+#"))
            board.push(move)
        assert replayer.canonical(bare) == sans
        assert move_text(sans) == text


def test_replayer_accepts_exactly_the_legal_moves():
    replayer = Replayer()
    pieces = ["", "N", "B", "R", "Q", "K"]
    names = [piece + square for piece in pieces for square in chess.SQUARE_NAMES] + ["O-O", "O-O-O"]
    names += [f"{a}x{square}" for a in "abcdefgh" for square in chess.SQUARE_NAMES]
    names += [f"{square}={piece}" for square in chess.SQUARE_NAMES for piece in "QN"]
    for seed, plies in ((0, 30), (1, 45), (2, 61), (3, 90)):
        sans = play_game(seed, 0, 900)[1:].replace(".", " ").split()
        sans = [san for san in sans if not san.isdigit()][:plies]
        board = chess.Board()
        for san in sans:
            board.push_san(san)
        for name in names:
            try:
                expected = board.san(board.parse_san(name))
            except ValueError:
                expected = None
            try:
                got = replayer._play(board.copy(), name, 1)
            except Skip:
                got = None
            assert got == expected, (board.fen(), name)


# --- files ---


def test_skipped_games_are_counted_with_examples(tmp_path):
    bad = pgn("e4 e4") * 5 + pgn("", Result="1-0") + pgn("d4", Variant="Chess960")
    texts, manifest = prepare_text(tmp_path, pgn("e4 e5") + bad + pgn("d4 d5") + pgn("e4 e5") + pgn("c4"), min_plies=2)
    assert texts == [";1.e4 e5", ";1.d4 d5"] and manifest["duplicates"] == 1
    skipped = manifest["skipped"]
    assert {reason: entry["count"] for reason, entry in skipped.items()} == {
        "illegal move": 5,
        "no moves": 1,
        "variant": 1,
        "too few plies": 1,
    }
    assert [example["game"] for example in skipped["illegal move"]["examples"]] == [2, 3, 4]
    assert skipped["illegal move"]["examples"][0]["detail"] == "e4 at ply 2"
    assert read_json(tmp_path / "out" / "manifest.json") == manifest


def test_no_usable_game_leaves_no_corpus(tmp_path):
    with pytest.raises(ValueError, match=r"no usable game .*2 illegal move \(first: game 1 of .*e4 at ply 2"):
        prepare_text(tmp_path, pgn("e4 e4") * 2)
    with pytest.raises(ValueError, match="the input is empty"):
        prepare_text(tmp_path, "")
    assert not (tmp_path / "out").exists()


def test_max_games_counts_usable_games(tmp_path):
    text = pgn("e4 e4") + pgn("e4") + pgn("d4") + pgn("d4 d4") + pgn("c4")
    texts, manifest = prepare_text(tmp_path, text, max_games=2)
    assert texts == [";1.e4", ";1.d4"]
    assert manifest["skipped"]["illegal move"]["count"] == 1 and manifest["max_games"] == 2
    with pytest.raises(ValueError, match="max_games"):
        prepare_text(tmp_path, text, max_games=0, name="other")


def test_result_does_not_depend_on_workers_or_cutting(tmp_path):
    texts = list(dict.fromkeys(synthetic(150, max_chars=200)))
    clock = "{ [%clk 0:03:00] " + "long comment " * 500 + "}\n"
    content = "".join(f'[Event "{i}"]\n\n{clock}{text[1:]} 1-0\n\n' for i, text in enumerate(texts))
    assert len(content) > 900_000
    for name in ("a", "b"):
        (tmp_path / f"{name}.pgn").write_text(content + pgn("e4 e4"))
    inputs = [tmp_path / "a.pgn", tmp_path / "b.pgn"]
    one, manifest_one = prepare(tmp_path, *inputs, name="one", workers=1)
    two, manifest_two = prepare(tmp_path, *inputs, name="two", workers=2)
    assert one == two == texts
    assert manifest_one == manifest_two
    assert manifest_one["duplicates"] == len(texts)
    assert manifest_one["skipped"]["illegal move"]["examples"][1]["game"] == len(texts) + 1
    few = prepare(tmp_path, *inputs, name="few", workers=2, max_games=len(texts) + 3)
    assert few == prepare(tmp_path, *inputs, name="few1", workers=1, max_games=len(texts) + 3)
    assert few[0] == texts and few[1]["skipped"]["illegal move"]["count"] == 1
    unread = {"file": str(inputs[1]), "bytes": None, "sha256": None}
    assert few[1]["inputs"] == [manifest_one["inputs"][0], unread]


def test_checked_is_faster_than_reading_with_python_chess():
    texts = synthetic(60, max_chars=400)
    content = as_pgn(texts)

    def ours(checked):
        begin = time.process_time()
        assert read(content, checked=checked)[0] == texts
        return time.process_time() - begin

    def theirs():
        stream = io.StringIO(content)
        begin = time.process_time()
        while chess.pgn.read_game(stream):
            pass
        return time.process_time() - begin

    times = [(theirs(), ours(True), ours(False)) for _ in range(3)]
    reference, checked, trusted = map(min, zip(*times, strict=True))
    assert checked < reference / 1.15
    assert trusted < reference / 8


ALPHABET = '[]{}();%"*$!?.+#=-/ \n\r\t0123456789abcdefghxNBRQKO\x00\xe9'


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    data=st.one_of(
        st.binary(max_size=400),
        st.text(ALPHABET, max_size=300).map(lambda text: text.encode("latin-1")),
        st.lists(
            st.sampled_from(
                [
                    "[Event ",
                    '"x"]',
                    "\n",
                    "1.",
                    " e4",
                    " e5 ",
                    "{",
                    "}",
                    "(",
                    ")",
                    "1-0",
                    ";",
                    "$1",
                    "O-O ",
                    "[FEN ",
                ]
            ),
            max_size=40,
        ).map(lambda parts: "".join(parts).encode()),
    ),
    ending=st.sampled_from([".pgn", ".txt", ".pgn.gz", ".pgn.zst", ".txt.bz2"]),
    packed=st.booleans(),
    trust=st.booleans(),
)
def test_any_bytes_give_a_corpus_or_one_documented_error(tmp_path, data, ending, packed, trust):
    file = tmp_path / f"fuzz{ending}"
    packing = "." + ending.split(".")[2] if ending.count(".") == 2 else ""
    file.write_bytes(PACK[packing](data) if packed else data)
    out = tmp_path / "out"
    try:
        manifest = prepare_chess([file], out, trust=trust, workers=1, progress=False, overwrite=True).manifest
    except ValueError as error:
        assert str(error).startswith("no usable game in") or "expected text in UTF-8" in str(error)
    else:
        corpus = Corpus.open(out)
        assert sum(manifest["games"].values()) == sum(len(corpus.split(s)) for s in ("train", "valid")) > 0


@settings(
    max_examples=120, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    packing=st.sampled_from(sorted(PACK)),
    places=st.lists(st.tuples(st.floats(0, 1), st.binary(max_size=3), st.integers(0, 30)), min_size=1, max_size=4),
    packed_first=st.booleans(),
    trust=st.booleans(),
)
def test_mutated_games_and_streams_never_fail_otherwise(tmp_path, packing, places, packed_first, trust):
    """Bytes replaced, inserted and dropped, in the text before it is packed or in the packed stream."""

    def mutate(content):
        for place, new, dropped in places:
            at = int(place * len(content))
            content = content[:at] + new + content[at + dropped :]
        return content

    whole = (ANNOTATED * 2 + as_pgn(synthetic(4))).encode()
    file = tmp_path / f"mutated.pgn{packing}"
    file.write_bytes(mutate(PACK[packing](whole)) if packed_first else PACK[packing](mutate(whole)))
    try:
        manifest = prepare_chess(
            [file], tmp_path / "out", trust=trust, workers=1, progress=False, overwrite=True
        ).manifest
    except ValueError as error:
        assert str(error).startswith("no usable game in") or "expected text in UTF-8" in str(error)
        assert str(error).isprintable()
    else:
        assert sum(manifest["games"].values()) > 0
        for entry in manifest["skipped"].values():
            assert entry["count"] >= len(entry["examples"]) > 0
            assert all(example["detail"].isprintable() for example in entry["examples"])


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(read_bytes=st.integers(1, 3000), chunk_bytes=st.integers(1, 5000), packing=st.sampled_from(sorted(PACK)))
def test_where_a_stream_is_cut_changes_nothing(tmp_path, monkeypatch, read_bytes, chunk_bytes, packing):
    texts = list(dict.fromkeys(synthetic(12)))
    content = as_pgn(texts).replace("\n\n", "\r\n\r\n").encode() + pgn("e4 e4").encode()
    file = tmp_path / f"cut.pgn{packing}"
    file.write_bytes(PACK[packing](content))
    monkeypatch.setattr(sources, "_READ_BYTES", read_bytes)
    monkeypatch.setattr(sources, "CHUNK_BYTES", chunk_bytes)
    got, manifest = prepare(tmp_path, file, overwrite=True)
    assert got == texts
    assert manifest["skipped"]["illegal move"]["examples"][0]["game"] == len(texts) + 1
