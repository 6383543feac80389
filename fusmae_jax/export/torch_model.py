"""A pretrained encoder of one sensor or several, as a PyTorch module that needs torch alone.

    encoder = load('FOLDER')                       # this file, weights.safetensors, contract.json
    features = encoder({'s1': x, 's2': y})         # 'cls', 'pooled', 'tokens/s1', 'tokens/s2'
    maps = encoder.features({'s2': y}, (2, 5, 8, 11))   # (b, width, rows, columns) after these blocks

Images are (b, bands, rows, columns) in the units of `contract['inputs']`: by record field, each on its native
grid, or by sensor, all bands on one grid in the order of `contract['sensors']`. NaN where nothing was
measured; a sensor that is not there is left out. Normalisation and resampling are inside.
"""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


def load(folder: str | pathlib.Path) -> 'Encoder':
    """The encoder in a folder, in evaluation mode."""
    folder = pathlib.Path(folder)
    encoder = Encoder(json.loads((folder / 'contract.json').read_text()))
    encoder.load_state_dict(read_safetensors(folder / 'weights.safetensors'))
    return encoder.eval()


def read_safetensors(file: str | pathlib.Path) -> dict[str, Tensor]:
    """The float32 tensors of a safetensors file, without its library."""
    raw = bytearray(pathlib.Path(file).read_bytes())
    start = 8 + int.from_bytes(raw[:8], 'little')
    tensors = {}
    for name, entry in json.loads(raw[8:start]).items():
        if name != '__metadata__':
            if entry['dtype'] != 'F32':
                raise ValueError(f'{file}: {name} is {entry["dtype"]}, expected F32')
            first, last = entry['data_offsets']
            flat = torch.frombuffer(raw, dtype=torch.float32, count=(last - first) // 4, offset=start + first)
            tensors[name] = flat.reshape(entry['shape'])
    return tensors


class Mlp(nn.Module):
    """Two linear layers with a GELU between them."""

    def __init__(self, width: int, hidden: int, approximate: str):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.act = nn.GELU(approximate=approximate)

    def forward(self, x: Tensor) -> Tensor:
        """Token by token, (b, n, d)."""
        return self.fc2(self.act(self.fc1(x)))


class FastLayerNorm(nn.LayerNorm):
    """LayerNorm with the variance as E[x^2] - E[x]^2."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalises the last axis."""
        mean = x.mean(-1, keepdim=True)
        variance = (x.square().mean(-1, keepdim=True) - mean.square()).clamp_min(0)
        return (x - mean) * torch.rsqrt(variance + self.eps) * self.weight + self.bias


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int, valid: Tensor) -> Tensor:
    """Attention over the valid keys (b, m); 0 where there is none. Queries (b, n, d), keys (b, m, d)."""
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    there = valid[:, None, None]
    scores = (q @ k.transpose(-2, -1)) * q.shape[-1] ** -0.5
    weights = scores.masked_fill(~there, torch.finfo(scores.dtype).min).softmax(-1).masked_fill(~there, 0)
    return (weights @ v).transpose(1, 2).flatten(2)


class SelfAttention(nn.Module):
    """Self-attention with one projection for query, key and value."""

    def __init__(self, width: int, heads: int, bias: bool):
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width, bias=bias), nn.Linear(width, width)

    def forward(self, x: Tensor, valid: Tensor) -> Tensor:
        """Tokens (b, n, d), of which `valid` (b, n) are attended to."""
        query, key, value = self.qkv(x).chunk(3, -1)
        return self.proj(attend(query, key, value, self.heads, valid))


class CrossAttention(nn.Module):
    """Queries from x, keys and values from another sensor; 0 where that one has no valid token."""

    def __init__(self, width: int, heads: int, bias: bool, norm: Any):
        super().__init__()
        self.heads = heads
        self.query_norm, self.context_norm = norm(), norm()
        self.q, self.kv = nn.Linear(width, width, bias=bias), nn.Linear(width, 2 * width, bias=bias)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, context: Tensor, valid: Tensor) -> Tensor:
        """Tokens x (b, n, d), context (b, m, d) with its validity (b, m)."""
        keys, values = self.kv(self.context_norm(context)).chunk(2, -1)
        out = self.proj(attend(self.q(self.query_norm(x)), keys, values, self.heads, valid))
        return out.masked_fill(~valid.any(1)[:, None, None], 0)


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, width: int, heads: int, hidden: int, bias: bool, gelu: str, norm: Any):
        super().__init__()
        self.norm1, self.norm2 = norm(), norm()
        self.attn, self.mlp = SelfAttention(width, heads, bias), Mlp(width, hidden, gelu)

    def forward(self, x: Tensor, valid: Tensor) -> Tensor:
        """Tokens (b, n, d), of which `valid` (b, n) are attended to."""
        x = x + self.attn(self.norm1(x), valid)
        return x + self.mlp(self.norm2(x))


class XAttnEncoder(nn.Module):
    """The first block of Fus-MAE: each sensor attends to the others, then an MLP over all tokens."""

    def __init__(self, names: Sequence[str], absent: str, cross: Any, mlp: Mlp, norm: Any):
        super().__init__()
        self.absent = absent
        self.cross = nn.ModuleDict({name: cross() for name in names})
        self.norm, self.mlp = norm(), mlp

    def forward(self, tokens: Mapping[str, Tensor], valid: Mapping[str, Tensor]) -> Tensor:
        """All tokens after the block, sensor after sensor, from (b, n, d) each and their validity (b, n)."""
        fused = []
        for name, x in tokens.items():
            cross = self.cross['shared' if 'shared' in self.cross else name]
            fused.append(x + cross(x, *self._context(name, tokens, valid)))
        x = torch.cat(fused, 1)
        return x + self.mlp(self.norm(x))

    def _context(
        self, name: str, tokens: Mapping[str, Tensor], valid: Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """What a sensor attends to: the others; with `self`, where they have nothing, itself."""
        mine, here = tokens[name], valid[name]
        others = [key for key in tokens if key != name]
        if not others:
            return mine, here if self.absent == 'self' else torch.zeros_like(here)
        context, there = (torch.cat([x[key] for key in others], 1) for x in (tokens, valid))
        if self.absent != 'self':
            return context, there
        # Equal lengths, the shorter with slots that are not valid, and a choice sample by sample.
        longer = max(context.shape[1], mine.shape[1])
        context, mine = (functional.pad(x, (0, 0, 0, longer - x.shape[1])) for x in (context, mine))
        some = there.any(1, keepdim=True)
        there, here = (functional.pad(x, (0, longer - x.shape[1])) for x in (there, here))
        return torch.where(some[..., None], context, mine), torch.where(some, there, here)


class Encoder(nn.Module):
    """The encoder that a contract describes; its weights are those of the file beside the contract."""

    pos_embed: Tensor

    def __init__(self, contract: Mapping[str, Any]):
        super().__init__()
        model = contract['model']
        self.contract, self.model, self.sensors = contract, model, list(contract['sensors'])
        width, heads, hidden, bias = model['width'], model['heads'], model['hidden'], model['qkv_bias']
        kind = FastLayerNorm if model['norm_variance'] == 'fast' else nn.LayerNorm
        norm = lambda: kind(width, eps=model['norm_eps'])  # noqa: E731
        sizes = {name: model['patch'] ** 2 * len(s['bands']) for name, s in contract['sensors'].items()}
        streams = {'stack': sum(sizes.values())} if model['fusion'] == 'stack' else sizes
        self.patch_embed = nn.ModuleDict({name: nn.Linear(size, width) for name, size in streams.items()})
        self.register_buffer('pos_embed', torch.zeros(model['grid'][0] * model['grid'][1], width))
        self.cls_token = nn.Parameter(torch.zeros(width))
        early = model['fusion'] == 'xae'
        if early:
            self.xattn_encoder = XAttnEncoder(
                ['shared'] if model['shared_directions'] else self.sensors,
                model['absent'],
                lambda: CrossAttention(width, heads, bias, norm),
                Mlp(width, hidden, model['gelu']),
                norm,
            )
        self.blocks = nn.ModuleList(
            Block(width, heads, hidden, bias, model['gelu'], norm) for _ in range(model['depth'] - early)
        )
        self.norm = norm() if model['final_norm'] else nn.Identity()
        # As backbones of segmentation models state it.
        self.out_channels = [width] * model['depth']

    def forward(self, images: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Features of the sensors that are given: `cls` and `pooled` (b, d), `tokens/SENSOR` (b, n, d)."""
        tokens, valid, cls, _ = self._encode(images)
        weights = {name: v[..., None].to(tokens[name].dtype) for name, v in valid.items()}
        total = sum((tokens[name] * w).sum(1) for name, w in weights.items())
        count = sum(w.sum(1) for w in weights.values())
        pooled = total / count.clamp_min(1)
        given = self._given(images)
        named = {f'tokens/{name}': tokens.get(name, tokens.get('stack')) for name in given}
        return {'cls': cls, 'pooled': pooled, **named}

    def features(
        self, images: Mapping[str, Tensor], layers: Sequence[int] = (-1,), merge: str = 'mean'
    ) -> list[Tensor]:
        """Maps (b, c, rows, columns) of the tokens after some blocks, for a decoder of dense tasks.

        Args:
            images: as for `forward`.
            layers: which blocks, from 0 or from the end; the last one is taken after the final norm.
            merge: 'mean' over the sensors with a valid patch there (c = width), or 'concat' (c = width x
                sensors, in the order of the contract; 0 where one has nothing).
        """
        _, valid, _, stages = self._encode(images)
        maps = []
        for layer in layers:
            held = [stages[layer][name] * there[..., None] for name, there in valid.items()]
            if merge == 'concat':
                x = torch.cat(held, -1)
            else:
                count = torch.stack(list(valid.values())).sum(0)
                x = torch.stack(held).sum(0) / count.clamp_min(1)[..., None]
            maps.append(x.transpose(1, 2).unflatten(2, self.model['grid']))
        return maps

    def _given(self, images: Mapping[str, Tensor]) -> list[str]:
        fields = self.contract['inputs']
        unknown = [name for name in images if name not in fields and name not in self.sensors]
        if unknown or not images:
            raise ValueError(f'images: {unknown or "empty"}; give some of {[*self.sensors, *fields]}')
        owners = {name if name in self.sensors else fields[name]['sensor'] for name in images}
        return [name for name in self.sensors if name in owners]

    def _encode(
        self, images: Mapping[str, Tensor]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor, list[dict[str, Tensor]]]:
        """Tokens by stream, which of them are measured, CLS, and the tokens after each block."""
        values, valid = self._patches(images)
        measured = dict(valid)
        if self.model['fusion'] != 'stack' and self.model['absent'] == 'zero_image':
            values, valid, measured = self._mean_images(values, valid)
        tokens = {name: self.patch_embed[name](x) + self.pos_embed for name, x in values.items()}
        some = next(iter(tokens.values()))
        cls = self.cls_token.expand(len(some), int(self.model['cls']), -1)
        slots = torch.cat([*valid.values(), valid[next(iter(valid))].new_ones(cls.shape[:2])], 1)
        lengths, after = [x.shape[1] for x in tokens.values()], []
        count = sum(lengths)
        if self.model['fusion'] == 'xae':
            x = self.xattn_encoder(tokens, valid)
            after.append(x)
            x = torch.cat([x, cls], 1)
        else:
            x = torch.cat([*tokens.values(), cls], 1)
        for block in self.blocks:
            x = block(x, slots)
            after.append(x)
        x = after[-1] = self.norm(x)
        stages = [dict(zip(tokens, stage[:, :count].split(lengths, 1))) for stage in after]
        last = x[:, count] if self.model['cls'] else x[:, 0, :0]
        return {name: stages[-1][name] for name in measured}, measured, last, stages

    def _mean_images(
        self, values: dict[str, Tensor], valid: dict[str, Tensor]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
        """A sensor that is not there as its mean image, which is 0, with every patch valid."""
        some, measured = next(iter(values.values())), dict(valid)
        for name in self.sensors:
            size = self.model['patch'] ** 2 * len(self.contract['sensors'][name]['bands'])
            x = values.get(name, some.new_zeros(*some.shape[:2], size))
            there = valid.get(name, torch.zeros(some.shape[:2], dtype=torch.bool, device=some.device))
            gone = ~there.any(1)
            values[name], valid[name] = x.masked_fill(gone[:, None, None], 0), there | gone[:, None]
        return {n: values[n] for n in self.sensors}, {n: valid[n] for n in self.sensors}, measured

    def _patches(self, images: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Flattened patches (b, n, p) by stream, and which of them hold a measured pixel (b, n)."""
        given, values, valid = self._given(images), {}, {}
        for name in given:
            image, there = self._prepare(name, images, given)
            values[name], seen = (_patchify(x, self.model['patch']) for x in (image, there))
            valid[name] = seen.any(2)
        if self.model['fusion'] != 'stack':
            return values, valid
        some, parts = values[given[0]], []
        for name in self.sensors:
            size = self.model['patch'] ** 2 * len(self.contract['sensors'][name]['bands'])
            x = values[name] if name in values else some.new_zeros(*some.shape[:2], size)
            parts.append(x.masked_fill(~valid[name][..., None], 0) if name in valid else x)
        return {'stack': torch.cat(parts, 2)}, {'stack': torch.stack(list(valid.values())).any(0)}

    def _prepare(
        self, name: str, images: Mapping[str, Tensor], given: Sequence[str]
    ) -> tuple[Tensor, Tensor]:
        """One sensor on the grid of the model: values and validity (b, bands, rows, columns)."""
        sensor, preset = self.contract['sensors'][name], self.contract['preset']
        rows, columns = self.model['image_size']
        size = (preset['resize'],) * 2 if preset['resize'] else (rows, columns)
        values: dict[str, Tensor] = {}
        valid: dict[str, Tensor] = {}
        for field, bands in self._fields(name, images):
            x, there = _normalised(images[field], sensor, bands, preset)
            x, there = resample(x, there, size, sensor['resample'])
            for i, band in enumerate(bands):
                values[band], valid[band] = x[:, i], there[:, i]
        missing = [band for band in sensor['bands'] if band not in values]
        if missing:
            raise ValueError(f'images of {name}: bands {missing} are missing')
        x, there = (torch.stack([part[band] for band in sensor['bands']], 1) for part in (values, valid))
        x = _scaled(x, there, preset, sensor['kind'], (rows, columns))
        top, left = (size[0] - rows) // 2, (size[1] - columns) // 2
        there = there[..., top : top + rows, left : left + columns]
        if preset['bands']:
            x = x * (preset['bands'] / sum(len(self.contract['sensors'][n]['bands']) for n in given))
        return x, there

    def _fields(self, name: str, images: Mapping[str, Tensor]) -> list[tuple[str, list[str]]]:
        """The keys of `images` that hold bands of a sensor, and which bands each holds."""
        inputs = self.contract['inputs']
        fields = [f for f in self.contract['sensors'][name]['fields'] if f in images]
        if fields and (name not in images or name in fields):
            return [(field, list(inputs[field]['bands'])) for field in fields]
        return [(name, list(self.contract['sensors'][name]['bands']))]


def _patchify(image: Tensor, patch: int) -> Tensor:
    """(b, c, h, w) to (b, n, p): patches row by row, their numbers by row, column and band."""
    b, c, h, w = image.shape
    x = image.reshape(b, c, h // patch, patch, w // patch, patch)
    return x.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)


def _normalised(
    image: Tensor, sensor: Mapping[str, Any], bands: Sequence[str], preset: Mapping[str, Any]
) -> tuple[Tensor, Tensor]:
    """Z-scores on the native grid, 0 where nothing was measured, and what was."""
    if image.ndim != 4 or image.shape[1] != len(bands):
        raise ValueError(
            f'an image is {tuple(image.shape)}, expected (b, {len(bands)}, rows, columns): {bands}'
        )
    image = image.float()
    valid = image.isfinite()
    if sensor['kind']['clip_native']:
        low, high = _quantiles(image, valid, preset['quantile_clip'])
        image = torch.where(valid, image.clamp(low, high), image)
    mean, std = [], []
    for band in bands:
        # A field may hold bands that the model does not read; they are left out behind.
        i = sensor['bands'].index(band) if band in sensor['bands'] else None
        mean.append(0.0 if i is None else sensor['mean'][i])
        std.append(1.0 if i is None else sensor['std'][i])
    mean, std = (torch.tensor(x, device=image.device)[None, :, None, None] for x in (mean, std))
    x = torch.where(valid, (image - mean) / std, 0)
    return (((x.clamp(-2, 2) + 2) / 4 * 255).floor() if sensor['kind']['bytes_native'] else x), valid


def _quantiles(image: Tensor, valid: Tensor, shares: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Two quantiles of the valid pixels of each image and band, (b, c, 1, 1); infinite without any."""
    flat, there = image.flatten(2), valid.flatten(2)
    ordered = flat.masked_fill(~there, torch.inf).sort(-1).values
    last = (there.sum(-1, keepdim=True) - 1).clamp_min(0)
    ends = []
    for share in shares:
        at = last.float() * torch.tensor(share, dtype=torch.float32, device=image.device)
        below, above = at.floor(), at.ceil()
        low, high = (ordered.gather(-1, x.long()) for x in (below, above))
        ends.append((low * (1 - (at - below)) + high * (at - below))[..., None])
    return ends[0], ends[1]


def _scaled(
    x: Tensor, valid: Tensor, preset: Mapping[str, Any], kind: Mapping[str, Any], size: Sequence[int]
) -> Tensor:
    """Z-scores, or resampled bytes, on the scale of the model; the centre of a larger image."""
    if kind['clip_model']:
        low, high = _quantiles(x, valid, preset['quantile_clip'])
        x = torch.where(valid, x.clamp(low, high), x)
    top, left = ((a - b) // 2 for a, b in zip(x.shape[2:], size))
    x = x[..., top : top + size[0], left : left + size[1]]
    if preset['scale'] == 'zscore':
        limit = preset['clip']
        return x.clamp(-2, 2) / 2 if preset['mean_2sigma'] else x.clamp(-limit, limit)
    if kind['bytes_native']:
        x = x.round().clamp(0, 255) / 255
    else:
        x = (x.clamp(-2, 2) + 2) / 4
        x = (x * preset['levels']).floor() / preset['levels'] if preset['levels'] else x
    return x if preset['scale'] == 'unit' else 2 * x - 1


def resample(image: Tensor, valid: Tensor, size: Sequence[int], kernel: str) -> tuple[Tensor, Tensor]:
    """Images and their validity (b, c, h, w) on another grid; a pixel is valid if all it rests on are."""
    if tuple(image.shape[2:]) == tuple(size):
        return image, valid
    rows, columns = (
        resample_weights(new, old, kernel).to(image.device) for new, old in zip(size, image.shape[2:])
    )
    touched = [(x.abs() > 1e-4).to(image.dtype) for x in (rows, columns)]
    bad = touched[0] @ (~valid).to(image.dtype) @ touched[1].T
    return rows @ image @ columns.T, bad < 0.5


def resample_weights(new: int, old: int, kernel: str) -> Tensor:
    """Weights (new, old) of an axis: pixel centres at half-integers, the kernel widened when it shrinks.

    `opencv_cubic` is never widened and repeats the border; the others are normalised there.
    """
    scale = old / new
    centre = ((torch.arange(new) + 0.5) * scale - 0.5)[:, None]
    if kernel == 'opencv_cubic':
        outside = torch.arange(-2, old + 2)
        weight = _kernel(centre - outside, kernel)
        return weight @ (outside.clamp(0, old - 1)[:, None] == torch.arange(old)).float()
    weight = _kernel((centre - torch.arange(old)) / max(scale, 1.0), kernel)
    return weight / weight.sum(1, keepdim=True)


def _kernel(distance: Tensor, kernel: str) -> Tensor:
    x = distance.abs()
    if kernel == 'bilinear':
        return (1 - x).clamp_min(0)
    a = -0.5 if kernel == 'bicubic' else -0.75
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return torch.where(x < 1, near, torch.where(x < 2, far, 0))
