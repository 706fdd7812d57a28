"""Next-scale transformer: predicts all tokens of scale k at once, given the scales before it.

Source: VAR, arXiv:2404.02905, sec. 3.2, and its released code. Differs: label drop is the caller's argument, so a
validation loss has none; attention skips the masked half instead of computing it.
Shapes: B batch, L all tokens, N tokens of one scale (in ``inputs_BNC``: of all scales but the first), D width,
C code channels, V codebook size, K scales.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from varscale.codes import CodeSpec
from varscale.data.order import WHOLE_BATCH, BatchPart
from varscale.models.protocol import Role, ScaleLoss
from varscale.models.shape import Shape, depth_rule, ladder_rule
from varscale.nn.attention import GROUP_TOKENS, KeyValueCache, token_levels
from varscale.nn.blocks import Block, SharedAdaptiveNorms, modulate
from varscale.nn.cross_entropy import cross_entropy
from varscale.nn.linear import Linear
from varscale.schedule import ScaleSchedule
from varscale.tokenizers.tokens import TokenBatch


@dataclass(frozen=True)
class Prepared:
    """What sampling computes once an image and not once a scale. Shapes as in the file's header.

    start_BND: input of the first scale. positions_1LD: position and level embeddings. blocks: six modulations of each
    block. head: scale and shift of the final AdaLN. cache: keys and values of the scales sampled so far.
    """

    start_BND: Tensor
    positions_1LD: Tensor
    blocks: tuple[tuple[Tensor, ...], ...]
    head: tuple[Tensor, ...]
    cache: KeyValueCache


class VAR(nn.Module):
    """The VAR transformer.

    Args:
        shape: depth, width, heads and drop path; see ``by_depth`` and ``by_width``.
        schedule: the scales.
        code: must be an index code.
        latent_channels: C, channels of a teacher-forcing input.
        num_classes: labels 0..num_classes-1; num_classes itself is the null class.
        shared_adaln: one AdaLN linear for all blocks instead of one a block.
        l2_norm: L2-normalised attention.
        adaln_std, adaln_gate_std, head_std: factors on the initial AdaLN scales and shifts, gates, and head weights
            (0.5, 1e-5 and 0.02 in the released code).
        base_width, base_depth: both or neither: the shape whose initialisation and residual branches this one continues
            by the rule CompleteP (arXiv:2505.01618, table 1), for ``optim.lr_rule=complete_p``. Branches are times
            base_depth / depth, embeddings start as those of base_width, the head shrinks as 1 / width, and the last
            matrices of the branches start as those of base_depth. Without them it is as released.
        input_std: standard deviation of the teacher-forcing inputs, which are divided by it. The released code takes
            them as they are (1.0); unit variance learns faster and makes seeds agree (docs/LOG.md).
        dense_attention: compute and mask all L^2 scores, as the released code does.
    """

    level_L: Tensor
    input_std: Tensor

    def __init__(
        self,
        shape: Shape,
        *,
        schedule: ScaleSchedule,
        code: CodeSpec,
        latent_channels: int,
        num_classes: int,
        shared_adaln: bool = False,
        l2_norm: bool = True,
        mlp_ratio: float = 4.0,
        adaln_std: float = 0.5,
        adaln_gate_std: float = 1e-5,
        head_std: float = 0.02,
        base_width: int | None = None,
        base_depth: int | None = None,
        input_std: float = 1.0,
        dense_attention: bool = False,
    ):
        super().__init__()
        given = [base for base in (base_width, base_depth) if base is not None]
        if len(given) == 1 or any(base < 1 for base in given):
            raise ValueError(
                f"model.base_width is {base_width} and model.base_depth {base_depth}; give both, from 1 on, or neither"
            )
        if code.kind != "index":
            raise ValueError(f"VAR predicts an index a token, the tokenizer's code is {code}; use an index tokenizer")
        self.schedule, self.code, self.num_classes = schedule, code, num_classes
        self.depth, self.width, self.heads = shape.depth, shape.width, shape.heads
        self.base_width, self.base_depth = base_width, base_depth
        self.shared_adaln, self.latent_channels = shared_adaln, latent_channels
        # Whether backward computes each block again from its input instead of keeping what is inside: a third more
        # arithmetic, memory for one block instead of all (arXiv:1604.06174). Set by who trains.
        self.checkpoint_blocks = False
        D, L, K, n_0 = shape.width, schedule.num_tokens, schedule.num_scales, schedule.tokens_per_scale[0]

        self.class_embed = nn.Embedding(num_classes + 1, D)
        self.start_1ND = nn.Parameter(torch.empty(1, n_0, D))
        self.position_1LD = nn.Parameter(torch.empty(1, L, D))
        self.level_embed = nn.Embedding(K, D)
        self.word_embed = nn.Linear(latent_channels, D)
        rates = [shape.drop_path * i / max(1, shape.depth - 1) for i in range(shape.depth)]
        group_tokens = L if dense_attention else GROUP_TOKENS
        self.blocks = nn.ModuleList(
            Block(
                D,
                shape.heads,
                schedule,
                mlp_ratio=mlp_ratio,
                drop_path=rate,
                l2_norm=l2_norm,
                shared_adaln=shared_adaln,
                group_tokens=group_tokens,
                branch_scale=1.0 / self.depth_multiplier,
            )
            for rate in rates
        )
        if shared_adaln:
            self.shared_norms = nn.Linear(D, 6 * D)
        self.head_norm = nn.Linear(D, 2 * D)
        self.head = Linear(D, code.size)

        level_L = token_levels(schedule)
        self.register_buffer("level_L", level_L, persistent=False)
        if not input_std > 0:
            raise ValueError(f"the standard deviation of the inputs is {input_std}; it must be above 0")
        self.register_buffer("input_std", torch.tensor(float(input_std)))
        self.initialize(adaln_std, adaln_gate_std, head_std)

    @classmethod
    def by_depth(
        cls,
        depth: int,
        *,
        drop_path: float | None = None,
        schedule: ScaleSchedule,
        code: CodeSpec,
        latent_channels: int,
        num_classes: int,
        shared_adaln: bool = False,
        l2_norm: bool = True,
        adaln_std: float = 0.5,
        adaln_gate_std: float = 1e-5,
        head_std: float = 0.02,
        base_width: int | None = None,
        base_depth: int | None = None,
        standardize_inputs: bool = False,
        input_std: float = 1.0,
    ) -> Self:
        """The paper's family: width 64 d, heads d."""
        return cls(
            depth_rule(depth, drop_path),
            schedule=schedule,
            code=code,
            latent_channels=latent_channels,
            num_classes=num_classes,
            shared_adaln=shared_adaln,
            l2_norm=l2_norm,
            adaln_std=adaln_std,
            adaln_gate_std=adaln_gate_std,
            head_std=head_std,
            base_width=base_width,
            base_depth=base_depth,
            input_std=input_std if standardize_inputs else 1.0,
        )

    @classmethod
    def by_width(
        cls,
        width: int,
        *,
        depth: int = 2,
        head_dim: int = 16,
        schedule: ScaleSchedule,
        code: CodeSpec,
        latent_channels: int,
        num_classes: int,
        shared_adaln: bool = False,
        l2_norm: bool = True,
        adaln_gate_std: float = 1e-5,
        base_width: int | None = None,
        base_depth: int | None = None,
        standardize_inputs: bool = False,
        input_std: float = 1.0,
    ) -> Self:
        """The CPU ladder: fixed depth, growing width."""
        return cls(
            ladder_rule(width, depth, head_dim),
            schedule=schedule,
            code=code,
            latent_channels=latent_channels,
            num_classes=num_classes,
            shared_adaln=shared_adaln,
            l2_norm=l2_norm,
            adaln_gate_std=adaln_gate_std,
            base_width=base_width,
            base_depth=base_depth,
            input_std=input_std if standardize_inputs else 1.0,
        )

    @property
    def width_multiplier(self) -> float:
        """m_N of CompleteP: width / base_width; 1 without a base."""
        return self.width / (self.base_width or self.width)

    @property
    def depth_multiplier(self) -> float:
        """m_L of CompleteP: depth / base_depth; 1 without a base."""
        return self.depth / (self.base_depth or self.depth)

    @torch.no_grad()
    def initialize(self, adaln_std: float, adaln_gate_std: float, head_std: float) -> None:
        """The released initialisation: everything ~ N(0, 1/(3D)), then factors by role; blocks start near identity.

        Sets every parameter, so that calling it again only draws again.
        """
        std = math.sqrt(1 / (3 * self.width))
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.trunc_normal_(module.weight, std=std)
                if isinstance(module, nn.Linear) and module.bias is not None:
                    module.bias.zero_()
        nn.init.trunc_normal_(self.start_1ND, std=std)
        nn.init.trunc_normal_(self.position_1LD, std=std)
        if self.base_width is not None:
            wider = math.sqrt(self.width_multiplier)
            for weight in (self.class_embed.weight, self.level_embed.weight, self.word_embed.weight):
                weight.mul_(wider)
            self.start_1ND.mul_(wider)
            self.position_1LD.mul_(wider)
            self.head.weight.div_(wider)
        branches = math.sqrt(2 * (self.base_depth or self.depth))
        self.head.weight.mul_(head_std)
        self.head_norm.weight.mul_(adaln_std)
        for block in self.blocks:
            assert isinstance(block, Block)
            block.attention.q_bias.zero_()
            block.attention.v_bias.zero_()
            if block.attention.l2_norm:
                block.attention.log_scale_H11.fill_(math.log(4.0))
            block.attention.proj.weight.div_(branches)
            block.feed_forward.down.weight.div_(branches)
            if isinstance(block.norms, SharedAdaptiveNorms):
                block.norms.offset_16D.normal_(std=self.width**-0.5)
                block.norms.offset_16D[:, :2].mul_(adaln_gate_std)
                block.norms.offset_16D[:, 2:].mul_(adaln_std)
            else:
                gates = 2 * self.width
                block.norms.linear.weight[:gates].mul_(adaln_gate_std)
                block.norms.linear.weight[gates:].mul_(adaln_std)

    def embed_positions(self) -> Tensor:
        """(1, L, D): position and level embedding of every token."""
        return self.position_1LD + self.level_embed(self.level_L)

    def embed_words(self, inputs_BNC: Tensor) -> Tensor:
        """Teacher-forcing inputs, or those of a sampled scale, (B, N, C) -> (B, N, D)."""
        out: Tensor = self.word_embed(inputs_BNC / self.input_std)
        return out

    def block_condition(self, cond_BD: Tensor) -> Tensor:
        """What the blocks' AdaLN is given: the condition itself, or (B, 6, D) of the shared linear."""
        if not self.shared_adaln:
            return cond_BD
        out: Tensor = self.shared_norms(F.silu(cond_BD))
        return out.view(-1, 6, self.width)

    def head_modulation(self, cond_BD: Tensor) -> tuple[Tensor, ...]:
        """Scale and shift of the final AdaLN, each (B, 1, D)."""
        return self.head_norm(F.silu(cond_BD)).unsqueeze(1).chunk(2, dim=-1)

    def predict(self, x_BND: Tensor, cond_BD: Tensor) -> Tensor:
        """Final AdaLN and head, (B, N, D) -> logits (B, N, V)."""
        out: Tensor = self.head(modulate(x_BND, *self.head_modulation(cond_BD)))
        return out

    def forward(
        self, inputs_BNC: Tensor, labels_B: Tensor, paths: Sequence[tuple[Tensor, Tensor] | None] | None = None
    ) -> Tensor:
        """Teacher forcing: logits (B, L, V) of every token from the inputs of scales 1..K-1 and the class.

        The inputs may stop at the end of any scale: then L, and the work, are those of the scales up to it. ``paths``:
        what ``draw_paths`` returns; None drops nothing.
        """
        cond_BD = self.class_embed(labels_B)
        start = cond_BD.unsqueeze(1) + self.start_1ND
        words = self.embed_words(inputs_BNC)
        x_BLD = torch.cat((start.to(words.dtype), words), dim=1)
        x_BLD = x_BLD + self.embed_positions()[:, : x_BLD.shape[1]].to(words.dtype)
        condition = self.block_condition(cond_BD)
        for block, drawn in zip(self.blocks, paths or [None] * self.depth, strict=True):
            if self.checkpoint_blocks and torch.is_grad_enabled():
                x_BLD = checkpoint(block, x_BLD, condition, drawn, use_reentrant=False, preserve_rng_state=False)
            else:
                x_BLD = block(x_BLD, condition, drawn)
        return self.predict(x_BLD, cond_BD)

    def drop_labels(
        self, labels_B: Tensor, probability: float, rng: torch.Generator | None, part: BatchPart = WHOLE_BATCH
    ) -> Tensor:
        """Replace labels by the null class with ``probability``, one draw an image of the whole batch."""
        if probability == 0.0:
            return labels_B
        draws = part.of(torch.rand(len(labels_B) * part.parts, generator=rng)).to(labels_B.device)
        return torch.where(draws < probability, self.num_classes, labels_B)

    def draw_paths(self, images: int, device: torch.device, part: BatchPart) -> list[tuple[Tensor, Tensor] | None]:
        """Which branches of which block ``images`` images skip, drawn for the whole batch that they are a part of."""
        drawn = [block.drop_path.draw(images * part.parts, device) for block in self.blocks]  # type: ignore[union-attr, operator]
        return [paths and (part.of(paths[0]), part.of(paths[1])) for paths in drawn]

    def sum_scales(self, values_BL: Tensor) -> Tensor:
        """(B, L) -> (B, K): sums over the tokens of each scale, of all or of the coarsest."""
        count = self.schedule.scales_in(values_BL.shape[1])
        parts = values_BL.split(self.schedule.tokens_per_scale[:count], dim=1)
        return torch.stack([part.sum(1) for part in parts], dim=1)

    def loss(
        self,
        batch: TokenBatch,
        *,
        label_drop: float = 0.0,
        rng: torch.Generator | None = None,
        errors: bool = False,
        part: BatchPart = WHOLE_BATCH,
    ) -> ScaleLoss:
        """Cross-entropy per scale, nats an image. ``errors`` also counts top-1 errors.

        ``part`` says which part of a step's batch this is: what is dropped is drawn for the whole. A batch of the
        coarsest scales only costs and returns those. Raises ``ValueError`` when it ends inside a scale.
        """
        assert batch.inputs_BNC is not None, "compute pyramid.inputs(ids) first"
        labels_B = self.drop_labels(batch.labels_B, label_drop, rng, part)
        logits_BLV = self(batch.inputs_BNC, labels_B, self.draw_paths(len(labels_B), labels_B.device, part))
        # Training may keep the logits' own precision; a measurement (no gradient) is always taken in float32.
        flat = logits_BLV.flatten(0, 1) if torch.is_grad_enabled() else logits_BLV.flatten(0, 1).float()
        nats_BL = cross_entropy(flat, batch.ids_BL.flatten()).view(batch.ids_BL.shape)
        nats_BK = self.sum_scales(nats_BL)
        wrong_BK = self.sum_scales((logits_BLV.argmax(-1) != batch.ids_BL).float()) if errors else None
        return ScaleLoss(nats_BK, wrong_BK, self.schedule)

    def prepare(self, labels_B: Tensor) -> Prepared:
        """Everything that sampling needs of the classes and that no scale changes; under autocast in its dtype."""
        device = labels_B.device
        autocast = torch.is_autocast_enabled(device.type)
        dtype = torch.get_autocast_dtype(device.type) if autocast else self.position_1LD.dtype
        cond_BD = self.class_embed(labels_B)
        condition = self.block_condition(cond_BD)
        shape = (len(labels_B), self.heads, self.schedule.num_tokens, self.width // self.heads)
        return Prepared(
            start_BND=(cond_BD.unsqueeze(1) + self.start_1ND).to(dtype),
            positions_1LD=self.embed_positions().to(dtype),
            blocks=tuple(block.norms(condition) for block in self.blocks),  # type: ignore[union-attr, operator]
            head=self.head_modulation(cond_BD),
            cache=KeyValueCache(self.depth, shape, dtype=dtype, device=device),
        )

    def step(self, k: int, x_BND: Tensor, prepared: Prepared) -> Tensor:
        """What the head takes of scale k, (B, N, D), from its embedded input without positions; extends the cache."""
        where = self.schedule.slices[k]
        x_BND = x_BND + prepared.positions_1LD[:, where]
        for i, (block, modulations) in enumerate(zip(self.blocks, prepared.blocks, strict=True)):
            assert isinstance(block, Block)
            x_BND = block.step(x_BND, modulations, prepared.cache, i, where)
        return modulate(x_BND, *prepared.head)

    def roles(self) -> dict[Role, list[nn.Parameter]]:
        """Parameters by how often they act: once a token, once an image, as embedding, as head."""
        image = [p for b in self.blocks for p in b.norms.parameters()]  # type: ignore[union-attr]
        if self.shared_adaln:
            image += list(self.shared_norms.parameters())
        head = [*self.head_norm.parameters(), *self.head.parameters()]
        embed = [self.start_1ND, self.position_1LD]
        for module in (self.class_embed, self.level_embed, self.word_embed):
            embed += list(module.parameters())
        elsewhere = {id(p) for p in (*image, *head, *embed)}
        token = [p for p in self.parameters() if id(p) not in elsewhere]
        return {"token": token, "image": image, "embed": embed, "head": head}
