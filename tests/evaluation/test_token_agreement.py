"""Token agreement: equal encodings agree, shares and shifts are what they say."""

from __future__ import annotations

import pytest
import torch

from varscale.cache.encoding import encode
from varscale.data.dead_leaves import DeadLeaves
from varscale.data.loader import val_batches
from varscale.data.source import ImageBatch
from varscale.evaluation.token_agreement import token_agreement
from varscale.models.shape import ladder_rule
from varscale.models.var import VAR
from varscale.tokenizers.autoencoder import VQAutoencoder
from varscale.tokenizers.tokens import TokenBatch


@pytest.fixture(scope="module")
def tokenizer() -> VQAutoencoder:
    torch.manual_seed(0)
    return VQAutoencoder(width=16, blocks=1).eval()


@pytest.fixture(scope="module")
def batches() -> list[ImageBatch]:
    return list(val_batches(DeadLeaves(val_size=10), batch=4))


def test_one_precision_agrees_with_itself(tokenizer: VQAutoencoder, batches: list[ImageBatch]) -> None:
    same = token_agreement(tokenizer, batches, other="fp32")
    assert same.equal == 1 and set(same.equal_per_scale) == {1.0} and same.images == 10 and same.loss is None
    assert same.psnr_reference_db == same.psnr_other_db


def test_bf16_by_hand(tokenizer: VQAutoencoder, batches: list[ImageBatch]) -> None:
    torch.manual_seed(1)
    model = VAR(
        ladder_rule(16),
        schedule=tokenizer.schedule,
        code=tokenizer.code,
        latent_channels=tokenizer.latent_channels,
        num_classes=10,
        head_std=1.0,  # so that the loss depends on the tokens
    ).eval()
    found = token_agreement(tokenizer, batches, model=model)

    pixels, labels = (torch.cat([getattr(batch, name) for batch in batches]) for name in ("pixels", "labels"))
    fp32, bf16 = (encode(tokenizer, pixels, precision) for precision in ("fp32", "bf16"))
    same = (fp32 == bf16).double()
    assert found.equal == pytest.approx(float(same.mean())) and 0 < found.equal < 1
    assert found.equal_per_scale == pytest.approx([float(same[:, part].mean()) for part in tokenizer.schedule.slices])
    error = (tokenizer.decode(bf16) - pixels).double().square().mean((1, 2, 3))
    assert found.psnr_other_db == pytest.approx(float((10 * (4 / error).log10()).mean()), abs=1e-4)
    with torch.no_grad():
        losses = [model.loss(TokenBatch(ids, labels, tokenizer.pyramid.inputs(ids))) for ids in (fp32, bf16)]
    nats = torch.stack([loss.per_token_avg_B.double() for loss in losses])
    assert found.loss is not None
    assert found.loss.nats_reference == pytest.approx(float(nats[0].mean()), rel=1e-6)
    assert found.loss.shift == pytest.approx(float((nats[1] - nats[0]).mean()), rel=1e-4)
    assert found.loss.shift_sem == pytest.approx(float((nats[1] - nats[0]).std() / 10**0.5), rel=1e-4)


def test_refuses_nothing_and_nonsense(tokenizer: VQAutoencoder, batches: list[ImageBatch]) -> None:
    with pytest.raises(ValueError, match="no image to encode"):
        token_agreement(tokenizer, [])
    with pytest.raises(ValueError, match="unknown precision 'fp8'; it is fp32 or bf16"):
        token_agreement(tokenizer, batches, other="fp8")
