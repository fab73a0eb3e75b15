"""What the tests of reading games share: texts as files, files as texts, and the boards of a text."""

import bz2
import functools
import gzip

import zstandard

from glassmoe.chess.board_labels import dot_positions
from glassmoe.chess.characters import decode, move_text
from glassmoe.chess.pgn import prepare_chess, read_chunk
from glassmoe.chess.selfplay import play_game
from glassmoe.chess.tokens import MOVES, kind_of
from glassmoe.data.corpus import Corpus
from glassmoe.data.sources import Chunk

PACK = {
    "": bytes,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".zst": zstandard.ZstdCompressor().compress,
}


def pgn(sans, **tags):
    headers = "".join(f'[{name} "{value}"]\n' for name, value in {"Event": "x", **tags}.items())
    return f"{headers}\n{move_text(sans.split())[1:]} *\n\n"


@functools.cache
def synthetic(count, seed=0, max_chars=120):
    return [play_game(seed, number, max_chars) for number in range(count)]


def as_pgn(texts):
    return "".join(f'[Event "g{i}"]\n[Result "1-0"]\n\n{text[1:]} 1-0\n\n' for i, text in enumerate(texts))


def boards_at_dots(text, limit=20):
    """The board, with its moves, at each of the first dots of a game text. Naive: it is played anew for each dot."""
    import chess

    boards = []
    for dot in dot_positions(text, limit):
        board = chess.Board()
        if kind_of(text) is MOVES:
            for move in MOVES.split(text)[1 : dot + 1]:
                board.push_uci(move)
        else:
            for word in text[1:dot].split(" ")[:-1]:
                board.push_san(word.rpartition(".")[2])
        boards.append(board)
    return boards


def prepare(tmp_path, *inputs, name="out", **options):
    """The prepared texts in order, and the manifest."""
    options = {"workers": 1, "valid_share": 0.0, "progress": False, **options}
    manifest = prepare_chess(list(inputs), tmp_path / name, **options).manifest
    games = Corpus.open(tmp_path / name).split("train")
    return [games.text(i) for i in range(len(games))], manifest


def prepare_text(tmp_path, text, **options):
    file = tmp_path / "games.pgn"
    file.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8"))
    return prepare(tmp_path, file, **options)


def read(text, checked=True, kind="pgn"):
    """(texts, skipped) of one chunk, without files."""
    data = text if isinstance(text, bytes) else text.encode("utf-8")
    result = read_chunk(Chunk(0, kind, data), checked=checked)
    texts = [";" + part for part in decode(result.sequences.tokens).split(";")[1:]]
    return texts, [(number, reason) for number, reason, _ in result.skipped]
