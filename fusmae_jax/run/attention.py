"""`python main.py reconstruct --attention=ROW,COLUMN`: where one patch looks, as a picture."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from flax import nnx

from fusmae_jax.config.run import Config
from fusmae_jax.errors import InputError
from fusmae_jax.eval.reliance.maps import maps
from fusmae_jax.input.contract import Contract
from fusmae_jax.input.prepare import make_prepare
from fusmae_jax.models import fusmae
from fusmae_jax.pictures.attention import Look, attention_figure
from fusmae_jax.pictures.figure import colours, record_name, recorded, stretch
from fusmae_jax.train.setup import Setup

PICTURE = 'attention.png'
RECORDS = 2  # more lines than twice as many nobody compares


def parse_patch(text: str, config: Config) -> tuple[int, int]:
    """Row and column of a patch; raises InputError for what is none of the model's grid."""
    rows, columns = config.model.grid
    try:
        row, column = map(int, text.split(','))
    except ValueError:
        raise InputError(f'--attention={text}: give row and column of a patch, such as 4,7') from None
    if not (0 <= row < rows and 0 <= column < columns):
        raise InputError(
            f'--attention={text}: the model has {rows} x {columns} patches, 0,0 to {rows - 1},{columns - 1}'
        )
    if config.model.fusion.encoder == 'stack':
        raise InputError(
            f'--attention={text}: a token of this model holds all sensors; there is one map alone'
        )
    return row, column


def draw_attention(
    workdir: epath.Path, setup: Setup, params: Any, records: list[Any], patch: tuple[int, int], step: int
) -> None:
    """Writes attention.png: the first records, a line for each sensor that looks.

    Args:
        workdir: of the run.
        setup: its parts.
        params: its weights.
        records: some raw records.
        patch: row and column of the patch.
        step: of the weights.
    """
    from PIL import Image

    config, contract = setup.config, setup.contract
    records = records[:RECORDS]
    prepare, graphdef = make_prepare(config, contract, None), fusmae.graph(config.model, setup.dtype)

    def run(params: Any, batch: Any, token: Any) -> Any:
        return maps(nnx.merge(graphdef, params), prepare(batch, None), token)

    names = [name for name, group in contract.groups.items() if group.modality in config.model.modalities]
    batch = {name: np.stack([record[name] for record in records]) for name in names}
    with jax.set_mesh(setup.mesh):
        token = jnp.int32(patch[0] * config.model.grid[1] + patch[1])
        every = jax.device_get(jax.jit(run)(params, batch, token))
    looks = [
        _look(config, contract, record, every, index, modality)
        for index, record in enumerate(records)
        for modality in config.model.modalities
    ]
    title = f'{config.name}, step {step}: attention of the outlined patch, mean over heads'
    with (workdir / PICTURE).open('wb') as file:
        # Of few colours, so that it is as small as a picture in a page should be.
        Image.fromarray(attention_figure(looks, patch, title)).quantize(200).save(file, 'PNG', optimize=True)


def _look(
    config: Config, contract: Contract, record: Any, every: list[Any], index: int, modality: str
) -> Look:
    images = {}
    for name, settings in config.model.modalities.items():
        image, _ = colours(recorded(record, contract, config, name), settings.bands)
        low, high = np.nanpercentile(image, (2, 98), axis=(0, 1))
        images[name] = stretch(image, low, high)
    chosen = sorted({0, len(every) // 2, len(every) - 1})
    blocks = {
        f'block {i + 1}': {
            other: values[index].reshape(config.model.grid) for other, values in every[i][modality].items()
        }
        for i in chosen
    }
    return Look(record_name(record, modality), modality, images, blocks)
