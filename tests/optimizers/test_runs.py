"""Runs without a horizon, their ends, and what a state tells of both."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from contract import GRADS, PARAMS
from every_optimizer import FACTORIES, WRAPPED

import l2o

COSINE = {
    "learnable_muon": l2o.learnable_muon(weight_decay=0.0, gain=1e-6, drift=0.0),
    "small_fc": l2o.small_fc(schedule="cosine", init="adam"),
    "celo2_base": l2o.celo2_base(schedule="cosine", init="adam"),
}
WARMUP = 50  # a twentieth of a thousand steps


def bound(optimizer, num_steps=None, jit=True):
    tx = optimizer.bind(optimizer.init_theta(jax.random.key(0)), num_steps=num_steps)
    update = jax.jit(tx.update) if jit else tx.update
    return optax.GradientTransformationExtraArgs(tx.init, update)


def at(tx, count):
    """A state after `count` updates, without these."""
    return tx.init(PARAMS)._replace(count=jnp.int32(count))


def size(tx, state):
    """Of the next step, and the state after it."""
    updates, state = tx.update(GRADS[0], state, PARAMS, value=0.5)
    return float(optax.tree.norm(updates)), state


def share(tx, state, like):
    """The rate of the next step over the largest, and the state after it.

    Args:
      like: a state with the largest rate and the same averages.
    """
    found, after = size(tx, state)
    return found / size(tx, like)[0], after


@pytest.fixture(scope="module", params=COSINE)
def endless(request):
    return bound(COSINE[request.param])


def test_without_a_horizon_the_rate_rises_and_stays(endless):
    largest = at(endless, WARMUP)
    for count, expected in ((0, 0.02), (24, 0.5), (49, 1.0), (10**6, 1.0)):
        state = at(endless, count)
        # The networks of small_fc see the time.
        found, after = share(endless, state, largest)
        np.testing.assert_allclose(found, expected, rtol=2e-3)
        assert np.isinf(l2o.steps_left(after)) and after.fall.share == 0


@pytest.mark.parametrize("name", COSINE)
def test_without_a_horizon_the_rate_is_half_that_of_a_thousand_steps(name):
    updates = []
    for num_steps in (None, 1000):
        tx = bound(COSINE[name], num_steps)
        state = at(tx, 20)
        updates.append(tx.update(GRADS[0], state, PARAMS, value=0.5)[0]["w"])
    np.testing.assert_allclose(2 * updates[0], updates[1], rtol=1e-6)


def test_cool_down_falls_to_zero_as_a_cosine(endless):
    state = l2o.cool_down(at(endless, 400), 4)
    assert l2o.steps_left(state) == 4
    for t in range(7):
        like = state._replace(fall=state.fall._replace(share=jnp.float32(0)))
        found, state = share(endless, state, like)
        expected = 0.5 + 0.5 * np.cos(np.pi * min(t / 4, 1))
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-7)
    assert l2o.steps_left(state) == 0
    found, state = share(endless, l2o.extend_run(state, 10), like)
    np.testing.assert_allclose(found, 1.0, rtol=1e-5)
    assert l2o.steps_left(state) == 9


@pytest.mark.parametrize("name", COSINE)
def test_cool_down_and_extend_run_of_a_run_with_an_end(name):
    tx = bound(COSINE[name], 100)
    top = l2o.extend_run(at(tx, 50), 10**6)
    planned = (50 / 100 - 0.05) / 0.95
    _, state = size(tx, at(tx, 49))
    np.testing.assert_allclose(state.fall.share, planned, rtol=1e-5)
    # The rest of the cosine, in 10 steps instead of 50.
    state = l2o.cool_down(at(tx, 50)._replace(fall=state.fall), 10)
    for t in range(11):
        like = top._replace(count=state.count)
        state = state._replace(**averages(top))
        found, state = share(tx, state, like)
        x = planned + (1 - planned) * t / 10
        expected = 0.5 + 0.5 * np.cos(np.pi * x)
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-6)
    over = at(tx, 100)
    assert size(tx, over)[0] == pytest.approx(0, abs=1e-6 * size(tx, top)[0])
    found, _ = share(tx, l2o.extend_run(over, 50), top._replace(count=over.count))
    np.testing.assert_allclose(found, 1.0, rtol=1e-5)


def averages(state):
    kept = {"count", "num_steps", "fall", "skipped"}
    return {k: v for k, v in state._asdict().items() if k not in kept}


def test_ends_are_set_inside_what_others_wrap_and_compile_nothing_again():
    tx = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.MultiSteps(l2o.load("adaptive_muon"), 2),
        optax.scale(1.0),
    )
    state = tx.init(PARAMS)
    step = jax.jit(lambda s: tx.update(GRADS[0], s, PARAMS)[1])
    state = step(state)
    for change in (l2o.cool_down, l2o.extend_run):
        for n in (3, jnp.int32(3)):
            new = change(state, n)
            assert jax.tree.structure(new) == jax.tree.structure(state)
            for x, y in zip(jax.tree.leaves(new), jax.tree.leaves(state), strict=True):
                assert (x.shape, x.dtype) == (y.shape, y.dtype)
            assert l2o.steps_left(new) == 3
            assert l2o.steps_left(jax.jit(change)(state, n)) == 3
            step(new)
    assert step._cache_size() == 1
    assert np.isinf(l2o.steps_left(state))


def test_which_rules_do_without_a_horizon():
    every = {**FACTORIES, **WRAPPED}
    needing = {name for name, x in every.items() if "num_steps" in x.needs}
    assert needing == {
        *("celo", "celo_adam", "velo", "normalized_velo"),
        *("hypergradient", "extend_horizon"),
    }
    for name in needing:
        optimizer = every[name]
        with pytest.raises(ValueError, match=r"needs the length of the training run"):
            bound(optimizer)
    for name in l2o.shipped():
        assert "num_steps" not in l2o.load_unbound(name)[0].needs
        assert np.isinf(l2o.steps_left(l2o.load(name).init(PARAMS)))


def test_what_has_no_end_to_set_is_refused():
    velo = FACTORIES["velo"]
    state = bound(velo, 10, jit=False).init(PARAMS)
    assert l2o.steps_left(state) == 10
    constant = l2o.load("small_fc_digits").init(PARAMS)
    for change in (l2o.cool_down, l2o.extend_run):
        for x in (state, constant, optax.adam(0.1).init(PARAMS)):
            with pytest.raises(ValueError, match="found no rate .* Load other"):
                change(x, 5)
        for bad in (0, 1.5, "5", float("inf")):
            with pytest.raises(ValueError, match=rf"{change.__name__} needs steps >="):
                change(l2o.load("adaptive_muon").init(PARAMS), bad)
    for question in (l2o.skipped_steps, l2o.steps_left):
        with pytest.raises(ValueError, match="found no count in this state"):
            question(optax.adam(0.1).init(PARAMS))
