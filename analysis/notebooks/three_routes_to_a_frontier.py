# ---
# jupyter:
#   jupytext:
#     formats: py:percent
#   kernelspec:
#     display_name: Python 3
#     name: python3
# ---

# %% [markdown]
# # Three routes to a frontier
#
# **Question.** Which size is best at a budget of compute? Three routes lead to N_opt(C): the lower envelope of training
# curves, the minima of IsoFLOP profiles, and the closed form of a fitted law (Hoffmann et al., arXiv:2203.15556). Do
# they agree, how sure is each, and what misleads them?
#
# The runs here are made in the notebook from a known law, so the answer can be checked: L = E + A N^-alpha + B D^-beta
# with the numbers of Besiroglu et al. (arXiv:2404.10102), C = 6 N D, and noise.
#
# Figures go into a folder `three-routes` where it runs. It takes a few seconds.

# %%
from pathlib import Path

import numpy as np
import pandas as pd

from varscale_analysis import (
    ChinchillaLaw,
    CurveSet,
    FitError,
    Frontier,
    compare_frontiers,
    flatness_of,
    flatness_table,
)
from varscale_analysis.figures import flatness_figure, isoflop_figure, routes_figure

FIGURES = Path("three-routes")
FIGURES.mkdir(exist_ok=True)

E, A, B, ALPHA, BETA = 1.817, 482.0, 2085.0, 0.348, 0.366
N_EXPONENT = BETA / (ALPHA + BETA)
G = (ALPHA * A / (BETA * B)) ** (1 / (ALPHA + BETA))
SEED_NOISE, MEASUREMENT = 0.003, 0.0005  # nat: a run's own, and that of one validation
N_NAME, D_NAME, C_NAME, LOSS = "params_total", "tokens_seen", "flops_train", "val_nats_per_token_avg"


def loss_of(n, d):
    """The true law, nat/token."""
    return E + A * n**-ALPHA + B * d**-BETA


def best_size(c):
    """The true N_opt at compute c (FLOP)."""
    return G * (c / 6) ** N_EXPONENT


print(f"truth: N_opt = {best_size(1.0):.4g} C^{N_EXPONENT:.4f}")

# %% [markdown]
# ## Route 1: the envelope of training curves
#
# Eight sizes, two seeds, all trained on 30 billion tokens at a constant learning rate, so that every point of a curve
# counts as a model trained to there; only the first .2 % of a curve, its warm-up, is dropped. The frontier is the
# lowest loss at each compute; where two curves cross, the best size changes. The interval comes from whole runs drawn
# again, extracted again and refitted.


# %%
def training_curves(penalty=0.0, seed=0):
    """Validation curves, one row a measurement. ``penalty``: extra loss (nat) of a model that is not yet annealed."""
    rng = np.random.default_rng(seed)
    rows = []
    for n in np.geomspace(1e7, 6e8, 8):
        for run in range(2):
            own = SEED_NOISE * rng.standard_normal()
            for d in np.geomspace(5e7, 3e10, 90):
                loss = loss_of(n, d) + own + MEASUREMENT * rng.standard_normal() + penalty * (1 - d / 3e10)
                rows.append((f"{n:.3g}/{run}", n, d, 6 * n * d, loss))
    return pd.DataFrame(rows, columns=["run_id", N_NAME, D_NAME, C_NAME, LOSS])


def by_envelope(frame):
    """The frontier of a table of curves."""
    curves = CurveSet.from_frame(frame, run="run_id", flops=C_NAME, n=N_NAME, y=LOSS, d=D_NAME, drop=0.002)
    return Frontier.from_envelope(curves, n=N_NAME, y=LOSS, bootstrap=400)


envelope = by_envelope(training_curves())
print(envelope.summary())

# %% [markdown]
# ## Route 2: IsoFLOP profiles
#
# Five budgets, seven sizes at each, every run trained to the end of its budget. The minimum of each profile is found by
# interpolation in log N; losses are drawn again with the noise of a run. One more budget is added whose sizes all lie
# above the best one: its minimum is at an edge, and it is refused by name instead of bending the line.

# %%
rng = np.random.default_rng(1)
rows = []
for c in np.geomspace(1e17, 1e20, 5):
    for n in best_size(c) * np.geomspace(0.2, 5, 7) * np.exp(rng.uniform(-0.3, 0.3)):
        rows.append((n, c / 6 / n, c, loss_of(n, c / 6 / n) + SEED_NOISE * rng.standard_normal()))
for n in best_size(1e21) * np.geomspace(2, 20, 5):
    rows.append((n, 1e21 / 6 / n, 1e21, loss_of(n, 1e21 / 6 / n) + SEED_NOISE * rng.standard_normal()))
runs = pd.DataFrame(rows, columns=[N_NAME, D_NAME, C_NAME, LOSS])

isoflop = Frontier.from_isoflop(runs, flops=C_NAME, n=N_NAME, d=D_NAME, y=LOSS, bootstrap=400)
print(isoflop.summary())
figure = isoflop_figure(isoflop)
figure.savefig(FIGURES / "isoflop.png", dpi=200)
figure

# %% [markdown]
# ## Route 3: the law in closed form
#
# Chinchilla's law is fitted to the same runs, the refused budget included: a law can use runs away from the optimum.
# Its certificate says how many starts agree and whether the points tell the parameters apart.

# %%
fit = ChinchillaLaw(n=N_NAME, d=D_NAME).fit(runs, LOSS, bootstrap=400)
print(fit.summary())
law = Frontier.from_law(fit)
print(law.summary())

# %% [markdown]
# ## Side by side
#
# The exponents, and N_opt at three budgets, the last a hundred times beyond the IsoFLOP runs. A star marks a difference
# whose interval excludes agreement.

# %%
budgets = [1e18, 1e20, 1e22]
print(compare_frontiers([envelope, isoflop, law], budgets).summary())
for c in budgets:
    answers = [(frontier.route, frontier.allocate(c)) for frontier in (envelope, isoflop, law)]
    cells = [f"{route} {a.n:.3g} [{a.n_interval[0]:.3g}, {a.n_interval[1]:.3g}]" for route, a in answers]
    print(f"{c:.0e} FLOP: truth {best_size(c):.3g}; {'; '.join(cells)}")
figure = routes_figure([envelope, isoflop, law])
figure.savefig(FIGURES / "routes.png", dpi=200)
figure

# %% [markdown]
# ## How much does it matter? The flatness of the optimum
#
# Sizes whose loss is within 1 % of the best, and what training another multiple of the best size costs: as loss, and as
# the factor of compute that the best size would need less.

# %%
print(flatness_table(flatness_of(law, [1e19, 1e21]), LOSS))
figure = flatness_figure(law, [1e19, 1e21])
figure.savefig(FIGURES / "flatness.png", dpi=200)
figure

# %% [markdown]
# ## What misleads a route
#
# The same curves, but the learning rate now falls to zero at the end of 30 billion tokens only, as with a cosine:
# before the end every model is up to .08 nat worse than it would be if it had been annealed there. The envelope cannot
# know.

# %%
unannealed = by_envelope(training_curves(penalty=0.08))
comparison = compare_frontiers([law, unannealed], [1e20])
print(comparison.summary())

# %% [markdown]
# And curves that never cross carry no N_opt at all: here each size stops at half the compute at which it would be the
# best one. The envelope says so, and a question that needs it is refused.

# %%
curves = training_curves()
best_compute = 6 * (curves[N_NAME] / G) ** (1 / N_EXPONENT)
crossless = by_envelope(curves[curves[C_NAME] <= best_compute / 2])
try:
    print(f"N_opt at 1e18 FLOP: {crossless.allocate(1e18).n:.3g}")
except FitError as error:
    print(f"refused: {error}")

# %% [markdown]
# ## What can and cannot be concluded
#
# - On runs that fit their assumptions the three routes agree with each other and with the truth; the law has the
#   narrowest interval because it uses every run, and it is right only as far as its form is.
# - Agreement within intervals is needed before a frontier is extrapolated; a hundredfold beyond the runs the interval
#   of N_opt is itself several times wider than inside.
# - The optimum is flat: a size that is wrong by a factor of two costs little. What an exponent's second digit changes
#   is the budget after the next, not this one.
# - Curves of a schedule that anneals at its end only give a wrong frontier with a narrow interval. No interval shows an
#   error that all runs share; another route does.
