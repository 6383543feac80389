"""A DINO-MM run of our own as a system of an evaluation: the teacher, its input, its records."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from flax import nnx

from fusmae_jax.checkpoints.checkpoints import Checkpoints, open_step
from fusmae_jax.config.build import to_dict
from fusmae_jax.config.run import Model
from fusmae_jax.encoders.load import load, read_stored
from fusmae_jax.encoders.settings import EncoderSettings
from fusmae_jax.encoders.systems import fit, open_system
from fusmae_jax.errors import InputError
from fusmae_jax.eval.config import Task
from fusmae_jax.eval.features import Extractor
from fusmae_jax.input import contract as contracts
from fusmae_jax.input import seen as leak
from fusmae_jax.input.prepare import unpatchify
from fusmae_jax.input.presets import make_inputs
from fusmae_jax.input.source import Source
from fusmae_jax.models import dino as models
from fusmae_jax.run import workdir
from fusmae_jax.run.workdir import write_config
from fusmae_jax.train.dino_encoder import encoder_config
from fusmae_jax.train.dino_objective import teacher_rate, update_teacher
from fusmae_jax.train.setup import make_setup
from tests.support.dino_helpers import CONTRACT, DEFAULT, records, tiny, whole_views
from tests.support.probe_fixtures import ACCEPT, archive, native

pytestmark = pytest.mark.usefixtures('one_device')
STEP = 40


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return archive(tmp_path_factory.mktemp('data'), {'train': 24, 'val': 16, 'test': 16})


def config_of():
    model = dataclasses.replace(tiny().model, depth=4)
    return dataclasses.replace(tiny(), model=model)


@pytest.fixture(scope='module')
def run(tmp_path_factory, data):
    """A checkpoint of step 40 of 60 with random numbers in it, and its state."""
    config, contract = config_of(), contracts.read(data)
    setup = make_setup(config, contract, 24)
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        name = jax.tree_util.keystr(path)
        if 'step' in name or leaf.dtype == jnp.int32:
            return jnp.full(leaf.shape, STEP, leaf.dtype)
        middle = 1.0 if 'scale' in name else 0.0
        return jax.device_put(rng.normal(middle, 0.2, leaf.shape).astype(leaf.dtype))

    state = jax.tree_util.tree_map_with_path(draw, setup.abstract_state())
    meta = {'config': to_dict(setup.config), 'contract': to_dict(contract), 'dtype': 'float32'}
    folder = epath.Path(tmp_path_factory.mktemp('run'))
    checkpoints = Checkpoints(folder, keep=1)
    older = {'of another layout': jnp.zeros(3)}  # what an optimizer keeps is not for an encoder to read
    checkpoints.save({**state, 'opt_state': older}, meta, seen=leak.to_bytes(leak.collect(data, 'train')))
    checkpoints.close()
    write_config(folder, config)
    return str(folder), jax.tree.map(np.asarray, state)


@pytest.mark.slow  # features of a stored DINO-MM run are compared every time
def test_the_system_is_the_teacher(data, run):
    folder, state = run
    system = open_system(folder, EncoderSettings(checkpoint=folder))
    config = config_of()
    assert system.name == config.name and len(system.seen.names.id) == 24
    assert system.model.config.model.fusion.absent == 'zero_image'
    rate = teacher_rate(config, 60)(jnp.int32(STEP - 1))
    teacher = update_teacher(state['extra']['teacher'], state['params'], rate)
    ready = Extractor(
        system,
        Task(path=str(data), labels='labels'),
        ('s1', 's2'),
        ('cls', 'last4_cls'),
        EncoderSettings(batch=16),
    )
    features = ready('val')
    source = Source(str(data), 'val', tuple(contracts.read(data).groups))
    batch = {name: np.stack([source[i][name] for i in range(16)]) for name in source.fields}
    fitted = fit(system.model, source.contract, ('s1', 's2'), EncoderSettings(), 'here').config
    graphdef = models.graph(config.model, config.dino)

    @jax.jit
    def expected(params, batch):
        patches = make_inputs(fitted, source.contract)(batch, None)
        images = [_image(p, fitted.model, name) for name, p in patches.items()]
        backbone = nnx.merge(graphdef, params).backbone
        return backbone(jnp.concatenate(images, axis=-1), last=4)

    last4 = np.asarray(expected(teacher, batch))
    keep = features['cls'].valid
    assert keep.all()  # the record without radar has its optical image
    np.testing.assert_allclose(features['last4_cls'].values, last4, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(features['cls'].values, last4[:, -config.model.width :], rtol=1e-3, atol=1e-3)
    images = {name: native(data, 'val', name) for name in ('s1', 's2')}
    embedding = load(folder).encode(images, units={'s1': 'dB', 's2': 'DN'}, accept=ACCEPT)
    np.testing.assert_allclose(embedding.cls, features['cls'].values, rtol=2e-5, atol=2e-5)
    fields = ready.row_fields()
    assert fields['image'] == 'resize 18 x 18, centre 16 x 16'
    assert fields['statistics'].startswith('mean +- 2 std to [0, 1]; s1 clipped to 1% .. 99% of each native')
    assert fields['absent'] == 'zero_image' and fields['modalities'] == ('s2', 's1')


def _image(patches, model, name):
    """The image of a modality, 0 where no pixel of a patch is valid."""
    rows, columns = model.grid
    p, bands = model.patch_size, len(model.modalities[name].bands)
    values = jnp.where(jnp.any(patches.valid, axis=2, keepdims=True), patches.values, 0)
    x = values.reshape(-1, rows, columns, p, p, bands).swapaxes(2, 3)
    return x.reshape(-1, rows * p, columns * p, bands)


def test_the_teacher_of_a_run_in_epochs_is_that_of_its_length(data, run, tmp_path):
    """A run that started from other weights has seen the records of those, too, and is no longer for it."""
    config = config_of()
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, steps=0, epochs=20))
    contract = contracts.read(data)
    setup = make_setup(config, contract, 24)
    assert setup.total_steps == 60
    others = np.array([b'other %d' % i for i in range(99)])
    before = leak.Seen(leak.RecordNames(*[others] * len(leak.RecordNames._fields)))
    seen = leak.union(leak.collect(data, 'train'), before)
    state = jax.tree.map(jnp.asarray, run[1])
    checkpoints = Checkpoints(tmp_path, keep=1)
    meta = workdir.checkpoint_meta(setup, seen, None, None, None)
    checkpoints.save({**state, 'opt_state': {'none': jnp.zeros(3)}}, meta, seen=leak.to_bytes(seen))
    checkpoints.close()
    reader, step = open_step(tmp_path)
    found = read_stored(reader, step, tmp_path).params['backbone']['cls']
    reader.close()
    rate = teacher_rate(config, 60)(jnp.int32(STEP - 1))
    expected = update_teacher(state['extra']['teacher'], state['params'], rate)['backbone']['cls']
    np.testing.assert_array_equal(found, expected)


def test_other_rules_for_absent_sensors_are_refused(run):
    folder, _ = run
    with pytest.raises(InputError, match='stacks its sensors'):
        open_system(folder, EncoderSettings(checkpoint=folder, absent='self'))


def test_the_input_is_that_of_pretraining():
    """Without the cut of the centre it is `whole_views`, absent sensors included."""
    config = tiny()
    made = encoder_config(config)
    assert made.preset.resize == 18 and encoder_config(DEFAULT).preset.resize == 128
    made = dataclasses.replace(made, preset=dataclasses.replace(made.preset, resize=0))
    batch = records(3)
    batch['s1'][1] = np.nan
    whole = np.asarray(jax.jit(whole_views(config, CONTRACT, 16))(batch))
    patches = jax.jit(functools.partial(make_inputs(made, CONTRACT), keys=None))(batch)
    model: Model = made.model
    images = []
    for p in patches.values():
        there = np.asarray(p.valid).any(axis=(1, 2), keepdims=True)
        values = np.where(there, np.asarray(p.values), 0)  # as the encoder does where sensors are stacked
        images.append(unpatchify(values, model.grid, model.patch_size))
    order = [list(patches).index(name) for name in model.modalities]
    np.testing.assert_allclose(np.concatenate([images[i] for i in order], axis=-1), whole, atol=2e-5)
