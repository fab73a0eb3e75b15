"""The boards measure, training and reading in the world of moves: the same boards as in the world of characters."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp
import torch

import chess
from game_files import boards_at_dots
from glassmoe.chess.board_evaluation import DOTS, TOKENS_READ, board_games, board_rows, evaluate_boards
from glassmoe.chess.board_labels import dot_positions, label_games, placements_at_dots
from glassmoe.chess.board_properties import HEADLINE, PROPERTIES
from glassmoe.chess.moves import VOCABULARY, decode_moves, moves_of_line
from glassmoe.chess.selfplay import generate, play_game
from glassmoe.chess.tokens import MOVES
from glassmoe.cli import main as cli
from glassmoe.data.corpus import Corpus, Rows, Sequences
from glassmoe.inspect.sample import continuations
from glassmoe.measure.perplexity import perplexity
from glassmoe.model import GlassConfig, GlassForCausalLM


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    out = tmp_path_factory.mktemp("moves") / "games"
    generate(out, games=60, seed=1, valid_share=0.8, workers=1, progress=False, tokens="moves")
    return Corpus.open(out)


def make(ffn: str, **settings: object) -> GlassForCausalLM:
    torch.manual_seed(0)
    sizes = {"width": 16, "layers": 2, "heads": 2, "active_width": 32, "num_experts": 8, "context": 40}
    kind = {"tokens": "moves", "vocab_size": len(VOCABULARY)}
    return GlassForCausalLM(GlassConfig(ffn=ffn, init_std=0.3, **{**sizes, **kind, **settings})).eval()


# --- which boards ---


def test_white_is_to_move_at_every_second_token() -> None:
    text = "; e2e4 e7e5 g1f3"
    assert dot_positions(text) == [0, 2] and dot_positions(text + " b8c6") == [0, 2, 4]
    assert dot_positions(text, limit=1) == [0] and dot_positions(";") == [0]
    first, second = boards_at_dots(text)
    assert first.ply() == 0 and [move.uci() for move in second.move_stack] == ["e2e4", "e7e5"]
    # A move is never cut off, so the last one is played too.
    third = boards_at_dots(text + " b8c6")[2]
    assert third.ply() == 4
    assert placements_at_dots(text + " b8c6") == tuple(board.board_fen() for board in (first, second, third))
    with pytest.raises(ValueError, match=r"move 2 of the game \('e1e3'\) is not legal"):
        placements_at_dots("; e2e4 e1e3 g1f3")


def test_labels_of_a_game_are_the_same_in_both_worlds() -> None:
    lines = [play_game(5, number, max_chars=400) for number in range(6)]
    # Castling and capturing en passant among the moves.
    lines.append(
        ";1.e4 a6 2.e5 d5 3.exd6 cxd6 4.Nf3 Bg4 5.Be2 Nc6 6.O-O Qc7 7.d3 O-O-O 8.a3 Kb8 9.b4 Nf6 10.Bb2 e5 11.c3 Be7 "
        "12.Nbd2 Rc8 13.h3 Bh5 14.Re1 Rhe8 15.Nf1 Bf8 16.Ng3 Bg6 17.d4 exd4 18.cxd4 Nd5 19.Bc4 Nb6 20.Bb3 Nd7"
    )
    moves = [decode_moves(moves_of_line(line)) for line in lines]
    in_characters, in_moves = (label_games(texts, list(PROPERTIES), dots=DOTS) for texts in (lines, moves))
    for name, labels in in_characters.items():
        a, b = (x.toarray() if sp.issparse(x) else x for x in (labels, in_moves[name]))
        assert a.shape[0] == len(lines) * DOTS and (a.any() or name != HEADLINE)
        np.testing.assert_array_equal(a, b, name)


def test_games_of_39_tokens_are_usable_and_cut_at_40() -> None:
    ids = moves_of_line(play_game(0, 1, max_chars=600))
    lengths = (38, 39, 40, 41)
    games = Sequences(np.concatenate([ids[:n] for n in lengths]), np.cumsum([0, *lengths]).astype(np.uint64), MOVES)
    texts = board_games(games, 10)
    assert [len(text.split()) for text in texts] == [39, 40, 40] and texts[2] == texts[1]
    tokens_GN, lengths_G, positions_GP = board_rows(texts)
    assert tokens_GN.shape == (3, TOKENS_READ["moves"]) and lengths_G.tolist() == [39, 40, 40]
    assert positions_GP.tolist() == [list(range(0, 40, 2))] * 3
    assert decode_moves(tokens_GN[0][:39]) == texts[0] and tokens_GN[0][39] == 0


# --- measured ---


def test_the_report_of_a_moves_model_is_whole(played: Corpus) -> None:
    found = evaluate_boards(make("moe-x"), played, games=10, workers=1)
    assert found.games == 10 and found.boards == 10 * DOTS
    for layer in found.layers:
        assert layer.width == 128 and 0 < layer.alive <= 128
        for part in (layer, layer.subsample, layer.random):
            assert 0 <= part.held_out_coverage <= part.coverage <= 1
    examples = [example for feature in found.features for example in feature.examples]
    assert examples
    for example in examples:
        words = example.text.split(" ")
        assert words[0] == ";" and len(words) % 2 == 1
        assert boards_at_dots(example.text)[-1].board_fen() == example.board


def test_a_planted_reader_of_moves_is_found(played: Corpus) -> None:
    """A neuron that fires on one move of Black's and nowhere else says what stands where that move ended."""
    texts = board_games(played.split("valid"), 40)
    ((move, times),) = Counter(word for text in texts for word in text.split(" ")[2:39:2]).most_common(1)
    assert times >= 10
    model = make("relu", layers=1)
    with torch.no_grad():
        ffn = model.feed_forwards()[0]
        ffn.w_enc.zero_()
        model.model.layers[0].attention.out.weight.zero_()
        model.model.positions.weight.zero_()
        model.model.tokens.weight.zero_()
        direction = torch.linspace(-1, 1, 16)
        model.model.tokens.weight[VOCABULARY.index(move)] = direction
        ffn.w_enc[5] = direction
    found = evaluate_boards(model, played, games=20, controls=False, workers=1)
    assert found.layers[0].alive == 1
    (feature,) = found.features
    assert feature.examples and all(example.text.endswith(f" {move}") for example in feature.examples)
    stands = {each.square: each for each in feature.squares}[chess.parse_square(move[2:4])]
    assert stands.piece.islower() and stands.probability > 0.9


def test_mistakes_are_named(played: Corpus, noise_games: Path) -> None:
    with pytest.raises(ValueError, match=r"reads 40 moves .* context is 39; train with data.rows games:40"):
        evaluate_boards(make("gelu", context=39), played)
    characters = Corpus.open(noise_games)
    with pytest.raises(ValueError, match="holds games as characters, expected games as moves"):
        evaluate_boards(make("gelu"), characters)
    with pytest.raises(ValueError, match="holds games as characters, expected games as moves"):
        evaluate_boards(make("gelu"), played, test_corpus=characters)
    with pytest.raises(ValueError, match="holds games as moves, expected games as characters"):
        evaluate_boards(make("gelu", tokens="characters", vocab_size=32, context=256), played)


def test_perplexity_of_moves_has_no_bits_per_character(played: Corpus) -> None:
    model = make("gelu")
    with torch.no_grad():
        model.model.tokens.weight.zero_()
    found = perplexity(model, Rows(played.split("valid"), "games:40"))
    assert found.perplexity == pytest.approx(1969, rel=1e-5) and found.bits_per_character is None
    assert found.tokens == found.rows_read * 39


def test_continuations_of_moves() -> None:
    model = make("moe-x")
    (text,) = continuations(model, "; e2e4 e7e5", 5)
    assert text.startswith("; e2e4 e7e5 ") and len(text.split(" ")) == 8
    assert continuations(model, ";1.e4 e5 2.", 5) == continuations(model, "; e2e4 e7e5 ", 5) == [text]
    assert len(continuations(model, ";", 100)[0].split(" ")) == 40
    for prompt, message in (
        ("", "a game begins with ';'"),
        ("; e2e9", "word 'e2e9' at place 1"),
        (";1.e4 e4", "illegal move, e4 at ply 2"),
        ("; " * 40, "context is 40"),
    ):
        with pytest.raises(ValueError, match=message):
            continuations(model, prompt, 5)


# --- a run of moves, from training to its page ---

TINY = (
    "--config chess-moves --data.synthetic_games 40 --data.rows games:40 --model.layers 1 --model.width 16 "
    "--model.active_width 16 --model.num_experts 4 --train.steps 2 --train.batch_rows 4 --train.micro_rows 4 "
    "--train.eval_rows 4 --train.snapshot_every 0"
)


def test_a_run_of_moves_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    assert cli.main(["train", *TINY.split(), "--out", str(run)]) == 0
    assert Corpus.open(run / "games").tokens == "moves"
    settings = json.loads((run / "config.json").read_text())
    assert (settings["tokens"], settings["vocab_size"], settings["context"]) == ("moves", 1969, 40)
    assert "chess games as moves (`; e2e4 e7e5 g1f3 ...`), one token a move" in (run / "README.md").read_text()

    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(run)
    assert tokenizer("; e2e4 e7e5")["input_ids"] == [0, 1032, 1207]
    assert tokenizer.decode([0, 1032, 1207]) == "; e2e4 e7e5" and len(tokenizer) == 1969
    assert AutoModelForCausalLM.from_pretrained(run).config.vocab_size == 1969
    with pytest.raises(Exception, match="WordLevel"):
        tokenizer("; e2e9")

    unseen = tmp_path / "unseen"
    generate(unseen, games=30, seed=9, valid_share=0.9, workers=1, progress=False, tokens="moves")
    capsys.readouterr()
    assert cli.main(["generate", str(run), "--tokens", "3", "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert made["prompt"] == ";" and made["texts"][0].startswith("; ") and len(made["texts"][0].split()) == 4
    assert cli.main(["eval", "ppl", str(run), "--results", str(tmp_path / "results")]) == 0
    assert "bits per character" not in capsys.readouterr().out
    assert "nats per move" in (tmp_path / "results.md").read_text()
    words = ["eval", "boards", str(run), "--data.path", str(unseen), "--games", "8", "--workers", "1"]
    assert cli.main(words) == 0
    words = [str(run), "--data.path", str(unseen), "--games", "8"]
    assert cli.main(["eval", "board-probes", *words, "--workers", "1"]) == 0
    assert "random weights rec." in capsys.readouterr().out
    assert cli.main(["eval", "legal-moves", *words]) == 0
    assert "legal mass" in capsys.readouterr().out
    assert {"board_probes.json", "legal_moves.json"} <= {each.name for each in (run / "measures").iterdir()}
    assert cli.main(["report", str(run)]) == 0
    page = (run / "report.html").read_text()
    assert "nats per move" in page and "M moves of synthetic games" in page and "nats per character" not in page
    for feature in json.loads((run / "measures" / "boards.json").read_text())["values"]["features"]:
        for example in feature["examples"]:
            before, _, last = example["text"].rpartition(" ")
            assert f"{' '.join(before.split(' ')[-13:])} <mark>{last}</mark>" in page or not before

    # Games of the other kind are refused, in both directions, and a run goes on as what it is.
    characters = tmp_path / "characters"
    generate(characters, games=30, seed=9, valid_share=0.5, workers=1, progress=False)
    for words in (
        [*TINY.split(), "--data.path", str(characters), "--out", str(tmp_path / "a")],
        ["--data.path", str(unseen), "--out", str(tmp_path / "b")],
    ):
        capsys.readouterr()
        assert cli.main(["train", *words]) == 2
        assert "prepare that with `glassmoe data chess" in capsys.readouterr().err
    assert cli.main(["eval", "ppl", str(run), "--data.path", str(characters)]) == 2
    assert cli.main(["train", *TINY.split(), "--out", str(run), "--data.tokens", "characters"]) == 2
    assert "data.tokens: 'moves' -> 'characters'" in capsys.readouterr().err


def test_synthetic_games_of_the_other_kind_are_made_anew(tmp_path: Path) -> None:
    """A run without a checkpoint may start again with other tokens."""
    run = tmp_path / "run"
    generate(run / "games", games=40, seed=0, workers=1, progress=False)
    assert cli.main(["train", *TINY.split(), "--out", str(run)]) == 0
    assert Corpus.open(run / "games").tokens == "moves"


def test_headline_labels_of_moves_by_hand() -> None:
    labels = label_games(["; e2e4 e7e5 g1f3"], [HEADLINE], dots=2, workers=1)[HEADLINE].toarray()
    # Slot = square * 12 + class: e4 is square 28, white pawn class 6; e5 is square 36, black pawn class 5.
    assert np.flatnonzero(labels[0]).tolist() == [] and np.flatnonzero(labels[1]).tolist() == [28 * 12 + 6, 36 * 12 + 5]
