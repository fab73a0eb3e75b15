"""Board-state properties: what can be true of a chess position (MoE-X, chess evaluation).

Definitions follow SAE_BoardGameEval (Karvonen et al. 2024, "Measuring Progress in Dictionary Learning for
Language Model Interpretability with Board Game Models"); its quirks are kept, because published numbers
depend on them, and each is named in the text of the function concerned.

Every property is computed as one 64-bit board per kept class: bit 0 is a1, bit 7 is h1, bit 63 is h8. A
*slot* is one yes/no question of a property ("white knight on f3"). Slots are ordered square first, then
class in ascending order, so slot = square * C + class. A two-valued property keeps only the class 1, a 0/1
scalar per square.

Array legend: C kept classes, S = 64 squares (or 1 for a property of the whole board), B = S * C slots.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .board_position import ALL_SQUARES, BISHOP, KING, KNIGHT, PAWN, QUEEN, ROOK, Position

if TYPE_CHECKING:
    import chess

PIECE_NAMES = ("", "pawn", "knight", "bishop", "rook", "queen", "king")
# Attacker -> targets of `board_to_any_fork`.
FORKS = {
    PAWN: (KNIGHT, BISHOP, ROOK, QUEEN, KING),
    KNIGHT: (ROOK, QUEEN, KING),
    BISHOP: (ROOK, QUEEN, KING),
    ROOK: (QUEEN, KING),
}
_WHITE_AT_START = {PAWN: 0xFF00, KNIGHT: 0x42, BISHOP: 0x24, ROOK: 0x81, QUEEN: 0x08, KING: 0x10}
_BLACK_AT_START = {kind: mask << (40 if kind == PAWN else 56) for kind, mask in _WHITE_AT_START.items()}


def _pieces(position: Position, initial: bool) -> tuple[int, ...]:
    """Twelve boards, black king ... black pawn, white pawn ... white king; `initial` drops pieces at home."""
    white, black = (int(position.board.occupied_co[side]) for side in (True, False))
    masks = []
    for kind in range(KING, 0, -1):
        masks.append(position.kinds[kind] & black & ~(_BLACK_AT_START[kind] if initial else 0))
    for kind in range(1, KING + 1):
        masks.append(position.kinds[kind] & white & ~(_WHITE_AT_START[kind] if initial else 0))
    return tuple(masks)


def _piece_state(position: Position) -> tuple[int, ...]:
    masks = _pieces(position, initial=False)
    return (*masks[:6], ~position.board.occupied & ALL_SQUARES, *masks[6:])


def _piece_color(position: Position) -> tuple[int, ...]:
    board = position.board
    return (board.occupied_co[False], ~board.occupied & ALL_SQUARES, board.occupied_co[True])


def _destinations(targets: Sequence[tuple[int, int, int]]) -> int:
    union = 0
    for _, _, mask in targets:
        union |= mask
    return union


def _legal_moves(position: Position) -> int:
    """Quirk: destinations of *White's* legal moves, so empty when Black is to move (never so at dots)."""
    return _destinations(position.legal_targets) if position.turn else 0


def _pseudo_legal_moves(position: Position) -> int:
    """Destinations of the side to move, pinned pieces and a king that walks into check included."""
    union = _destinations(position.pseudo_targets)
    odd = [*position.castling]
    if position.board.ep_square is not None:
        odd += position.board.generate_pseudo_legal_ep()
    for move in odd:
        union |= 1 << move.to_square
    return union


def _attacked_targets(position: Position, attacker: int, targets: int) -> int:
    """(attacker, target) pairs over all unpinned attackers of one kind: a target attacked twice counts
    twice."""
    total = 0
    for square in position.squares(position.us & position.kinds[attacker]):
        if square not in position.our_pins:
            total += (position.board.attacks_mask(square) & position.them & targets).bit_count()
    return total


def _specific_fork(position: Position) -> int:
    """Quirk: attacked rooks, queens and kings are summed over the knights, not counted for one knight."""
    targets = position.board.rooks | position.board.queens | position.board.kings
    return int(_attacked_targets(position, KNIGHT, targets) >= 2)


def _any_fork(position: Position) -> int:
    """Quirk: both targets must be of the same kind (a knight on king and queen alone does not count)."""
    for attacker, targets in FORKS.items():
        for target in targets:
            them = position.them & position.kinds[target]
            # One target can still count twice, through two attackers; none cannot.
            if them and _attacked_targets(position, attacker, them) >= 2:
                return 1
    return 0


def _mate_threat(position: Position) -> int:
    """Quirk: the original mirrors the board to "pass" the turn, but `mirror()` swaps colours *and* turn,
    which is the same position again. So this is mate in one for the side to move, not a threat by its
    opponent."""
    if not position.can_check:
        return 0
    board = position.board
    for move in list(board.legal_moves):
        board.push(move)
        mates = board.is_checkmate()
        board.pop()
        if mates:
            return 1
    return 0


def _can_capture_queen(position: Position) -> int:
    """Quirk: only the enemy queen found first is looked at, which is the one on the highest-numbered
    square."""
    queens = position.them & position.board.queens
    if not queens:
        return 0
    return int(bool(_destinations(position.legal_targets) & (1 << (queens.bit_length() - 1))))


def _connected_rooks(position: Position) -> int:
    rooks = position.us & position.board.rooks
    straight = position.chess.BB_RANK_ATTACKS, position.chess.BB_FILE_ATTACKS
    masks = position.chess.BB_RANK_MASKS, position.chess.BB_FILE_MASKS
    for square in position.squares(rooks):
        for attacks, mask in zip(straight, masks, strict=True):
            if attacks[square][mask[square] & position.board.occupied] & rooks:
                return 1
    return 0


def _ambiguous_moves(position: Position) -> int:
    """Quirk: pawns count too, although two pawns that capture on one square never need more than SAN's
    file."""
    seen = [0] * 7
    for kind, _, mask in position.legal_targets:
        if seen[kind] & mask:
            return 1
        seen[kind] |= mask
    return 0


@dataclass(frozen=True)
class BoardProperty:
    """One of the properties. Call it with a `chess.Board` for its values, int8 [8, 8] or [1, 1].

    squares: S, 64 or 1. classes: the C kept class values, ascending; (1,) for a two-valued property.
    masked: the class value that is left out of the slots, or None. words: the slot in words, with {square}
    and {piece}. bitboards: position -> one 64-bit board per kept class.
    """

    name: str
    squares: int
    classes: tuple[int, ...]
    masked: int | None
    words: str
    bitboards: Callable[[Position], tuple[int, ...]]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Rows, columns, kept classes."""
        side = 8 if self.squares == 64 else 1
        return (side, side, len(self.classes))

    @property
    def slots(self) -> int:
        """B: number of yes/no questions."""
        return self.squares * len(self.classes)

    def one_hot(self, board: chess.Board) -> NDArray[np.uint8]:
        """uint8 [B], in slot order."""
        words_1C = np.array([self.bitboards(Position(board))], dtype=np.uint64)
        slots_1B = unpack_slots(self, words_1C)
        return slots_1B.reshape(self.slots)

    def __call__(self, board: chess.Board) -> NDArray[np.int8]:
        slots_SC = self.one_hot(board).reshape(self.squares, len(self.classes)).astype(np.int8)
        values_S = slots_SC @ np.array(self.classes, dtype=np.int8)
        return values_S.reshape(self.shape[:2]).astype(np.int8)


def unpack_slots(prop: BoardProperty, words_NC: NDArray[np.uint64]) -> NDArray[np.uint8]:
    """64-bit boards [N, C] -> 0/1 slots uint8 [N, B] in slot order."""
    count = len(words_NC)
    bytes_Nb = np.ascontiguousarray(words_NC, dtype="<u8").view(np.uint8)
    bytes_NC8 = bytes_Nb.reshape(count, len(prop.classes), 8)
    bits_NCS = np.unpackbits(bytes_NC8, axis=2, bitorder="little")[:, :, : prop.squares]
    return np.ascontiguousarray(bits_NCS.transpose(0, 2, 1)).reshape(count, prop.slots)


def _one(function: Callable[[Position], int]) -> Callable[[Position], tuple[int, ...]]:
    return lambda position: (int(function(position)),)


def _squares(name: str, words: str, function: Callable[[Position], int]) -> BoardProperty:
    return BoardProperty(name, 64, (1,), None, words, _one(function))


def _scalar(name: str, words: str, function: Callable[[Position], int]) -> BoardProperty:
    return BoardProperty(name, 1, (1,), None, words, _one(function))


_ALL_PIECES = tuple(range(-6, 7))
_NOT_BLANK = (-6, -5, -4, -3, -2, -1, 1, 2, 3, 4, 5, 6)
_ON = "{piece} on {square}"

_TABLE = (
    BoardProperty("board_to_piece_state", 64, _ALL_PIECES, None, _ON, _piece_state),
    BoardProperty("board_to_piece_masked_blank_state", 64, _NOT_BLANK, 0, _ON, lambda p: _pieces(p, False)),
    # Quirk: a square that holds what it held at the start counts as blank, so it never is a positive.
    BoardProperty("board_to_piece_masked_blank_and_initial_state", 64, _NOT_BLANK, 0, _ON, lambda p: _pieces(p, True)),
    BoardProperty("board_to_piece_color_state", 64, (-1, 0, 1), None, "{color} on {square}", _piece_color),
    _scalar("board_to_pin_state", "a piece of either side is pinned", lambda p: bool(p.our_pins or p.their_pins)),
    # Quirk: "the opponent" is always Black, which is right at dots only.
    _squares("board_to_threat_state", "{square} attacked by Black", lambda p: p.attacked_by_black),
    _scalar("board_to_check_state", "side to move is in check", lambda p: bool(p.checkers)),
    _squares("board_to_legal_moves_state", "legal White move to {square}", _legal_moves),
    _squares("board_to_pseudo_legal_moves_state", "pseudo-legal move to {square}", _pseudo_legal_moves),
    _scalar("board_to_specific_fork", "knights attack two of rook, queen, king", _specific_fork),
    _scalar("board_to_any_fork", "two pieces of one kind are forked", _any_fork),
    _scalar("board_to_has_castling_rights", "may still castle", lambda p: p.board.has_castling_rights(p.turn)),
    _scalar(
        "board_to_has_kingside_castling_rights",
        "may still castle kingside",
        lambda p: p.board.has_kingside_castling_rights(p.turn),
    ),
    _scalar(
        "board_to_has_queenside_castling_rights",
        "may still castle queenside",
        lambda p: p.board.has_queenside_castling_rights(p.turn),
    ),
    _scalar("board_to_has_legal_en_passant", "legal en-passant capture", lambda p: bool(p.legal_en_passant)),
    _scalar("board_to_can_claim_draw", "can claim a draw", lambda p: p.board.can_claim_draw()),
    _scalar("board_to_can_check_next", "can give check", lambda p: p.can_check),
    _scalar("board_to_has_bishop_pair", "has two bishops", lambda p: (p.us & p.board.bishops).bit_count() >= 2),
    _scalar("board_to_has_mate_threat", "mate in one for the side to move", _mate_threat),
    _scalar("board_to_can_capture_queen", "can capture the queen", _can_capture_queen),
    _scalar("board_to_has_queen", "still has a queen", lambda p: bool(p.us & p.board.queens)),
    _scalar("board_to_has_connected_rooks", "has connected rooks", _connected_rooks),
    _scalar("board_to_ambiguous_moves", "two pieces of one kind reach one square", _ambiguous_moves),
)

PROPERTIES: dict[str, BoardProperty] = {prop.name: prop for prop in _TABLE}

HEADLINE = "board_to_piece_masked_blank_and_initial_state"

# The "strategy" group of SAE_BoardGameEval: scores are the unweighted mean over these fourteen.
STRATEGY = (
    "board_to_threat_state",
    "board_to_legal_moves_state",
    "board_to_check_state",
    "board_to_can_check_next",
    "board_to_has_queen",
    "board_to_can_capture_queen",
    "board_to_has_bishop_pair",
    "board_to_has_castling_rights",
    "board_to_has_kingside_castling_rights",
    "board_to_has_queenside_castling_rights",
    "board_to_any_fork",
    "board_to_pin_state",
    "board_to_has_legal_en_passant",
    "board_to_ambiguous_moves",
)


def get_property(name: str) -> BoardProperty:
    """The property called `name`; ValueError with the nearest known name otherwise."""
    if name in PROPERTIES:
        return PROPERTIES[name]
    from difflib import get_close_matches

    near = get_close_matches(name, PROPERTIES, n=1, cutoff=0.0)[0]
    raise ValueError(f"no board property is called {name!r}; the nearest is {near!r}")


def slot_name(name: str, index: int) -> str:
    """The slot in words, e.g. "white knight on f3". ValueError for an unknown property or slot."""
    prop = get_property(name)
    if not 0 <= index < prop.slots:
        raise ValueError(f"{name} has slots 0 to {prop.slots - 1}, not {index}")
    square, which = divmod(index, len(prop.classes))
    value = prop.classes[which]
    side = "blank" if value == 0 else "white" if value > 0 else "black"
    return prop.words.format(
        square="abcdefgh"[square % 8] + str(square // 8 + 1),
        piece=f"{side} {PIECE_NAMES[abs(value)]}".strip(),
        color=side if value == 0 else f"{side} piece",
    )
