"""Small real things that many tests share."""

import os
import random
from pathlib import Path

import pytest
import torch

os.environ["HF_HUB_OFFLINE"] = "1"
torch.set_num_threads(int(os.environ.get("GLASSMOE_TEST_THREADS", "1")))


@pytest.fixture(scope="session")
def noise_games(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepared "games" of random characters: for tests that need rows, not chess."""
    from glassmoe.chess.tokens import CHARACTERS, pack_games
    from glassmoe.data.writer import CorpusWriter

    rng = random.Random(0)
    texts = [
        (";1." + "".join(rng.choices("abcdefgh12345678 NBRQ", k=rng.randint(20, 90)))).encode() for _ in range(400)
    ]
    out = tmp_path_factory.mktemp("noise") / "games"
    with CorpusWriter(out, CHARACTERS, valid_share=0.1) as writer:
        writer.add(pack_games(texts))
        writer.finish({"synthetic": True})
    return out
