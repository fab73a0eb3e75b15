"""The files of explanations: `JUDGE.jsonl` with a line for each feature, `JUDGE.json` with the settings and, once all
features are done, the means. Both have checksums.

Jobs that share the features (`explain --shard 3/16`) write the same files into `shard-3-of-16` beside them, and
`merge_explanations` puts them together.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from glassmoe.atomic import write_text
from glassmoe.checksums import Damaged, parse_lines, read_json, with_checksum
from glassmoe.console import say
from glassmoe.inspect.merging import shares
from glassmoe.shards import Shard

from .results import ExplanationsResult, FeatureExplanation, Questions, sum_questions
from .scoring import summary

SCHEMA_VERSION = 1
FOLDER = re.compile(r"shard-(\d+)-of-(\d+)")
ADVICE = "give --again to make them anew, or move them away"


def shard_folder(folder: Path, shard: Shard) -> Path:
    """Where a job writes the explanations of its share."""
    return folder if shard.of == 1 else folder / f"shard-{shard.which}-of-{shard.of}"


def json_line(line: FeatureExplanation) -> str:
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


def check_settings(path: Path, settings: Mapping[str, Any]) -> None:
    """ValueError when the lines in a file were made with other settings, or do not say with which."""
    record = path.with_suffix(".json")
    if record.exists():
        saved = _record(record)["settings"]
        differs = [key for key in settings if json.loads(json.dumps(settings[key])) != saved.get(key)]
        if differs:
            raise ValueError(
                f"the explanations in {path} were made with other settings ({', '.join(differs)}); {ADVICE}"
            )
    elif path.exists():
        raise ValueError(f"{path} has no settings beside it ({record.name}); move it away")


def resumed(path: Path, settings: Mapping[str, Any]) -> dict[int, FeatureExplanation]:
    """The lines on disk, by feature; ValueError when they were made with other settings. A line that was cut short is
    removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    check_settings(path, settings)
    if not path.with_suffix(".json").exists():
        begun = with_checksum({"schema_version": SCHEMA_VERSION, "settings": settings})
        write_text(path.with_suffix(".json"), json.dumps(begun, indent=1) + "\n")
    lines = read_lines(path)
    # Without a line that was cut short or damaged, and with a checksum in lines of an earlier version.
    text = "".join(map(json_line, lines))
    if path.exists() and path.read_text(encoding="utf-8", errors="replace") != text:
        write_text(path, text)
    if lines:
        say(f"{path} already has {len(lines):,} features; they stay")
    return {line.feature: line for line in lines}


def finished(
    path: Path,
    about: Mapping[str, Any],
    settings: Mapping[str, Any],
    chosen: Sequence[FeatureExplanation],
    lines: Iterable[FeatureExplanation],
    questions: Questions | None,
) -> ExplanationsResult:
    """Write the means over all `lines` beside them, and return those over the chosen features. `about`: `reader`,
    `keep`, `l0`, `read_tokens`, `num_features`."""
    everything = {line.feature: line for line in (*lines, *chosen)}
    whole, result = (
        _result(path, about, settings, part, questions) for part in (list(everything.values()), list(chosen))
    )
    saved = {key: value for key, value in whole.to_dict().items() if key != "file"}
    write_text(path.with_suffix(".json"), json.dumps(with_checksum(saved), indent=1, ensure_ascii=False) + "\n")
    return result


def _result(
    path: Path,
    about: Mapping[str, Any],
    settings: Mapping[str, Any],
    chosen: Sequence[FeatureExplanation],
    questions: Questions | None,
) -> ExplanationsResult:
    return ExplanationsResult(
        schema_version=SCHEMA_VERSION,
        settings=dict(settings),
        **about,
        judge=path.stem,
        features=len(chosen),
        silent=sum(line.silent for line in chosen),
        unexplained=sum(line.explanation is None and not line.silent for line in chosen),
        scored=sum(bool(line.scores) for line in chosen),
        scores=summary([line.scores for line in chosen if line.scores]),
        control=summary([line.control for line in chosen if line.control]),
        questions=questions,
        file=str(path),
        explanations=tuple(chosen),
    )


def explained_store(lines: Path) -> dict[str, Any]:
    """What identifies the examples that a file JUDGE.jsonl explains; empty where the file beside it does not say."""
    try:
        return dict(read_json(lines.with_suffix(".json"))["settings"]["store"])
    except (OSError, ValueError, LookupError, TypeError):
        return {}


def read_result(path: Path) -> ExplanationsResult:
    """What `finished` wrote beside the lines at `path`."""
    values = {**_record(path.with_suffix(".json")), "file": str(path)}
    lines = values | {"explanations": [line.to_dict() for line in read_lines(path)]}
    return ExplanationsResult.from_dict(lines)


def unfinished_shards(folder: Path, judge: str, of: int) -> list[int]:
    """Which of the shares of a judge are not complete."""
    return [which for which in range(of) if not _is_complete(shard_folder(folder, Shard(which, of)), judge)]


def judges_of_shards(folder: Path) -> dict[str, set[int]]:
    """The judges that have shares in a folder -> into how many shares their jobs divided the features."""
    found: dict[str, set[int]] = {}
    for file in folder.glob("shard-*/*.json"):
        if match := FOLDER.fullmatch(file.parent.name):
            found.setdefault(file.stem, set()).add(int(match[2]))
    return found


def merge_explanations(folder: Path, judge: str, of: int) -> ExplanationsResult:
    """Put the shares of a judge together and delete them. Lines that are there already stay, unless a share has the
    same feature. ValueError when a share is missing, or was made with other settings."""
    if missing := unfinished_shards(folder, judge, of):
        raise ValueError(f"{folder} lacks {shares(missing, of)} of {judge}; run these jobs again, then merge")
    path = folder / f"{judge}.jsonl"
    parts = [read_result(shard_folder(folder, Shard(which, of)) / path.name) for which in range(of)]
    for number, part in enumerate(parts):
        if differs := [key for key in part.settings if part.settings[key] != parts[0].settings.get(key)]:
            raise ValueError(
                f"cannot merge the explanations in {folder}: share {number}/{of} was made with other settings "
                f"({', '.join(differs)}) than share 0/{of}; run it again with the same"
            )
    check_settings(path, parts[0].settings)
    new = {line.feature: line for part in parts for line in part.explanations}
    lines = {line.feature: line for line in read_lines(path)} | new
    ordered = [lines[feature] for feature in sorted(lines)]
    # The features of all shares: those that were there already are in no file of a share.
    chosen = [lines[feature] for feature in sorted({f for part in parts for f in _chosen(Path(part.file))})]
    # Settings first, as without them the lines mean nothing.
    begun = {"schema_version": SCHEMA_VERSION, "settings": parts[0].settings}
    write_text(path.with_suffix(".json"), json.dumps(with_checksum(begun), indent=1) + "\n")
    write_text(path, "".join(map(json_line, ordered)))
    about = {key: getattr(parts[0], key) for key in ("reader", "keep", "l0", "read_tokens", "num_features")}
    counts = [part.questions for part in parts if part.questions is not None]
    result = finished(path, about, parts[0].settings, chosen, ordered, sum_questions(counts))
    remove_shards(folder, judge)
    return result


def write_chosen(path: Path, features: Sequence[int]) -> None:
    """Note that a share is complete, and which features it was asked for."""
    write_text(path.with_suffix(".done"), json.dumps(with_checksum({"features": list(features)})) + "\n")


def remove_shards(folder: Path, judge: str) -> None:
    """Delete the shares of a judge."""
    for place in folder.glob("shard-*"):
        if FOLDER.fullmatch(place.name) and place.is_dir():
            for ending in (".done", ".json", ".jsonl"):
                (place / f"{judge}{ending}").unlink(missing_ok=True)
            if not any(place.iterdir()):
                shutil.rmtree(place, ignore_errors=True)


def _is_complete(folder: Path, judge: str) -> bool:
    try:
        _chosen(folder / f"{judge}.jsonl")
    except (OSError, ValueError, LookupError):
        return False
    return True


def _chosen(path: Path) -> list[int]:
    return [int(feature) for feature in read_json(path.with_suffix(".done"))["features"]]


def _record(path: Path) -> Any:
    try:
        values = read_json(path)
        if not isinstance(values["settings"], dict):
            raise TypeError
    except Damaged as error:
        raise Damaged(f"{error}; {ADVICE}") from None
    except (ValueError, TypeError, LookupError):
        raise ValueError(f"{path} was not written by glassmoe explain; move it away") from None
    return values
