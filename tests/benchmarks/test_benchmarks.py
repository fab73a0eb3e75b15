"""Every group of the bench at toy size: real passes, equal results where a line claims them, never times."""

import json
import os
import subprocess
import sys
from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from benchmarks.__main__ import main
from benchmarks.browser import find_chromium
from benchmarks.coder_peers import PEERS
from benchmarks.compare import ROOT, alternate, ratios, row, skipped
from benchmarks.learning import seconds_to
from benchmarks.parts import layer_parts, route
from benchmarks.steps import LAYERS
from benchmarks.tables import BenchResults
from benchmarks.text import write_text_file
from benchmarks.together import tokens_per_second

import forked
from benchmarks import Sizes, bench, boards, steps, stores
from glassmoe.chess.selfplay import generate
from glassmoe.model import GlassConfig, GlassForCausalLM
from glassmoe.text.tokens import train_tokenizer
from made_gguf import random_llama
from text_files import made_up_texts, prepared

TOY = Sizes(
    repeats=1,
    tokens=64,
    widths=(16,),
    peer_tokens=64,
    step_rows=2,
    product=64,
    coder_width=16,
    coder_features=128,
    coder_k=4,
    coder_tokens=256,
    coder_steps=2,
    model_tokens=256,
    model_steps=4,
    model_features=512,
    read_games=30,
    board_games=15,
    wide_features=256,
    active_features=40,
    dense_features=32,
    store_width=16,
    store_tokens=2048,
    store_tokens_longer=4096,
    learning_steps=4,
    learning_every=2,
    learning_rows=2,
    together_recipes=("chess-small",),
    together_games=300,
    together_steps=3,
    together_from=1,
    memory_layers=("monet-vd",),
    memory_steps=1,
    memory_games=2,
    trace_width=16,
    trace_layers=2,
    trace_features=64,
    trace_k=5,
    trace_tokens=6,
    page_features=64,
    listed_features=128,
    page_tokens=2000,
    page_games=40,
    text_bytes=200_000,
    large_text_bytes=3_000_000,
    text_ids=300,
    text_steps=2,
    generated=6,
    starts=1,
    quickstart=("--steps", "2", "--synthetic-games", "60", "--games", "2"),
)


def measured(group: str, **options: Any) -> dict[str, dict[str, Any]]:
    figures = bench([group], TOY, **options)
    assert figures.table()
    for line in figures.entries:
        assert line["group"] == group
        if "skipped" not in line:
            assert line["low"] <= line["value"] <= line["high"]
            assert (line["target"] is None) == (line["met"] is None)
    lines = {f"{line['name']} of {line['of']}" if line.get("of") else line["name"]: line for line in figures.entries}
    assert len(lines) == len(figures.entries)
    return lines


def test_row_by_hand() -> None:
    line = row("x", ratios([2.0, 4.0, 3.0], [1.0, 1.0, 3.0]), of="y", at_least=2.0, games=3)
    assert (line["value"], line["low"], line["high"], line["games"]) == (2.0, 1.0, 4.0, 3)
    assert line["target"] == {"at_least": 2.0} and line["met"] is True
    assert row("x", [0.06], "share", at_most=0.05)["met"] is False
    assert row("x", [1.0])["met"] is None


def test_passes_alternate_after_a_warm_up() -> None:
    ran: list[str] = []
    seconds = alternate({name: lambda name=name: ran.append(name) for name in "ab"}, 2)
    assert ran == ["a", "b"] * 3 and [len(each) for each in seconds.values()] == [2, 2]
    ran.clear()
    alternate({"a": lambda: ran.append("a")}, 2, warm_up=False)
    assert ran == ["a", "a"]


def test_table_shows_targets_and_what_is_missing() -> None:
    lines = [row("share", [0.062], "share", of="all", at_most=0.05, note="why"), skipped("peer", "no path")]
    facts = {"command": "", "commit": None, "hardware": "a machine", "dtype": "float32", "torch": "2", "tokens": 8}
    text = BenchResults(**facts, repeats=1, entries=lines).table()
    cells = [cell.strip() for cell in text.splitlines()[2].split("|")[1:-1]]
    assert cells == ["share", "6.2%", "6.2%", "6.2%", "all", "<= 5.0%", "no", "-"]
    assert "share: why" in text and "not measured: peer: no path" in text


def test_layers() -> None:
    lines = measured("layers")
    assert {"moe-x layer, d=16 of tokens/s of gelu", "moe-x layer, d=16 of tokens/s of relu"} <= set(lines)
    assert lines["sparsity-aware router, d=16 of time of the moe-x layer"]["target"] == {"at_most": 0.05}
    experts = lines["expert kernel, d=16 of tokens/s of transformers' experts"]
    # bf16 keeps 8 bits: transformers' experts and ours compute the same.
    assert experts["largest_relative_difference"] < 0.03


def test_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "ROW_LENGTH", 64)
    monkeypatch.setattr(steps, "SOURCE_STEPS", 2)
    lines = measured("steps")
    for optimizer in ("muon", "adamw"):
        for layer in LAYERS:
            line = lines[f"chess-small step, {layer}, {optimizer} of tokens/s of gelu"]
            assert (line["largest_load"] is None) == (layer in ("monet-hd", "monet-vd", "peer"))
            # The recipe's own optimiser is profiled.
            assert set(line["shares"]) == (
                {"attention", "router", "units", "optimiser"} if optimizer == "muon" else set()
            )
            assert ("router" in (line["note"] or "")) == (optimizer == "muon")
        (dense,) = [lines[name] for name in lines if name.startswith(f"chess-small step, gelu, {optimizer}")]
        assert dense["unit"] == "share" and dense["value"] > 0 and "2 rows" in dense["note"]
        assert set(dense["shares"]) == ({"attention", "feed-forward", "optimiser"} if optimizer == "muon" else set())
    assert "--nanogpt" in lines["dense step of chess-small with 4 x its width, adamw"]["skipped"]


@pytest.mark.skipif("NANOGPT" not in os.environ, reason="NANOGPT does not name a checkout of nanoGPT")
def test_nanogpt_computes_what_we_compute() -> None:
    lines = measured("steps", nanogpt=Path(os.environ["NANOGPT"]))
    (line,) = [lines[name] for name in lines if "nanoGPT" in name]
    assert line["loss_difference"] < 1e-5


def test_traces_say_what_is_missing() -> None:
    (line,) = measured("traces").values()
    assert "--circuit-tracer" in line["skipped"]
    with pytest.raises(ValueError, match=r"cannot run circuit-tracer: .*; install it there"):
        measured("traces", circuit_tracer=Path(sys.executable))


@pytest.mark.skipif(
    "CIRCUIT_TRACER" not in os.environ, reason="CIRCUIT_TRACER does not name an interpreter that has it"
)
def test_edges_are_those_of_circuit_tracer() -> None:
    (line,) = measured("traces", circuit_tracer=Path(os.environ["CIRCUIT_TRACER"])).values()
    # Tokens, features and errors of 5 tokens, and the features of layer 0 of these.
    assert line["edges"] > 200 and line["edge_difference"] < 1e-4


@pytest.mark.parametrize("name", ["gelu", "moe-x", "switch", "monet-hd", "monet-vd", "peer"])
def test_parts_of_a_model_run_on_their_own(name: str) -> None:
    torch.manual_seed(0)
    model = GlassForCausalLM(
        GlassConfig(ffn=name, width=16, layers=2, heads=2, active_width=32, num_experts=4, context=8, init_std=0.3)
    )
    before = {key: value.clone() for key, value in model.state_dict().items()}
    parts = layer_parts(model, 2, 8, torch.device("cpu"), torch.float32)
    assert set(parts) == {"attention", "feed-forward"} | (set() if name == "gelu" else {"router"})
    for run in parts.values():
        run()
    assert all(p.grad is None for p in model.parameters()), "gradients of parts must not reach the step"
    state = model.state_dict()
    assert all(torch.equal(before[key], state[key]) for key in before if "running" not in key and "query_" not in key)
    routed = route(model.feed_forwards()[0], torch.randn(5, 16))
    assert (routed is None) == (name == "gelu")


def test_shapes_are_counted() -> None:
    lines = measured("shapes")
    for name in ("monet-hd", "monet-vd", "peer"):
        for recipe in ("chess-small", "chess-paper"):
            line = lines[f"{name}, matched, {recipe} of active parameters of the dense layer"]
            assert line["met"] and line["value"] == line["active_parameters"] / line["active_parameters_of_dense"]
    own = {name.split(",")[0]: line for name, line in lines.items() if "own shape" in name}
    assert own["monet-hd"]["value"] == own["monet-vd"]["value"] == pytest.approx(2.06, abs=0.005)
    assert own["monet-hd"]["value_with_shared_router"] == pytest.approx(1.31, abs=0.005)
    assert own["peer"]["value"] == pytest.approx(0.66, abs=0.005)
    assert all(line["met"] is None for line in own.values())


def test_peers_need_checkouts() -> None:
    lines = measured("peers")
    assert "--peer-pytorch" in lines["peer layer"]["skipped"] and "--monet" in lines["monet layers"]["skipped"]


def same_function(lines: dict[str, dict[str, Any]], layers: int) -> None:
    assert len(lines) == 4 * layers
    for line in lines.values():
        assert line["target"] == {"at_least": 1.0}
        for key in line:
            if "difference" in key:
                assert line[key] < 1e-5, key


@pytest.mark.skipif("PEER" not in os.environ, reason="PEER does not name a checkout of PEER-pytorch")
def test_peer_pytorch_computes_what_we_compute() -> None:
    lines = measured("peers", peer_pytorch=Path(os.environ["PEER"]))
    same_function({name: line for name, line in lines.items() if "skipped" not in line}, 1)


@pytest.mark.skipif("MONET" not in os.environ, reason="MONET does not name a checkout of dmis-lab/Monet")
def test_monet_computes_what_we_compute() -> None:
    lines = measured("peers", monet=Path(os.environ["MONET"]))
    same_function({name: line for name, line in lines.items() if "skipped" not in line}, 2)


def test_memory_of_a_row() -> None:
    (line,) = measured("memory").values()
    assert line["name"] == "memory of a chess-small row, monet-vd"
    assert line["unit"] == "GiB" and line["value"] > 0.2 and line["target"] == {"at_most": 6.0}


def test_reading_pgn() -> None:
    lines = measured("data")
    assert len(lines) == 2
    for line in lines.values():
        assert line["games"] == line["games_of_peer"] == TOY.read_games


def test_reading_pgn_of_ones_own(tmp_path: Path) -> None:
    file = tmp_path / "mine.pgn"
    file.write_text('[Event "a"]\n\n1. e4 e5 *\n\n[Event "b"]\n\n1. e4 e6 2. Qxh7 *\n\n')
    lines = measured("data", pgn=file)
    checked = lines["reading PGN, every move checked legal of games/s of chess.pgn.read_game"]
    trusted = lines["reading PGN, text only (--trust) of games/s of chess.pgn.read_game"]
    assert (checked["games"], checked["games_of_peer"], trusted["games"]) == (1, 1, 2)


@pytest.fixture
def forked_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs of the bench in processes that are forked; a new interpreter runs those of other tests."""

    def run(command: list[str], **options: Any) -> "subprocess.CompletedProcess[str]":
        assert command[:2] == [sys.executable, "-c"]
        return forked.run(command[3:], cwd=options["cwd"], program=command[2], check=True)

    for module in (boards, stores):
        monkeypatch.setattr(
            module, "subprocess", SimpleNamespace(run=run, PIPE=subprocess.PIPE, DEVNULL=subprocess.DEVNULL)
        )


@pytest.mark.usefixtures("forked_programs")
def test_boards_scores_are_those_of_the_brute_force() -> None:
    lines = measured("boards")
    apart = [line for line in lines.values() if line["unit"] == "difference"]
    assert len(apart) == 2
    for line in apart:
        assert line["met"] and line["value"] <= 1e-6 and line["coverage"] > 0 and line["reconstruction"] > 0
    (memory,) = [line for line in lines.values() if line["unit"] == "GiB"]
    assert memory["value"] > 0.1


@pytest.mark.usefixtures("forked_programs")
def test_gathering_examples_leaves_as_many_features_as_configured() -> None:
    lines = measured("stores")
    speeds, (memory,) = ([line for line in lines.values() if line["unit"] == unit] for unit in ("ratio", "GiB"))
    assert [line["name"].split()[3] for line in speeds] == ["2048", "4096"] and memory["value"] > 0.1
    assert all(line["value"] > 0 and line["tokens_per_second"] > 0 for line in speeds)
    active = float(speeds[0]["name"].split()[-3])
    assert TOY.active_features / 2 < active < TOY.active_features * 2


def test_starting() -> None:
    lines = measured("startup")
    assert {"glassmoe --help", "import glassmoe"} <= set(lines)
    assert "--quickstart" in lines["glassmoe quickstart"]["skipped"]


def test_the_seconds_to_a_loss() -> None:
    curve = [(10.0, 3.0), (20.0, 2.0), (30.0, 2.5), (40.0, 1.0)]
    assert seconds_to(curve, 3.5) == seconds_to(curve, 3.0) == 10.0
    assert seconds_to(curve, 2.25) == 17.5  # three quarters of the way from 3.0 to 2.0
    assert seconds_to(curve, 2.0) == 20.0
    assert seconds_to(curve, 1.75) == 35.0  # halfway from 2.5 to 1.0
    with pytest.raises(ValueError, match=r"never reaches a loss of 0\.5; its lowest is 1\.0"):
        seconds_to(curve, 0.5)


def test_tokens_per_second_by_hand(tmp_path: Path) -> None:
    """From step 2 to step 4: 60 tokens in 3 seconds. Validation lines and the first step do not count."""
    lines = [
        {"step": 1, "tokens": 30, "seconds": 9.0, "loss": 3.0},
        {"step": 2, "tokens": 60, "seconds": 10.0, "loss": 3.0},
    ]
    lines += [{"step": 2, "valid_loss": 3.0}, {"step": 4, "tokens": 120, "seconds": 13.0, "loss": 2.0}]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    assert tokens_per_second(tmp_path / "metrics.jsonl", 2) == 20


@pytest.mark.slow
def test_two_trainings_side_by_side() -> None:
    if (os.cpu_count() or 1) < 2:
        pytest.skip("needs two cores")
    lines = measured("together")
    assert len(lines) == 2 and all(line["value"] > 0 for line in lines.values())


def test_learning_needs_a_checkout(tmp_path: Path) -> None:
    (line,) = measured("learning").values()
    assert "--before CHECKOUT" in line["skipped"]
    with pytest.raises(ValueError, match="--before takes a checkout of glassmoe"):
        measured("learning", before=tmp_path, games=tmp_path)


@pytest.mark.slow
def test_learning_beside_another_checkout(tmp_path: Path) -> None:
    generate(tmp_path, games=60, progress=False)
    for line in measured("learning", before=ROOT, games=tmp_path).values():
        before, now = ([loss for _, loss in line[f"curve_{name}"]] for name in ("before", "now"))
        assert line["step"] == [2, 4] and before == now == sorted(now, reverse=True) and line["loss"] == now[-1]


@pytest.mark.slow
def test_fits_to_a_given_model(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(made_up_texts(80), 300)
    random_llama().save_pretrained(tmp_path / "model")
    (tmp_path / "model/tokenizer.json").write_text(tokenizer)
    (tmp_path / "model/tokenizer_config.json").write_text('{"bos_token": "<|endoftext|>"}')
    prepared(tmp_path / "text", made_up_texts(300), tokenizer=str(tmp_path / "model"), valid_share=0.2)
    lines = measured("model-coders", model=tmp_path / "model", layer=1, data=tmp_path / "text")
    of = "tokens per CPU second of the bare forward pass to layer 1"
    for what in ("harvest", "fit of three coders"):
        assert lines[f"{what} of {of}"]["tokens_per_second"] > 0
    assert 0 < lines["validation of CPU seconds of the fit of three coders"]["value"] < 1
    assert lines["memory of the fit of three coders"]["value"] > 0.1
    for title in ("topk sae, whole fit", "transcoder, whole fit"):
        name = next(name for name in lines if name.startswith(f"{title} to a given model"))
        assert find_spec("sparsify") is not None or "install a peer" in lines[name]["skipped"]
    (line,) = measured("model-coders").values()
    assert "--model FOLDER" in line["skipped"]


def test_the_quickstart() -> None:
    lines = measured("startup", quickstart=True)
    assert lines["glassmoe quickstart"]["unit"] == "seconds"
    assert lines["memory of glassmoe quickstart"]["value"] > 0.1
    told = lines["board properties that single features of the quickstart's model detect"]
    assert told["value"] == sum(each["f1"] >= 0.9 for each in told["tracked"]) and told["met"] is False


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "deep/bench.json"
    words = ["--only", "layers", "--tokens", "64", "--widths", "16", "--repeats", "1", "--out", str(out)]
    main(words)
    assert "moe-x layer, d=16" in capsys.readouterr().out
    figures = json.loads(out.read_text())
    assert figures["schema_version"] == 2 and figures["command"] == "python -m benchmarks --only layers"
    assert [line["group"] for line in figures["rows"]] == ["layers"] * 4
    other = {**figures["rows"][0], "group": "boards", "name": "kept line", "commit": "earlier"}
    out.write_text(json.dumps({**figures, "rows": [*figures["rows"], other], "notes": ["why it fell short"]}))
    main([*words, "--json"])
    assert json.loads(capsys.readouterr().out)["tokens"] == 64
    assert [line["group"] for line in json.loads(out.read_text())["rows"]] == ["layers"] * 4 + ["boards"]
    assert "earlier" in out.with_suffix(".md").read_text()
    # What another machine measured does not stay beside this one's.
    out.write_text(json.dumps({**json.loads(out.read_text()), "hardware": "another"}))
    main(words)
    assert [line["group"] for line in json.loads(out.read_text())["rows"]] == ["layers"] * 4
    page = out.with_suffix(".md").read_text()
    assert "| moe-x layer, d=16" in page and "why it fell short" in page
    assert json.loads(out.read_text())["notes"] == ["why it fell short"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--only", "layers,boats"], "boats"),
        (["--only", ""], "expected names"),
        (["--nanogpt", "nowhere"], "nowhere/model.py"),
        (["--peer-pytorch", "nowhere"], "nowhere/PEER_pytorch/PEER.py"),
        (["--monet", "nowhere"], "nowhere/modeling_monet.py"),
        (["--pgn", "nowhere.pgn"], "nowhere.pgn"),
        (["--text", "nowhere.jsonl"], "nowhere.jsonl"),
        (["--widths", "12"], "multiples of 8"),
        (["--repeats", "0"], "above 0"),
    ],
)
def test_mistakes_are_reported_before_anything_is_measured(words: list[str], says: str) -> None:
    with pytest.raises(ValueError) as error:
        main(words)
    assert says in str(error.value)


def test_a_folder_that_is_not_nanogpt(tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text("x = 1\n")
    with pytest.raises(ValueError, match="GPTConfig"):
        bench(["steps"], TOY, nanogpt=tmp_path)


def test_a_checkout_whose_packages_are_missing(tmp_path: Path) -> None:
    (tmp_path / "PEER_pytorch").mkdir()
    (tmp_path / "PEER_pytorch/PEER.py").write_text("import no_such_package_anywhere\n")
    with pytest.raises(ValueError, match="imports no_such_package_anywhere, which is not installed"):
        bench(["peers"], TOY, peer_pytorch=tmp_path)


def test_a_folder_that_is_not_monet(tmp_path: Path) -> None:
    (tmp_path / "modeling_monet.py").write_text("class MonetRouter: ...\n")
    with pytest.raises(ValueError, match="no MonetMoHDE and MonetMoVDE"):
        bench(["peers"], TOY, monet=tmp_path)


def test_coders_beside_each_other() -> None:
    """Peers have lines where they are installed, and else say what it takes; all is real, and small."""
    lines = measured("coders")
    step = lines["mxd step of tokens/s of the transcoder with as many parameters"]
    # A transcoder of 128 features has 128 * 33 + 16 parameters; 64 hidden units take 64 * 33 + 16 of them.
    assert step["note"].startswith("64 experts, 64 hidden units")
    assert lines["writing 4 of 256 features of speed of a dense product"]["difference"] < 1e-5
    for module, package in PEERS.items():
        if find_spec(module) is None:
            assert f"pip install {package}" in lines[f"coders beside {package}"]["skipped"]
        else:
            assert lines[f"topk sae, whole fit of tokens/s of {package}"]["tokens_per_second_of_peer"] > 0


def test_pages() -> None:
    lines = measured("pages")
    build, listed = lines["pages of 64 features"], lines["list of 128 features, from its address to its rows"]
    assert build["target"] == {"at_most": 60.0} and build["value"] > 0
    assert "chromium" in listed["skipped"] if find_chromium() is None else listed["target"] == {"at_most": 1.0}


def test_text() -> None:
    """Peers have lines where they are installed, and else say what it takes."""
    lines = measured("text")
    memory = lines["memory of preparing 0.003 GB of text"]
    assert memory["unit"] == "GiB" and memory["target"] == {"at_most": 1.0} and memory["value"] > 0.05
    assert memory["documents"] > 100 and memory["tokens"] > 100_000
    writing = lines["generation, d=16, moe-x of tokens/s of gelu"]
    assert writing["target"] == {"at_least": 0.9} and writing["generated"] == TOY.generated
    assert writing["active_parameters"] == pytest.approx(writing["active_parameters_of_dense"], rel=0.08)
    if find_spec("datasets") is None:
        assert "pip install datasets" in lines["tokenising text"]["skipped"]
    else:
        same_tokens(lines["tokenising text of bytes/s of datasets.map"])
    if find_spec("accelerate") is None:
        assert "pip install accelerate" in lines["training steps beside Trainer"]["skipped"]
    else:
        for layer in ("gelu", "moe-x"):
            line = lines[f"text-small training, {layer}, adamw of tokens/s of transformers' Trainer"]
            assert line["target"] == {"at_least": 1.0} and line["tokens_per_second_of_peer"] > 0


def same_tokens(line: dict[str, Any]) -> None:
    assert line["target"] == {"at_least": 2.0} and line["duplicates"] == 0
    assert line["tokens"] == line["tokens_of_peer"] > 10_000


def test_generated_text_has_words_with_the_frequencies_of_zipf(tmp_path: Path) -> None:
    file = write_text_file(tmp_path / "a.jsonl", 300_000)
    texts = [json.loads(line)["text"] for line in file.read_text().splitlines()]
    assert 300_000 <= file.stat().st_size < 400_000 and len(set(texts)) == len(texts)
    counts = Counter(word for text in texts for word in text.split())
    (_, first), (_, second) = counts.most_common(2)
    assert 1.6 < first / second < 2.4
    assert sum(count == 1 for count in counts.values()) > len(counts) / 3
    write_text_file(tmp_path / "b.jsonl", 300_000)
    assert (tmp_path / "b.jsonl").read_bytes() == file.read_bytes()
