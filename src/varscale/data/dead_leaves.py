"""Dead leaves: procedural, class-conditional images of overlapping discs; nothing to download, and no end.

Image i is a pure function of (seed, split, i). The class decides the palette. The *easy* setting (few large leaves, no
noise) has the low entropy at which a small ladder of models shows a law; the *rich* one (many small leaves, jittered
colours, pixel noise) is nearer to photographs.
Source: the dead leaves model (Matheron 1968; Lee, Mumford and Huang 2001), radii with density ~ r^-3 as there.
Shapes: B images, J leaves, R resolution, P colours of a palette.
"""

from __future__ import annotations

import colorsys
from dataclasses import asdict, dataclass

import numpy as np

from varscale.data.counter import counter_hash, integers, uniform
from varscale.data.source import DataError, ImageBatch, Split, check_indices, check_resolution, fingerprint_of, to_batch

_CHUNK_PIXELS = 2**16  # rendered together: 64 images of 32 px, which stay in the cache of one core
_RECIPE = 1  # changes when the same settings would give other pixels
_SPLIT_NUMBER = {"train": 0, "val": 1}
# One number for each quantity that is drawn, part of the name that is hashed.
_LABEL, _GROUND, _X, _Y, _RADIUS, _COLOUR, _JITTER, _NOISE = range(8)


@dataclass(frozen=True)
class LeafSetting:
    """How hard the images are. Radii are shares of the side; jitter and noise are standard deviations in [0, 255]."""

    leaves: int
    radius_min: float
    radius_max: float
    colour_jitter: float
    pixel_noise: float


SETTINGS = {
    "easy": LeafSetting(leaves=6, radius_min=0.2, radius_max=0.5, colour_jitter=0.0, pixel_noise=0.0),
    "rich": LeafSetting(leaves=20, radius_min=0.08, radius_max=0.4, colour_jitter=14.0, pixel_noise=6.0),
}


def palettes(num_classes: int) -> np.ndarray:
    """The colours of each class, float32 (num_classes, P, 3) in [0, 255]; colour 0 is the ground.

    Three tones of the class's hue and two of an accent. Hues lie evenly on the circle; the accent's distance follows
    the golden ratio, so that classes with neighbouring hues differ in their accents.
    """
    colours = []
    for c in range(num_classes):
        hue, accent = c / num_classes, c / num_classes + 0.25 + 0.5 * (c * 0.618034 % 1)
        tones = [(hue, 0.75, 0.35), (hue, 0.85, 0.80), (hue, 0.30, 0.95), (accent, 0.70, 0.60), (accent, 0.45, 0.95)]
        colours.append([colorsys.hsv_to_rgb(h % 1, s, v) for h, s, v in tones])
    return np.array(colours, dtype=np.float32) * 255


class DeadLeaves:
    """Dead leaves images; an ``ImageSource`` whose training split is infinite.

    Args:
        resolution: side in pixels.
        num_classes: classes, each with its palette.
        setting: ``easy`` or ``rich`` (see ``SETTINGS``).
        leaves: leaves an image, instead of the setting's number.
        seed: names the data set: another seed is other images, in both splits.
        val_size: images of the validation split.

    Raises:
        DataError: for an unknown setting or a number below 1.
    """

    def __init__(
        self,
        *,
        resolution: int = 32,
        num_classes: int = 10,
        setting: str = "easy",
        leaves: int | None = None,
        seed: int = 0,
        val_size: int = 2000,
    ) -> None:
        if setting not in SETTINGS:
            raise DataError(f"unknown setting {setting!r} of dead leaves; it is one of {', '.join(SETTINGS)}")
        self.setting = SETTINGS[setting]
        self.leaves = self.setting.leaves if leaves is None else leaves
        for what, value in (("num_classes", num_classes), ("leaves", self.leaves), ("val_size", val_size)):
            if value < 1:
                raise DataError(f"{what} of dead leaves is {value}; it must be at least 1")
        self.name = "dead_leaves" if setting == "easy" else f"dead_leaves_{setting}"
        self.resolution = check_resolution(resolution)
        self.num_classes = num_classes
        self.seed = seed
        self.val_size = val_size
        self.palettes = palettes(num_classes)

    @property
    def fingerprint(self) -> str:
        """Hash of the settings: they decide everything."""
        return fingerprint_of(
            source="dead_leaves",
            recipe=_RECIPE,
            resolution=self.resolution,
            num_classes=self.num_classes,
            leaves=self.leaves,
            seed=self.seed,
            val_size=self.val_size,
            **{key: value for key, value in asdict(self.setting).items() if key != "leaves"},
        )

    def size(self, split: Split) -> int | None:
        """``None`` (infinite) for training, ``val_size`` for validation."""
        return self.val_size if split == "val" else None

    def read(self, split: Split, indices: np.ndarray, draw: np.ndarray | int) -> ImageBatch:
        """Render the images; ``draw`` has no effect, for nothing is augmented. At 32 px 40,000 easy images/s a core."""
        ids = check_indices(self.name, split, indices, self.size(split))
        labels = integers(self.num_classes, self.seed, _SPLIT_NUMBER[split], ids, _LABEL)
        images = np.empty((len(ids), 3, self.resolution, self.resolution), dtype=np.uint8)
        chunk = max(1, _CHUNK_PIXELS // self.resolution**2)
        for start in range(0, len(ids), chunk):
            part = slice(start, start + chunk)
            images[part] = self._render(_SPLIT_NUMBER[split], ids[part], labels[part])
        return to_batch(images, labels, ids)

    def _render(self, split: int, ids: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """uint8 (B, 3, R, R). Only exactly rounded operations, so that no value depends on its place in the batch."""
        setting, side = self.setting, self.resolution
        image, leaf = ids[:, None], np.arange(self.leaves)
        x_BJ, y_BJ = (uniform(self.seed, split, image, what, leaf) * side for what in (_X, _Y))
        # Density ~ r^-3 between the radii: 1 / r^2 is uniform.
        low, high = 1 / setting.radius_max / setting.radius_max, 1 / setting.radius_min / setting.radius_min
        r_BJ = side / np.sqrt(low + (high - low) * uniform(self.seed, split, image, _RADIUS, leaf))
        tone_BJ = integers(self.palettes.shape[1], self.seed, split, image, _COLOUR, leaf)
        colour_BJ3 = self.palettes[labels[:, None], tone_BJ]
        if setting.colour_jitter:
            channel = np.arange(3)
            bits = counter_hash(self.seed, split, ids[:, None, None], _JITTER, leaf[:, None], channel)
            colour_BJ3 = colour_BJ3 + setting.colour_jitter * _bell(bits, count=1)[..., 0]

        pixel = np.arange(side) + 0.5
        canvas = np.empty((len(ids), 3, side, side), dtype=np.float32)
        canvas[:] = self.palettes[labels, 0][:, :, None, None]
        change = np.empty_like(canvas)
        for j in range(self.leaves):
            # (r^2 - d^2) / 2r + 1/2, cut to [0, 1], is the covered share of a pixel to first order: smooth edges
            # without a square root for each pixel.
            x, y, r = (value[:, j, None] for value in (x_BJ, y_BJ, r_BJ))
            across = (0.5 + r / 2 - (pixel - x) ** 2 / (2 * r)).astype(np.float32)
            down = ((pixel - y) ** 2 / (2 * r)).astype(np.float32)
            cover = across[:, None, None, :] - down[:, None, :, None]
            np.clip(cover, 0, 1, out=cover)
            np.subtract(colour_BJ3[:, j, :, None, None], canvas, out=change)
            change *= cover
            canvas += change
        if setting.pixel_noise:
            groups = -(-3 * side * side // 2)
            bits = counter_hash(self.seed, split, ids[:, None], _NOISE, np.arange(groups))
            noise = _bell(bits, count=2).reshape(len(ids), -1)[:, : 3 * side * side].reshape(canvas.shape)
            canvas += np.float32(setting.pixel_noise) * noise
        canvas += 0.5
        return np.clip(canvas, 0, 255, out=canvas).astype(np.uint8)


def _bell(bits: np.ndarray, *, count: int) -> np.ndarray:
    """float32 (..., count) of mean 0 and deviation 1: sums of four bytes of each hash, close to normal."""
    octets = bits.astype("<u8")[..., None].view(np.uint8)[..., : 4 * count].reshape(*bits.shape, count, 4)
    total = octets.sum(axis=-1, dtype=np.int32)
    deviation = np.sqrt(4 * (256**2 - 1) / 12)  # of a sum of four uniform bytes
    return ((total - 510) / deviation).astype(np.float32)
