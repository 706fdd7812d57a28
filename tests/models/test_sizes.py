"""Published sizes: parameters and FLOPs of every depth of the paper's family, to the last printed digit.

Source: specs/var.md, sections 2.6 and 2.7.
"""

from __future__ import annotations

from functools import cache

import pytest
import torch

from varscale.codes import CodeSpec
from varscale.models.counting import attention_pairs, count_parameters, forward_flops, train_flops_per_image
from varscale.models.var import VAR
from varscale.schedule import VAR_256, VAR_512, VAR_1024, ScaleSchedule

# depth, width, total, non-embedding, blocks, total with shared AdaLN, total at 512 px, that with shared AdaLN
SIZES = [
    (6, 384, 18_492_580, 17_830_180, 15_957_540, 14_071_204, 19_091_620, 14_670_244),
    (8, 512, 41_315_904, 40_432_704, 37_806_144, 30_308_928, 42_114_624, 31_107_648),
    (10, 640, 78_367_716, 77_263_716, 73_817_700, 56_253_156, 79_366_116, 57_251_556),
    (12, 768, 133_186_960, 131_862_160, 127_531_152, 94_263_184, 134_385_040, 95_461_264),
    (14, 896, 209_312_580, 207_766_980, 202_485_444, 146_698_308, 210_710_340, 148_096_068),
    (16, 1024, 310_283_520, 308_517_120, 302_219_520, 215_917_824, 311_880_960, 217_515_264),
    (18, 1152, 439_638_724, 437_651_524, 430_272_324, 304_281_028, 441_435_844, 306_078_148),
    (20, 1280, 600_917_136, 598_709_136, 590_182_800, 414_147_216, 602_913_936, 416_144_016),
    (22, 1408, 797_657_700, 795_228_900, 785_489_892, 547_875_684, 799_854_180, 550_072_164),
    (24, 1536, 1_033_399_360, 1_030_749_760, 1_019_732_544, 707_825_728, 1_035_795_520, 710_221_888),
    (26, 1664, 1_311_681_060, 1_308_810_660, 1_296_449_700, 896_356_644, 1_314_276_900, 898_952_484),
    (28, 1792, 1_636_041_744, 1_632_950_544, 1_619_180_304, 1_115_827_728, 1_638_837_264, 1_118_623_248),
    (30, 1920, 2_010_020_356, 2_006_708_356, 1_991_463_300, 1_368_598_276, 2_013_015_556, 1_371_593_476),
    (36, 2304, 3_465_053_200, 3_461_078_800, 3_441_016_080, 2_350_299_664, 3_468_647_440, 2_353_893_904),
]
# depth, GF an image: forward, training, training with block-sparse attention; attention's share of the forward
FLOPS = [
    (6, "20.87", "62.6", "57.7", "0.204"),
    (8, "44.70", "134.1", "125.5", "0.169"),
    (10, "82.33", "247.0", "233.5", "0.144"),
    (12, "136.96", "410.9", "391.4", "0.124"),
    (14, "211.80", "635.4", "608.9", "0.110"),
    (16, "310.06", "930.2", "895.6", "0.098"),
    (18, "434.96", "1304.9", "1261.1", "0.088"),
    (20, "589.71", "1769.1", "1715.1", "0.080"),
    (22, "777.51", "2332.5", "2267.1", "0.074"),
    (24, "1001.58", "3004.8", "2926.9", "0.068"),
    (26, "1265.14", "3795.4", "3704.1", "0.063"),
    (28, "1571.38", "4714.1", "4608.2", "0.059"),
    (30, "1923.52", "5770.6", "5648.9", "0.055"),
    (36, "3287.46", "9862.4", "9687.2", "0.047"),
]


@cache
def released(depth: int, schedule: ScaleSchedule = VAR_256, shared_adaln: bool = False) -> VAR:
    with torch.device("meta"):
        return VAR.by_depth(
            depth, schedule=schedule, code=CodeSpec.index(4096), latent_channels=32, num_classes=1000,
            shared_adaln=shared_adaln,
        )  # fmt: skip


@pytest.mark.parametrize(("depth", "width", "total", "nonembed", "blocks", "shared", "total_512", "shared_512"), SIZES)
def test_parameters(
    depth: int, width: int, total: int, nonembed: int, blocks: int, shared: int, total_512: int, shared_512: int
) -> None:
    model = released(depth)
    counts = count_parameters(model)
    assert (model.width, counts.params_total, counts.params_nonembed, counts.params_blocks) == (
        width, total, nonembed, blocks
    )  # fmt: skip
    assert count_parameters(released(depth, shared_adaln=True)).params_total == shared
    assert count_parameters(released(depth, VAR_512)).params_total == total_512
    assert count_parameters(released(depth, VAR_512, shared_adaln=True)).params_total == shared_512


@pytest.mark.parametrize(("depth", "forward", "train", "blocksparse", "share"), FLOPS)
def test_flops(depth: int, forward: str, train: str, blocksparse: str, share: str) -> None:
    model = released(depth)
    dense = forward_flops(model, attention_pairs=attention_pairs(VAR_256, "dense"))
    assert f"{dense / 1e9:.2f}" == forward
    assert f"{train_flops_per_image(model) / 1e9:.1f}" == train
    assert f"{train_flops_per_image(model, 'blocksparse') / 1e9:.1f}" == blocksparse
    assert f"{1 - forward_flops(model, attention_pairs=0) / dense:.3f}" == share
    assert train_flops_per_image(model, "forward_macs") == train_flops_per_image(model) / 6
    assert train_flops_per_image(model, "6nd") == 6 * count_parameters(model).params_nonembed * 680


def test_flops_of_the_512_px_model() -> None:
    model = released(36, VAR_512, shared_adaln=True)
    assert f"{forward_flops(model, attention_pairs=2240**2) / 1e12:.2f}" == "11.98"


def test_published_schedules() -> None:
    assert [(s.num_scales, s.num_tokens) for s in (VAR_256, VAR_512, VAR_1024)] == [(10, 680), (10, 2240), (14, 9451)]
    assert (VAR_256.attended_pairs, VAR_512.attended_pairs) == (286_434, 3_269_850)


def test_matrix_weights_of_the_blocks_are_18_d_width_squared() -> None:
    model = released(8)
    matrices = sum(p.numel() for block in model.blocks for p in block.parameters() if p.ndim == 2)
    assert matrices == 18 * 8 * 512**2
