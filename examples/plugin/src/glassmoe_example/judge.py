"""A judge that explains a feature by the token on which it fires most strongly, and scores nothing."""

from collections.abc import Sequence

from glassmoe.explaining.judges import JudgeOptions
from glassmoe.explaining.trials import Explanation, Judge, Trial


def top_token_judge(argument: str, options: JudgeOptions) -> Judge:
    """`argument`: what follows the colon in `--judge top-token:ARGUMENT`. `options`: what a user sets for judges."""
    options.forbid_model("top-token")
    if argument:
        raise ValueError(f"the judge top-token takes no argument, got {argument!r}")
    return Judge("top-token", {"version": 1}, explain, {})


def explain(trials: Sequence[Trial]) -> list[Explanation]:
    return [explain_one(trial) for trial in trials]


def explain_one(trial: Trial) -> Explanation:
    windows = trial.explaining
    if not len(windows) or windows.deciles_E.max() < 0:
        return Explanation(None, "top-token", "it fires in no window")
    return Explanation(f"fires in texts such as {windows.text(0)!r}", "top-token")
