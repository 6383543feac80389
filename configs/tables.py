"""The tables of the Fus-MAE paper: everything they need is pretrained and evaluated, or resumed.

Table 1 (BigEarthNet-MM: all labels fine-tuned, 1 % linear; S1, S2, S1+S2), Table 2 (SEN12MS, as `resize` and
as `crops`), fusion x masking, and XAE on one sensor under the three rules for the absent one.

    python main.py tables --config=configs/tables.py --workdir=runs/tables

writes tables.md, tables.csv and tables.tex into the workdir, with the numbers of both versions of the paper
beside ours. A rerun goes on where the last one stopped; a cell that was not run says so. With
`--config.run=()` nothing is run. Published weights are imported first (configs/published.py) and given as
`--config.systems.imagenet.checkpoint=runs/imagenet/own` and, with the input of all other rows,
`--config.systems.imagenet_common.checkpoint=runs/imagenet/common`; so are `dino_mm`, `dino_mm_common`,
`satvit_published` and `satvit_published_common`. Rows without them stay empty. One
pretraining of the paper took 60 hours on two RTX 3090 Ti; this study has twelve.

Variants:
    (none)       the archives under data_dir/, ViT-B/16
    demo         the same tables on generated pairs with models that train in seconds: 15 to 20 minutes
                 on two cores, most of it compiling
    synthetic    pretrained against untrained on 6,000 generated pairs, three seeds, with the classes that are
                 built to need both sensors: most of an hour on two cores (docs/evaluation.md)
    fusion_masking   seven kinds of fusion x five masks on 2,000 generated pairs: 27 that there can be, each
                 against untrained weights (benchmarks/fusion_masking.py: the same on real pairs, one table)
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import ml_collections

from fusmae_jax.config.build import build, config_dict
from fusmae_jax.config.files import load_config
from fusmae_jax.errors import InputError, nearest
from fusmae_jax.shipped.data.bigearthnet_mm.labels import CLASSES_19
from fusmae_jax.shipped.data.generate.classes import CLASSES, NEED_BOTH, ONLY_S1, ONLY_S2
from fusmae_jax.tables.config import OF_CLASSES, StudyArchive, StudySystem, StudyTable, StudyTask, Tables

PRETRAIN, DINO = 'configs/pretrain.py', 'configs/pretrain_dino_mm.py'
FAMILY = {'xae': 'XAE', 'xad': 'XAD', 'xaed': 'XAE&D'}
MASKS = {'': 'independent', '_consistent': 'consistent'}
OTHERS = {
    'joint': 'joint self-attention',
    'multimae_dirichlet': 'MultiMAE',
    'satvit': 'SatViT, pretrained here',
}
PUBLISHED = {'imagenet': 'ImageNet', 'dino_mm': 'DINO-MM', 'satvit_published': 'SatViT'}
ALONE = {'mae_s1': ('s1',), 'mae_s2': ('s2',)}
COMMON = '_common'  # our z-scores, in place of the input that weights were published with
LAST4 = ("features=('last4_cls',)",)  # what DINO-MM is read off by
ABSENT = ('self', 'bypass', 'zero_image')
REPORT = ('top1', 'top3', 'precision_weighted', 'recall_weighted', 'f1_weighted')
VARIANTS = ('demo', 'synthetic', 'fusion_masking')


def get_config(variant: str = '') -> ml_collections.ConfigDict:
    """Every field of `Tables`."""
    if variant not in ('', *VARIANTS):
        raise InputError(f'configs/tables.py: no variant {variant!r}; {nearest(variant, VARIANTS)}')
    if variant == 'synthetic':
        return config_dict(synthetic())
    if variant == 'fusion_masking':
        return config_dict(fusion_masking())
    return config_dict(paper(small=variant == 'demo'))


def paper(small: bool = False) -> Tables:
    """The tables of the paper; small: of generated pairs, with models that say nothing about the method."""
    systems = _systems(small)
    shown = tuple(n for n, s in systems.items() if s.published or s.baseline or n.endswith(COMMON))
    family = tuple(f'{name}{masks}' for name in FAMILY for masks in MASKS)
    tasks = ('linear_1',) if small else ('finetune_100', 'linear_1')
    table_1 = StudyTable('Table 1: BigEarthNet-MM, mAP micro', shown, ('finetune_100', 'linear_1'))
    tables = {
        'table_1': table_1,
        'table_1_macro': dataclasses.replace(
            table_1, title='Table 1 with mAP macro', metrics=('ap_macro',), against='random', fusion=True
        ),
        'table_2': StudyTable(
            'Table 2: SEN12MS, linear', shown, ('sen12ms_resize', 'sen12ms_crops'), True, REPORT
        ),
        'fusion_masking': StudyTable('Fusion x masking', family, tasks),
        'family': StudyTable('Pretrained here', (*OTHERS, *ALONE, 'late', 'dino_mm_here'), tasks),
        'absent': StudyTable('XAE on one sensor', ('xae',), tuple(f'absent_{rule}' for rule in ABSENT), True),
    }
    return Tables(
        archives=_generated() if small else _real(),
        systems=systems,
        tasks=_tasks(shown, small),
        tables=tables,
    )


def _real() -> dict[str, StudyArchive]:
    return {
        'bigearthnet': StudyArchive('data_dir/bigearthnet_mm/1.0.0'),
        'sen12ms': StudyArchive('data_dir/sen12ms/1.0.0'),
    }


def _generated() -> dict[str, StudyArchive]:
    return {'bigearthnet': StudyArchive(pairs=400), 'sen12ms': StudyArchive(layout='sen12ms', pairs=160)}


# A ViT of width 32 and depth 4 on a 48 px grid: the whole of the paper's study in minutes.
SMALL = (
    *('model.size=custom', 'model.width=32', 'model.depth=4', 'model.heads=2', 'model.image_size=(48, 48)'),
    *('model.patch_size=8', 'model.decoder.width=16', 'model.decoder.depth=1', 'model.decoder.heads=2'),
    *('train.batch_size=16', 'train.steps=20', 'optimizer.warmup_steps=5', 'optimizer.learning_rate=1e-3'),
    *('data.train_split=train', 'data.val_split=', 'log.images_every_steps=0', 'checkpoint.every_steps=10'),
)
SMALL_DINO = (
    *(setting for setting in SMALL if not setting.startswith(('model.decoder', 'data.val_split', 'log.'))),
    *('dino.global_crops.size=48', 'dino.local_crops.size=24', 'dino.local_crops.count=2'),
    *('dino.head.out_dim=64', 'dino.head.hidden=32', 'dino.head.bottleneck=16'),
)


def _systems(small: bool) -> dict[str, StudySystem]:
    def own(variant: str, label: str, **more: Any) -> StudySystem:
        return StudySystem(label, f'{PRETRAIN}:{variant}', SMALL if small else (), 'bigearthnet', **more)

    published = {
        f'{name}{common}': StudySystem(
            f'{label}, {"common" if common else "own"} input', published='' if common else label
        )
        for name, label in PUBLISHED.items()
        for common in ('', COMMON)
    }
    family = {
        f'{name}{suffix}': own(
            f'{name}{suffix}', f'{label}, {masks} masks', published='' if suffix else label
        )
        for name, label in FAMILY.items()
        for suffix, masks in MASKS.items()
    }
    others = {variant: own(variant, label) for variant, label in OTHERS.items()}
    alone = {name: own(name, f'MAE, {s.upper()}', sensors=(s,)) for name, (s,) in ALONE.items()}
    alone['late'] = StudySystem('late fusion of the two MAEs', beside=tuple(ALONE))
    dino = StudySystem('DINO-MM, pretrained here', DINO, SMALL_DINO if small else (), 'bigearthnet')
    published['dino_mm_here'] = dino
    for name in ('dino_mm', f'dino_mm{COMMON}', 'dino_mm_here'):
        published[name] = dataclasses.replace(published[name], evaluate=LAST4)
    baselines = {
        'random': StudySystem('XAE, untrained', baseline='random', like='xae'),
        'bands': StudySystem('band statistics', baseline='bands'),
        'prior': StudySystem('class shares', baseline='prior'),
    }
    return published | family | others | alone | baselines


def _tasks(systems: tuple[str, ...], small: bool) -> dict[str, StudyTask]:
    few, tune = (FEW, FEW + TUNE) if small else ((), ())
    probe, finetune = 'configs/linear_probe.py', 'configs/finetune.py:paper'
    linear = StudyTask(
        '1 %, linear', config=f'{probe}:paper', settings=few, data='bigearthnet', published='linear_1'
    )
    tuned = StudyTask(
        '100 %, fine-tuned', 'finetune', finetune, tune, 'bigearthnet', published='finetune_100'
    )
    tasks = {'finetune_100': dataclasses.replace(tuned, systems=systems if small else ()), 'linear_1': linear}
    # The paper does not say which sensor.
    sen12ms = StudyTask(
        config=f'{probe}:paper,sen12ms',
        settings=few,
        data='sen12ms',
        columns=(('s2',), ('s1',)),
        systems=systems,
        published='sen12ms',
    )
    tasks['sen12ms_resize'] = dataclasses.replace(sen12ms, label='whole images')
    tasks['sen12ms_crops'] = dataclasses.replace(
        sen12ms, label='four crops', settings=(*sen12ms.settings, 'image=crops')
    )
    alone = dataclasses.replace(linear, columns=(('s1',), ('s2',)), systems=('xae',), published='')
    for rule in ABSENT:
        tasks[f'absent_{rule}'] = dataclasses.replace(
            alone, label=f'absent sensor: {rule}', settings=(*few, f'encoder.absent={rule}')
        )
    return tasks


# Of the demo: as few draws, seeds and epochs as there can be; 1 % of its 200 records is two.
FEW = ('epochs=4.0', 'labels.seeds=(0, 1)', 'head_seeds=(0,)', 'intervals.replicates=100', 'batch_size=16')
TUNE = ('epochs=1.0', 'warmup_epochs=0.25', 'learning_rates=(1e-3,)')


def synthetic(seed: int = 20_240_707) -> Tables:
    """Pretrained against untrained: the same architecture, sweep and labels; only the weights differ."""
    archives = {'generated': StudyArchive(pairs=6000, seed=seed, workers=2)}
    systems = {
        'xae': StudySystem('XAE, modality masks', f'{PRETRAIN}:xae_modality,native', MODEST, 'generated'),
        'random': StudySystem('XAE, untrained', baseline='random', like='xae'),
        'bands': StudySystem('band statistics', baseline='bands'),
        'prior': StudySystem('class shares', baseline='prior'),
    }
    both, radar, optical = (tuple(names(group)) for group in (NEED_BOTH, ONLY_S1, ONLY_S2))
    tasks = {
        f'linear_{percent}': StudyTask(
            f'{percent} %, linear',
            config='configs/linear_probe.py:paper',
            settings=(f'labels.fractions=({percent / 100},)', 'labels.draw=stratified', *PROBE),
            data='generated',
        )
        for percent in (10, 1)
    }
    every, first = tuple(systems), ('linear_10',)
    tables = {
        'main': StudyTable('mAP micro', every, tuple(tasks), against='random'),
        'macro': StudyTable('mAP macro', every, tuple(tasks), metrics=('ap_macro',), against='random'),
    }
    for name, title, classes in (
        ('need_both', 'The four classes that need both sensors', both),
        ('only_s1', 'Two classes that Sentinel-2 cannot tell apart', radar),
        ('only_s2', 'Two classes that Sentinel-1 cannot tell apart', optical),
    ):
        metrics = (OF_CLASSES, *(f'ap/{each}' for each in classes))
        tables[name] = StudyTable(
            title, ('xae', 'random', 'bands'), first, False, metrics, classes, fusion=True
        )
    return Tables(archives=archives, systems=systems, tasks=tasks, tables=tables, seeds=(0, 1, 2))


def names(group: tuple[int, ...]) -> list[str]:
    """Classes of the 19-class nomenclature; the generator has them in that order."""
    assert len(CLASSES) == len(CLASSES_19)
    return [CLASSES_19[i] for i in group]


# 60 px, patch 12: 25 patches of 240 m a sensor; 0.4 million parameters. Masks hide a whole sensor in half of
# the samples: an encoder that has only ever seen both reads S2 alone no better than one that is untrained.
MODEST = (
    *('model.size=custom', 'model.width=64', 'model.depth=3', 'model.heads=4', 'model.image_size=(60, 60)'),
    *('model.patch_size=12', 'model.scan=False', 'model.decoder.width=64', 'model.decoder.depth=2'),
    *('model.decoder.heads=4', 'train.batch_size=32', 'train.steps=5000', 'optimizer.warmup_steps=100'),
    *('optimizer.learning_rate=2e-3', 'augment.vflip=0.5', 'data.train_split=train', 'data.val_split='),
    *('log.images_every_steps=0', 'checkpoint.every_steps=500'),
)
# With few labels a head converges only on standardised features and with more epochs than the paper's.
PROBE = (
    *('batch_norm=(True,)', 'epochs=100.0', 'batch_size=64', 'head_seeds=(0,)'),
    *('learning_rates=(1e-2, 3e-2, 1e-1)', 'weight_decays=(0.0, 0.1, 1.0)'),
)


FUSIONS = {
    **FAMILY,
    'joint': 'joint self-attention',
    'stack': 'stacked bands',
    'multimae': "MultiMAE's decoders",
    'late': 'late fusion',
}
STRATEGIES = ('independent', 'consistent', 'joint_uniform', 'dirichlet', 'modality')
UNTRAINED = 'untrained'
# What an untrained encoder differs by: XAD and XAE&D are what joint and XAE are, but for the decoder.
ENCODERS = {'xae': 'xae', 'xad': 'joint', 'xaed': 'xae', 'joint': 'joint', 'stack': 'stack'}
ENCODERS |= {'multimae': 'multimae', 'late': 'late'}
SENSORS = {'s1': ('s1',), 's2': ('s2',)}
# 40 px, patch 8: 25 patches a sensor. So little training that all cells take some 20 minutes of one core.
BRIEF = (
    *('model.size=custom', 'model.width=64', 'model.depth=3', 'model.heads=4', 'model.image_size=(40, 40)'),
    *('model.patch_size=8', 'model.scan=False', 'model.decoder.width=64', 'model.decoder.depth=1'),
    *('model.decoder.heads=4', 'train.batch_size=32', 'train.steps=300', 'optimizer.warmup_steps=30'),
    *('optimizer.learning_rate=2e-3', 'augment.crop_scale=(0.5, 1.0)', 'augment.vflip=0.5'),
    *('data.train_split=train', 'data.val_split=', 'log.images_every_steps=0', 'checkpoint.every_steps=300'),
)


def fusion_masking(
    archive: StudyArchive | None = None,
    sensors: Mapping[str, tuple[str, ...]] | None = None,
    probe: tuple[str, ...] = (),
) -> Tables:
    """Every kind of fusion under every kind of mask that it can have, and what it is without training.

    Args:
        archive: the data set; 2,000 generated pairs if not given.
        sensors: sensor -> settings of every pretraining that reads it, where the data are not BigEarthNet's.
        probe: more settings of the linear probe, which has all labels.
    """
    sensors = sensors or dict.fromkeys(SENSORS, ())

    def own(variant: str, label: str, masks: str, more: tuple[str, ...] = (), **about: Any) -> StudySystem:
        read = about.get('sensors', tuple(SENSORS))
        settings = (*BRIEF, *(line for name in read for line in sensors[name]), f'masking.strategy={masks}')
        return StudySystem(label, f'{PRETRAIN}:{variant}', (*settings, *more), 'pairs', **about)

    systems: dict[str, StudySystem] = {}
    # A rate of 0: late fusion has no untrained baseline, since it is no encoder of its own.
    for suffix, more in (('', ()), (f'_{UNTRAINED}', ('train.steps=1', 'optimizer.learning_rate=0.0'))):
        for name, read in SENSORS.items():
            label = f'MAE, {name.upper()}{suffix.replace("_", ", ")}'
            systems[f'mae_{name}{suffix}'] = own(f'mae_{name}', label, STRATEGIES[0], more, sensors=read)
    for (fusion, masks), reason in cells().items():
        if reason:
            continue
        name, label = f'{fusion}_{masks}', f'{FUSIONS[fusion]}, {masks}'
        bare, words = f'{fusion}_{UNTRAINED}', f'{FUSIONS[fusion]}, {UNTRAINED}'
        if fusion == 'late':
            systems[name] = StudySystem(label, beside=tuple(f'mae_{s}' for s in SENSORS))
            systems[bare] = StudySystem(words, beside=tuple(f'mae_{s}_{UNTRAINED}' for s in SENSORS))
            continue
        systems[name] = own(fusion, label, masks)
        if ENCODERS[fusion] == fusion and bare not in systems:
            systems[bare] = StudySystem(words, baseline='random', like=name)
    rows = tuple(name for name in systems if not name.startswith('mae_'))
    settings = ('labels.fractions=(1.0,)', *PROBE, *probe)
    task = StudyTask(
        'linear', config='configs/linear_probe.py:paper', settings=settings, data='pairs', systems=rows
    )
    return Tables(
        archives={'pairs': archive or StudyArchive(pairs=2000, seed=31, workers=1)},
        systems=systems,
        tasks={'linear': task},
        tables={'main': StudyTable('Fusion x masking, mAP micro', rows, ('linear',))},
    )


@functools.cache
def cells() -> dict[tuple[str, str], str]:
    """(fusion, masks) -> why there is no such pretraining; '' if there is."""
    excluded = {}
    # Masks first: a study that is cut off has compared all kinds of fusion under some of them.
    for masks in STRATEGIES:
        for fusion in FUSIONS:
            variant = 'mae_s1' if fusion == 'late' else fusion
            reason = ''
            try:
                build(load_config(f'{PRETRAIN}:{variant}', (*BRIEF, f'masking.strategy={masks}')))
            except InputError as error:
                reason = str(error).splitlines()[-1].strip().removeprefix('- ')
            # The settings allow it: of one sensor, the same patches in all sensors are any patches.
            if fusion == 'late' and masks == 'consistent':
                reason = 'encoders of one sensor each share no mask: the same as independent'
            excluded[fusion, masks] = reason
    return excluded
