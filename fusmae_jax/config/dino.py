"""Settings of a DINO-MM run: pretraining with crops, a head and a teacher instead of masks and decoders.

Defaults are those of DINO-MM's published code (ViT-S/8, 12 + 2 stacked bands). `build` makes a checked
DinoConfig from an ml_collections file, as `config_build.build` makes a Config.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from fusmae_jax.config import build as config_build
from fusmae_jax.config import run as cfg
from fusmae_jax.config.run import Config
from fusmae_jax.config.setting import setting
from fusmae_jax.errors import nearest, raise_all


@dataclasses.dataclass(frozen=True)
class Crops:
    """Random crops of one size. `blur` and `solarize` are probabilities: one for all crops, or one each."""

    count: int = setting(least=1)
    size: int = setting(least=1)  # pixels, after resampling
    scale: tuple[float, float] = setting(above=0, most=1)  # share of the image area
    blur: tuple[float, ...] = setting(least=0, most=1)
    solarize: tuple[float, ...] = setting((0.0,), least=0, most=1)


@dataclasses.dataclass(frozen=True)
class Distortion:
    """Radiometric augmentation of one crop, on a scale where 0 and 255 are mean - 2 std and mean + 2 std."""

    jitter: float = setting(0.8, least=0, most=1)  # probability of brightness and contrast, together
    brightness: float = setting(0.4, least=0, most=1)  # factor in [1 - x, 1 + x]
    contrast: float = setting(0.4, least=0, most=1)  # the same, about the mean of each band in the crop
    gray: float = setting(0.2, least=0, most=1)  # probability of the mean over all bands of all sensors
    blur_sigma: tuple[float, float] = setting((0.1, 2.0), above=0)  # pixels
    solarize_below: float = setting(128.0, least=0, most=256)  # x becomes 255 - x below this
    # Probability that one of the sensors, each as likely, is 0 as a whole
    sensor_drop: float = setting(0.5, least=0, most=1)


@dataclasses.dataclass(frozen=True)
class Head:
    """The projection head: an MLP, an L2 norm, and a last layer whose columns have length 1."""

    out_dim: int = setting(65_536, least=1)
    hidden: int = setting(2048, least=1)
    bottleneck: int = setting(256, least=1)
    layers: int = setting(3, least=1)  # linear layers of the MLP


@dataclasses.dataclass(frozen=True)
class Dino:
    """What DINO-MM adds to a pretraining run."""

    global_crops: Crops = dataclasses.field(
        default_factory=lambda: Crops(2, 112, (0.4, 1.0), (1.0, 0.1), (0.0, 0.2))
    )
    local_crops: Crops = dataclasses.field(default_factory=lambda: Crops(8, 48, (0.05, 0.4), (0.5,)))
    distortion: Distortion = dataclasses.field(default_factory=Distortion)
    # Each image and band, before the crops; (0, 1) is off
    quantile_clip: tuple[float, float] = setting((0.01, 0.99), least=0, most=1)
    quantile_clip_modality: str = 's1'  # '' is off
    head: Head = dataclasses.field(default_factory=Head)
    # Of the student's last block; rises linearly from 0 at the first
    drop_path: float = setting(0.1, least=0, below=1)
    # Patches, in the scale of interpolated positions, as in DINO's code
    position_offset: float = setting(0.1, least=0)
    student_temperature: float = setting(0.1, above=0)
    teacher_temperature: float = setting(0.04, above=0)
    centre_momentum: float = setting(0.9, least=0, most=1)
    # At the start; 1 at the end, along a half cosine
    teacher_momentum: float = setting(0.996, least=0, most=1)
    final_learning_rate: float = setting(1e-6, least=0)
    final_weight_decay: float = setting(0.4, least=0)  # `optimizer.weight_decay` is that of the start
    # In epochs; a float, so that a part of an epoch can be given
    freeze_last_layer_epochs: float = setting(1.0, least=0)


def _model() -> cfg.Model:
    """ViT-S/8 over stacked bands; statistics of Sentinel-1 are those of DINO-MM's code."""
    paper = cfg.Model().modalities
    s1 = cfg.Modality(
        bands=('VH', 'VV'),
        sensor='s1',
        mean=(-19.22, -12.59),
        std=(5.42, 5.04),
        statistics_from='the code of DINO-MM',
    )
    return cfg.Model(
        modalities={'s2': paper['s2'], 's1': s1},
        image_size=(224, 224),  # the grid of the learned positions; crops interpolate them
        patch_size=8,
        size='S',
        positions='learned',
        fusion=cfg.Fusion(encoder='stack'),
    )


@dataclasses.dataclass(frozen=True)
class DinoConfig(Config):
    """Everything a DINO-MM run needs.

    Of `augment` only `crop_ratio`, `hflip` and `vflip` count; `masking`, `loss` and `model.decoder` mean
    nothing.
    """

    name: str = 'pretrain_dino_mm'
    data: cfg.Data = dataclasses.field(default_factory=lambda: cfg.Data(normalisation='mean_2sigma'))
    model: cfg.Model = dataclasses.field(default_factory=_model)
    masking: cfg.Masking = dataclasses.field(default_factory=lambda: cfg.Masking(strategy='consistent'))
    optimizer: cfg.Optimizer = dataclasses.field(
        default_factory=lambda: cfg.Optimizer(
            learning_rate=5e-4, b2=0.999, weight_decay=0.04, warmup_epochs=10.0, clip_norm=3.0
        )
    )
    train: cfg.Train = dataclasses.field(
        default_factory=lambda: cfg.Train(batch_size=256, compute_dtype='float32')
    )
    log: cfg.Log = dataclasses.field(default_factory=lambda: cfg.Log(images_every_steps=0))
    dino: Dino = dataclasses.field(default_factory=Dino)


def build(values: Mapping[str, Any]) -> DinoConfig:
    """The checked configuration, with the model size filled in; raises InputError with what is wrong."""
    config = config_build.from_dict(DinoConfig, values)
    shared = {key: value for key, value in config_build.to_dict(config).items() if key != 'dino'}
    config_build.build(shared)  # raises for what no run can use
    config = dataclasses.replace(config, model=config_build.resolve(config.model))
    raise_all('config: these settings cannot be used', [*_check_run(config), *_check_dino(config.dino)])
    return config


def _check_run(config: DinoConfig) -> list[str]:
    problems = []
    default = DinoConfig()
    for path, found, wanted in (
        ('model.fusion.encoder', config.model.fusion.encoder, 'stack'),
        ('model.positions', config.model.positions, 'learned'),
        ('model.final_norm', config.model.final_norm, True),
        ('data.normalisation', config.data.normalisation, 'mean_2sigma'),
        ('augment.crop', config.augment.crop, True),
        ('optimizer.decay_all', config.optimizer.decay_all, False),
        ('data.val_split', config.data.val_split, ''),  # there is no held-out loss without masks
        ('log.images_every_steps', config.log.images_every_steps, 0),  # and nothing is reconstructed
        ('augment.crop_scale', config.augment.crop_scale, default.augment.crop_scale),  # dino.*_crops.scale
    ):
        if found != wanted:
            problems.append(f'{path}={found!r}: DINO-MM needs {wanted!r}')
    for name in ('masking', 'loss'):
        if getattr(config, name) != getattr(default, name):
            problems.append(f'{name}: DINO-MM has no masks and reconstructs nothing; leave it as it is')
    patch = config.model.patch_size
    for name, crops in _crops(config.dino):
        if crops.size % patch:
            problems.append(f'{name}.size={crops.size} is not a multiple of model.patch_size={patch}')
    modality = config.dino.quantile_clip_modality
    if modality and modality not in config.model.modalities:
        hint = nearest(modality, config.model.modalities)
        problems.append(f'dino.quantile_clip_modality={modality!r}; {hint}')
    return problems


def _check_dino(dino: Dino) -> list[str]:
    problems = []
    for name, crops in _crops(dino):
        low, high = crops.scale
        if not low <= high:
            problems.append(f'{name}.scale={crops.scale} must have the low one first')
        for field in ('blur', 'solarize'):
            values = getattr(crops, field)
            if len(values) not in (1, crops.count):
                problems.append(f'{name}.{field}={values} must be one probability, or {crops.count}')
    if dino.global_crops.count < 2:
        problems.append(f'dino.global_crops.count={dino.global_crops.count} must be at least 2')
    for path, (low, high) in (
        ('dino.quantile_clip', dino.quantile_clip),
        ('dino.distortion.blur_sigma', dino.distortion.blur_sigma),
    ):
        if not low <= high or (low == high and path == 'dino.quantile_clip'):
            problems.append(f'{path}={(low, high)} must have the low one first')
    return problems


def _crops(dino: Dino) -> tuple[tuple[str, Crops], ...]:
    return ('dino.global_crops', dino.global_crops), ('dino.local_crops', dino.local_crops)


def build_any(values: Mapping[str, Any]) -> Config:
    """The checked configuration of any pretraining run: DINO-MM where it has a `dino` group."""
    return build(values) if 'dino' in values else config_build.build(values)
