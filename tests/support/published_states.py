"""Weight files of other projects with random numbers, and their forward passes in NumPy, float64."""

import numpy as np
from scipy.special import erf

from fusmae_jax.interop.weights.published_kinds import WeightFile
from fusmae_jax.models.positions import sincos_2d

WIDTH, DEPTH, HEADS = 32, 4, 2
S2 = ('B01', 'B02', 'B03', 'B04', 'B05', 'B06', 'B07', 'B08', 'B8A', 'B09', 'B11', 'B12')
# Any order will do; what matters is that it is not ours.
SATVIT = ('VH', 'B12', 'unused', *S2[:5], 'VV', *S2[5:-1])
SIZES = {'width': WIDTH, 'depth': DEPTH, 'heads': HEADS}
DINO = WeightFile('dino_mm', 'x', **SIZES, patch_size=3, image_size=42)
SAT = WeightFile('satvit', 'x', channels=SATVIT, **SIZES, patch_size=4, image_size=32)


def drawer(seed):
    """Draws float32 arrays of a shape around `middle`."""
    rng = np.random.default_rng(seed)
    return lambda *shape, middle=0.0: rng.normal(middle, 0.3, shape).astype(np.float32)


def block(draw, names, prefix, bias=True, width=WIDTH):
    """The weights of one block under the names of a file."""
    norm1, qkv, out, norm2, up, down = (f'{prefix}.{name}' for name in names)
    state = {f'{n}.weight': draw(width, middle=1.0) for n in (norm1, norm2)}
    state |= {f'{n}.bias': draw(width) for n in (norm1, norm2, out, down)}
    state |= {f'{up}.bias': draw(4 * width)} | ({f'{qkv}.bias': draw(3 * width)} if bias else {})
    sizes = {qkv: (3 * width, width), out: (width, width), up: (4 * width, width), down: (width, 4 * width)}
    return state | {f'{n}.weight': draw(*size) for n, size in sizes.items()}


TIMM = ('norm1', 'attn.qkv', 'attn.proj', 'norm2', 'mlp.fc1', 'mlp.fc2')
LUCID = ('0.input_norm', '0.to_qkv', '0.to_out', '1.input_norm', '1.net.0', '1.net.3')


def timm(channels, patch, grid, seed=0, sincos=False):
    """timm, MAE and DINO: `cls_token`, `pos_embed` with a row for it, `blocks.N`, `norm`."""
    draw = drawer(seed)
    table = np.roll(sincos_2d((grid, grid), WIDTH), WIDTH // 2, axis=1)
    rows = np.concatenate([np.zeros((1, WIDTH)), table]) if sincos else draw(1 + grid**2, WIDTH)
    state = {
        'cls_token': draw(1, 1, WIDTH),
        'pos_embed': rows.astype(np.float32)[None],
        'patch_embed.proj.weight': draw(WIDTH, channels, patch, patch),
        'patch_embed.proj.bias': draw(WIDTH),
        'norm.weight': draw(WIDTH, middle=1.0),
        'norm.bias': draw(WIDTH),
    }
    for layer in range(DEPTH):
        state |= block(draw, TIMM, f'blocks.{layer}', True)
    return state


def satvit(patch, grid, seed=0):
    """SatViT v1: no CLS, qkv without bias, patches flattened channel first, MAE's positions."""
    draw = drawer(seed)
    table = np.roll(sincos_2d((grid, grid), WIDTH), WIDTH // 2, axis=1)
    state = {
        'pos_embed': table.astype(np.float32)[None],
        'linear_input.weight': draw(WIDTH, len(SATVIT) * patch**2),
        'linear_input.bias': draw(WIDTH),
        'encoder.norm_out.weight': draw(WIDTH, middle=1.0),
        'encoder.norm_out.bias': draw(WIDTH),
        'enc_to_dec.weight': draw(16, WIDTH),
    }
    for layer in range(DEPTH):
        state |= block(draw, LUCID, f'encoder.layers.{layer}', False)
    return state


def layer_norm(x, state, name, eps):
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * state[f'{name}.weight'] + state[f'{name}.bias']


def linear(x, state, name):
    return x @ state[f'{name}.weight'].T.astype(np.float64) + state.get(f'{name}.bias', 0)


def attend(q, k, v):
    """Softmax attention of (b, n, heads, e) over (b, m, heads, e), heads joined: (b, n, d)."""
    scores = np.einsum('bnhe,bmhe->bhnm', q, k) / np.sqrt(q.shape[-1])
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    return np.einsum('bhnm,bmhe->bnhe', weights, v).reshape(*q.shape[:2], -1)


def mlp(x, state, up, down):
    """Two layers with the exact GELU between them."""
    hidden = linear(x, state, up)
    return linear(0.5 * hidden * (1 + erf(hidden / np.sqrt(2))), state, down)


def blocks(x, state, names, prefix, eps, depth=DEPTH):
    """The tokens (b, n, d) after each block of a pre-norm transformer."""
    after = []
    for layer in range(depth):
        norm1, qkv, out, norm2, up, down = (f'{prefix}.{layer}.{name}' for name in names)
        b, n, d = x.shape
        parts = linear(layer_norm(x, state, norm1, eps), state, qkv).reshape(b, n, 3, HEADS, d // HEADS)
        q, k, v = np.moveaxis(parts, 2, 0)
        x = x + linear(attend(q, k, v), state, out)
        x = x + mlp(layer_norm(x, state, norm2, eps), state, up, down)
        after.append(x)
    return after


def windows(images, patch):
    """Patches (b, n, c, p, p) of images (b, h, w, c) in float64, row by row."""
    b, h, w, c = images.shape
    x = images.astype(np.float64).reshape(b, h // patch, patch, w // patch, patch, c)
    return x.transpose(0, 1, 3, 5, 2, 4).reshape(b, -1, c, patch, patch)


def timm_tokens(images, state, table, eps=1e-6):
    """CLS and patches after each block, each normed: a list of (b, 1 + n, d).

    Args:
        images: (b, h, w, c) with the channels of the file.
        state: of `timm`.
        table: positions of CLS and of the patches of these images, (1 + n, d).
        eps: of the norms.
    """
    kernel = state['patch_embed.proj.weight'].astype(np.float64)
    x = np.einsum('bncpq,dcpq->bnd', windows(images, kernel.shape[-1]), kernel)
    x = x + state['patch_embed.proj.bias']
    cls = np.broadcast_to(state['cls_token'].astype(np.float64), (len(x), 1, WIDTH))
    x = np.concatenate([cls, x], axis=1) + table
    return [layer_norm(z, state, 'norm', eps) for z in blocks(x, state, TIMM, 'blocks', eps)]


def satvit_tokens(images, state, patch):
    """The encoded patches (b, n, d) of images whose channels are those of the file."""
    flat = windows(images, patch).reshape(len(images), -1, len(SATVIT) * patch**2)
    x = linear(flat, state, 'linear_input') + state['pos_embed'][0]
    last = blocks(x, state, LUCID, 'encoder.layers', 1e-5)[-1]
    return layer_norm(last, state, 'encoder.norm_out', 1e-5)
