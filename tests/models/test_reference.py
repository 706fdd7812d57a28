"""The plain reference of the benchmarks computes what varscale computes: logits, loss, ids of images and of samples."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor

from varscale.codes import CodeSpec
from varscale.models.sampling import Sampler, sample
from varscale.models.shape import ladder_rule
from varscale.models.var import VAR
from varscale.schedule import ScaleSchedule
from varscale.tokenizers.autoencoder import VQAutoencoder
from varscale.tokenizers.tokens import TokenBatch
from varscale.training.optim import Optimisation, build_adamw

SIDES = (1, 2, 3, 4)
SCHEDULE = ScaleSchedule.square(*SIDES)
V, C, CLASSES = 64, 8, 5


@pytest.fixture(scope="module")
def reference(repository: Path) -> tuple[ModuleType, ModuleType]:
    """The modules ``reference_var`` and ``reference_tokenizer``."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(repository / "benchmarks")
        return importlib.import_module("reference_var"), importlib.import_module("reference_tokenizer")


@pytest.fixture(scope="module")
def tokenizer() -> VQAutoencoder:
    torch.manual_seed(0)
    return VQAutoencoder(
        resolution=64, schedule=str(SCHEDULE), vocabulary=V, latent_channels=C, trunk="released", width=32,
        codebook_update="gradient", kmeans_start=False,
    ).eval()  # fmt: skip


@pytest.fixture(scope="module", params=[False, True], ids=["own_adaln", "shared_adaln"])
def models(request: pytest.FixtureRequest, reference: tuple[ModuleType, ModuleType]) -> tuple[VAR, torch.nn.Module]:
    """Ours and the reference with the same random weights, none of whose blocks is near identity."""
    torch.manual_seed(0)
    ours = VAR(
        ladder_rule(32, head_dim=8), schedule=SCHEDULE, code=CodeSpec.index(V), latent_channels=C, num_classes=CLASSES,
        shared_adaln=request.param, input_std=0.7,
    )  # fmt: skip
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    plain = reference[0].ReferenceVAR.of(ours)
    return ours.eval(), plain.eval()


def batch(tokenizer: VQAutoencoder) -> TokenBatch:
    ids = torch.randint(V, (3, SCHEDULE.num_tokens), generator=torch.Generator().manual_seed(1))
    return TokenBatch(ids, torch.tensor([0, 3, CLASSES]), tokenizer.pyramid.inputs(ids))


def plain_tokenizer(reference: tuple[ModuleType, ModuleType], tokenizer: VQAutoencoder) -> torch.nn.Module:
    return reference[1].ReferenceTokenizer.of(
        tokenizer.state_dict(), sides=SIDES, refiner_of_scale=tokenizer.pyramid.refiner_of_scale
    )


def test_logits_loss_and_gradients_are_equal(models: tuple[VAR, torch.nn.Module], tokenizer: VQAutoencoder) -> None:
    (ours, plain), tokens = models, batch(tokenizer)
    assert tokens.inputs_BNC is not None
    logits = ours(tokens.inputs_BNC, tokens.labels_B)
    torch.testing.assert_close(plain(tokens.inputs_BNC, tokens.labels_B), logits, atol=1e-4, rtol=0)
    losses = ours.loss(tokens).per_token_avg_B.mean(), plain.loss(tokens.inputs_BNC, tokens.ids_BL, tokens.labels_B)
    torch.testing.assert_close(losses[1], losses[0], atol=1e-5, rtol=0)
    gradients: list[dict[str, Tensor]] = []
    for model, loss in zip(models, losses, strict=True):
        model.zero_grad()
        loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        assert float((gradient - gradients[1][name]).norm()) <= 1e-4 * float(gradient.norm()) + 1e-7, name


def test_greedy_samples_are_equal(
    reference: tuple[ModuleType, ModuleType], models: tuple[VAR, torch.nn.Module], tokenizer: VQAutoencoder
) -> None:
    ours, plain = models
    labels = torch.tensor([0, 3, 4])
    other = plain_tokenizer(reference, tokenizer)
    ids, f_hat = plain.sample(other, labels, guidance=1.5, top_k=1)
    assert torch.equal(sample(ours, tokenizer.pyramid, labels, sampler=Sampler(1.5, top_k=1), seed=0), ids)
    torch.testing.assert_close(other.decode(f_hat), tokenizer.decode(ids), atol=1e-4, rtol=0)


def test_encoding_is_equal(reference: tuple[ModuleType, ModuleType], tokenizer: VQAutoencoder) -> None:
    pixels = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(3)) * 2 - 1
    ids, inputs = plain_tokenizer(reference, tokenizer).encode(pixels)
    expected = tokenizer.encode(pixels)
    assert torch.equal(ids, expected)
    torch.testing.assert_close(inputs, tokenizer.pyramid.inputs(expected), atol=1e-4, rtol=0)


def test_both_decay_the_same_parameters(
    reference: tuple[ModuleType, ModuleType], models: tuple[VAR, torch.nn.Module]
) -> None:
    ours, plain = models
    optimizer, _ = build_adamw(ours, Optimisation(lr=1e-3), lr_peak=1e-3, steps=10)
    groups = []
    for model, adamw in ((ours, optimizer), (plain, reference[0].reference_adamw(plain, 1e-3))):
        names = {id(p): name for name, p in model.named_parameters()}
        groups.append([(g["weight_decay"], {names[id(p)] for p in g["params"]}) for g in adamw.param_groups])
    assert groups[0] == groups[1]
