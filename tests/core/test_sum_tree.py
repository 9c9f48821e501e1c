"""The sum tree against cumulative sums in NumPy: sums, draws, duplicates, borders, rounding, compiled forms."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tensor_optix.core import sum_tree

CAPACITIES = [1, 16, 17, 1000, 4097]
SET = jax.jit(sum_tree.set_leaves)
FIND = jax.jit(sum_tree.find)
VALID = jax.jit(sum_tree.check_valid)
LEAF = jax.jit(sum_tree.leaf)
TOTAL = jax.jit(sum_tree.total)
INIT = jax.jit(sum_tree.init, static_argnums=0)


def set_leaves(tree, index, value):
    return SET(tree, np.asarray(index, np.int32), np.asarray(value, np.float32))


def leaves(tree):
    return np.asarray(LEAF(tree, np.arange(tree.capacity, dtype=np.int32)))


def filled(capacity, seed=0):
    value = np.random.default_rng(seed).random(capacity).astype(np.float32)
    return set_leaves(sum_tree.init(capacity), np.arange(capacity), value), value


@pytest.mark.parametrize("capacity", CAPACITIES)
def test_random_operations_follow_the_reference(capacity):
    """16 writes of 24, a third of the values 0, indices outside and duplicates among them, of wild sizes."""
    rng = np.random.default_rng(capacity)
    tree, reference = sum_tree.init(capacity), np.zeros(capacity, np.float32)
    for _ in range(16):
        index = rng.integers(-2, capacity + 2, 24)
        index[:4] = index[4:8]
        value = (rng.random(24) * 10.0 ** rng.integers(-6, 6, 24) * (rng.random(24) > 1 / 3)).astype(np.float32)
        tree = set_leaves(tree, index, value)
        for i in {int(i) for i in index if 0 <= i < capacity}:
            reference[i] = value[index == i].max()
        assert VALID(tree)
        np.testing.assert_array_equal(leaves(tree), reference)
        total = float(TOTAL(tree))
        np.testing.assert_allclose(total, reference.sum(dtype=np.float64), rtol=1e-5)
        mass = np.append(rng.random(22), [0.0, 1.0]).astype(np.float32) * np.float32(total)
        found = np.asarray(FIND(tree, jnp.asarray(mass)))
        if not reference.any():
            np.testing.assert_array_equal(found, 0)
            continue
        assert (reference[found] > 0).all()
        above = np.cumsum(reference, dtype=np.float64)
        slack = 1e-5 * total
        assert (mass <= above[found] + slack).all()
        assert (mass >= above[found] - reference[found] - slack).all()


@pytest.mark.parametrize("capacity", CAPACITIES)
def test_intervals_are_half_open(capacity):
    """Whole numbers, so that no sum is rounded: the border between two leaves belongs to the right one."""
    value = np.random.default_rng(1).integers(0, 3, capacity)
    value[capacity // 2] = 2
    tree = set_leaves(sum_tree.init(capacity), np.arange(capacity), value)
    owner = np.repeat(np.arange(capacity), value)
    total = len(owner)
    assert float(TOTAL(tree)) == total
    np.testing.assert_array_equal(FIND(tree, jnp.arange(total, dtype=jnp.float32)), owner)
    just_below = jnp.nextafter(jnp.arange(1, total + 1, dtype=jnp.float32), jnp.zeros(total, jnp.float32))
    np.testing.assert_array_equal(FIND(tree, just_below), owner)
    outside = jnp.asarray([-1.0, total, 2 * total, np.inf], jnp.float32)
    np.testing.assert_array_equal(FIND(tree, outside), [owner[0], owner[-1], owner[-1], owner[-1]])


def test_an_empty_tree_gives_0():
    tree = set_leaves(filled(300)[0], np.arange(300), np.zeros(300))
    assert float(TOTAL(tree)) == 0
    np.testing.assert_array_equal(FIND(tree, jnp.asarray([0.0, 0.5, 1.0], jnp.float32)), 0)


def test_a_leaf_of_0_is_never_found():
    """Sums of wild sizes are rounded hard; every float32 mass up to the total must still find a leaf above 0."""
    rng = np.random.default_rng(3)
    for _ in range(20):
        value = (10.0 ** rng.uniform(-6, 6, 1000) * (rng.random(1000) < 0.05)).astype(np.float32)
        value[17] = 1.0
        tree = set_leaves(sum_tree.init(1000), np.arange(1000), value)
        total = np.float32(TOTAL(tree))
        mass = np.append(rng.random(2000).astype(np.float32) * total, [total, np.nextafter(total, np.float32(0))])
        assert (value[np.asarray(FIND(tree, jnp.asarray(mass)))] > 0).all()


def test_many_updates_leave_no_drift():
    """After 2000 writes of sizes from 1e-8 to 1e8 and a last one of ones, the sums are those of ones."""

    @jax.jit
    def storm(tree, key):
        def write(tree, key):
            key_index, key_value = jax.random.split(key)
            index = jax.random.randint(key_index, (32,), 0, 500)
            value = 10.0 ** jax.random.uniform(key_value, (32,), minval=-8.0, maxval=8.0)
            return sum_tree.set_leaves(tree, index, value), None

        return jax.lax.scan(write, tree, jax.random.split(key, 2000))[0]

    tree = storm(sum_tree.init(500), jax.random.key(0))
    assert VALID(tree)
    tree = set_leaves(tree, np.arange(500), np.ones(500))
    assert VALID(tree)
    assert float(TOTAL(tree)) == 500


@pytest.mark.parametrize("values", [(1.0, 5.0, 3.0), (5.0, 3.0, 1.0), (0.0, 5.0, 5.0)])
def test_of_a_repeated_index_the_greatest_value_stays(values):
    tree = set_leaves(filled(20)[0], [7, 7, 7], values)
    assert leaves(tree)[7] == 5
    assert VALID(tree)


def test_values_that_are_no_priorities_do_not_poison_the_sums():
    value = np.asarray([np.nan, -1.0, np.inf, 1e-45, 2.0], np.float32)
    tree = set_leaves(sum_tree.init(40), np.arange(5), value)
    np.testing.assert_array_equal(leaves(tree)[:5], np.asarray([0, 0, sum_tree.MAX_LEAF, 0, 2], np.float32))
    assert VALID(tree)
    assert np.isfinite(float(sum_tree.total(set_leaves(tree, np.arange(40), np.full(40, np.inf)))))


def test_leaves_outside_are_0():
    tree, value = filled(20)
    index = jnp.asarray([-21, -1, 0, 19, 20, 2**31 - 1], jnp.int32)
    np.testing.assert_array_equal(sum_tree.leaf(tree, index), [0, 0, value[0], value[19], 0, 0])


@pytest.mark.parametrize("capacity", [1, 16, 300, 5000])
def test_a_damaged_tree_is_not_valid(capacity):
    tree, _ = filled(capacity)
    assert VALID(tree)
    nodes = np.asarray(tree.nodes)
    for row in {0, len(nodes) // 2, len(nodes) - 1}:
        for change in (1e-6, -1.0, np.nan):
            damaged = nodes.copy()
            damaged[row, 0] = damaged[row, 0] * (1 + change) if change == 1e-6 else change
            sums_alone = capacity <= 16 and change == 1e-6  # leaves without a parent: any value is as good
            assert bool(VALID(tree.replace(nodes=jnp.asarray(damaged)))) == sums_alone


@pytest.mark.parametrize("larger", [304, 320])
def test_mass_past_the_last_leaf_is_not_valid(larger):
    """The sums of a larger tree, right in themselves, cut to the rows of 300 leaves."""
    tree = set_leaves(sum_tree.init(larger), [5, larger - 1], [1.0, 1.0])
    smaller = sum_tree.init(300)
    cut = smaller.replace(nodes=tree.nodes[: smaller.nodes.shape[0]])
    assert not VALID(cut)
    assert VALID(set_leaves(smaller, [5, 299], [1.0, 1.0]))


def test_lanes_of_vmap_are_trees_of_their_own():
    rng = np.random.default_rng(0)
    index, value = rng.integers(-1, 305, (5, 32)), rng.random((5, 32)).astype(np.float32)
    trees = jax.vmap(lambda _: sum_tree.init(300))(jnp.arange(5))
    trees = jax.jit(jax.vmap(sum_tree.set_leaves))(trees, jnp.asarray(index, jnp.int32), jnp.asarray(value))
    mass = jnp.asarray(rng.random((5, 8)), jnp.float32)
    found = jax.jit(jax.vmap(sum_tree.find))(trees, mass)
    assert jax.vmap(sum_tree.check_valid)(trees).all()
    for lane in range(5):
        alone = set_leaves(sum_tree.init(300), index[lane], value[lane])
        np.testing.assert_array_equal(trees.nodes[lane], alone.nodes)
        np.testing.assert_array_equal(found[lane], FIND(alone, mass[lane]))


@pytest.fixture(scope="module")
def million():
    """A million leaves of 1, but for 4096 of 1/64 from leaf 600 000 on."""
    value = np.ones(1_000_000, np.float32)
    value[600_000:604_096] = 1 / 64
    return set_leaves(sum_tree.init(len(value)), np.arange(len(value)), value)


def test_the_rest_of_a_mass_finds_small_leaves_among_a_million(million):
    """Near 2**20 float32 masses lie 1/16 apart, four of the small leaves; a rest points at each one."""
    exact = 600_000 + (np.arange(4096) + 0.5) / 64
    mass = exact.astype(np.float32)
    rest = (exact - mass).astype(np.float32)
    assert (rest < 0).any()
    assert (rest > 0).any()
    np.testing.assert_array_equal(FIND(million, jnp.asarray(mass), jnp.asarray(rest)), 600_000 + np.arange(4096))
    assert len(np.unique(FIND(million, jnp.asarray(mass)))) < 2048


@pytest.mark.parametrize(("mass", "rest"), [(0.0, -1e-9), (-1.0, 0.5), (np.nan, 0.0), (0.0, np.nan), (0.0, 1e-3)])
def test_a_mass_that_is_none_counts_as_0(mass, rest):
    tree = set_leaves(sum_tree.init(100), [40, 41], [1.0, 1.0])
    assert FIND(tree, jnp.asarray([mass], jnp.float32), jnp.asarray([rest], jnp.float32)) == 40


def test_a_donated_scan_of_updates_copies_no_tree():
    """In the compiled loop no copy of the tree's size: each would cost far more than the update."""

    def run(tree, index, value):
        def step(tree, row):
            index, value = row
            tree = sum_tree.set_leaves(tree, index, value)
            found = sum_tree.find(tree, value * sum_tree.total(tree))
            return sum_tree.set_leaves(tree, found, value), found

        return jax.lax.scan(step, tree, (index, value))

    tree = sum_tree.init(100_000)
    index, value = jnp.zeros((10, 32), jnp.int32), jnp.ones((10, 32), jnp.float32)
    text = jax.jit(run, donate_argnums=0).lower(tree, index, value).compile().as_text()
    shape = re.escape(f"f32[{tree.nodes.shape[0]},{sum_tree.WIDTH}]")
    assert re.search(shape, text)
    assert not re.findall(rf"= {shape}\S* copy(?:-start)?\(", text)


def test_shapes_and_dtypes():
    tree = sum_tree.init(50)
    assert tree.nodes.dtype == jnp.float32
    assert not tree.nodes.weak_type
    after = jax.eval_shape(
        sum_tree.set_leaves, tree, jax.ShapeDtypeStruct((3,), jnp.int32), jax.ShapeDtypeStruct((3,), jnp.float32)
    )
    assert (after.nodes.shape, after.nodes.dtype, after.nodes.weak_type) == (tree.nodes.shape, jnp.float32, False)
    found = sum_tree.find(tree, jnp.zeros(3, jnp.float32))
    assert (found.shape, found.dtype) == ((3,), jnp.int32)
    assert sum_tree.total(tree).shape == ()


@pytest.mark.parametrize("capacity", [0, -3, 2**30 + 1])
def test_nonsense_is_refused(capacity):
    with pytest.raises(ValueError, match=f"got {capacity}"):
        sum_tree.init(capacity)
