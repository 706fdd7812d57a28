"""Pictures in the folder of a run, and which runs of a study stand for their size. Needs no torch."""

from __future__ import annotations

from pathlib import Path

from varscale.records import RUN_FILE, Run, read_run

SAMPLES, STRIP, ANIMATION = "samples.png", "coarse_to_fine.png", "coarse_to_fine.gif"
ATTENTION_SCALES, ATTENTION_HEADS = "attention_scales.png", "attention_heads.png"
ATTENTION_SHARES = "attention_shares.png"


def first_of_each_size(runs: Path, holding: str = SAMPLES) -> list[tuple[Run, Path]]:
    """The finished run of the lowest seed of every size, smallest size first, of those that hold a certain file."""
    found: dict[int, tuple[Run, Path]] = {}
    for folder in sorted(runs.glob("*/")):
        if not (folder / RUN_FILE).exists() or not (folder / holding).exists():
            continue
        run = read_run(folder)
        if (
            run.status == "finished"
            and run.seed < found.get(run.params_total, (run.replace(seed=2**62), folder))[0].seed
        ):
            found[run.params_total] = (run, folder)
    return [found[size] for size in sorted(found)]


def largest_run(runs: Path) -> Path | None:
    """The finished run of the largest size and its lowest seed; None where no run has finished."""
    sizes = first_of_each_size(runs, RUN_FILE)
    return sizes[-1][1] if sizes else None
