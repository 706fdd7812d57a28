"""The released architecture against golden tensors of the released code."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from varscale.schedule import VAR_256, ScaleSchedule
from varscale.tokenizers.autoencoder import VQAutoencoder
from varscale.tokenizers.config import RELEASED
from varscale.tokenizers.pretrained import load_released_tokenizer

DATA = Path(os.environ.get("VARSCALE_TEST_DATA", Path(__file__).parents[2] / "../shared/data"))
GOLDEN = DATA / "golden" / "var_d2_256"

golden = [pytest.mark.golden, pytest.mark.skipif(not DATA.exists(), reason=f"no test data at {DATA}")]


@pytest.fixture(scope="module")
def tokenizer() -> VQAutoencoder:
    return load_released_tokenizer(load_file(GOLDEN / "vae.safetensors"))


@pytest.fixture(scope="module")
def io() -> dict[str, Tensor]:
    return load_file(GOLDEN / "io.safetensors")


@pytest.fixture(scope="module")
def ids(io: dict[str, Tensor]) -> Tensor:
    return torch.cat([io[f"idx_{k}"] for k in range(10)], dim=1)


class TestGolden:
    pytestmark = golden

    def test_encoder(self, tokenizer: VQAutoencoder, io: dict[str, Tensor]) -> None:
        with torch.no_grad():
            features = tokenizer.trunk.encoder(io["image"])
        torch.testing.assert_close(features, io["encoder_out"], rtol=0, atol=1e-4)
        torch.testing.assert_close(tokenizer.latent(io["image"]).detach(), io["f"], rtol=0, atol=1e-4)

    def test_ids(self, tokenizer: VQAutoencoder, io: dict[str, Tensor], ids: Tensor) -> None:
        assert torch.equal(tokenizer.encode(io["image"]), ids)
        assert torch.equal(tokenizer.pyramid.encode(io["f"]), ids)

    def test_partial_sums(self, tokenizer: VQAutoencoder, io: dict[str, Tensor], ids: Tensor) -> None:
        for k, f_hat in enumerate(tokenizer.pyramid.partial_sums(ids)):
            torch.testing.assert_close(f_hat.detach(), io[f"fhat_{k}"], rtol=0, atol=1e-4)
        torch.testing.assert_close(tokenizer.pyramid.reconstruct(ids), io["fhat_9"], rtol=0, atol=1e-4)

    def test_teacher_forcing_input(self, tokenizer: VQAutoencoder, io: dict[str, Tensor], ids: Tensor) -> None:
        torch.testing.assert_close(tokenizer.pyramid.inputs(ids), io["var_input"], rtol=0, atol=1e-5)

    def test_pixels(self, tokenizer: VQAutoencoder, io: dict[str, Tensor], ids: Tensor) -> None:
        torch.testing.assert_close(tokenizer.decode(ids), io["recon"], rtol=0, atol=1e-4)

    def test_training_forward(self, tokenizer: VQAutoencoder, io: dict[str, Tensor]) -> None:
        wanted = load_file(GOLDEN / "train.safetensors")
        tokenizer.zero_grad()
        f = io["f"].clone().requires_grad_()
        out = tokenizer.pyramid(f)
        weights = torch.linspace(-1, 1, out.latent.numel()).view_as(out.latent)
        (out.vq_loss + (out.latent * weights).mean()).backward()
        torch.testing.assert_close(out.vq_loss.detach(), wanted["vq_loss"].squeeze(), rtol=0, atol=1e-6)
        torch.testing.assert_close(out.latent.detach(), wanted["vq_fhat_out"], rtol=0, atol=1e-4)
        gradients = {
            "vq_grad_f": f.grad,
            "vq_grad_embedding": tokenizer.pyramid.quantizer.codebook.grad,
            **{f"vq_grad_phi{i}_weight": phi.conv.weight.grad for i, phi in enumerate(tokenizer.pyramid.refiners)},
        }
        for name, gradient in gradients.items():
            assert gradient is not None
            assert (gradient - wanted[name]).norm() < 1e-5 * wanted[name].norm(), name


def test_parameter_counts() -> None:
    with torch.device("meta"):
        trunk = VQAutoencoder(**RELEASED.to_dict())
    counts = {
        "encoder": sum(p.numel() for p in trunk.trunk.encoder.parameters()),
        "decoder": sum(p.numel() for p in trunk.trunk.decoder.parameters()),
        "pyramid": sum(p.numel() for p in trunk.pyramid.parameters()),
        "total": sum(p.numel() for p in trunk.parameters()),
    }
    assert counts == {"encoder": 44_107_872, "decoder": 64_653_923, "pyramid": 168_064, "total": 108_948_355}


def released_names(tokenizer: VQAutoencoder, style: str) -> dict[str, Tensor]:
    """The state dict as the release names it; ``style`` is the name of the refiners' module list."""
    names = {}
    for name, tensor in tokenizer.named_parameters():
        name = name.removeprefix("trunk.").replace("pyramid.quantizer.codebook", "quantize.embedding.weight")
        if name.startswith("pyramid.refiners."):
            _, _, i, _, kind = name.split(".")
            name = f"quantize.quant_resi.{style}{i + '.' if style != 'qresi.' else ''}{kind}"
        names[name] = tensor.detach()
    return names


@pytest.mark.parametrize(("refiners", "style"), [(1, "qresi."), (None, ""), (2, "qresi_ls.")])
def test_loader_reads_every_form_of_refiners(refiners: int | None, style: str) -> None:
    settings = {"trunk": "released", "width": 32, "resolution": 64, "schedule": "1-2-4", "refiners": refiners}
    tokenizer = VQAutoencoder(**settings)
    loaded = load_released_tokenizer(released_names(tokenizer, style), ScaleSchedule.square(1, 2, 4))
    assert loaded.fingerprint == tokenizer.fingerprint


def test_loader_names_what_is_wrong() -> None:
    tokenizer = VQAutoencoder(trunk="released", width=32, resolution=64, schedule="1-2-4")
    tensors = released_names(tokenizer, "qresi_ls.")
    with pytest.raises(ValueError, match=r"missing quant_conv\.bias: should have shape \(8,\)"):
        load_released_tokenizer({n: t for n, t in tensors.items() if n != "quant_conv.bias"}, VAR_256)
    with pytest.raises(ValueError, match=r"unexpected nothing\.bias of shape \(1,\)"):
        load_released_tokenizer({**tensors, "nothing.bias": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"quant_conv\.bias has shape \(3,\), should be \(8,\)"):
        load_released_tokenizer({**tensors, "quant_conv.bias": torch.zeros(3)})
