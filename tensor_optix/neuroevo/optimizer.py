"""Adam for what comes and goes: parameters of graphs that grow and shrink, and PyTorch tensors beside them.

Kingma & Ba 2015, algorithm 1; AMSGrad is Reddi et al. 2018, algorithm 2. The pure form, for compiled code, is
`tensor_optix.neuroevo.graph.adam`.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

_SETTINGS = ("lr", "betas", "eps", "weight_decay", "amsgrad")


class TopologyAwareAdam:
    """Adam whose parameters have a step count each, and that forgets what it knows of those that an edit touched.

    Parameters of which `grad` is None are left alone. The interface is that of PyTorch's optimisers.

    Args:
        params: handles with `data` and `grad`, such as `graph.parameters()`, and PyTorch tensors, in any mixture; or
            groups of them, dictionaries with "params" and any of the settings.
        lr: learning rate, at least 0.
        betas: decay of the mean and of the mean square, in [0, 1).
        eps: added to the root of the mean square.
        weight_decay: times the parameter, added to its gradient (L2 regularisation).
        amsgrad: the step never grows again by a mean square that falls.

    Attributes:
        param_groups: dictionaries with "params" and the settings, which can be changed at any time.
        state: parameter -> "step", "exp_avg", "exp_avg_sq" and with amsgrad "max_exp_avg_sq" (NumPy arrays), of those
            that have made a step.

    Raises:
        TypeError: something is no parameter.
        ValueError: there are none, one occurs twice, or a setting is out of its range.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        amsgrad: bool = False,
    ) -> None:
        self.defaults = dict(zip(_SETTINGS, (lr, betas, eps, weight_decay, amsgrad), strict=True))
        self.param_groups: list[dict[str, Any]] = []
        self.state: dict[Any, dict[str, Any]] = {}
        self._left: dict[Any, np.ndarray] = {}  # parameter -> its value after its last step
        params = _listed(params)
        for group in params if params and isinstance(params[0], Mapping) else [{"params": params}]:
            self.add_param_group(group)

    def add_param_group(self, param_group: Mapping[str, Any]) -> None:
        """One more group: "params", and any of the settings; the others are as they were first given."""
        unknown = [name for name in param_group if name not in ("params", *_SETTINGS)]
        if unknown or "params" not in param_group:
            raise ValueError(f"a group has params and any of {', '.join(_SETTINGS)}, got {', '.join(param_group)}")
        group = {**self.defaults, **param_group, "params": _checked(param_group["params"])}
        if not group["params"]:
            raise ValueError("there are no parameters in params: add neurons to the graph first")
        _check_settings(group)
        known = set(self._params())
        if any(param in known for param in group["params"]):
            raise ValueError("a parameter of the new group is in another one already: each may be in one only")
        self.param_groups.append(group)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of all parameters with a gradient. Returns what `closure` gives, which is called first.

        Raises:
            ValueError: a parameter is of something that is gone; nothing has moved then.
        """
        loss = None if closure is None else closure()
        try:
            ready = [[p for p in group["params"] if p.grad is not None] for group in self.param_groups]
        except ValueError as gone:
            raise ValueError(
                "a parameter's neuron or edge is there no more: call notify_topology_change(graph.parameters()) after "
                "every edit"
            ) from gone
        for group, params in zip(self.param_groups, ready, strict=True):
            if params:
                self._step(group, params)
        return loss

    def _step(self, group: dict[str, Any], params: list[Any]) -> None:
        """All parameters as one vector."""
        values, grads = ([_array(x) for x in xs] for xs in ([p.data for p in params], [p.grad for p in params]))
        sizes = np.array([x.size for x in values])
        states = [self.state.setdefault(p, {"step": 0}) for p in params]
        names = ["exp_avg", "exp_avg_sq"] + ["max_exp_avg_sq"] * bool(group["amsgrad"])
        dtype = np.result_type(np.float32, *{x.dtype for x in values})
        zeros = {size: np.zeros(size, dtype) for size in set(sizes.tolist())}

        def flat(xs: list[np.ndarray]) -> np.ndarray:
            return np.concatenate([np.ravel(x) for x in xs], dtype=dtype, casting="same_kind")

        x, grad = flat(values), flat(grads)
        mean, square, *peak = (
            flat([s.get(name, zeros[n]) for s, n in zip(states, sizes.tolist(), strict=True)]) for name in names
        )
        counts = np.array([state["step"] + 1 for state in states])
        (b1, b2), lr = group["betas"], group["lr"]
        if group["weight_decay"]:
            grad = grad + group["weight_decay"] * x
        mean = b1 * mean + (1 - b1) * grad
        square = b2 * square + (1 - b2) * grad * grad
        if peak:
            peak = [np.maximum(peak[0], square)]
        first, second = (np.repeat(1 - beta**counts, sizes).astype(dtype) for beta in (b1, b2))
        size = np.sqrt(peak[0] if peak else square) / np.sqrt(second) + group["eps"]
        x = x - lr * (mean / first) / size

        ends = np.cumsum(sizes)
        moments = [np.split(moment, ends[:-1]) for moment in (mean, square, *peak)]
        for i, (param, state, new) in enumerate(zip(params, states, np.split(x, ends[:-1]), strict=True)):
            shape = values[i].shape
            state["step"] += 1
            state.update({name: moment[i].reshape(shape) for name, moment in zip(names, moments, strict=True)})
            _write(param, new.reshape(shape).astype(values[i].dtype))
            self._left[param] = new.reshape(shape).astype(values[i].dtype)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """No gradients any more, or zeros where there were some."""
        for param in self._params():
            if set_to_none:
                param.grad = None
            elif _is_tensor(param.grad):
                param.grad = sys.modules["torch"].zeros_like(param.grad)
            elif param.grad is not None:
                param.grad = np.zeros_like(param.grad)

    def notify_topology_change(self, new_params: Iterable[Any]) -> None:
        """These are the parameters from now on: call it after every edit.

        Those still there keep their moments, unless their value or shape is not what the last step left: then the edit
        has touched them, and they begin anew, like those that are new. So does whatever else was set since the last
        step. Those that are not named are dropped. Each stays in its group; new ones join the first.
        """
        params = _checked(new_params)
        if not params:
            raise ValueError("there are no parameters in new_params: name all that are to be optimised")
        home = {param: i for i, group in enumerate(self.param_groups) for param in group["params"]}
        for i, group in enumerate(self.param_groups):
            group["params"] = [param for param in params if home.get(param, 0) == i]
        kept = [p for p in params if p in self.state and np.array_equal(_array(p.data), self._left[p])]
        self.state = {param: self.state[param] for param in kept}
        self._left = {param: self._left[param] for param in kept}

    def state_dict(self) -> dict[str, Any]:
        """What goes on from here: "state", by the parameters' numbers in order of the groups, and "param_groups"."""
        number = {param: i for i, param in enumerate(self._params())}
        state = {
            number[param]: {name: x if name == "step" else x.copy() for name, x in entries.items()}
            for param, entries in self.state.items()
        }
        groups = [{**group, "params": [number[param] for param in group["params"]]} for group in self.param_groups]
        return {"state": dict(sorted(state.items())), "param_groups": groups}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Takes over a `state_dict`, also one of `torch.optim.Adam`, for the same parameters in the same order.

        The parameters have the values that go with it already.

        Raises:
            ValueError: it is of other groups, of another number of parameters, or of some of another shape.
        """
        if not {"state", "param_groups"} <= set(state_dict):
            raise ValueError(f"a state_dict has state and param_groups, got {', '.join(map(str, state_dict))}")
        groups = state_dict["param_groups"]
        sizes = [[len(group["params"]) for group in these] for these in (self.param_groups, groups)]
        if sizes[0] != sizes[1]:
            raise ValueError(f"the state is of groups with {sizes[1]} parameters, and here are {sizes[0]}")
        params = dict(zip((n for group in groups for n in group["params"]), self._params(), strict=True))
        state: dict[Any, dict[str, Any]] = {}
        for number, entries in state_dict["state"].items():
            param = params[number]
            state_of: dict[str, Any] = {"step": int(entries["step"])}
            shape = _array(param.data).shape
            for name, moment in entries.items():
                if name == "step":
                    continue
                moment = np.array(_array(moment))
                if moment.shape != shape:
                    raise ValueError(
                        f"{name} of parameter {number} has the shape {list(moment.shape)}, and the parameter "
                        f"{list(shape)}: load the state of the same graph"
                    )
                state_of[name] = moment
            state[param] = state_of
        for group, other in zip(self.param_groups, groups, strict=True):
            group.update({name: other[name] for name in _SETTINGS if name in other})
        self.state = state
        self._left = {param: np.array(_array(param.data)) for param in state}

    def _params(self) -> list[Any]:
        return [param for group in self.param_groups for param in group["params"]]


def _listed(params: Any) -> list[Any]:
    if hasattr(params, "grad") or isinstance(params, Mapping):
        raise TypeError(f"params must be a list of parameters or of groups, got one {type(params).__name__}")
    return list(params)


def _checked(params: Any) -> list[Any]:
    """The parameters, if that is what they are, and each once."""
    params = _listed(params)
    for param in params:
        if not (hasattr(param, "data") and hasattr(param, "grad")):
            raise TypeError(
                "params must be parameters with `data` and `grad`, such as graph.parameters(), or PyTorch tensors, "
                f"got {param!r}"
            )
    if len(set(params)) != len(params):
        raise ValueError("a parameter occurs twice in params: name each once")
    return params


def _check_settings(group: Mapping[str, Any]) -> None:
    for name in ("lr", "eps", "weight_decay"):
        if not (math.isfinite(group[name]) and group[name] >= 0):
            raise ValueError(f"{name} must be a number of at least 0, got {group[name]}")
    if len(group["betas"]) != 2 or not all(0 <= beta < 1 for beta in group["betas"]):
        raise ValueError(f"betas must be two numbers in [0, 1), got {group['betas']}")


def _is_tensor(x: Any) -> bool:
    """Without importing PyTorch for the question."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(x, torch.Tensor)


def _array(x: Any) -> np.ndarray:
    return x.detach().cpu().numpy() if _is_tensor(x) else np.asarray(x)


def _write(param: Any, value: np.ndarray) -> None:
    if _is_tensor(param):
        param.data.copy_(sys.modules["torch"].from_numpy(value))
    else:
        param.data = value
