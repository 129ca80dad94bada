import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dynamics import parallel
from dynamics.training import step, trajectory

INPUTS = np.random.default_rng(0).normal(size=(20, 3))
TARGETS = np.sin(INPUTS[:, 0])


def train(member):
    """One member: initialise, train, record; with a key, a setting and a scan."""
    key, rate = member
    init_key, batch_key = jax.random.split(key)
    loss = lambda w, batch: ((jnp.tanh(batch[0] @ w) - batch[1]) ** 2).mean()
    data = jnp.asarray(INPUTS), jnp.asarray(TARGETS)
    optimiser = optax.sgd(rate, momentum=0.9)
    weights = jax.random.normal(init_key, (3,), float)
    state = step.initial_minibatch_state(weights, optimiser, batch_key)
    update = step.minibatch_step(loss, optimiser, data, 5)
    measure = lambda state: {"loss": loss(state.params, data), "step": state.step}
    recorded, state = trajectory.record_with_state(update, state, measure, times=[0, 3, 10])
    return recorded, state.params


def members(num_members):
    keys = jax.random.split(jax.random.key(5), num_members)
    return keys, jnp.linspace(0.05, 0.2, num_members)


@pytest.fixture(scope="module")
def loop():
    """A Python loop over members, in float64."""
    with jax.enable_x64(True):
        keys, rates = members(8)
        results = [jax.jit(train)((key, rate)) for key, rate in zip(keys, rates, strict=True)]
        return jax.device_get(results), keys, rates


@pytest.mark.parametrize("engine", parallel.ENGINES)
@pytest.mark.parametrize("batching", ["vmap", "map"])
@pytest.mark.parametrize(
    ("num_devices", "num_members"), [(1, 8), (2, 5), (4, 1), (4, 3), (4, 5), (4, 8)]
)
def test_every_engine_on_every_number_of_devices_is_the_loop(
    loop, engine, batching, num_devices, num_members
):
    results, keys, rates = loop
    with jax.enable_x64(True):
        found = parallel.ensemble(
            train,
            (keys[:num_members], rates[:num_members]),
            engine=engine,
            batching=batching,
            devices=jax.local_devices()[:num_devices],
        )
    expected = jax.tree.map(lambda *rows: np.stack(rows), *results[:num_members])
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12), found, expected
    )


def test_members_of_all_devices_are_used():
    """Each device leaves its number where its members were."""
    seen = []

    def member(index):
        jax.debug.callback(lambda device: seen.append(int(device)), jax.lax.axis_index("member"))
        return index

    parallel.ensemble(member, jnp.arange(8), batching="map")
    jax.effects_barrier()
    assert len(jax.local_devices()) == 4
    assert sorted(seen) == [0, 0, 1, 1, 2, 2, 3, 3]


@pytest.mark.parametrize("engine", parallel.ENGINES)
def test_results_mix_with_other_arrays(engine):
    square = lambda x: x**2
    three = parallel.ensemble(square, jnp.arange(3.0), engine=engine)
    eight = parallel.ensemble(square, jnp.arange(8.0), engine=engine)
    np.testing.assert_array_equal(eight[:3] - three, 0)
    # An array made by one ensemble serves in the next, as argument and as constant.
    again = parallel.ensemble(lambda x: x * three.sum(), eight, engine=engine)
    np.testing.assert_allclose(again, 5 * np.arange(8.0) ** 2)


@pytest.mark.parametrize("engine", parallel.ENGINES)
def test_a_second_call_traces_nothing(engine):
    traced = []

    def member(x):
        traced.append(1)
        return jnp.sin(x)

    parallel.ensemble(member, jnp.arange(5.0), engine=engine)
    before = len(traced)
    parallel.ensemble(member, 1 + jnp.arange(5.0), engine=engine)
    assert len(traced) == before > 0


@pytest.mark.parametrize("engine", parallel.ENGINES)
@pytest.mark.parametrize("batching", ["vmap", "map"])
def test_what_is_shared_is_given_whole_and_may_change_without_a_new_program(engine, batching):
    built = []

    def power(member, shared):
        built.append(1)
        base, times = shared
        return jax.lax.fori_loop(0, times, lambda _, value: value * base[0], member)

    members = jnp.arange(1.0, 6.0)
    run = lambda *shared: parallel.ensemble(
        power, members, shared=shared, engine=engine, batching=batching, devices=jax.devices()[:2]
    )
    np.testing.assert_allclose(run(jnp.array([2.0, 9.0]), 3), members * 8)
    once = len(built)
    np.testing.assert_allclose(run(jnp.array([3.0, 9.0]), 2), members * 9)
    assert len(built) == once
    inside = jax.jit(lambda count: run(jnp.array([2.0, 0.0]), count))
    np.testing.assert_allclose(inside(4), members * 16)


def test_inside_jit_and_over_traced_members():
    member = lambda pair: jax.random.normal(pair[0]) * pair[1]
    pairs = members(5)
    plain = parallel.ensemble(member, pairs)
    np.testing.assert_allclose(jax.jit(lambda p: parallel.ensemble(member, p))(pairs), plain)
    closed_over = jax.jit(lambda scale: parallel.ensemble(lambda p: scale * member(p), pairs))
    np.testing.assert_allclose(closed_over(2.0), 2 * plain)
    gradient = jax.grad(lambda x: parallel.ensemble(lambda y: y**3, x).sum())(jnp.arange(3.0))
    np.testing.assert_allclose(gradient, [0, 3, 12])


@pytest.mark.parametrize("count", [3, 4])
def test_numpy_members_typed_keys_and_callables_without_hash(count):
    class Unhashable:
        __hash__ = None

        def __call__(self, pair):
            return pair["x"] + 1, jax.random.fold_in(pair["key"], 1)

    keys = jax.random.split(jax.random.key(0), count)
    found, new_keys = parallel.ensemble(Unhashable(), {"x": np.arange(count), "key": keys})
    np.testing.assert_array_equal(found, np.arange(count) + 1)
    expected = [jax.random.key_data(jax.random.fold_in(key, 1)) for key in keys]
    np.testing.assert_array_equal(jax.random.key_data(new_keys), expected)


@pytest.mark.parametrize(
    ("function", "shape", "operations"),
    [
        (lambda x: x @ x, (7, 7), 2 * 7**3),
        (lambda x: jnp.einsum("bij,bjk->bik", x, x), (3, 5, 5), 2 * 3 * 5**3),
        (lambda x: jnp.sin(x).sum(), (100,), 0),
        (lambda x: jax.lax.scan(lambda c, _: (c @ c, None), x, None, 4)[0], (6, 6), 2 * 6**3),
        (lambda x: jax.lax.while_loop(lambda c: c.sum() > 0, lambda c: c @ c, x), (6, 6), 2 * 6**3),
        (jax.jit(jax.checkpoint(lambda x: x @ x)), (6, 6), 2 * 6**3),
        (lambda x: jax.lax.cond(x.sum() > 0, lambda x: x @ x, lambda x: x, x), (6, 6), 2 * 6**3),
        (jax.grad(lambda x: (x @ x).sum()), (6, 6), 2 * 6**3),
        # 8 x 8 outputs, 3 x 3 window, 2 input and 5 output channels.
        (
            lambda x: jax.lax.conv_general_dilated(
                x,
                jnp.ones((3, 3, 2, 5)),
                (1, 1),
                "SAME",
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
            ),
            (1, 8, 8, 2),
            2 * 8 * 8 * 9 * 2 * 5,
        ),
    ],
)
def test_the_largest_product_is_found_wherever_it_stands(function, shape, operations):
    jaxpr = jax.make_jaxpr(function)(jnp.zeros(shape))
    assert parallel.largest_product(jaxpr.jaxpr) == operations


def test_small_members_go_side_by_side_and_large_ones_in_turn_on_cpu_only():
    side = round((parallel.LARGE_PRODUCT / 2) ** (1 / 3))
    small, large = jnp.zeros((side // 2, side // 2)), jnp.zeros((side * 2, side * 2))
    square = lambda x: x @ x
    assert parallel.choose_batching(square, small, "cpu") == "vmap"
    assert parallel.choose_batching(square, large, "cpu") == "map"
    assert parallel.choose_batching(square, large, "gpu") == "vmap"


@pytest.mark.parametrize(("side", "expected"), [(4, "vmap"), (300, "map")])
def test_auto_does_what_it_chose(side, expected):
    """The program of auto is the program of the batching it chose."""
    square = lambda x: jnp.tanh(x @ x)
    programs = {
        batching: str(
            jax.make_jaxpr(lambda x, b=batching: parallel.ensemble(square, x, batching=b))(
                jnp.zeros((2, side, side))
            )
        )
        for batching in parallel.BATCHINGS
    }
    assert programs["vmap"] != programs["map"]
    assert programs["auto"] == programs[expected]


@pytest.mark.parametrize(
    ("arguments", "error", "word"),
    [
        (dict(fn=3), TypeError, "fn=3"),
        (dict(keys=()), ValueError, "no leaves"),
        (dict(keys=jnp.zeros((0, 2))), ValueError, "no member"),
        (dict(keys=jnp.zeros(())), ValueError, "leading member axis"),
        (dict(keys=(jnp.zeros(3), jnp.zeros(4))), ValueError, r"\(3,\), \(4,\)"),
        (dict(engine="ray"), ValueError, "engine='ray'"),
        (dict(batching="loop"), ValueError, "batching='loop'"),
        (dict(devices=[]), ValueError, "devices"),
    ],
)
def test_wrong_arguments_are_refused(arguments, error, word):
    defaults = {"fn": jnp.sin, "keys": jnp.zeros(3)}
    with pytest.raises(error, match=word):
        parallel.ensemble(**(defaults | arguments))
