"""Games from files: PGN (Portable Game Notation) or ready-made lines to a prepared corpus of chess text.

Comments, variations, annotation glyphs, clocks, move numbers and results are dropped; what stays is the text
of `chess_text.py`. By default every game is replayed from the start position and its moves are rewritten
canonically; `trust=True` converts the text alone, many times faster. A game that cannot be used is counted
with its reason, never fatal.

Source: PGN specification and implementation guide (1994), sections 8.1 (tags) and 8.2 (movetext). It differs
from the letter in one thing: a header line ends an unterminated comment, so that one broken game cannot
swallow the next.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from glassmoe.console import bar

from .chess_text import MAX_PLIES, VOCABULARY, move_text, require_chess
from .corpus import CorpusWriter, PackedGames, pack_games
from .parallel import ordered_map
from .sources import MAX_GAME_BYTES, STDIN, Chunk, Source, discover

_EXAMPLES = 3
_DETAIL_CHARS = 80

_HEADERS = re.compile(rb'(?:^[ \t]*\[\w+[ \t]+"[^\n]*(?:\n|\Z))+', re.MULTILINE)
_START_TAGS = re.compile(rb'^[ \t]*\[(SetUp|FEN|Variant)[ \t]+"([^"\n]*)"', re.MULTILINE | re.IGNORECASE)
_START_BOARD = b"rnbqkbnr/pppppppp/8/8/8/8/PPPPPPPP/RNBQKBNR w KQkq"
_STANDARD = {b"", b"standard", b"chess", b"normal", b"from position"}

_COMMENTS = re.compile(rb"\{[^}]*(?:\}|\Z)|;[^\n]*|^%[^\n]*", re.MULTILINE)
_INNERMOST = re.compile(rb"\([^()]*\)")
_MAX_NESTING = 64
# A result, or a first move where games lack results, ends the game before it.
_GAME_END = re.compile(rb"(?<!\S)(?:1-0|0-1|1/2-1/2|1/2|\*)(?!\S)|(?<!\S)(?=1\.(?!\s*\.))")
_NOT_MOVES = re.compile(rb"\$\d+|[!?]+|e\.p\.?|(?<![\w/-])\d+(?=\s|\Z)|(?:(?<![\w/-])\d+)?\.+")
_ZERO_CASTLING = re.compile(rb"(?<![\w-])0-0(-0)?(?![\w-])")
_SAN = re.compile(r"(?:[KQRBN]?[a-h]?[1-8]?[x-]?[a-h][1-8](?:=?[QRBN])?|O-O(?:-O)?)[+#]?")
_PLAIN_SAN = re.compile(r"(?:([KQRBN])x?|(?:([a-h])x)?)([a-h][1-8])(?:=([QRBN]))?[+#]?")


class Skip(Exception):
    """A game that cannot be used: `reason` is what the manifest counts by, `detail` is for its examples."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail


class ChunkResult(NamedTuple):
    """What became of a chunk: `numbers` are the places of the kept games in it; `skipped` (place, reason,
    detail)."""

    file: int
    games: PackedGames
    numbers: list[int]
    skipped: list[tuple[int, str, str]]
    seen: int


def prepare_chess(
    inputs: Sequence[str | Path],
    out: Path,
    *,
    trust: bool = False,
    workers: int | None = None,
    valid_share: float = 0.01,
    max_games: int | None = None,
    min_plies: int = 1,
    overwrite: bool = False,
    progress: bool = True,
) -> dict[str, Any]:
    """Prepares the corpus `out` from files of games and returns its manifest.

    Inputs are .pgn files, .txt files with one `;1.e4 e5 ...` a line, each plain or as .zst, .bz2 or .gz,
    folders of them, and `-` for standard input. `trust` skips the legality check and needs no python-chess.
    `max_games` counts usable games before duplicates are removed. The result does not depend on `workers`
    (None: one a CPU).

    Raises ValueError for an input that is missing or of an unknown kind, for an `out` that holds a finished
    corpus already, and when no game can be used.
    """
    if max_games is not None and max_games < 1:
        raise ValueError(f"max_games is a number of games, at least 1, or None for all, not {max_games}")
    names, ignored = discover(inputs)
    if not trust:
        require_chess("Checking games (anything but trust=True, --trust)")
    new = CorpusWriter(out, valid_share=valid_share, overwrite=overwrite)
    size = None if STDIN in names else sum(Path(name).stat().st_size for name in names)
    with new as writer, bar(size, "preparing games", "B", show=progress, lines=True, unit_scale=True) as shown:
        sources = [Source(name, number, shown.update) for number, name in enumerate(names)]
        tally = _Tally(names)
        chunks = (chunk for source in sources for chunk in source.chunks())
        read = partial(read_chunk, checked=not trust, min_plies=min_plies)
        results = ordered_map(read, chunks, workers)
        finished = sources
        for result in results:
            room = None if max_games is None else max_games - writer.games
            writer.add(tally.take(result, room))
            shown.set_postfix(games=writer.games, skipped=tally.total, refresh=False)
            if writer.games == max_games:
                # How far reading has run ahead depends on the workers; the manifest must not.
                finished = sources[: result.file]
                break
        results.close()
        tally.breaks(finished)
        if not writer.games:
            raise ValueError(f"no usable game in {', '.join(names)}: {tally.summary()}")
        return writer.finish(
            {
                "kind": "chess",
                "checked": not trust,
                "synthetic": False,
                "min_plies": min_plies,
                "max_games": max_games,
                "skipped": tally.skipped,
                "ignored_files": ignored,
                "inputs": [source.about(source in finished) for source in sources[: len(finished) + 1]],
            }
        )


class _Tally:
    """Counts of what was skipped, with the first examples of each reason."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = names
        self.skipped: dict[str, dict[str, Any]] = {}
        self.total = 0
        self._seen = [0] * len(names)

    def take(self, result: ChunkResult, room: int | None) -> PackedGames:
        """The games of a result, at most `room`; what was skipped after the last one is not counted."""
        games, end = result.games, result.seen
        if room is not None and len(result.numbers) >= room:
            end = result.numbers[room - 1] + 1
            lengths = games.lengths[:room]
            games = PackedGames(games.tokens[: int(lengths.sum())], lengths, games.hashes[:room])
        for number, reason, detail in result.skipped:
            if number < end:
                self._count(reason, self.names[result.file], self._seen[result.file] + number + 1, detail)
        self._seen[result.file] += result.seen
        return games

    def breaks(self, sources: Sequence[Source]) -> None:
        for source in sources:
            if source.error:
                self._count("unreadable stream", source.name, self._seen[source.number] + 1, source.error)

    def summary(self) -> str:
        if not self.skipped:
            return "the input is empty"
        first = next(iter(self.skipped.values()))["examples"][0]
        counts = ", ".join(f"{entry['count']} {reason}" for reason, entry in self.skipped.items())
        return f"skipped {counts} (first: game {first['game']} of {first['file']}: {first['detail']})"

    def _count(self, reason: str, file: str, game: int, detail: str) -> None:
        entry = self.skipped.setdefault(reason, {"count": 0, "examples": []})
        entry["count"] += 1
        self.total += 1
        if len(entry["examples"]) < _EXAMPLES:
            entry["examples"].append({"file": file, "game": game, "detail": detail})


def read_chunk(chunk: Chunk, *, checked: bool, min_plies: int = 1) -> ChunkResult:
    """The usable games of a chunk as canonical text, packed; runs in a worker."""
    replayer = Replayer() if checked else None
    texts: list[bytes] = []
    numbers: list[int] = []
    skipped: list[tuple[int, str, str]] = []
    seen = 0
    for seen, game in enumerate(_games(chunk), start=1):
        try:
            if isinstance(game, Skip):
                raise game
            sans = san_tokens(game)
            if len(sans) < min_plies:
                raise Skip("too few plies", f"{len(sans)} plies")
            if replayer:
                sans = replayer.canonical(sans)
            texts.append(move_text(sans).encode("ascii"))
            numbers.append(seen - 1)
        except Skip as skip:
            skipped.append((seen - 1, skip.reason, skip.detail))
    return ChunkResult(chunk.file, pack_games(texts), numbers, skipped, seen)


def _games(chunk: Chunk) -> Iterator[bytes | Skip]:
    """The movetext of each game, without comments and variations, or why there is none to use."""
    data = chunk.data.replace(b"\xef\xbb\xbf", b"")
    if chunk.kind == "lines":
        for line in data.split(b"\n"):
            if line.strip():
                yield _line(line.strip())
        return
    for headers, movetext in _header_blocks(data):
        try:
            _require_standard(headers)
            if len(movetext) > MAX_GAME_BYTES:
                raise Skip("too long", f"{len(movetext)} bytes without an end")
            parts = [part for part in _GAME_END.split(_main_line(movetext)) if part.strip()]
            yield from parts or [b""]
        except Skip as skip:
            yield skip


def _line(line: bytes) -> bytes | Skip:
    if len(line) > MAX_GAME_BYTES:
        return Skip("too long", f"{len(line)} bytes without an end")
    if not line.startswith(b";"):
        return Skip("not a line of chess text", "it should begin with ;1. but begins with " + _shown(line))
    return line[1:]


def _header_blocks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Each game's header lines and what follows them; headers are b"" for movetext that has none."""
    headers, begin, started = b"", 0, False
    for block in _HEADERS.finditer(data):
        between = data[begin : block.start()]
        if started and not between.strip() and not block[0].lstrip().startswith(b"[Event "):
            # A blank line inside one game's headers.
            headers += block[0]
        else:
            if started or between.strip():
                yield headers, between
            headers, started = block[0], True
        begin = block.end()
    if started or data[begin:].strip():
        yield headers, data[begin:]


def _require_standard(headers: bytes) -> None:
    set_up, fen = False, b""
    for tag, value in _START_TAGS.findall(headers):
        if tag.lower() == b"variant":
            if value.strip().lower() not in _STANDARD:
                raise Skip("variant", _shown(value))
        elif tag.lower() == b"fen":
            fen = value
        else:
            set_up = value.strip() == b"1"
    if (fen or set_up) and not b" ".join(fen.split()).startswith(_START_BOARD):
        raise Skip("set-up position", _shown(fen) or "SetUp without FEN")


def _main_line(movetext: bytes) -> bytes:
    if b"{" in movetext or b";" in movetext or b"%" in movetext:
        movetext = _COMMENTS.sub(b" ", movetext)
    depth = 0
    while b"(" in movetext or b")" in movetext:
        movetext, found = _INNERMOST.subn(b" ", movetext)
        depth += 1
        if not found or depth > _MAX_NESTING:
            raise Skip("unbalanced variation", _shown(movetext[movetext.find(b"(") :]))
    return movetext


def san_tokens(main_line: bytes) -> list[str]:
    """The SAN of each ply; raises Skip for text that is not a list of moves."""
    moves = _NOT_MOVES.sub(b" ", main_line)
    if b"0-0" in moves:
        moves = _ZERO_CASTLING.sub(lambda found: b"O-O-O" if found[1] else b"O-O", moves)
    sans = moves.decode("latin-1").split()
    if not sans:
        raise Skip("no moves")
    if len(sans) > MAX_PLIES:
        raise Skip("too long", f"{len(sans)} plies")
    for san in sans:
        if san not in _known_sans:
            if not _SAN.fullmatch(san):
                foreign = next((character for character in san if character not in VOCABULARY), None)
                if foreign is None:
                    raise Skip("not a move", san[:_DETAIL_CHARS])
                raise Skip("foreign characters", f"{foreign!r} in {san[:_DETAIL_CHARS]!r}")
            _known_sans.add(san)
    return sans


# At most a few ten thousand strings match the pattern, so this cannot grow without bound.
_known_sans: set[str] = set()


def _shown(raw: bytes) -> str:
    try:
        text = raw[: 2 * _DETAIL_CHARS].decode("utf-8")
    except UnicodeDecodeError:
        text = raw[: 2 * _DETAIL_CHARS].decode("latin-1")
    return text.strip()[:_DETAIL_CHARS]


def check_mark(board: Any) -> str:
    """`+`, `#` or nothing: what SAN adds to the move that led to this `chess.Board`."""
    if not board.is_check():
        return ""
    return "+" if any(board.generate_legal_moves()) else "#"


class _Shape(NamedTuple):
    """SAN that names no origin: where to, `file` of a capturing pawn, and both ways to write it."""

    piece: int
    target: int
    file: int | None
    promotion: int | None
    quiet: str
    capture: str


class Replayer:
    """Replays games with python-chess and rewrites each move as its canonical SAN.

    A move that only one piece can make geometrically, the usual case, is played at once and taken for illegal
    when it leaves the king in check; that is what legality adds to geometry. All other moves go the long way.
    """

    def __init__(self) -> None:
        self.chess = require_chess("Checking games")
        self._shapes: dict[str, _Shape | None] = {}

    def canonical(self, sans: Sequence[str]) -> list[str]:
        """Canonical SAN of each ply; raises Skip at the first move that is illegal or ambiguous."""
        board = self.chess.Board()
        return [self._play(board, san, ply) for ply, san in enumerate(sans, start=1)]

    def _play(self, board: Any, san: str, ply: int) -> str:
        try:
            shape = self._shapes[san]
        except KeyError:
            shape = self._shapes[san] = self._shape(san)
        origin = None if shape is None else self._only_origin(board, shape)
        if shape is None or origin is None:
            return self._play_slowly(board, san, ply)
        text = shape.capture if board.occupied >> shape.target & 1 else shape.quiet
        board.push(self.chess.Move(origin, shape.target, shape.promotion))
        turn = board.turn
        men = board.occupied_co
        # The same as board.was_into_check() and is_check(), at half the cost: this is the innermost loop.
        if board.attackers_mask(turn, (board.kings & men[not turn]).bit_length() - 1):
            raise Skip("illegal move", f"{san} at ply {ply}")
        if board.attackers_mask(not turn, (board.kings & men[turn]).bit_length() - 1):
            return text + check_mark(board)
        return text

    def _play_slowly(self, board: Any, san: str, ply: int) -> str:
        try:
            move = board.parse_san(san)
        except ValueError as error:
            ambiguous = isinstance(error, self.chess.AmbiguousMoveError)
            raise Skip("ambiguous move" if ambiguous else "illegal move", f"{san} at ply {ply}") from None
        text: str = board.san(move)
        board.push(move)
        return text

    def _shape(self, san: str) -> _Shape | None:
        """What SAN without a hint of the origin says; None for castling and SAN with a hint."""
        chess = self.chess
        found = _PLAIN_SAN.fullmatch(san)
        if not found or (found[1] and found[4]):
            return None
        piece = chess.PIECE_SYMBOLS.index(found[1].lower()) if found[1] else chess.PAWN
        file = chess.FILE_NAMES.index(found[2]) if found[2] else None
        promotion = chess.PIECE_SYMBOLS.index(found[4].lower()) if found[4] else None
        quiet = capture = san.rstrip("+#")
        if found[1]:
            quiet, capture = found[1] + found[3], f"{found[1]}x{found[3]}"
        return _Shape(piece, chess.parse_square(found[3]), file, promotion, quiet, capture)

    def _only_origin(self, board: Any, shape: _Shape) -> int | None:
        """The one square from which a move of this shape can start; None when there is no such or several."""
        chess = self.chess
        piece, target = shape.piece, shape.target
        own = board.occupied_co[board.turn]
        if own >> target & 1:
            return None
        if piece == chess.PAWN:
            return self._pawn_origin(board, target, shape.file, shape.promotion)
        candidates: int
        if piece == chess.KNIGHT:
            candidates = chess.BB_KNIGHT_ATTACKS[target] & board.knights & own
        elif piece == chess.KING:
            candidates = chess.BB_KING_ATTACKS[target] & board.kings & own
        else:
            candidates = 0
            movers = own & board.pieces_mask(piece, board.turn)
            occupied = board.occupied
            if piece != chess.ROOK:
                candidates = chess.BB_DIAG_ATTACKS[target][chess.BB_DIAG_MASKS[target] & occupied]
            if piece != chess.BISHOP:
                candidates |= chess.BB_RANK_ATTACKS[target][chess.BB_RANK_MASKS[target] & occupied]
                candidates |= chess.BB_FILE_ATTACKS[target][chess.BB_FILE_MASKS[target] & occupied]
            candidates &= movers
        if not candidates or candidates & (candidates - 1):
            return None
        return candidates.bit_length() - 1

    def _pawn_origin(self, board: Any, target: int, file: int | None, promotion: int | None) -> int | None:
        forward = 8 if board.turn else -8
        rank = target >> 3 if board.turn else 7 - (target >> 3)
        if (rank == 7) != (promotion is not None) or rank < 2:
            return None
        pawns = board.pawns & board.occupied_co[board.turn]
        behind = target - forward
        if file is not None:
            origin = (behind & ~7) + file
            enemy = board.occupied_co[not board.turn] >> target & 1 or target == board.ep_square
            return origin if abs(file - (target & 7)) == 1 and pawns >> origin & 1 and enemy else None
        if board.occupied >> target & 1:
            return None
        if pawns >> behind & 1:
            return behind
        if rank == 3 and not board.occupied >> behind & 1 and pawns >> (behind - forward) & 1:
            return behind - forward
        return None
