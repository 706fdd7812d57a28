"""The transformer: no future leak, loss without hidden state, counted FLOPs, the released outputs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.utils.flop_counter import FlopCounterMode

from varscale.codes import CodeSpec
from varscale.models.counting import forward_flops
from varscale.models.pretrained import load_released_var
from varscale.models.shape import depth_rule, ladder_rule
from varscale.models.var import VAR
from varscale.schedule import VAR_256, ScaleSchedule
from varscale.tokenizers.tokens import TokenBatch

SCHEDULE = ScaleSchedule.square(1, 2, 3, 4)
V, C, CLASSES = 32, 6, 5


def tiny(schedule: ScaleSchedule = SCHEDULE, *, awake: bool = True, **options: object) -> VAR:
    torch.manual_seed(0)
    model = VAR(
        ladder_rule(32), schedule=schedule, code=CodeSpec.index(V), latent_channels=C, num_classes=CLASSES,
        **options,  # type: ignore[arg-type]
    )  # fmt: skip
    if awake:  # at initialisation a block is near identity and would hide a leak
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


def tokens(batch: int = 3, schedule: ScaleSchedule = SCHEDULE) -> TokenBatch:
    rng = torch.Generator().manual_seed(1)
    L = schedule.num_tokens
    return TokenBatch(
        torch.randint(V, (batch, L), generator=rng),
        torch.arange(batch) % CLASSES,
        torch.randn(batch, L - schedule.tokens_per_scale[0], C, generator=rng),
    )


@pytest.mark.parametrize("shared_adaln", [False, True])
def test_no_future_leak(shared_adaln: bool) -> None:
    model, batch = tiny(shared_adaln=shared_adaln), tokens()
    assert batch.inputs_BNC is not None
    before = model(batch.inputs_BNC, batch.labels_B)
    for k in range(1, SCHEDULE.num_scales):
        start = SCHEDULE.slices[k].start
        changed = batch.inputs_BNC.clone()
        changed[:, start - 1 :] += 1.0  # inputs of scale k and finer
        after = model(changed, batch.labels_B)
        torch.testing.assert_close(after[:, :start], before[:, :start], atol=1e-5, rtol=1e-5)
        assert (after[:, start:] - before[:, start:]).abs().amax(dim=(0, 2)).min() > 1e-4


def test_loss_is_the_same_in_train_and_eval() -> None:
    model, batch = tiny(), tokens()
    assert torch.equal(model.train().loss(batch).nats_BK, model.eval().loss(batch).nats_BK)


def test_an_untrained_head_scores_a_uniform_guess() -> None:
    model = tiny(awake=False)
    with torch.no_grad():
        model.head.weight.zero_()
        loss = model.loss(tokens(), errors=True)
    torch.testing.assert_close(loss.per_token_avg_B, torch.full((3,), model.code.nats), atol=1e-5, rtol=0)
    assert loss.wrong_BK is not None and loss.wrong_BK.shape == (3, 4)


def test_scale_losses_add_up() -> None:
    loss = tiny().loss(tokens())
    logits = tiny()(tokens().inputs_BNC, tokens().labels_B)
    nats = torch.nn.functional.cross_entropy(logits.transpose(1, 2), tokens().ids_BL, reduction="none")
    torch.testing.assert_close(loss.per_token_avg_B, nats.mean(1))
    torch.testing.assert_close(loss.per_token_last_B, nats[:, SCHEDULE.slices[-1]].mean(1))


def test_a_one_scale_schedule_works() -> None:
    schedule = ScaleSchedule.square(4)
    model = tiny(schedule)
    model.loss(tokens(schedule=schedule)).per_token_avg_B.mean().backward()


def test_label_drop_is_the_callers_and_reproducible() -> None:
    model, labels = tiny(), torch.zeros(2000, dtype=torch.int64)
    dropped = model.drop_labels(labels, 0.1, torch.Generator().manual_seed(0))
    assert torch.equal(dropped, model.drop_labels(labels, 0.1, torch.Generator().manual_seed(0)))
    assert 0.07 < (dropped == CLASSES).float().mean() < 0.13
    assert torch.equal(model.drop_labels(labels, 0.0, None), labels)


def test_only_an_index_code_is_taken() -> None:
    with pytest.raises(ValueError, match=r"bits\(16\)"):
        VAR(ladder_rule(32), schedule=SCHEDULE, code=CodeSpec.bits(16), latent_channels=C, num_classes=1)


@pytest.mark.parametrize("shared_adaln", [False, True])
def test_flops_agree_with_torchs_counter(shared_adaln: bool) -> None:
    with torch.device("meta"):  # on CPU tensors the counter misses fused attention
        model = tiny(VAR_256, awake=False, shared_adaln=shared_adaln, dense_attention=True)
        inputs, labels = torch.empty(1, 679, C), torch.zeros(1, dtype=torch.int64)
        with FlopCounterMode(display=False) as counter:
            model(inputs, labels)
    assert counter.get_total_flops() == forward_flops(model, attention_pairs=680**2)


def test_groups_compute_fewer_pairs_than_dense() -> None:
    counts = []
    for dense in (True, False):
        with torch.device("meta"):
            model = tiny(VAR_256, awake=False, dense_attention=dense)
            with FlopCounterMode(display=False) as counter:
                model(torch.empty(1, 679, C), torch.zeros(1, dtype=torch.int64))
        counts.append(counter.get_total_flops())
    saved = counts[0] - counts[1]
    assert saved > 0.9 * 4 * 32 * 2 * (680**2 - VAR_256.attended_pairs)


def test_size_rules() -> None:
    shape = depth_rule(16)
    assert (shape.width, shape.heads, shape.drop_path) == (1024, 16, pytest.approx(0.1 * 16 / 24))
    assert [ladder_rule(width).heads for width in (8, 16, 24, 32, 64)] == [1, 1, 2, 2, 4]
    with pytest.raises(ValueError, match="width 50 is not a multiple of 3 heads"):
        ladder_rule(50)


@pytest.mark.golden
@pytest.mark.parametrize("name", ["var_d2_256", "var_d3_256_shared_adaln"])
def test_released_outputs(test_data: Path, name: str) -> None:
    """Logits, unconditional logits and cross-entropy of the released code on its own random weights."""
    folder = test_data / "golden" / name
    model = load_released_var(load_file(folder / "var.safetensors"), VAR_256).eval()
    io = load_file(folder / "io.safetensors")
    meta = json.loads((folder / "meta.json").read_text())
    ids_BL = torch.cat([io[f"idx_{k}"].flatten(1) for k in range(10)], dim=1)
    null = torch.full_like(io["labels"], model.num_classes)
    with torch.no_grad():
        logits = model(io["var_input"], io["labels"])
        torch.testing.assert_close(logits, io["logits"], atol=1e-4, rtol=0)
        if "logits_uncond" in io:
            torch.testing.assert_close(model(io["var_input"], null), io["logits_uncond"], atol=1e-4, rtol=0)
        loss = model.loss(TokenBatch(ids_BL, io["labels"], io["var_input"]))
    assert float(loss.per_token_avg_B.mean()) == pytest.approx(meta["metrics"]["L_mean"], abs=1e-5)
    assert float(loss.per_token_last_B.mean()) == pytest.approx(meta["metrics"]["L_tail"], abs=1e-5)
