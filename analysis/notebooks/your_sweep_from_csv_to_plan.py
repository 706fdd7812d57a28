# ---
# jupyter:
#   jupytext:
#     formats: py:percent
#   kernelspec:
#     display_name: Python 3
#     name: python3
# ---

# %% [markdown]
# # Your sweep, from CSV to plan
#
# **Question.** You have a table of runs from another codebase. What law do they follow, how far can it be trusted, and
# which runs should come next?
#
# The table here is made in the notebook, with column names and units of its own, so that the truth is known: L = E + A
# N^-alpha + B D^-beta, seed noise of .003 in log loss, one diverged run and one row written twice. Put your own file in
# its place. Figures go into a folder `your-sweep` where it runs. It takes a few seconds.

# %%
from pathlib import Path

import numpy as np
import pandas as pd

from varscale_analysis import (
    Candidates,
    ChinchillaLaw,
    Frontier,
    RunTable,
    design_sweep,
    rolling_holdout,
    sensitivity_of,
)
from varscale_analysis.figures import chinchilla_figure, profile_figure, rolling_figure, sensitivity_figure

FOLDER = Path("your-sweep")
FOLDER.mkdir(exist_ok=True)
LOSS = "val_nats_per_token_avg"
E, A, B, ALPHA, BETA = 2.9, 40.0, 160.0, 0.28, 0.31
NOISE = 0.003

# %% [markdown]
# ## The file as it comes
#
# Parameters in millions, tokens in billions, no FLOPs.

# %%
rng = np.random.default_rng(1)
rows = []
for size in (2.0, 5.0, 12.0, 30.0, 75.0, 190.0):  # M
    for tokens in (0.05, 0.2, 0.8, 3.2):  # B
        loss = E + A * (size * 1e6) ** -ALPHA + B * (tokens * 1e9) ** -BETA
        rows.append((f"run-{len(rows)}", size, tokens, 0, loss * np.exp(NOISE * rng.standard_normal()), "done"))
rows.append(rows[-1])
rows.append(("run-lr-too-high", 75.0, 0.8, 1, np.nan, "done"))
frame = pd.DataFrame(rows, columns=["name", "size_m", "tokens_b", "seed", "valid_loss", "state"])
frame.to_csv(FOLDER / "runs.csv", index=False)
print(frame.tail(4).to_string(index=False))

# %% [markdown]
# ## Reading it
#
# A map from our names to yours, units, and what the file does not say. Nothing is deleted: the row that stands twice
# and the run without a finite loss stay in the table, and out of the fits, each with its reason. C = 6 N D is computed
# because it is asked for.

# %%
table = RunTable.from_csv(
    FOLDER / "runs.csv",
    {"run_id": "name", "params_total": "size_m", "tokens_seen": "tokens_b", "seed": "seed", LOSS: "valid_loss"},
    units={"params_total": "M", "tokens_seen": "B"},
    constants={"flops_rule": "6nd"},
)
print(f"{len(table)} rows, {len(table.usable)} in the fits")
for note in table.notes:
    print(f"note: {note}")

# %% [markdown]
# ## The law, and whether to believe it
#
# The certificate says how many starts agree and whether the points tell the parameters apart. The intervals are at 90
# %; the truth is printed beside them.

# %%
law = ChinchillaLaw(n="params_total", d="tokens_seen")
fit = law.fit(table, LOSS, bootstrap=500)
print(fit.summary())
print(f"  {fit.certificate}")
for name, true in (("E", E), ("alpha", ALPHA), ("beta", BETA), ("a", BETA / (ALPHA + BETA))):
    low, high = fit.interval(name)
    print(f"  {name}: [{low:.3f}, {high:.3f}], truth {true:.3f}, {'inside' if low <= true <= high else 'OUTSIDE'}")
figure = chinchilla_figure(fit)
figure.savefig(FOLDER / "law.png", dpi=200)
figure

# %% [markdown]
# Does another choice give another law? One choice is changed at a time: the objective, each size and each of the
# largest residuals left out, E given.

# %%
sensitivity = sensitivity_of(law, table, LOSS)
for kind in ("objective", "size", "outlier", "offset"):
    low, high = sensitivity.span("alpha", kind)
    print(f"alpha by {kind}: {low:.3f} to {high:.3f}")
figure = sensitivity_figure(sensitivity, "alpha", fit)
figure.savefig(FOLDER / "sensitivity.png", dpi=200)
figure = profile_figure(fit.profile("E"), "nat/token")
figure.savefig(FOLDER / "profile.png", dpi=200)
figure

# %% [markdown]
# ## Would it have predicted your own larger runs?
#
# The law is fitted to the smallest sizes only and predicts the next one, again and again. What counts is whether the
# intervals hold what was measured, and whether the law beats repeating the last loss.

# %%
rolling = rolling_holdout(table, law, LOSS, bootstrap=300)
print(rolling.summary())
figure = rolling_figure(rolling)
figure.savefig(FOLDER / "rolling.png", dpi=200)
figure

# %% [markdown]
# ## The best size of a budget
#
# In closed form from the law. Beyond the runs it is an extrapolation, and says by how much.

# %%
frontier = Frontier.from_law(fit)
for budget in (1e18, 1e20):
    best = frontier.allocate(budget)
    low, high = best.n_interval
    print(f"{budget:.0e} FLOP: N = {best.n:.3g} [{low:.3g}, {high:.3g}], D = {best.d:.3g}, loss {best.loss:.3f}, "
          f"{best.extrapolation:.3g} times beyond the runs")  # fmt: skip

# %% [markdown]
# ## The next sweep
#
# Which runs narrow the compute exponent a of N_opt ~ C^a most, for three times the compute of all runs so far? The
# design weighs every candidate by what it would tell, given the law, its uncertainty, the noise and the runs in hand,
# and then simulates the sweep it proposes and a plain geometric grid for the same budget.

# %%
spent = table.usable["flops_train"].sum()
candidates = Candidates.grid(law, n=np.geomspace(1e6, 1e9, 13), d=np.geomspace(2e7, 2e10, 10))
design = design_sweep(fit, candidates, 3 * spent, "a", max_runs=12, tables=60, draws=60)
print(design.summary())

# %% [markdown]
# An extrapolated law is a claim about runs nobody has made. A sweep whose largest size is left out of the fit,
# predicted with an interval, and then trained is the test of it (`predict_holdout`, `rolling_holdout`).

# %%
largest = max(design.runs, key=lambda run: run.flops)
n, d = largest.at["params_total"], largest.at["tokens_seen"]
low, high = fit.predict_interval(n=n, d=d)
print(f"before it is trained: N = {n:.3g}, D = {d:.3g}: {float(fit.predict(n=n, d=d)):.4f} [{low:.4f}, {high:.4f}] nat")
true = E + A * n**-ALPHA + B * d**-BETA
print(f"truth {true:.4f}, {'inside' if low <= true <= high else 'OUTSIDE'}")

# %% [markdown]
# ## What can and cannot be concluded
#
# - The law's exponents and E are known to their intervals, if its form holds; the intervals hold the truth here because
#   the data were made by the form. Nothing in a table can show that for real runs beyond its largest.
# - The sensitivity table belongs beside the fit: a choice that moves the exponent by more than its interval is a
#   result.
# - The rolling hold-out is the only test on the data themselves; a law that does not beat repeating the last loss, or
#   whose intervals miss, should not be extrapolated.
# - The plan is optimal for this law, this noise and this goal. Its promise is the simulated interval, and it includes
#   sizes that would show a bend; which recipe these runs need is not its business.
