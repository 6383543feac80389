"""An encoder of fusmae_jax as a model of torchgeo-bench: a file to copy, which needs torch and that package.

    python main.py export --checkpoint=runs/xae --to=torch --out=xae_torch

and, as the model's YAML,

    _target_: fusmae_torchgeo_bench.FusMAEBench
    folder: xae_torch
    sensors: [s1, s2]    # or one of them
    radar: by_level      # or by_name, for the row that takes the names as they stand

benv2 of GEO-Bench-2 stores VH before VV under the names VV, VH, and the statistics of torchgeo-bench 0.4.0
follow: its `vv` has a mean of -19.4 dB and its `vh` one of -12.6 dB. With `by_level` the channel with the
higher mean is VV, as it is over land and sea; with `by_name` nothing is exchanged. Report both.
"""

import importlib.util
import pathlib
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from torchgeo_bench.models.interface import BenchModel

REFLECTANCE = 10.0  # a mean below this is reflectance, which digital numbers have 10,000 times
DECIBEL = -2.0  # a mean above this is no backscatter in dB
FAMILY = {'s1': ('s1', 'sar'), 's2': ('s2',)}  # what sets call a sensor


class Channel(NamedTuple):
    """Where a band of the model lies in an image of the benchmark."""

    index: int | None  # None: nowhere
    scale: float = 1.0


def channels_of(
    bands: Sequence[Any], sensor: str, wanted: Sequence[str], unit: str, radar: str = 'by_level'
) -> list[Channel]:
    """The channels of a sensor's bands.

    Args:
        bands: BandSpecs of the images, in the order of their channels.
        sensor: s1 or s2.
        wanted: bands of the model, such as VV or B8A.
        unit: what the model takes: dB, DN or reflectance.
        radar: by_level or by_name.

    Raises:
        ValueError: images without the sensor, or radar that is not in dB.
    """
    index = {spec.name.upper(): i for i, spec in enumerate(bands) if spec.sensor in FAMILY[sensor]}
    there = [name for name in wanted if name in index]
    if not there:
        raise ValueError(f'{sensor}: none of {list(wanted)} among {[spec.name for spec in bands]}')
    if sensor == 's1':
        levels = {name: bands[index[name]].mean for name in there}
        if unit != 'dB' or max(levels.values()) > DECIBEL:
            raise ValueError(f's1: means {levels} are no backscatter in dB; leave s1 out of `sensors`')
        if radar == 'by_level' and exchanged(bands):
            index['VV'], index['VH'] = index['VH'], index['VV']
        return [Channel(index.get(name)) for name in wanted]
    reflectance = max(bands[index[name]].mean for name in there) < REFLECTANCE
    scale = {('DN', True): 1e4, ('reflectance', False): 1e-4}.get((unit, reflectance), 1.0)
    return [Channel(index.get(name), scale) for name in wanted]


def exchanged(bands: Sequence[Any]) -> bool:
    """Whether the channel called VV is the darker one, so that it holds VH."""
    level = {spec.name.lower(): spec.mean for spec in bands}
    return 'vv' in level and 'vh' in level and level['vv'] < level['vh']


class FusMAEBench(BenchModel):
    """Pooled features (b, width) of an exported encoder; normalisation and resampling are inside of it."""

    def __init__(
        self,
        bands: list[Any],
        *,
        folder: str,
        sensors: Sequence[str] = ('s1', 's2'),
        feature: Literal['pooled', 'cls'] = 'pooled',
        radar: Literal['by_level', 'by_name'] = 'by_level',
        **_: object,
    ):
        super().__init__(bands=bands, normalization='identity')
        self.encoder, self.feature = _load(pathlib.Path(folder)), feature
        contract = self.encoder.contract
        units = {entry['sensor']: entry['unit'] for entry in contract['inputs'].values()}
        self.channels = {
            name: channels_of(bands, name, contract['sensors'][name]['bands'], units[name], radar)
            for name in sensors
        }

    def images(self, stack: torch.Tensor) -> dict[str, torch.Tensor]:
        """Each sensor of a stack (b, channels, rows, columns); NaN for a band that is absent."""
        return {name: torch.stack([_take(stack, c) for c in ch], 1) for name, ch in self.channels.items()}

    @torch.no_grad()
    def _forward_patch_features(self, images: torch.Tensor) -> torch.Tensor:
        return self.encoder(self.images(images))[self.feature]


def _take(stack: torch.Tensor, channel: Channel) -> torch.Tensor:
    if channel.index is None:
        return torch.full_like(stack[:, 0], torch.nan, dtype=torch.float32)
    return stack[:, channel.index].float() * channel.scale


def _load(folder: pathlib.Path) -> Any:
    """The module that `export --to=torch` wrote, with its weights."""
    spec = importlib.util.spec_from_file_location('fusmae_encoder', folder / 'fusmae_encoder.py')
    if spec is None or spec.loader is None or not (folder / 'fusmae_encoder.py').is_file():
        raise FileNotFoundError(f'{folder}: no fusmae_encoder.py; write it with export --to=torch')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.load(folder)
