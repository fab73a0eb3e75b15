"""The movetext of PGN games: the SAN of each ply, without comments, variations, annotation, clocks and results.

A word of movetext is read once, as a sequence of parts: move numbers, moves, and annotation. Another word is a misspelt
move when it names a square or has only letters of moves, and otherwise a remark, such as the name of an opening. What
follows a remark counts only when the next move number shows that no move is missing, so that no misspelt move can
change the colours of the players.

Source: PGN specification and implementation guide (1994), section 8.2. Beyond it, the usual other spellings are read:
coordinates (e2e4, e2-e4), `0-0`, `exd5 e.p.`, promotions as a8=Q, a8Q, a8q, a8/Q or a8(Q), and typographic dashes.
"""

from __future__ import annotations

import re
from itertools import chain

from glassmoe.data.sources import Skip

from .characters import MAX_PLIES, VOCABULARY
from .headers import DETAIL_CHARS, has_moves, shown

# Two patterns, because a search with a known first byte takes two thirds of the time, and escaped lines are rare.
_COMMENTS = re.compile(rb"\{[^}]*\}?|;[^\n]*")
_COMMENTS_AND_ESCAPES = re.compile(_COMMENTS.pattern + rb"|^%[^\n]*", re.MULTILINE)
# [%clk 0:03:00] outside of a comment, and a line that begins like a tag.
_COMMANDS = re.compile(rb"\[[^\]\n]*\]|^\[[^\n]*", re.MULTILINE)
_APART_PROMOTION = re.compile(rb"(?<=[a-h][18])\s*(?:=?\s*\(=?([QRBNqrbn])\)|=\s*([QRBNqrbn])(?!\w))")
_SPACED_EQUALS = re.compile(rb"=\s|\s=")
_INNERMOST = re.compile(rb"\([^()]*\)")
_MAX_NESTING = 64
# A result, or a first move where games lack results, ends the game before it.
_RESULTS = {"1-0", "0-1", "1/2-1/2", "1/2", "*"}
_GAME_END = re.compile(r"(?<!\S)(?:1-0|0-1|1/2-1/2|1/2|\*)(?!\S)|(?<!\S)(?=1\.(?!\s*\.))")
_APART_NUMBER = re.compile(r"(?<!\S)(\d+)\.? \.\.\.(?=[ \w])")
_TYPOGRAPHY = str.maketrans(
    {
        **dict.fromkeys("\u2010\u2011\u2012\u2013\u2014\u2015\u2212\ufe58\ufe63\uff0d", "-"),
        **dict.fromkeys("\u200b\u200c\u200d\u2060\ufeff\u00ad", None),
        "\u00bd": "1/2",
        "\u2044": "/",
        "\u00d7": "x",
        "\u2026": "...",
    }
)

_NULL = "0000"
_PARTS = re.compile(
    r"""
    (?P<null>--|\bZ0\b|@@@@|\b0000\b)
  | (?P<number>\b[0-9]{1,5}\.(?:\.\.|(?![.0-9])|(?=0-0)))
  | (?P<castling>(?<![\w-])[O0o]-[O0o](?P<long>-[O0o])?(?!\w))(?P<castling_check>[+\#](?![-=/]))?
  | (?: (?P<piece>[KQRBN]) (?P<origin>[a-h]?[1-8]?) (?P<takes>[x:-]?) (?P<target>[a-h][1-8]) (?:=N\b)?
      | P? (?P<pawn>(?:[a-h][1-8]?)?) (?P<pawn_takes>[x:-]?)
        (?: (?P<square>[a-h][2-7] | (?: (?<=[a-h][1-8]) | (?<=[a-h][1-8][x:-])) [a-h][18](?![=/:(]?[QRBNqrbn]))
          | (?P<last>[a-h][18])[=/:]?\(?(?P<promotion>[QRBNqrbn])(?![1-8])\)? )
    )
    (?P<check>\+\+(?![-=/])|[+\#](?![-=/]))?
  | e\.?p\.?(?!\w)                                   # en passant
  | (?<=[1-8+\#!?])(?:T?N|D|ch|mate)(?!\w)           # novelty, diagram, check
  | (?<![^\W_])[0-9]+(?:\.\.)?(?=[KQRBNPOa-h.])      # a number without its dot, or with two
  | (?<![^\W_])[0-9]+(?:[.:,/][0-9]+)*['"smh%]*(?!\w) # numbers, clocks, evaluations
  | \$[0-9]+
  | [^\w\s@\u2654-\u265f]                            # symbols, but not chessmen
    """,
    re.VERBOSE,
)
_ANNOTATIONS = {"N", "TN", "D", "ch", "dis", "dbl", "mate", "RR", "..."}
_IN_A_MOVE = re.compile(r"[a-h][0-9]|[O0o]-[O0o]|@")
_COORDINATES = re.compile(r"[a-h][1-8]x?[a-h][1-8]")

# At most a few ten thousand moves can be spelt, so these cannot grow without bound.
_known_sans: set[str] = set()
_coordinates: set[str] = set()

_WHITE_NUMBERS = [f"{number}." for number in range(1, MAX_PLIES // 2 + 2)]
_BLACK_NUMBERS = [f"{number}..." for number in range(1, MAX_PLIES // 2 + 2)]


def split_games(movetext: bytes) -> list[str]:
    """The main lines of at least one game, without results. Raises Skip for unbalanced variations."""
    text = " ".join(plain_text(_main_line(movetext)).split())
    if " ..." in text:
        text = _APART_NUMBER.sub(r"\1...", text)
    head, _, last = text.rpartition(" ")
    game = head if last in _RESULTS else text
    begins_again = " 1." in game and game.count(" 1.") > game.count(" 1...")
    if not begins_again and not any(mark in game for mark in ("1-0", "0-1", "1/2", "*")):
        return [game]  # usually one game, perhaps with its result
    return [part for part in _GAME_END.split(text) if has_moves(part.encode())] or [""]


def _main_line(movetext: bytes) -> bytes:
    if b"%" in movetext and (movetext.startswith(b"%") or b"\n%" in movetext):
        movetext = _COMMENTS_AND_ESCAPES.sub(b" ", movetext)
    elif b"{" in movetext or b";" in movetext:
        movetext = _COMMENTS.sub(b" ", movetext)
    if b"[" in movetext:
        movetext = _COMMANDS.sub(b" ", movetext)
    if b"(" in movetext or _SPACED_EQUALS.search(movetext):
        movetext = _APART_PROMOTION.sub(rb"=\1\2", movetext)
    depth = 0
    while b"(" in movetext or b")" in movetext:
        movetext, removed = _INNERMOST.subn(b" ", movetext)
        depth += 1
        if not removed or depth > _MAX_NESTING:
            raise Skip("unbalanced variation", shown(movetext[movetext.find(b"(") :]))
    return movetext


def plain_text(raw: bytes) -> str:
    """Movetext with plain dashes and fractions. What is not UTF-8 counts as Windows' code page 1252."""
    if raw.isascii():
        return raw.decode("ascii")
    try:
        return raw.decode("utf-8").translate(_TYPOGRAPHY)
    except UnicodeDecodeError:
        return raw.decode("cp1252", "replace").translate(_TYPOGRAPHY)


def san_tokens(main_line: str, checked: bool = True) -> list[str]:
    """The SAN of each ply. `checked`: a board will replay the moves; if not, move numbers that contradict the moves are
    an error, too. Raises Skip for text that is not a list of moves."""
    words = main_line.split()
    sans = list(chain.from_iterable(map(_parts_of_word, words)))
    # The usual numbers, `1. e4 e5` or `1. e4 1... e5`, go at once.
    if len(sans) > 2 and sans[2] == "1..." and (black := sans[2::4]) == _BLACK_NUMBERS[: len(black)]:
        del sans[2::4]
    if (white := sans[::3]) == _WHITE_NUMBERS[: len(white)]:
        del sans[::3]
    if not _known_sans.issuperset(sans):
        sans = _without_numbers(list(chain.from_iterable(map(_parts_of_word, words))), checked)
    if not sans:
        raise Skip("no moves")
    if len(sans) > MAX_PLIES:
        raise Skip("too long", f"{len(sans)} plies")
    return sans


def needs_board(sans: list[str]) -> bool:
    """Whether a move is in coordinates (g1f3), which do not name the piece."""
    return bool(_coordinates) and not _coordinates.isdisjoint(sans)


def _without_numbers(parts: list[str], checked: bool) -> list[str]:
    """The moves among the parts of a game. Raises Skip for a null move, for a word that may be a misspelt move, and
    for numbers that contradict the moves where nothing else would notice."""
    sans: list[str] = []
    remark, remarked = "", 0
    for part in parts:
        if part in _known_sans:
            sans.append(part)
        elif part == _NULL:
            raise Skip("null move", f"after {len(sans)} plies")
        elif part.startswith("?"):
            if _IN_A_MOVE.search(part) or all(letter in VOCABULARY for letter in part[1:]):
                raise _not_a_move(part[1:])
            remark, remarked = remark or part[1:], len(sans)
        elif 2 * (int(part.rstrip(".")) - 1) + part.endswith("...") == len(sans):
            remark = ""
        elif remark:
            raise _not_a_move(remark)
        elif not checked or (not sans and part not in ("0.", "1.", "1...")):
            # The rest of a game may be legal from the start position, too.
            raise Skip("wrong move number", f"{part} after {len(sans)} plies")
    if remark and not checked and len(sans) > remarked:
        raise _not_a_move(remark)
    return sans


def _not_a_move(word: str) -> Skip:
    foreign = next((character for character in word if character not in VOCABULARY), None)
    if foreign is None:
        return Skip("not a move", word[:DETAIL_CHARS])
    return Skip("foreign characters", f"{foreign!r} in {word[:DETAIL_CHARS]!r}")


def _read_word(word: str) -> list[str]:
    """The parts of a word: moves, move numbers, null moves (0000), and `?` before a remark or an unknown word."""
    parts: list[str] = []
    end = 0
    if word == "..":
        parts = [_NULL]
    elif word not in _ANNOTATIONS:
        while end < len(word) and (part := _PARTS.match(word, end)):
            end = part.end()
            if part["null"]:
                parts.append(_NULL)
            elif part["number"]:
                parts.append(f"{int(part['number'].rstrip('.'))}{'...' if '..' in part['number'] else '.'}")
            elif san := _san(part):
                _known_sans.add(san)
                if _COORDINATES.match(san):
                    _coordinates.add(san)
                parts.append(san)
        if end < len(word):
            parts = ["?" + word]
    return parts


class _Words(dict[str, list[str]]):
    """Word -> its parts, read when it is first met. Words repeat, and reading each once takes a third of the time."""

    def __missing__(self, word: str) -> list[str]:
        parts = _read_word(word)
        if len(self) < _MAX_KNOWN_WORDS:
            self[word] = parts
        return parts


_MAX_KNOWN_WORDS = 100_000
_parts_of_word = _Words().__getitem__


def _san(part: re.Match[str]) -> str:
    """The move of a part; "" for annotation."""
    if part["castling"]:
        return ("O-O-O" if part["long"] else "O-O") + (part["castling_check"] or "")
    check = (part["check"] or "")[:1]
    if part["piece"]:
        takes = "x" if part["takes"] in ("x", ":") else ""
        return f"{part['piece']}{part['origin']}{takes}{part['target']}{check}"
    target = part["square"] or (part["last"] and f"{part['last']}={part['promotion'].upper()}")
    if not target:
        return ""
    return f"{part['pawn']}{'x' if part['pawn_takes'] in ('x', ':') else ''}{target}{check}"
