"""What the jobs of `explain --shard` left beside a run, put together: shares of examples and of explanations."""

from __future__ import annotations

from pathlib import Path

from glassmoe.inspect.merging import merge_folder, pass_count
from glassmoe.inspect.store import FOLDER
from glassmoe.locks import writing

from .files import judges_of_shards, merge_explanations
from .opening import EXPLANATIONS
from .results import MergedFolder, MergedShares


def merge_shares(path: Path, data: str | Path | None = None) -> MergedShares:
    """Merge all that is complete beside the run at `path`. `data`: where the corpus lies, if it moved. ValueError when
    there is nothing to merge, and, after merging the rest, when shares are missing or do not fit each other."""
    merged: list[MergedFolder] = []
    problems: list[str] = []
    for store in sorted(path.glob(f"{FOLDER}/*/")):
        if not any(store.glob("part-*")):
            continue
        with writing(path / EXPLANATIONS / store.name):
            try:
                jobs = pass_count(store)
                made = merge_folder(store, data)
                merged.append(MergedFolder("examples", store.name, jobs, made.num_features, str(store)))
            except ValueError as error:
                problems.append(str(error))
    for folder in sorted(path.glob(f"{EXPLANATIONS}/*/")):
        for judge, counts in sorted(judges_of_shards(folder).items()):
            with writing(folder):
                try:
                    if len(counts) > 1:
                        raise ValueError(
                            f"{folder} holds shares of {judge} for {' and of '.join(map(str, sorted(counts)))} jobs; "
                            f"delete the folders shard-*-of-N of those that are not wanted"
                        )
                    (of,) = counts
                    result = merge_explanations(folder, judge, of)
                    name = f"{folder.name}, {judge}"
                    merged.append(MergedFolder("explanations", name, of, result.features, result.file))
                except ValueError as error:
                    problems.append(str(error))
    if problems:
        done = "".join(f"; {each.what} of {each.name} are merged" for each in merged)
        raise ValueError("; ".join(problems) + done)
    if not merged:
        raise ValueError(f"{path} has nothing to merge; jobs make it with: glassmoe explain {path} --shard 0/N")
    return MergedShares(merged)
