import numpy as np
import pytest

from tensor_optix.loop.host_state import read_tree, write_tree


def test_round_trip(tmp_path):
    tree = {
        "n": 3, "big": 2**127 - 1, "x": 0.1, "nan": float("nan"), "inf": -float("inf"), "s": "ü",
        "none": None, "b": True,
        "list": [np.arange(6, dtype=np.float32).reshape(2, 3), {"deep": np.array([True, False])}, np.float64(0.3)],
        "empty": np.zeros((0, 4), np.int8), "scalar": np.array(7), "u": np.array(["a", "bc"]),
    }  # fmt: skip
    write_tree(tmp_path, tree)
    back = read_tree(tmp_path)
    assert back["big"] == 2**127 - 1
    assert back["nan"] != back["nan"]
    assert {k: back[k] for k in ("n", "x", "inf", "s", "none", "b")} == {
        k: tree[k] for k in ("n", "x", "inf", "s", "none", "b")
    }
    for got, expected in [
        (back["list"][0], tree["list"][0]), (back["list"][1]["deep"], np.array([True, False])),
        (back["empty"], tree["empty"]), (back["scalar"], tree["scalar"]), (back["u"], tree["u"]),
    ]:  # fmt: skip
        assert got.dtype == expected.dtype
        np.testing.assert_array_equal(got, expected)
    assert back["list"][2] == 0.3
    back["list"][0][0, 0] = 9  # writable


def test_what_cannot_be_held_is_named(tmp_path):
    with pytest.raises(TypeError, match=r"state\.a\[1\] is a set"):
        write_tree(tmp_path, {"a": [1, {2}]})
    with pytest.raises(TypeError, match="state has the key 3"):
        write_tree(tmp_path, {3: 1})
