"""DINO-MM's loss, teacher and centre, and twenty steps with them, against NumPy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fusmae_jax.train import dino_objective
from fusmae_jax.train.dino_optimizer import make_optimizer
from tests.support.dino_helpers import published_cosine

STEPS, WARMUP, FREEZE, LIMIT = 20, 4, 5, 0.05
RATE, LAST_RATE, DECAY, LAST_DECAY, MOMENTUM = 1e-2, 1e-4, 0.04, 0.4, 0.9
STUDENT_T, TEACHER_T = 0.1, 0.04


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def numpy_loss(student, teacher, centre):
    """Loss, and its gradient with respect to the student's logits, pair by pair."""
    b, crops, _ = student.shape
    target, predicted = softmax((teacher - centre) / TEACHER_T), softmax(student / STUDENT_T)
    total, grad = 0.0, np.zeros_like(student)
    pairs = [(g, v) for g in range(teacher.shape[1]) for v in range(crops) if g != v]
    for g, v in pairs:
        total -= (target[:, g] * np.log(predicted[:, v])).sum(-1).mean()
        grad[:, v] += (predicted[:, v] - target[:, g]) / STUDENT_T / b
    return total / len(pairs), grad / len(pairs)


def numpy_adamw(params, grads, moments, step, rates, decays):
    """One step of PyTorch's AdamW, with DINO's clip and a last layer that is left out at first."""
    for name, grad in grads.items():
        grad = grad * min(1, LIMIT / (np.linalg.norm(grad) + 1e-6))
        if name == 'last' and step < FREEZE:
            continue
        m, v, age = moments[name]
        m, v, age = 0.9 * m + 0.1 * grad, 0.999 * v + 0.001 * grad**2, age + 1
        moments[name] = m, v, age
        if name != 'bias':
            params[name] = params[name] * (1 - rates[step] * decays[step])
        move = (m / (1 - 0.9**age)) / (np.sqrt(v / (1 - 0.999**age)) + 1e-8)
        params[name] = params[name] - rates[step] * move


def toy_logits(params, x):
    return (x @ params['kernel'] + params['bias']) @ params['last']


def numpy_run(params, inputs):
    """Losses, centres and teachers of all steps; the teacher follows after each step, as in DINO's code."""
    params = dict(params)
    teacher, centre, history = dict(params), np.zeros(params['last'].shape[1]), []
    moments = {name: (np.zeros_like(x), np.zeros_like(x), 0) for name, x in params.items()}
    rates = published_cosine(RATE, LAST_RATE, STEPS, WARMUP)
    decays, momenta = published_cosine(DECAY, LAST_DECAY, STEPS), published_cosine(MOMENTUM, 1, STEPS)
    for step, x in enumerate(inputs):
        target = toy_logits(teacher, x[:, :2])
        loss, grad = numpy_loss(toy_logits(params, x), target, centre)
        hidden, back = x @ params['kernel'] + params['bias'], grad @ params['last'].T
        grads = {
            'last': np.einsum('bvh,bvk->hk', hidden, grad),
            'kernel': np.einsum('bvd,bvh->dh', x, back),
            'bias': back.sum((0, 1)),
        }
        centre = 0.9 * centre + 0.1 * target.mean((0, 1))
        numpy_adamw(params, grads, moments, step, rates, decays)
        teacher = {n: momenta[step] * t + (1 - momenta[step]) * params[n] for n, t in teacher.items()}
        history.append((loss, centre, teacher['kernel'], teacher['last'], params['last']))
    return history


def nested(params):
    body = {'toy': {'kernel': params['kernel'], 'bias': params['bias']}}
    return {'backbone': body, 'head': {'last': {'kernel': params['last']}}}


def ours_run(params, inputs):
    """The same with the functions of the package, in float32 and in the order of the objective."""
    rate = dino_objective.cosine(1 - MOMENTUM, 0.0, STEPS)
    optimizer = make_optimizer(
        dino_objective.cosine(RATE, LAST_RATE, STEPS, WARMUP),
        dino_objective.cosine(DECAY, LAST_DECAY, STEPS),
        b1=0.9,
        b2=0.999,
        eps=1e-8,
        clip_norm=LIMIT,
        freeze_steps=FREEZE,
    )

    def logits(tree, x):
        toy = tree['backbone']['toy']
        return (x @ toy['kernel'] + toy['bias'][None, None]) @ tree['head']['last']['kernel']

    @jax.jit
    def step(params, opt_state, teacher, centre, index, x):
        teacher = dino_objective.update_teacher(teacher, params, rate(index - 1))
        target = logits(teacher, x[:, :2])

        def loss(params):
            return dino_objective.cross_entropy(logits(params, x), target, centre, STUDENT_T, TEACHER_T).loss

        value, grads = jax.value_and_grad(loss)(params)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        params = jax.tree.map(jnp.add, params, updates)
        centre = dino_objective.update_centre(centre, jnp.mean(target, axis=(0, 1)), 0.9)
        return value, params, opt_state, teacher, centre

    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), nested(params))
    opt_state, teacher, history = optimizer.init(params), params, []
    centre = jnp.zeros(params['head']['last']['kernel'].shape[1])
    for index, x in enumerate(inputs):
        arguments = params, opt_state, teacher, centre, jnp.int32(index), jnp.asarray(x, jnp.float32)
        value, params, opt_state, teacher, centre = step(*arguments)
        after = dino_objective.update_teacher(teacher, params, rate(jnp.int32(index)))
        last = after['head']['last']['kernel'], params['head']['last']['kernel']
        history.append((value, centre, after['backbone']['toy']['kernel'], *last))
    return history


def test_twenty_steps_equal_numpy_in_float64():
    rng = np.random.default_rng(0)
    params = {
        'kernel': rng.normal(0, 0.3, (6, 5)),
        'bias': rng.normal(0, 0.1, 5),
        'last': rng.normal(0, 0.3, (5, 32)),
    }
    inputs = [rng.normal(size=(4, 5, 6)) for _ in range(STEPS)]
    theirs, ours = numpy_run(params, inputs), ours_run(params, inputs)
    for step, (a, b) in enumerate(zip(theirs, ours)):
        for name, x, y in zip(('loss', 'centre', 'teacher', 'teacher last', 'last'), a, b):
            np.testing.assert_allclose(y, x, rtol=2e-5, atol=2e-5, err_msg=f'{name} of step {step}')
    frozen = [history[4] for history in ours[:FREEZE]]
    for value in frozen:
        np.testing.assert_array_equal(value, np.asarray(params['last'], np.float32))
    assert np.abs(np.asarray(ours[-1][4]) - params['last']).max() > 1e-2


@pytest.mark.parametrize(('start', 'end', 'warmup'), [(5e-4, 1e-6, 10), (0.04, 0.4, 0), (0.004, 0.0, 0)])
def test_schedules_are_those_of_the_published_code(start, end, warmup):
    ours = jax.vmap(dino_objective.cosine(start, end, 100, warmup))(jnp.arange(100))
    np.testing.assert_allclose(ours, published_cosine(start, end, 100, warmup), rtol=1e-5, atol=1e-12)


def test_terms_of_a_flat_and_of_a_one_sided_teacher():
    student = jnp.asarray(np.random.default_rng(0).normal(size=(3, 4, 8)), jnp.float32)
    flat = dino_objective.cross_entropy(student, jnp.zeros((3, 2, 8)), jnp.zeros(8), 0.1, 0.04)
    spread = dino_objective.entropy_of
    np.testing.assert_allclose([flat.entropy, spread(flat.mean)], np.log(8), rtol=1e-6)
    one = jnp.zeros((3, 2, 8)).at[..., 2].set(9.0)
    sided = dino_objective.cross_entropy(student, one, jnp.zeros(8), 0.1, 0.04)
    np.testing.assert_allclose([sided.entropy, spread(sided.mean)], 0, atol=1e-5)
    centred = dino_objective.cross_entropy(student, one, one[0, 0], 0.1, 0.04)
    np.testing.assert_allclose(spread(centred.mean), np.log(8), rtol=1e-6)
    np.testing.assert_allclose(flat.kl, flat.loss - flat.entropy, rtol=1e-6)


def test_what_the_teacher_says_of_parts_is_what_it_says_of_the_whole():
    rng = np.random.default_rng(0)
    student, teacher = (jnp.asarray(rng.normal(size=(8, n, 16)), jnp.float32) for n in (4, 2))
    centre = jnp.linspace(-1, 1, 16)
    whole = dino_objective.cross_entropy(student, teacher, centre, 0.1, 0.04)
    seen, losses = dino_objective.Seen(jnp.zeros(16), jnp.zeros(16), jnp.zeros(())), []
    for part in (slice(0, 4), slice(4, 8)):
        terms = dino_objective.cross_entropy(student[part], teacher[part], centre, 0.1, 0.04)
        seen = seen.and_of(teacher[part], terms.mean)
        losses.append(terms.loss)
    np.testing.assert_allclose(np.mean(losses), whole.loss, rtol=1e-6)
    np.testing.assert_allclose(seen.shares / seen.parts, whole.mean, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(seen.logits / seen.parts, jnp.mean(teacher, axis=(0, 1)), rtol=1e-5, atol=1e-6)
