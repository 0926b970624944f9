"""What an estimate leaves out: particles that are not finite, frozen parts."""

import closed_forms as cf
import jax
import jax.numpy as jnp
import numpy as np
import optax
from every_estimator import KINDS, THETA, estimator_of

import l2o
from l2o import meta_train as mt
from l2o.meta_train import constant, learn_optimizer
from l2o.tasks import TaskFamily, stateless


def test_non_finite_particles_are_counted_and_left_out():
    # A learning rate with which the run overflows: with theta around 1e30 every
    # particle's does, with an ordinary one none does.
    for name in KINDS:
        estimator = estimator_of(
            name, cf.problem(), constant(4), truncation=4, particles=5
        )
        for theta, bad in ((1e30, 5), (0.1, 0)):
            state = estimator.init(jax.random.key(0), jnp.float32(theta))
            gradient, _, info = jax.jit(estimator.estimate)(
                jax.random.key(1), jnp.float32(theta), state, ()
            )
            assert info.nonfinite == bad, name
            assert np.isfinite(gradient) and np.isfinite(info.meta_loss)
            assert (gradient == 0) == (bad == 5)


def test_one_bad_particle_spoils_no_other():
    # A config of 1 in some particles makes the loss NaN.
    def task(bad, data):
        return stateless(
            init=lambda key: jnp.float32(cf.X0),
            batch=lambda key, split: (),
            loss=lambda x, key, batch: cf.A * x**2 / 2 + jnp.where(bad, jnp.nan, 0.0),
        )

    family = TaskFamily(lambda key: jax.random.bernoulli(key, 0.3), task)
    problem = learn_optimizer(cf.sgd(), family)
    for name in KINDS:
        estimator = estimator_of(name, problem, constant(2), truncation=2, particles=50)
        state = estimator.init(jax.random.key(0), THETA)
        gradient, _, info = jax.jit(estimator.estimate)(
            jax.random.key(1), THETA, state, ()
        )
        assert 5 < info.nonfinite < 25, name
        assert np.isfinite(gradient) and gradient < 0, name


def test_an_exploded_gradient_leaves_the_combination_to_es():
    # d/dx sqrt(x) at 0 is infinite while the loss itself is fine.
    def task(theta, config, data):
        return stateless(
            init=lambda key: jnp.float32(0),
            batch=lambda key, split: (),
            loss=lambda x, key, batch: theta + jnp.sqrt(0.0 * theta),
        )

    problem = mt.learn_hyperparameters(
        lambda key: jnp.float32(0), task, tx=optax.set_to_zero()
    )
    given = {"truncation": 1, "particles": 6, "std": 0.1}
    combined, es = (
        make(problem, constant(1), **given)
        for make in (mt.inverse_variance, mt.truncated_es)
    )
    state = es.init(jax.random.key(0), THETA)
    both = [e.estimate(jax.random.key(1), THETA, state, ())[0] for e in (combined, es)]
    np.testing.assert_allclose(*both, rtol=1e-5)


def test_frozen_parts_get_no_gradient():
    optimizer = l2o.learnable_adam(learning_rate=0.05)
    problem = learn_optimizer(optimizer, cf.parabola())
    theta = problem.init_theta(jax.random.key(0))
    first, *rest = sorted(theta)
    frozen = learn_optimizer(optimizer._replace(frozen=(first,)), cf.parabola())
    for name in KINDS:
        estimator = estimator_of(name, frozen, constant(4), truncation=4, particles=3)
        state = estimator.init(jax.random.key(0), theta)
        gradient, _, _ = jax.jit(estimator.estimate)(
            jax.random.key(1), theta, state, ()
        )
        assert gradient[first] == 0, name
        assert any(gradient[part] != 0 for part in rest), name
