"""What is trained on OMBRIA: a small Fus-MAE with early fusion, and an MAE of the optical sensor alone.

Fixed before anything was measured on the test regions; nothing here was tuned.
"""

from fusmae_jax.config import run as cfg
from fusmae_jax.config.build import build, to_dict
from fusmae_jax.config.run import Config
from fusmae_jax.input.contract import fingerprint

STEPS, BATCH = 1500, 32
BANDS = {'s1': ('SAR',), 's2': ('B04', 'B03', 'B02')}


def pretraining(name: str, sensors: tuple[str, ...], data: str, seed: int, steps: int = STEPS) -> Config:
    """The configuration of one run; those of several sensors and of one differ in nothing else.

    A model pixel is 20 m and a token 160 m, so that a token is one patch of the flood labels.
    """
    # Placeholders: `stats='dataset'` replaces them with what was measured on the training regions.
    modalities = {
        key: cfg.Modality(bands, resample='bilinear', mean=(0.0,) * len(bands), std=(1.0,) * len(bands))
        for key, bands in BANDS.items()
        if key in sensors
    }
    model = cfg.Model(
        modalities=modalities,
        image_size=(64, 64),
        patch_size=8,
        size='custom',
        width=128,
        depth=4,
        heads=4,
        fusion=cfg.Fusion('xae' if len(sensors) > 1 else 'none'),
        decoder=cfg.Decoder(width=64, depth=2, heads=4),
        scan=False,
    )
    config = Config(
        name=name,
        seed=seed,
        data=cfg.Data(path=data, val_split='val', stats='dataset'),
        augment=cfg.Augment(crop_scale=(0.5, 1.0), vflip=0.5),
        model=model,
        optimizer=cfg.Optimizer(learning_rate=1e-3, warmup_steps=max(1, min(200, steps // 10))),
        train=cfg.Train(batch_size=BATCH, steps=steps),
        checkpoint=cfg.Checkpoint(every_steps=500, keep=1),
        log=cfg.Log(every_steps=100, images_every_steps=0, eval_every_steps=500),
    )
    return build(to_dict(config))


def digest(seed: int, steps: int = STEPS) -> str:
    """16 hexadecimal digits that change with any setting of the two runs, wherever the data lie."""
    runs = [pretraining('', sensors, '', seed, steps) for sensors in (('s1', 's2'), ('s2',))]
    return fingerprint({'runs': [to_dict(run) for run in runs]})
