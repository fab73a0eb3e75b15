"""Reading PGN on one core: our preparation, with the corpus written, compared with python-chess's reader of the
file."""

from __future__ import annotations

import random
import tempfile
from pathlib import Path
from typing import Any

from glassmoe.chess.pgn import prepare_chess
from glassmoe.chess.selfplay import generate
from glassmoe.data.corpus import Corpus

from .compare import Sizes, alternate, per_second, ratios, row

CHARACTERS = 420


def data_rows(sizes: Sizes, pgn: Path | None = None) -> list[dict[str, Any]]:
    """Both lines about PGN. `pgn`: your own file; without it, self-played games in the format of Lichess exports."""
    with tempfile.TemporaryDirectory() as folder:
        file = pgn or write_pgn(Path(folder) / "games.pgn", sizes.read_games)
        games_read: dict[str, int] = {}

        def prepare(name: str, trust: bool) -> None:
            corpus = prepare_chess(file, Path(folder) / name, trust=trust, workers=1, progress=False, overwrite=True)
            games_read[name] = sum(corpus.sequences.values()) + corpus.duplicates

        def read() -> None:
            games_read["chess.pgn"] = read_games(file)

        passes = {
            "chess.pgn": read,
            "checked": lambda: prepare("checked", False),
            "trust": lambda: prepare("trust", True),
        }
        seconds = alternate(passes, sizes.repeats)
    what = "a file of one's own" if pgn else "self-played games with Lichess's headers, clocks and some evaluations"
    lines = []
    for name, text, target in (("checked", "every move checked legal", 1.3), ("trust", "text only (--trust)", 10.0)):
        lines.append(
            row(
                f"reading PGN, {text}",
                ratios(seconds["chess.pgn"], seconds[name]),
                of="games/s of chess.pgn.read_game",
                at_least=target,
                note=f"{what}; one core each; ours writes the prepared corpus too",
                games=games_read[name],
                games_of_peer=games_read["chess.pgn"],
                games_per_second=per_second(games_read[name], seconds[name]),
                games_per_second_of_peer=per_second(games_read["chess.pgn"], seconds["chess.pgn"]),
            )
        )
    return lines


def read_games(file: Path) -> int:
    """Number of games of a PGN file that python-chess reads without an error; it checks every move too."""
    import chess.pgn

    count = 0
    with open(file, encoding="utf-8") as lines:
        while (game := chess.pgn.read_game(lines)) is not None:
            count += not game.errors
    return count


def write_pgn(file: Path, games: int) -> Path:
    """`games` self-played games in the format of a Lichess month: headers, a clock after every move, and in one game of
    ten an evaluation too."""
    folder = file.with_suffix(".games")
    generate(folder, games=games, max_chars=CHARACTERS, valid_share=0.0, progress=False)
    played = Corpus.open(folder).split("train")
    file.write_text("".join(_export(i, played.text(i)) for i in range(len(played))), encoding="utf-8")
    return file


def _export(number: int, text: str) -> str:
    rng = random.Random(number)
    sans = [word.rpartition(".")[2] for word in text.removeprefix(";").split(" ")]
    result = rng.choice(["1-0", "0-1", "1/2-1/2"])
    tags = {
        "Event": "Rated Blitz game",
        "Site": f"https://example.org/{rng.randrange(16**8):08x}",
        "Date": "2024.01.07",
        "Round": "-",
        "White": f"player{rng.randrange(10000)}",
        "Black": f"player{rng.randrange(10000)}",
        "Result": result,
        "UTCDate": "2024.01.07",
        "UTCTime": f"{rng.randrange(24):02}:{rng.randrange(60):02}:{rng.randrange(60):02}",
        "WhiteElo": str(rng.randrange(900, 2600)),
        "BlackElo": str(rng.randrange(900, 2600)),
        "WhiteRatingDiff": "+6",
        "BlackRatingDiff": "-6",
        "ECO": "C50",
        "Opening": "Italian Game",
        "TimeControl": "180+0",
        "Termination": "Normal",
    }
    moves = []
    for ply, san in enumerate(sans):
        left = max(0, 180 - 2 * ply)
        evaluation = f"[%eval {rng.uniform(-4, 4):.2f}] " if number % 10 == 0 else ""
        dots = "..." if ply % 2 else "."
        moves.append(f"{ply // 2 + 1}{dots} {san} {{ {evaluation}[%clk 0:{left // 60:02}:{left % 60:02}] }}")
    headers = "".join(f'[{name} "{value}"]\n' for name, value in tags.items())
    return f"{headers}\n{' '.join(moves)} {result}\n\n\n"
