"""Views of a model that go into a folder: strip and animation from coarse to fine, and what tokens attend to.

``sample`` writes them for the largest run of a study, ``inspect`` for any model and image.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure
from torch import Tensor
from tqdm import tqdm

from varscale.app.run_folders import ANIMATION, ATTENTION_HEADS, ATTENTION_SCALES, ATTENTION_SHARES, STRIP
from varscale.evaluation.animation import animation_bytes, animation_frames, decode_stages
from varscale.evaluation.attention_figures import MapRow, hierarchy_figure, maps_figure
from varscale.evaluation.attention_maps import Query, attention_maps, attention_shares, uniform_shares
from varscale.evaluation.pictures import strip_picture, to_bytes
from varscale.models.var import VAR
from varscale.records import atomic_write
from varscale.tokenizers.autoencoder import VQAutoencoder
from varscale.tokenizers.tokens import TokenBatch

STRIP_IMAGES = 4
MANY, FEW, LARGE_PX = 16, 4, 128  # images in an animation: few where one is larger than this
HEADS_SHOWN = 8
DPI = 200


def write_animation(folder: Path, tokenizer: VQAutoencoder, ids_BL: Tensor) -> Path:
    """Write the animation of the first images; returns its path."""
    shown = ids_BL[: FEW if tokenizer.resolution > LARGE_PX else MANY]
    frames = animation_frames(decode_stages(tokenizer, shown), tokenizer.schedule)
    with atomic_write(folder / ANIMATION) as file:
        file.write(animation_bytes(frames))
    return folder / ANIMATION


def write_views(folder: Path, model: VAR, tokenizer: VQAutoencoder, ids_BL: Tensor, labels_B: Tensor) -> list[Path]:
    """Write animation and attention of the first images, at most ``MANY``; returns what was written."""
    ids_BL, labels_B = ids_BL[:MANY], labels_B[:MANY]
    return [write_animation(folder, tokenizer, ids_BL), *write_attention(folder, model, tokenizer, ids_BL, labels_B)]


def write_strip(folder: Path, tokenizer: VQAutoencoder, ids_BL: Tensor) -> Path:
    """Write the strip of the first images; returns its path."""
    with atomic_write(folder / STRIP) as file:
        strip_picture(decode_stages(tokenizer, ids_BL[:STRIP_IMAGES]), tokenizer.schedule).save(file, format="PNG")
    return folder / STRIP


def write_attention(
    folder: Path,
    model: VAR,
    tokenizer: VQAutoencoder,
    ids_BL: Tensor,
    labels_B: Tensor,
    *,
    queries: Sequence[Query] = (),
    block: int | None = None,
) -> list[Path]:
    """Write the maps of one place at every scale, those of the heads for each query, and the shares of the scales.

    Args:
        ids_BL: the token maps; the maps are of the first image, the shares are means over all.
        labels_B: the classes that the model is given.
        queries: by default the token in the middle of the finest map. The first one is the place.
        block: whose heads are shown, from 0; by default the one in the middle.

    Raises:
        ValueError: for a query or a block that does not exist; nothing is written then.
    """
    schedule, depth = model.schedule, model.depth
    _, h, w = schedule.last
    queries = list(queries) or [Query(schedule.num_scales - 1, h // 2, w // 2)]
    block = depth // 2 if block is None else block
    for query in queries:
        query.token(schedule)
    batch = TokenBatch(ids_BL, labels_B, tokenizer.pyramid.inputs(ids_BL))
    first = TokenBatch(batch.ids_BL[:1], labels_B[:1], None if batch.inputs_BNC is None else batch.inputs_BNC[:1])
    image_RR3 = to_bytes(tokenizer.decode(first.ids_BL))[0]
    names = [f"{h} x {w}" for _, h, w in schedule.scales]
    figures: dict[str, Figure] = {}
    steps = tqdm(total=2 + len(queries), desc="attention", unit="figure", delay=2, leave=False)

    weights_QHL = attention_maps(model, first, queries, [block])[0, :, 0].numpy()
    for i, (query, weights_HL) in enumerate(zip(queries, weights_QHL, strict=True)):
        shown = range(min(model.heads, HEADS_SHOWN))
        rows = [MapRow("all heads", query, weights_HL.mean(0))]
        rows += [MapRow(f"head {head + 1}", query, weights_HL[head]) for head in shown]
        title = f"Attention of a token of the {names[query.scale]} map: heads of block {block + 1} of {depth}"
        if len(shown) < model.heads:
            title += f" (the first {len(shown)} of {model.heads} heads)"
        figures[numbered(ATTENTION_HEADS, i)] = maps_figure(rows, schedule, image_RR3, title)
        steps.update()

    places = [queries[0].at_scale(k, schedule) for k in range(schedule.num_scales)]
    weights_KL = attention_maps(model, first, places, range(depth))[0].mean((1, 2)).numpy()
    rows = [MapRow(names[place.scale], place, weights_L) for place, weights_L in zip(places, weights_KL, strict=True)]
    title = "Attention of one place of the image at every scale, mean over blocks and heads"
    figures[ATTENTION_SCALES] = maps_figure(rows, schedule, image_RR3, title)
    steps.update()

    shares_KK = attention_shares(model, batch, range(depth)).mean((0, 1)).numpy()
    title = "Where the attention of each scale goes: mean over blocks, heads, positions and "
    title += f"{len(ids_BL)} image{'s' if len(ids_BL) > 1 else ''}"
    figures[ATTENTION_SHARES] = hierarchy_figure(shares_KK, uniform_shares(schedule).numpy(), schedule, title)
    for name, figure in figures.items():
        with atomic_write(folder / name) as file:
            figure.savefig(file, format="png", dpi=DPI)
    steps.close()
    return [folder / name for name in figures]


def numbered(name: str, i: int) -> str:
    """The name of the i-th of several files: the first keeps its own, the next is ``..._2``."""
    path = Path(name)
    return name if i == 0 else f"{path.stem}_{i + 1}{path.suffix}"
