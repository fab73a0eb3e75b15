"""What the command line says to mistakes: the right exit code, one message that names what was given and what to do."""

import gzip
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from game_files import pgn
from glassmoe.cli import main as cli

TRAIN = (
    "--model.layers 1 --model.width 16 --model.heads 2 --model.active_width 16 --model.num_experts 4 --train.steps 4 "
    "--train.batch_rows 8 --train.micro_rows 4 --train.eval_rows 8 --train.checkpoint_every 2 --data.rows games:64"
)


@pytest.fixture(scope="module")
def made(noise_games: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with games, a run, and what else a hand may slip on."""
    folder = tmp_path_factory.mktemp("made")
    shutil.copytree(noise_games, folder / "games")
    words = f"train {TRAIN} --data.path {folder / 'games'} --out {folder / 'run'}"
    assert cli.main(words.split()) == 0
    (folder / "g.pgn").write_text(pgn("e4 e5") + pgn("d4 d5"))
    (folder / "empty.pgn").write_text("")
    (folder / "junk.pgn").write_bytes(b"\x00\xff\x1b[2J(" * 50)
    (folder / "plain.pgn.zst").write_text("not packed")
    (folder / "notes.doc").write_text("x")
    (folder / "empty").mkdir()
    (folder / "mine").mkdir()
    (folder / "mine" / "train.bin").write_text("mine")
    (folder / "text.json").write_text("hello")
    return folder


@pytest.fixture
def there(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(made, tmp_path / "made")
    monkeypatch.chdir(tmp_path / "made")
    return tmp_path / "made"


def complaint(words: str | list[str], code: int, capsys: pytest.CaptureFixture[str]) -> str:
    """The one message that a command fails with."""
    capsys.readouterr()
    assert cli.main(words.split() if isinstance(words, str) else words) == code
    out, errors = capsys.readouterr()
    assert out == ""
    assert errors.count("glassmoe: ") == 1 and "Traceback" not in errors and "usage:" not in errors
    message = errors[errors.index("glassmoe: ") :]
    assert message.count("\n") == 1 and message.isprintable() is False and message[:-1].isprintable()
    return message


MISTAKES = [
    # words, what names the mistake, what says what to do
    ("trian", "'trian'", "did you mean train?"),
    ("nonsense", "'nonsense'", "expected one of quickstart"),
    ("eval", "glassmoe eval needs one of", "ppl, boards"),
    ("eval ppx run", "'ppx'", "did you mean ppl?"),
    ("eval ppl", "required: run", "--help"),
    ("eval ppl run --resuts r", "--resuts", "did you mean --results?"),
    ("eval ppl run --rows", "--rows needs a value", "--help"),
    ("eval ppl run more", "unexpected 'more'", "--help"),
    ("eval ppl nowhere", "no run at nowhere", "train --out"),
    ("eval ppl g.pgn", "g.pgn is a file", "run directory"),
    ("eval ppl games", "games is not a run", "train --out"),
    ("eval ppl run --rows 0", "rows is 0", "above 0"),
    ("eval ppl run --rows a", "'a'", "a whole number"),
    ("eval ppl run --cut x", "'x'", "games:N"),
    ("eval ppl run --cut games:999", "998 tokens", "at most 64"),
    ("eval ppl run --device tpu", "'tpu'", "one of auto, cpu, cuda"),
    ("eval ppl run --data nope", "nope", "glassmoe data chess"),
    ("eval ppl run --window 3", "window needs on", "leave window out"),
    ("eval ppl run --on text.json --rows 3", "rows does not go with on", "leave one out"),
    ("eval ppl run --results g.pgn/x", "g.pgn", "give another path"),
    ("eval ppl run --results text", "text.json", "move it away"),
    ("eval boards run", "context is 64", "games:256"),
    ("eval boards run --layers 99", "layer 99", "layers 0 to 0"),
    ("eval boards run --layers a", "'a'", "whole numbers"),
    ("eval boards run --games -1", "games is -1", "above 0"),
    ("eval boards run --workers 0", "workers is 0", "above 0"),
    ("eval board-probes run", "context is 64", "games:256"),
    ("eval board-probes run --layers 99", "layer 99", "layers 0 to 0"),
    ("eval legal-moves run", "context is 64", "games:256"),
    ("eval legal-moves run --games 0", "games is 0", "above 0"),
    ("generate run --prompt=", "prompt is empty", "begins with"),
    ("generate run --prompt ;1.e4!", "'!' at position 5", "32 characters"),
    ("generate run --prompt ;" + "1" * 80, "81 tokens", "context is 64"),
    ("generate run --tokens 0", "tokens is 0", "above 0"),
    ("generate run --samples -1", "samples is -1", "above 0"),
    ("generate run --temperature nan", "'nan'", "a finite number"),
    ("generate run --temperature -1", "temperature is -1", "at least 0"),
    ("generate run --top-p 2", "top_p is 2", "at most 1"),
    ("generate run --seed 99999999999999999999", "seed is", "2**63"),
    ("generate run --stream --json", "--stream and --json", "leave one out"),
    ("steer run --feature 3", "got none", "exactly one of add, set, scale and ablate"),
    ("steer run --feature 3 --add 1 --ablate", "got add, ablate", "exactly one"),
    ("steer run --add 1", "give features or experts", "feature 123"),
    ("steer run --layer 7 --feature 3 --add 1", "layer 7", "layers 0 to 0"),
    ("explain run --features a", "'a'", "whole numbers"),
    ("explain run --judge ruls", "'ruls'", "did you mean rules?"),
    ("explain run --prices 3", "prices is", "such as 0.15,0.6"),
    ("report", "required: runs", "--help"),
    ("explore run --port 80", "port is the port of serve", "give both, or neither"),
    ("reproduce", "needs one of table1", "--help"),
    ("reproduce tabel1", "'tabel1'", "did you mean table1?"),
    ("reproduce table1", "required: data", "--help"),
    ("reproduce table1 --data games --tokens 9 --minutes 3", "both given", "one of them"),
    ("decompose", "needs a model and layers", "--layers 8"),
    ("decompose run --layers 0 --coders mdx", "'mdx'", "did you mean mxd?"),
    ("decompose --recipe mxd-gpt3", "'mxd-gpt3'", "did you mean mxd-gpt2?"),
    ("hub export run out --format saelns", "'saelns'", "one of transformers, saelens, sparsify"),
    ("quickstart --games 0", "games is 0", "above 0"),
    ("quickstart --steps -2 --out q", "steps is -2", "above 0"),
    ("data chess", "required: ", "--help"),
    ("data ches g.pgn --out o", "'ches'", "did you mean chess?"),
    ("data chess nothing.pgn --out o", "nothing.pgn", "pass .pgn or .txt"),
    ("data chess notes.doc --out o", "notes.doc", "expected .pgn"),
    ("data chess empty --out o", "empty", ".pgn or .txt"),
    ("data chess empty.pgn --out o", "the input is empty", "pass games"),
    ("data chess junk.pgn --out o", r"\x1b[2J(", "pass games"),
    ("data chess plain.pgn.zst --out o", "plain.pgn.zst", "pass games"),
    ("data chess g.pgn --out g.pgn", "g.pgn is a file", "pass a folder"),
    ("data chess g.pgn --out g.pgn/x", "g.pgn/x", "give another path"),
    ("data chess g.pgn --out games", "already holds", "--overwrite"),
    ("data chess g.pgn --out mine", "train.bin", "--overwrite"),
    ("data chess g.pgn --out o --tokens moves --trust", "--tokens moves", "drop one"),
    ("data chess g.pgn --out o --tokens words", "'words'", "one of characters, moves"),
    ("data chess g.pgn --out o --max-games 0", "max_games is 0", "above 0"),
    ("data chess g.pgn --out o --workers -1", "workers is -1", "above 0"),
    ("data chess g.pgn --out o --valid-share 2", "valid_share is 2", "0 to less than 1"),
    ("data chess g.pgn --out o --valid-share nan", "'nan'", "a finite number"),
    ("train --out g.pgn", "g.pgn", "pass a different --out"),
    ("train --out g.pgn/x --data.path games", "g.pgn/x", "give another path"),
    ("train --out mine", "mine", "pass a different --out"),
    ("train --out o --config quickstrat", "'quickstrat'", "did you mean quickstart?"),
    ("train --out o --config=", "''", "Recipes"),
    ("train --out o --config games", "'games'", "Recipes"),
    ("train --out o --model.lyers 3", "--model.lyers", "did you mean model.layers?"),
    ("train --out o --model.layers a", "'a'", "takes a whole number"),
    ("train --out o --model.layers 0", "model.layers is 0", "above 0"),
    ("train --out o --model.experts_per_token 9", "experts_per_token 9", "at most all experts"),
    ("train --out o --model.width 20", "model.width 20", "multiple of 8"),
    ("train --out o --model.heads 3", "model.heads 3", "multiple of"),
    ("train --out o --model.active_width 24", "active_width 24", "multiple of 8"),
    ("train --out o --model.balance -1", "model.balance is -1", "at least 0"),
    ("train --out o --model.init_std -1", "model.init_std is -1", "at least 0"),
    ("train --out o --model.router x", "'x'", "known: learned, sparsity"),
    ("train --out o --model.options 3", "'3'", "takes keys and values"),
    ("train --out o --model x.yaml", "model", "each given by itself"),
    ("train --out o --model.ffn gel --data.path games", "'gel'", "did you mean gelu? Known: gelu"),
    ("train --out o --optimizer.lr nan", "'nan'", "takes a finite number"),
    ("train --out o --optimizer.lr 0", "optimizer.lr is 0", "above 0"),
    ("train --out o --optimizer.betas [2,3]", "optimizer.betas is (2.0, 3.0)", "0 to less than 1"),
    ("train --out o --optimizer.momentum 3", "optimizer.momentum is 3", "0 to less than 1"),
    ("train --out o --optimizer.warmup_steps -1", "optimizer.warmup_steps is -1", "at least 0"),
    ("train --out o --optimizer.weight_decay -1", "optimizer.weight_decay is -1", "at least 0"),
    ("train --out o --optimizer.clip -1", "optimizer.clip is -1", "at least 0"),
    ("train --out o --train.batch_rows 9", "batch_rows 9", "multiple of"),
    ("train --out o --train.precision bf17", "'bf17'", "one of auto, bf16, fp32"),
    ("train --out o --seed null", "seed takes", "a whole number"),
    ("train --out o --train.compile null", "train.compile takes", "true or false"),
    ("train --out o --seed -1", "seed is -1", "0 to 2**63"),
    ("train --out o --schema_version 9", "schema version 9", "update glassmoe"),
    ("train --out o --data.path nope", "nope", "glassmoe data chess"),
    ("train --out o --data.path games --data.tokens moves", "games as characters", "--tokens moves"),
    ("train --out o --data.tokens words", "'words'", "characters (chess), moves (chess)"),
    ("train --out o --data.path run", "run", "glassmoe data chess"),
    ("train --out o --data.path games --data.rows games:1", "'games:1'", "N >= 2"),
    ("train --out o --data.synthetic_games 0", "synthetic_games is 0", "above 0"),
]


def test_mistakes(there: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.read_bytes() for path in there.rglob("*") if path.is_file()}
    unclear = []
    for words, given, advice in MISTAKES:
        message = complaint(words, cli.USAGE, capsys)
        if given not in message or advice not in message:
            unclear.append((words, given, advice, message))
        assert all(path.read_bytes() == content for path, content in before.items()), words
    assert not unclear, "\n".join(map(str, unclear))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
@pytest.mark.parametrize("words", ["eval ppl run --device cuda", "train --out o --train.device cuda"])
@pytest.mark.usefixtures("there")
def test_a_gpu_that_is_not_there(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert "no GPU; pass auto or cpu" in complaint(words, cli.USAGE, capsys)


@pytest.mark.parametrize(
    ("text", "given"),
    [
        ("a: [1", "not readable as YAML"),
        ("model:\n\tlayers: 3", "not readable as YAML"),
        (b"\xff\xfe\x00", "not readable as YAML"),
        ("seed: 1\nseed: 2", "the key seed is given twice"),
        ("model: &a {layers: 1}\ntrain: *a", "aliases"),
        ("&a\nmodel: *a", "aliases"),
        ("!!python/object/apply:os.system ['true']", "not readable as YAML"),
        ("seed: 2020-99-99", "not readable as YAML"),
        ("seed: !!bool 7", "not readable as YAML"),
        ("[" * 5000, "not readable as YAML"),
        ("", "got nothing"),
        ("- 1", "got list"),
        ("model:", "model holds keys of its own, got None"),
        ("train: {steps: null}", "train.steps takes a whole number, got null; leave it out"),
        ("layers: 3", "did you mean model.layers?"),
        ("1: 2", "unknown configuration key 1"),
        ("schema_version: 2\nnovel: 3", "schema version 2, newer than the 1"),
    ],
)
def test_configuration_files(text: str | bytes, given: str, there: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (there / "c.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    shutil.copy("c.yaml", "run/config.yaml")
    for words, name in (("train --out o --config c.yaml", "c.yaml"), ("generate run", "run/config.yaml")):
        message = complaint(words, cli.USAGE, capsys)
        assert given in message and name in message
    assert not (there / "o").exists()


@pytest.mark.usefixtures("there")
def test_chess_is_missing(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "chess", None)
    for words in ("data chess g.pgn --out o", "train --out r"):
        assert 'pip install "glassmoe[chess]"' in complaint(words, cli.USAGE, capsys)


def cut(name: str) -> Callable[[], object]:
    return lambda: Path(name).write_bytes(Path(name).read_bytes()[:60])


def swap(name: str, old: str, new: str) -> Callable[[], object]:
    def change() -> None:
        text = Path(name).read_text()
        assert old in text
        Path(name).write_text(text.replace(old, new))

    return change


def tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[], None]:
    def rewrite() -> None:
        held = load_file("run/model.safetensors")
        change(held)
        save_file(held, "run/model.safetensors", {"format": "pt"})

    return rewrite


AGAIN = "`glassmoe train` command of the run writes its model files again"
DAMAGED = {
    "manifest cut": (cut("games/manifest.json"), "games/manifest.json", "glassmoe data chess"),
    "manifest of another": (swap("games/manifest.json", '"games": {', '"games": 3, "g": {'), "manifest", "data chess"),
    "manifest newer": (swap("games/manifest.json", '"schema_version": 1', '"schema_version": 2'), "2", "update"),
    "tokens cut": (cut("games/valid.bin"), "games/valid.bin", "prepare"),
    "offsets cut": (cut("games/valid.offsets.npy"), "split valid", "prepare it again"),
    "games gone": (lambda: shutil.rmtree("games"), "games", "glassmoe data chess"),
    "config.json cut": (cut("run/config.json"), "run/config.json", AGAIN),
    "config.json of another": (swap("run/config.json", '"glassmoe"', '"gpt2"'), "a gpt2 model", "glassmoe trained"),
    "config.json wrong type": (swap("run/config.json", '"width": 16', '"width": "a"'), "run could", AGAIN),
    "config.json wrong width": (swap("run/config.json", '"width": 16', '"width": 32'), "mismatched keys", AGAIN),
    "weights cut": (cut("run/model.safetensors"), "header", AGAIN),
    "weights gone": (lambda: Path("run/model.safetensors").unlink(), "model.safetensors", AGAIN),
    "a tensor missing": (tensors(lambda held: held.pop(min(held))), "missing keys", AGAIN),
    "a tensor too many": (tensors(lambda held: held.update(more=torch.zeros(2))), "unexpected keys more", AGAIN),
    "a tensor of wrong shape": (
        tensors(lambda held: held.update({min(held): torch.zeros(2)})),
        "mismatched keys",
        AGAIN,
    ),
    "environment gone": (lambda: Path("run/environment.json").unlink(), "run/environment.json", "check the name"),
    "environment cut": (cut("run/environment.json"), "run/environment.json", "move it away"),
    "metrics cut": (cut("run/metrics.jsonl"), "run/metrics.jsonl", "no line of metrics"),
    "metrics of another": (
        lambda: Path("run/metrics.jsonl").write_text("3\n"),
        "line 1 is not what was written",
        "put back a good copy",
    ),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_runs_and_games(name: str, there: Path, capsys: pytest.CaptureFixture[str]) -> None:
    damage, given, advice = DAMAGED[name]
    swap("run/config.yaml", str(yaml_path(there)), "games")()
    damage()
    message = complaint("eval ppl run --results r", cli.USAGE, capsys)
    assert given in message and advice in message


def yaml_path(there: Path) -> str:
    """Where the run says that its games are."""
    line = next(line for line in (there / "run/config.yaml").read_text().splitlines() if "path:" in line)
    return line.split("path: ")[1]


def test_checkpoints(there: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train = f"train {TRAIN} --data.path games --out run"
    newest = there / "run" / "state" / "step-00000004.safetensors"
    whole = newest.read_bytes()
    newest.write_bytes(whole.replace(b'"schema_version":"1"', b'"schema_version":"2"'))
    assert "update glassmoe" in complaint(train, cli.USAGE, capsys)
    newest.write_bytes(whole[:1000])
    assert cli.main(train.split()) == 0
    errors = capsys.readouterr().err
    assert "step-00000004.safetensors: " in errors and "resuming from step-00000002.safetensors instead" in errors
    for path in newest.parent.glob("step-*"):
        path.write_bytes(path.read_bytes()[:1000])
    assert "put back a good checkpoint" in complaint(train, cli.USAGE, capsys)
    (there / "run" / "config.yaml").unlink()
    assert "put it back" in complaint(train, cli.USAGE, capsys)


def test_nothing_of_the_users_is_lost(there: Path) -> None:
    (there / "mine" / "train.bin").rename(there / "mine" / "notes.partial")
    assert cli.main(["data", "chess", "g.pgn", "--out", "mine", "--valid-share", "0.5"]) == 0
    assert (there / "mine" / "notes.partial").read_text() == "mine"
    good = there / "run" / "state" / "step-final.safetensors"
    good.write_text("mine")
    assert cli.main(f"train {TRAIN} --data.path games --out run".split()) == 0
    assert sorted(path.name for path in good.parent.iterdir()) == [
        "step-00000002.safetensors",
        "step-00000004.safetensors",
        "step-final.safetensors",
    ]


def test_a_packed_file_cut_short_gives_the_games_before(there: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (there / "cut.pgn.gz").write_bytes(gzip.compress((pgn("e4 e5") * 2000).encode())[:100])
    assert cli.main(["data", "chess", "cut.pgn.gz", "--out", "o"]) == 0
    assert "unreadable stream (first: cut.pgn.gz, game " in capsys.readouterr().out


def test_windows_is_refused_in_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.platform", "win32")
    for words in ([], ["--help"], ["train"], ["data", "chess", "x.pgn"]):
        assert cli.main(words) == 2
        shown = capsys.readouterr()
        assert shown.err == "glassmoe: glassmoe runs on Linux, not on Windows; use the Windows Subsystem for Linux\n"
        assert not shown.out


def test_python_without_file_locks_is_reported() -> None:
    code = "import sys; sys.modules['fcntl'] = None\nimport glassmoe\nglassmoe.RunConfig\nimport glassmoe.locks"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.splitlines()[-1].startswith("ImportError: glassmoe runs on Linux")
    assert "ModuleNotFoundError" not in done.stderr
