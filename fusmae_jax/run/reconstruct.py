"""`python main.py reconstruct`: a picture of what a pretrained model fills in, and its summary."""

import dataclasses
import json

import jax
from etils import epath

from fusmae_jax import storage
from fusmae_jax.checkpoints.checkpoints import open_step
from fusmae_jax.config.run import Parallel
from fusmae_jax.errors import InputError
from fusmae_jax.input.mixture import open_train, open_validation
from fusmae_jax.pictures.figure import figure
from fusmae_jax.pictures.panels import Reconstructor, summary
from fusmae_jax.run.attention import PICTURE as ATTENTION
from fusmae_jax.run.attention import draw_attention, parse_patch
from fusmae_jax.run.workdir import read_config
from fusmae_jax.train.recipes import recipe_of
from fusmae_jax.train.setup import make_setup, of_any_length

PICTURE, SUMMARY = 'reconstruction.png', 'summary.json'


def reconstruct(workdir: epath.PathLike, data_path: str = '', attention: str = '') -> int:
    """Draws `log.num_images` records of the run in `workdir`, and writes their error ratios.

    The records are the first ones of the validation split, or of the training split where there is none;
    masks are fixed and nothing is augmented. `data_path` replaces the run's own `data.path`.
    Writes reconstruction.png and summary.json; and attention.png, of the patch `attention` (ROW,COLUMN).
    """
    from PIL import Image

    workdir = epath.Path(workdir)
    # A few records need one device, whatever mesh the run had.
    config = dataclasses.replace(read_config(workdir), parallel=Parallel())
    if not recipe_of(config).masks:
        raise InputError(f'{workdir}: this run reconstructs nothing; only masked autoencoders do')
    patch = parse_patch(attention, config) if attention else None
    if data_path:
        data = dataclasses.replace(config.data, path=data_path, mixture={})
        config = dataclasses.replace(config, data=data)
    held = open_validation(config)
    source = next(iter((held or open_train(config).sources).values()))
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, mixture={}, path=source.path))
    setup = make_setup(of_any_length(config), source.contract, len(source), jax.devices()[:1])
    checkpoints, step = open_step(workdir)
    try:
        params = checkpoints.params(setup.abstract_state()['params'], step)
    finally:
        checkpoints.close()

    records = [source[i] for i in range(min(config.log.num_images, len(source)))]
    draw = Reconstructor(config, setup.contract, setup.dtype, setup.mesh)
    panels = draw(params, records, source.fields)
    snow = [bool(record['snow']) if 'snow' in record else False for record in records]
    values = {'step': step, 'split': source.split, 'trained_on_these_records': not held}
    values |= summary(panels, snow, config)
    hidden = f'{config.masking.ratio:.0%} hidden ({config.masking.strategy})'
    title = f'{config.name}, step {step}: {hidden}, {source.split} split'
    picture = figure(panels, records, config, setup.contract, title)
    with (workdir / PICTURE).open('wb') as file:
        Image.fromarray(picture).save(file, 'PNG')
    storage.write_text(workdir / SUMMARY, json.dumps(values, indent=2) + '\n')
    print(json.dumps(values, indent=2))
    if patch:
        draw_attention(workdir, setup, params, records, patch, step)
    for name in (PICTURE, SUMMARY, *([ATTENTION] if patch else [])):
        print(f'wrote {workdir / name}')
    return 0
