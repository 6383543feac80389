"""A run compares its fused kernels with the plain operations before it trusts them."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import pytest

from fusmae_jax.config.run import Masking, Model
from fusmae_jax.errors import InputError
from fusmae_jax.models import attention, layers
from fusmae_jax.models.kernels import check
from fusmae_jax.run import start
from fusmae_jax.train.setup import make_setup
from tests.support import dino_helpers
from tests.support.helpers import CONTRACT, raw_batch
from tests.support.tiny import tiny_config, tiny_model


def fused(attention='pallas', norm='pallas', **changes):
    config = tiny_config(**changes)
    return dataclasses.replace(
        config, model=dataclasses.replace(config.model, attention=attention, norm=norm)
    )


@pytest.mark.slow
@pytest.mark.parametrize('dtype', [jnp.bfloat16, jnp.float32])
def test_kernels_that_compute_the_same_pass(dtype):
    # Self-attention and cross-attention of the encoder, self-attention of the decoder; two widths of a norm.
    assert check.check_kernels(fused(), dtype) == 5
    assert check.check_kernels(fused('xla', 'auto'), dtype) == 0  # what 'auto' is on a CPU


def test_lengths_are_those_of_the_model():
    config = fused(model=tiny_model('none', modalities={'s1': Model().modalities['s1']}))
    assert [case.arguments[0].shape[1] for case in check._attention_cases(config, jnp.float32)] == [5, 16]


@pytest.mark.parametrize(
    ('changes', 'lengths'),
    [
        # 4 of 16 patches visible in each sensor; the decoder has them, and those that it predicts.
        ({}, [(9, None), (4, 4), (16, None)]),
        # Validation predicts all of them.
        ({'masking': Masking(decode_ratio=0.25)}, [(9, None), (4, 4), (7, None), (16, None)]),
        ({'masking': Masking('dirichlet')}, [(9, None), (8, 8), (24, None)]),
        ({'model': tiny_model('none', 'multimae')}, [(9, None), (16, 8), (16, None)]),
        # One after the other, the last block of a decoder computes the masked tokens alone.
        ({'model': tiny_model(scan=False)}, [(9, None), (4, 4), (16, None), (12, 16)]),
        ({'model': tiny_model('none', 'multimae', scan=False)}, [(9, None), (16, 8), (16, None), (12, 16)]),
        (
            {'model': tiny_model(scan=False), 'masking': Masking('dirichlet')},
            [(9, None), (8, 8), (24, None), (16, 24)],
        ),
    ],
)
def test_every_attention_of_a_run_has_its_lengths(changes, lengths):
    config = tiny_config(**changes)
    assert list(dict.fromkeys(shape[:2] for shape in check._shapes(config))) == lengths


@pytest.mark.parametrize('decoder', ['none', 'multimae'])
def test_every_attention_that_a_step_traces_is_one_of_them(decoder, monkeypatch):
    config = tiny_config(model=tiny_model('none', decoder, scan=False))
    seen, true = set(), attention.attend

    def noted(query, key, *rest):
        seen.add((query.shape[1], key.shape[1]))
        return true(query, key, *rest)

    monkeypatch.setattr(attention, 'attend', noted)
    setup = make_setup(config, CONTRACT, 100, jax.devices()[:1])
    jax.eval_shape(setup.objective.loss, *setup.objective.shapes(), raw_batch(2), jax.random.key(0))
    assert seen == {(queries, keys or queries) for queries, keys, *_ in check._shapes(config)}


def test_dino_has_the_lengths_of_its_crops():
    config = dino_helpers.tiny()
    patch, dino = config.model.patch_size, config.distillation
    sizes = [(crops.size // patch) ** 2 + 1 for crops in (dino.global_crops, dino.local_crops)]
    # Of the last block, of two, CLS alone is computed.
    both = [lengths for size in sizes for lengths in ((size, None), (1, size))]
    assert [shape[:2] for shape in check._shapes(config)] == both


def test_attention_with_a_wrong_kernel_is_refused(monkeypatch):
    true = check.fused_attention
    monkeypatch.setattr(check, 'fused_attention', lambda q, c, v, layout: true(q, c, v, layout) * 1.1)
    with pytest.raises(
        InputError,
        match=r'kernel of attention \(9 queries, 9 keys, 2 heads of 16, float32\) differs from plain '
        r'operations in its result by 0\.1 .*more than 0\.0001 \(on cpu\).*=xla or .*attention=cudnn',
    ):
        check.check_kernels(fused(), jnp.float32)


def test_a_norm_with_a_wrong_gradient_is_refused(monkeypatch):
    true = layers.fused_add_norm

    def wrong(x, *rest):
        # The same result, of whose x a part has no gradient.
        return true(x.at[:, 0].set(jax.lax.stop_gradient(x[:, 0])), *rest)

    monkeypatch.setattr(layers, 'fused_add_norm', wrong)
    with pytest.raises(InputError, match=r'sum and LayerNorm \(32 wide, bfloat16\) .* its gradients'):
        check.check_kernels(fused(attention='xla'), jnp.bfloat16)


def test_a_kernel_that_does_not_compile_is_refused(monkeypatch):
    def broken(*_):
        raise NotImplementedError('no such instruction\nand more')

    monkeypatch.setattr(check, 'fused_attention', broken)
    with pytest.raises(InputError, match=r'fails: NotImplementedError: no such instruction \(on cpu\)'):
        check.check_kernels(fused(), jnp.float32)


def test_a_run_checks_on_a_gpu_alone(monkeypatch):
    checked = []
    monkeypatch.setattr(start, 'check_kernels', lambda config, dtype: checked.append(dtype))
    for platform in ('cpu', 'gpu'):
        device = types.SimpleNamespace(platform=platform)
        mesh = types.SimpleNamespace(devices=types.SimpleNamespace(flat=[device]))
        start.trust_kernels(types.SimpleNamespace(mesh=mesh, config=None, dtype=jnp.bfloat16))
    assert checked == [jnp.bfloat16]
