"""Who explains features and scores the explanations: an open registry, and `make_judge`, which makes one by name.

A judge is named `NAME` or `NAME:ARGUMENT`, as in `rules`, `local:models/qwen` or `http://localhost:8000/v1`. A package
adds its own by an entry point of the group `glassmoe.judges`: a function of the argument (empty without one) and a
`JudgeOptions` that returns a `trials.Judge`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from glassmoe.registry import JUDGE_REGISTRY

from .chat import Answers, Chat, Endpoint

if TYPE_CHECKING:  # an unknown judge is reported before numpy and torch are imported
    from .asking import ChatModel
    from .local import LocalChat
    from .trials import Judge


Explainer = Literal["judge", "rules"]
"""Who writes the explanations that a judge scores."""
OF_RULES = "-of-rules"
"""Ends the name of a judge that scores the explanations of rules."""


@dataclass(frozen=True)
class JudgeOptions:
    """What a user sets for a judge."""

    model: str | None = None
    """Model behind an endpoint."""
    settings: Mapping[str, Any] = field(default_factory=lambda: {"temperature": 0})
    """Further fields of every request to an endpoint."""
    cache: Path = Path("runs/judges")
    """Folder of the answers of language models, so that no question is asked twice."""
    max_calls: int | None = None
    """Requests at most; None: no limit."""
    max_cost: float | None = None
    """Dollars at most, with `prices`; None: no limit."""
    prices: tuple[float, float] | None = None
    """Dollars per million tokens read and written."""
    device: str = "auto"
    """Device of a model on this machine: auto, cpu or cuda."""

    def answers(self) -> Answers:
        """The answers on disk."""
        return Answers(self.cache / "answers.jsonl")

    def forbid_model(self, judge: str) -> None:
        """ValueError when a model is given to a judge that takes none."""
        if self.model is not None:
            raise ValueError(
                f"--judge-model names a model behind an endpoint, but --judge is {judge}; leave --judge-model out"
            )


def make_judge(
    name: str,
    *,
    model: str | None = None,
    settings: Mapping[str, Any] | None = None,
    cache: str | Path = "runs/judges",
    max_calls: int | None = None,
    max_cost: float | None = None,
    prices: tuple[float, float] | None = None,
    device: str = "auto",
    explainer: Explainer = "judge",
) -> Judge:
    """The judge `name`: none, rules, embedding[:PATH], local:PATH, the address of an OpenAI-compatible endpoint, or
    a judge of another package. An endpoint is asked one question at once, so that a wrong address or key fails early.

    `model`: behind an endpoint. `settings`: of its requests (default: temperature 0). `cache`: folder of answers.
    `max_calls`, `max_cost` (dollars, with `prices`): limits. `explainer`: who writes the explanations that the judge
    scores: the judge itself, or `rules`. ValueError for an unknown name, with the nearest known one, and for options
    that the judge does not take.
    """
    options = JudgeOptions(
        model=model,
        settings={"temperature": 0} if settings is None else settings,
        cache=Path(cache),
        max_calls=max_calls,
        max_cost=max_cost,
        prices=prices,
        device=device,
    )
    kind, _, argument = name.partition(":")
    judge = JUDGE_REGISTRY.look_up(JUDGES, kind)(argument, options)
    return judge if explainer == "judge" or judge.name in ("rules", "none") else _of_rules(judge)


def _of_rules(judge: Judge) -> Judge:
    """The judge with the explanations of the judge `rules`, and files of its own."""
    from .offline import rule_judge

    rules = rule_judge()
    about = {**judge.about, "explainer": {"name": rules.name, **rules.about}}
    return judge._replace(name=judge.name + OF_RULES, about=about, explain=rules.explain)


def make_chats(url: str, models: Sequence[str], options: JudgeOptions) -> list[Chat]:
    """A chat with each of several models behind one endpoint; they share the file of answers. ValueError for an
    address that is none."""
    limits: dict[str, Any] = {"calls": options.max_calls, "prices": options.prices, "cost": options.max_cost}
    answers = options.answers()
    return [Chat(Endpoint(url, model, options.settings, **limits), answers) for model in models]


def make_raters(judge: str, models: Sequence[str], options: JudgeOptions) -> list[ChatModel]:
    """Who rates texts: models behind the endpoint at an address, or the model of `local:PATH`. ValueError for an
    address that is none, and for a judge that takes or needs names of models."""
    kind, _, argument = judge.partition(":")
    if kind == "local" and not models:
        return [_local_chat(argument, options)]
    if kind == "local" or not models:
        raise ValueError(
            "texts are rated by models behind an endpoint, with judge and judge_model, or by judge=local:PATH alone; "
            "give both judge and judge_model, or neither"
        )
    return list(make_chats(judge, models, options))


def _none(argument: str, options: JudgeOptions) -> Judge:
    from .offline import no_judge

    _without_argument("none", argument, options)
    return no_judge()


def _rules(argument: str, options: JudgeOptions) -> Judge:
    from .offline import rule_judge

    _without_argument("rules", argument, options)
    return rule_judge()


def _without_argument(name: str, argument: str, options: JudgeOptions) -> None:
    options.forbid_model(name)
    if argument:
        raise ValueError(f"the judge {name} takes no argument, got {argument!r}; give --judge {name}")


def _embedding(argument: str, options: JudgeOptions) -> Judge:
    from .embedding import Embed
    from .offline import embedding_judge

    options.forbid_model("embedding")
    return embedding_judge(Embed(Path(argument) if argument else None))


def _local(argument: str, options: JudgeOptions) -> Judge:
    from .yes_no import yes_no_judge

    options.forbid_model("local")
    return yes_no_judge(_local_chat(argument, options))


def _local_chat(argument: str, options: JudgeOptions) -> LocalChat:
    from .local import LocalChat

    if not argument:
        raise ValueError("the judge local needs a folder of transformers files; give --judge local:PATH")
    return LocalChat(Path(argument), options.answers(), options.device)


def _endpoint(url: str, options: JudgeOptions) -> Judge:
    from .asking import chat_judge

    models = [name.strip() for name in (options.model or "").split(",")]
    if len(models) != 1 or not models[0]:
        raise ValueError(
            f"one model behind the endpoint {url} explains and judges; name it by --judge-model, got {options.model!r}"
        )
    (chat,) = make_chats(url, models, options)
    chat.ask([[{"role": "user", "content": "Answer with the word yes."}]])
    return chat_judge(chat)


JUDGES: dict[str, Callable[[str, JudgeOptions], Judge]] = {
    "none": _none,
    "rules": _rules,
    "embedding": _embedding,
    "local": _local,
    "http": lambda rest, options: _endpoint(f"http:{rest}", options),
    "https": lambda rest, options: _endpoint(f"https:{rest}", options),
}
"""Name of a judge, before a colon -> how to make it of what follows the colon and of the options. Add your own by
`JUDGES["name"] = function`, or by an entry point of the group `glassmoe.judges`."""
