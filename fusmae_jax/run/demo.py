"""The command `demo`: six real pairs of images, from GeoTIFFs to a picture of what a small model fills in."""

import os
from collections.abc import Callable
from typing import Any

from fusmae_jax import shipped
from fusmae_jax.config.build import build
from fusmae_jax.config.files import load_config
from fusmae_jax.run.loop import pretrain
from fusmae_jax.run.reconstruct import PICTURE, SUMMARY, reconstruct

# What it leaves in its folder.
FILES = (
    ('metrics', 'metrics.jsonl'),
    ('checkpoints', 'checkpoints'),
    ('config', 'config.json'),
    ('model card', 'MODEL_CARD.md'),
    ('picture', PICTURE),
    ('summary', SUMMARY),
)


def demo(workdir: str, *, convert: Callable[[dict[str, Any]], int]) -> int:
    """Converts, pretrains and reconstructs in `workdir`; returns 0, or the code of what did not end well.

    The configurations are those of the package, whatever lies in the working directory. Given again, it goes
    on where it was stopped.

    Args:
        workdir: for the data set, the run and the picture.
        convert: runs a conversion, given its settings (the converters are no part of this package).

    Raises:
        InputError: settings of an earlier run there differ.
    """
    folder = shipped.ROOT / 'configs'
    archive = load_config(f'{folder / "convert_bigearthnet_mm.py"}:example', [f'output={workdir}/data'])
    data = f'{workdir}/data/bigearthnet_mm/1.0.0'
    if not os.path.isdir(data) and (code := convert(archive)):
        return code
    if code := pretrain(build(load_config(str(folder / 'demo.py'), [f'data.path={data}'])), workdir):
        return code
    if code := reconstruct(workdir):
        return code
    for name, file in FILES:
        print(f'{name:<12} {os.path.join(workdir, file)}')
    print(f'{"curves":<12} tensorboard --logdir {workdir}')
    return 0
