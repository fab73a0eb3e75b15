import json
from dataclasses import replace
from pathlib import Path

import pytest

import glassmoe as gm
from glassmoe.measure import traces
from glassmoe.measure.traced_prompts import TracedPrompt, traced_prompt
from glassmoe.measure.traces import TraceMean, TraceResults, chosen_prompts, opened_corpus
from glassmoe.training.language import train
from tiny_runs import tiny


@pytest.fixture(scope="module")
def run(noise_games: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tiny(noise_games, "moe-x"), tmp_path_factory.mktemp("traces") / "moex")


def test_prompts_are_beginnings_of_held_out_sequences(run: Path) -> None:
    model = gm.load(run)
    corpus = opened_corpus(model, None)
    prompts = chosen_prompts(model, corpus, 12, (5, 9), seed=3)
    assert len(prompts) == 12 and {len(ids) for ids, _ in prompts} <= set(range(5, 10))
    assert len({len(ids) for ids, _ in prompts}) > 1 and all(ids[0] == 15 for ids, _ in prompts)
    assert (
        prompts
        == chosen_prompts(model, corpus, 12, (5, 9), seed=3)
        != chosen_prompts(model, corpus, 12, (5, 9), seed=4)
    )
    with pytest.raises(ValueError, match="do not fit into the context of"):
        chosen_prompts(model, corpus, 2, (900, 950), seed=0)


def test_a_results_file_counts_nodes_and_agreement(run: Path, tmp_path: Path) -> None:
    results = gm.reproduce(
        "trace", [run], prompts=3, lengths="5,9", check=2, results=tmp_path, out=tmp_path, device="cpu"
    )
    (row,) = results.entries
    assert row.name == "moex" and row.kind == "moe-x" and row.prompts == 3 and row.changes == 12
    assert row.nodes_for_80 == TraceMean.of(row.nodes) and len(row.nodes) == 3 and min(row.nodes) >= 1
    assert row.sign_agreement is not None and 0 <= row.sign_agreement.mean <= 1 and row.replacement.mean == 1
    held = {each.held: each for each in row.holding or []}
    assert held["nothing"].both is not None and held["nothing"].both.value == pytest.approx(row.correlation)
    assert set(held) >= {"norms", "experts", "all but norms", "all but experts and gates"}
    file = json.loads((tmp_path / "trace-moex.json").read_text())
    assert (
        file["command"] == "glassmoe reproduce trace moex --prompts 3 --lengths 5,9 --check 2"
        and file["rows"][0]["nodes"] == row.nodes
    )
    page = (tmp_path / "trace-moex.md").read_text()
    assert "| moex" in page and "nodes for 80%" in page and "| all but norms" in page
    assert f"data {results.data_sha256[:16]}; " in page
    TraceResults(**{**vars(results), "data_sha256": "another"}).changed(files=None).save(
        tmp_path / "other", "trace-moex"
    )
    with pytest.raises(ValueError, match="holds results with data_sha256 another"):
        gm.reproduce(
            "trace", [run], prompts=1, lengths="5,9", check=0, results=tmp_path / "other", out=tmp_path, device="cpu"
        )
    again = gm.reproduce(
        "trace", [run], prompts=2, lengths="5,9", check=0, results=tmp_path, out=tmp_path, device="cpu"
    )
    assert [row.prompts for row in TraceResults.read(tmp_path / "trace-moex.json").entries] == [2]
    assert again.entries[0].correlation is None and again.entries[0].sign_agreement is None


def test_lengths_that_are_none_are_refused(run: Path) -> None:
    for lengths in ("9", "9,5", "0,4"):
        with pytest.raises(ValueError, match="expected the shortest and the longest prompt, such as 16,60"):
            gm.reproduce("trace", [run], lengths=lengths)


def test_each_kind_of_coder_gets_a_row(noise_games: Path, tmp_path: Path) -> None:
    source = train(tiny(noise_games, "gelu"), tmp_path / "dense")
    gm.decompose(
        source, layers="0,1", coders="mxd,transcoder", k=5, features=200, tokens=256, batch_tokens=128,
        out=tmp_path / "opened", device="cpu",
    )  # fmt: skip
    options = {"prompts": 2, "lengths": "5,9", "check": 2, "results": tmp_path, "out": tmp_path, "device": "cpu"}
    results = gm.reproduce(
        "trace", [tmp_path / "opened"], coder="mxd-k5,transcoder-k5", data=noise_games, features=20, **options
    )
    assert [(row.name, row.kind) for row in results.entries] == [
        ("opened/mxd-k5", "mxd"),
        ("opened/transcoder-k5", "transcoder"),
    ]
    assert results.command == (
        "glassmoe reproduce trace opened --prompts 2 --coder mxd-k5,transcoder-k5 --lengths 5,9 --features 20 --check 2"
    )
    with pytest.raises(ValueError, match="there is no coder 'sae-k5'; choose one of 0/mxd-k5, 0/transcoder-k5"):
        gm.reproduce("trace", [tmp_path / "opened"], coder="mxd-k5,sae-k5", data=noise_games, **options)


def test_an_interrupted_command_goes_on_at_its_prompt(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {"prompts": 4, "lengths": "5,9", "check": 2, "device": "cpu"}
    whole = gm.reproduce("trace", [run], results=tmp_path / "whole", out=tmp_path / "whole", **options)
    traced: list[list[int]] = []

    def counted(tracer: object, ids: list[int], *rest: int) -> TracedPrompt:
        if len(traced) == 2:
            raise KeyboardInterrupt
        traced.append(ids)
        return traced_prompt(tracer, ids, *rest)

    monkeypatch.setattr(traces, "traced_prompt", counted)
    with pytest.raises(KeyboardInterrupt):
        gm.reproduce("trace", [run], results=tmp_path, out=tmp_path, **options)
    assert not (tmp_path / "trace-moex.json").exists()
    (file,) = (tmp_path / "trace").glob("moex-*.jsonl")
    # A kill in the middle of a line, and a flipped bit in another.
    first, second = file.read_text().splitlines(keepends=True)
    file.write_text(first + second.replace('"tokens": ', '"tokens": 1', 1) + second[:40])
    traced.clear()
    monkeypatch.setattr(traces, "traced_prompt", lambda *given: traced.append(given[1]) or traced_prompt(*given))
    resumed = gm.reproduce("trace", [run], results=tmp_path, out=tmp_path, **options)
    assert len(traced) == 3 and "1 lines are not what was written; they are traced again" in capsys.readouterr().err
    (one,), (other,) = whole.entries, resumed.entries
    assert replace(one, seconds=other.seconds) == other
    # Other settings are other work.
    gm.reproduce("trace", [run], results=tmp_path / "more", out=tmp_path, **{**options, "features": 40})
    assert len(traced) == 7 and len(list((tmp_path / "trace").glob("moex-*.jsonl"))) == 2
