"""The verbs import and export: released files in, a trained run out, and what they refuse."""

from __future__ import annotations

import json
import shutil
import sys
import types
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file

from varscale.app.cli import main
from varscale.app.exporting import law_of
from varscale.app.model_folder import open_model, open_run
from varscale.models.pretrained import read_released, released_state_dict
from varscale.models.shape import ladder_rule
from varscale.models.storage import from_pretrained, save_pretrained
from varscale.models.var import VAR
from varscale.records import RecordError, read_run, write_json
from varscale.tokenizers.autoencoder import VQAutoencoder
from varscale.tokenizers.storage import UNMEASURED, load_tokenizer, save_tokenizer

Call = Callable[..., tuple[int, str]]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of a study with a tokenizer that the release can hold: 2 x 2 latents of 32 px."""
    outputs = tmp_path_factory.mktemp("outputs")
    settings = {"trunk": "released", "width": 32, "vocabulary": 16, "latent_channels": 4, "codebook_update": "gradient"}
    torch.manual_seed(0)
    tokenizer = VQAutoencoder(resolution=32, schedule="1-2", **settings)
    save_tokenizer(outputs / "debug/tokenizer", tokenizer, UNMEASURED, dataset_id="photographs")
    overrides = ["debug=two_steps", "train.source=images", "model.width=8", "trainer.threads=1"]
    assert main(["train", *overrides, f"paths.outputs={outputs}"]) == 0
    (folder,) = (outputs / "debug/runs").glob("*model.width=8*")
    return folder


@pytest.fixture(scope="module")
def released(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run, exported as ``var.pth`` and ``vae.pth``."""
    folder = tmp_path_factory.mktemp("released")
    assert main(["export", quoted("run", run), f"out={folder}"]) == 0
    return folder


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """Runs ``varscale ARGS`` in an empty folder; returns the exit code and all it printed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)

    def call(*arguments: str) -> tuple[int, str]:
        capsys.readouterr()
        code = main(arguments)
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        return code, captured.out + captured.err

    return call


def quoted(key: str, value: Path) -> str:
    """An override whose value holds an equals sign or a comma."""
    return f"{key}='{value}'"


@pytest.mark.golden
@pytest.mark.parametrize("name", ["var_d2_256", "var_d3_256_shared_adaln"])
def test_import_and_export_of_the_golden_checkpoints(test_data: Path, tmp_path: Path, call: Call, name: str) -> None:
    vae, var = (test_data / "golden" / part for part in ("var_d2_256/vae.safetensors", f"{name}/var.safetensors"))
    code, text = call("import", f"tokenizer={vae}", f"model={var}", "out=model")
    assert code == 0, text
    for part in ("VAR, depth 2, width 128, 2 heads of 64" if name == "var_d2_256" else "shared by all blocks",
                 "1-2-3-4-5-6-8-10-13-16, 680 tokens", "10 and the null class", "L2-normalised"):  # fmt: skip
        assert part in text
    assert "vae.safetensors (sha256 " in (tmp_path / "model/README.md").read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]
    code, text = call("export", "run=model", "out=released", "format=safetensors")
    assert code == 0, text
    for file, stored in (("vae", load_file(vae)), ("var", load_file(var))):
        exported = load_file(tmp_path / f"released/{file}.safetensors")
        assert all(torch.equal(exported[key], tensor) for key, tensor in stored.items())


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_a_run_is_exported_for_others_and_read_back(run: Path, released: Path, tmp_path: Path, suffix: str) -> None:
    folder = released if suffix == "pth" else tmp_path
    if suffix == "safetensors":
        assert main(["export", quoted("run", run), f"out={folder}", "format=safetensors"]) == 0
    back = read_released(folder / f"var.{suffix}", folder / f"vae.{suffix}")
    model, tokenizer = open_model(run, OmegaConf.create({"paths": {"tokenizer": None}}))
    assert float(model.input_std) != 1.0  # the ladder standardises its inputs; the release does not
    pixels = torch.rand(2, 3, 32, 32) * 2 - 1
    ids_BL = tokenizer.encode(pixels)
    assert torch.equal(back.tokenizer.encode(pixels), ids_BL)
    with torch.no_grad():
        inputs, labels = tokenizer.pyramid.inputs(ids_BL), torch.tensor([0, 1])
        torch.testing.assert_close(back.model(inputs, labels), model(inputs, labels), atol=1e-5, rtol=1e-5)
    stored = sum(t.numel() * t.element_size() for t in released_state_dict(model).values())
    assert (folder / f"var.{suffix}").stat().st_size < stored + 40_000  # nothing of other tensors' memory
    assert f"varscale import tokenizer=vae.{suffix}" in (folder / "README.md").read_text()


def test_a_run_becomes_a_model_folder_that_states_its_facts(run: Path, tmp_path: Path, call: Call) -> None:
    code, text = call("export", quoted("run", run), "out=mine", "format=varscale")
    assert code == 0, text
    record, loaded = read_run(run), from_pretrained(tmp_path / "mine")
    assert loaded.facts.images_seen == record.images_seen and loaded.facts.tokens_seen == record.tokens_seen
    assert loaded.facts.val_nats_per_token_avg == record.val_nats_per_token_avg
    card = (tmp_path / "mine/README.md").read_text()
    for part in (record.dataset_id, "DeadLeaves", "debug, design single", record.run_id, "dataset id photographs |"):
        assert part in card
    assert "| scaling law it belongs to | not known |" in card
    assert load_tokenizer(tmp_path / "mine").fingerprint == record.tokenizer_id
    code, text = call("export", "run=mine", "out=again", "format=varscale")
    assert code == 0 and from_pretrained(tmp_path / "again").facts == loaded.facts, text
    model, _ = open_model(tmp_path / "again", OmegaConf.create({"paths": {"tokenizer": "unused"}}))
    assert all(torch.equal(t, loaded.model.state_dict()[name]) for name, t in model.state_dict().items())


def test_the_card_names_the_law_only_for_a_run_behind_it(repository: Path, tmp_path: Path) -> None:
    from varscale_analysis import RunTable, SaturatingPowerLaw

    path = repository / "docs/results/quickstart/runs.csv"
    y = "val_nats_per_token_avg"
    fit = SaturatingPowerLaw(n="params_nonembed").fit(RunTable.read(path), y=y, bootstrap=20, seed=0)
    (tmp_path / "runs.csv").write_text(path.read_text())
    write_json(tmp_path / "fit.json", {"fits": {f"saturating/{y}": fit.to_dict()}})
    run_id = str(RunTable.read(path).usable["run_id"].iloc[0])
    law = law_of(tmp_path, run_id, y)
    assert law is not None and "L = E + (beta N)^alpha" in law and "alpha" in law.splitlines()[1]
    assert law_of(tmp_path, "another", y) is None
    assert law_of(tmp_path, run_id, "val_nats_per_token_last") is None
    assert law_of(tmp_path / "nothing", run_id, y) is None


def test_a_folder_with_something_else_is_kept(run: Path, released: Path, tmp_path: Path, call: Call) -> None:
    shutil.copytree(released, tmp_path / "out")
    state = torch.load(released / "var.pth", weights_only=True)
    torch.save(state | {"head.bias": state["head.bias"] + 1}, tmp_path / "other.pth")
    assert call("import", f"tokenizer={released}/vae.pth", "model=other.pth", "out=other")[0] == 0
    code, text = call("export", "run=other", "out=out")
    assert code == 2 and "var.pth holds another model" in text
    code, text = call("import", f"tokenizer={released}/vae.pth", f"model={released}/var.pth", "out=other")
    assert code == 2 and "model.json describes something else" in text
    assert call("export", quoted("run", run), "out=out")[0] == 0  # the same one
    for name in ("var.pth", "vae.pth"):
        assert (tmp_path / "out" / name).read_bytes() == (released / name).read_bytes()


def test_a_tokenizer_alone(released: Path, tmp_path: Path, call: Call) -> None:
    code, text = call("import", f"tokenizer={released}/vae.pth", "schedule=1-2-4", "out=tokenizer")
    assert code == 0 and "released trunk of width 32, 64 px" in text
    assert str(load_tokenizer(tmp_path / "tokenizer").schedule) == "1-2-4"
    code, text = call("import", f"tokenizer={released}/vae.pth", "schedule=512", "out=tokenizer")
    assert code == 2 and "describes something else" in text


def test_a_moved_tokenizer_is_asked_for(run: Path, tmp_path: Path, call: Call) -> None:
    tokenizer = run.parents[1] / "tokenizer"
    moved = tokenizer.rename(run.parents[1] / "elsewhere")
    try:
        code, text = call("export", quoted("run", run), "out=released")
        assert code == 2 and "paths.tokenizer=FOLDER" in text
        assert call("export", quoted("run", run), "out=released", f"paths.tokenizer={moved}")[0] == 0
    finally:
        moved.rename(tokenizer)


def test_the_tokenizer_of_a_run_is_found_in_its_own_study(run: Path, tmp_path: Path) -> None:
    own = run.parents[1] / "tokenizer"
    other = tmp_path / "other"
    save_tokenizer(other, VQAutoencoder(resolution=16, schedule="1-2-4", width=32), UNMEASURED)
    for elsewhere in (tmp_path / "absent", other):
        _, tokenizer = open_model(run, OmegaConf.create({"paths": {"tokenizer": str(elsewhere)}}))
        assert tokenizer.fingerprint == load_tokenizer(own).fingerprint


def test_a_run_of_another_tokenizer_is_not_opened(run: Path) -> None:
    with pytest.raises(RecordError, match=r"was trained on tokenizer \w+, this one is \w+.*paths\.tokenizer=FOLDER"):
        open_run(run, VQAutoencoder(resolution=16, schedule="1-2-4", width=32))


def test_the_patch_trunk_has_no_released_form(tmp_path: Path, call: Call) -> None:
    tokenizer = VQAutoencoder(resolution=16, schedule="1-2-4", vocabulary=8, latent_channels=4, width=32)
    model = VAR(ladder_rule(16), schedule=tokenizer.schedule, code=tokenizer.code, latent_channels=4, num_classes=2)
    save_pretrained(tmp_path / "mine", model, tokenizer)
    code, text = call("export", "run=mine", "out=released")
    assert code == 2 and "patch trunk, and there is no released architecture" in text
    assert not (tmp_path / "released").exists()


def test_files_of_the_hub(released: Path, tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the Hub's download replaced by a folder; what the network does is not varscale's."""
    asked = []

    def hf_hub_download(repository: str, name: str, *, revision: str | None) -> str:
        asked.append((repository, name, revision))
        return str(released / name)

    monkeypatch.setitem(sys.modules, "huggingface_hub", types.SimpleNamespace(hf_hub_download=hf_hub_download))
    code, text = call("import", "hub=org/name", "revision=v1", "tokenizer=vae.pth", "model=var.pth", "out=model")
    assert code == 0, text
    assert asked == [("org/name", "var.pth", "v1"), ("org/name", "vae.pth", "v1")]
    assert "of org/name on the Hub" in json.loads((tmp_path / "model/model.json").read_text())["facts"]["source"]
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    code, text = call("import", "hub=org/name", "tokenizer=vae.pth", "out=tokenizer")
    assert code == 2 and "pip install 'varscale[hub]'" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("import",), "out=FOLDER"),
        (("import", "out=o"), "nothing to import; give tokenizer=FILE"),
        (("import", "out=o", "model=absent.pth"), "absent.pth does not exist"),
        (("import", "out=o", "model=broken.pth"), "broken.pth is damaged, cut off"),
        (("import", "out=o", "tokenizer=other.safetensors"), "other.safetensors: missing: none of the tensors"),
        (("import", "out=o", "tokenizer=t", "revision=v1"), "revision=v1 without hub="),
        (("import", "out=o", "tokenizer=t", "schedule=big"), "cannot read the schedule 'big'"),
        (("import", "out=o", "tokenzer=t"), "Did you mean tokenizer?"),
        (("import", "out=o", "data=cifar10"), "no key data"),
        (("export",), "run=FOLDER"),
        (("export", "run=r"), "out=FOLDER"),
        (("export", "run=r", "out=o"), "r is neither a run of a study (no run.json) nor a model folder"),
        (("export", "run=r", "out=o", "format=onnx"), "must be one of pth, safetensors, varscale"),
        (("export", "run=r", "out=o", "+format_=pth"), "Did you mean format?"),
    ],
)
def test_bad_input(tmp_path: Path, call: Call, arguments: tuple[str, ...], message: str) -> None:
    (tmp_path / "broken.pth").write_bytes(b"PK\x03\x04 and no more")
    save_file({"conv.weight": torch.zeros(1)}, tmp_path / "other.safetensors")
    code, text = call(*arguments)
    assert code == 2 and message in text, text
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("verb", ["import", "export"])
def test_the_configuration_is_printed(call: Call, verb: str) -> None:
    code, text = call(verb, "--cfg", "job")
    assert code == 0 and "out: null" in text
