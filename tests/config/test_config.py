"""Configuration files, settings, variants, and what is refused or cannot be combined."""

import dataclasses
import os
import subprocess
import sys
import typing

import pytest
from flax import nnx

import main
from fusmae_jax.checkpoints.checkpoints import find
from fusmae_jax.config.build import build, config_dict, from_dict, to_dict
from fusmae_jax.config.files import load_config
from fusmae_jax.config.run import RESERVED, Config, Fusion, Modality, Model, dino_mm
from fusmae_jax.config.setting import setting
from fusmae_jax.errors import InputError
from fusmae_jax.paths import escaped, user_path
from fusmae_jax.shipped.configs.pretrain import MODELS
from fusmae_jax.shipped.data import records
from fusmae_jax.shipped.data.doctor import opening
from fusmae_jax.shipped.data.records import RecordError
from tests.support.kinds import KINDS

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
    modalities = Config().model.modalities
    config = config_dict(Config(model=Model(modalities={'s2': modalities['s2'], 's1': modalities['s1']})))
    config.model.modalities.s2.loss_weight = 2.0
    assert list(build(config.to_dict()).model.modalities) == ['s2', 's1']
    assert list(config.to_dict()) == [
        f.name
        for f in dataclasses.fields(Config)
        if not f.metadata.get('sparse') or f.default is not None  # a group that can be set
    ]


def test_what_is_stored_only_when_it_is_set_can_be_set():
    model = build(load_config(PRETRAIN, ['model.attention=xla', 'model.norm=pallas'])).model
    assert (model.attention, model.norm, model.cls) == ('xla', 'pallas', True)
    assert not {'attention', 'norm', 'cls'} & set(to_dict(build(load_config(PRETRAIN)).model))


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
        ({'model': {'norm': 'pallas', 'numerics': {'norm_variance': 'fast'}}}, "use model.norm='xla'"),
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


@pytest.mark.parametrize(
    ('change', 'part'),
    [
        ({'mlp_ratio': 1e-4}, 'leaves no hidden unit'),
        ({'modalities': {'s1': Modality(('VV',), 's1', loss_weight=0.0)}}, 'every loss_weight is 0'),
    ],
)
def test_what_is_possible_alone_and_not_together(change, part):
    model = Model(**({'size': 'tiny', 'fusion': Fusion('none')} | change))
    with pytest.raises(InputError, match=part):
        build(to_dict(Config(model=model)))


def test_a_group_without_its_values_is_named_not_a_traceback():
    values = to_dict(dino_mm())
    values['dino']['global_crops'] = {'size': 'big'}
    with pytest.raises(InputError, match=r"size='big' must be of type int(.|\n)*count is missing"):
        from_dict(Config, values)


NAMES = [*sorted(RESERVED), 'other_s1', 'S1', '1s', 'a/b', '', 'sentinel-1', 'é']


@pytest.mark.parametrize('name', NAMES)
def test_a_modality_is_not_called_like_a_part_of_the_model(name):
    modality = Modality(('VV',), 's1')
    with pytest.raises(InputError, match=f'model.modalities: {name!r} '):
        build(to_dict(Config(model=Model(modalities={name: modality, 's2': modality}))))


def test_the_names_that_are_taken_are_all_that_a_container_of_modules_has():
    assert {name for name in dir(nnx.Dict) if not name.startswith('_')} <= RESERVED


@dataclasses.dataclass(frozen=True)
class Paths:
    one: str = setting('', path=True)
    many: tuple[str, ...] = setting((), path=True)
    word: str = ''


def test_a_tilde_is_the_home_folder_in_paths_alone(monkeypatch):
    monkeypatch.setenv('HOME', '/home/somebody')
    given = from_dict(Paths, {'one': '~/run', 'many': ['~', 'a/~', 'gs://b/~'], 'word': '~/run'})
    assert given == Paths('/home/somebody/run', ('/home/somebody', 'a/~', 'gs://b/~'), '~/run')
    with pytest.raises(InputError, match=r'config\.one: ~nobody-here/run: ~nobody-here is no home folder'):
        from_dict(Paths, {'one': '~nobody-here/run'})
    assert user_path('~/x') == '/home/somebody/x'


def test_every_setting_that_names_a_file_or_folder_expands_it():
    """By the names that such settings have; another one that is a path needs `path=True` too."""
    words = ('path', 'root', 'checkpoint', 'checkpoints', 'output', 'table', 'metadata', 'file')
    for kind in KINDS:
        for name, field in text_fields(kind):
            if name.split('_')[-1] in words:
                assert field.metadata.get('path'), f'{kind.__name__}: {name}'


def text_fields(kind):
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        hint = hints[field.name]
        inside = typing.get_args(hint)
        if dataclasses.is_dataclass(hint):
            yield from text_fields(hint)
        elif inside and dataclasses.is_dataclass(inside[-1]):
            yield from text_fields(inside[-1])
        elif hint is str or inside[:1] == (str,):
            yield field.name, field


@pytest.mark.parametrize('name', ['run', 'checkpoints', '7', 'checkpoints/7', 'checkpoints/checkpoints'])
def test_a_run_may_be_called_like_its_checkpoints(name, tmp_path):
    workdir = tmp_path / name
    (workdir / 'checkpoints' / '30').mkdir(parents=True)
    for path, step in ((workdir, None), (workdir / 'checkpoints' / '30', 30)):
        assert find(path) == (workdir, step)
        assert opening.kind_of(path) == 'checkpoint'
    # A folder of checkpoints inside a run of that name is a run to look at; its own step finds the way.
    (tmp_path / 'data').mkdir()
    assert opening.kind_of(tmp_path / 'data') == 'folder'


def test_names_that_are_no_text_are_escaped_and_refused(tmp_path):
    name = os.fsdecode(b'caf\xe9')
    assert escaped(f'{name}/\u00e9\u20ac') == 'caf\\xe9/\u00e9\u20ac'
    with pytest.raises(InputError, match=r'caf\\xe9: this name is not UTF-8'):
        user_path(name)
    with pytest.raises(InputError, match=r'caf\\xe9: this name is not UTF-8'):
        records.folder(str(tmp_path / name), 's1_root')
    error = RecordError(name, 'f', 'x', 'y')
    assert str(error) == 'caf\\xe9: f: x; y' and error.skip(name)['record'] == 'caf\\xe9'
