"""Explanations from a store to the file: what is scored, what is listed, and going on after a stop."""

import json
import resource
from pathlib import Path

import pytest

from chat_server import Reply, said, serving
from glassmoe.checksums import parse_lines, read_json
from glassmoe.explaining import explained
from glassmoe.explaining.asking import chat_judge
from glassmoe.explaining.chat import Answers, Chat, Endpoint
from glassmoe.explaining.explained import choose_features, controls, explain_features, read_lines, shuffled_features
from glassmoe.explaining.offline import no_judge, rule_judge
from glassmoe.explaining.results import DetectedProperty, ExplanationsResult
from glassmoe.explaining.rules import parse
from glassmoe.explaining.trials import ExplanationProtocol, Judge, trial
from glassmoe.explaining.windows import TokenText
from planted_stores import PlantedStore, planted, words_kind

VOCABULARY = [
    f" {word}" for word in ["the", "of", "cat", "dog", "runs", "ran", "he", "she", "in", "on", "big", "red"]
] + ["."]
SMALL = ExplanationProtocol(per_decile=2, silent=10)


def on(piece: str):
    return lambda text, at: text[at] == piece


FIRES = [on(" the"), on(" cat"), on("."), lambda *_: 0, lambda text, at: at > 0 and text[at - 1] == " of", lambda *_: 1]
"""Features of one piece each, one that never fires, one after a piece, and one that always fires."""


@pytest.fixture(scope="module")
def store() -> PlantedStore:
    return planted(VOCABULARY, FIRES)


def explain(
    store: PlantedStore, judge: Judge, folder: Path, features: list[int] | None = None, **more: object
) -> ExplanationsResult:
    features = list(range(6)) if features is None else features
    return explain_features(store, words_kind(VOCABULARY), judge, features, folder, **{"protocol": SMALL, **more})


def lines_of(path: Path) -> list[dict]:
    """The lines of a file, as values."""
    return [line.to_dict() for line in read_lines(path)]


def test_explaining_and_scoring_share_no_row(store: PlantedStore) -> None:
    shown = trial(TokenText(store, words_kind(VOCABULARY)), 0, SMALL)
    assert len(shown.scoring) == 30 and shown.fires_E.sum() == 20
    assert set(shown.scoring.deciles_E) == {*range(10), -1}
    # The right marks are where it fires, the wrong ones as many as those on average.
    assert [shown.scoring.tokens(e)[at] for e, at in zip(*shown.marked_EL[:20].nonzero(), strict=True)] == [
        " the"
    ] * int(shown.marked_EL[:20].sum())
    assert 1 <= shown.marked_EL[20:].sum(1).mean() <= 2


def test_rules_that_fit_score_one_and_shuffled_ones_do_not(store: PlantedStore, tmp_path: Path) -> None:
    found = explain(store, rule_judge(), tmp_path)
    lines = {line["feature"]: line for line in lines_of(tmp_path / "rules.jsonl")}
    assert list(lines) == list(range(6))
    assert (
        lines[0]["explanation"] == 'fires on the token " the"'
        and lines[1]["explanation"] == 'fires on the token " cat"'
    )
    for feature in (0, 1, 2):
        for scorer in ("detection", "fuzzing"):
            assert lines[feature]["scores"][scorer]["balanced_accuracy"] == 1
            assert lines[feature]["scores"][scorer]["examples"] == lines[feature]["scores"][scorer]["asked"] == 30
            assert lines[feature]["control"][scorer]["balanced_accuracy"] < 0.9
    assert lines[3]["silent"] and lines[3]["explanation"] is None and lines[3]["why"] == "it never fires"
    assert lines[5]["explanation"] is None and "every window" in lines[5]["why"] and not lines[5]["silent"]
    assert (found.features, found.silent, found.unexplained, found.scored) == (6, 1, 1, 4)
    assert found.scores["detection"].balanced_accuracy.n == 4
    assert json.loads((tmp_path / "rules.json").read_text())["scores"] == found.to_dict()["scores"]


def test_a_result_is_values_rows_and_a_table(store: PlantedStore, tmp_path: Path) -> None:
    found = explain(store, rule_judge(), tmp_path)
    values = found.to_dict()
    assert read_json(tmp_path / "rules.json") == {k: v for k, v in values.items() if k != "file"}
    assert ExplanationsResult.from_dict(json.loads(json.dumps(values))).to_dict() == values
    lines, damaged, cut = parse_lines(tmp_path / "rules.jsonl")
    assert lines == [json.loads(json.dumps(line.to_dict())) for line in found.explanations] and not damaged and not cut
    rows = found.rows()
    assert len(rows) == 6 and rows[0].keys() == {"feature", "explanation", "detection", "fuzzing"}
    assert [row["detection"] or 0.0 for row in rows] == sorted((row["detection"] or 0.0 for row in rows), reverse=True)
    table = found.table()
    assert "mean over features" in table and "6 features of" in table and f"explanations: {found.file}" in table


def test_one_more_feature_shows_itself_and_keeps_the_means_of_all(store: PlantedStore, tmp_path: Path) -> None:
    explain(store, rule_judge(), tmp_path, [0, 1, 2])
    of_three = json.loads((tmp_path / "rules.json").read_text())
    again = explain(store, rule_judge(), tmp_path, [1])
    assert [line.feature for line in again.explanations] == [1] and again.features == 1
    assert [row["feature"] for row in again.rows()] == [1] and again.scores["detection"].balanced_accuracy.n == 1
    assert json.loads((tmp_path / "rules.json").read_text()) == of_three and of_three["features"] == 3
    more = explain(store, rule_judge(), tmp_path, [4])
    of_four = json.loads((tmp_path / "rules.json").read_text())
    assert [line.feature for line in more.explanations] == [4]
    assert of_four["features"] == 4 == of_four["scores"]["detection"]["balanced_accuracy"]["n"]


def test_fewer_windows_than_requested_are_reported(store: PlantedStore, tmp_path: Path) -> None:
    found = explain(store, rule_judge(), tmp_path, [0], protocol=ExplanationProtocol(per_decile=2, silent=100_000))
    assert found.scores["detection"].fewer == 1
    assert found.scores["detection"].examples < found.scores["detection"].asked == 100_020


def test_features_with_too_few_windows_are_left_out(store: PlantedStore, tmp_path: Path) -> None:
    fewest = sorted(int(windows) for windows in store.windows_F)[3]
    protocol = ExplanationProtocol(per_decile=2, silent=10, min_windows=fewest)
    lines = explain(store, rule_judge(), tmp_path, [0, 1, 2, 3, 4], protocol=protocol).explanations
    for line, windows in zip(lines, store.windows_F[:5], strict=True):
        assert bool(line.scores) == (line.explanation is not None) == (windows >= fewest)
        if 0 < windows < fewest:
            assert line.why == f"it fires in {windows} windows, fewer than {fewest}" and not line.silent
    assert any(0 < windows < fewest for windows in store.windows_F)
    assert "min_windows" not in SMALL.identity()  # explanations of earlier versions resume


def test_controls_are_other_explanations_and_need_few_of_them() -> None:
    texts = {1: "a", 2: "a", 3: "b", 4: "c", 5: None}
    order = shuffled_features(list(texts), 0)
    found = controls(list(texts), order, texts.get)
    assert found.keys() == texts.keys() - {5} and all(texts[found[each]] not in (texts[each], None) for each in found)
    assert controls([1, 2], [1, 2], {1: "a", 2: "a"}.get) == {} == controls([], [], texts.get)
    # A block of the order asks for little beyond itself, and its controls are those of all features.
    many = {feature: f"text {feature // 3}" for feature in range(90)}
    order, asked = shuffled_features(list(many), 1), set()
    everything = controls(list(many), order, many.get)

    def text_of(feature: int) -> str:
        asked.add(feature)
        return many[feature]

    block = order[30:60]
    assert controls(block, order, text_of) == {feature: everything[feature] for feature in block}
    assert len(asked - set(block)) <= 3
    assert len({everything[feature] for feature in many}) > 60  # not always the same one


def test_more_features_include_those_of_fewer(store: PlantedStore) -> None:
    assert set(choose_features(store, 3)) < set(choose_features(store, 5)) < {*range(6)}
    assert choose_features(store, 100) == list(range(6))


def test_a_stopped_run_goes_on(store: PlantedStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a cut line the file is as that of a run without a stop."""
    whole = explain(store, rule_judge(), tmp_path / "whole")
    expected = (tmp_path / "whole/rules.jsonl").read_text()
    path = tmp_path / "stopped/rules.jsonl"
    monkeypatch.setattr(explained, "CHUNK", 2)
    judge = rule_judge()
    calls = []

    def scored(cases: list) -> list:
        calls.append(len(cases))
        if len(calls) == 5:
            raise KeyboardInterrupt
        return judge.scorers["detection"](cases)

    failing = judge._replace(scorers={**judge.scorers, "detection": scored})
    with pytest.raises(KeyboardInterrupt):
        explain(store, failing, tmp_path / "stopped")
    assert 0 < len(lines_of(path)) < 6
    path.write_text(path.read_text() + '{"feature": 4, "expl')
    again = explain(store, rule_judge(), tmp_path / "stopped")
    assert path.read_text() == expected
    assert again.scores == whole.scores and again.control == whole.control


def test_a_disk_that_fills_up_loses_nothing(
    store: PlantedStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    explain(store, rule_judge(), tmp_path / "whole")
    expected = (tmp_path / "whole/rules.jsonl").read_bytes()
    monkeypatch.setattr(explained, "CHUNK", 1)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(expected) // 2, limits[1]))
    try:
        with pytest.raises(OSError, match="too large"):
            explain(store, rule_judge(), tmp_path / "full")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert expected.startswith((tmp_path / "full/rules.jsonl").read_bytes())
    explain(store, rule_judge(), tmp_path / "full")
    assert (tmp_path / "full/rules.jsonl").read_bytes() == expected


def test_other_settings_are_refused(store: PlantedStore, tmp_path: Path) -> None:
    explain(store, rule_judge(), tmp_path, [0, 1])
    before = (tmp_path / "rules.jsonl").read_text()
    with pytest.raises(ValueError, match=r"made with other settings \(protocol\); give --again"):
        explain(store, rule_judge(), tmp_path, [0], protocol=ExplanationProtocol(per_decile=3, silent=10))
    assert (tmp_path / "rules.jsonl").read_text() == before
    (tmp_path / "none.jsonl").write_text("mine")
    with pytest.raises(ValueError, match="no settings beside it"):
        explain(store, no_judge(), tmp_path, [0])
    (tmp_path / "none.json").write_text("mine")
    with pytest.raises(ValueError, match="not written by glassmoe"):
        explain(store, no_judge(), tmp_path, [0])


def test_explanations_that_knew_other_sources_are_refused(tmp_path: Path) -> None:
    """Those of a store without sources have the settings that they had before there were any."""
    store = planted(VOCABULARY, FIRES)
    explain(store, rule_judge(), tmp_path, [0])
    settings = json.loads((tmp_path / "rules.json").read_text())["settings"]["store"]
    assert list(settings) == list(explained.IDENTITY)
    explain(store.of_sources(["web", "books"] * 60), rule_judge(), tmp_path / "sources", [0])
    explain(store, rule_judge(), tmp_path / "sources", [0, 1])
    for changed, folder in ((store, tmp_path), (store.of_sources(["web"] * 120), tmp_path / "sources")):
        with pytest.raises(ValueError, match=r"made with other settings \(store\); give --again"):
            explain(changed, rule_judge(), folder, [0])


@pytest.mark.parametrize("features", [[0, 6], [-1]])
def test_a_feature_that_is_not_there(store: PlantedStore, tmp_path: Path, features: list[int]) -> None:
    with pytest.raises(ValueError, match="is not in this layer: it has features 0 to 5"):
        explain(store, rule_judge(), tmp_path, features)
    assert not list(tmp_path.iterdir())


def test_without_a_judge_boards_are_the_explanation(store: PlantedStore, tmp_path: Path) -> None:
    board = {"property": "white knight on f3", "precision": 0.9, "recall": 0.8, "f1": 0.85, "f1_always_on": 0.1}
    found = explain(store, no_judge(), tmp_path, boards={0: DetectedProperty(**board)})
    lines = {line["feature"]: line for line in lines_of(tmp_path / "none.jsonl")}
    assert lines[0]["explanation"] == "white knight on f3" and lines[0]["board"] == board
    assert lines[0]["explainer"] == "board" and lines[0]["scores"] == {}
    assert lines[1]["explanation"] is None and "no property" in lines[1]["why"]
    assert found.scores == {} and found.unexplained == 4
    explain(store, no_judge(), tmp_path / "text")
    assert parse(lines_of(tmp_path / "text/none.jsonl")[0]["explanation"]) is not None


@pytest.fixture
def direct(monkeypatch: pytest.MonkeyPatch) -> None:
    """No key of whoever runs the tests, and no proxy between them and loopback."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def oracle(_: int, body: dict) -> Reply:
    """A judge that explains by the first marked token and looks for it."""
    prompt = body["messages"][-1]["content"]
    if "Say in one short sentence" in prompt:
        return said(json.dumps({"explanation": prompt.rpartition("<<")[2].partition(">>")[0].strip()}))
    wanted = json.loads(prompt.partition("fire on this: ")[2].partition("\n")[0])
    excerpts = [json.loads(line.partition(". ")[2]) for line in prompt.splitlines() if line[:1].isdigit()]
    marked = "some tokens are marked" in prompt
    return said(json.dumps({"answers": [int((f"<< {wanted}>>" if marked else wanted) in text) for text in excerpts]}))


def judge(url: str, cache: Path | None = None, **more: object) -> Judge:
    endpoint = Endpoint(url, "org/judge", **{"wait": 0.01, "concurrent": 2, **more})
    return chat_judge(Chat(endpoint, None if cache is None else Answers(cache)))


@pytest.mark.usefixtures("direct")
def test_a_language_model_explains_and_judges(store: PlantedStore, tmp_path: Path) -> None:
    with serving(oracle) as server:
        found = explain(store, judge(server.url), tmp_path)
    lines = {line["feature"]: line for line in lines_of(tmp_path / "org-judge.jsonl")}
    assert lines[1]["explanation"] == "cat" and lines[1]["explainer"] == "llm"
    assert lines[1]["scores"]["detection"]["balanced_accuracy"] == 1
    assert lines[1]["scores"]["fuzzing"]["balanced_accuracy"] > 0.9
    assert lines[1]["control"]["detection"]["balanced_accuracy"] < 0.9
    # 5 features fire and are explained; 30 windows are 6 questions, of two scorers, own and control.
    assert found.questions.asked == 5 + 4 * (6 + 6) * 2 + 2 * 2 * len(range(0, 20, 5))
    assert "stronger" not in json.dumps(found.to_dict()) and str(server.url) not in json.dumps(found.to_dict())


@pytest.mark.usefixtures("direct")
def test_what_a_judge_does_wrong_is_counted_and_listed(store: PlantedStore, tmp_path: Path) -> None:
    """Nonsense, a wrong number of labels and refusals leave the rest alone."""
    nth = {"detect": 0}

    def answer(number: int, body: dict) -> Reply:
        prompt = body["messages"][-1]["content"]
        if "has a token on which" in prompt:
            nth["detect"] += 1
            wrong = {1: said("I like cats."), 2: said('{"answers": [1, 0]}'), 3: Reply("", 400), 4: Reply("", 500)}
            if nth["detect"] in wrong:
                return wrong[nth["detect"]]
        return oracle(number, body)

    with serving(answer) as server:
        found = explain(store, judge(server.url, concurrent=1), tmp_path, [1])
    (line,) = lines_of(tmp_path / "org-judge.jsonl")
    detection = line["scores"]["detection"]
    # Two of the six groups cannot be read, one is refused, and one answers on the second try.
    assert (detection["examples"], detection["malformed"], detection["failed"], detection["asked"]) == (15, 10, 5, 30)
    assert line["unread"] == ["I like cats.", '{"answers": [1, 0]}']
    assert found.scores["detection"].fewer == 1 and found.questions.malformed == 2
    assert found.questions.failed == {"HTTP 400": 1}


@pytest.mark.usefixtures("direct")
def test_a_judge_that_cannot_explain_leaves_features_unexplained(store: PlantedStore, tmp_path: Path) -> None:
    with serving(lambda *_: said("Hm.")) as server:
        found = explain(store, judge(server.url), tmp_path, [0, 1, 3])
    lines = {line["feature"]: line for line in lines_of(tmp_path / "org-judge.jsonl")}
    assert (found.unexplained, found.silent, found.scored) == (2, 1, 0)
    assert lines[0]["why"] == "its answer cannot be read" and lines[0]["unread"] == ["Hm."]


@pytest.mark.usefixtures("direct")
def test_an_unreachable_endpoint_is_reported_at_once(store: PlantedStore, tmp_path: Path) -> None:
    with serving(oracle) as server:
        gone = server.url
    with pytest.raises(ValueError, match="no answer of org/judge"):
        explain(store, judge(gone, tries=1), tmp_path, [0])
    with serving(lambda *_: Reply("", 401)) as server, pytest.raises(ValueError, match="OPENAI_API_KEY"):
        explain(store, judge(server.url), tmp_path, [0])


@pytest.mark.usefixtures("direct")
def test_a_killed_run_pays_nothing_twice(store: PlantedStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(explained, "CHUNK", 1)
    with serving(oracle) as server:
        explain(store, judge(server.url), tmp_path / "whole", [0, 1, 2])
        once = len(server.asked)
        stopping = judge(server.url, tmp_path / "answers.jsonl")
        fuzz = stopping.scorers["fuzzing"]
        calls: list[int] = []

        def stop(cases: list) -> list:
            calls.append(1)
            if len(calls) == 4:
                raise KeyboardInterrupt
            return fuzz(cases)

        with pytest.raises(KeyboardInterrupt):
            explain(store, stopping._replace(scorers={**stopping.scorers, "fuzzing": stop}), tmp_path / "a", [0, 1, 2])
        assert len(lines_of(tmp_path / "a/org-judge.jsonl")) == 1
        explain(store, judge(server.url, tmp_path / "answers.jsonl"), tmp_path / "a", [0, 1, 2])
        assert len(server.asked) == 2 * once
    whole, again = ((tmp_path / name / "org-judge.jsonl").read_text() for name in ("whole", "a"))
    assert whole == again


@pytest.mark.usefixtures("direct")
def test_a_cap_on_calls_is_respected(store: PlantedStore, tmp_path: Path) -> None:
    with serving(oracle) as server:
        found = explain(store, judge(server.url, calls=7), tmp_path, [0, 1])
        assert len(server.asked) == 7
    assert sum(found.questions.failed.values()) == found.questions.asked - 7
    assert found.scores["detection"].failed > 0
