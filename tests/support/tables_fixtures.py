"""A small study over the archive of the probe tests: one pretraining, baselines, one linear task."""

import dataclasses
import shutil

from fusmae_jax.tables.config import OF_CLASSES, StudyArchive, StudySystem, StudyTable, StudyTask, Tables
from tests.support.probe_fixtures import CLASSES

TINY = (
    *('model.size=tiny', 'model.image_size=(32, 32)', 'model.patch_size=8', 'model.scan=False'),
    *('model.decoder.width=16', 'model.decoder.depth=1', 'model.decoder.heads=2'),
    *('train.batch_size=8', 'train.steps=6', 'optimizer.warmup_steps=2', 'checkpoint.every_steps=2'),
    *('data.train_split=train', 'data.val_split=', 'log.images_every_steps=0', 'log.every_steps=1'),
)
COLUMNS = (('s1',), ('s1', 's2'))
SHORT = (
    *('data.labels=labels', 'intervals.cluster=scene', 'intervals.replicates=30', 'labels.fractions=(0.1,)'),
    *('labels.seeds=(0, 1)', 'head_seeds=(0,)', 'epochs=4.0', 'batch_size=8', 'learning_rates=(1e-3, 1e-2)'),
    *('encoder.batch=32',),
)


def study(path, checkpoint='', **changes):
    """A study that pretrains one system, or takes the one in a checkpoint; `changes` of its fields."""
    xae = StudySystem('XAE', 'configs/pretrain.py:xae', TINY, 'probe', published='XAE')
    if checkpoint:
        xae = StudySystem('XAE', checkpoint=checkpoint, published='XAE')
    systems = {
        'xae': xae,
        'random': StudySystem('untrained', baseline='random', like='xae'),
        'bands': StudySystem('bands', baseline='bands'),
        'prior': StudySystem('shares', baseline='prior'),
        'satvit': StudySystem('SatViT', published='SatViT'),
    }
    task = StudyTask('1 %, linear', settings=SHORT, data='probe', columns=COLUMNS, published='linear_1')
    classes = tuple(CLASSES[:2])
    tables = {
        'one': StudyTable('One', tuple(systems), ('linear_1',), against='random', fusion=True),
        'two': StudyTable('Two', ('xae',), ('linear_1',), True, (OF_CLASSES, 'ap/rough'), classes),
    }
    study = Tables({'probe': StudyArchive(str(path))}, systems, {'linear_1': task}, tables, seeds=(0,))
    return dataclasses.replace(study, **changes)


def with_features(done, folder):
    """The folder, with what encoders gave in a finished study: no test compiles them twice."""
    shutil.copytree(done / 'features', folder / 'features')
    return folder


def never(*_):
    """Stands where no archive is to be made up."""
    raise AssertionError('an archive was made up')
