"""Kinds of published encoders, and what has to be said of a weight file to import it."""

import dataclasses
from typing import Literal

from fusmae_jax.config.setting import range_problems, setting
from fusmae_jax.errors import raise_all
from fusmae_jax.sensors import SENSORS

COMMON_SIDE = 224
SATVIT_STATISTICS = {  # band: mean, std of SatViT's pretraining data; VV and VH of ascending orbits
    'B01': (884.7334, 1254.2722),
    'B02': (958.7927, 1269.4990),
    'B03': (1144.4814, 1201.9749),
    'B04': (1152.3252, 1262.4783),
    'B05': (1559.3584, 1241.1108),
    'B06': (2384.0615, 1175.8447),
    'B07': (2680.8501, 1203.6945),
    'B08': (2769.1274, 1223.6914),
    'B8A': (2886.8269, 1193.5830),
    'B09': (3064.9661, 1439.5085),
    'B11': (2169.6279, 998.2980),
    'B12': (1491.0271, 907.8351),
    'VV': (-10.97, 3.6673),
    'VH': (-17.9148, 4.5137),
}
SATVIT_DESCENDING = {'VV': (-10.9671, 3.6928), 'VH': (-18.0231, 4.4928)}


@dataclasses.dataclass(frozen=True)
class WeightFile:
    """A weight file of another project, and what the file does not say. Zeros take the published values."""

    kind: Literal['', 'imagenet_vit', 'imagenet_mae', 'satvit', 'dino_mm'] = ''
    file: str = setting('', path=True)  # .safetensors, or a PyTorch pickle without code in it
    name: str = ''  # in the results; '' is the kind
    # What each input channel of the file is, in its order: 'B02', 'VV', ... A channel under any other name
    # gets no input. SatViT's must be given: its tutorial has 16 (twelve bands, VV and VH of ascending orbits,
    # VV and VH of descending ones), its weights 15. VV and VH may stand twice, the ascending one first:
    # images of one orbit then feed both channels, as the tutorial does it. DINO-MM's are known.
    channels: tuple[str, ...] = ()
    width: int = setting(0, least=0)
    depth: int = setting(0, least=0)
    heads: int = setting(0, least=0)  # cannot be told from a file
    patch_size: int = setting(0, least=0)
    image_size: int = setting(0, least=0)  # that the positions of the file are for
    # ImageNet: of pixels on [0, 1]; -1 takes the published ones of R, G and B
    pixel_mean: float = setting(-1.0, least=-1)
    pixel_std: float = setting(0.0, least=0)


@dataclasses.dataclass(frozen=True)
class PublishedKind:
    """What was published."""

    title: str
    layout: str
    width: int
    heads: int
    patch_size: int
    image_size: int
    norm_eps: float = 1e-6
    pixel_mean: tuple[float, ...] = ()  # of red, green and blue on [0, 1]
    pixel_std: tuple[float, ...] = ()
    positions: Literal['sincos', 'learned'] = 'learned'


IMAGENET_MEAN, IMAGENET_STD, HALF = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), (0.5, 0.5, 0.5)
KINDS = {
    # timm's vit_base_patch16_224 takes pixels at mean 0.5, std 0.5; MAE at ImageNet's.
    'imagenet_vit': PublishedKind('ImageNet ViT, supervised', 'timm', 768, 12, 16, 224, 1e-6, HALF, HALF),
    'imagenet_mae': PublishedKind(
        'ImageNet MAE', 'timm', 768, 12, 16, 224, 1e-6, IMAGENET_MEAN, IMAGENET_STD, 'sincos'
    ),
    'satvit': PublishedKind('SatViT v1', 'satvit', 768, 12, 16, 256, 1e-5, positions='sincos'),
    'dino_mm': PublishedKind('DINO-MM', 'dino_mm', 384, 6, 8, 224),
}
DINO_MM_SIDES = (128, 112)  # resized, and cut out of the centre


def check(config: WeightFile) -> None:
    """Raises InputError with every setting that is impossible whatever the file holds."""
    problems = range_problems(config)
    if config.kind not in KINDS:
        problems.append(f'kind={config.kind!r}: choose one of {", ".join(KINDS)}')
    if not config.file:
        problems.append("file='': give the weight file")
    if config.kind == 'satvit' and not config.channels:
        problems.append(
            'channels is empty: the weights of SatViT have 15 input channels, its tutorial has 16, and which '
            'one is missing is not guessed; list them as the file has them, such as '
            "('B01', ..., 'B12', 'VV', 'VH', 'VV')"
        )
    if config.kind.startswith('imagenet') and config.channels:
        problems.append('channels: an ImageNet file has red, green and blue; leave the list empty')
    problems += _repeated(config)
    for name, sensor in SENSORS.items():
        if config.channels and not set(sensor.bands) & set(config.channels):
            problems.append(f'channels={config.channels}: no band of {name} ({", ".join(sensor.bands)})')
    if config.pixel_mean != -1 and not config.pixel_std > 0:
        problems.append('pixel_std must be positive where pixel_mean is given')
    raise_all('config: these settings cannot be used', problems)


def _repeated(config: WeightFile) -> list[str]:
    """Bands that stand there more often than a file of this kind has them."""
    bands = {band for sensor in SENSORS.values() for band in sensor.bands}
    problems = []
    for channel in sorted(bands & set(config.channels)):
        count = config.channels.count(channel)
        if config.kind == 'satvit' and channel in SATVIT_DESCENDING:
            if count > 2:
                problems.append(f'channels: {channel} stands there {count} times; SatViT has two orbits')
        elif count > 1:
            problems.append(f'channels: {channel} stands there twice; a band has one channel')
    return problems
