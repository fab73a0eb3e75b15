"""A language model on this machine: answers in batches, and yes or no by their probabilities."""

from pathlib import Path

import numpy as np
import pytest
import torch

from glassmoe.explaining import local, prompts
from glassmoe.explaining.chat import Answers, Counts
from glassmoe.explaining.explained import explain_features
from glassmoe.explaining.judges import make_judge
from glassmoe.explaining.local import LocalChat
from glassmoe.explaining.results import Questions
from glassmoe.explaining.trials import ExplanationProtocol, trial
from glassmoe.explaining.windows import TokenText
from glassmoe.explaining.yes_no import verdicts, yes_no_judge
from planted_stores import planted, words_kind
from text_files import made_up_texts, prepared, random_gpt2, random_llama

SAME = "the cat sees a big red house "


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    prepared(folder / "text", made_up_texts(60))
    return {
        "gpt2": random_gpt2(folder / "gpt2", folder / "text", layers=2),
        "llama": random_llama(folder / "llama", folder / "text", layers=2),
    }


def opened(folder: Path, answers: Answers | None = None) -> LocalChat:
    chat = LocalChat(folder, answers, "cpu")
    chat._model.float()
    return chat


def asked(*texts: str) -> list[list[dict[str, str]]]:
    return [[{"role": "user", "content": text}] for text in texts]


def odds_alone(chat: LocalChat, question: list[dict[str, str]]) -> float:
    """The naive twin: one whole pass, probabilities of all tokens."""
    ids_1N = torch.tensor([chat._prompt(question)])
    with torch.no_grad():
        chances_V = chat._model(input_ids=ids_1N, use_cache=False).logits[0, -1].double().softmax(-1)
    yes, no = (chances_V[chat._words[word]].sum() for word in ("yes", "no"))
    return float((yes / no).log())


@pytest.mark.parametrize("model", ["gpt2", "llama"])
@pytest.mark.parametrize("together", [1, 12, 4096])
def test_odds_in_batches_are_those_of_whole_passes(
    folders: dict[str, Path], model: str, together: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "TOKENS_TO_READ", together)
    chat = opened(folders[model])
    for questions in (
        asked(SAME + "the cat", SAME + "dog", SAME, SAME + "the cat and a tree"),
        asked(SAME + "tree", SAME + "a house, a tree"),  # goes on from what is cached
        asked("dog"),
        asked("dog"),
        asked(SAME[:12] + "dog", "and the cat"),
    ):
        expected = [odds_alone(chat, question) for question in questions]
        assert chat.odds(questions) == pytest.approx(expected, abs=1e-4)
        assert len({round(value, 3) for value in expected}) == len(questions)
    assert chat._can_share


def test_odds_without_a_cache_that_can_be_cut(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "_is_plain", lambda _: False)
    chat = opened(folders["llama"])
    questions = asked(SAME + "the cat", SAME + "dog", "tree")
    assert chat.odds(questions) == pytest.approx([odds_alone(chat, question) for question in questions], abs=1e-4)


def test_odds_are_saved_apart_from_answers_in_words(folders: dict[str, Path], tmp_path: Path) -> None:
    chat = opened(folders["gpt2"], Answers(tmp_path / "answers.jsonl"))
    long = asked("the cat " * 60)
    questions = [*asked("the cat", "a dog", "the cat"), *long]
    odds = chat.odds(questions)
    assert odds[0] == odds[2] and odds[3] is None
    assert (chat.counts.asked, chat.counts.answered, chat.counts.calls, chat.counts.cached) == (4, 3, 2, 0)
    assert chat.counts.failed == {"a question longer than the model's context": 1}
    again = opened(folders["gpt2"], Answers(tmp_path / "answers.jsonl"))
    assert again.odds(questions[:3]) == pytest.approx(odds[:3], rel=1e-5) and again.counts.cached == 3
    (words,) = again.ask(questions[:1])
    assert words is not None and again.counts.calls == 1
    # The key of an answer in words is that of earlier versions.
    assert Answers(tmp_path / "answers.jsonl").get(again._key(questions[0])) == words


@pytest.mark.parametrize("model", ["gpt2", "llama"])
def test_answers_in_batches_are_those_one_by_one(
    folders: dict[str, Path], model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "LONGEST_ANSWER", 12)
    questions = asked("the cat", SAME, "a dog sees the tree and a dog", "house", "the cat and " * 4)
    together = opened(folders[model]).ask(questions)
    alone = [opened(folders[model]).ask([question])[0] for question in questions]
    assert together == alone and len(set(alone)) > 1


@pytest.mark.parametrize(
    "answer, end",
    [
        ('{"answers": [1, 0]}', 19),
        ('\n {"a": {"b": 1}} ', 17),
        ('{"a": 1} and {"a": 2}', 8),
        ('{"a": "}"', None),
        ('Sure: {"a": 1}', None),
        ('<think>{"a": 1}</think>', None),
        ('{"a":' * 3000, None),
        ("", None),
    ],
)
def test_an_answer_ends_with_its_object(answer: str, end: int | None) -> None:
    assert local._end_of_object(answer) == end


def test_words_that_a_tokenizer_does_not_tell_apart() -> None:
    def tokenizer(text: str, add_special_tokens: bool) -> dict[str, list[int]]:  # noqa: ARG001
        return {"input_ids": [0, *map(ord, text.strip())] if text[0] == " " else [*map(ord, text)]}

    assert local._answer_tokens(tokenizer, Path("x")) == {"yes": [ord("Y"), ord("y")], "no": [ord("N"), ord("n")]}
    with pytest.raises(ValueError, match="x cannot judge, because its tokenizer begins yes and no"):
        local._answer_tokens(lambda *_, **__: {"input_ids": [7]}, Path("x"))


def test_the_threshold_comes_from_the_other_half() -> None:
    """Even windows: 4 and 3 fire, 1 and 0 do not, so odd ones are cut at 2. Odd windows: 2.5 and -1 fire, -3 and -4 do
    not, so even ones are cut at -2: all of them are above."""
    odds_E = np.array([4, 2.5, 3, -1, 1, -3, 0, -4, np.nan], np.float32)
    fires_E = np.array([1, 1, 1, 1, 0, 0, 0, 0, 0], bool)
    assert verdicts(odds_E, fires_E).tolist() == [1, 1, 1, 0, 1, 0, 1, 0, -1]
    # Where one half has windows of one kind, the other is cut at even odds.
    assert verdicts(np.array([1, 5, -1, 6], np.float32), np.array([1, 1, 0, 1], bool)).tolist() == [1, 1, 0, 1]


class Scripted:
    """Would say yes where the last excerpt has a cat, or marks one."""

    def __init__(self) -> None:
        self.counts, self.questions = Counts(), 0

    def ask(self, conversations):
        return ['{"explanation": "cats"}' for _ in conversations]

    def odds(self, conversations):
        self.questions += len(conversations)
        excerpts = [messages[-1]["content"].rpartition("\n\n")[2] for messages in conversations]
        return [5.0 if " cat" in text and ("<<" not in text or "<< cat" in text) else 4.0 for text in excerpts]

    def summary(self) -> Questions:
        return Questions("scripted", {}, 0, 0, 0, 0, 0, {})


def test_a_judge_by_odds(tmp_path: Path) -> None:
    vocabulary = [" the", " a", " on", " in", " at", " by", " of", " to", " cat"]
    store = planted(vocabulary, [lambda text, at: text[at] == " cat", lambda text, at: text[at] == " the"])
    chat = Scripted()
    judge = yes_no_judge(chat)
    found = explain_features(
        store, words_kind(vocabulary), judge, [0], tmp_path / "out", protocol=ExplanationProtocol(3, 30)
    )
    assert found.scores["detection"].balanced_accuracy.mean == 1.0
    assert found.scores["fuzzing"].balanced_accuracy.mean > 0.95 and found.scores["probability"].auc.mean == 1.0
    # Each window is asked about once for detection and once for fuzzing.
    assert chat.questions == 2 * found.scores["detection"].examples
    one = trial(TokenText(store, words_kind(vocabulary)), 0, ExplanationProtocol(3, 30))
    first, second = prompts.to_detect_one("cats", one)[:2]
    assert first[:-1] == second[:-1] and first[-1]["content"].endswith(f'\n\n"{one.scoring.text(0)}"')
    assert [each["content"] for each in first if each["role"] == "assistant"] == ["Yes", "No", "Yes", "No", "Yes", "No"]
    assert "<<" in prompts.to_fuzz_one("cats", one)[0][-1]["content"].rpartition("\n\n")[2]


def test_one_judge_tells_features_of_two_layers_apart() -> None:
    """Feature 0 of one layer fires on cats, feature 0 of the other on dogs, and both have the same explanation."""
    vocabulary, protocol = [" the", " a", " on", " in", " cat", " dog"], ExplanationProtocol(3, 30)
    layers = [
        trial(TokenText(planted(vocabulary, [detect]), words_kind(vocabulary)), 0, protocol)
        for detect in (lambda text, at: text[at] == " cat", lambda text, at: text[at] == " dog")
    ]
    judge = yes_no_judge(Scripted())
    for name, scorer in judge.scorers.items():
        together = [scorer([("cats", one)])[0] for one in layers]
        assert together == [yes_no_judge(Scripted()).scorers[name]([("cats", one)])[0] for one in layers], name


def test_a_local_judge_of_the_explanations_of_rules(folders: dict[str, Path], tmp_path: Path) -> None:
    name, cache = f"local:{folders['llama']}", tmp_path / "judges"
    judge = make_judge(name, cache=cache, device="cpu", explainer="rules")
    own, rules = make_judge(name, cache=cache, device="cpu"), make_judge("rules")
    assert (own.name, judge.name) == ("llama", "llama-of-rules") and judge.about["explainer"]["name"] == "rules"
    assert judge.about["yes_no"] == prompts.digest_of_one() and list(judge.scorers) == list(own.scorers)
    assert (
        make_judge("rules", explainer="rules").name == "rules" and make_judge("none", explainer="rules").name == "none"
    )
    vocabulary = [" the", " cat", " dog"]
    one = trial(
        TokenText(planted(vocabulary, [lambda text, at: text[at] == " cat"]), words_kind(vocabulary)),
        0,
        ExplanationProtocol(2, 5),
    )
    assert judge.explain([one]) == rules.explain([one]) and judge.explain([one])[0].text == 'fires on the token " cat"'
