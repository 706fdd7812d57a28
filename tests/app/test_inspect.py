"""The verb inspect, on a model folder: what it writes for a file, drawn and held-out images, and what it refuses."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from varscale.app.cli import main
from varscale.models.shape import Shape
from varscale.models.storage import save_pretrained
from varscale.models.var import VAR
from varscale.tokenizers.autoencoder import VQAutoencoder

WRITTEN = {"attention_heads.png", "attention_scales.png", "attention_shares.png"}
WRITTEN |= {"coarse_to_fine.gif", "coarse_to_fine.png"}


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained model of two blocks over four scales, and an image."""
    torch.manual_seed(0)
    tokenizer = VQAutoencoder(resolution=32, schedule="1-2-4-8", width=8, blocks=1, vocabulary=16, latent_channels=4)
    model = VAR(
        Shape(depth=2, width=16, heads=2, drop_path=0.0),
        schedule=tokenizer.schedule,
        code=tokenizer.code,
        latent_channels=4,
        num_classes=3,
    )
    folder = tmp_path_factory.mktemp("model")
    save_pretrained(folder, model.eval(), tokenizer.eval())
    pixels = np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8)
    Image.fromarray(pixels).save(folder / "photo.png")
    return folder


def inspect(model_folder: Path, outputs: Path, *overrides: str) -> int:
    return main(["inspect", f"paths.outputs={outputs}", f"inspect.run={model_folder}", *overrides])


def test_a_file_is_looked_at(model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    queries = "inspect.queries=[[3,7,0],[1,1,1]]"
    out = tmp_path / "views"
    assert (
        inspect(model_folder, tmp_path, f"inspect.image={model_folder}/photo.png", f"inspect.out={out}", queries) == 0
    )
    assert {path.name for path in out.iterdir()} == WRITTEN | {"attention_heads_2.png"}
    with Image.open(out / "coarse_to_fine.gif") as gif:
        assert gif.n_frames == 4
    for path in out.glob("*.png"):
        Image.open(BytesIO(path.read_bytes())).verify()
    assert "class 3, written" in capsys.readouterr().out  # none of the classes 0 to 2


@pytest.mark.parametrize("source", ["inspect.label=2", "inspect.held_out=5"])
def test_drawn_and_held_out_images(model_folder: Path, tmp_path: Path, source: str) -> None:
    data = "data.num_classes=3"
    assert inspect(model_folder, tmp_path, source, data, "inspect.images=2", f"inspect.out={tmp_path}/out") == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == WRITTEN


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["inspect.queries=[[4,0,0]]"], "scales of 1-2-4-8 are 0 to 3"),
        (["inspect.queries=[[1,0]]"], "a query is [scale, row, column]"),
        (["inspect.block=2"], "blocks of this model are 0 to 1"),
        (["inspect.label=4"], "the classes are 0 to 2, and 3 stands for none"),
        (["inspect.images=0"], "inspect.images is 0"),
        (["inspect.image=absent.png"], "there is no image absent.png"),
        (["inspect.image=a.png", "inspect.held_out=1"], "choose one"),
        (["inspect.held_out=-1"], "image -1 is outside the val split"),
        (["sample.top_k=17"], "top_k is 17, but the codebook has 16 codes"),
        (["inspect.run=null"], "no finished run"),
    ],
)
def test_what_is_refused(
    model_folder: Path, tmp_path: Path, overrides: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert inspect(model_folder, tmp_path, f"inspect.out={tmp_path}/out", *overrides) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
