"""The model card: what a trained model is, what it saw and how well it does. Nothing is guessed: unknown is said.

Source of the form: Mitchell et al., Model Cards for Model Reporting, arXiv:1810.03993.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from varscale.models.counting import count_parameters, train_flops_per_image
from varscale.models.var import VAR
from varscale.tokenizers.autoencoder import VQAutoencoder

UNKNOWN = "not known"
FOLDER_USE = """\
```python
from varscale.models.storage import from_pretrained

loaded = from_pretrained("FOLDER")  # loaded.model, loaded.tokenizer
```

`varscale sample sample.run=FOLDER` draws images; `paths.tokenizer=FOLDER` trains on the same tokenizer.
"""
RELEASED_USE = """\
The files hold the state dicts of transformer and tokenizer by the names of FoundationVision/VAR, for its `VAR` and
`VQVAE` with the settings above. `varscale import tokenizer={vae} model={var} out=FOLDER` reads them back.
"""


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What the weights alone do not tell; ``None`` is "not known".

    Args:
        source: where the weights come from, such as file names and checksums.
        data: what the transformer was trained on.
        tokenizer_data: what the tokenizer was trained on.
        images_seen, tokens_seen: of stage 2, repeats counted.
        flops_train: realised training compute and the rule it was counted by, as text.
        val_nats_per_token_avg, val_nats_per_token_last: held-out cross-entropy, nat/token.
        val_images: images behind it.
        study: the study and the design that planned the run.
        law: the scaling law the run is part of.
    """

    source: str | None = None
    data: str | None = None
    tokenizer_data: str | None = None
    images_seen: float | None = None
    tokens_seen: float | None = None
    flops_train: str | None = None
    val_nats_per_token_avg: float | None = None
    val_nats_per_token_last: float | None = None
    val_images: float | None = None
    study: str | None = None
    law: str | None = None

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of ``to_dict``; raises ``TypeError`` for a key of another version."""
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return dataclasses.asdict(self)


def describe(model: VAR, tokenizer: VQAutoencoder) -> dict[str, str]:
    """What can be read off the modules themselves: a label and a value for each line of a summary."""
    counts, schedule = count_parameters(model), model.schedule
    attention = model.blocks[0].attention
    return {
        "transformer": f"VAR, depth {model.depth}, width {model.width}, {model.heads} heads of {attention.head_dim}",
        "parameters": f"{counts.params_total:,} in all, {counts.params_nonembed:,} without embeddings, "
        f"{counts.params_blocks:,} in the blocks",
        "AdaLN": "one linear shared by all blocks" if model.shared_adaln else "one linear a block",
        "attention": "L2-normalised queries and keys" if attention.l2_norm else "softmax scale 0.25 / sqrt(head dim)",
        "classes": f"{model.num_classes} and the null class",
        "schedule": f"{schedule}, {schedule.num_tokens} tokens an image",
        "training cost": f"{train_flops_per_image(model):.4g} FLOP an image (rule dense)",
        "tokenizer": describe_tokenizer(tokenizer),
    }


def describe_tokenizer(tokenizer: VQAutoencoder) -> str:
    """The tokenizer in one line."""
    config = tokenizer.config
    phi = f"{config.refiners} shared" if config.refiners is not None else "one a scale"
    return (
        f"{config.trunk} trunk of width {config.width}, {config.resolution} px, codebook {config.vocabulary} x "
        f"{config.latent_channels}, phi {phi}, {sum(p.numel() for p in tokenizer.parameters()):,} parameters, "
        f"fingerprint {tokenizer.fingerprint}"
    )


def model_card(model: VAR, tokenizer: VQAutoencoder, facts: Facts, *, name: str, use: str = FOLDER_USE) -> str:
    """The card as Markdown, for ``README.md``; ``use`` says how the files beside it are loaded."""
    known = {
        "source of the weights": facts.source,
        "data of the transformer": facts.data,
        "data of the tokenizer": facts.tokenizer_data,
        "images seen": _number(facts.images_seen, ", repeats counted"),
        "tokens seen": _number(facts.tokens_seen, ", repeats counted"),
        "training compute": facts.flops_train,
        "held-out cross-entropy, all tokens": _number(facts.val_nats_per_token_avg, " nat/token"),
        "held-out cross-entropy, last scale": _number(facts.val_nats_per_token_last, " nat/token"),
        "held-out images": _number(facts.val_images),
        "study": facts.study,
        "scaling law it belongs to": facts.law,
    }
    return (
        "---\nlibrary_name: varscale\ntags: [image-generation, visual-autoregressive, scaling-laws]\n---\n"
        f"# {name}\n\n"
        "A class-conditional image model that predicts token maps from coarse to fine (VAR, arXiv:2404.02905), "
        "and its tokenizer.\n\n"
        f"## The model\n\n{_table(describe(model, tokenizer))}\n"
        f"## Training and evaluation\n\n{_table(known)}\n"
        "Losses are cross-entropies of token ids under this tokenizer: they compare only with models of the same "
        "tokenizer, data and held-out images.\n\n"
        f"## Use\n\n{use}"
    )


def _table(rows: Mapping[str, str | None]) -> str:
    lines = [f"| {label} | {UNKNOWN if value is None else _cell(value)} |" for label, value in rows.items()]
    return "\n".join(["| | |", "|---|---|", *lines, ""])


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", "<br>")


def _number(value: float | None, unit: str = "") -> str | None:
    if value is None:
        return None
    return (f"{value:,.0f}" if value >= 1000 or value == int(value) else f"{value:.4f}") + unit
