"""Settings of DINO-MM: crops, a head and a teacher instead of masks and decoders.

Defaults are those of its published code; `config.run.dino_mm` has the rest of that run.
"""

import dataclasses

from fusmae_jax.config.setting import setting


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
class DinoHead:
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
    head: DinoHead = dataclasses.field(default_factory=DinoHead)
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
