"""Parameter groups: the released two, and those of CompleteP with a check that its coordinates do not drift."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from varscale.codes import CodeSpec
from varscale.models.shape import Shape
from varscale.models.var import VAR
from varscale.schedule import ScaleSchedule
from varscale.tokenizers.tokens import TokenBatch
from varscale.training.groups import complete_p_groups, parameter_groups
from varscale.training.optim import LearningRateRule, Optimisation, build_adamw, scheduled_adamw

SCHEDULE = ScaleSchedule.square(1, 2, 3)
L, V, C, CLASSES = SCHEDULE.num_tokens, 16, 4, 3


def build(width: int, depth: int, *, shared_adaln: bool = False, base: tuple[int, int] | None = None) -> VAR:
    torch.manual_seed(0)
    return VAR(
        Shape(depth, width, width // 8, 0.0), schedule=SCHEDULE, code=CodeSpec.index(V), latent_channels=C,
        num_classes=CLASSES, shared_adaln=shared_adaln, base_width=base and base[0], base_depth=base and base[1],
    )  # fmt: skip


def test_decay_groups_cover_every_parameter_once() -> None:
    model = build(16, 2)
    groups = parameter_groups(model, 0.05)
    assert [group["weight_decay"] for group in groups] == [0.05, 0.0]
    assert sorted(id(p) for group in groups for p in group["params"]) == sorted(id(p) for p in model.parameters())


@pytest.mark.parametrize("shared_adaln", [False, True])
def test_complete_p_factors(shared_adaln: bool) -> None:
    """Table 1 of arXiv:2505.01618 with alpha = 1, width times 4 and depth times 3."""
    model = build(32, 6, shared_adaln=shared_adaln, base=(8, 2))
    names = {id(p): name for name, p in model.named_parameters()}
    groups = complete_p_groups(model, lr=0.5, weight_decay=0.1, eps=1.2e-7)
    found = {
        names[id(p)]: (group["lr"], group["weight_decay"], group["eps"]) for group in groups for p in group["params"]
    }
    assert found.keys() == set(names.values())
    wanted = {
        "class_embed.weight": (0.5, 0.1, 3e-8),
        "word_embed.weight": (0.5, 0.1, 3e-8),
        "position_1LD": (0.5, 0.0, 3e-8),
        "level_embed.weight": (0.5, 0.0, 3e-8),
        "blocks.3.attention.qkv.weight": (0.125, 0.4, 1e-8),
        "blocks.3.feed_forward.down.weight": (0.125, 0.4, 1e-8),
        "blocks.3.feed_forward.up.bias": (0.5, 0.0, 1e-8),
        "blocks.3.attention.log_scale_H11": (0.5, 0.0, 1e-8),
        "head_norm.weight": (0.125, 0.4, 3e-8),
        "head.weight": (0.125, 0.4, 1.2e-7),
        "head.bias": (0.5, 0.0, 1.2e-7),
    }
    if shared_adaln:
        wanted |= {"shared_norms.weight": (0.125, 0.4, 3e-8), "blocks.3.norms.offset_16D": (0.5, 0.0, 1e-8)}
    else:
        wanted |= {"blocks.3.norms.linear.weight": (0.125, 0.4, 1e-8), "blocks.3.norms.linear.bias": (0.5, 0.0, 1e-8)}
    for name, values in wanted.items():
        assert found[name] == pytest.approx(values), name


def test_at_the_base_complete_p_is_the_constant_rule() -> None:
    optim = Optimisation(lr=0.5, lr_rule="complete_p")
    assert optim.lr_peak(width=512, batch=7) == 0.5
    groups = complete_p_groups(build(16, 2, base=(16, 2)), lr=0.5, weight_decay=0.05, eps=1e-8)
    assert {(group["lr"], group["weight_decay"], group["eps"]) for group in groups} == {
        (0.5, 0.05, 1e-8),
        (0.5, 0, 1e-8),
    }


def test_rates_and_decays_of_groups_keep_their_ratios_over_a_run() -> None:
    optim = Optimisation(lr=0.5, lr_rule="complete_p", weight_decay=0.1, weight_decay_final=0.2, warmup=0.0)
    model = build(32, 2, base=(8, 2))
    optimizer, schedule = build_adamw(model, optim, lr_peak=0.5, steps=4)
    group = next(g for g in optimizer.param_groups if any(p is model.head.weight for p in g["params"]))
    for step in range(4):
        assert group["lr"] == pytest.approx(0.125 * optim.factor(step, 4))
        assert group["weight_decay"] == pytest.approx(4 * optim.weight_decay_at(step, 4))
        optimizer.step()
        schedule.step()


def test_complete_p_needs_a_base_and_a_generative_model() -> None:
    with pytest.raises(ValueError, match=r"needs the shape .* model\.base_width"):
        complete_p_groups(build(16, 2), lr=0.5, weight_decay=0.05, eps=1e-8)
    groups = [{"params": list(nn.Linear(2, 2).parameters())}]
    with pytest.raises(ValueError, match="for generative models"):
        scheduled_adamw(groups, Optimisation(lr=0.5, lr_rule="complete_p"), lr_peak=0.5, steps=2)


def coordinates(width: int, depth: int, rule: LearningRateRule, base: tuple[int, int] | None) -> dict[str, float]:
    """Root mean squares after 8 steps on one batch: residual stream, outputs of the last branches, logits."""
    model = build(width, depth, base=base)
    optim = Optimisation(lr=0.01, lr_rule=rule, warmup=0.0, schedule="constant")
    optimizer, _ = build_adamw(model, optim, lr_peak=0.01, steps=8)
    rng = torch.Generator().manual_seed(1)
    batch = TokenBatch(
        torch.randint(V, (16, L), generator=rng), torch.randint(CLASSES, (16,), generator=rng),
        torch.randn(16, L - 1, C, generator=rng),
    )  # fmt: skip
    for _ in range(8):
        model.loss(batch).per_token_avg_B.mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    seen: dict[str, float] = {}
    last = model.blocks[-1]
    watched = {"stream": last, "attention": last.attention, "feed_forward": last.feed_forward, "logits": model.head}
    for name, module in watched.items():
        module.register_forward_hook(
            lambda _, __, out, name=name: seen.update({name: out.square().mean().sqrt().item()})
        )
    with torch.no_grad():
        model.loss(batch)
    return seen


def drift(
    shapes: tuple[tuple[int, int], ...], rule: LearningRateRule, base: tuple[int, int] | None
) -> dict[str, float]:
    """Largest over smallest root mean square among the shapes."""
    found = [coordinates(width, depth, rule, base) for width, depth in shapes]
    return {name: max(f[name] for f in found) / min(f[name] for f in found) for name in found[0]}


def test_coordinates_do_not_drift_with_width() -> None:
    """Eight times the width: within 1.35 with CompleteP, while a constant rate moves the logits four times."""
    shapes = ((16, 2), (32, 2), (128, 2))
    assert max(drift(shapes, "complete_p", (16, 2)).values()) < 1.35
    assert drift(shapes, "constant", None)["logits"] > 3


def test_coordinates_do_not_drift_with_depth() -> None:
    """Eight times the depth: within 1.35 with CompleteP, while the branches shrink by half as released."""
    shapes = ((32, 2), (32, 4), (32, 16))
    assert max(drift(shapes, "complete_p", (32, 2)).values()) < 1.35
    assert drift(shapes, "constant", None)["attention"] > 2
