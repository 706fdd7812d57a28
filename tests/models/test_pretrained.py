"""Released state dicts in and out: what is read off the tensors, what is refused, and our own model folder."""

from __future__ import annotations

import sys
import types
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from varscale.codes import CodeSpec
from varscale.models.card import Facts
from varscale.models.hub import MODEL_FILES, HubError, fetch_file
from varscale.models.pretrained import load_released_var, read_released, released_state_dict
from varscale.models.shape import Shape
from varscale.models.storage import ModelError, from_pretrained, save_pretrained
from varscale.models.var import VAR
from varscale.records import write_json
from varscale.schedule import VAR_256, VAR_512, ScaleSchedule
from varscale.tokenizers.autoencoder import VQAutoencoder
from varscale.tokenizers.checkpoint_file import CheckpointError
from varscale.tokenizers.pretrained import load_released_tokenizer, released_tokenizer_state_dict

SMALL = ScaleSchedule.square(1, 2, 4)
GOLDEN = ("var_d2_256", "var_d3_256_shared_adaln")
Tensors = dict[str, Tensor]


def transformer(schedule: ScaleSchedule = SMALL, *, heads: int = 1, **options: object) -> VAR:
    """One block of width 64 with random weights."""
    torch.manual_seed(0)
    model = VAR(
        Shape(1, 64, heads, 0.0), schedule=schedule, code=CodeSpec.index(16), latent_channels=4, num_classes=3,
        **options,  # type: ignore[arg-type]
    )  # fmt: skip
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def autoencoder(schedule: ScaleSchedule = SMALL, **options: object) -> VQAutoencoder:
    """A released trunk, as narrow as its group norms allow."""
    torch.manual_seed(1)
    settings = {"trunk": "released", "width": 32, "vocabulary": 16, "latent_channels": 4, "refiners": 4} | options
    resolution = 16 * schedule.last[1]
    return VQAutoencoder(resolution=resolution, schedule=str(schedule), **settings).eval()


@pytest.fixture(scope="module")
def tokenizer() -> VQAutoencoder:
    return autoencoder()


@pytest.mark.golden
@pytest.mark.parametrize("name", GOLDEN)
def test_golden_transformers_survive_the_round_trip(test_data: Path, name: str) -> None:
    stored = load_file(test_data / "golden" / name / "var.safetensors")
    exported = released_state_dict(load_released_var(stored))
    assert stored.keys() - exported.keys() == set()
    assert exported.keys() - stored.keys() <= {"attn_bias_for_masking"}  # the shared set lacks it
    for key, tensor in stored.items():
        assert torch.equal(exported[key], tensor) and exported[key].dtype == tensor.dtype, key


@pytest.mark.golden
def test_the_golden_tokenizer_survives_the_round_trip(test_data: Path) -> None:
    stored = load_file(test_data / "golden/var_d2_256/vae.safetensors")
    exported = released_tokenizer_state_dict(load_released_tokenizer(stored))
    assert exported.keys() == stored.keys() and len(stored) == 324
    assert all(torch.equal(exported[key], stored[key]) for key in stored)


@pytest.mark.parametrize("persistent", [True, False])
@pytest.mark.parametrize(
    ("schedule", "options"),
    [
        (VAR_256, {}),
        (VAR_256, {"l2_norm": False}),
        (VAR_256, {"shared_adaln": True, "heads": 4}),
        (VAR_512, {"shared_adaln": True}),
        (VAR_512, {"l2_norm": False}),
    ],
)
def test_every_kind_of_model_is_recognised(
    schedule: ScaleSchedule, options: dict[str, object], persistent: bool
) -> None:
    """With its persistent buffers or without: published schedules are then known by their number of tokens."""
    model = transformer(schedule, **options)
    state = released_state_dict(model)
    if not persistent:
        state = {name: t for name, t in state.items() if name not in ("lvl_1L", "attn_bias_for_masking")}
        state = {name: t for name, t in state.items() if not name.endswith("zero_k_bias")}
    loaded = load_released_var(state)
    assert (loaded.schedule, loaded.depth, loaded.width, loaded.heads) == (schedule, 1, 64, options.get("heads", 1))
    assert (loaded.num_classes, loaded.latent_channels, loaded.code) == (3, 4, CodeSpec.index(16))
    assert loaded.shared_adaln == options.get("shared_adaln", False)
    assert loaded.blocks[0].attention.l2_norm == options.get("l2_norm", True)
    assert all(torch.equal(t, model.state_dict()[name]) for name, t in loaded.state_dict().items())


@pytest.mark.parametrize("sides", [(1, 2, 3, 4), (1, 2, 3, 4, 5), (1, 2, 3, 4, 5, 6), (1, 2, 3, 4, 5, 6, 7)])
def test_other_schedules_are_read_off_lvl_1L(sides: tuple[int, ...]) -> None:
    schedule = ScaleSchedule.square(*sides)
    state = released_state_dict(transformer(schedule))
    assert load_released_var(state).schedule == schedule
    del state["lvl_1L"]
    with pytest.raises(CheckpointError, match=rf"{schedule.num_tokens} tokens in {len(sides)} scales .*schedule=1-2"):
        load_released_var(state)
    assert load_released_var(state, schedule).schedule == schedule


# specs/var.md, section 1.2: which of four phi refines each scale; at K = 5, 7 and 10 some are exact ties.
PHI = {
    4: (0, 1, 2, 3),
    5: (0, 1, 2, 2, 3),
    6: (0, 0, 1, 2, 3, 3),
    7: (0, 0, 1, 2, 2, 3, 3),
    10: (0, 0, 1, 1, 1, 2, 2, 3, 3, 3),
    14: (0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3),
}


@pytest.mark.parametrize(("scales", "refiners"), [*((scales, 4) for scales in PHI), (5, 1), (5, None)])
def test_tokenizers_of_other_depths_of_pyramid(scales: int, refiners: int | None) -> None:
    """The released file is the same for every schedule with shared phi; the phi of a scale follow the table."""
    schedule = ScaleSchedule.square(*(1,) * (scales - 1), 2)
    before = autoencoder(schedule, refiners=refiners)
    state = released_tokenizer_state_dict(before)
    assert state["quantize.ema_vocab_hit_SV"].shape == (scales, 16)
    after = load_released_tokenizer(state, schedule)
    expected = {4: PHI[scales], 1: (0,) * scales, None: tuple(range(scales))}[refiners]
    assert after.pyramid.refiner_of_scale == expected
    assert after.fingerprint == before.fingerprint
    if refiners is not None:  # the counter's K is no property of the weights
        load_released_tokenizer(state, ScaleSchedule.square(1, 2))


def test_the_standard_deviation_of_the_inputs_is_folded_into_the_word_embedding() -> None:
    model = transformer(input_std=0.37)
    loaded = load_released_var(released_state_dict(model))
    assert float(loaded.input_std) == 1.0
    inputs, labels = torch.randn(2, 20, 4), torch.tensor([0, 2])
    with torch.no_grad():
        torch.testing.assert_close(loaded(inputs, labels), model(inputs, labels), atol=1e-5, rtol=1e-5)


def test_half_precision_weights_become_float32() -> None:
    state = {name: t.half() if t.is_floating_point() else t for name, t in released_state_dict(transformer()).items()}
    loaded = load_released_var(state)
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}


def test_what_the_released_architecture_cannot_say_is_not_exported() -> None:
    with pytest.raises(ValueError, match="patch trunk, and there is no released architecture"):
        released_tokenizer_state_dict(VQAutoencoder(resolution=16, schedule="1-2-4", width=32))
    with pytest.raises(ValueError, match=r"ratio 0\.25"):
        released_tokenizer_state_dict(autoencoder(refine_ratio=0.25))
    with pytest.raises(ValueError, match="2 heads of 32"):
        released_state_dict(transformer(heads=2, l2_norm=False))


def changed(**changes: Tensor | None) -> Tensors:
    """A good state dict with some tensors replaced, or removed by ``None``; ``__`` stands for a dot."""
    state = released_state_dict(transformer())
    for name, tensor in changes.items():
        if tensor is None:
            del state[name.replace("__", ".")]
        else:
            state[name.replace("__", ".")] = tensor
    return state


def test_every_wrong_key_is_listed_with_what_it_should_be() -> None:
    state = changed(
        head__bias=None, class_emb__weight=torch.zeros(4, 65), blocks__0__attn__nothing=torch.zeros(2),
        blocks__0__ffn__fc1__weight=torch.zeros(128, 64), pos_start=torch.zeros(1, 1, 64, dtype=torch.int64),
    )  # fmt: skip
    with pytest.raises(CheckpointError) as error:
        load_released_var(state)
    for line in (
        "missing head.bias: should have shape (16,)",
        "unexpected blocks.0.attn.nothing of shape (2,)",
        "class_emb.weight has shape (4, 65), should be (4, 64)",
        "blocks.0.ffn.fc1.weight has shape (128, 64), should be (256, 64)",
        "pos_start holds torch.int64, should be torch.float32",
    ):
        assert f"\n  {line}" in str(error.value)


@pytest.mark.parametrize("name", ["pos_1LC", "head.weight", "lvl_embed.weight", "blocks.0.attn.scale_mul_1H11"])
def test_a_tensor_that_tells_a_size_may_be_the_missing_one(name: str) -> None:
    state = released_state_dict(transformer())
    state["blocks.0.extra"] = torch.zeros(1)
    removed = state.pop(name)
    with pytest.raises(CheckpointError) as error:
        load_released_var(state)
    assert "unexpected blocks.0.extra" in str(error.value)
    if not name.endswith("scale_mul_1H11"):  # without it, the model is one without L2 norm
        assert f"missing {name}: should have shape {tuple(removed.shape)}" in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"word_embed__weight": None}, r"tell the code channels is there: word_embed"),
        ({"lvl_1L": torch.tensor([[0, 1, 1, 2]])}, r"scales of \[1, 2, 1\] tokens; only square maps"),
        ({"lvl_1L": torch.tensor([[1, 0, 0]])}, r"does not count the scales upwards"),
        ({"attn_bias_for_masking": torch.zeros(1, 1, 21, 21)}, r"not the mask of the schedule 1-2-4"),
        ({"blocks__0__attn__zero_k_bias": torch.ones(64)}, r"zero_k_bias is not zero"),
        ({"blocks__0__attn__scale_mul_1H11": torch.ones(1, 5, 1, 1)}, r"64 is not a multiple of 5 heads"),
    ],
)
def test_what_contradicts_itself(changes: dict[str, Tensor | None], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_released_var(changed(**changes))


def test_a_512_px_model_with_a_256_px_schedule() -> None:
    state = released_state_dict(transformer(VAR_512))
    with pytest.raises(CheckpointError, match=r"2240 tokens, 512 px.*680 tokens, 256 px.*leave schedule= out"):
        load_released_var(state, VAR_256)
    del state["lvl_1L"]
    with pytest.raises(CheckpointError, match=r"2240 tokens.*has 680"):
        load_released_var(state, VAR_256)


def test_one_kind_given_for_the_other_is_recognised(tokenizer: VQAutoencoder) -> None:
    with pytest.raises(CheckpointError, match="of a VQ-VAE, not of a VAR transformer; give it as tokenizer="):
        load_released_var(released_tokenizer_state_dict(tokenizer))
    with pytest.raises(CheckpointError, match="of a VAR transformer, not of a tokenizer; give it as model="):
        load_released_tokenizer(released_state_dict(transformer()))
    with pytest.raises(CheckpointError, match="varscale's own names"):
        load_released_var(transformer().state_dict())
    with pytest.raises(CheckpointError, match="varscale's own names"):
        load_released_tokenizer(tokenizer.state_dict())
    with pytest.raises(CheckpointError, match=r"no state dict of a VAR transformer.*conv\.weight"):
        load_released_var({"conv.weight": torch.zeros(1)})


def store(path: Path, content: object) -> Path:
    """A ``.pth``."""
    torch.save(content, path)
    return path


def test_the_trainers_checkpoint_holds_both(tmp_path: Path, tokenizer: VQAutoencoder) -> None:
    model = transformer()
    trainer = {"var_wo_ddp": released_state_dict(model), "vae_local": released_tokenizer_state_dict(tokenizer)}
    whole = {"epoch": 3, "iter": 0, "trainer": trainer | {"var_opt": {}}, "args": {"bs": 2}}
    path = store(tmp_path / "ckpt.pth", whole)
    read = read_released(path)
    assert read.tokenizer.fingerprint == tokenizer.fingerprint and read.model.schedule == SMALL
    assert read.facts.source == "ckpt.pth"
    del trainer["vae_local"]
    path = store(tmp_path / "ckpt.pth", {"trainer": trainer})
    with pytest.raises(CheckpointError, match=r"ckpt\.pth is a trainer's checkpoint without 'vae_local'"):
        read_released(path)


def test_an_absent_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"absent\.pth does not exist"):
        read_released(tmp_path / "absent.pth")


def test_a_message_about_tensors_names_the_file(tmp_path: Path, tokenizer: VQAutoencoder) -> None:
    vae = store(tmp_path / "vae.pth", released_tokenizer_state_dict(tokenizer))
    with pytest.raises(CheckpointError, match=r"vae\.pth: this is the state dict of a VQ-VAE"):
        read_released(vae, vae)
    with pytest.raises(ModelError, match=r"code index\(16\), the tokenizer index\(8\)"):
        other = store(tmp_path / "other.pth", released_tokenizer_state_dict(autoencoder(vocabulary=8)))
        read_released(store(tmp_path / "var.pth", released_state_dict(transformer())), other)


def test_a_model_folder_stands_alone(tmp_path: Path, tokenizer: VQAutoencoder) -> None:
    model = transformer(heads=4, shared_adaln=True, mlp_ratio=2.0, input_std=0.5)
    facts = Facts(data="CIFAR-10", tokens_seen=1.5e6, val_nats_per_token_avg=3.21, law="L = E + (beta N)^alpha")
    save_pretrained(tmp_path / "model", model, tokenizer, facts)
    loaded = from_pretrained(tmp_path / "model")
    assert all(torch.equal(t, model.state_dict()[name]) for name, t in loaded.model.state_dict().items())
    assert loaded.tokenizer.fingerprint == tokenizer.fingerprint and loaded.facts == facts
    assert not loaded.model.training and all(p.requires_grad for p in loaded.model.parameters())
    inputs, labels = torch.randn(2, 20, 4), torch.tensor([0, 2])
    with torch.no_grad():
        assert torch.equal(loaded.model(inputs, labels), model(inputs, labels))
    card = (tmp_path / "model/README.md").read_text()
    for line in ("| data of the transformer | CIFAR-10 |", "| tokens seen | 1,500,000, repeats counted |"):
        assert line in card
    for line in ("3.2100 nat/token", "L = E + (beta N)^alpha", "| images seen | not known |", tokenizer.fingerprint):
        assert line in card


def test_a_folder_that_holds_another_model_is_kept(tmp_path: Path, tokenizer: VQAutoencoder) -> None:
    save_pretrained(tmp_path, transformer(), tokenizer)
    before = (tmp_path / "model.safetensors").read_bytes()
    save_pretrained(tmp_path, transformer(), tokenizer, Facts(data="known now"))  # the same one: a new card
    assert "known now" in (tmp_path / "README.md").read_text()
    with pytest.raises(ModelError, match=r"model\.json describes something else.*choose another folder"):
        save_pretrained(tmp_path, transformer(heads=2), tokenizer)
    with pytest.raises(ModelError, match=r"tokenizer\.json describes something else"):
        save_pretrained(tmp_path, transformer(), autoencoder(refiners=1))
    assert (tmp_path / "model.safetensors").read_bytes() == before
    with pytest.raises(ModelError, match="schedule 1-2-3, the tokenizer 1-2-4"):
        save_pretrained(tmp_path / "new", transformer(ScaleSchedule.square(1, 2, 3)), tokenizer)
    assert not (tmp_path / "new").exists()


def test_a_damaged_folder_is_told(tmp_path: Path, tokenizer: VQAutoencoder) -> None:
    save_pretrained(tmp_path, transformer(), tokenizer)
    weights = tmp_path / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(ModelError, match=r"model\.safetensors have fingerprint .*a file was changed"):
        from_pretrained(tmp_path)
    weights.write_bytes(whole[:-8])
    with pytest.raises(ModelError, match="cannot be read"):
        from_pretrained(tmp_path)
    write_json(tmp_path / "model.json", {"format": 2})
    with pytest.raises(ModelError, match="format 2, this version reads 1"):
        from_pretrained(tmp_path)
    (tmp_path / "model.json").unlink()
    with pytest.raises(ModelError, match=r"no model in .*varscale import or export"):
        from_pretrained(tmp_path)


def test_the_hub_needs_its_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)  # as if it were not installed
    with pytest.raises(HubError, match=r"org/name is not a path here.*pip install 'varscale\[hub\]'"):
        from_pretrained("org/name@v1")
    with pytest.raises(HubError, match="is no Hub id either"):
        from_pretrained(str(tmp_path / "absent"))


def test_the_hub_is_asked_for_what_is_not_here(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tokenizer: VQAutoencoder
) -> None:
    """With the Hub's two calls replaced by ones that note what they were asked for."""
    save_pretrained(tmp_path / "cached", transformer(), tokenizer)
    asked: list[tuple[object, ...]] = []

    def snapshot_download(repository: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append((repository, revision, tuple(allow_patterns)))
        return str(tmp_path / "cached")

    def hf_hub_download(repository: str, name: str, *, revision: str | None) -> str:
        raise OSError("no route to host")

    hub = types.SimpleNamespace(snapshot_download=snapshot_download, hf_hub_download=hf_hub_download)
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    assert from_pretrained("org/name@v1").tokenizer.fingerprint == tokenizer.fingerprint
    from_pretrained("org/name", revision="main")
    assert asked == [("org/name", "v1", MODEL_FILES), ("org/name", "main", MODEL_FILES)]
    with pytest.raises(HubError, match=r"v1, revision=v2 another"):
        from_pretrained("org/name@v1", revision="v2")
    with pytest.raises(HubError, match=r"var\.pth of org/name could not be fetched.*no route to host"):
        fetch_file("org/name", "var.pth")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org").mkdir()
    (tmp_path / "cached").rename(tmp_path / "org/name")
    from_pretrained("org/name")  # a path that exists wins
    assert len(asked) == 2
