"""Explanations of many features, each scored beside a control, on disk as they are made.

`NAME.jsonl` has one line a feature, `NAME.json` beside it the settings and, once all are done, the means. Lines are
added as they are finished, so a run that was stopped goes on after the last whole one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from glassmoe.atomic import write_text
from glassmoe.console import bar, say
from glassmoe.data.tokens import TokenKind
from glassmoe.inspect.store import FeatureStore

from .scoring import summary
from .trials import Case, Explanation, Judge, Protocol, trial
from .windows import Reader

Line = dict[str, Any]

SCHEMA_VERSION = 1
CHUNK = 16
"""Features that are judged together and then written."""
IDENTITY = (
    "weights_sha256",
    "feature_weights_sha256",
    "data_sha256",
    "rows",
    "row",
    "window",
    "each",
    "keep",
    "seed",
    "split",
)
"""What of a store decides its windows."""


def choose_features(store: FeatureStore, count: int, seed: int = 0) -> list[int]:
    """So many features at random, in order; a greater count has those of a smaller one, too. Features that never fire
    are among them, as they are among the layer's."""
    order = np.random.default_rng(seed).permutation(store.num_features)
    return sorted(order[:count].tolist())


def check_features(store: FeatureStore, features: Sequence[int]) -> None:
    """ValueError for a feature that is not there."""
    wrong = [feature for feature in features if not 0 <= feature < store.num_features]
    if wrong:
        raise ValueError(f"feature {wrong[0]} is not in this layer: it has features 0 to {store.num_features - 1}")


def explain_features(
    store: FeatureStore,
    kind: TokenKind,
    judge: Judge,
    features: Sequence[int],
    folder: Path,
    *,
    protocol: Protocol | None = None,
    boards: Mapping[int, dict[str, Any]] | None = None,
    again: bool = False,
) -> dict[str, Any]:
    """Explain features and score their explanations, in `folder/JUDGE.jsonl` and `.json`; returns what the latter says.
    What is there is gone on with, or with `again` made anew.

    `boards`: of a chess model, feature -> the property of the board that it tells best
    (`measure.board_explanations`); with the judge `none` its words are the explanation. A line has `feature`,
    `explanation` (None where there is none, and then `why`), `explainer`, `judge`, `scores` and, with the explanation
    of another feature in its place, `control`, each scorer -> numbers (`scoring.score`, `ranking`); `board`; `silent`:
    it never fires. ValueError for a feature that is not there, and for a file that was made with other settings.
    """
    protocol = protocol or Protocol()
    check_features(store, features)
    path = folder / f"{judge.name}.jsonl"
    for old in (path, path.with_suffix(".json")) if again else ():
        old.unlink(missing_ok=True)
    settings = {
        "store": {key: store.manifest.get(key) for key in IDENTITY} | _sources(store),
        "judge": dict(judge.about),
        "protocol": asdict(protocol),
        "boards": boards is not None,
    }
    done = _begun(path, settings)
    missing = [feature for feature in dict.fromkeys(features) if feature not in done]
    reader = Reader(store, kind)
    said = _explanations(reader, judge, missing, protocol, boards)
    # Lines that are there take part in the shuffle, as they did when they were written.
    texts = {feature: done[feature]["explanation"] for feature in features if feature in done}
    texts |= {feature: each.text for feature, each in said.items()}
    others = shuffled({feature: text for feature, text in texts.items() if text is not None}, protocol.seed)
    with bar(len(missing), f"judge {judge.name}", "feature", lines=True) as progress:
        for start in range(0, len(missing), CHUNK):
            part = missing[start : start + CHUNK]
            lines = _lines(reader, judge, part, said, texts, others, protocol, boards)
            with path.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
            done |= {line["feature"]: line for line in lines}
            progress.update(len(part))
    found = summarise([done[feature] for feature in dict.fromkeys(features)])
    counts = judge.counts() if judge.counts else None
    made = {"schema_version": SCHEMA_VERSION, "settings": settings, **about(store, judge), **found, "questions": counts}
    write_text(path.with_suffix(".json"), json.dumps(made, indent=1, ensure_ascii=False) + "\n")
    return {**made, "file": str(path)}


def _sources(store: FeatureStore) -> dict[str, str]:
    """What rules may know of sources; nothing of a store without, so that explanations of before are gone on with."""
    if store.sources_R is None:
        return {}
    known = json.dumps(store.manifest["source_names"]).encode() + store.sources_R.astype("<u2").tobytes()
    return {"sources_sha256": hashlib.sha256(known).hexdigest()}


def about(store: FeatureStore, judge: Judge) -> dict[str, Any]:
    """Whose features are explained, by whom, on how much."""
    named = {key: store.manifest.get(key) for key in ("reader", "keep", "l0", "read_tokens", "num_features")}
    return {**named, "judge": judge.name}


def read_lines(path: Path) -> list[Line]:
    """The whole lines of a file of explanations, the newest of each feature; none where there is no file."""
    found: dict[int, Line] = {}
    for text in path.read_text(encoding="utf-8").split("\n")[:-1] if path.exists() else ():
        try:
            line = json.loads(text)
            found[int(line["feature"])] = line
        except (ValueError, TypeError, LookupError):
            continue
    return list(found.values())


def _begun(path: Path, settings: dict[str, Any]) -> dict[int, Line]:
    """The lines that are there, by feature, when they were made with the same settings; otherwise ValueError. A line
    that was cut is cut off."""
    path.parent.mkdir(parents=True, exist_ok=True)
    record = path.with_suffix(".json")
    advice = "give --again to make them anew, or move them away"
    if record.exists():
        try:
            given = json.loads(record.read_text(encoding="utf-8"))["settings"]
        except (ValueError, TypeError, LookupError):
            raise ValueError(f"{record} was not written by glassmoe explain; move it away") from None
        differs = [key for key in settings if json.loads(json.dumps(settings[key])) != given.get(key)]
        if differs:
            raise ValueError(
                f"the explanations in {path} were made with other settings ({', '.join(differs)}); {advice}"
            )
    elif path.exists():
        raise ValueError(f"{path} has no settings beside it ({record.name}); move it away")
    else:
        write_text(record, json.dumps({"schema_version": SCHEMA_VERSION, "settings": settings}, indent=1) + "\n")
    lines = read_lines(path)
    if path.exists() and not path.read_bytes().endswith(b"\n"):
        write_text(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    if lines:
        say(f"{path} has {len(lines):,} features already; they stay")
    return {line["feature"]: line for line in lines}


def _explanations(
    reader: Reader,
    judge: Judge,
    features: Sequence[int],
    protocol: Protocol,
    boards: Mapping[int, dict[str, Any]] | None,
) -> dict[int, Explanation]:
    """What every feature that fires is said to fire on."""
    alive = [feature for feature in features if reader.store.windows_F[feature]]
    if boards is not None and not judge.scorers:
        nothing = Explanation(None, "board", "no property of the board goes with it")
        return {f: Explanation(boards[f]["property"], "board") if f in boards else nothing for f in alive}
    found: dict[int, Explanation] = {}
    with bar(len(alive), "explain", "feature", lines=True) as progress:
        for start in range(0, len(alive), CHUNK):
            part = alive[start : start + CHUNK]
            made = judge.explain([trial(reader, feature, protocol) for feature in part])
            found |= dict(zip(part, made, strict=True))
            progress.update(len(part))
    return found


def shuffled(texts: Mapping[int, str], seed: int) -> dict[int, int]:
    """For each feature another whose explanation is a different text, at random; none where all texts are the same."""
    order = np.random.default_rng([seed, len(texts)]).permutation(list(texts)).tolist() if texts else []
    found = {}
    for at, feature in enumerate(order):
        for other in (*order[at + 1 :], *order[:at]):
            if texts[other] != texts[feature]:
                found[feature] = other
                break
    return found


def _lines(
    reader: Reader,
    judge: Judge,
    features: Sequence[int],
    said: Mapping[int, Explanation],
    texts: Mapping[int, str | None],
    others: Mapping[int, int],
    protocol: Protocol,
    boards: Mapping[int, dict[str, Any]] | None,
) -> list[Line]:
    """The lines of some features, in order."""
    trials = {f: trial(reader, f, protocol) for f in features if judge.scorers and texts.get(f) is not None}
    own: list[Case] = [(str(texts[f]), each) for f, each in trials.items()]
    control: list[Case] = [(str(texts[others[f]]), each) for f, each in trials.items() if f in others]
    found: dict[str, dict[int, dict[str, Any]]] = {"scores": {}, "control": {}}
    for key, cases in (("scores", own), ("control", control)):
        for name, scorer in judge.scorers.items():
            for (_, tried), score in zip(cases, scorer(cases), strict=True):
                found[key].setdefault(tried.feature, {})[name] = score
    lines = []
    for feature in features:
        silent = feature not in said
        each = said.get(feature, Explanation(None, "none", "it never fires"))
        line: Line = {"feature": feature, "explanation": each.text, "explainer": each.explainer, "judge": judge.name}
        line |= {"scores": found["scores"].get(feature, {}), "control": found["control"].get(feature, {})}
        line |= {"board": (boards or {}).get(feature), "silent": silent}
        line |= {"fires": int(reader.store.counts_F[feature]), "maximum": float(reader.store.maxima_F[feature])}
        line |= {"why": each.why} if each.why else {}
        line |= {"unread": judge.unread[feature]} if feature in judge.unread else {}
        lines.append(line)
    return lines


def summarise(lines: Sequence[Line]) -> dict[str, Any]:
    """The means of lines, and how many features there are of which kind."""
    return {
        "features": len(lines),
        "silent": sum(line["silent"] for line in lines),
        "unexplained": sum(line["explanation"] is None and not line["silent"] for line in lines),
        "scored": sum(bool(line["scores"]) for line in lines),
        "scores": summary([line["scores"] for line in lines if line["scores"]]),
        "control": summary([line["control"] for line in lines if line["control"]]),
    }
