"""Board properties: positions by FEN with expectations worked out by hand, and a slow twin."""

from __future__ import annotations

import random
from collections import defaultdict

import numpy as np
import pytest

from glassmoe.chess.board_properties import HEADLINE, PROPERTIES, STRATEGY, slot_name

chess = pytest.importorskip("chess")

START = chess.STARTING_FEN


def value(name: str, fen: str) -> np.ndarray:
    return PROPERTIES[f"board_to_{name}"](chess.Board(fen))


def scalar(name: str, fen: str) -> int:
    state = value(name, fen)
    assert state.shape == (1, 1) and state.dtype == np.int8
    return int(state[0, 0])


def squares(name: str, fen: str) -> set[str]:
    return {chess.square_name(8 * row + column) for row, column in np.argwhere(value(name, fen))}


def test_there_are_23_properties_and_14_in_the_strategy_group() -> None:
    assert len(PROPERTIES) == 23
    assert len(set(STRATEGY)) == 14 and set(STRATEGY) <= set(PROPERTIES)
    slots = {name: prop.slots for name, prop in PROPERTIES.items()}
    assert slots[HEADLINE] == 768 == slots["board_to_piece_masked_blank_state"]
    assert slots["board_to_piece_state"] == 832 and slots["board_to_piece_color_state"] == 192
    assert slots["board_to_threat_state"] == 64 and slots["board_to_pin_state"] == 1
    assert PROPERTIES[HEADLINE].shape == (8, 8, 12) and PROPERTIES[HEADLINE].masked == 0
    assert PROPERTIES["board_to_pin_state"].shape == (1, 1, 1)


def test_piece_states_of_a_small_board() -> None:
    # Rook a1, king e1, pawn e2 and the black king e8 are at home; the black pawn e4 is not.
    fen = "4k3/8/8/8/4p3/8/4P3/R3K3 w Q - 0 1"
    full = value("piece_state", fen)
    assert (full[0, 0], full[0, 4], full[1, 4], full[3, 4], full[7, 4]) == (4, 6, 1, -1, -6)
    assert np.count_nonzero(full) == 5
    np.testing.assert_array_equal(full, value("piece_masked_blank_state", fen))
    masked = value("piece_masked_blank_and_initial_state", fen)
    assert np.argwhere(masked).tolist() == [[3, 4]] and masked[3, 4] == -1
    color = value("piece_color_state", fen)
    np.testing.assert_array_equal(color, np.sign(full))


def test_blank_is_a_class_of_piece_state_only() -> None:
    board = chess.Board(START)
    assert PROPERTIES["board_to_piece_state"].one_hot(board).sum() == 64
    assert PROPERTIES["board_to_piece_masked_blank_state"].one_hot(board).sum() == 32
    assert PROPERTIES[HEADLINE].one_hot(board).sum() == 0
    assert PROPERTIES["board_to_piece_color_state"].one_hot(board).reshape(64, 3).sum(0).tolist() == [
        16,
        32,
        16,
    ]


def test_initial_state_masks_the_same_piece_only() -> None:
    # White rook g1, white knight h1, *black* rook a1: none of these is what stood there.
    state = value("piece_masked_blank_and_initial_state", "4k3/8/8/8/8/8/8/r3K1RN w - - 0 1")
    assert {tuple(at): int(state[tuple(at)]) for at in np.argwhere(state)} == {
        (0, 0): -4,
        (0, 6): 4,
        (0, 7): 2,
    }


@pytest.mark.parametrize(
    ("fen", "expected"),
    [
        ("4k3/8/8/8/1b6/8/3N4/4K3 w - - 0 1", 1),  # white knight d2 pinned on b4-e1
        ("4r1k1/8/8/8/8/8/4N3/4K3 w - - 0 1", 1),
        ("4k3/4n3/8/8/8/8/8/4RK2 w - - 0 1", 1),  # the side not to move is pinned
        ("4k3/8/8/8/1b6/2P5/3N4/4K3 w - - 0 1", 0),  # c3 shields d2
        ("4k3/8/8/8/4r3/8/3N4/4K3 w - - 0 1", 0),  # a rook does not pin on a diagonal
        (START, 0),
    ],
)
def test_pin(fen: str, expected: int) -> None:
    assert scalar("pin_state", fen) == expected


def test_threat_is_what_black_attacks_whoever_is_to_move() -> None:
    # Black king h8: g8 g7 h7. Pawn d5: c4 e4. Knight a8: b6 and c7, which it protects. Pawn c7: b6 d6.
    for turn in "wb":
        fen = f"n6k/2p5/8/3p4/8/8/8/4K3 {turn} - - 0 1"
        assert squares("threat_state", fen) == {"g8", "g7", "h7", "c4", "e4", "b6", "c7", "d6"}


def test_check() -> None:
    assert scalar("check_state", "4k3/8/8/8/8/8/8/4KR1r w - - 0 1") == 0
    assert scalar("check_state", "4k3/8/8/8/8/8/8/4K2r w - - 0 1") == 1
    assert scalar("check_state", "4k3/8/8/8/8/8/8/4K2R b - - 0 1") == 0  # no line from h1 to e8


def test_legal_and_pseudo_legal_moves() -> None:
    # Knight e2 is pinned by the rook e8: its moves are pseudo-legal only; d1 f1 d2 f2 are the king's.
    fen = "4r1k1/8/8/8/8/8/4N3/4K3 w - - 0 1"
    assert squares("legal_moves_state", fen) == {"d1", "f1", "d2", "f2"}
    assert squares("pseudo_legal_moves_state", fen) == {
        "d1",
        "f1",
        "d2",
        "f2",
        "c1",
        "c3",
        "d4",
        "f4",
        "g1",
        "g3",
    }
    # Double check from e8 and b4: only the king moves; e2 is on the rook's line and d2 on the bishop's.
    assert squares("legal_moves_state", "4r1k1/8/8/8/1b6/8/R7/4K3 w - - 0 1") == {"d1", "f1", "f2"}
    # Single check by the rook e8: the rook a2 may block on e2.
    assert squares("legal_moves_state", "4r1k1/8/8/8/8/8/R7/4K3 w - - 0 1") == {"d1", "f1", "d2", "f2", "e2"}
    # The king cannot retreat along the line it is checked on.
    assert squares("legal_moves_state", "4r1k1/8/8/8/8/8/4K3/8 w - - 0 1") == {
        "d1",
        "f1",
        "d2",
        "f2",
        "d3",
        "f3",
    }


def test_legal_moves_are_white_moves_and_pseudo_legal_the_movers() -> None:
    fen = "4k3/8/8/8/8/8/P7/4K3 b - - 0 1"
    assert squares("legal_moves_state", fen) == set()
    assert squares("pseudo_legal_moves_state", fen) == {"d8", "f8", "d7", "e7", "f7"}
    assert squares("legal_moves_state", START) == {f + r for f in "abcdefgh" for r in "34"}


def test_castling_and_promotion_are_destinations() -> None:
    assert {"g1", "c1"} <= squares("legal_moves_state", "4k3/8/8/8/8/8/8/R3K2R w KQ - 0 1")
    attacked = squares("legal_moves_state", "4kr2/8/8/8/8/8/8/R3K2R w KQ - 0 1")  # f1 is attacked
    assert "g1" in attacked  # Rh1-g1, not castling
    assert "g1" not in squares("legal_moves_state", "4kr2/8/8/8/8/8/8/4K1NR w K - 0 1")
    assert squares("legal_moves_state", "n6k/1P6/8/8/8/8/8/7K w - - 0 1") == {"b8", "a8", "g1", "g2", "h2"}


def test_specific_fork_sums_over_knights() -> None:
    assert scalar("specific_fork", "4k3/2N5/8/8/8/8/8/r3K3 w - - 0 1") == 0  # king e8 only (a1 is far from c7)
    assert scalar("specific_fork", "r3k3/2N5/8/8/8/8/8/4K3 w - - 0 1") == 1  # a8 and e8
    assert scalar("specific_fork", "r3k3/2N5/8/8/8/8/8/4K3 b - - 0 1") == 0  # the mover has no knight
    # Two knights with one rook each: no fork in chess, but the quirk adds them up.
    assert scalar("specific_fork", "r6r/2N3N1/8/8/8/8/8/4K2k w - - 0 1") == 0  # c7 a8; g7 attacks e8, not h8
    assert scalar("specific_fork", "r6r/2N5/6N1/8/8/8/8/4K2k w - - 0 1") == 1
    # The rook c8 pins the forking knight to the king c6, so it does not count.
    assert scalar("specific_fork", "r1r1k3/2N5/2K5/8/8/8/8/8 w - - 0 1") == 0
    assert scalar("specific_fork", "n3k3/2N5/8/8/8/8/8/4K3 w - - 0 1") == 0  # knights are no targets


@pytest.mark.parametrize(
    ("fen", "expected"),
    [
        ("q3k3/2N5/8/8/8/8/8/4K3 w - - 0 1", 0),  # queen and king are two kinds
        ("r3r3/2N5/8/8/8/8/8/4K2k w - - 0 1", 1),  # knight: two rooks
        ("7k/8/8/8/2n1n3/3P4/8/4K3 w - - 0 1", 1),  # pawn: two knights
        ("7k/8/8/8/2n1b3/3P4/8/4K3 w - - 0 1", 0),
        ("7k/8/8/2r1r3/3B4/8/8/4K3 w - - 0 1", 1),  # bishop: two rooks
        ("7k/8/8/2n1n3/3B4/8/8/4K3 w - - 0 1", 0),  # knights are no targets of a bishop
        ("7k/8/8/q2R2q1/8/8/8/4K3 w - - 0 1", 1),  # rook: two queens
        ("7k/8/8/r2R2r1/8/8/8/4K3 w - - 0 1", 0),  # rooks are no targets of a rook
        ("7k/8/8/r2Q2r1/8/8/8/4K3 w - - 0 1", 0),  # queens do not fork here
        ("7k/8/8/8/3n4/2P1P3/8/4K3 w - - 0 1", 1),  # quirk: one knight attacked by two pawns counts twice
        (START, 0),
    ],
)
def test_any_fork_needs_two_targets_of_one_kind(fen: str, expected: int) -> None:
    assert scalar("any_fork", fen) == expected


@pytest.mark.parametrize(
    ("rights", "turn", "expected"),
    [("KQkq", "w", (1, 1, 1)), ("Kq", "w", (1, 1, 0)), ("Kq", "b", (1, 0, 1)), ("kq", "w", (0, 0, 0))],
)
def test_castling_rights_of_the_side_to_move(rights: str, turn: str, expected: tuple[int, int, int]) -> None:
    fen = f"r3k2r/8/8/8/8/8/8/R3K2R {turn} {rights} - 0 1"
    names = ("has_castling_rights", "has_kingside_castling_rights", "has_queenside_castling_rights")
    assert tuple(scalar(name, fen) for name in names) == expected


@pytest.mark.parametrize(
    ("fen", "expected"),
    [
        ("4k3/8/8/3pP3/8/8/8/4K3 w - d6 0 1", 1),
        ("4k3/8/8/3pP3/8/8/8/4K3 w - - 0 1", 0),
        (
            "4k3/8/8/r2pP2K/8/8/8/8 w - d6 0 1",
            0,
        ),  # both pawns leave the fifth rank: the king would be in check
        ("4r1k1/8/8/3pP3/8/8/8/4K3 w - d6 0 1", 0),  # the capturing pawn is pinned on the e file
        ("4k3/8/8/3p4/8/8/8/4K3 w - d6 0 1", 0),
    ],
)
def test_legal_en_passant(fen: str, expected: int) -> None:
    assert scalar("has_legal_en_passant", fen) == expected
    # Without another move to d6, the square is a destination exactly when the capture is legal.
    assert ("d6" in squares("legal_moves_state", fen)) == bool(expected)


def test_en_passant_that_is_only_pseudo_legal() -> None:
    assert "d6" in squares("pseudo_legal_moves_state", "4k3/8/8/r2pP2K/8/8/8/8 w - d6 0 1")


def test_can_claim_draw() -> None:
    assert scalar("can_claim_draw", "4k3/8/8/8/8/8/8/R3K3 w - - 100 80") == 1
    assert scalar("can_claim_draw", "4k3/8/8/8/8/8/8/R3K3 w - - 10 80") == 0
    board = chess.Board()
    prop = PROPERTIES["board_to_can_claim_draw"]
    for move in ("Nf3", "Nf6", "Ng1", "Ng8", "Nf3", "Nf6", "Ng1"):
        assert prop(board)[0, 0] == 0
        board.push_san(move)
    assert prop(board)[0, 0] == 1  # 4...Ng8 brings the start position for the third time


@pytest.mark.parametrize(
    ("fen", "expected"),
    [
        (START, 0),
        ("4k3/8/8/8/8/8/8/R3K3 w - - 0 1", 1),  # Ra8+
        ("4k3/8/8/8/8/8/P7/4K3 w - - 0 1", 0),
        ("4k3/P7/8/8/8/8/8/4K3 w - - 0 1", 1),  # a8=Q+
        ("8/P7/8/8/8/8/2k5/K7 w - - 0 1", 0),  # a8=Q or =N checks nothing on c2
        ("8/1P3k2/8/8/8/8/8/K7 w - - 0 1", 0),  # from b8 a queen misses f7
        ("8/3P1k2/8/8/8/8/8/K7 w - - 0 1", 1),  # d8=N+ (a queen on d8 misses f7)
        ("4k3/8/8/8/4N3/8/8/K3R3 w - - 0 1", 1),  # every knight move uncovers the rook
        ("4k3/8/8/8/4P3/8/8/K3R3 w - - 0 1", 0),  # the pawn stays on the line; Re1 has no other way to check
        ("5k2/8/8/8/8/8/8/4K2R w K - 0 1", 1),  # O-O+ (also Rf1+, Rh8+)
        ("8/8/8/2k5/3p4/8/2P5/K7 w - - 0 1", 0),  # c3 and c4 stand beside and before the king
        ("8/8/8/R2pP2k/8/8/8/6K1 w - - 0 1", 0),  # two pawns stand between rook and king ...
        ("8/8/8/R2pP2k/8/8/8/6K1 w - d6 0 1", 1),  # ... and en passant takes both away
        ("8/8/8/8/3k4/8/2P5/K7 w - - 0 1", 1),  # c3+
    ],
)
def test_can_check_next(fen: str, expected: int) -> None:
    assert chess.Board(fen).is_valid() or fen == START
    assert scalar("can_check_next", fen) == expected


@pytest.mark.parametrize(
    ("fen", "expected"),
    [
        ("4k3/8/8/8/8/8/8/2B1KB2 w - - 0 1", 1),
        ("4k3/8/8/8/8/8/8/2B1KB2 b - - 0 1", 0),
        ("2b1kb2/8/8/8/8/8/8/2B1K3 w - - 0 1", 0),
        ("4k3/8/8/8/8/8/8/B1B1K3 w - - 0 1", 1),  # two of one colour count as well
    ],
)
def test_bishop_pair(fen: str, expected: int) -> None:
    assert scalar("has_bishop_pair", fen) == expected


def test_mate_threat_is_the_movers_own_mate_in_one() -> None:
    mate = "6k1/5ppp/8/8/8/8/8/R3K3 {} - - 0 1"  # Ra8#
    assert scalar("has_mate_threat", mate.format("w")) == 1
    assert scalar("has_mate_threat", mate.format("b")) == 0  # White's threat against the mover: not seen
    assert scalar("has_mate_threat", "6k1/5pp1/8/8/8/8/8/R3K3 w - - 0 1") == 0  # Ra8+ Kh7
    assert scalar("has_mate_threat", START) == 0


@pytest.mark.parametrize(
    ("fen", "expected"),
    [
        ("4k3/8/8/3q4/4P3/8/8/4K3 w - - 0 1", 1),
        ("4k3/8/8/3q4/3P4/8/8/4K3 w - - 0 1", 0),
        ("4r1k1/8/8/3q4/4N3/2N5/8/4K3 w - - 0 1", 1),  # c3 takes; e4 is pinned
        ("4r1k1/8/8/8/3q4/8/4N3/4K3 w - - 0 1", 0),  # the only taker is pinned
        ("4k3/8/8/q7/8/8/3P4/R3K3 w - - 0 1", 1),
        # Two queens: the one on the higher square (h8) is looked at, and it cannot be taken; a2 could.
        ("2k4q/8/8/8/8/8/q7/R3K3 w - - 0 1", 0),
        ("2k5/8/8/8/8/8/q7/R3K3 w - - 0 1", 1),
        (START, 0),
    ],
)
def test_can_capture_queen(fen: str, expected: int) -> None:
    assert scalar("can_capture_queen", fen) == expected


def test_has_queen() -> None:
    assert scalar("has_queen", "4k3/8/8/8/8/8/8/3QK3 w - - 0 1") == 1
    assert scalar("has_queen", "4k3/8/8/8/8/8/8/3QK3 b - - 0 1") == 0


@pytest.mark.parametrize(
    ("fen", "expected"),
    [
        ("4k3/8/8/8/8/8/4K3/R6R w - - 0 1", 1),
        ("4k3/8/8/8/8/8/8/R3K2R w - - 0 1", 0),  # the king stands between
        ("R3k3/8/8/8/8/8/4K3/R7 w - - 0 1", 1),
        ("R3k3/8/8/p7/8/8/4K3/R7 w - - 0 1", 0),
        ("4k3/8/8/8/8/8/1R2K3/R7 w - - 0 1", 0),
        ("4k3/8/8/8/8/8/4K3/R6R b - - 0 1", 0),
        ("4k3/8/8/8/8/8/4K3/R6r w - - 0 1", 0),
    ],
)
def test_connected_rooks(fen: str, expected: int) -> None:
    assert scalar("has_connected_rooks", fen) == expected


@pytest.mark.parametrize(
    ("fen", "expected"),
    [
        (START, 0),
        ("4k3/8/8/8/8/8/4K3/R6R w - - 0 1", 1),  # both rooks reach d1
        ("4k3/8/8/8/8/5N2/8/1N2K3 w - - 0 1", 1),  # Nbd2, Nfd2
        ("4k3/8/8/8/1b6/5N2/3N4/4K3 w - - 0 1", 0),  # d2 is pinned, and f3 does not share its square
        ("4k3/8/8/3p4/2P1P3/8/8/4K3 w - - 0 1", 1),  # quirk: cxd5 and exd5
        ("4k3/P7/8/8/8/8/8/4K3 w - - 0 1", 0),  # four promotions of one pawn are one piece
        ("4k3/8/8/2PpP3/8/8/8/4K3 w - d6 0 1", 1),  # cxd6 and exd6 en passant
    ],
)
def test_ambiguous_moves(fen: str, expected: int) -> None:
    assert scalar("ambiguous_moves", fen) == expected


def _slow(name: str, board: chess.Board) -> np.ndarray:
    """Twin, written with python-chess moves, of what the package computes without move objects."""
    legal = list(board.legal_moves)
    state = np.zeros((8, 8), dtype=np.int8)
    if name == "threat_state":
        return np.array([[board.is_attacked_by(False, 8 * r + c) for c in range(8)] for r in range(8)], np.int8)
    if name in ("legal_moves_state", "pseudo_legal_moves_state"):
        moves = legal if name == "legal_moves_state" else board.pseudo_legal_moves
        for move in moves:
            if board.turn or name != "legal_moves_state":
                state[divmod(move.to_square, 8)] = 1
        return state
    ours = [s for s in chess.SQUARES if board.color_at(s) == board.turn]
    if name == "pin_state":
        found = any(board.is_pinned(board.color_at(s), s) for s in board.piece_map())
    elif name == "can_check_next":
        found = any(board.gives_check(move) for move in legal)
    elif name == "specific_fork":
        targets = [
            board.piece_type_at(t)
            for s in ours
            if board.piece_type_at(s) == chess.KNIGHT and not board.is_pinned(board.turn, s)
            for t in board.attacks(s)
            if board.color_at(t) == (not board.turn)
        ]
        found = sum(kind in (chess.ROOK, chess.QUEEN, chess.KING) for kind in targets) >= 2
    elif name == "ambiguous_moves":
        sources = defaultdict(set)
        for move in legal:
            sources[board.piece_type_at(move.from_square), move.to_square].add(move.from_square)
        found = any(len(squares) > 1 for squares in sources.values())
    elif name == "can_capture_queen":
        queens = [s for s in chess.SQUARES if board.piece_at(s) == chess.Piece(chess.QUEEN, not board.turn)]
        found = bool(queens) and any(move.to_square == queens[-1] for move in legal)
    elif name == "has_legal_en_passant":
        found = any(board.is_en_passant(move) for move in legal)
    else:
        assert name == "has_mate_threat"
        mirrored, found = board.mirror(), False
        for move in mirrored.legal_moves:
            mirrored.push(move)
            found = found or mirrored.is_checkmate()
            mirrored.pop()
    return np.array([[found]], dtype=np.int8)


TWINS = [
    "threat_state",
    "legal_moves_state",
    "pseudo_legal_moves_state",
    "pin_state",
    "can_check_next",
    "specific_fork",
    "ambiguous_moves",
    "can_capture_queen",
    "has_legal_en_passant",
    "has_mate_threat",
]


def test_fast_paths_equal_a_slow_twin_over_random_games() -> None:
    """Random play reaches checks, pins, promotions, castling and en passant, with either side to move."""
    rng, seen = random.Random(0), dict.fromkeys(TWINS, 0)
    for number in range(8):
        board = chess.Board()
        for move in ["e4", "a6", "e5", "d5"] if number % 2 else ():  # en passant is rare in random play
            board.push_san(move)
        while not board.is_game_over(claim_draw=False) and len(board.move_stack) < 70:
            for name in TWINS:
                expected, got = _slow(name, board), PROPERTIES[f"board_to_{name}"](board)
                seen[name] += int(expected.any())
                np.testing.assert_array_equal(got, expected, f"{name} of {board.fen()}")
            moves = list(board.legal_moves)
            special = [m for m in moves if board.is_en_passant(m) or board.is_castling(m) or m.promotion]
            board.push(rng.choice(special or moves))
    assert min(seen.values()) > 0, seen


def test_slot_names() -> None:
    assert slot_name(HEADLINE, 21 * 12 + 7) == "white knight on f3"
    assert slot_name(HEADLINE, 0) == "black king on a1"
    assert slot_name("board_to_piece_state", 63 * 13 + 6) == "blank on h8"
    assert slot_name("board_to_piece_color_state", 2) == "white piece on a1"
    assert slot_name("board_to_threat_state", 28) == "e4 attacked by Black"
    for name, prop in PROPERTIES.items():
        assert len({slot_name(name, index) for index in range(prop.slots)}) == prop.slots
    with pytest.raises(ValueError, match="0 to 767"):
        slot_name(HEADLINE, 768)
    with pytest.raises(ValueError, match="nearest is 'board_to_pin_state'"):
        slot_name("board_to_pins_state", 0)
