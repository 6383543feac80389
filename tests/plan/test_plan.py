"""The plan of a run: the machine's name, the line through two sizes, the sentence when memory runs out."""

import dataclasses
import json

import jax
import pytest

from fusmae_jax.config import run as cfg
from fusmae_jax.errors import InputError
from fusmae_jax.input.contract import Group
from fusmae_jax.plan import batches, command, records, report, speed, topology
from fusmae_jax.plan.parts import Place
from fusmae_jax.plan.roofline import Share
from fusmae_jax.shipped.data.bigearthnet_mm.schema import GROUPS, PUBLISHED
from fusmae_jax.train import dino_flops
from fusmae_jax.train.setup import make_setup
from tests.support import dino_helpers
from tests.support.helpers import CONTRACT
from tests.support.tiny import tiny_config, tiny_model

MEBIBYTE = 2**20


def small_config(**changes):
    """One sensor: the least to compile that still has a stack of blocks to compute again."""
    model = tiny_model('none', 'none', modalities={'s1': cfg.Model().modalities['s1']}, depth=6)
    model = dataclasses.replace(model, decoder=cfg.Decoder(16, 1, 2))
    return tiny_config(model=model, augment=cfg.Augment(crop=False), **changes)


@pytest.fixture(scope='module')
def here():
    """Two devices of this machine."""
    return topology.machine('local')._replace(devices=jax.devices()[:2])


@pytest.fixture(scope='module')
def over(here):
    """A plan for two devices with too little memory, from beginning to end."""
    return command.make_plan(small_config(), here._replace(memory=MEBIBYTE))


@pytest.fixture(scope='module')
def plan(over, here):
    """The same with the memory of this machine."""
    return over._replace(machine=here, remedies=[])


def parameter_bytes(plan):
    return sum(x.size * 4 for x in jax.tree.leaves(plan.setup.abstract_state()['params']))


@pytest.mark.slow
def test_a_plan_of_the_devices_at_hand(plan):
    assert plan.fits and plan.step.batch_size == 8 and plan.setup.mesh.size == 2
    # Adam keeps two moments beside each parameter, and the batch comes on top.
    assert 3 * parameter_bytes(plan) <= plan.state < 3 * parameter_bytes(plan) + 100
    assert plan.state < plan.step.memory.arguments < plan.state + 8 * 120_000
    assert plan.step.memory.total == plan.step.total
    assert plan.estimate.images_per_second is None  # a CPU has no listed peak
    text = '\n'.join(report.lines(plan))
    for part in ('2 x cpu', 'memory ', 'largest ', 'GFLOP an image', 'all-reduce', 'unknown', 'compiled '):
        assert part in text


@pytest.mark.slow
def test_gradients_are_what_the_step_sends(plan):
    sent = plan.step.collectives
    assert sent.exact
    assert parameter_bytes(plan) <= sent.kinds['all-reduce'].bytes < 1.1 * parameter_bytes(plan) + 10_000


@pytest.mark.slow
def test_the_numbers_for_programs(over):
    values = json.loads(json.dumps(report.data(over)))
    assert values['memory_per_device']['total'] == over.step.total
    assert values['memory_per_device']['limit'] == MEBIBYTE
    assert values['collectives']['all-reduce']['calls'] > 0
    assert len(values['remedies']) == 3 and values['fits'] is False
    assert len(values['largest_batch_from']) == 2


@pytest.mark.slow
def test_dino_mm_is_planned_and_may_be_accumulated(here):
    plan = command.make_plan(dino_helpers.tiny(), here._replace(memory=MEBIBYTE))
    assert not plan.fits and any('train.accumulation=' in remedy.setting for remedy in plan.remedies)
    assert plan.estimate.flops_per_image == dino_flops.train_flops_per_image(plan.setup.config)


@pytest.mark.slow
def test_out_of_memory_is_one_sentence_with_what_helps(over):
    assert not over.fits and over.largest < 8
    settings = [remedy.setting.split('=')[0] for remedy in over.remedies]
    assert settings == ['train.accumulation', 'parallel.fsdp', 'model.remat']
    assert [remedy.source for remedy in over.remedies] == ['estimated', 'computed', 'compiled']
    assert all(0 < remedy.saves < over.step.total for remedy in over.remedies)
    assert 0.3 * over.state < over.remedies[1].saves < 0.5 * over.state  # what divides is halved
    (sentence,) = [line for line in report.lines(over) if line.startswith('Out of memory: 4 images on ')]
    for remedy in over.remedies:
        assert remedy.setting in sentence
    assert sentence.count('. ') == 0


def test_a_batch_that_the_machine_cannot_split_is_planned_as_the_nearest(here, capsys):
    config, notes = command._settled(tiny_config(train=cfg.Train(batch_size=7, steps=3)), here)
    assert config.train.batch_size == 8
    assert 'batch_size=7' in notes[0] and '--config.train.batch_size=8' in notes[0]


def test_half_precision_is_chosen_for_the_machine_and_not_for_this_host(here):
    config, notes = command._settled(tiny_config(), here)
    assert config.train.compute_dtype == 'auto' and not notes


def test_an_estimate_says_where_its_mfu_is_from(here):
    class Device:
        device_kind, platform = 'NVIDIA H200', 'gpu'

    machine = here._replace(devices=[Device(), Device()])
    setup = make_setup(small_config(), CONTRACT, 100, jax.devices()[:2])
    second = speed.Speed(speed.MODELLED, {Place('loss', ''): Share(seconds=1.0)}, True)

    def made(*args):
        return report.estimate(setup, machine, *args)

    modelled, assumed, given = made(second, None), made(None, None), made(second, 0.5)
    assert (modelled.mfu_source, assumed.mfu_source, given.mfu_source) == ('modelled', 'assumed', 'given')
    assert modelled.images_per_second == pytest.approx(8)  # a batch in a second
    assert modelled.mfu == pytest.approx(8 * modelled.flops_per_image / (2 * 989e12))
    assert modelled.hours == pytest.approx(setup.total_steps / 3600)
    assert assumed.mfu == 0.4 and given.images_per_second == pytest.approx(
        0.5 * 2 * 989e12 / given.flops_per_image
    )


def test_nothing_is_known_of_the_speed_of_a_cpu(here):
    with pytest.raises(InputError, match='--speed'):
        command.make_plan(small_config(), here, speed=True)


@pytest.mark.parametrize(
    ('name', 'part'),
    [
        ('v5e', 'not understood'),
        ('v5e:16', 'not understood'),
        ('v9:4x4', 'not understood'),
        ('v5e:4x4x2slice', 'not understood'),
        ('v5e:4x4x4', '2 dimensions'),  # libtpu would end the process
        ('v5p:4x4', '3 dimensions'),
        ('v5e:4x4x0slices', 'at least one slice'),
    ],
)
def test_machines_that_do_not_exist(name, part):
    with pytest.raises(InputError, match=part):
        topology.machine(name)


@pytest.mark.parametrize(
    ('installed', 'said'), [('0.0.42.1', ''), ('0.0.45', 'libtpu 0.0.45 is not the one')]
)
def test_a_libtpu_of_another_jax_is_named(monkeypatch, installed, said):
    monkeypatch.delenv('TPU_LIBRARY_PATH', raising=False)
    needs = ['libtpu==0.0.42.*; extra == "tpu"', 'numpy>=2.0']
    monkeypatch.setattr(topology.metadata, 'requires', lambda name: needs)
    monkeypatch.setattr(topology.metadata, 'version', lambda name: installed)
    assert said in (text := topology.libtpu_mismatch()) and bool(text) == bool(said)
    if said:
        assert 'pip install "libtpu==0.0.42.*"' in text


def test_jax_states_its_libtpu(monkeypatch):
    """The pairing is read from the metadata of the jax that is installed, whatever its version."""
    monkeypatch.delenv('TPU_LIBRARY_PATH', raising=False)
    version = topology.metadata.version
    monkeypatch.setattr(
        topology.metadata, 'version', lambda name: '9.9' if name == 'libtpu' else version(name)
    )
    assert f'libtpu 9.9 is not the one that jax {jax.__version__}' in topology.libtpu_mismatch()


def test_the_parts_of_a_name():
    assert topology.SYNTAX.fullmatch('v5e:16x16').groups() == ('v5e', '16x16', None)
    assert topology.SYNTAX.fullmatch('v5e:16x16x2slices').groups() == ('v5e', '16x16', '2')
    assert topology.SYNTAX.fullmatch('v5p:4x4x8').groups() == ('v5p', '4x4x8', None)
    assert topology.SYNTAX.fullmatch('v4:4x4x8x12slices').groups() == ('v4', '4x4x8', '12')


def test_a_line_through_two_sizes():
    line = batches.line_through((4, 1000), (8, 1400))
    assert line == (600, 100) and line.at(10) == 1600
    assert batches.largest_rows(line, 2000) == 13  # 1,900 less 600, in hundreds
    assert batches.largest_rows(line, 600) == 0
    assert batches.largest_rows(batches.line_through((4, 1000), (8, 1000)), 2000) is None


def test_the_second_size_lies_near_the_limit():
    # 100 a row above 600: 1,900 - 600 leaves room for 13.
    assert batches.second_point(4, 1000, 600, 2000) == 13
    assert batches.second_point(64, 7000, 600, 2000) == 13  # from above too
    assert batches.second_point(13, 1900, 600, 2000) == 6  # never the same again
    assert batches.second_point(1, 1900, 600, 1500) == 2
    assert batches.second_point(4, 1000, 600, 10**9) == 32


def test_compilers_refusals_are_read():
    known = (
        'RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (8.00T) '
        'exceeds available HBM (15.75G).'
    )
    assert topology.out_of_memory(known) == (2**43, int(15.75 * 2**30))
    assert topology.out_of_memory('Used 33.24G of 15.75G hbm. Exceeded')[0] == int(33.24 * 2**30)
    assert topology.out_of_memory('INTERNAL: something else') == (None, None)


def test_the_assumed_records_are_those_of_bigearthnet():
    contract, examples, notes = records.layout(tiny_config(data=cfg.Data(path='not/here')))
    assert contract.groups == GROUPS
    assert examples == PUBLISHED['train'] and records.PAIRS == PUBLISHED
    assert 'not/here' in notes[0] and '269,695' in notes[1]
    everything = tiny_config(data=cfg.Data(path='not/here', train_split='all_minus_val_test'))
    assert records.layout(everything)[1] == 340_737
    assert records.layout(everything, 12)[1] == 12


def test_data_that_are_there_are_asked(example_dataset):
    contract, examples, notes = records.layout(tiny_config(data=cfg.Data(path=str(example_dataset))))
    assert contract.fingerprint and examples < 100 and notes == ()


def test_records_that_cannot_be_guessed():
    unknown = tiny_config(data=cfg.Data(path='not/here', train_split='train[:10%]'))
    with pytest.raises(InputError, match='--examples'):
        records.layout(unknown)
    third = cfg.Modality(bands=('h',), mean=(0.0,), std=(1.0,))
    model = dataclasses.replace(unknown.model, modalities={'dem': third}, fusion=cfg.Fusion('none', 'none'))
    with pytest.raises(InputError, match=r'model.modalities.dem'):
        records.layout(dataclasses.replace(unknown, model=model))
    assert isinstance(GROUPS['s1'], Group)
