"""A language model as explainer and judge, behind an endpoint (`chat.Chat`) or local (`local.LocalChat`)."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from . import prompts
from .chat import Counts, Messages
from .results import Questions, Score
from .scoring import FAILED, MALFORMED, score
from .trials import Case, Explanation, Judge, Trial
from .windows import Int64

SHOWN, LISTED = 200, 3
"""Characters of an unreadable answer that are kept, and such answers per feature."""


class ChatModel(Protocol):
    """Answers many questions."""

    counts: Counts

    def ask(self, conversations: Sequence[Messages]) -> list[str | None]: ...

    def summary(self) -> Questions: ...


def chat_judge(chat: ChatModel) -> Judge:
    """A language model as a judge."""
    unread: dict[int, list[str]] = {}

    def note(feature: int, answer: str) -> None:
        chat.counts.malformed += 1
        beginnings = unread.setdefault(feature, [])
        if len(beginnings) < LISTED:
            beginnings.append("".join(letter for letter in answer[:SHOWN] if letter.isprintable() or letter.isspace()))

    def explain(trials: Sequence[Trial]) -> list[Explanation]:
        explanations = []
        able = [trial for trial in trials if (trial.explaining.deciles_E >= 0).any()]
        answers = dict(zip(able, chat.ask([prompts.to_explain(trial) for trial in able]), strict=True))
        for trial in trials:
            if trial not in answers:
                explanations.append(Explanation(None, "llm", "it fires in no window that may explain it"))
                continue
            answer = answers[trial]
            text = None if answer is None else prompts.parse_explanation(answer)
            if answer is not None and text is None:
                note(trial.feature, answer)
            why = None if text else "the judge did not answer" if answer is None else "its answer cannot be read"
            explanations.append(Explanation(text, "llm", why))
        return explanations

    def scorer(question: Callable[[str, Trial, Any], Messages]) -> Callable[[Sequence[Case]], list[Score]]:
        def scores(cases: Sequence[Case]) -> list[Score]:
            groups = [(case, group) for case in cases for group in _groups(case[1])]
            answers = chat.ask([question(*case, group) for case, group in groups])
            verdicts = [np.full(len(case[1].scoring), FAILED, np.int8) for case in cases]
            of_case = iter(np.repeat(np.arange(len(cases)), [len(_groups(case[1])) for case in cases]))
            for (case, group), answer in zip(groups, answers, strict=True):
                at = next(of_case)
                if answer is None:
                    continue
                labels = prompts.parse_answers(answer, len(group))
                if labels is None:
                    note(case[1].feature, answer)
                verdicts[at][group] = MALFORMED if labels is None else labels
            return [
                score(verdict_E, trial.scoring.deciles_E, trial.asked)
                for verdict_E, (_, trial) in zip(verdicts, cases, strict=True)
            ]

        return scores

    def detect(explanation: str, trial: Trial, group: Any) -> Messages:
        return prompts.to_detect(explanation, trial.scoring[group], trial.token)

    def fuzz(explanation: str, trial: Trial, group: Any) -> Messages:
        return prompts.to_fuzz(explanation, trial.scoring[group], trial.marked_EL[group], trial.token)

    counts = chat.summary()
    about = {"model": counts.model, "settings": counts.settings, "prompts": prompts.digest()}
    return Judge(
        file_name(counts.model),
        about,
        explain,
        {"detection": scorer(detect), "fuzzing": scorer(fuzz)},
        chat.summary,
        unread,
    )


def _groups(trial: Trial) -> list[Int64]:
    """The windows of a feature in a fixed random order, as many as one question shows at a time."""
    order = np.random.default_rng([trial.feature, len(trial.scoring)]).permutation(len(trial.scoring))
    return [order[start : start + prompts.AT_ONCE] for start in range(0, len(order), prompts.AT_ONCE)]


def file_name(model: str) -> str:
    """A model's name as the name of a file."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", model).strip("-.") or "judge"
