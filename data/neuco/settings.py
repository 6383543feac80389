"""The settings of the command `neuco`."""

import dataclasses
from typing import Literal

from fusmae_jax.config.setting import range_problems, setting
from fusmae_jax.errors import raise_all

Feature = Literal['mean_patch', 'mean_all', 'concat_per_sensor', 'cls', 'last4_cls']


@dataclasses.dataclass(frozen=True)
class NeucoConfig:
    """Everything that `neuco` can be told."""

    sensors: tuple[str, ...] = ()  # s1, s2 or both; () takes what the model has
    level: Literal['l2a', 'l1c'] = 'l2a'  # of Sentinel-2: the folder s2l2a or s2l1c
    # What is added to digital numbers of Sentinel-2: 0 as the archive is published, without the 1000 of
    # SSL4EO-S12 v1.1; -1000 for files that have it
    s2_offset: float = 0.0
    feature: Feature = 'mean_patch'  # as in evaluations; then the mean over windows, then over the seasons
    # `embedding_dim` of the benchmark, beyond which it refuses a file; 0 for a benchmark that sets none
    most_dims: int = setting(1024, least=0)
    batch: int = setting(32, least=1)  # images at once, of whole locations: at least those of one
    stats: Literal['checkpoint', 'dataset'] = 'checkpoint'  # dataset: measured over a sample of the files
    absent_bands: Literal['error', 'mean'] = 'error'
    accept: tuple[str, ...] = ()  # differences from what the model knows, such as 'level'
    overwrite: bool = False  # replace the output, and the .json beside it


def check_settings(config: NeucoConfig) -> None:
    """Raises InputError with every setting that is impossible whatever the files hold."""
    problems = range_problems(config)
    if len(set(config.sensors)) < len(config.sensors) or not set(config.sensors) <= {'s1', 's2'}:
        problems.append(f"sensors={config.sensors}: give ('s1',), ('s2',) or ('s1', 's2')")
    raise_all('config: these settings cannot be used', problems)
