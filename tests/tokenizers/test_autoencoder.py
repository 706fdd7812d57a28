"""The autoencoder as a whole: shapes, both trunks, loss, fingerprint, settings."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
import torch
import yaml
from torch import Tensor, nn

from varscale.tokenizers.autoencoder import VQAutoencoder
from varscale.tokenizers.config import RELEASED, TokenizerConfig

CONF = Path(__file__).parents[2] / "conf" / "tokenizer"
SMALL = {
    "patch": {"width": 16, "blocks": 1},
    "released": {"trunk": "released", "width": 32, "resolution": 64, "schedule": "1-2-3-4"},
}


def small(trunk: str = "patch", **settings: object) -> VQAutoencoder:
    torch.manual_seed(0)
    return VQAutoencoder(**{**SMALL[trunk], **settings})


def images(tokenizer: VQAutoencoder, batch: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.rand(batch, 3, tokenizer.resolution, tokenizer.resolution, generator=generator) * 2 - 1


@pytest.mark.parametrize("trunk", SMALL)
def test_pixels_to_ids_and_back(trunk: str) -> None:
    tokenizer = small(trunk)
    pixels = images(tokenizer)
    ids = tokenizer.encode(pixels)
    assert ids.shape == (2, tokenizer.schedule.num_tokens) and ids.dtype == torch.int64
    assert str(tokenizer.code) == "index(256)"
    decoded = tokenizer.decode(ids)
    assert decoded.shape == pixels.shape and decoded.dtype == torch.float32 and decoded.abs().max() <= 1
    assert torch.equal(decoded, tokenizer.decode_latent(tokenizer.pyramid.reconstruct(ids)).detach())
    with torch.autocast("cpu", torch.bfloat16):
        assert tokenizer.latent(pixels).dtype == torch.float32
        assert tokenizer.decode(ids).dtype == torch.float32


@pytest.mark.parametrize("trunk", SMALL)
def test_every_parameter_is_trained(trunk: str) -> None:
    tokenizer = small(trunk, codebook_update="gradient")
    loss = tokenizer.loss(images(tokenizer))
    loss.total.backward()
    assert [name for name, p in tokenizer.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


def test_loss_is_the_weighted_sum_of_its_parts() -> None:
    class Brightness(nn.Module):
        def forward(self, reconstruction: Tensor, pixels: Tensor) -> Tensor:
            return 3 * (reconstruction.mean() - pixels.mean()).square()

    tokenizer = small(l1_weight=0.5, l2_weight=2.0, vq_weight=0.25)
    pixels = images(tokenizer)
    loss = tokenizer.loss(pixels, [Brightness()])
    decoded = tokenizer.trunk.decode(tokenizer.pyramid.reconstruct(loss.ids))
    torch.testing.assert_close(loss.l1, (decoded - pixels).abs().mean())
    torch.testing.assert_close(loss.l2, (decoded - pixels).square().mean())
    torch.testing.assert_close(loss.terms[0], 3 * (decoded.mean() - pixels.mean()).square())
    torch.testing.assert_close(loss.total, 0.5 * loss.l1 + 2.0 * loss.l2 + 0.25 * loss.vq + loss.terms[0])
    assert torch.equal(loss.ids, tokenizer.encode(pixels))


def test_fingerprint_follows_what_decides_tokens() -> None:
    tokenizer = small()
    fingerprint = tokenizer.fingerprint
    assert fingerprint == small().fingerprint
    assert fingerprint == small(l1_weight=5.0, restart_below=None).fingerprint  # of training only
    assert fingerprint != small(refine_ratio=0.4).fingerprint
    tokenizer.pyramid.quantizer.mass.mul_(0.5)  # statistics of training
    assert fingerprint == tokenizer.fingerprint
    for parameter in tokenizer.parameters():
        with torch.no_grad():
            element = parameter.view(-1)[-1:] if parameter.ndim < 4 else parameter[-1:, -1:, -1:, -1:]
            before = element.clone()
            element += 0.25
            assert fingerprint != tokenizer.fingerprint
            element.copy_(before)
    assert fingerprint == tokenizer.fingerprint


def test_settings_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match=r"ends at 1x4x4, but the latent grid of the tokenizer .* is 1x8x8"):
        VQAutoencoder(schedule="1-2-4")
    with pytest.raises(ValueError, match="30 px is no multiple of the trunk's stride of 4 px"):
        VQAutoencoder(resolution=30)
    with pytest.raises(ValueError, match="unknown trunk 'pach'; it is patch or released"):
        VQAutoencoder(trunk="pach")
    with pytest.raises(ValueError, match="vocabulary is 0; it must be at least 1"):
        VQAutoencoder(vocabulary=0)
    with pytest.raises(ValueError, match="48 channels do not divide into 32 groups"):
        VQAutoencoder(trunk="released", width=48, resolution=64, schedule="1-2-4")
    with pytest.raises(TypeError, match="vocabluary"):
        VQAutoencoder(vocabluary=3)
    tokenizer = small()
    with pytest.raises(ValueError, match=r"shape \(3, 64, 64\), but the tokenizer takes \(3, 32, 32\)"):
        tokenizer.encode(torch.zeros(1, 3, 64, 64))


def test_a_caller_can_ask_which_settings_there_are() -> None:
    assert set(inspect.signature(VQAutoencoder).parameters) == set(TokenizerConfig().to_dict())


def test_shipped_configurations() -> None:
    def settings(name: str) -> dict[str, object]:
        node = yaml.safe_load((CONF / f"{name}.yaml").read_text())
        below = [settings(parent) for parent in node.pop("defaults", []) if parent != "_self_"]
        assert node.pop("_target_", "varscale.tokenizers.autoencoder.VQAutoencoder").endswith(".VQAutoencoder")
        return {**(below[0] if below else {}), **node}

    names = {path.stem for path in CONF.glob("*.yaml")}
    assert names >= {"patch32", "patch32_v512", "vae_ch160v4096z32", "vae_ch32"}
    configs = {name: TokenizerConfig(**settings(name)) for name in names}  # type: ignore[arg-type]
    assert configs["vae_ch160v4096z32"] == RELEASED
    assert configs["patch32"].scale_schedule.num_tokens == 130
    TokenizerConfig(**{**settings("vae_ch32"), "resolution": 128, "schedule": "1-2-3-4-5-6-8"})  # type: ignore[arg-type]
