"""Tensors of one shape as one: they come back in order, and programs stay small."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import l2o
from l2o._stacks import Stack, in_order, stacks_of

TENSORS = [jnp.full(shape, i) for i, shape in enumerate([(3, 2), (2,), (3, 2), (3, 2)])]


def test_alike_are_together_and_come_back_in_order():
    stacks = stacks_of(TENSORS, "aaab")
    assert [x.members for x in stacks] == [(0, 2), (1,), (3,)]
    assert stacks[0].of(TENSORS).shape == (2, 3, 2) and stacks[1].of(TENSORS).ndim == 1
    back = dict(
        pair
        for stack in stacks
        for pair in zip(stack.members, stack.apart(stack.of(TENSORS)), strict=True)
    )
    for i, x in enumerate(TENSORS):
        np.testing.assert_array_equal(back[i], x)
    means = [stack.each(jnp.mean, stack.of(TENSORS)) for stack in stacks]
    numbers = in_order(stacks, means)
    np.testing.assert_array_equal(numbers, np.arange(4))
    np.testing.assert_array_equal(stacks[0].numbers(numbers), [0, 2])
    assert stacks[1].numbers(numbers).shape == ()


def test_what_is_large_is_alone():
    large = [jnp.zeros((128, 128))] * 2
    assert stacks_of(large, "aa") == [Stack((0,)), Stack((1,))]


def _lowered(params):
    optimizer = l2o.learnable_muon()
    tx = optimizer.bind(optimizer.init_theta(jax.random.key(0)), num_steps=9)

    def step(params, state, grads):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    state = jax.eval_shape(tx.init, params)
    return jax.jit(step, donate_argnums=(0, 1)).lower(params, state, params)


def test_a_program_of_many_small_tensors_is_not_a_program_for_each():
    def operations(count):
        params = {f"b{i}": jax.ShapeDtypeStruct((64,), "float32") for i in range(count)}
        return _lowered(params).as_text().count("\n")

    # What is left per tensor: its place in stacks, and the checks of what is given.
    assert operations(80) - operations(40) < 40 * 40


def test_a_step_needs_eight_bytes_per_parameter_beside_parameters_and_state():
    shape = jax.ShapeDtypeStruct((512, 1024), "float32")
    params = {f"w{i}": shape for i in range(16)}
    memory = _lowered(params).compile().memory_analysis().temp_size_in_bytes
    # Four of them are the updates.
    assert memory < 8 * 16 * 512 * 1024
