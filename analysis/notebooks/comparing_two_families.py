# ---
# jupyter:
#   jupytext:
#     formats: py:percent
#   kernelspec:
#     display_name: Python 3
#     name: python3
# ---

# %% [markdown]
# # Comparing two families
#
# **Question.** A new recipe reaches lower losses than the old one on the same ladder of sizes. How much compute does it
# save at equal loss, does the saving grow with scale, and how many runs does it take to say so?
#
# The runs are made here from known laws, so every answer can be checked. Figures go into a folder `two-families` where
# it runs. It takes a few seconds.

# %%
from pathlib import Path

import numpy as np
import pandas as pd

from varscale_analysis import FitError, RunTable, compare_families
from varscale_analysis.figures import families_figure

FIGURES = Path("two-families")
FIGURES.mkdir(exist_ok=True)
LOSS = "val_nats_per_token_avg"

OFFSET, SCALE, ALPHA = 3.2, 3e11, -0.16  # nat/token, FLOP, 1
SAVING = 1.5  # the base recipe needs this many times the compute of the new one
TOKENS = 2.5e7
SIZES = np.geomspace(2e5, 2e8, 8)


def family(saving=1.0, alpha=ALPHA, first_seed=0, own=1, tokenizer="tok-a"):
    """A run table of 8 sizes and 3 seeds. Runs of one size and seed share most of their noise, whatever the family."""
    alone, rows = np.random.default_rng(own), []
    for place, n in enumerate(SIZES):
        for seed in range(first_seed, first_seed + 3):
            shared = np.random.default_rng([place, seed]).standard_normal()
            noise = 0.002 * (0.95 * shared + 0.31 * alone.standard_normal())
            c = 6 * n * TOKENS
            rows.append((n, c, seed, (OFFSET + (saving * c / SCALE) ** alpha) * np.exp(noise)))
    return RunTable.from_frame(
        pd.DataFrame(rows, columns=["params", "flop", "seed", "loss"]),
        {"params_total": "params", "flops_train": "flop", "seed": "seed", LOSS: "loss"},
        constants={"tokens_seen": TOKENS, "flops_rule": "6nd", "tokenizer_id": tokenizer, "dataset_id": "data-a"},
    )


# %% [markdown]
# ## The multiplier at equal loss
#
# L(C) = E + (beta C)^alpha is fitted to each family; the effective-compute multiplier at a loss is what the base needs
# over what the new recipe needs. Every run of one family has a partner in the other, of the same size and seed, that
# shares initialisation and data order; their noise is drawn with the correlation of their residuals.

# %%
base, new = family(own=1), family(saving=SAVING, own=2)
paired = compare_families(base, new, names=("base", "new"))
print(f"truth: {SAVING} times the compute, at every loss")
print(paired.summary())
figure = families_figure(paired)
figure.savefig(FIGURES / "saving.png", dpi=200)
figure

# %% [markdown]
# ## The same without pairing
#
# Other seeds for the second family: the noise of partners no longer cancels, and the interval is wider at equal cost.

# %%
alone = compare_families(base, family(saving=SAVING, first_seed=10, own=3), names=("base", "new"))
for label, comparison in (("same seeds", paired), ("other seeds", alone)):
    middle = comparison.multipliers[1].multiplier
    how = "paired" if comparison.paired else "not paired"
    print(f"{label}, {how}: multiplier {middle}, width {middle.high - middle.low:.3f}")

# %% [markdown]
# ## Does the saving grow with scale?
#
# A third recipe has a steeper law: equal at the smallest size, better from there on. One multiplier would hide that;
# the multipliers at several losses and the difference of exponents show it.

# %%
STEEPER = 1.25 * ALPHA
equal_at_first = (6 * SIZES[0] * TOKENS / SCALE) ** (ALPHA / STEEPER - 1)
growing = compare_families(base, family(saving=equal_at_first, alpha=STEEPER, own=5), names=("base", "steeper"))
print(growing.summary())
print(f"truth: exponents {ALPHA:.3f} and {STEEPER:.3f}, difference {ALPHA - STEEPER:+.3f}")
for m in growing.multipliers:
    by_base, by_steeper = (SCALE * (m.loss - OFFSET) ** (1 / alpha) for alpha in (ALPHA, STEEPER))
    print(f"truth at {m.loss:.4f}: {by_base / by_steeper * equal_at_first:.3f} times")
figure = families_figure(growing)
figure.savefig(FIGURES / "growing.png", dpi=200)
figure

# %% [markdown]
# ## What is refused
#
# A loss is a number of nats per token of one tokenizer. Under another tokenizer it is another quantity, and a table of
# two such losses has no common axis, however close the numbers are.

# %%
try:
    compare_families(base, family(own=6, tokenizer="tok-b"), names=("base", "other tokenizer"))
except FitError as error:
    print(f"refused: {error}")

# %% [markdown]
# ## What can and cannot be concluded
#
# - At the losses both families reach, the multiplier is known to its interval, and shared seeds are the cheapest way to
#   narrow it: they cost nothing but a setting.
# - A multiplier holds at its loss. Whether a saving grows is read from the difference of exponents, which needs more
#   runs than the multiplier does: an interval that holds 0 does not show that the exponents are equal.
# - Outside the common losses everything is marked as extrapolated, and rests on both fitted offsets.
# - Nothing here says why a recipe is better, nor that images are: the axis is loss.
