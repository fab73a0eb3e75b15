"""A process is killed at one of its accesses to a folder: what was whole stays whole, the same command ends with the
same bits, and nothing of the killed one is left."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fault_driver import Counts, accesses, killed_at
from faults_made import Made, coder_config, explained
from glassmoe.atomic import TEMPORARY
from glassmoe.chess.selfplay import generate
from glassmoe.coders.fit import fit
from glassmoe.data.corpus import Corpus
from glassmoe.inspect import gathering
from glassmoe.inspect.store import open_store
from glassmoe.pages.explore.site import build_site
from glassmoe.training.language import train
from tiny_runs import assert_same_bits, tiny

pytestmark = pytest.mark.faults
KILLS = 8


def leftovers(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if TEMPORARY.fullmatch(path.name) or path.name.endswith(".lock")]


def battery(
    name: str, counts: Counts, work: Callable[[], object], folder: Path, between: Callable[[], None], total: int
) -> None:
    """Kill at random accesses, resuming what the last one left, and let it end."""
    rng, killed = random.Random(name), 0
    for _ in range(KILLS):
        killed += killed_at(work, folder, rng.randrange(1, total + 1)) == "killed"
        between()
        counts.add("Kills", name, "what was whole stays whole")
    assert killed > 1
    accesses(work, folder)
    between()
    assert not leftovers(folder if folder.name != "parts" else folder.parent)


@pytest.mark.parametrize("verb", ["train", "decompose"])
def test_training_ends_with_the_same_bits(verb: str, made: Made, tmp_path: Path, counts: Counts) -> None:
    config = tiny(made.games, snapshot_every=2)

    def work(out: Path) -> Path:
        return train(config, out) if verb == "train" else fit(coder_config(made.run, made.games), out)

    total = accesses(lambda: work(tmp_path / "whole"), tmp_path / "whole")
    out = tmp_path / "parts"
    battery(verb, counts, lambda: work(out), out, lambda: None, total)
    assert_same_bits(tmp_path / "whole", out, "model.safetensors" if verb == "train" else "coder.safetensors")
    assert {path.relative_to(out) for path in out.rglob("*")} == {
        path.relative_to(tmp_path / "whole") for path in (tmp_path / "whole").rglob("*")
    }


def test_preparing_ends_with_the_same_bits(tmp_path: Path, counts: Counts) -> None:
    out = tmp_path / "games"

    def work() -> None:
        generate(out, games=12, max_chars=60, overwrite=True, progress=False)

    total = accesses(work, out)
    whole = Corpus.open(out).fingerprint

    def between() -> None:
        try:
            assert Corpus.open(out).fingerprint == whole
        except ValueError as error:
            assert "no finished preparation" in str(error)

    battery("data", counts, work, out, between, total)
    assert Corpus.open(out).fingerprint == whole


def test_explaining_ends_with_the_same_values(
    made: Made, tmp_path: Path, counts: Counts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gathering, "SAVE_SECONDS", 0.0)
    run = tmp_path / "run"
    shutil.copytree(made.run, run)
    shutil.rmtree(run / "features")
    shutil.rmtree(run / "explanations")
    shutil.copytree(run, tmp_path / "again")
    total = accesses(lambda: explained(tmp_path / "again"), tmp_path / "again")
    battery("explain", counts, lambda: explained(run), run, lambda: None, total)
    one, other = (open_store(path / "features/1-moe-x") for path in (made.run, run))
    for a, b in zip(one.block(0, one.num_features), other.block(0, one.num_features), strict=True):
        assert np.array_equal(a, b)
    assert one.manifest == other.manifest
    lines = [sorted((path / "explanations/1-moe-x/rules.jsonl").read_text().splitlines()) for path in (made.run, run)]
    assert lines[0] == lines[1]


def test_a_site_is_whole_at_every_moment(made: Made, tmp_path: Path, counts: Counts) -> None:
    site = tmp_path / "site"

    def work() -> None:
        build_site([made.run], site)

    build_site([made.run], site, features=3)

    def between() -> None:
        listed = json.loads((site / "glassmoe.json").read_text())["files"]
        assert {str(path.relative_to(site)) for path in site.rglob("*") if path.is_file()} == {*listed, "glassmoe.json"}

    # The new pages are written beside the old ones, under a name that begins with a point.
    total = accesses(work, tmp_path)
    battery("explore", counts, work, tmp_path, between, total)
    assert [path.name for path in tmp_path.iterdir()] == ["site"]
