"""Whole files of MAE and MultiMAE, decoders included, against their equations in NumPy, float64."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fusmae_jax.config.build import resolve
from fusmae_jax.config.run import Decoder, Fusion, Modality, Model
from fusmae_jax.errors import InputError
from fusmae_jax.input.prepare import Patches
from fusmae_jax.interop.weights import files, positions
from fusmae_jax.interop.weights.importers import import_weights
from fusmae_jax.interop.weights.layouts import reference_rules
from fusmae_jax.interop.weights.rules import ImportOptions, flatten, ours_shapes, unflatten
from fusmae_jax.models import fusmae
from fusmae_jax.models.positions import sincos_2d
from tests.support import published_states as theirs
from tests.support.published_states import HEADS, TIMM, WIDTH

DEC, PATCH, GRID, VISIBLE, EPS = 16, 4, 3, 3, 1e-6  # decoder width, patch size, patches a side
DECODER = Decoder(DEC, 2, HEADS, cls=True, final_norm=False)
RGB, DEPTH = Modality(('B04', 'B03', 'B02'), 's2'), Modality(('VV',), 's1')
MAE = resolve(
    Model(
        {'rgb': RGB}, (12, 12), PATCH, 'custom', WIDTH, theirs.DEPTH, HEADS,
        fusion=Fusion('none', 'none'), decoder=dataclasses.replace(DECODER, final_norm=True),
    )
)  # fmt: skip
MULTIMAE = dataclasses.replace(
    MAE,
    modalities={'s1': DEPTH, 's2': RGB},
    fusion=Fusion('none', 'multimae'),
    decoder=DECODER,
    final_norm=False,
)
ADAPTERS = ImportOptions(adapters={'s1': 'depth', 's2': 'rgb'})


def images_of(model, seed=0):
    rng = np.random.default_rng(seed)
    return {
        name: rng.normal(size=(2, *model.image_size, len(m.bands))) for name, m in model.modalities.items()
    }


def order_of(model):
    """Other patches in each sensor and in each image, visible ones first."""
    rng = np.random.default_rng(1)
    return {name: np.stack([rng.permutation(GRID**2) for _ in range(2)]) for name in model.modalities}


def flat_patches(image):
    """(b, n, rows * columns * channels) of images (b, h, w, c)."""
    x = theirs.windows(image, PATCH)
    return x.transpose(0, 1, 3, 4, 2).reshape(*x.shape[:2], -1)


def predictor(model):
    """What our model predicts of the hidden patches: (params, images, order) -> modality -> (b, m, p)."""
    graph = fusmae.graph(model)
    run = jax.jit(lambda params, patches, order: nnx.merge(graph, params)(patches, order, VISIBLE)[0])

    def predict(params, images, order):
        patches = {name: jnp.asarray(flat_patches(x), jnp.float32) for name, x in images.items()}
        patches = {name: Patches(x, jnp.ones(x.shape, bool)) for name, x in patches.items()}
        order = {name: jnp.asarray(ids) for name, ids in order.items()}
        return jax.device_get(run(jax.tree.map(jnp.asarray, params), patches, order))

    return predict


def close(computed, expected):
    error = np.abs(computed - expected).max() / np.abs(expected).max()
    print('error', error)
    assert error < 3e-6, error


def take(x, ids):
    return np.take_along_axis(x, ids[..., None], axis=1)


def project(image, state, name):
    """A strided convolution: (b, n, d)."""
    kernel = state[f'{name}.weight'].astype(np.float64)
    return np.einsum('bncpq,dcpq->bnd', theirs.windows(image, PATCH), kernel) + state[f'{name}.bias']


# ------------------------------------------------------------ MAE


def mae_state(channels=3, seed=2):
    state, draw = theirs.timm(channels, PATCH, GRID, sincos=True), theirs.drawer(seed)
    table = np.roll(sincos_2d((GRID, GRID), DEC), DEC // 2, axis=1)
    numbers = channels * PATCH**2
    state |= {
        'mask_token': draw(1, 1, DEC),
        'decoder_pos_embed': np.concatenate([np.zeros((1, DEC)), table]).astype(np.float32)[None],
        'decoder_embed.weight': draw(DEC, WIDTH),
        'decoder_embed.bias': draw(DEC),
        'decoder_norm.weight': draw(DEC, middle=1.0),
        'decoder_norm.bias': draw(DEC),
        'decoder_pred.weight': draw(numbers, DEC),
        'decoder_pred.bias': draw(numbers),
    }
    for layer in range(2):
        state |= theirs.block(draw, TIMM, f'decoder_blocks.{layer}', width=DEC)
    return state


def mae_forward(image, state, order):
    """Predictions of all patches (b, n, p), in raster order: MAE's own way, un-shuffled."""
    batch, keep = len(image), order[:, :VISIBLE]
    x = project(image, state, 'patch_embed.proj') + state['pos_embed'][0, 1:]
    cls = np.broadcast_to(state['cls_token'][0] + state['pos_embed'][0, :1], (batch, 1, WIDTH))
    x = np.concatenate([cls, take(x, keep)], axis=1)
    x = theirs.layer_norm(theirs.blocks(x, state, TIMM, 'blocks', EPS)[-1], state, 'norm', EPS)
    x = theirs.linear(x, state, 'decoder_embed')
    full = np.broadcast_to(state['mask_token'].astype(np.float64), (batch, GRID**2, DEC)).copy()
    np.put_along_axis(full, keep[..., None], x[:, 1:], axis=1)
    x = np.concatenate([x[:, :1], full], axis=1) + state['decoder_pos_embed']
    x = theirs.blocks(x, state, TIMM, 'decoder_blocks', EPS, depth=2)[-1]
    return theirs.linear(theirs.layer_norm(x, state, 'decoder_norm', EPS), state, 'decoder_pred')[:, 1:]


def test_a_whole_mae_file_is_a_whole_model():
    state, images, order = mae_state(), images_of(MAE), order_of(MAE)
    params, report = import_weights('mae', state, MAE)
    assert not report.kept and not report.unused
    expected = mae_forward(images['rgb'], state, order['rgb'])
    predicted = predictor(MAE)(params, images, order)
    close(predicted['rgb'], take(expected, order['rgb'][:, VISIBLE:]))


def test_a_whole_mae_file_fits_stacked_sensors_band_by_band():
    """One sensor with all bands, or two of which the second has the first band of the file."""
    modalities = {'s2': Modality(bands=('B03', 'B02')), 's1': DEPTH}
    stack = dataclasses.replace(MAE, modalities=modalities, fusion=Fusion('stack', 'none'))
    state, images = mae_state(), images_of(stack)
    params, report = import_weights('mae', state, stack)
    assert not report.kept and not report.unused
    ids = order_of(MAE)['rgb']
    together = np.concatenate([images['s2'], images['s1']], axis=-1)
    expected = take(mae_forward(together, state, ids), ids[:, VISIBLE:])
    expected = expected.reshape(*expected.shape[:2], -1, 3)
    predicted = predictor(stack)(params, images, dict.fromkeys(images, ids))
    close(predicted['s2'], expected[..., :2].reshape(*expected.shape[:2], -1))
    close(predicted['s1'], expected[..., 2])


def test_the_decoder_of_an_mae_is_left_out_where_it_has_no_place():
    base = base_of(MULTIMAE)
    for model in (MULTIMAE, dataclasses.replace(MAE, fusion=Fusion('none', 'multimae'))):
        base = base_of(model)
        params, report = import_weights('mae', mae_state(), model, base)
        assert 'the decoder is left out' in report.text() and 'decoder_pred.bias' in report.unused
        assert flatten(params).keys() == flatten(base).keys()
    with pytest.raises(InputError, match=r'not part of this model: decoder_blocks\.1\.'):
        import_weights(
            'mae', mae_state(), dataclasses.replace(MAE, decoder=dataclasses.replace(MAE.decoder, depth=1))
        )
    _, report = import_weights('timm', mae_state(), MAE, base_of(MAE))  # the encoder alone, as before
    assert 'decoder_pred.bias' in report.unused


# ------------------------------------------------------------ MultiMAE


def multimae_state(seed=3):
    """Tasks rgb and depth, each with a decoder, and a third decoder of normalised colours."""
    state, draw = {}, theirs.drawer(seed)
    grid = sincos_2d((GRID, GRID), WIDTH).reshape(1, GRID, GRID, WIDTH)
    for task, channels in (('rgb', 3), ('depth', 1)):
        state[f'input_adapters.{task}.proj.weight'] = draw(WIDTH, channels, PATCH, PATCH)
        state[f'input_adapters.{task}.proj.bias'] = draw(WIDTH)
        state[f'input_adapters.{task}.pos_emb'] = grid.transpose(0, 3, 1, 2).astype(np.float32)
    state['global_tokens'] = draw(1, 1, WIDTH)
    for layer in range(theirs.DEPTH):
        state |= theirs.block(draw, TIMM, f'encoder.{layer}')
    for task, channels in (('rgb', 3), ('depth', 1), ('norm_rgb', 3)):
        state |= output_adapter(draw, f'output_adapters.{task}', channels * PATCH**2)
    return state


def output_adapter(draw, prefix, numbers):
    table = sincos_2d((GRID, GRID), DEC).reshape(1, GRID, GRID, DEC)
    state = {
        f'{prefix}.mask_token': draw(1, 1, DEC),
        f'{prefix}.task_embeddings.rgb': draw(1, 1, DEC),
        f'{prefix}.task_embeddings.depth': draw(1, 1, DEC),
        f'{prefix}.pos_emb': table.transpose(0, 3, 1, 2).astype(np.float32),
    }
    sizes = {
        **{'proj_context': (DEC, WIDTH), 'decoder.q': (DEC, DEC), 'decoder.kv': (2 * DEC, DEC)},
        **{'decoder.proj': (DEC, DEC), 'mlp.fc1': (4 * DEC, DEC), 'mlp.fc2': (DEC, 4 * DEC)},
        'out_proj': (numbers, DEC),
    }
    for name, size in sizes.items():
        state |= {f'{prefix}.{name}.weight': draw(*size), f'{prefix}.{name}.bias': draw(size[0])}
    for name in ('query_norm', 'context_norm', 'out_norm'):
        state |= {f'{prefix}.{name}.weight': draw(DEC, middle=1.0), f'{prefix}.{name}.bias': draw(DEC)}
    for layer in range(2):
        state |= theirs.block(draw, TIMM, f'{prefix}.decoder_transformer.{layer}', width=DEC)
    return state


def multimae_forward(images, state, order, task):
    """Predictions of all patches of a task in raster order, (b, n, p) with p = channel, row, column.

    `images` and `order` are by task. As MultiMAE computes it: a grid of each task with mask tokens, to
    which positions and embeddings are added before the context is taken out of it again.
    """
    tokens, prefix, batch = [], f'output_adapters.{task}', len(images['rgb'])
    for name, image in images.items():
        table = state[f'input_adapters.{name}.pos_emb'][0].reshape(WIDTH, -1).T
        tokens.append(
            take(project(image, state, f'input_adapters.{name}.proj') + table, order[name][:, :VISIBLE])
        )
    cls = np.broadcast_to(state['global_tokens'][0].astype(np.float64), (batch, 1, WIDTH))
    x = theirs.blocks(np.concatenate([*tokens, cls], axis=1), state, TIMM, 'encoder', EPS)[-1]
    x = theirs.linear(x, state, f'{prefix}.proj_context')
    grids, context = {}, []
    for i, name in enumerate(images):
        keep = order[name][:, :VISIBLE]
        grid = np.broadcast_to(state[f'{prefix}.mask_token'].astype(np.float64), (batch, GRID**2, DEC)).copy()
        np.put_along_axis(grid, keep[..., None], x[:, i * VISIBLE : (i + 1) * VISIBLE], axis=1)
        grid += state[f'{prefix}.task_embeddings.{name}'] + state[f'{prefix}.pos_emb'][0].reshape(DEC, -1).T
        grids[name] = grid
        context.append(take(grid, keep))
    context = np.concatenate([*context, x[:, -1:]], axis=1)
    queries = theirs.layer_norm(grids[task.removeprefix('norm_')], state, f'{prefix}.query_norm', EPS)
    context = theirs.layer_norm(context, state, f'{prefix}.context_norm', EPS)
    q = theirs.linear(queries, state, f'{prefix}.decoder.q').reshape(batch, -1, HEADS, DEC // HEADS)
    kv = theirs.linear(context, state, f'{prefix}.decoder.kv').reshape(batch, -1, 2, HEADS, DEC // HEADS)
    x = theirs.linear(theirs.attend(q, kv[:, :, 0], kv[:, :, 1]), state, f'{prefix}.decoder.proj')
    normed = theirs.layer_norm(x, state, f'{prefix}.out_norm', EPS)
    x = x + theirs.mlp(normed, state, f'{prefix}.mlp.fc1', f'{prefix}.mlp.fc2')
    x = theirs.blocks(x, state, TIMM, f'{prefix}.decoder_transformer', EPS, depth=2)[-1]
    return theirs.linear(x, state, f'{prefix}.out_proj')


def pixels_last_channel(x, channels):
    """Predicted patches (b, n, channel, row, column) as ours: row, column, channel."""
    return np.moveaxis(x.reshape(*x.shape[:2], channels, -1), 2, 3).reshape(x.shape)


def test_a_whole_multimae_file_is_a_whole_model():
    """With the decoder of a task, and with the one of normalised colours in its place."""
    state, images, order = multimae_state(), images_of(MULTIMAE), order_of(MULTIMAE)
    by_task = {'depth': images['s1'], 'rgb': images['s2']}
    ids = {'depth': order['s1'], 'rgb': order['s2']}
    predict = predictor(MULTIMAE)
    for output in ('rgb', 'norm_rgb'):
        options = dataclasses.replace(ADAPTERS, outputs={'s2': output})
        params, report = import_weights('multimae', state, MULTIMAE, options=options)
        assert not report.kept and not {x for x in report.unused if f'output_adapters.{output}.' in x}
        predicted = predict(params, images, order)
        for name, task, channels in (('s1', 'depth', 1), ('s2', output, 3)):
            expected = pixels_last_channel(multimae_forward(by_task, state, ids, task), channels)
            close(predicted[name], take(expected, order[name][:, VISIBLE:]))


def base_of(model, seed=7):
    """Parameters of a model, every one of them random."""
    shapes = fusmae.param_shapes(model)
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: rng.normal(size=x.shape).astype('f'), shapes)


@pytest.mark.parametrize('encoder_only', [True, False])
def test_decoders_that_do_not_come_from_the_file_stay_as_they_are(encoder_only):
    """Every parameter of the model comes back, and those that were kept are named."""
    state, base = multimae_state(), base_of(MULTIMAE)
    options = dataclasses.replace(ADAPTERS, decoders=encoder_only)
    if encoder_only:
        state = {name: x for name, x in state.items() if not name.startswith('output_adapters.')}
    params, report = import_weights('multimae', state, MULTIMAE, base, options)
    params, base = flatten(params), flatten(base)
    assert params.keys() == base.keys()
    assert sorted(report.kept) == sorted(path for path in base if path.startswith('decoders/'))
    assert sorted([*report.kept, *report.imported]) == sorted(base)
    for path in report.kept:
        np.testing.assert_array_equal(params[path], base[path])


def test_parts_that_do_not_fit_are_named():
    state = multimae_state()
    deeper = dataclasses.replace(MULTIMAE, decoder=dataclasses.replace(DECODER, depth=3))
    with pytest.raises(InputError, match=r'missing: output_adapters\.depth\.decoder_transformer\.2\.norm1'):
        import_weights('multimae', state, deeper, options=ADAPTERS)
    state['output_adapters.rgb.pos_emb'] = state['output_adapters.rgb.pos_emb'] + 1
    with pytest.raises(InputError, match='the output adapters have different positional tables'):
        import_weights('multimae', state, MULTIMAE, options=ADAPTERS)


# ------------------------------------------------------------ Our own files


@pytest.mark.parametrize(
    'model',
    [
        MULTIMAE,
        dataclasses.replace(MULTIMAE, decoder=dataclasses.replace(DECODER, final_norm=True, depth=1)),
        dataclasses.replace(MULTIMAE, fusion=Fusion('xae', 'multimae')),
        dataclasses.replace(MULTIMAE, fusion=Fusion('stack', 'none')),
        dataclasses.replace(MULTIMAE, fusion=Fusion('stack', 'none'), positions='learned', final_norm=True),
    ],
    ids=['multimae', 'final_norm', 'xae_multimae', 'stack', 'stack_learned'],
)
def test_every_model_of_the_family_is_exported_and_loaded(model, tmp_path):
    base = flatten(base_of(model))
    assert {path: x.shape for path, x in base.items()} == ours_shapes(reference_rules(model))
    files.export(tmp_path / 'model.safetensors', unflatten(base), model)
    loaded, settings, _ = files.load(tmp_path / 'model.safetensors')
    loaded = flatten(loaded)
    assert settings == model and loaded.keys() == base.keys()
    for path, x in base.items():
        np.testing.assert_array_equal(loaded[path], x)


@pytest.mark.parametrize('streams', ['e', 'd', 'ed'])
def test_the_features_of_a_model_with_attending_decoders_can_be_turned(streams):
    """Turned weights are the same model but for the fixed positions, of which there are none here."""
    params = flatten(base_of(MULTIMAE))
    once = positions.turn(params, streams)
    again = positions.turn(once, streams)
    for path in params:
        np.testing.assert_array_equal(again[path], params[path])
    changed = {path for path in params if not np.array_equal(once[path], params[path])}
    for path in params:
        stays = path.endswith(('qkv/bias', 'query/bias', 'kv/bias', 'up/bias', 'predict/bias'))
        kind = 'd' if path.startswith('decoders') else 'e'
        if path.endswith('project/kernel'):
            assert path in changed
        else:
            assert (path in changed) == (kind in streams and not stays), path
