"""Configuration files, settings on the command line, variants, and what is refused or cannot be combined."""

import dataclasses
import subprocess
import sys

import pytest

import main
from configs.pretrain import MODELS
from fusmae_jax.config.build import build, config_dict, to_dict
from fusmae_jax.config.files import load_config
from fusmae_jax.config.run import Config, Model
from fusmae_jax.errors import InputError

PRETRAIN = 'configs/pretrain.py'


@pytest.mark.parametrize('masks', ['', '_consistent'])
@pytest.mark.parametrize('model', ['xae', 'xad', 'xaed', 'joint', 'mae_s1', 'mae_s2'])
def test_every_variant_builds(model, masks):
    config = build(load_config(f'{PRETRAIN}:{model}{masks}'))
    assert config.masking.strategy == ('consistent' if masks else 'independent')
    assert (config.model.fusion.encoder == 'xae') == (model in ('xae', 'xaed'))
    assert (config.model.fusion.decoder == 'xad') == (model in ('xad', 'xaed'))
    assert list(config.model.modalities) == ([model[-2:]] if 'mae' in model else ['s1', 's2'])


def test_what_is_configured_keeps_its_order():
    """Modalities are channels, in a stack; ml_collections would sort them."""
    own = Config().model.modalities
    config = config_dict(Config(model=Model(modalities={'s2': own['s2'], 's1': own['s1']})))
    config.model.modalities.s2.loss_weight = 2.0
    assert list(build(config.to_dict()).model.modalities) == ['s2', 's1']
    assert list(config.to_dict()) == [
        f.name for f in dataclasses.fields(Config) if not f.metadata.get('sparse')
    ]


def test_the_paper_recipe():
    config = build(load_config(PRETRAIN))
    model = config.model
    assert (model.width, model.depth, model.heads, model.patch_size) == (768, 12, 12, 16)
    assert (model.grid, model.decoder.width, model.decoder.depth) == ((14, 14), 256, 2)
    assert (config.optimizer.learning_rate, config.optimizer.b2, config.optimizer.weight_decay) == (
        1.5625e-4,
        0.95,
        0.05,
    )
    assert (config.train.batch_size, config.train.epochs, config.optimizer.warmup_epochs) == (400, 100, 10)
    small = build(load_config(f'{PRETRAIN}:xad,b200'))
    assert (small.train.batch_size, small.optimizer.learning_rate) == (200, 1.5625e-4)
    native = build(load_config(f'{PRETRAIN}:native')).model
    assert (native.image_size, native.num_patches) == ((120, 120), 225)


def test_settings_on_the_command_line():
    config = build(
        load_config(PRETRAIN, ['model.image_size=(112,96)', 'data.path=a/b', 'loss.norm_pix=true'])
    )
    assert (config.model.image_size, config.data.path, config.loss.norm_pix) == ((112, 96), 'a/b', True)
    again = build(to_dict(config))
    assert again == config


@pytest.mark.parametrize(
    ('spec', 'override', 'parts'),
    [
        (f'{PRETRAIN}:xea', '', ["'xea'", "'xae'"]),
        (f'{PRETRAIN}:xae,xad', '', ['cannot be combined']),
        ('configs/pretrian.py', '', ['is not a Python file', 'configs/pretrain.py']),
        (PRETRAIN, 'model.sze=S', ["'sze'", "'size'"]),
        (PRETRAIN, 'model.fusion=3', ['group', 'encoder']),
        (PRETRAIN, 'model.fusion', ['no value']),
    ],
)
def test_what_cannot_be_loaded_is_one_clear_error(spec, override, parts):
    with pytest.raises(InputError) as error:
        load_config(spec, [override] if override else [])
    assert all(part in str(error.value) for part in parts)


def test_all_problems_are_reported_at_once():
    values = config_dict(Config()).to_dict()
    values['modle'] = 1
    values['train']['batch_size'] = 'many'
    values['model']['fusion']['encoder'] = 'xea'
    values['model']['image_size'] = [224, 224, 3]
    with pytest.raises(InputError) as error:
        build(values)
    for part in ("'model'", "'many'", "'xae'", 'must have 2 entries'):
        assert part in str(error.value)


@pytest.mark.parametrize(
    ('change', 'part'),
    [
        ({'model': {'patch_size': 15}}, '224 rows are not a whole number of patches'),
        ({'model': {'heads': 5}}, 'width=768 is not a multiple of model.heads=5'),
        ({'model': {'size': 'XL'}}, "model.size='XL'"),
        ({'masking': {'ratio': 0.999}}, 'masking.ratio=0.999 of 196'),
        ({'augment': {'crop_scale': (0.0, 1.0)}}, 'crop_scale'),
        ({'train': {'steps': 0, 'epochs': 0.0}}, 'both 0'),
        ({'train': {'steps': -5}}, 'train.steps=-5'),
        ({'masking': {'ratio': float('nan')}}, 'masking.ratio=nan'),
        ({'log': {'eval_every_steps': 0}}, 'log.eval_every_steps=0'),
        ({'augment': {'hflip': 7.0}}, 'augment.hflip=7.0'),
        ({'model': {'modalities': {'s1': {'bands': ('VV', 'HV'), 'sensor': 's1'}}}}, "'HV'"),
        ({'model': {'modalities': {'s1': {'bands': ('VV',), 'sensor': 's1'}}}}, 'needs two modalities'),
        ({'model': {'modalities': {'dem': {'bands': ('height',)}}}}, 'dem.mean must have one number'),
    ],
)
def test_impossible_values_are_refused(change, part):
    values = config_dict(Config()).to_dict()
    for group, settings in change.items():
        values[group] |= settings
    with pytest.raises(InputError) as error:
        build(values)
    assert part in str(error.value)


def test_the_entry_answers_bad_words_in_one_line(capsys):
    assert main.main(['main.py', 'pretrian']) == 2
    assert "did you mean 'pretrain'" in capsys.readouterr().err
    assert main.main(['main.py', 'pretrain', f'--config={PRETRAIN}', '--wrkdir=x']) == 2
    assert "did you mean 'workdir'" in capsys.readouterr().err
    assert main.main(['main.py', 'pretrain', f'--config={PRETRAIN}']) == 2
    assert '--workdir=DIR is missing' in capsys.readouterr().err
    assert main.main(['main.py', 'bench', f'--config={PRETRAIN}', '--device_batch=8,x']) == 2
    assert main.main(['main.py', '--help']) == 0


def test_a_bad_word_costs_no_jax():
    code = "import sys, main; main.main(['main.py', 'x']); print('jax' in sys.modules)"
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == 'False'


def test_every_variant_of_the_family_builds():
    for name in MODELS:
        config = build(load_config(f'{PRETRAIN}:{name}'))
        fusion, strategy = config.model.fusion, config.masking.strategy
        suffixes = ('consistent', 'joint_uniform', 'dirichlet', 'modality')
        expected = next((x for x in suffixes if name.endswith(f'_{x}')), 'independent')
        assert strategy == ('consistent' if fusion.encoder == 'stack' else expected)
        assert (fusion.encoder == 'stack') == (name in ('stack', 'satvit'))
        assert (fusion.decoder == 'multimae') == name.startswith('multimae')
    assert {'multimae_dirichlet', 'xaed_modality', 'mae_s1_consistent', 'xae_joint_uniform'} <= set(MODELS)
    assert not {'mae_s1_joint_uniform', 'stack_dirichlet', 'mae_s2_modality'} & set(MODELS)


def test_what_the_baselines_are_published_with():
    multimae = build(load_config(f'{PRETRAIN}:multimae_dirichlet'))
    decoder = multimae.model.decoder
    assert (decoder.width, decoder.depth, decoder.heads, decoder.cls) == (256, 2, 8, True)
    assert not multimae.model.final_norm and not decoder.final_norm
    satvit = build(load_config(f'{PRETRAIN}:satvit,b200'))
    decoder, numerics = satvit.model.decoder, satvit.model.numerics
    assert (decoder.width, decoder.depth, decoder.heads) == (384, 2, 6)
    assert (numerics.norm_eps, numerics.qkv_bias, satvit.loss.norm_pix) == (1e-5, False, True)
    weights = [m.loss_weight for m in satvit.model.modalities.values()]
    assert weights == [2 / 14, 12 / 14] and satvit.train.batch_size == 200
    stack = build(load_config(f'{PRETRAIN}:stack'))
    assert stack.model.decoder.width == 256 and not stack.loss.norm_pix


@pytest.mark.parametrize(
    ('change', 'part'),
    [
        ({'model': {'fusion': {'encoder': 'stack', 'decoder': 'xad'}}}, "decoder='xad' needs tokens of each"),
        (
            {'model': {'fusion': {'encoder': 'stack', 'decoder': 'multimae'}}},
            "decoder='multimae' needs tokens",
        ),
        ({'model': {'fusion': {'encoder': 'stack'}}}, "hidden together; use 'consistent'"),
        ({'masking': {'strategy': 'modality'}, 'model': {'fusion': {'absent': 'zero_image'}}}, 'no slot for'),
        ({'masking': {'strategy': 'dirichlet', 'concentration': 0.0}}, 'concentration=0.0 must be above 0'),
        ({'masking': {'strategy': 'modality', 'hide': 1.5}}, 'hide=1.5 must be at least 0 and at most 1'),
        ({'masking': {'strategy': 'modalities'}}, "'modality'"),
        (
            {'masking': {'strategy': 'joint_uniform'}, 'model': {'fusion': {'encoder': 'stack'}}},
            "hidden together; use 'consistent'",
        ),
    ],
)
def test_impossible_combinations_are_refused(change, part):
    values = config_dict(Config()).to_dict()
    for group, settings in change.items():
        for name, value in settings.items():
            values[group][name] = values[group][name] | value if isinstance(value, dict) else value
    with pytest.raises(InputError) as error:
        build(values)
    assert part in str(error.value)


@pytest.mark.parametrize(
    ('fusion', 'strategy', 'part'),
    [('stack', 'consistent', 'needs two modalities'), ('none', 'modality', "use 'independent' for one")],
)
def test_one_sensor_has_nothing_to_share(fusion, strategy, part):
    values = load_config(f'{PRETRAIN}:mae_s2')
    values['model']['fusion']['encoder'], values['masking']['strategy'] = fusion, strategy
    with pytest.raises(InputError) as error:
        build(values)
    assert part in str(error.value)


def test_a_mask_that_a_variant_cannot_have_is_one_clear_error():
    with pytest.raises(InputError, match="no variant 'stack_dirichlet'"):
        load_config(f'{PRETRAIN}:stack_dirichlet')
