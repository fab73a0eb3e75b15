"""`explain`: explanations of many features, each scored beside a control, written to disk as they are finished.

An interrupted run resumes after the last whole line (`files.py`). Jobs, or the processes of torchrun, may share the
features: each explains a block of one random order, so that it also explains, but for the last, the features whose
explanations are its controls.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from glassmoe.console import bar
from glassmoe.data.tokens import TokenKind
from glassmoe.inspect.readers import Reader
from glassmoe.inspect.store import FeatureStore, Gathering, store_path
from glassmoe.locks import writing
from glassmoe.model.subject import Subject
from glassmoe.shards import Shard
from glassmoe.training.distributed import reading_processes, wait_for_all

from .files import (
    check_settings,
    finished,
    json_line,
    merge_explanations,
    read_lines,
    read_result,
    remove_shards,
    resumed,
    shard_folder,
    write_chosen,
)
from .judges import make_judge
from .opening import boards_of, explanations_folder, open_all_examples
from .results import (
    DetectedProperty,
    ExplanationsResult,
    FeatureExplanation,
    GatheredShare,
    LayersExplained,
    Score,
)
from .trials import Case, Explanation, ExplanationProtocol, Judge, trial
from .windows import TokenText

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


def explain(subject: Subject, layer: Reader, path: str | Path, **options: Any) -> ExplanationsResult | GatheredShare:
    """Say what features of one layer or coder fire on: `explain_layers` of it alone, with the same options."""
    return explain_layers(subject, [layer], path, **options).by_name[layer.name]


def explain_layers(
    subject: Subject,
    layers: Sequence[Reader],
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
    shard: Shard | None = None,
) -> LayersExplained:
    """Say what features of layers or coders fire on, and score each explanation on documents that did not explain it.
    One reading of the data gathers the examples of all of them.

    Examples and explanations are stored in the run at `path` (`features/`, `explanations/`) and resumed from there.
    `judge`: by name (`judges.make_judge`), or made. `features`: how many, drawn at random, or which. `tokens`: to
    read for examples (default: a million, or all there are). `per_decile`, `silent`: windows of each tenth of a
    feature's strength, and without the feature, that score an explanation. `min_windows`: features that fire in fewer
    windows are left out. `games`: for chess models, games that
    choose board properties, and again that test them (0: none). `keep`: count only the so many greatest features of
    each token, for layers that are not sparse. `full`: keep every strength, for `explore --export delphi`. `data`:
    prepared data to read (default: that of the run). `seed`: of the choice of features and windows. `again`: gather
    the examples and explain anew. `shard`: the share of a job: of the reading while there is no store of examples, and
    of the features when there is one. ValueError as for `open_examples` and `explain_features`.
    """
    judge = make_judge(judge) if isinstance(judge, str) else judge
    gathering = gathering_for(tokens, per_decile, silent, keep, full)
    folders = {layer.name: explanations_folder(path, layer, keep) for layer in layers}
    if again and shard is not None:
        folder = next(iter(folders.values()))
        raise ValueError(
            f"shard and again do not go together, because jobs would delete what others made; delete "
            f"{store_path(path, folder.name)} and {folder} first, or leave out again"
        )
    by_name: dict[str, ExplanationsResult | GatheredShare] = {}
    with ExitStack() as locks:
        for folder in folders.values():
            locks.enter_context(writing(shard_folder(folder, shard or Shard()), what=folder))
        asked = ["read"] if tokens else []
        opened = open_all_examples(
            subject, layers, path, gathering=gathering, data=data, again=again, shard=shard, asked=asked
        )
        for examples in opened:
            if examples is not None and not isinstance(features, int):
                check_features(examples.store, features)
        for layer, examples in zip(layers, opened, strict=True):
            if examples is None:
                where = store_path(path, folders[layer.name].name)
                by_name[layer.name] = GatheredShare(str(shard), str(where), f"glassmoe merge {path}")
                continue
            by_name[layer.name] = explain_features(
                examples.store,
                subject.kind(),
                judge,
                choose_features(examples.store, features, seed) if isinstance(features, int) else features,
                examples.folder,
                protocol=ExplanationProtocol(per_decile, silent, seed, min_windows),
                boards=boards_of(examples, games) if games else None,
                again=again,
                shard=shard,
            )
    return LayersExplained(by_name)


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
    shard: Shard | None = None,
) -> ExplanationsResult:
    """Explain features of a store and score the explanations, in `folder/JUDGE.jsonl` and `.json`. Features that are
    there stay, or with `again` are explained anew.

    `boards`: for chess models, feature -> its board property; with the judge `none` its words are the explanation. The
    control of a score is the explanation of another feature on the same windows. `shard`: of a job that explains its
    share of the features alone, into a folder of its own (`files.merge_explanations` merges). The processes of torchrun
    share the features, and all return the whole. ValueError for a feature that the layer does not have, and for a file
    that was made with other settings.
    """
    protocol = protocol or ExplanationProtocol()
    features = list(dict.fromkeys(features))
    check_features(store, features)
    group = reading_processes()
    together = Shard(group.rank, group.count)
    mine = together if shard is None else shard.divided(together)
    own = shard_folder(folder, mine)
    path, main = own / f"{judge.name}.jsonl", folder / f"{judge.name}.jsonl"
    if again and group.first:
        for ending in (".json", ".jsonl"):
            main.with_suffix(ending).unlink(missing_ok=True)
        remove_shards(folder, judge.name)
    if shard is None:
        wait_for_all(group)
    settings = {
        "store": {key: store.manifest.get(key) for key in IDENTITY} | _sources(store),
        "judge": dict(judge.about),
        "protocol": protocol.identity(),
        "boards": boards is not None,
    }
    about = {key: store.manifest.get(key) for key in ("reader", "keep", "l0", "read_tokens", "num_features")}
    known: dict[int, FeatureExplanation] = {}
    if mine.of > 1:
        check_settings(main, settings)
        known = {line.feature: line for line in read_lines(main)}
        path.with_suffix(".done").unlink(missing_ok=True)
    done = resumed(path, settings)
    order = shuffled_features(features, protocol.seed)
    share = set(mine.block(order))
    chosen = [feature for feature in features if feature in share]
    missing = [feature for feature in chosen if feature not in done and feature not in known]

    text = TokenText(store, kind)
    explanations = _explanations(text, judge, missing, protocol, boards)
    texts = {feature: line.explanation for feature, line in (known | done).items()}

    def text_of(feature: int) -> str | None:
        if feature not in texts:
            if feature not in explanations:  # of another share, at the end of this one
                explanations.update(_explanations(text, judge, [feature], protocol, boards))
            texts[feature] = explanations[feature].text if feature in explanations else None
        return texts[feature]

    others = controls(missing, order, text_of) if judge.scorers else {}
    with bar(len(missing), f"judge {judge.name}", "feature", lines=True) as progress:
        for start in range(0, len(missing), CHUNK):
            chunk = missing[start : start + CHUNK]
            lines = _lines(
                text,
                judge,
                chunk,
                explanations,
                {f: text_of(f) for f in (*chunk, *others.values())},
                others,
                protocol,
                boards,
            )
            with path.open("a", encoding="utf-8") as file:
                file.writelines(map(json_line, lines))
            done |= {line.feature: line for line in lines}
            progress.update(len(chunk))
    counts = judge.counts() if judge.counts else None
    result = finished(path, about, settings, [(known | done)[f] for f in chosen], done.values(), counts)
    if mine.of > 1:
        write_chosen(path, chosen)
    if mine.of == 1 or shard is not None:
        return result
    wait_for_all(group)
    if group.first:
        merge_explanations(folder, judge.name, mine.of)
    wait_for_all(group)
    return read_result(main)


def _sources(store: FeatureStore) -> dict[str, str]:
    """What rules may know of sources. Nothing for a store without sources, so that its older explanations resume."""
    if store.sources_R is None:
        return {}
    known = json.dumps(store.manifest["source_names"]).encode() + store.sources_R.astype("<u2").tobytes()
    return {"sources_sha256": hashlib.sha256(known).hexdigest()}


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
    with bar(len(alive), "explain", "feature", show=bool(alive), lines=True) as progress:
        for start in range(0, len(alive), CHUNK):
            chunk = alive[start : start + CHUNK]
            new = judge.explain([trial(text, feature, protocol) for feature in chunk])
            explanations |= dict(zip(chunk, new, strict=True))
            progress.update(len(chunk))
    return explanations


def shuffled_features(features: Sequence[int], seed: int) -> list[int]:
    """The features in the order in which shares and controls take them."""
    order: list[int] = np.random.default_rng([seed, len(features)]).permutation(list(features)).tolist()
    return order


def controls(features: Sequence[int], order: Sequence[int], text_of: Callable[[int], str | None]) -> dict[int, int]:
    """Feature -> the next one in the order whose explanation is a different text; nothing where all texts are equal,
    and for features without an explanation."""
    place = {feature: at for at, feature in enumerate(order)}
    others = {}
    for feature in features:
        if (own := text_of(feature)) is None:
            continue
        for step in range(1, len(order)):
            other = order[(place[feature] + step) % len(order)]
            if text_of(other) not in (None, own):
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
