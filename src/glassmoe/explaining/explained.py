"""`explain`: explanations of many features, each scored beside a control, written to disk as they are finished.

`JUDGE.jsonl` has one line a feature (`results.FeatureExplanation`). `JUDGE.json` beside it has the settings and, once
all features are done, the means. An interrupted run resumes after the last whole line. Both files have checksums.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from glassmoe.atomic import write_text
from glassmoe.checksums import Damaged, parse_lines, read_json, with_checksum
from glassmoe.console import bar, say
from glassmoe.data.tokens import TokenKind
from glassmoe.inspect.readers import Reader
from glassmoe.inspect.store import FeatureStore, Gathering
from glassmoe.locks import writing
from glassmoe.model.subject import Subject

from .judges import make_judge
from .opening import boards_of, explanations_folder, open_examples
from .results import DetectedProperty, ExplanationsResult, FeatureExplanation, Score
from .scoring import summary
from .trials import Case, Explanation, ExplanationProtocol, Judge, trial
from .windows import TokenText

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
"""Entries of a store's manifest that decide its windows."""


def explain(
    subject: Subject,
    layer: Reader,
    path: str | Path,
    *,
    judge: str | Judge = "rules",
    features: int | Sequence[int] = 1000,
    tokens: int | None = None,
    per_decile: int = 10,
    silent: int = 100,
    min_windows: int = 0,
    games: int = 1000,
    keep: int | None = None,
    full: bool = False,
    data: str | Path | None = None,
    seed: int = 0,
    again: bool = False,
) -> ExplanationsResult:
    """Say what features of a layer fire on, and score each explanation on documents that did not explain it.

    Examples and explanations are stored in the run at `path` (`features/`, `explanations/`) and resumed from there.
    `judge`: by name (`judges.make_judge`), or made. `features`: how many, drawn at random, or which. `tokens`: to
    read for examples (default: a million, or all there are). `per_decile`, `silent`: windows of each tenth of a
    feature's strength, and without the feature, that score an explanation. `min_windows`: features that fire in fewer
    windows are left out. `games`: for chess models, games that
    choose board properties, and again that test them (0: none). `keep`: count only the so many greatest features of
    each token, for layers that are not sparse. `full`: keep every strength, for `explore --export delphi`. `data`:
    prepared data to read (default: that of the run). `seed`: of the choice of features and windows. `again`: gather
    the examples and explain anew. ValueError as for `open_examples` and `explain_features`.
    """
    judge = make_judge(judge) if isinstance(judge, str) else judge
    gathering = gathering_for(tokens, per_decile, silent, keep, full)
    with writing(explanations_folder(path, layer, keep)):
        examples = open_examples(subject, layer, path, gathering=gathering, data=data, again=again)
        chosen = choose_features(examples.store, features, seed) if isinstance(features, int) else features
        check_features(examples.store, chosen)
        return explain_features(
            examples.store,
            subject.kind(),
            judge,
            chosen,
            examples.folder,
            protocol=ExplanationProtocol(per_decile, silent, seed, min_windows),
            boards=boards_of(examples, games) if games else None,
            again=again,
        )


def gathering_for(
    tokens: int | None, per_decile: int, silent: int, keep: int | None = None, full: bool = False
) -> Gathering:
    """What a store must hold for a protocol: as many windows of each tenth for explaining as for scoring."""
    usual = Gathering()
    each, pool = max(usual.each, 10 * per_decile), max(usual.pool, 2 * silent)
    return Gathering(read=tokens or usual.read, keep=keep, each=each, pool=pool, full=full)


def choose_features(store: FeatureStore, count: int, seed: int = 0) -> list[int]:
    """`count` random features in order, silent ones among them. A greater count includes those of a smaller one."""
    order = np.random.default_rng(seed).permutation(store.num_features)
    return sorted(order[:count].tolist())


def check_features(store: FeatureStore, features: Sequence[int]) -> None:
    """ValueError for a feature that the layer does not have."""
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
    protocol: ExplanationProtocol | None = None,
    boards: Mapping[int, DetectedProperty] | None = None,
    again: bool = False,
) -> ExplanationsResult:
    """Explain features of a store and score the explanations, in `folder/JUDGE.jsonl` and `.json`. Features that are
    there stay, or with `again` are explained anew.

    `boards`: for chess models, feature -> its board property; with the judge `none` its words are the explanation. The
    control of a score is the explanation of another feature on the same windows. ValueError for a feature that the
    layer does not have, and for a file that was made with other settings.
    """
    protocol = protocol or ExplanationProtocol()
    check_features(store, features)
    path = folder / f"{judge.name}.jsonl"
    for old in (path, path.with_suffix(".json")) if again else ():
        old.unlink(missing_ok=True)
    settings = {
        "store": {key: store.manifest.get(key) for key in IDENTITY} | _sources(store),
        "judge": dict(judge.about),
        "protocol": protocol.identity(),
        "boards": boards is not None,
    }
    done = _resumed(path, settings)
    missing = [feature for feature in dict.fromkeys(features) if feature not in done]
    text = TokenText(store, kind)
    explanations = _explanations(text, judge, missing, protocol, boards)
    # Lines on disk take part in the shuffle, as they did when they were written.
    texts = {feature: done[feature].explanation for feature in features if feature in done}
    texts |= {feature: explanation.text for feature, explanation in explanations.items()}
    others = shuffled({feature: text for feature, text in texts.items() if text is not None}, protocol.seed)
    with bar(len(missing), f"judge {judge.name}", "feature", lines=True) as progress:
        for start in range(0, len(missing), CHUNK):
            chunk = missing[start : start + CHUNK]
            lines = _lines(text, judge, chunk, explanations, texts, others, protocol, boards)
            with path.open("a", encoding="utf-8") as file:
                file.writelines(map(_json_line, lines))
            done |= {line.feature: line for line in lines}
            progress.update(len(chunk))
    chosen = [done[feature] for feature in dict.fromkeys(features)]
    named: dict[str, Any] = {
        key: store.manifest.get(key) for key in ("reader", "keep", "l0", "read_tokens", "num_features")
    }
    result = ExplanationsResult(
        schema_version=SCHEMA_VERSION,
        settings=settings,
        **named,
        judge=judge.name,
        features=len(chosen),
        silent=sum(line.silent for line in chosen),
        unexplained=sum(line.explanation is None and not line.silent for line in chosen),
        scored=sum(bool(line.scores) for line in chosen),
        scores=summary([line.scores for line in chosen if line.scores]),
        control=summary([line.control for line in chosen if line.control]),
        questions=judge.counts() if judge.counts else None,
        file=str(path),
        explanations=tuple(done.values()),
    )
    saved = {key: value for key, value in result.to_dict().items() if key != "file"}
    write_text(path.with_suffix(".json"), json.dumps(with_checksum(saved), indent=1, ensure_ascii=False) + "\n")
    return result


def _sources(store: FeatureStore) -> dict[str, str]:
    """What rules may know of sources. Nothing for a store without sources, so that its older explanations resume."""
    if store.sources_R is None:
        return {}
    known = json.dumps(store.manifest["source_names"]).encode() + store.sources_R.astype("<u2").tobytes()
    return {"sources_sha256": hashlib.sha256(known).hexdigest()}


def _json_line(line: FeatureExplanation) -> str:
    return json.dumps(with_checksum(line.to_dict()), ensure_ascii=False) + "\n"


def read_lines(path: Path) -> list[FeatureExplanation]:
    """The whole lines of a file of explanations, the newest of each feature; none where there is no file. Damaged lines
    are reported and left out."""
    parsed, damaged, _ = parse_lines(path) if path.exists() else ([], [], False)
    lines: dict[int, FeatureExplanation] = {}
    for values in parsed:
        try:
            lines[int(values["feature"])] = FeatureExplanation.from_dict(values)
        except (ValueError, TypeError, LookupError):
            damaged.append(0)
    if damaged:
        say(f"{path} is damaged: {len(damaged)} lines are not what was written; they are left out and explained again")
    return list(lines.values())


def _resumed(path: Path, settings: dict[str, Any]) -> dict[int, FeatureExplanation]:
    """The lines on disk, by feature; ValueError when they were made with other settings. A line that was cut short is
    removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    record = path.with_suffix(".json")
    advice = "give --again to make them anew, or move them away"
    if record.exists():
        try:
            saved = read_json(record)["settings"]
        except Damaged as error:
            raise Damaged(f"{error}; {advice}") from None
        except (ValueError, TypeError, LookupError):
            raise ValueError(f"{record} was not written by glassmoe explain; move it away") from None
        differs = [key for key in settings if json.loads(json.dumps(settings[key])) != saved.get(key)]
        if differs:
            raise ValueError(
                f"the explanations in {path} were made with other settings ({', '.join(differs)}); {advice}"
            )
    elif path.exists():
        raise ValueError(f"{path} has no settings beside it ({record.name}); move it away")
    else:
        begun = with_checksum({"schema_version": SCHEMA_VERSION, "settings": settings})
        write_text(record, json.dumps(begun, indent=1) + "\n")
    lines = read_lines(path)
    # Without a line that was cut short or damaged, and with a checksum in lines of an earlier version.
    text = "".join(map(_json_line, lines))
    if path.exists() and path.read_text(encoding="utf-8", errors="replace") != text:
        write_text(path, text)
    if lines:
        say(f"{path} already has {len(lines):,} features; they stay")
    return {line.feature: line for line in lines}


def _explanations(
    text: TokenText,
    judge: Judge,
    features: Sequence[int],
    protocol: ExplanationProtocol,
    boards: Mapping[int, DetectedProperty] | None,
) -> dict[int, Explanation]:
    """An explanation of every feature that fires."""
    alive = [feature for feature in features if text.store.windows_F[feature]]
    if boards is not None and not judge.scorers:
        nothing = Explanation(None, "board", "no property of the board goes with it")
        return {f: Explanation(boards[f].property, "board") if f in boards else nothing for f in alive}
    fewest = protocol.min_windows
    explanations = {
        feature: Explanation(None, "none", f"it fires in {windows} windows, fewer than {fewest}")
        for feature in alive
        if (windows := int(text.store.windows_F[feature])) < fewest
    }
    alive = [feature for feature in alive if feature not in explanations]
    with bar(len(alive), "explain", "feature", lines=True) as progress:
        for start in range(0, len(alive), CHUNK):
            chunk = alive[start : start + CHUNK]
            new = judge.explain([trial(text, feature, protocol) for feature in chunk])
            explanations |= dict(zip(chunk, new, strict=True))
            progress.update(len(chunk))
    return explanations


def shuffled(texts: Mapping[int, str], seed: int) -> dict[int, int]:
    """Feature -> a random other feature whose explanation is a different text; nothing where all texts are equal."""
    order = np.random.default_rng([seed, len(texts)]).permutation(list(texts)).tolist() if texts else []
    others = {}
    for at, feature in enumerate(order):
        for other in (*order[at + 1 :], *order[:at]):
            if texts[other] != texts[feature]:
                others[feature] = other
                break
    return others


def _lines(
    text: TokenText,
    judge: Judge,
    features: Sequence[int],
    explanations: Mapping[int, Explanation],
    texts: Mapping[int, str | None],
    others: Mapping[int, int],
    protocol: ExplanationProtocol,
    boards: Mapping[int, DetectedProperty] | None,
) -> list[FeatureExplanation]:
    """The lines of some features, in order."""
    trials = {f: trial(text, f, protocol) for f in features if judge.scorers and texts.get(f) is not None}
    own = _scored(judge, [(str(texts[f]), case) for f, case in trials.items()])
    control = _scored(judge, [(str(texts[others[f]]), case) for f, case in trials.items() if f in others])
    lines = []
    for feature in features:
        explanation = explanations.get(feature, Explanation(None, "none", "it never fires"))
        lines.append(
            FeatureExplanation(
                feature=feature,
                explanation=explanation.text,
                explainer=explanation.explainer,
                judge=judge.name,
                scores=own.get(feature, {}),
                control=control.get(feature, {}),
                board=(boards or {}).get(feature),
                silent=feature not in explanations,
                fires=int(text.store.counts_F[feature]),
                maximum=float(text.store.maxima_F[feature]),
                why=explanation.why or None,
                unread=judge.unread.get(feature),
            )
        )
    return lines


def _scored(judge: Judge, cases: Sequence[Case]) -> dict[int, dict[str, Score]]:
    """Feature -> scorer -> score."""
    scores: dict[int, dict[str, Score]] = {}
    for name, scorer in judge.scorers.items():
        for (_, case), score in zip(cases, scorer(cases), strict=True):
            scores.setdefault(case.feature, {})[name] = score
    return scores
