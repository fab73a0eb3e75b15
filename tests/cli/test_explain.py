"""From the command line to the files: runs and coders are explained, compared, and mistakes told."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.numpy import load_file

import glassmoe
from chat_server import Reply, said, serving
from forked import torchrun
from glassmoe.checksums import read_json
from glassmoe.chess.selfplay import generate
from glassmoe.cli.main import main
from glassmoe.explaining import opening
from glassmoe.explaining.results import FeatureExplanation, LayersExplained, MeanInterval
from glassmoe.inspect.store import open_store
from glassmoe.model import GlassConfig, GlassForCausalLM
from glassmoe.papers.moex.best_explained import KindScores, speaks_of
from glassmoe.papers.moex.chess_explained import ChessExplainedResults
from glassmoe.papers.moex.figure8 import Figure8Results
from glassmoe.training.language import train
from text_files import made_up_texts, prepared, random_gpt2, random_llama
from tiny_runs import tiny

SMALL = "--per-decile 1 --silent 6 --tokens 3000"


@pytest.fixture(scope="module")
def text_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepared text, a MoE-X and a GELU model of it after a few steps, and coders of the latter."""
    folder = tmp_path_factory.mktemp("text")
    prepared(folder / "text", made_up_texts(300), valid_share=0.5)
    for ffn in ("moe-x", "gelu"):
        config = tiny(folder / "text", ffn)
        config.data.tokens, config.data.rows = "text", "packed:33"
        train(config, folder / ffn)
    words = f"decompose {folder / 'gelu'} --layer 1 --coders mxd,transcoder --k 4 --tokens 2048 --batch-tokens 512"
    assert main([*words.split(), "--features", "48", "--out", str(folder / "coders")]) == 0
    return folder


@pytest.fixture(scope="module")
def chess_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chess")
    generate(folder / "games", games=300, seed=3, workers=1)
    config = tiny(folder / "games", steps=2)
    config.data.rows = "games:256"
    train(config, folder / "moe-x")
    return folder / "moe-x"


def lines_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_text_run_is_explained(text_runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = text_runs / "moe-x"
    words = f"explain {run} --layer 1 --features 12 {SMALL}".split()
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert "12 features of 1/moe-x" in printed and "mean over features" in printed and "shuffled" in printed
    lines = lines_of(run / "explanations/1-moe-x/rules.jsonl")
    assert len(lines) == 12 and all(line["judge"] == "rules" and line["board"] is None for line in lines)
    assert all(line["scores"].keys() == {"detection", "fuzzing"} for line in lines if line["explanation"])
    # More features join those that are there; --json prints what the file says.
    assert main([*words, "--json", "--features", "20"]) == 0
    shown, held = json.loads(capsys.readouterr().out), read_json(run / "explanations/1-moe-x/rules.json")
    assert {key: shown[key] for key in held} == held and held["features"] == 20
    assert lines_of(run / "explanations/1-moe-x/rules.jsonl")[:12] == lines
    assert main([*words, "--features", "5-9", "--judge", "none"]) == 0
    file = run / "explanations/1-moe-x/none.jsonl"
    assert {json.loads(line)["feature"] for line in file.read_text().splitlines()} == {5, 6, 7, 8, 9}
    file.unlink(), file.with_suffix(".json").unlink()
    assert main([*words, "--features", "3,17", "--judge", "none"]) == 0
    assert [line["feature"] for line in lines_of(run / "explanations/1-moe-x/none.jsonl")] == [3, 17]


def test_what_needs_a_run_says_so_of_coders(text_runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for verb in ("report", "eval boards", "eval ppl"):
        assert main([*verb.split(), str(text_runs / "coders")]) == 2
        assert "coders holds coders, and a run is needed; glassmoe eval fidelity" in capsys.readouterr().err


def test_opened_coders_have_the_neurons_too(text_runs: Path) -> None:
    path = text_runs / "coders"
    opened, names = glassmoe.load(path, device="cpu"), set(glassmoe.load(path, neurons=True, device="cpu"))
    assert set(glassmoe.load(opened, neurons=True)) == names > set(opened)
    (layer,) = {reader.number for reader in opened.layers.values()}
    assert set(glassmoe.load(opened, layers=layer)) == set(opened)


def test_coders_are_explained(text_runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = f"explain {text_runs / 'coders'} --feature 3 {SMALL}".split()
    assert main(words) == 2
    assert "holds several coders; choose one of" in capsys.readouterr().err
    assert main([*words, "--coder", "transcoder-k4"]) == 0
    (line,) = lines_of(text_runs / "coders/explanations/1-transcoder-k4/rules.jsonl")
    assert line["feature"] == 3


def test_coders_that_are_explained_together_are_explained_as_alone(
    text_runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("alone", "together", "listed"):
        shutil.copytree(text_runs / "coders/1", tmp_path / name / "1")
    words = f"--layer 1 --features 5 --seed 2 {SMALL}".split()
    for coder in ("mxd-k4", "transcoder-k4"):
        assert main(["explain", str(tmp_path / "alone"), *words, "--coder", coder]) == 0
    alone = beside(tmp_path / "alone")
    assert len(alone) > 10
    capsys.readouterr()
    assert main(["explain", str(tmp_path / "together"), *words, "--coder", "all"]) == 0
    printed = capsys.readouterr().out
    assert "1/mxd-k4 " in printed and "detection, shuffled" in printed
    assert printed.count("explanations: ") == 2
    assert main(["explain", str(tmp_path / "listed"), *words, "--coder", "transcoder-k4,1/mxd-k4", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert list(shown) == ["1/transcoder-k4", "1/mxd-k4"]
    assert LayersExplained.from_dict(shown).to_dict() == shown
    for name in ("together", "listed"):
        assert {key: plain_paths(value, name) for key, value in beside(tmp_path / name).items()} == {
            key: plain_paths(value, "alone") for key, value in alone.items()
        }
    # What is there is used; `again` makes all of it anew.
    assert main(["explain", str(tmp_path / "listed"), *words, "--coder", "all", "--again"]) == 0
    assert beside(tmp_path / "listed").keys() == alone.keys()
    assert main(["explain", str(tmp_path / "alone"), *words, "--coder", "mxd-k4,trans"]) == 2
    assert "there is no coder 'trans'" in capsys.readouterr().err


def test_jobs_share_several_coders(text_runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(text_runs / "coders/1", tmp_path / "run/1")
    words = ["explain", str(tmp_path / "run"), *f"--features 5 --coder all {SMALL}".split()]
    for job in range(2):
        assert main([*words, "--shard", f"{job}/2", "--json"]) == 0
        shown = json.loads(capsys.readouterr().out)
        assert [each["shard"] for each in shown.values()] == [f"{job}/2"] * 2
    assert main(["merge", str(tmp_path / "run")]) == 0
    assert {file.parent.name for file in tmp_path.glob("run/features/*/manifest.json")} == {
        "1-mxd-k4",
        "1-transcoder-k4",
    }


def plain_paths(value: object, run: str) -> object:
    """A file's content without the name of the run in it."""
    return value.replace(f"/{run}/", "/run/") if isinstance(value, str) else value


def test_a_chess_run_is_explained_by_the_board(chess_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = f"explain {chess_run} --layer 1 --features 16 {SMALL} --judge none --games 4".split()
    assert main(words) == 0
    assert "board (F1)" in capsys.readouterr().out
    lines = lines_of(chess_run / "explanations/1-moe-x/none.jsonl")
    told = [line for line in lines if line["board"]]
    assert told and all(line["explanation"] == line["board"]["property"] for line in told if not line["silent"])
    assert all(line["scores"] == {} for line in lines)


def beside(run: Path) -> dict[str, object]:
    """Everything that explain and merge made beside a run, by file: lines and values without their order and the paths,
    arrays as they are, sums of strengths rounded."""
    found: dict[str, object] = {}
    for file in sorted([*run.glob("features/**/*"), *run.glob("explanations/**/*")]):
        name = str(file.relative_to(run))
        if file.suffix == ".jsonl":
            found[name] = sorted(file.read_text().splitlines())
        elif file.suffix == ".json":
            found[name] = read_json(file)
        elif file.suffix == ".safetensors":
            arrays = load_file(file)
            if "sums_F" in arrays:
                arrays["sums_F"] = arrays["sums_F"].round(3)
            found[name] = {key: (each.dtype, each.shape, each.tobytes()) for key, each in arrays.items()}
        elif file.is_file():
            found[name] = file.read_bytes()
    return found


@pytest.fixture
def explained_alone(text_runs: Path, tmp_path: Path) -> tuple[Path, list[str]]:
    """A run that one process explained, and the words after its path."""
    words = f"--layer 0 --features 21 {SMALL}".split()
    bare = shutil.ignore_patterns("features", "explanations")
    shutil.copytree(text_runs / "moe-x", tmp_path / "alone", ignore=bare)
    assert main(["explain", str(tmp_path / "alone"), *words]) == 0
    return tmp_path / "alone", words


def test_jobs_make_what_one_process_makes(
    explained_alone: tuple[Path, list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    alone, words = explained_alone
    bare = shutil.ignore_patterns("features", "explanations")
    # Each job works in a copy of the run of its own, as in a cloud; then all files are brought together.
    for job in range(3):
        shutil.copytree(alone, tmp_path / f"job{job}", ignore=bare)
        assert main(["explain", str(tmp_path / f"job{job}"), *words, "--shard", f"{job}/3"]) == 0
        assert f"share {job}/3 of the examples is gathered" in capsys.readouterr().out
    run = tmp_path / "job0"
    assert main(["merge", str(run)]) == 2
    assert "lacks the shares 1/3, 2/3; run these jobs again, then merge" in capsys.readouterr().err
    for job in (1, 2):
        shutil.copytree(tmp_path / f"job{job}/features", run / "features", dirs_exist_ok=True)
    assert main(["merge", str(run)]) == 0
    assert "| examples | 0-moe-x | 3" in " ".join(capsys.readouterr().out.split())
    # Now the features are divided, here in one folder.
    for job in (0, 2):
        assert main(["explain", str(run), *words, "--shard", f"{job}/3"]) == 0
        assert "7 features of 0/moe-x" in capsys.readouterr().out
    assert main(["merge", str(run)]) == 2
    assert "lacks the share 1/3 of rules; run these jobs again" in capsys.readouterr().err
    assert main(["explain", str(run), *words, "--shard", "1/3"]) == 0
    capsys.readouterr()
    assert main(["merge", str(run), "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["merged"]
    assert (row["what"], row["name"], row["jobs"], row["features"]) == ("explanations", "0-moe-x, rules", 3, 21)
    assert beside(run) == beside(alone)
    assert main(["merge", str(run)]) == 2 and "has nothing to merge" in capsys.readouterr().err
    # What is there stays; jobs explain the rest.
    for folder in (alone, run):
        more = ["explain", str(folder), *words, "--features", "27"]
        for job in range(2) if folder == run else ():
            assert main([*more, "--shard", f"{job}/2"]) == 0
        assert main(["merge", str(run)] if folder == run else more) == 0
    assert {line["feature"] for line in lines_of(run / "explanations/0-moe-x/rules.jsonl")} == {
        line["feature"] for line in lines_of(alone / "explanations/0-moe-x/rules.jsonl")
    }
    assert beside(run) == beside(alone)


@pytest.mark.parametrize(
    ("shard", "complaint"),
    [
        ("3/3", "shard is '3/3'; expected the number of this job and the number of jobs, from 0/16 to 15/16"),
        ("1", "shard is '1'; expected"),
        ("-1/3", "shard is '-1/3'; expected"),
        ("0/2 --again", "shard and again do not go together"),
        ("0/2 --prompt x", "shard divides the features of a layer, and prompt shows them on one text"),
    ],
)
def test_shards_that_are_none(text_runs: Path, shard: str, complaint: str, capsys: pytest.CaptureFixture[str]) -> None:
    option, *more = shard.split()
    assert main(["explain", str(text_runs / "moe-x"), "--layer", "0", f"--shard={option}", *more]) == 2
    assert complaint in capsys.readouterr().err


def test_shares_that_do_not_fit_are_refused(
    explained_alone: tuple[Path, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    run, words = explained_alone
    shutil.rmtree(run / "explanations")
    for job, silent in ((0, "6"), (1, "5")):
        assert main(["explain", str(run), *words, "--silent", silent, "--shard", f"{job}/2"]) == 0
    assert main(["merge", str(run)]) == 2
    assert "share 1/2 was made with other settings (protocol) than share 0/2" in capsys.readouterr().err
    assert main(["explain", str(run), *words, "--shard", "0/3"]) == 0
    assert main(["merge", str(run)]) == 2
    assert "holds shares of rules for 2 and of 3 jobs" in capsys.readouterr().err
    assert not (run / "explanations/0-moe-x/rules.jsonl").exists()


def test_processes_share_reading_and_explaining(explained_alone: tuple[Path, list[str]], tmp_path: Path) -> None:
    """Every process of torchrun reads and explains its share; the first one speaks."""
    alone, words = explained_alone
    run = tmp_path / "together"
    shutil.copytree(alone, run, ignore=shutil.ignore_patterns("features", "explanations"))
    for again in ([], [], ["--again"]):
        first, second = torchrun(2, ["explain", str(run), *words, *again])
        assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
        assert "mean over features" in first.stdout and not second.stdout
        assert beside(run) == beside(alone)
    shutil.rmtree(run / "explanations")
    # A job may have several processes: together they are four.
    for job in range(2):
        results = torchrun(2, ["explain", str(run), *words, "--shard", f"{job}/2"])
        assert [each.returncode for each in results] == [0, 0], results[0].stderr
    assert len(list((run / "explanations/0-moe-x").glob("shard-*-of-4/rules.jsonl"))) == 4
    assert main(["merge", str(run)]) == 0
    assert beside(run) == beside(alone)


def test_boards_that_cannot_be_read_can_be_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shape = {"width": 16, "layers": 1, "heads": 2, "active_width": 32, "vocab_size": 32, "context": 64}
    GlassForCausalLM(GlassConfig(ffn="relu", **shape)).save_pretrained(tmp_path / "model")
    generate(tmp_path / "games", games=60, seed=3, workers=1)
    words = f"explain {tmp_path / 'model'} --features 5 --data.path {tmp_path / 'games'} {SMALL}".split()
    assert main(words) == 2
    assert "leave board properties out with --games 0" in capsys.readouterr().err
    assert main([*words, "--games", "0"]) == 0


@pytest.mark.parametrize(
    "words, complaint",
    [
        ("--layer 7", "layer 7 is not in"),
        ("--layer 1 --feature 4000", "feature 4000 is not in this layer"),
        ("--layer 1 --features many", "features is 'many'; expected whole numbers"),
        ("--layer 1 --features 0", "features is 0; expected a whole number above 0"),
        ("--layer 1 --features 3,x", "features is '3,x'; expected whole numbers"),
        ("--layer 1 --judge rule", "unknown judge 'rule'; did you mean rules?"),
        ("--layer 1 --judge local:", "give --judge local:PATH"),
        ("--layer 1 --judge local:nowhere", "there is no folder nowhere"),
        ("--layer 1 --judge http://127.0.0.1:9/v1", "name it by --judge-model"),
        (
            "--layer 1 --judge http://127.0.0.1:9/v1 --judge-model a,b",
            "explains and judges; name it by --judge-model, got 'a,b'",
        ),
        ("--layer 1 --judge rules --judge-model a", "leave --judge-model out"),
        ("--layer 1 --judge rules --keep 5 --data.path nowhere", "there is no such folder"),
        ("--judge rules", "several layers or coders fit"),
        ("--layer 1 --tokens 99999 --feature 1", "--tokens 3000, not 99999"),
        ("--layer 1 --per-decile 2 --feature 1 --tokens 3000", "other settings"),
    ],
)
def test_mistakes_are_reported_in_one_sentence(
    text_runs: Path,
    tmp_path: Path,
    words: str,
    complaint: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(f"explain {text_runs / 'moe-x'} --layer 1 --features 12 {SMALL}".split()) == 0
    capsys.readouterr()
    assert main(["explain", str(text_runs / "moe-x"), *words.split()]) == 2
    said_ = capsys.readouterr().err
    assert complaint in said_ and said_.count("\n") <= 2 and "Traceback" not in said_


def test_no_run_at_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", str(tmp_path / "none"), "--layer", "1"]) == 2
    assert "there is no run at" in capsys.readouterr().err


def counted(answer: str) -> str:
    return json.dumps({**json.loads(answer), "usage": {"prompt_tokens": 100, "completion_tokens": 10}})


def test_an_endpoint_is_tried_before_anything_is_read(
    text_runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    words = (
        f"explain {text_runs / 'gelu'} --layer 0 --keep 3 --features 4 {SMALL} --judge-cache {tmp_path} --judge-model m"
    )
    with serving(lambda *_: Reply("", 401)) as server:
        assert main([*words.split(), "--judge", server.url]) == 2
    assert "OPENAI_API_KEY" in capsys.readouterr().err and not (text_runs / "gelu/features/0-gelu-k3").exists()

    def answer(_: int, body: dict) -> Reply:
        prompt = body["messages"][-1]["content"]
        return said('{"explanation": "words"}' if "one short sentence" in prompt else '{"answers": [1, 1, 1, 1, 1]}')

    with serving(answer) as server:
        assert main([*words.split(), "--judge", server.url, "--prices", "1,2", "--max-cost", "1"]) == 2
        assert "does not report the tokens of its answers" in capsys.readouterr().err and len(server.asked) == 1
    with serving(lambda number, body: answer(number, body)._replace(text=counted(answer(number, body).text))) as server:
        assert main([*words.split(), "--judge", server.url, "--prices", "1,2", "--max-cost", "1"]) == 0
        asked = len(server.asked)
    printed = capsys.readouterr().out
    assert f"{100 * asked:,} tokens read and {10 * asked} written, {0.00012 * asked:.4f} dollars" in printed
    questions = json.loads((text_runs / "gelu/explanations/0-gelu-k3/m.json").read_text())["questions"]
    assert (questions["prompt_tokens"], questions["cost"]) == (100 * asked, pytest.approx(0.00012 * asked))
    assert "detection of" in printed and "malformed" in printed  # the last question has fewer than five windows
    lines = lines_of(text_runs / "gelu/explanations/0-gelu-k3/m.jsonl")
    assert {line["explanation"] for line in lines if not line["silent"]} == {"words"}
    assert all(line["control"] == {} for line in lines)  # no other text to shuffle with


def test_figure8_from_runs_to_the_page(text_runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The sparse layers as they are, the GELU layer with as many features of a token as MoE-X and with 32."""
    runs = f"{text_runs / 'gelu'} {text_runs / 'moe-x'} {text_runs / 'coders'}"
    words = f"reproduce figure8 {runs} --layer 1 --features 10 {SMALL} --results {tmp_path} --name small".split()
    assert main(words) == 0
    capsys.readouterr()
    found = json.loads((tmp_path / "figure8-small.json").read_text())
    names = [row["name"] for row in found["rows"]]
    k = round(next(row["l0"] for row in found["rows"] if row["name"] == "moe-x"))
    assert names == ["moe-x", "coders/1/mxd-k4", "coders/1/transcoder-k4", f"gelu, k = {k}", "gelu, k = 32"]
    assert found["rows"][-1]["l0"] <= 32 and all(row["corpus"] == "text" for row in found["rows"])
    page = (tmp_path / "figure8-small.md").read_text()
    assert page == Figure8Results.from_dict(found).page("figure8-small") and "the paper reads RedPajama" in page
    assert (tmp_path / "figures/figure8-small.png").stat().st_size > 1000
    for row in found["rows"]:
        assert sum(each["own"]["n"] for each in row["of"].values()) == row["scored"]
        scores = [each["balanced_accuracy"] for each in row["best"]]
        assert scores == sorted(scores, reverse=True) and len({each["explanation"] for each in row["best"]}) == len(
            scores
        )
        assert all("<<" in each["where"] and "tokens of a row" not in each["explanation"] for each in row["best"])
    moe_x = found["rows"][0]
    held = open_store(text_runs / "moe-x/features/1-moe-x", "").manifest
    size = held["num_features"] // held["num_experts"]
    assert moe_x["best"] and all(each["expert"] == each["feature"] // size for each in moe_x["best"])
    assert found["rows"][-1]["best"][0]["expert"] is None
    assert main([*words, "--judge", "none"]) == 2
    assert "figure8 shows the accuracy of detection" in capsys.readouterr().err


def test_figure8_by_a_model_on_this_machine(text_runs: Path, tmp_path: Path) -> None:
    """A random model scores the explanations of rules, with an answer to every question."""
    prepared(tmp_path / "text", made_up_texts(60))
    judge = random_llama(tmp_path / "llama", tmp_path / "text", layers=1)
    config = judge / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"max_position_embeddings": 4096}))
    words = (
        f"reproduce figure8 {text_runs / 'coders'} --coder transcoder-k4 --layer 1 --features 12 {SMALL} --name local"
    )
    asked = f"--judge local:{judge} --explainer rules --judge-cache {tmp_path / 'judges'} --results {tmp_path}"
    assert main(f"{words} {asked}".split()) == 0
    found = json.loads((tmp_path / "figure8-local.json").read_text())
    assert found["command"].endswith("--per-decile 1 --silent 6 --judge llama --explainer rules")
    (row,) = found["rows"]
    scores = row["scores"]
    assert scores["detection"]["examples"] == scores["probability"]["examples"] > 0 == scores["detection"]["failed"]
    assert 0 <= scores["probability"]["auc"]["mean"] <= 1
    page = (tmp_path / "figure8-local.md").read_text()
    assert "AUC of yes, shuffled" in page and "Explained by rules and judged by llama, by the odds" in page
    lines = lines_of(text_runs / "coders/explanations/1-transcoder-k4/llama-of-rules.jsonl")
    assert {line["explainer"] for line in lines if line["explanation"]} == {"rules"}


def test_rules_of_place_are_counted_apart() -> None:
    def line(explanation: str, own: float, control: float | None) -> FeatureExplanation:
        scores = [{} if value is None else {"detection": {"balanced_accuracy": value}} for value in (own, control)]
        return FeatureExplanation.from_dict({"explanation": explanation, "scores": scores[0], "control": scores[1]})

    lines = [
        line("fires on the first 8 tokens of a row", 0.9, 0.6),
        line("fires after the first 8 tokens of a row", 0.7, 0.2),
        line('fires on the token " the"', 0.6, None),  # no other explanation to shuffle with
        line('fires in documents of "novels"', 0.8, 0.5),
    ]
    found = speaks_of(lines)
    place = found["place"]
    assert [place.own.mean, place.control.mean] == pytest.approx([0.8, 0.4])
    assert place.own.n == 2 and found["source"].own == MeanInterval(0.8, None, 1)
    assert found["others"] == KindScores(MeanInterval(0.6, None, 1), MeanInterval(None, None, 0))


def test_chess_explained_from_a_run_to_the_page(
    chess_run: Path, text_runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = f"reproduce chess-explained {chess_run} --games 4 --results {tmp_path} --name small".split()
    assert main(words) == 0
    capsys.readouterr()
    found = json.loads((tmp_path / "chess-explained-small.json").read_text())
    assert [row["layer"] for row in found["rows"]] == [0, 1] and found["rows"][0]["synthetic"]
    assert (tmp_path / "chess-explained-small.md").read_text() == ChessExplainedResults.from_dict(found).page(
        "chess-explained-small"
    )
    assert (tmp_path / "figures/chess-explained-small.png").stat().st_size > 1000
    assert main(["reproduce", "chess-explained", str(text_runs / "gelu")]) == 2
    assert "reads chess models" in capsys.readouterr().err


def test_a_store_of_other_weights_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    shape = {"width": 16, "layers": 1, "heads": 2, "active_width": 32, "vocab_size": 32, "context": 64}
    GlassForCausalLM(GlassConfig(ffn="relu", **shape)).save_pretrained(tmp_path / "model")
    generate(tmp_path / "games", games=60, seed=3, workers=1)
    words = f"explain {tmp_path / 'model'} --features 5 --data.path {tmp_path / 'games'} --games 0 {SMALL}".split()
    assert main(words) == 0
    GlassForCausalLM(GlassConfig(ffn="relu", **shape)).save_pretrained(tmp_path / "model")
    capsys.readouterr()
    assert main(words) == 2
    assert "of other weights" in capsys.readouterr().err
    assert main([*words, "--again"]) == 0


def test_every_strength_is_stored_for_the_exports(
    text_runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(text_runs / "gelu", tmp_path / "run", ignore=shutil.ignore_patterns("features", "explanations"))
    words = (
        f"explain {tmp_path / 'run'} --layer 0 --keep 4 --features 2 --tokens 2000 --silent 6 --per-decile 1".split()
    )
    assert main(words) == 0
    capsys.readouterr()
    for number in ("3000", "1000000"):  # the last is what a new store would have anyway
        assert main([*words[:-6], "--tokens", number, *words[-4:]]) == 2
        assert f"gathered with --tokens 2000, not {number}; give --again" in capsys.readouterr().err
    assert main([*words[:-6], *words[-4:]]) == 0  # no number: the store as it is
    capsys.readouterr()
    assert main([*words, "--full"]) == 2
    assert "keeps examples only; give --again --full" in capsys.readouterr().err
    assert main([*words, "--full", "--again"]) == 0
    export = f"explore {tmp_path / 'run'} --export delphi --out {tmp_path / 'delphi'}".split()
    assert main(export) == 0
    assert list((tmp_path / "delphi").rglob("*.safetensors"))


def test_figure8_reads_neurons_of_a_pretrained_model_in_the_rows_of_its_coders(tmp_path: Path) -> None:
    prepared(tmp_path / "text", made_up_texts(60, longest=300), valid_share=0.5)
    model = random_gpt2(tmp_path / "gpt2", tmp_path / "text")
    words = f"decompose {model} --layers 1 --coders transcoder --k 4 --features 48 --tokens 512 --batch-tokens 256"
    words += f" --context 34 --data {tmp_path / 'text'} --out {tmp_path / 'coders'}"
    assert main(words.split()) == 0
    words = f"reproduce figure8 {tmp_path / 'coders'} {model} --layer 1 --features 3 {SMALL} --data {tmp_path / 'text'}"
    assert main([*words.split(), "--results", str(tmp_path), "--name", "gpt2"]) == 0
    rows = json.loads((tmp_path / "figure8-gpt2.json").read_text())["rows"]
    assert [row["name"] for row in rows] == ["coders/1/transcoder-k4", "gpt2, k = 32"]
    stores = [tmp_path / "coders/features/1-transcoder-k4", model / "features/1-neurons-k32"]
    assert [open_store(store, "").manifest["row"] for store in stores] == [34, 34]


def test_figure8_of_a_coder_by_its_own_folder(text_runs: Path, tmp_path: Path) -> None:
    coder = text_runs / "coders/1/transcoder-k4"
    words = f"reproduce figure8 {coder} --layer 1 --features 3 {SMALL} --results {tmp_path} --name one".split()
    assert main(words) == 0
    (row,) = json.loads((tmp_path / "figure8-one.json").read_text())["rows"]
    assert row["reader"] == "transcoder-k4"


def test_figure8_reads_a_model_once_for_its_coders_and_takes_a_choice_of_them(
    text_runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    gathered: list[list[str]] = []
    make = opening.make_stores

    def counted(requests: list, *rest: object) -> list:
        gathered.append([request.about["reader"] for request in requests])
        return make(requests, *rest)

    monkeypatch.setattr(opening, "make_stores", counted)
    runs = f"{text_runs / 'coders'} {text_runs / 'gelu'}"
    words = f"reproduce figure8 {runs} --layer 1 --features 3 {SMALL} --again --results {tmp_path} --name both".split()
    assert main(words) == 0
    assert gathered == [["1/mxd-k4", "1/transcoder-k4"], ["1/gelu-k32"]]
    assert main([*words, "--coder", "mxd-k4"]) == 0
    assert gathered[2:] == [["1/mxd-k4"], ["1/gelu-k32"]]
    rows = json.loads((tmp_path / "figure8-both.json").read_text())["rows"]
    assert [row["name"] for row in rows] == ["coders/1/mxd-k4", "gelu, k = 32"]
    assert main([*words, "--coder", "mxd-k9"]) == 2
    assert "there is no coder 'mxd-k9'; choose one of mxd-k4, transcoder-k4" in capsys.readouterr().err
