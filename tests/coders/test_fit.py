"""A fit from end to end: it learns, resumes to the same bits, is loaded and measured, and says what it cannot do."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from glassmoe import config as configuration
from glassmoe.chess.board_coders import CoderResult, evaluate_coder
from glassmoe.coders.configuration import AUTOENCODERS, CoderConfig, FitConfig
from glassmoe.coders.files import load_coder
from glassmoe.coders.fit import CoderTask, fit
from glassmoe.config import DataConfig, ModelConfig, OptimizerConfig, RunConfig, TrainConfig
from glassmoe.data.corpus import Corpus, Rows
from glassmoe.inspect.readers import one_reader, open_coders
from glassmoe.measure.perplexity import perplexity
from glassmoe.measure.saved import read_measure
from glassmoe.model.subject import load_subject
from glassmoe.training import checkpoint
from glassmoe.training.distributed import Processes
from glassmoe.training.language import train
from tiny_runs import Interrupt, assert_same_bits, lines, stop_after


def evaluate(path: Path, corpus: Corpus, source: str | None = None, **options: object) -> CoderResult:
    subject, readers = open_coders(path, source)
    return evaluate_coder(subject, one_reader(readers), corpus, **options)


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from glassmoe.chess.selfplay import generate

    out = tmp_path_factory.mktemp("played") / "games"
    generate(out, games=80, seed=1, valid_share=0.4, workers=1, progress=False)
    return out


@pytest.fixture(scope="module")
def source(played: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of two blocks, trained for a few steps on rows of 256 characters."""
    config = RunConfig(
        data=DataConfig(path=str(played), rows="games:256"),
        model=ModelConfig(ffn="relu", layers=2, heads=2, width=16, active_width=32, num_experts=4, init_std=0.2),
        optimizer=OptimizerConfig(warmup_steps=2),
        train=TrainConfig(steps=6, batch_rows=8, micro_rows=8, eval_every=6, eval_rows=8, checkpoint_every=6),
    )
    return train(config, tmp_path_factory.mktemp("source") / "run")


def tiny(source: Path, kind: str = "topk", coder: dict | None = None, seed: int = 0, **settings: object) -> FitConfig:
    train_settings = {
        "steps": 12,
        "batch_rows": 8,
        "micro_rows": 4,
        "eval_every": 6,
        "eval_rows": 8,
        "checkpoint_every": 3,
        "log_every": 1,
    }
    default = {"layer": 1, "features": 48, "k": 4, "l1": 0.01, "anneal_start": 0.3, "anneal_updates": 4}
    return FitConfig(
        source=str(source),
        coder=CoderConfig(kind=kind, **{**default, **(coder or {})}),
        seed=seed,
        data=DataConfig(rows="games:64"),
        optimizer=OptimizerConfig(name="adamw", lr=1e-2, betas=(0.9, 0.999), weight_decay=0.0, warmup_steps=2),
        train=TrainConfig(**{**train_settings, **settings}),
    )


@pytest.mark.parametrize("kind", AUTOENCODERS)
def test_resume_is_bit_exact_for_every_kind(
    kind: str, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through changes of p (after steps 4, 6, 8 and 10), its queue, silent features and the auxiliary loss."""
    config = tiny(source, kind, {"k": 2, "features": 96, "dead_tokens": 400}, precision="fp32")
    fit(config, tmp_path / "whole")
    with monkeypatch.context() as patched, pytest.raises(Interrupt):
        stop_after(6, patched)
        fit(config, tmp_path / "parts")
    torch.manual_seed(99)  # a new process has another random state
    fit(config, tmp_path / "parts")
    assert_same_bits(tmp_path / "whole", tmp_path / "parts", "coder.safetensors")
    last = lines(tmp_path / "whole")[-1]
    assert last["step"] == 12 and {"variance_explained", "l0", "dead", "valid_loss", "valid_l0"} <= last.keys()
    parts = {"topk": {"auxiliary"}, "batchtopk": {"auxiliary"}, "p-anneal": {"sparsity", "p"}}
    assert parts.get(kind, {"sparsity"}) <= last.keys()
    if kind == "p-anneal":
        assert [line["p"] for line in lines(tmp_path / "whole")] == pytest.approx(
            [1] * 3 + [0.8] * 2 + [0.6] * 2 + [0.4] * 2 + [0.2] * 3
        )
    if kind == "topk":
        assert last["dead"] > 0 and last["auxiliary"] > 0


@pytest.mark.parametrize("kind", AUTOENCODERS)
def test_it_learns_and_is_loaded_as_it_was(kind: str, source: Path, tmp_path: Path) -> None:
    config = tiny(source, kind, steps=80, eval_every=80, checkpoint_every=80, log_every=5, snapshot_every=40)
    out = fit(config, tmp_path / "coder")
    first, *_, last = lines(out)
    assert last["loss"] < 0.6 * first["loss"] and last["variance_explained"] > first["variance_explained"]
    assert last["valid_variance_explained"] > 0.5
    coder, found = load_coder(out)
    assert not coder.training and int(coder.step) == 80
    torch.testing.assert_close(coder.w_dec.norm(dim=1), torch.ones(48))
    assert found == configuration.load_as(FitConfig, out / "config.yaml")
    assert found.data.path == load_subject(str(source), own=True).config.data.path
    assert replace(found.coder, dead_tokens=None, site=None, auxiliary=None) == config.coder
    state = load_file(checkpoint.latest(out / "state"))
    assert all(torch.equal(t, state[f"model/{name}"]) for name, t in coder.state_dict().items())
    if kind == "topk":
        assert last["l0"] == last["valid_l0"] == 4
    early, _ = load_coder(out / "snapshots" / "step-00000040")
    assert int(early.step) == 40 and not torch.equal(early.w_dec, coder.w_dec)
    environment = json.loads((out / "environment.json").read_text())
    assert environment["total_parameters"] == sum(p.numel() for p in coder.parameters())
    assert environment["data_sha256"] == Corpus.open(found.data.path).fingerprint


@pytest.mark.parametrize("kind", ["l1", "p-anneal", "gated"])
def test_a_larger_penalty_leaves_fewer_features(kind: str, source: Path, tmp_path: Path) -> None:
    settings = {"steps": 50, "eval_every": 50, "checkpoint_every": 50, "log_every": 50}
    l0 = [
        lines(fit(tiny(source, kind, {"l1": l1}, **settings), tmp_path / str(l1)))[-1]["valid_l0"]
        for l1 in (0.001, 1.0)
    ]
    assert l0[0] > l0[1] + 2


def test_k_is_reached(source: Path, tmp_path: Path) -> None:
    for k in (1, 9):
        out = fit(tiny(source, "topk", {"k": k}, steps=4), tmp_path / str(k))
        assert lines(out)[-1]["valid_l0"] == pytest.approx(k, abs=0.2)


def test_accumulation_changes_only_rounding(source: Path, tmp_path: Path) -> None:
    """Passes of unequal numbers of tokens; with the auxiliary loss, which is a mean over tokens too."""
    coder = {"k": 2, "features": 96, "dead_tokens": 400}
    one, four = (
        lines(fit(tiny(source, coder=coder, steps=8, micro_rows=m, precision="fp32"), tmp_path / str(m)))
        for m in (8, 2)
    )
    assert one[-1]["auxiliary"] > 0
    for a, b in zip(one, four, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)
        assert a["auxiliary"] == pytest.approx(b["auxiliary"], rel=1e-4) and a["dead"] == b["dead"]


def test_two_processes_fit_as_one(source: Path, tmp_path: Path) -> None:
    config = tiny(source, "p-anneal", steps=6, precision="fp32")
    fit(config, tmp_path / "one")
    path = tmp_path / "fit.yaml"
    path.write_text(configuration.to_yaml(config))
    code = (
        "import sys; from pathlib import Path; from glassmoe.config import load_as\n"
        "from glassmoe.coders.configuration import FitConfig; from glassmoe.coders.fit import fit\n"
        "fit(load_as(FitConfig, Path(sys.argv[1])), Path(sys.argv[2]))\n"
    )
    (tmp_path / "fit.py").write_text(code)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*command, str(tmp_path / "fit.py"), str(path), str(tmp_path / "two")],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=180,
    )
    assert done.returncode == 0, done.stderr
    for a, b in zip(lines(tmp_path / "one"), lines(tmp_path / "two"), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)
        assert (a["dead"], a["p"]) == (b["dead"], b["p"])
        assert a["penalty_weight"] == pytest.approx(b["penalty_weight"], rel=1e-4)


def test_padding_is_not_read_and_the_bias_starts_at_the_mean(source: Path, tmp_path: Path) -> None:
    config = tiny(source, steps=1)
    config.data.rows = "games:250"
    task = CoderTask(config, tmp_path / "out", torch.device("cpu"), Processes())
    tokens, lengths = task.rows["train"].batch(task._indices(0))
    assert lengths.min() < 249 < lengths.max()
    streams = []
    for row, length in zip(tokens, lengths, strict=True):
        given = torch.from_numpy(row[None, : min(int(length), 249)]).long()
        decoder = task.subject.model.model
        x = decoder.tokens(given) + decoder.positions(torch.arange(given.shape[1]))
        for block in decoder.layers:
            x = block(x, None, None)[0]
        streams.append(x[0])
    expected = torch.cat(streams)
    torch.testing.assert_close(task._read(tokens, lengths)[task.places[0]].x, expected, rtol=2e-2, atol=2e-2)
    assert task.batch(0).tokens == len(expected)
    (tmp_path / "out").mkdir()
    task.begin()
    torch.testing.assert_close(task.module.b_dec, expected.mean(0), rtol=1e-2, atol=1e-2)


def test_what_is_left_open_is_filled_in(source: Path, played: Path, tmp_path: Path) -> None:
    config = tiny(source, coder={"features": None, "dead_tokens": None}, steps=2)
    coder, found = load_coder(fit(config, tmp_path / "coder"))
    assert found.coder.features == coder.num_features == 8 * 16
    assert found.coder.dead_tokens == coder.dead_tokens == 2 * 8 * 63 // 30
    assert found.data.path == str(played) and found.data.tokens == "characters"
    fit(config, tmp_path / "coder")  # the same fit, though config.yaml says more


def test_a_coder_is_measured_and_the_figures_are_saved(source: Path, played: Path, tmp_path: Path) -> None:
    out = fit(tiny(source, steps=30, eval_every=30, checkpoint_every=30), tmp_path / "coder")
    corpus = Corpus.open(played)
    found = evaluate(out, corpus, games=5, workers=1, max_rows=8, micro_rows=4)
    assert {k: getattr(found, k) for k in ("kind", "layer", "features", "step", "source")} == {
        "kind": "topk",
        "layer": 1,
        "features": 48,
        "step": 30,
        "source": str(source),
    }
    (entry,) = found.boards.layers
    assert entry.layer == 1 and entry.width == 48 and entry.l0 == pytest.approx(4, abs=0.1)
    assert entry.subsample.width == 32 and entry.random.coverage > 0
    assert found.splice.rows_read == 8 and found.splice.l0 == pytest.approx(4, abs=0.1)
    assert found.splice.loss < found.splice.loss_zero
    record = read_measure(out, "coder")
    assert record.values == json.loads(json.dumps(found.to_dict())) and record.step == 30
    assert record.result(CoderResult) == found
    assert record.data_sha256 == corpus.fingerprint
    # The model may be moved, but not be another one.
    moved = shutil.copytree(source, tmp_path / "moved")
    again = evaluate(out, corpus, str(moved), games=5, workers=1, max_rows=8, micro_rows=4, controls=False)
    assert again.splice == found.splice and again.boards.layers[0].random is None
    weights = load_file(moved / "model.safetensors")
    weights["model.norm.weight"] *= 2
    save_file(weights, moved / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"was fitted to other weights than .*moved holds"):
        open_coders(out, str(moved))


def test_the_loss_of_a_coder_is_that_of_all_validation_rows(source: Path, tmp_path: Path) -> None:
    """A table compares it with losses of models, which are those of all rows."""
    from glassmoe.chess.selfplay import generate

    generate(tmp_path / "games", games=600, valid_share=0.9, workers=1, progress=False)
    corpus = Corpus.open(tmp_path / "games")
    out = fit(tiny(source, steps=2), tmp_path / "coder")
    found = evaluate(out, corpus, games=1, workers=1, controls=False)
    rows = Rows(corpus.split("valid"), "games:64")
    assert found.splice.rows_read == len(rows) > 512
    assert found.splice.loss == pytest.approx(perplexity(load_subject(source).model, rows).loss, rel=1e-4)


def test_a_model_that_reads_moves_is_read_too(tmp_path: Path) -> None:
    """Its games are those of its run, made beside it."""
    run = train(
        RunConfig(
            data=DataConfig(tokens="moves", rows="games:40", synthetic_games=300),
            model=ModelConfig(ffn="relu", layers=1, heads=2, width=16, active_width=32),
            train=TrainConfig(steps=2, batch_rows=4, micro_rows=4, eval_rows=4),
        ),
        tmp_path / "run",
    )
    config = tiny(run, coder={"layer": 0}, steps=3)
    config.data.rows = "games:40"
    out = fit(config, tmp_path / "coder")
    assert load_coder(out)[1].data.tokens == "moves"
    found = evaluate(out, Corpus.open(run / "games"), games=1, workers=1, max_rows=2)
    assert found.boards.layers[0].width == 48 and found.splice.tokens <= 2 * 39


def test_mistakes_are_named(source: Path, noise_games: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"layer 2 is not in this model: it has layers 0 to 1"):
        fit(tiny(source, coder={"layer": 2}), tmp_path / "a")
    config = tiny(source)
    config.data.rows = "games:300"
    with pytest.raises(
        ValueError, match=r"games:300 gives .* 299 tokens .* is 256; give shorter rows, such as games:256"
    ):
        fit(config, tmp_path / "a")
    with pytest.raises(ValueError, match="there is no run at"):
        fit(replace(tiny(source), source=str(tmp_path / "nowhere")), tmp_path / "a")
    plain = tmp_path / "plain"
    load_subject(str(source), own=True).model.save_pretrained(plain)
    with pytest.raises(ValueError, match=r"is not a run with data of its own; give data, prepared games"):
        fit(tiny(plain), tmp_path / "a")
    with pytest.raises(ValueError, match=r"train.batch_rows is 8, fewer than the 9 processes"):
        CoderTask(tiny(source, micro_rows=2), tmp_path / "a", torch.device("cpu"), Processes(0, 9))
    with pytest.raises(ValueError, match=r"train.compile is true; a coder is not compiled"):
        tiny(source, compile=True)
    with pytest.raises(ValueError, match="seed is -1"):
        tiny(source, seed=-1)
    assert not (tmp_path / "a").exists()

    out = fit(tiny(source, steps=2), tmp_path / "coder")
    with pytest.raises(ValueError, match=r"another configuration \(coder.k: 4 -> 5\)"):
        fit(tiny(source, coder={"k": 5}, steps=2), out)
    config = tiny(source, steps=2)
    config.data.path = str(noise_games)
    with pytest.raises(ValueError, match="was trained on different data"):
        fit(config, out)
    changed = shutil.copytree(source, tmp_path / "changed")
    weights = load_file(changed / "model.safetensors")
    weights["model.norm.weight"] *= 2
    save_file(weights, changed / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"was fitted to other weights than .*changed holds now"):
        fit(tiny(changed, steps=2), out)

    with pytest.raises(ValueError, match=r"holds no coder: it has no config.yaml"):
        load_coder(tmp_path)
    with pytest.raises(ValueError, match=r"unknown configuration key model; did you mean|known: source"):
        load_coder(source)
    (out / "coder.safetensors").write_bytes((out / "coder.safetensors").read_bytes()[:500])
    with pytest.raises(ValueError, match=r"could not be loaded: .* going on with the fit writes it again"):
        load_coder(out)
    fit(tiny(source, steps=2), out)
    assert int(load_coder(out)[0].step) == 2
    (out / "coder.safetensors").unlink()
    with pytest.raises(ValueError, match="a fit without a coder yet"):
        load_coder(out)


def test_a_file_that_is_not_this_coders_is_refused(source: Path, tmp_path: Path) -> None:
    """Names or shapes that are not this coder's are said, not guessed at."""
    out = fit(tiny(source, steps=2), tmp_path / "coder")
    tensors = load_file(out / "coder.safetensors")
    save_file({**tensors, "b_enc": tensors["b_enc"][:5].clone()}, out / "coder.safetensors", {"schema_version": "1"})
    with pytest.raises(ValueError, match=r"could not be loaded: .*b_enc"):
        load_coder(out)
    save_file(tensors, out / "coder.safetensors", {"schema_version": "2"})
    with pytest.raises(ValueError, match="newer than the 1"):
        load_coder(out)


def test_a_configuration_is_written_and_read_whole(tmp_path: Path) -> None:
    config = FitConfig(source="runs/a", coder=CoderConfig(layer=2, kind="gated", l1=0.3))
    (tmp_path / "config.yaml").write_text(configuration.to_yaml(config))
    assert configuration.load_as(FitConfig, tmp_path / "config.yaml") == config
    assert config.optimizer.weight_decay == 0 and config.optimizer.lr == 3e-4
    short = configuration.parse(FitConfig, {"source": "runs/a", "coder": {"layer": 2, "kind": "gated", "l1": 0.3}})
    assert short == config
    for values, message in (
        (
            {"source": "a", "coder": {"layer": 1, "knd": "topk"}},
            r"unknown configuration key coder.knd; did you mean coder.kind",
        ),
        (
            {"source": "a", "coder": {"layer": 1, "kind": "jump"}},
            "unknown coder 'jump'; did you mean jumprelu",
        ),
        ({"source": "a", "coder": {"layer": "two"}}, "coder.layer takes a whole number"),
        ({"source": "a", "coder": {}}, r"coder"),
        ({"source": "a", "coder": {"layer": 1}, "schema_version": 2}, "newer than the 1"),
    ):
        with pytest.raises(ValueError, match=message):
            configuration.parse(FitConfig, values)
