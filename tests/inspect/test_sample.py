"""Text from a model: the same tokens with and without a cache, piece by piece or whole; how it is drawn."""

import os
import pty
from pathlib import Path

import pytest
import torch

import forked
from glassmoe.chess.tokens import CHARACTERS, MOVES
from glassmoe.cli.main import main
from glassmoe.data.tokens import TokenKind
from glassmoe.inspect.sample import Sampling, sampled
from glassmoe.model import FEED_FORWARD, GlassConfig, GlassForCausalLM
from glassmoe.model.subject import load_subject
from text_files import made_up_texts, prepared, text_run


def model_of(kind: TokenKind, ffn: str = "moe-x") -> GlassForCausalLM:
    torch.manual_seed(2)
    return GlassForCausalLM(
        GlassConfig(
            tokens=kind.name, vocab_size=kind.size, context=48, layers=2, heads=2, width=32, active_width=64,
            num_experts=4, ffn=ffn, init_std=0.2,
        )
    ).eval()  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text") / "corpus"
    prepared(folder, made_up_texts(150), valid_share=0.2)
    return text_run(folder.parent / "run", folder)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("ffn", FEED_FORWARD)
def test_cached_and_uncached_give_the_same_tokens(ffn: str, temperature: float) -> None:
    model = model_of(CHARACTERS, ffn)
    rows = [
        sampled(model, ";1.e4 ", CHARACTERS, Sampling(30, 2, temperature, cache=cache))[0] for cache in (True, False)
    ]
    assert [row.tolist() for row in rows[0]] == [row.tolist() for row in rows[1]]
    assert len(rows[0][0]) == 36


@pytest.mark.parametrize(("kind", "prompt"), [(CHARACTERS, ";1.e4"), (MOVES, "; e2e4")])
def test_pieces_are_the_whole(kind: TokenKind, prompt: str) -> None:
    model, pieces = model_of(kind), list[str]()
    (row,), given = sampled(model, prompt, kind, Sampling(12, temperature=1.0), pieces.append)
    assert "".join(pieces) == kind.decode(row) and len(pieces) == 13 and given == len(kind.encode(prompt))
    (whole,), _ = sampled(model, prompt, kind, Sampling(12, temperature=1.0))
    assert whole.tolist() == row.tolist()
    with pytest.raises(ValueError, match="2 samples are generated together and cannot be streamed; pass 1"):
        sampled(model, prompt, kind, Sampling(3, 2), pieces.append)


def test_pieces_of_text_wait_for_whole_characters_and_leave_out_the_end(run: Path) -> None:
    loaded = load_subject(str(run), "cpu", own=True)
    kind = loaded.kind()
    seen_end = seen_half = False
    for seed in range(12):
        pieces: list[str] = []
        sampling = Sampling(20, temperature=2.0, seed=seed)
        (row,), given = sampled(loaded.model, "the \U0001f642", kind, sampling, pieces.append)
        assert "".join(pieces) == kind.decode(row)
        seen_half |= len(pieces) < 1 + len(row) - given
        seen_end |= len(row) - given < 20
    assert seen_half


def test_top_k(run: Path) -> None:
    loaded = load_subject(str(run), "cpu", own=True)
    kind = loaded.kind()
    greedy = sampled(loaded.model, "the cat", kind, Sampling(8))[0][0].tolist()
    assert sampled(loaded.model, "the cat", kind, Sampling(8, temperature=1.0, top_k=1))[0][0].tolist() == greedy
    with torch.no_grad():
        ids = torch.from_numpy(kind.encode("the cat").astype("int64"))[None]
        likely = set(loaded.model(input_ids=ids).logits[0, -1].topk(3).indices.tolist())
    drawn = sampled(loaded.model, "the cat", kind, Sampling(1, 64, temperature=5.0, top_k=3))[0]
    assert {int(row[-1]) for row in drawn if len(row) > ids.shape[1]} <= likely
    with pytest.raises(ValueError, match="top_k is -1"):
        Sampling(1, top_k=-1)


def test_the_verb(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["generate", str(run), "--prompt", "the cat", "--tokens", "9", "--temperature", "1", "--top-p", "0.9"]
    words += ["--top-k", "40", "--frequency-penalty", "0.5", "--seed", "3"]
    assert main(words) == 0
    whole = capsys.readouterr().out
    assert main([*words, "--stream"]) == 0
    assert capsys.readouterr().out == whole
    assert main([*words, "--stream", "--json"]) == 2
    assert "--stream and --json do not go together" in capsys.readouterr().err
    assert main([*words, "--stream", "--samples", "2"]) == 2
    assert "cannot be streamed" in capsys.readouterr().err
    assert main([*words, "--top-p", "2"]) == 2
    assert "top_p is 2.0; expected a number above 0, at most 1" in capsys.readouterr().err


def test_in_a_terminal_it_streams_by_itself(run: Path) -> None:
    ours, theirs = pty.openpty()
    program = f"import sys; sys.stdout = open({os.ttyname(theirs)!r}, 'w')\n"
    program += "from glassmoe.cli.main import main\nraise SystemExit(main())"
    done = forked.run(["generate", str(run), "--prompt", "the cat", "--tokens", "6"], program=program)
    shown = os.read(ours, 65536).decode().replace("\r\n", "\n")
    loaded = load_subject(str(run), "cpu", own=True)
    (row,), _ = sampled(loaded.model, "the cat", loaded.kind(), Sampling(6))
    assert done.returncode == 0 and shown == loaded.kind().decode(row) + "\n"
