"""The settings of an encoder under evaluation, and the names of the baselines beside it."""

import dataclasses
from typing import Literal

from fusmae_jax.config.run import MAX_SEED
from fusmae_jax.config.setting import setting
from fusmae_jax.errors import nearest

RANDOM, BANDS, PRIOR = 'random', 'bands', 'prior'
BASELINES = (RANDOM, BANDS, PRIOR)


@dataclasses.dataclass(frozen=True)
class EncoderSettings:
    """What turns images into features; its weights never change."""

    # A working directory or one checkpoint; 'random' or 'bands' for a baseline alone
    checkpoint: str = setting('', path=True)
    baselines: tuple[str, ...] = BASELINES  # beside it: untrained weights, band statistics, class shares
    # The checkpoint whose architecture and statistics 'random' takes; '' is `checkpoint`
    like: str = setting('', path=True)
    seed: int = setting(0, least=0, most=MAX_SEED)  # of the untrained weights
    name: str = ''  # in the results; '' takes the name of the pretraining configuration
    modalities: tuple[tuple[str, ...], ...] = (('s1',), ('s2',), ('s1', 's2'))  # each a run of its own
    absent: Literal['', 'self', 'bypass', 'zero_image'] = ''  # '' is the rule that the model was trained by
    stats: Literal['checkpoint', 'dataset'] = 'checkpoint'  # dataset: those measured while converting it
    absent_bands: Literal['error', 'mean'] = 'error'
    accept: tuple[str, ...] = ()  # differences from what the model knows, such as 'level'
    batch: int = setting(64, least=1)  # images at once; rounded up to a multiple of the devices


def encoder_problems(encoder: EncoderSettings) -> list[str]:
    """What is impossible among these settings whatever the checkpoint holds."""
    problems = []
    if not encoder.checkpoint:
        problems.append(f"encoder.checkpoint='': give a working directory, {RANDOM!r} or {BANDS!r}")
    if encoder.checkpoint == RANDOM and not encoder.like:
        problems.append(f'encoder.checkpoint={RANDOM!r} needs encoder.like: whose architecture?')
    for name in encoder.baselines:
        if name not in BASELINES:
            problems.append(f'encoder.baselines: {name!r}; {nearest(name, BASELINES)}')
    if RANDOM in encoder.baselines and encoder.checkpoint == BANDS and not encoder.like:
        problems.append(f'encoder.baselines: {RANDOM!r} needs encoder.like: whose architecture?')
    if not encoder.modalities or not all(encoder.modalities):
        problems.append(f'encoder.modalities={encoder.modalities} must be lists of one modality or more')
    if twice := [names for names in encoder.modalities if len(set(names)) < len(names)]:
        problems.append(f'encoder.modalities: {twice[0]} names one twice')
    return problems
