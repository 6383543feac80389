"""Fus-MAE in plain PyTorch, written from the paper's equations; the other side of every comparison.

It is kept apart from the JAX model on purpose: strided convolutions over the whole image, `gather` of
the visible tokens, un-shuffling before the decoder. Nothing here shares code with `fusmae_jax.models`.
Masks come from outside, so both frameworks see the same ones.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from fusmae_jax.config.run import Decoder, Loss, Model
from fusmae_jax.errors import InputError
from fusmae_jax.interop.reference.layers import Block, CrossAttention, Mlp, layer_norm, sincos_positions

Tokens = dict[str, Tensor]


def patchify(image: Tensor, patch: int) -> Tensor:
    """(b, c, H, W) -> (b, n, P*P*c): patches row-major, pixels of a patch in (row, column, channel) order."""
    b, c, h, w = image.shape
    x = image.view(b, c, h // patch, patch, w // patch, patch)
    return x.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)


def gather_tokens(tokens: Tensor, ids: Tensor) -> Tensor:
    """Rows `ids` (b, k) of tokens (b, n, d): (b, k, d)."""
    return tokens.gather(1, ids.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))


class XAttnEncoder(nn.Module):
    """Eqs (2)-(3): each modality attends to all the others, then one MLP over all tokens."""

    def __init__(self, model: Model):
        super().__init__()
        self.absent, self.shared = model.fusion.absent, model.fusion.shared_directions
        names = ['shared'] if self.shared else list(model.modalities)
        self.cross = nn.ModuleDict(
            {name: CrossAttention(model.width, model.heads, model.numerics) for name in names}
        )
        self.norm = layer_norm(model.width, model.numerics)
        self.mlp = Mlp(model.width, int(model.width * model.mlp_ratio), model.numerics)

    def forward(self, tokens: Tokens) -> Tokens:
        """Maps {modality: (b, k, d)} to the same shapes; with one modality the `absent` rule holds."""
        fused = {}
        for name, x in tokens.items():
            others = [y for other, y in tokens.items() if other != name]
            if not others and self.absent == 'bypass':
                fused[name] = x
                continue
            context = torch.cat(others, 1) if others else x
            fused[name] = x + self.cross['shared' if self.shared else name](x, context)
        return {name: x + self.mlp(self.norm(x)) for name, x in fused.items()}


class XAttnDecoder(nn.Module):
    """Eqs (10)-(11) for one modality, on the visible latents."""

    def __init__(self, model: Model):
        super().__init__()
        self.cross = CrossAttention(model.width, model.heads, model.numerics)
        self.norm = layer_norm(model.width, model.numerics)
        self.mlp = Mlp(model.width, int(model.width * model.mlp_ratio), model.numerics)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """Maps latents x (b, k, d) and those of the other modalities (b, m, d) to (b, k, d)."""
        x = x + self.cross(x, context)
        return x + self.mlp(self.norm(x))


class MaeDecoder(nn.Module):
    """Eq. (9): the light decoder of one modality, over its full grid."""

    pos_embed: Tensor

    def __init__(self, model: Model, out: int):
        super().__init__()
        d: Decoder = model.decoder
        self.embed = nn.Linear(model.width, d.width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, d.width))
        table = sincos_positions(*model.grid, d.width).to(torch.get_default_dtype())
        self.register_buffer('pos_embed', table, persistent=False)
        hidden = int(d.width * model.mlp_ratio)
        self.blocks = nn.ModuleList(Block(d.width, d.heads, hidden, model.numerics) for _ in range(d.depth))
        self.norm = layer_norm(d.width, model.numerics) if d.final_norm else nn.Identity()
        self.pred = nn.Linear(d.width, out)

    def forward(self, latents: Tensor, ids: Tensor, cls: Tensor | None, stages: Tokens, at: str) -> Tensor:
        """Predicts patches (b, n, P*P*c) in raster order from visible latents (b, k, D).

        `ids` (b, n) lists the patches, visible ones first; `cls` (b, 1, D) or None goes in front.
        """
        visible = self.embed(latents)
        stages[f'{at}/project'] = visible
        fill = self.mask_token.expand(len(ids), ids.shape[1] - visible.shape[1], -1)
        x = gather_tokens(torch.cat([visible, fill], 1), ids.argsort(1)) + self.pos_embed
        stages[f'{at}/tokens'] = x
        if cls is not None:
            x = torch.cat([self.embed(cls), x], 1)
        first = 0 if cls is None else 1
        for i, block in enumerate(self.blocks):
            x = block(x)
            stages[f'{at}/block{i + 1}'] = x[:, first:]
        x = self.pred(self.norm(x))[:, first:]
        stages[f'{at}/prediction'] = x
        return x


class TorchFusMAE(nn.Module):
    """Fus-MAE of `model` (sizes filled in by `config_build.resolve`) with the loss settings `loss`.

    Build it through `build` for another dtype than float32: `.double()` would widen rounded positions.
    """

    pos_embed: Tensor

    def __init__(self, model: Model, loss: Loss | None = None):
        super().__init__()
        self.model, self.norm_pix = model, (loss or Loss()).norm_pix
        patch = model.patch_size
        self.patch_embed = nn.ModuleDict(
            {name: nn.Conv2d(len(m.bands), model.width, patch, patch) for name, m in model.modalities.items()}
        )
        if model.positions == 'learned':
            self.pos_embed = nn.Parameter(torch.zeros(1, model.num_patches, model.width))
        else:
            table = sincos_positions(*model.grid, model.width).to(torch.get_default_dtype())
            self.register_buffer('pos_embed', table.unsqueeze(0), persistent=False)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, model.width))
        early = model.fusion.encoder == 'xae'
        self.xattn_encoder = XAttnEncoder(model) if early else None
        hidden = int(model.width * model.mlp_ratio)
        self.blocks = nn.ModuleList(
            Block(model.width, model.heads, hidden, model.numerics) for _ in range(model.depth - early)
        )
        self.norm = layer_norm(model.width, model.numerics) if model.final_norm else nn.Identity()
        late = model.fusion.decoder == 'xad'
        self.xattn_decoder = nn.ModuleDict({n: XAttnDecoder(model) for n in model.modalities if late})
        self.decoders = nn.ModuleDict({n: MaeDecoder(model, model.patch_dim(n)) for n in model.modalities})
        self.apply(_initialise)
        for name, parameter in self.named_parameters():
            if name.endswith(('cls_token', 'mask_token')):
                nn.init.normal_(parameter, std=0.02)
        if model.positions == 'learned':
            nn.init.normal_(self.pos_embed, std=0.02)

    def embed(self, images: Tokens, stages: Tokens) -> Tokens:
        """Eq. (1): images {modality: (b, c, H, W)} to tokens {modality: (b, n, d)} with positions."""
        tokens = {}
        for name, image in images.items():
            stages[f'patch/{name}'] = self.patch_embed[name](image).flatten(2).transpose(1, 2)
            tokens[name] = stages[f'positions/{name}'] = stages[f'patch/{name}'] + self.pos_embed
        return tokens

    def encoder(self, tokens: Tokens, stages: Tokens) -> tuple[Tokens, Tensor]:
        """Eqs (2)-(8): tokens {modality: (b, k, d)} to latents of the same shapes and CLS (b, 1, d)."""
        if self.xattn_encoder is not None:
            tokens = self.xattn_encoder(tokens)
            stages.update({f'xae/{name}': x for name, x in tokens.items()})
        cls = self.cls_token.expand(len(next(iter(tokens.values()))), -1, -1)
        x = torch.cat([*tokens.values(), cls], 1)
        lengths = [t.shape[1] for t in tokens.values()]
        for i, block in enumerate(self.blocks, start=1 if self.xattn_encoder is None else 2):
            x = stages[f'block{i}'] = block(x)
        x = stages['latents'] = self.norm(x)
        *parts, cls = x.split([*lengths, 1], 1)
        return dict(zip(tokens, parts)), cls

    def forward(self, images: Tokens, ids: Tokens, keep: Mapping[str, int]) -> tuple[Tensor, Tokens]:
        """Loss (scalar) and named stages of one batch.

        Args:
            images: normalised images {modality: (b, c, H, W)}, every modality of the model.
            ids: {modality: (b, n)} int64 permutations of the patches, the visible ones first.
            keep: how many of each permutation are visible.

        Raises:
            InputError: when modalities are missing or not part of the model.
        """
        self._check(images, every=True)
        stages: Tokens = {}
        images = {name: images[name] for name in self.model.modalities}
        tokens = self.embed(images, stages)
        visible = {name: gather_tokens(x, ids[name][:, : keep[name]]) for name, x in tokens.items()}
        latents, cls = self.encoder(visible, stages)
        if self.xattn_decoder:
            latents = {name: self._late_fusion(name, latents) for name in latents}
            stages.update({f'xad/{name}': x for name, x in latents.items()})
        total = images[next(iter(images))].new_zeros(())
        for name, decoder in self.decoders.items():
            through = cls if self.model.decoder.cls else None
            predicted = decoder(latents[name], ids[name], through, stages, f'decoder/{name}')
            loss = self._loss(predicted, images[name], ids[name][:, keep[name] :])
            stages[f'loss/{name}'] = loss
            total = total + self.model.modalities[name].loss_weight * loss
        stages['loss'] = total
        return total, stages

    def encode(self, images: Tokens) -> tuple[Tokens, Tensor]:
        """Unmasked latents {modality: (b, n, d)} and CLS (b, d) of any non-empty set of modalities.

        With `fusion.absent='zero_image'` an absent modality takes part as an image of zeros, and its latents
        are returned too.
        """
        self._check(images, every=False)
        present = {name: images[name] for name in self.model.modalities if name in images}
        if self.model.fusion.absent == 'zero_image':
            like = next(iter(present.values()))
            present = {
                name: images.get(name, like.new_zeros(len(like), len(m.bands), *self.model.image_size))
                for name, m in self.model.modalities.items()
            }
        latents, cls = self.encoder(self.embed(present, {}), {})
        return latents, cls[:, 0]

    def _late_fusion(self, name: str, latents: Tokens) -> Tensor:
        others = [x for other, x in latents.items() if other != name]
        return self.xattn_decoder[name](latents[name], torch.cat(others, 1))

    def _loss(self, predicted: Tensor, image: Tensor, masked: Tensor) -> Tensor:
        """Mean squared error over the masked patches (b, n - k) of the whole batch."""
        target = patchify(image, self.model.patch_size)
        if self.norm_pix:
            mean, variance = target.mean(-1, keepdim=True), target.var(-1, unbiased=True, keepdim=True)
            target = (target - mean) / (variance + 1e-6).sqrt()
        return (gather_tokens(predicted, masked) - gather_tokens(target, masked)).square().mean()

    def _check(self, images: Tokens, every: bool) -> None:
        known = list(self.model.modalities)
        unknown, missing = sorted(set(images) - set(known)), [n for n in known if n not in images]
        if unknown or not images or (every and missing):
            raise InputError(
                f'images: unknown modalities {unknown}, missing {missing}; the model has {known}'
            )


def build(model: Model, loss: Loss | None = None, dtype: torch.dtype = torch.float32) -> TorchFusMAE:
    """The reference with every parameter and fixed table made in `dtype`."""
    previous = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        return TorchFusMAE(model, loss)
    finally:
        torch.set_default_dtype(previous)


def _initialise(module: nn.Module) -> None:
    """MAE's rules: Xavier-uniform matrices (a patch kernel as one flat matrix) and zero biases."""
    if isinstance(module, nn.Linear | nn.Conv2d):
        nn.init.xavier_uniform_(module.weight.view(len(module.weight), -1))
        if module.bias is not None:
            nn.init.zeros_(module.bias)
