"""The variants of the baselines and of their masks, and what they cannot be combined with."""

import pytest

from configs.pretrain import MODELS
from fusmae_jax.config.build import build, config_dict
from fusmae_jax.config.files import load_config
from fusmae_jax.config.run import Config
from fusmae_jax.errors import InputError

PRETRAIN = 'configs/pretrain.py'


def test_every_variant_builds():
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
