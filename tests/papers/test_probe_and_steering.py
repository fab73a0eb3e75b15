"""Probes and steering of coders beside each other, from a decomposition to the page, and differences by hand."""

import json
import math
from pathlib import Path

import pytest

from chat_server import Reply, said, serving
from glassmoe.cli.main import main
from glassmoe.explaining.chat import Chat, Endpoint
from glassmoe.explaining.ratings import rate_texts
from glassmoe.papers.mxd.probe import ProbeResults, ProbeRow, differences
from glassmoe.papers.mxd.steering import SteeringResults, SteeringRow, judged
from text_files import made_up_texts, prepared, random_gpt2, random_llama


@pytest.fixture(scope="module")
def coders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("uses")
    prepared(folder / "text", made_up_texts(200), valid_share=0.3)
    model = random_gpt2(folder / "model", folder / "text")
    words = f"decompose {model} --layer 1 --coders mxd,transcoder --k 4 --context 32 --tokens 2048 --batch-tokens 512"
    assert main([*words.split(), "--data.path", str(folder / "text"), "--out", str(folder / "sweep")]) == 0
    return folder / "sweep"


def test_differences_by_hand() -> None:
    """0.9 - 0.5 and 0.6 - 0.6 over two classes: mean 0.2, half 12.706 * 0.2."""

    def row(name: str, *scores: float) -> ProbeRow:
        classes = [{"label": str(i), "f1": f1} for i, f1 in enumerate(scores)]
        return ProbeRow.from_dict({"name": name, "task": "t", "classes": classes})

    (found,) = differences([row("a", 0.9, 0.6), row("b", 0.5, 0.6)])
    assert (found.name, found.than, found.n) == ("a", "b", 2)
    assert found.mean == pytest.approx(0.2) and found.half == pytest.approx(12.706 * 0.2, rel=1e-3)


def test_probes_from_coders_to_the_page(coders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [{"text": t.upper() if i % 2 else t, "label": "AB"[i % 2]} for i, t in enumerate(made_up_texts(60))]
    (tmp_path / "case.jsonl").write_text("\n".join(map(json.dumps, lines)))
    words = f"reproduce mxd-probe {coders} --tasks {tmp_path / 'case.jsonl'},surnames --tokens 16 --splits 2"
    assert main([*words.split(), "--samples", "200", "--results", str(tmp_path), "--name", "small"]) == 0
    capsys.readouterr()
    found = json.loads((tmp_path / "mxd-probe-small.json").read_text())
    names = ["1/mxd-k4", "1/transcoder-k4", "1/neurons"]
    assert [row["name"] for row in found["rows"]] == names * 2
    assert [task["read"] for task in found["tasks"]] == ["beginning", "last token"]
    assert [each["n"] for each in found["differences"]] == [7, 7, 7]  # two classes and five
    page = (tmp_path / "mxd-probe-small.md").read_text()
    assert (
        page == ProbeResults.from_dict(found).page("mxd-probe-small") and "case: 60 texts, 2 classes, beginning" in page
    )
    assert (tmp_path / "figures/mxd-probe-small.png").stat().st_size > 1000


def test_steering_from_coders_to_the_page(coders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = f"reproduce mxd-steering {coders} --features 3 --amount 50 --results {tmp_path} --name small"
    assert main([*words.split(), "--prompt", "a"]) == 0
    capsys.readouterr()
    found = json.loads((tmp_path / "mxd-steering-small.json").read_text())
    assert [row["feature"] for row in found["rows"]] == [None, 0, 1, 2] * 3
    assert all(len(row["texts"]) == 10 and 0 < row["fluency"] < 1 for row in found["rows"])
    shown = found["rows"][:4]
    assert all(row["different"] == len(set(row["texts"])) for row in shown)
    mean = sum(row["different"] for row in shown[1:]) / 3
    page = (tmp_path / "mxd-steering-small.md").read_text()
    assert f"Different texts: 1/mxd-k4 {mean:.1f} of 10 ({shown[0]['different']} without)" in page
    assert page == SteeringResults.from_dict(found).page("mxd-steering-small")
    assert "50 was added to one feature at a time, at every token" in page
    assert (tmp_path / "figures/mxd-steering-small.png").stat().st_size > 1000
    assert main(["reproduce", "mxd-steering", str(tmp_path / "none")]) == 2
    assert "there is no" in capsys.readouterr().err


@pytest.fixture
def direct(monkeypatch: pytest.MonkeyPatch) -> None:
    """No key of whoever runs the tests, and no proxy between them and loopback."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.mark.usefixtures("direct")
def test_judges_from_coders_to_the_page(coders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two judges, one of which answers one question in words and fails another: means where both rated, each kept, all
    that is missing told. A second time only what failed is asked again."""
    words = f"reproduce mxd-steering {coders} --features 4 --amount 50 --prompt a --results {tmp_path} --name small"
    assert main(words.split()) == 0
    file, page = tmp_path / "mxd-steering-small.json", tmp_path / "mxd-steering-small.md"
    offline = json.loads(file.read_text())
    first_texts = [next(text for text in row["texts"] if text.strip()) for row in offline["rows"][:3]]
    shown = [json.dumps(text, ensure_ascii=False) for text in first_texts]
    failing = [Reply("", 400)]

    def answer(_: int, body: dict) -> Reply:
        prompt, strict = body["messages"][0]["content"], body["model"] == "strict"
        if not strict and f"1. {shown[1]}\n" in prompt:
            return said("A lovely feature.")
        if not strict and f"1. {shown[2]}\n" in prompt and failing:
            return failing[0]
        return said('{"concept": 0.25, "fluency": 0.5}' if strict else '{"concept": 0.75, "fluency": "1/1"}')

    with serving(answer) as server:
        words += f" --judge {server.url} --judge-model strict,lenient --judge-cache {tmp_path / 'judges'}"
        assert main(words.split()) == 0
        found = json.loads(file.read_text())
        assert page.read_text() == SteeringResults.from_dict(found).page("mxd-steering-small")
        asked = len(server.asked)
        failing.clear()
        assert main(words.split()) == 0
        assert len(server.asked) == asked + 1
    assert json.loads(file.read_text())["rows"][2]["judges"]["lenient"] == {"concept": 0.75, "fluency": 1}
    plain, spoiled, failed, *rest = found["rows"]
    for row in (plain, *rest):
        assert row["judges"] == {
            "strict": {"concept": 0.25, "fluency": 0.5},
            "lenient": {"concept": 0.75, "fluency": 1},
        }
        assert (row["concept"], row["fluency_judged"]) == (0.5, 0.75) and 2 <= row["texts_judged"] <= 10
    for row in (spoiled, failed):
        assert row["judges"] == {"strict": {"concept": 0.25, "fluency": 0.5}, "lenient": None}
        assert row["concept"] is row["fluency_judged"] is None
    added = {"judges", "concept", "fluency_judged", "texts_judged"}
    assert [{k: v for k, v in row.items() if k not in added} for row in found["rows"]] == offline["rows"]
    strict, lenient = found["judges"]
    assert (strict["model"], strict["asked"], strict["malformed"], strict["failed"]) == ("strict", 15, 0, {})
    assert (lenient["asked"], lenient["malformed"], lenient["failed"]) == (15, 1, {"HTTP 400": 1})
    assert found["command"].endswith(" --judge URL --judge-model strict,lenient")
    text = SteeringResults.from_dict(found).page("small")
    assert "lenient: 15 questions, 1 without an answer (HTTP 400: 1), 1 with an unreadable answer." in text
    first = text[text.index("| features") :].splitlines()[2]
    assert [each.strip() for each in first.split("|")[2:5]] == ["2 of 4", "0.500 +- 0.000", "0.750 +- 0.000"]
    assert "## Judge by judge" in text and "1/mxd-k4, lenient" in text and "## Offline" in text
    assert (tmp_path / "figures/mxd-steering-small.png").stat().st_size > 1000
    capsys.readouterr()


@pytest.mark.usefixtures("direct")
def test_judges_that_say_nothing_leave_what_is_offline(
    coders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("glassmoe.explaining.chat.random.uniform", lambda *_: 0.0)  # no waits between tries
    words = f"reproduce mxd-steering {coders} --features 2 --prompt a --no-neurons --results {tmp_path} --name small"
    words += " --judge-model judge --json"
    with serving(lambda *_: said("no")) as server:
        cache = ["--judge-cache", str(tmp_path / "judges")]
        assert main([*words.split(), *cache, "--judge", server.url, "--max-calls", "3"]) == 0
        assert len(server.asked) == 3
        assert "The new answers took" not in (tmp_path / "mxd-steering-small.md").read_text()
    found = json.loads(capsys.readouterr().out)
    assert found["judges"][0]["failed"] == {"beyond the cap of 3 calls": 4} and found["judges"][0]["malformed"] == 2
    page = (tmp_path / "mxd-steering-small.md").read_text()
    assert "0 of 2" in page and "## Judge by judge" not in page
    for ending in (".json", ".md"):
        (tmp_path / f"mxd-steering-small{ending}").unlink()
    # With the server gone and no answers kept, nobody is there: told before anything is written.
    cache = ["--judge-cache", str(tmp_path / "others")]
    assert main([*words.split(), *cache, "--judge", server.url]) == 2
    assert f"no answer of judge from {server.url}: unreachable" in capsys.readouterr().err
    assert not (tmp_path / "mxd-steering-small.json").exists()


@pytest.mark.usefixtures("direct")
def test_a_cap_on_cost_is_a_cap_on_calls(coders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What is done stays and what is missing is counted; the same command goes on and pays for the rest alone."""
    words = f"reproduce mxd-steering {coders} --features 2 --prompt a --no-neurons --results {tmp_path} --name small"
    words += f" --judge-model judge --json --judge-cache {tmp_path / 'judges'} --prices 1,10"
    with serving(lambda *_: said('{"concept": 0.25, "fluency": 0.5}', (1000, 100))) as server:
        # An answer costs 0.002 dollars, that of the check included.
        assert main([*words.split(), "--judge", server.url, "--max-cost", "0.006"]) == 0
        assert len(server.asked) == 3
        (judge,) = json.loads(capsys.readouterr().out)["judges"]
        missing = judge["asked"] - 2
        assert judge["failed"] == {"beyond the cap of 0.006 dollars": missing} and missing > 1
        assert (judge["prompt_tokens"], judge["completion_tokens"], judge["cost"]) == (3000, 300, 0.006)
        page = (tmp_path / "mxd-steering-small.md").read_text()
        assert "The new answers took 3,000 tokens read and 300 written, 0.0060 dollars." in page
        for ending in (".json", ".md"):
            (tmp_path / f"mxd-steering-small{ending}").unlink()
        assert main([*words.split(), "--judge", server.url]) == 0
    (judge,) = json.loads(capsys.readouterr().out)["judges"]
    assert judge["failed"] == {} and judge["cached"] == 2 and judge["asked"] == missing + 2
    # Features whose texts are the same are one question.
    assert len(server.asked) == 3 + judge["calls"] > 3 and judge["cost"] == pytest.approx(0.002 * judge["calls"])


@pytest.mark.usefixtures("direct")
def test_empty_texts_are_not_judged() -> None:
    rows = [
        SteeringRow(name="a", feature=feature, agreement=0.1, fluency=0.2, texts=texts)
        for feature, texts in [(None, ["x", "y", "z"]), (0, ["x", "", "y"]), (1, ["x", " ", ""])]
    ]
    with serving(lambda *_: said('{"concept": 0.25, "fluency": 0.5}')) as server:
        judge = Chat(Endpoint(server.url, "judge"))
        found = judged([judge], rows)
    assert [row.concept for row in found] == [0.25, 0.25, None] and len(server.asked) == 2
    assert [row.texts_judged for row in found] == [3, 2, 1]
    assert sorted("Below are 2 texts" in prompt for prompt in server.prompts()) == [False, True]
    sampling = {"samples": 3, "tokens": 8, "temperature": 1.0, "top_p": 0.1, "frequency_penalty": 1.0}
    header = dict.fromkeys(("coders", "model", "command", "hardware", "commit"), "")
    judges = [judge.summary()]
    steered = SteeringResults(**header, amount=1, prompt="", sampling=sampling, entries=found, judges=judges)
    page = steered.page("t")
    assert "1 of 3 sets were judged by fewer than 3 texts, and 1 were not judged, with fewer than two texts." in page
    assert "1 of 2" in page


def test_steering_is_judged_by_a_model_on_this_machine(coders: Path, tmp_path: Path) -> None:
    judge = random_llama(tmp_path / "llama", coders.parent / "text", layers=1)
    config = judge / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"max_position_embeddings": 8192}))
    words = f"reproduce mxd-steering {coders} --coder mxd-k4 --features 2 --prompt a --results {tmp_path} --name small"
    asked = f"--judge local:{judge} --judge-cache {tmp_path / 'judges'}"
    assert main(f"{words} {asked}".split()) == 0
    found = json.loads((tmp_path / "mxd-steering-small.json").read_text())
    assert found["command"].endswith("--coder mxd-k4 --features 2 --amount 100 --judge local:llama")
    assert [row["name"] for row in found["rows"]] == ["1/mxd-k4"] * 3 + ["1/neurons"] * 3
    assert all(0 < row["judges"]["llama"][name] < 1 for row in found["rows"] for name in ("concept", "fluency"))
    assert found["judges"][0]["asked"] == 2 * 6 and not found["judges"][0]["failed"]
    page = (tmp_path / "mxd-steering-small.md").read_text()
    assert page == SteeringResults.from_dict(found).page("mxd-steering-small")
    assert "how fluent they are, by the probability of yes to each question." in page


def test_a_rating_by_odds() -> None:
    """Odds of 0 are a chance of a half, ln 3 is three to one."""

    class Asked:
        def odds(self, conversations):
            concept, fluency = (messages[0]["content"] for messages in conversations)
            assert (
                "share one concept" in concept and "fluent" in fluency and '2. "b"' in concept and '2. "b"' in fluency
            )
            return [0.0, math.log(3)]

    assert rate_texts(Asked(), [["a", "b"]]) == [pytest.approx((0.5, 0.75))]


def test_mistakes_with_judges(coders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def error_message(words: str) -> str:
        assert main(["reproduce", "mxd-steering", str(coders), *words.split()]) == 2
        return capsys.readouterr().err

    assert "give both judge and judge_model, or neither" in error_message("--judge http://localhost:1/v1")
    assert "or neither" in error_message("--judge-model judge")
    assert "or by judge=local:PATH alone" in error_message("--judge local:model --judge-model judge")
    assert "there is no folder nowhere" in error_message("--judge local:nowhere")
    assert "there is no coder 'mx'; choose one of 1/mxd-k4, 1/transcoder-k4" in error_message("--coder mx")
    assert "judge_model is 'a,'; expected names separated by commas" in error_message(
        "--judge http://localhost:1/v1 --judge-model a,"
    )
    assert "one such as http://localhost:8000/v1" in error_message("--judge localhost:1 --judge-model a")
    assert "--judge-settings takes keys and values" in error_message(
        "--judge http://localhost:1/v1 --judge-model a --judge-settings hot"
    )
    assert "above 0" in error_message("--judge http://localhost:1/v1 --judge-model a --max-calls 0")
    assert "needs prices; give --prices IN,OUT" in error_message(
        "--judge http://localhost:1/v1 --judge-model a --max-cost 2"
    )
    for wrong in ("1", "1,2,3", "1,x", "1,-2", "nan,1", "1,inf"):
        assert f"prices is '{wrong}'; expected dollars per million tokens" in error_message(
            f"--judge http://a/v1 --judge-model a --prices {wrong}"
        )
