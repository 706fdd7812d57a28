"""The verbs sample and edit on a small model folder: files, continuation, and what they refuse."""

from __future__ import annotations

import errno
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np
import pytest
import torch
from omegaconf import DictConfig, OmegaConf
from PIL import Image

from varscale.app import edit as edit_verb
from varscale.app import sample as sample_verb
from varscale.app.cli import main
from varscale.app.model_folder import open_model
from varscale.app.resources import resources_root
from varscale.codes import CodeSpec
from varscale.evaluation import image_files
from varscale.evaluation.image_files import ImageFilesError
from varscale.models.sampling import Sampler, sample
from varscale.models.shape import ladder_rule
from varscale.models.storage import save_pretrained
from varscale.models.var import VAR
from varscale.records import atomic_write
from varscale.tokenizers.autoencoder import VQAutoencoder

R, V, CLASSES = 32, 64, 3
BOX = "edit.box=[0.25,0.25,0.75,0.75]"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder with random weights, 32 px."""
    torch.manual_seed(0)
    tokenizer = VQAutoencoder(resolution=R, vocabulary=V, width=32, blocks=1, kmeans_start=False).eval()
    model = VAR(
        ladder_rule(16),
        schedule=tokenizer.schedule,
        code=CodeSpec.index(V),
        latent_channels=tokenizer.latent_channels,
        num_classes=CLASSES,
        head_std=1.0,
    )
    path = tmp_path_factory.mktemp("models") / "tiny"
    save_pretrained(path, model.eval(), tokenizer)
    return path


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("photos") / "photo.png"
    noise = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    Image.fromarray(noise).resize((80, 60), Image.Resampling.BICUBIC).save(path)
    return path


def config(*overrides: str) -> DictConfig:
    """The configuration of both verbs, without the second that Hydra takes to compose it."""
    conf = resources_root() / "conf"
    study = OmegaConf.load(conf / "study.yaml")
    cfg = OmegaConf.create({"sample": study.sample, "edit": study.edit, "paths": {"tokenizer": None, "runs": "runs"}})
    cfg.trainer = OmegaConf.load(conf / "trainer" / "cpu.yaml")
    merged = OmegaConf.merge(cfg, OmegaConf.from_dotlist(list(overrides)))
    assert isinstance(merged, DictConfig)
    return merged


def command(folder: Path, out: Path, *overrides: str) -> list[str]:
    return [f"sample.run={folder}", f"sample.out={out}", "sample.images=7", "sample.batch=3", *overrides]


def drawn(folder: Path, out: Path, *overrides: str) -> None:
    sample_verb.main(config(*command(folder, out, *overrides)))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_model_folder_gives_a_grid(folder: Path, tmp_path: Path) -> None:
    drawn(folder, tmp_path / "out")
    assert set(contents(tmp_path / "out")) == {"samples.png", "coarse_to_fine.png"}


def test_png_and_npz_hold_the_same_images_in_any_batch(folder: Path, tmp_path: Path) -> None:
    settings = ["sample.top_k=40", "sample.top_p=0.9", "sample.smooth=true"]
    drawn(folder, tmp_path / "png", "sample.format=png", *settings)
    drawn(folder, tmp_path / "npz", "sample.format=npz", "sample.batch=7", *settings)
    archive = np.load(tmp_path / "npz" / "samples.npz")["arr_0"]
    assert archive.shape == (7, R, R, 3) and archive.dtype == np.uint8
    files = [np.asarray(Image.open(tmp_path / "png" / f"{n:06d}.png")) for n in range(7)]
    assert np.abs(archive.astype(int) - np.stack(files)).max() <= 1  # rounding of products may differ by batch
    assert len({image.tobytes() for image in archive}) == 7
    manifest = json.loads((tmp_path / "npz" / "samples.json").read_text())
    assert manifest["sampler"]["top_k"] == 40 and manifest["images"] == 7


def test_per_class_draws_each_class_as_often(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    labels: list[int] = []
    generate = sample_verb.generate

    def recorded(model: VAR, pyramid: object, labels_B: torch.Tensor, **settings: object) -> object:
        labels.extend(labels_B.tolist())
        return generate(model, pyramid, labels_B, **settings)  # type: ignore[arg-type]

    monkeypatch.setattr(sample_verb, "generate", recorded)
    drawn(folder, tmp_path / "out", "sample.format=png", "sample.per_class=2")
    assert sorted(labels) == [0, 0, 1, 1, 2, 2]
    assert len(list((tmp_path / "out").glob("*.png"))) == 6


@pytest.mark.parametrize("file_format", ["png", "npz"])
def test_a_full_disk_while_sampling(
    folder: Path, tmp_path: Path, file_format: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Told with the remedy; the same command continues, and the result is that of an undisturbed one."""

    @contextmanager
    def full(path: Path) -> Iterator[IO[bytes]]:
        with atomic_write(path) as file:
            yield file
            if path.name in ("000004.png", "samples.npz"):
                raise OSError(errno.ENOSPC, "No space left on device")

    settings = [f"sample.format={file_format}"]
    with monkeypatch.context() as patched:
        patched.setattr(image_files, "atomic_write", full)
        with pytest.raises(ImageFilesError, match=r"No space left on device.*type the same command again to continue"):
            drawn(folder, tmp_path / "a", *settings)
    assert not list((tmp_path / "a").glob("*.tmp")) and not (tmp_path / "a" / "samples.npz").exists()
    assert not (tmp_path / "a" / "000004.png").exists()
    drawn(folder, tmp_path / "a", *settings)
    drawn(folder, tmp_path / "b", *settings)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_an_interrupted_command_draws_only_what_is_missing(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[int]] = []
    generate = sample_verb.generate

    def interrupted(*arguments: object, images: list[int], **settings: object) -> object:
        asked.append(images)
        if len(asked) == 2:
            raise KeyboardInterrupt
        return generate(*arguments, images=images, **settings)  # type: ignore[arg-type]

    monkeypatch.setattr(sample_verb, "generate", interrupted)
    settings = ["sample.format=png", "sample.seed=4"]
    with pytest.raises(KeyboardInterrupt):
        drawn(folder, tmp_path / "a", *settings)
    drawn(folder, tmp_path / "a", *settings)
    assert asked == [[0, 1, 2], [3, 4, 5], [3, 4, 5], [6]]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["sample.top_k=65"], "top_k is 65, but the codebook has 64 codes"),
        (["sample.labels=[0,4]"], "sample.labels is [0, 4]; the model's classes are 0 to 2, and 3 draws without"),
        (["sample.guidance_per_scale=[1,2]"], "guidance has 2 values, but the model has 6 scales"),
        (["sample.temperature_per_scale=[0,1,1,1,1,1]"], "it must be above 0"),
        (["sample.precision=fp8"], "precision is 'fp8'; it must be one of fp32, bf16"),
        (["sample.format=gif"], "it must be one of grid, png, npz"),
        (["sample.images=0"], "sample.images is 0; it must be at least 1"),
        (["sample.per_class=0"], "sample.per_class is 0"),
        (["sample.batch=0"], "sample.batch is 0"),
        (["sample.run=nowhere"], "neither a run of a study"),
    ],
)
def test_sample_refuses(folder: Path, tmp_path: Path, overrides: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        drawn(folder, tmp_path / "out", "sample.format=png", *overrides)
    assert not (tmp_path / "out").exists()


def test_other_settings_are_not_mixed_in(folder: Path, tmp_path: Path) -> None:
    drawn(folder, tmp_path / "out", "sample.format=png")
    with pytest.raises(ImageFilesError, match="seed 0 there, 1 now"):
        drawn(folder, tmp_path / "out", "sample.format=png", "sample.seed=1")


def test_bf16_draws_images(folder: Path, tmp_path: Path) -> None:
    drawn(folder, tmp_path / "out", "sample.format=npz", "sample.precision=bf16")
    assert np.load(tmp_path / "out" / "samples.npz")["arr_0"].std() > 0


def test_the_verb_draws_what_python_draws(folder: Path, tmp_path: Path) -> None:
    drawn(folder, tmp_path / "out", "sample.format=npz", "sample.batch=7")
    model, tokenizer = open_model(folder, None)  # type: ignore[arg-type]
    ids_BL = sample(model, tokenizer.pyramid, torch.arange(7) % CLASSES, sampler=Sampler(), seed=0)
    pixels = np.load(tmp_path / "out" / "samples.npz")["arr_0"]
    expected = (tokenizer.decode(ids_BL) + 1).permute(0, 2, 3, 1).numpy() * 127.5
    assert np.abs(pixels - expected).max() <= 0.51


def edited(folder: Path, photo: Path, tmp_path: Path, *overrides: str) -> None:
    settings = [f"edit.run={folder}", f"edit.image={photo}", f"edit.out={tmp_path}/edits", "edit.images=2"]
    edit_verb.main(config(*settings, *overrides))


@pytest.mark.parametrize(
    "settings", [["edit.mode=outpaint"], ["edit.mode=class", "edit.label=1"], ["edit.smooth=true"]]
)
def test_edits_are_written_side_by_side(folder: Path, photo: Path, tmp_path: Path, settings: list[str]) -> None:
    edited(folder, photo, tmp_path, BOX, *settings)
    assert set(contents(tmp_path / "edits")) == {"side_by_side.png", "000000.png", "000001.png"}
    first, second = (np.asarray(Image.open(tmp_path / "edits" / f"00000{n}.png")) for n in range(2))
    assert first.shape == (R, R, 3) and not np.array_equal(first, second)
    picture = Image.open(tmp_path / "edits" / "side_by_side.png")
    cell = (picture.width - 3 * 2) // 4
    marked = np.asarray(picture.crop((cell + 2, picture.height - cell, 2 * cell + 2, picture.height)).convert("L"))
    inside = marked[cell // 2, cell // 2]
    assert inside == (0 if settings == ["edit.mode=outpaint"] else 255) and marked[1, 1] == 255 - inside


def test_a_mask_picture_selects_what_a_box_selects(folder: Path, photo: Path, tmp_path: Path) -> None:
    """White on black at another size: the mask goes the way of the image, through resizing and cropping."""
    white = np.zeros((120, 160), dtype=np.uint8)
    # The square that the model sees is the middle 32 of 36 rows, and of 48 columns.
    top, left, side = 120 * 2 / 36, 160 * 8 / 48, 120 * 32 / 36
    white[round(top + side / 4) : round(top + side * 3 / 4), round(left + side / 4) : round(left + side * 3 / 4)] = 255
    Image.fromarray(white).save(tmp_path / "mask.png")
    edited(folder, photo, tmp_path, f"edit.mask={tmp_path}/mask.png")
    by_mask = contents(tmp_path / "edits")
    edited(folder, photo, tmp_path, BOX)
    assert contents(tmp_path / "edits") == by_mask


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["edit.box=[0.5,0.5,1.5,0.9]"], "it must be x0, y0, x1, y1 in [0, 1]"),
        (["edit.box=[0.8,0.1,0.2,0.9]"], "x0 must be below x1"),
        ([BOX, "edit.label=4"], "edit.label is 4; the model's classes are 0 to 2, and 3 draws without a class"),
        ([BOX, "edit.mode=class"], "edit.mode=class needs the class to draw; give edit.label, 0 to 2"),
        ([BOX, "edit.mode=erase"], "it must be one of inpaint, outpaint, class"),
        ([BOX, "edit.mask=mask.png"], "give one of them"),
        ([], "give one of them"),
        ([BOX, "edit.top_k=65"], "top_k is 65, but the codebook has 64 codes"),
        ([BOX, "edit.images=0"], "edit.images is 0"),
        ([BOX, "edit.image=null"], "edit.image has no value"),
        ([BOX, "edit.image=nowhere.png"], "there is no image nowhere.png"),
        ([BOX, "edit.image={small}"], "is 40 x 7 px; its shorter side must have at least 8 px"),
        ([BOX, "edit.image={text}"], "is no image that can be decoded"),
        (["edit.mask={wide}"], "with another aspect ratio it is open what the mask covers"),
        (["edit.mask={text}"], "is no image that can be decoded"),
        (["edit.mask={black}"], "no token of the 8 x 8 grid lies inside the selection"),
    ],
)
def test_edit_refuses(folder: Path, photo: Path, tmp_path: Path, overrides: list[str], message: str) -> None:
    files = {name: tmp_path / f"{name}.png" for name in ("small", "wide", "black", "text")}
    Image.new("RGB", (40, 7)).save(files["small"])
    Image.new("L", (90, 60), 255).save(files["wide"])
    Image.new("L", (80, 60)).save(files["black"])
    files["text"].write_text("not an image")
    with pytest.raises(ValueError, match=re.escape(message)):
        edited(folder, photo, tmp_path, *(override.format(**files) for override in overrides))
    assert not (tmp_path / "edits").exists()


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def test_the_command_line(
    folder: Path, photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ctrl-C, continuing, a misspelt key and a wrong value, as a user meets them."""
    outputs = f"paths.outputs={tmp_path}/outputs"
    arguments = ["sample", outputs, *command(folder, tmp_path / "out", "sample.format=npz")]
    with monkeypatch.context() as patched:
        patched.setattr(sample_verb, "to_bytes", interrupt)
        assert main(arguments) == 130
    assert "type the same command again to continue" in capsys.readouterr().err
    assert main(arguments) == 0
    assert (tmp_path / "out" / "samples.npz").exists()
    assert main([*arguments, "sample.tpo_k=3"]) == 2
    assert "Did you mean sample.top_k?" in capsys.readouterr().err
    edits = ["edit", outputs, f"edit.run={folder}", f"edit.image={photo}", f"edit.out={tmp_path}/edits"]
    assert main([*edits, "edit.box=[0.5,0.5,1.5,0.9]"]) == 2
    assert "it must be x0, y0, x1, y1 in [0, 1]" in capsys.readouterr().err
    assert main([*edits, BOX]) == 0
    assert len(list((tmp_path / "edits").iterdir())) == 5
