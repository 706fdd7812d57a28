"""A stored tokenizer: comes back as it was, is refused when damaged, is never half-written."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest
import torch

from varscale.tokenizers.autoencoder import VQAutoencoder
from varscale.tokenizers.storage import TENSORS_FILE, TOKENIZER_FILE, TokenizerError, load_tokenizer, save_tokenizer

METRICS = [{"scale": 0, "psnr_db": 12.5}]


def small(seed: int = 0, **settings: object) -> VQAutoencoder:
    torch.manual_seed(seed)
    return VQAutoencoder(**{"width": 16, "blocks": 1, **settings})


@pytest.mark.parametrize(
    "settings",
    [{}, {"codebook_update": "gradient"}, {"trunk": "released", "width": 32, "resolution": 64, "schedule": "1-2-4"}],
)
def test_round_trip(tmp_path: Path, settings: dict[str, object]) -> None:
    tokenizer = small(**settings)
    tokenizer.pyramid.quantizer.updates.fill_(7)
    save_tokenizer(tmp_path / "new", tokenizer, METRICS, dataset_id="abc")
    loaded = load_tokenizer(tmp_path / "new")
    assert loaded.fingerprint == tokenizer.fingerprint and loaded.config == tokenizer.config
    assert not loaded.training and int(loaded.pyramid.quantizer.updates) == 7
    pixels = torch.rand(2, 3, tokenizer.resolution, tokenizer.resolution) * 2 - 1
    assert torch.equal(loaded.encode(pixels), tokenizer.encode(pixels))
    description = json.loads((tmp_path / "new" / TOKENIZER_FILE).read_text())
    assert description["fingerprint"] == tokenizer.fingerprint
    assert description["metrics"] == METRICS and description["dataset_id"] == "abc"
    assert description["schedule"] == str(tokenizer.schedule) and description["code"] == "index(256)"


def test_refuses_what_is_absent_or_damaged(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=r"no tokenizer in .*does not exist; train one"):
        load_tokenizer(tmp_path)
    save_tokenizer(tmp_path, small(), METRICS)
    tensors = tmp_path / TENSORS_FILE
    whole = tensors.read_bytes()
    weight = whole.index(small().pyramid.quantizer.codebook.detach().numpy().tobytes())
    tensors.write_bytes(whole[:weight] + bytes([whole[weight] ^ 1]) + whole[weight + 1 :])
    with pytest.raises(TokenizerError, match=f"{TOKENIZER_FILE} says {small().fingerprint}: a file was changed"):
        load_tokenizer(tmp_path)
    tensors.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(TokenizerError, match=r"cannot be read .* train it again"):
        load_tokenizer(tmp_path)
    tensors.unlink()
    with pytest.raises(TokenizerError, match=r"cannot be read .* train it again"):
        load_tokenizer(tmp_path)
    description = json.loads((tmp_path / TOKENIZER_FILE).read_text())
    (tmp_path / TOKENIZER_FILE).write_text(json.dumps({**description, "format": 0}))
    with pytest.raises(TokenizerError, match="has format 0, this version reads 1"):
        load_tokenizer(tmp_path)


def test_a_tokenizer_of_other_settings_is_refused(tmp_path: Path) -> None:
    save_tokenizer(tmp_path, small(), METRICS)
    path = tmp_path / TOKENIZER_FILE
    description = json.loads(path.read_text())
    description["config"]["refine_ratio"] = 0.25
    path.write_text(json.dumps(description))
    with pytest.raises(TokenizerError, match="a file was changed"):
        load_tokenizer(tmp_path)


def test_an_interrupted_replacement_leaves_no_mixture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_tokenizer(tmp_path, small(0), METRICS)

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            save_tokenizer(tmp_path, small(1), METRICS)
    assert [path.name for path in tmp_path.iterdir()] == [TENSORS_FILE]  # the old tensors, whole, and no temporary file
    with pytest.raises(TokenizerError, match="no tokenizer"):
        load_tokenizer(tmp_path)
    save_tokenizer(tmp_path, small(1), METRICS)
    assert load_tokenizer(tmp_path).fingerprint == small(1).fingerprint


def test_metrics_must_be_finite(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        save_tokenizer(tmp_path, small(), {"psnr_db": float("nan")})
