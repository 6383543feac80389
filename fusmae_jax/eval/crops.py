"""Crops of records: an image is the whole of one, or one of its four quarters.

`crops` cuts a record of 256 px into four of 128 px, which is nearer the ground that models pretrained on
1.2 km saw at once. The cut is made on the native grids, before anything is resampled, so that no pixel
outside a crop has a part in it; everything after it takes a crop for a whole image.
"""

import dataclasses
from collections.abc import Mapping
from typing import get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Shaped

from fusmae_jax.errors import InputError, nearest
from fusmae_jax.eval.config import Image
from fusmae_jax.input.contract import Contract

IMAGES: tuple[str, ...] = get_args(Image)
CROPS = 4  # upper left, upper right, lower left, lower right


def view_contract(contract: Contract, image: str) -> Contract:
    """The contract of what a model is given: the same, or with grids of half the side for `crops`.

    Raises:
        InputError: `image` is neither; a grid cannot be halved.
    """
    if image not in IMAGES:
        raise InputError(f'image={image!r}; {nearest(image, IMAGES)}')
    if image == 'resize':
        return contract
    for field, group in contract.groups.items():
        if any(side % 2 for side in group.size):
            raise InputError(
                f"image='crops': field {field!r} of {contract.dataset} has {group.size[0]} x {group.size[1]} "
                "pixels, which cannot be cut into four; use image='resize'"
            )
    halved = {
        field: dataclasses.replace(g, size=(g.size[0] // 2, g.size[1] // 2))
        for field, g in contract.groups.items()
    }
    # Four crops of one record are no four images: what is measured on few records stays so.
    measured = {
        field: dataclasses.replace(
            s, valid=tuple(n // CROPS for n in s.valid), invalid=tuple(n // CROPS for n in s.invalid)
        )
        for field, s in contract.statistics.items()
    }
    return dataclasses.replace(contract, groups=halved, statistics=measured)


def all_crops(batch: Mapping[str, Array], contract: Contract) -> dict[str, Array]:
    """The four crops of every record, all first ones before all second ones: (4 b, h / 2, w / 2, c).

    Fields that are no image of the contract (labels, positions) are repeated four times. Traceable.
    """
    return {
        name: _quarters(x).reshape(-1, x.shape[1] // 2, x.shape[2] // 2, x.shape[3])
        if name in contract.groups
        else jnp.tile(x, (CROPS, *(1,) * (x.ndim - 1)))
        for name, x in batch.items()
    }


def one_crop(batch: Mapping[str, Array], contract: Contract, index: Int[Array, ' b']) -> dict[str, Array]:
    """One crop of every record, by its number in [0, 4); the other fields as they are. Traceable."""
    where = index[None, :, None, None, None]

    def pick(x: Shaped[Array, 'b h w c']) -> Shaped[Array, 'b i j c']:
        # Of raw pixels, which have no gradient: that of a gather would be a scatter.
        return jnp.take_along_axis(_quarters(x), where, axis=0, mode='clip')[0]

    return {name: pick(x) if name in contract.groups else x for name, x in batch.items()}


def crop_index(keys: Array) -> Int[Array, ' b']:
    """Which crop each record shows in training, from its random key (b,); each is as likely."""
    return jax.vmap(lambda key: jax.random.randint(key, (), 0, CROPS))(keys)


def crop_mean(
    values: Shaped[Array, 'b4 d'], seen: Shaped[Array, ' b4']
) -> tuple[Shaped[Array, 'b d'], Shaped[Array, ' b']]:
    """The mean over those of the four crops of a record that hold a valid pixel, and whether any does.

    Args:
        values: features or scores, in the order of `all_crops`.
        seen: which of them rest on a valid pixel.
    """
    values, there = values.reshape(CROPS, -1, values.shape[-1]), seen.reshape(CROPS, -1)
    total = jnp.sum(jnp.where(there[..., None], values, 0), axis=0)
    count = jnp.sum(there, axis=0, dtype=values.dtype)
    return total / jnp.maximum(count, 1)[:, None], crop_any(seen)


def crop_any(seen: Shaped[Array, ' b4']) -> Shaped[Array, ' b']:
    """Whether any of the four crops of a record holds a valid pixel."""
    return jnp.any(seen.reshape(CROPS, -1), axis=0)


def _quarters(x: Shaped[Array, 'b h w c']) -> Shaped[Array, '4 b i j c']:
    batch, height, width, bands = x.shape
    parts = x.reshape(batch, 2, height // 2, 2, width // 2, bands)
    return jnp.moveaxis(parts, (1, 3), (0, 1)).reshape(CROPS, batch, height // 2, width // 2, bands)
