"""Name rules, reports, position tables and foreign layouts; no PyTorch needed."""

import dataclasses

import numpy as np
import pytest

from fusmae_jax.config.run import Fusion, Modality, Model, Numerics
from fusmae_jax.errors import InputError
from fusmae_jax.interop.weights import files, positions
from fusmae_jax.interop.weights.importers import import_weights
from fusmae_jax.interop.weights.layouts import reference_rules
from fusmae_jax.interop.weights.rules import ImportOptions, flatten, ours_shapes, to_theirs
from fusmae_jax.models.positions import sincos_2d
from tests.support.interop_models import S2, assert_same, random_params, small_model


def state_of(model: Model, seed: int = 0) -> dict:
    return to_theirs(reference_rules(model), random_params(model, seed), 'test')


@pytest.mark.parametrize(
    'changes',
    [
        {},
        {'fusion': Fusion('none', 'none'), 'positions': 'learned', 'final_norm': False},
        {'fusion': Fusion('xae', 'none', shared_directions=True), 'depth': 1},
        {'numerics': Numerics(qkv_bias=False)},
    ],
)
def test_tables_name_the_parameters_of_the_model(changes):
    jax = pytest.importorskip('jax')
    from fusmae_jax.models import fusmae

    model = small_model(**changes)
    params = fusmae.param_shapes(model)
    paths, _ = jax.tree_util.tree_flatten_with_path(params)
    shapes = {'/'.join(key.key for key in path): leaf.shape for path, leaf in paths}
    assert shapes == ours_shapes(reference_rules(model))


def test_export_and_load_are_bit_identical(tmp_path):
    model, params = small_model(), random_params(small_model())
    path = tmp_path / 'model.safetensors'
    files.export(path, params, model)
    loaded, settings, sidecar = files.load(path)
    assert_same(loaded, params)
    assert settings == model
    assert sidecar['inputs']['s1']['bands'] == ['VV', 'VH']
    assert len(sidecar['inputs']['s2']['mean']) == 4


def test_every_difference_is_in_one_message():
    model, state = small_model(), state_of(small_model())
    state['norm.wieght'] = state.pop('norm.weight')
    state['blocks.0.mlp.fc1.weight'] = state['blocks.0.mlp.fc1.weight'].T
    state['cls_token'] = state['cls_token'].astype(np.float16)
    state['decoders.s1.pred.bias'] = state['decoders.s1.pred.bias'][:5]
    before = {name: x.copy() for name, x in state.items()}
    with pytest.raises(InputError) as error:
        import_weights('fusmae', state, model)
    for text in (
        'missing: norm.weight (32,)',
        "not part of this model: norm.wieght (32,); did you mean 'norm.weight'?",
        'blocks.0.mlp.fc1.weight has shape (32, 128), expected (128, 32) (it looks transposed)',
        'cls_token is float16, expected float32',
        'decoders.s1.pred.bias has shape (5,), expected (128,)',
    ):
        assert text in str(error.value)
    assert len(str(error.value).splitlines()) == 6
    assert_same(state, before)


def test_another_depth_names_the_blocks():
    with pytest.raises(InputError, match=r'not part of this model: blocks\.2\.norm1\.weight'):
        import_weights('fusmae', state_of(small_model(depth=4)), small_model())
    with pytest.raises(InputError, match=r'missing: blocks\.1\.norm1\.weight'):
        import_weights('fusmae', state_of(small_model(depth=2)), small_model())


def test_params_that_do_not_fit_are_not_exported(tmp_path):
    params = random_params(small_model())
    del params['encoder']['norm']
    with pytest.raises(InputError, match='missing: encoder/norm/scale'):
        files.export(tmp_path / 'a.safetensors', params, small_model())
    assert not list(tmp_path.iterdir())


def test_unknown_layout_is_answered():
    with pytest.raises(InputError, match="did you mean 'timm'"):
        import_weights('tim', {}, small_model())


# Foreign layouts


def timm_state(model: Model, channels: int, side: int = 4) -> dict:
    """A timm-style ViT with the sizes of `model`; block names are those of the reference."""
    plain = dataclasses.replace(
        model,
        fusion=Fusion('none', 'none'),
        modalities={'x': Modality(bands=('a',) * channels)},
        final_norm=True,
    )
    keep = ('blocks.', 'norm.', 'cls_token', 'patch_embed.')
    state = {k: v for k, v in state_of(plain, 5).items() if k.startswith(keep)}
    state = {k.replace('patch_embed.x', 'patch_embed.proj'): v for k, v in state.items()}
    rng = np.random.default_rng(9)
    state['pos_embed'] = rng.normal(size=(1, 1 + side**2, model.width)).astype(np.float32)
    state['head.weight'] = np.zeros((10, model.width), np.float32)
    return state


def test_timm_inflates_rgb_and_seeds_the_cross_attention():
    model = small_model(positions='learned')
    state, base = timm_state(model, 3), random_params(model, 1)
    params, report = import_weights('timm', state, model, base)
    weight = state['patch_embed.proj.weight']
    for name, bands in (('s1', 2), ('s2', 4)):
        kernel = params['encoder']['patch'][name]['kernel'].reshape(8, 8, bands, 32)
        for band in range(bands):
            expected = weight.mean(1).transpose(1, 2, 0) * 3 / bands
            np.testing.assert_allclose(kernel[:, :, band], expected, rtol=1e-6)
    cross = params['encoder']['block1']['cross']['s2']
    np.testing.assert_array_equal(cross['query']['kernel'], state['blocks.0.attn.qkv.weight'][:32].T)
    np.testing.assert_array_equal(cross['kv']['bias'], state['blocks.0.attn.qkv.bias'][32:])
    np.testing.assert_array_equal(cross['context_norm']['scale'], state['blocks.0.norm1.weight'])
    stacked = params['encoder']['blocks']['mlp']['up']['kernel']
    np.testing.assert_array_equal(stacked[1], state['blocks.2.mlp.fc1.weight'].T)
    np.testing.assert_allclose(
        params['encoder']['cls'], state['cls_token'][0, 0] + state['pos_embed'][0, 0], rtol=1e-6
    )
    assert report.unused == ['head.weight']
    assert {path.split('/')[0] for path in report.kept} == {'xad', 'decoders'}
    assert_same(params['decoders'], base['decoders'])
    assert 'each the mean over RGB' in report.text()


def test_missing_base_and_learned_positions_are_errors():
    with pytest.raises(InputError) as error:
        import_weights('timm', timm_state(small_model(), 3), small_model())
    assert 'the file has no weights for xad/s1' in str(error.value)
    assert "set model.positions='learned'" in str(error.value)
    options = ImportOptions(drop_positions=True)
    _, report = import_weights(
        'timm', timm_state(small_model(), 3), small_model(), random_params(small_model()), options
    )
    assert 'pos_embed' in report.unused


def test_dino_mm_channels_go_to_their_sensors():
    model = small_model(positions='learned')
    state = timm_state(model, 14)
    wrapped = {f'teacher.backbone.{k}': v for k, v in state.items()} | {'student.module.x': np.zeros(1)}
    wrapped['teacher.head.last_layer.weight_g'] = np.zeros(3, np.float32)
    params, report = import_weights('dino_mm', wrapped, model, random_params(model))
    weight = state['patch_embed.proj.weight']
    s1 = params['encoder']['patch']['s1']['kernel'].reshape(8, 8, 2, 32)
    np.testing.assert_array_equal(s1[:, :, 0], weight[:, 13].transpose(1, 2, 0))  # VV is last
    np.testing.assert_array_equal(s1[:, :, 1], weight[:, 12].transpose(1, 2, 0))
    s2 = params['encoder']['patch']['s2']['kernel'].reshape(8, 8, 4, 32)
    np.testing.assert_array_equal(s2[:, :, 3], weight[:, 7].transpose(1, 2, 0))  # B08
    assert 'channels of the file without a place: B01, B05' in report.text()
    assert 'head.last_layer.weight_g' in report.unused
    assert 'left out beside teacher: student' in report.text()


def satvit_state(model: Model, channels: int) -> dict:
    names = {
        'norm1': '0.input_norm',
        'attn.qkv': '0.to_qkv',
        'attn.proj': '0.to_out',
        'norm2': '1.input_norm',
        'mlp.fc1': '1.net.0',
        'mlp.fc2': '1.net.3',
    }
    state = {}
    for key, value in timm_state(model, 1).items():
        if key.startswith('blocks.'):
            for ours, theirs in names.items():
                key = key.replace(ours, theirs)
            state[key.replace('blocks.', 'encoder.layers.')] = value
        elif key.startswith('norm.'):
            state[f'encoder.norm_out.{key[5:]}'] = value
    rng = np.random.default_rng(3)
    state['linear_input.weight'] = rng.normal(size=(32, channels * 64)).astype(np.float32)
    state['linear_input.bias'] = rng.normal(size=32).astype(np.float32)
    table = np.roll(sincos_2d((4, 4), 32), 16, 1)
    state['pos_embed'] = table[None].astype(np.float32)
    state['enc_to_dec.weight'] = np.zeros((16, 32), np.float32)
    return state


def test_satvit_needs_its_channels_and_reads_patches_channel_first():
    model = small_model(
        modalities={'s2': S2}, fusion=Fusion('none', 'none'), numerics=Numerics(qkv_bias=False)
    )
    state, base = satvit_state(model, 5), random_params(model)
    with pytest.raises(InputError, match=r'give options\.channels'):
        import_weights('satvit', state, model, base)
    channels = ('B03', 'B02', 'B04', 'VV', 'B08')
    params, report = import_weights('satvit', state, model, base, ImportOptions(channels=channels))
    # One patch (channel, row, column) through their projection and through ours, features turned by half.
    patch = np.random.default_rng(0).normal(size=(5, 8, 8))
    patch[3] = 0
    theirs = state['linear_input.weight'] @ patch.ravel() + state['linear_input.bias']
    ours = patch[[1, 0, 2, 4]].transpose(1, 2, 0).ravel() @ params['encoder']['patch']['s2']['kernel']
    ours = ours + params['encoder']['patch']['s2']['bias']
    np.testing.assert_allclose(ours, np.roll(theirs, 16), rtol=1e-5)
    assert 'encoder/cls' in report.kept
    assert 'enc_to_dec.weight' in report.unused
    assert 'turned by half' in report.text()
    with pytest.raises(InputError, match='qkv_bias=False'):
        import_weights(
            'satvit',
            state,
            dataclasses.replace(model, numerics=Numerics()),
            base,
            ImportOptions(channels=channels),
        )


def test_multimae_encoder():
    model = small_model(final_norm=False, fusion=Fusion('none', 'none'))
    state = {}
    for key, value in timm_state(model, 3).items():
        if key.startswith('blocks.'):
            state[key.replace('blocks.', 'encoder.')] = value
    rng = np.random.default_rng(1)
    table = sincos_2d((4, 4), 32).astype(np.float32).reshape(1, 4, 4, 32).transpose(0, 3, 1, 2)
    for task, channels in (('rgb', 3), ('depth', 1), ('s1', 2)):
        state[f'input_adapters.{task}.proj.weight'] = rng.normal(size=(32, channels, 8, 8)).astype(np.float32)
        state[f'input_adapters.{task}.proj.bias'] = rng.normal(size=32).astype(np.float32)
        state[f'input_adapters.{task}.pos_emb'] = table
    state['global_tokens'] = rng.normal(size=(1, 1, 32)).astype(np.float32)
    state['output_adapters.rgb.mask_token'] = np.zeros((1, 1, 16), np.float32)
    options = ImportOptions(adapters={'s2': 'rgb'})
    params, report = import_weights('multimae', state, model, random_params(model), options)
    kernel = params['encoder']['patch']['s1']['kernel'].reshape(8, 8, 2, 32)
    np.testing.assert_array_equal(kernel, state['input_adapters.s1.proj.weight'].transpose(2, 3, 1, 0))
    np.testing.assert_array_equal(params['encoder']['cls'], state['global_tokens'][0, 0])
    depth = [f'input_adapters.depth.{part}' for part in ('proj.weight', 'proj.bias', 'pos_emb')]
    assert sorted(report.unused) == sorted([*depth, 'output_adapters.rgb.mask_token'])
    state['input_adapters.s1.pos_emb'] = table + 1
    with pytest.raises(InputError, match='different positional tables'):
        import_weights('multimae', state, model, random_params(model), options)


def test_interpolation_keeps_constants_and_mirrors():
    constant = np.full((16, 3), 2.5, np.float32)
    np.testing.assert_allclose(positions.interpolate(constant, (4, 4), (7, 5)), 2.5, rtol=1e-6)
    assert positions.interpolate(constant, (4, 4), (4, 4)) is constant
    ramp = np.repeat(np.arange(8.0), 8)[:, None]
    wide = positions.interpolate(ramp, (8, 8), (16, 8)).reshape(16, 8)
    np.testing.assert_allclose(wide, np.repeat(wide[:, :1], 8, 1))
    np.testing.assert_allclose(wide + wide[::-1], 7)  # mirrored
    assert np.all(np.diff(wide[:, 0]) > 0)


def test_positions_are_recognised():
    table = sincos_2d((3, 5), 16)
    assert positions.recognise(table, (3, 5)) == 'row_first'
    assert positions.recognise(np.roll(table, 8, 1), (3, 5)) == 'column_first'
    assert positions.recognise(table + 0.01, (3, 5)) == 'learned'


def test_turning_twice_changes_nothing_and_covers_every_weight():
    model = small_model()
    params = flatten(random_params(model))
    once = positions.turn(params, 'ed')
    assert_same(positions.turn(once, 'ed'), params)
    unchanged = {name for name in params if np.array_equal(once[name], params[name])}
    assert all(
        name.endswith(('qkv/bias', 'query/bias', 'kv/bias', 'up/bias', 'predict/bias')) for name in unchanged
    )
