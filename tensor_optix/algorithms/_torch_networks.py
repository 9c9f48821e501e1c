"""Named PyTorch modules with the optimizer that trains them: device, threads, files, averages, noise.

On disk: `<name>.safetensors` for each module, and `optimizer.pt`, a plain state dict that is only ever read with
weights_only=True. Reading checks everything before anything is put in place.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

_OPTIMIZER = "optimizer.pt"
_SMALL = 1_000_000  # parameters; below it a CPU's threads cost more than they bring
_CHUNK = 4096  # rows of a forward that is not learned from


@dataclass(frozen=True)
class Saved:
    """What `Networks.read` found, checked against the networks it is for."""

    weights: dict[str, dict[str, Tensor]]  # by module, then by leaf
    optimizer: dict[str, Any]


class Networks:
    """Modules by name, moved to `device` in place, in evaluation mode: acting and learning are the same forward.

    Args:
        modules: by name; two may share parameters.
        optimizer: over their parameters. ValueError for a module of which it has none.
        device: "auto" (a GPU if there is one) or whatever torch.device takes.
        n_threads: of a CPU, while the networks run; None: 1 for less than a million parameters, else torch's number.
    """

    def __init__(
        self, modules: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer, device: Any, n_threads: int | None
    ) -> None:
        for name, module in modules.items():
            if not isinstance(module, nn.Module):
                raise TypeError(f"{name} must be a torch.nn.Module, got {module!r}")
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise TypeError(f"optimizer must be a torch.optim.Optimizer, got {optimizer!r}")
        if n_threads is not None and n_threads < 1:
            raise ValueError(f"n_threads must be at least 1, got {n_threads}")
        self.modules, self.optimizer, self.device = dict(modules), optimizer, device_named(device)
        for module in self.modules.values():
            module.to(self.device).eval()
        self._check_optimizer()
        if optimizer.state:  # its moments were made where the modules were before
            optimizer.load_state_dict(optimizer.state_dict())
        if self.device.type == "cpu":
            _fuse(optimizer)
        rates = [float(group["lr"]) for group in optimizer.param_groups]
        self._lr_shares = [rate / rates[0] if rates[0] else 1.0 for rate in rates]
        few = self.device.type == "cpu" and sum(p.numel() for p in self.trained) < _SMALL
        self._n_threads = n_threads or (1 if few else None)

    @property
    def trained(self) -> list[nn.Parameter]:
        """The optimizer's parameters."""
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    @property
    def learning_rate(self) -> float:
        """The first parameter group's; the others keep their proportion to it."""
        return float(self.optimizer.param_groups[0]["lr"])

    @learning_rate.setter
    def learning_rate(self, rate: float) -> None:
        for group, share in zip(self.optimizer.param_groups, self._lr_shares, strict=True):
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate * share)
            else:
                group["lr"] = rate * share

    # -- running -------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def threads(self) -> Iterator[None]:
        """The networks' number of threads inside, the process's own again outside."""
        before = torch.get_num_threads()
        if self._n_threads in (None, before):
            yield
            return
        torch.set_num_threads(self._n_threads)
        try:
            yield
        finally:
            torch.set_num_threads(before)

    def tensor(self, array: np.ndarray) -> Tensor:
        """On the device; shares the array's memory on a CPU."""
        array = np.ascontiguousarray(array)
        return torch.from_numpy(array if array.flags.writeable else array.copy()).to(self.device)

    @torch.inference_mode()
    def forward(self, name: str, batch: np.ndarray) -> np.ndarray:
        """Output [N, ...] of one module for a batch [N, ...], without gradients."""
        module, rows = self.modules[name], self.tensor(batch)
        if len(rows) <= _CHUNK:
            return module(rows).cpu().numpy()
        return torch.cat([module(part) for part in rows.split(_CHUNK)]).cpu().numpy()

    def descend(self, outputs: Sequence[Tensor], gradients: Sequence[Tensor | None], max_grad_norm: float) -> Tensor:
        """One step of the optimizer, for outputs and the loss's gradients by them (None for the loss itself).

        Gradients are clipped to a global norm; returns that before clipping, a scalar on the device.
        """
        self.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(outputs, gradients)
        norm = nn.utils.clip_grad_norm_(self.trained, max_grad_norm)
        self.optimizer.step()
        return norm

    def release(self) -> None:
        """Everything back to the CPU, and the GPU's memory free for others."""
        was, self.device = self.device, torch.device("cpu")
        for module in self.modules.values():
            module.to(self.device)
        self.optimizer.zero_grad(set_to_none=True)
        self.optimizer.load_state_dict(self.optimizer.state_dict())
        if was.type == "cuda":
            torch.cuda.empty_cache()

    @torch.no_grad()
    def perturb(self, rng: np.random.Generator, scale: float) -> None:
        """theta * (1 + scale * N(0, 1)) for every floating parameter."""
        for parameter in _unique(p for module in self.modules.values() for p in module.parameters()):
            if parameter.is_floating_point():
                noise = rng.standard_normal(tuple(parameter.shape), np.float32)
                parameter.mul_(1.0 + scale * self.tensor(np.asarray(noise)).to(parameter.dtype))

    def export(self, module: nn.Module, path: str, obs_shape: Sequence[int], output: str) -> None:
        """`module` as ONNX, opset 17: "observation" [N, *obs_shape] -> `output` [N, ...], N free."""
        try:
            import onnx  # noqa: F401
        except ImportError as error:
            raise ImportError('export_onnx needs onnx: pip install "tensor-optix[onnx]"') from error
        example = torch.zeros((1, *obs_shape), device=self.device)
        Path(path).absolute().parent.mkdir(parents=True, exist_ok=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # the exporter that needs no further package
            warnings.simplefilter("ignore", torch.jit.TracerWarning)  # widths are checked, and do not change
            torch.onnx.export(
                module.eval(), (example,), path, dynamo=False, opset_version=17, input_names=["observation"],
                output_names=[output], dynamic_axes={"observation": {0: "batch"}, output: {0: "batch"}},
            )  # fmt: skip

    # -- files ---------------------------------------------------------------------------------------------

    def save(self, directory: Path) -> None:
        """Writes the modules' leaves and the optimizer's state into `directory`."""
        for name, module in self.modules.items():
            leaves = {leaf: value.detach().cpu().contiguous().clone() for leaf, value in _leaves(module).items()}
            save_file(leaves, directory / f"{name}.safetensors")
        torch.save(self.optimizer.state_dict(), directory / _OPTIMIZER)

    def read(self, directory: Path) -> Saved:
        """What `save` wrote; nothing is changed. FileNotFoundError; ValueError for what is damaged or does not fit."""
        weights = self._read_weights(directory)
        path = _present(directory / _OPTIMIZER)
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            sizes = [len(group["params"]) for group in state["param_groups"]]
            state["state"].keys()
        except Exception as error:  # torch raises what the damaged bytes lead it to
            raise ValueError(
                f"'{path}' is no optimizer state ({type(error).__name__}): save the agent again"
            ) from error
        expected = [len(group["params"]) for group in self.optimizer.param_groups]
        if sizes != expected:
            raise ValueError(f"'{path}' is of an optimizer over {sizes} parameters (by group), this one has {expected}")
        return Saved(weights, state)

    def put(self, saved: Saved) -> None:
        """Modules and optimizer as they were saved."""
        self.optimizer.load_state_dict(saved.optimizer)  # checks before it changes anything
        for name, leaves in saved.weights.items():
            self.modules[name].load_state_dict(leaves, strict=False)  # compared already; extra state stays

    def average(self, directories: Sequence[Path]) -> None:
        """The mean of several saved weights, taken in float64; leaves that are not floating come from the first."""
        found = [self._read_weights(directory) for directory in directories]
        for name, module in self.modules.items():
            mean = dict(found[0][name])
            for leaf, value in mean.items():
                if value.is_floating_point():
                    mean[leaf] = torch.stack([one[name][leaf].double() for one in found]).mean(0).to(value.dtype)
            module.load_state_dict(mean, strict=False)

    def _read_weights(self, directory: Path) -> dict[str, dict[str, Tensor]]:
        weights = {}
        for name, module in self.modules.items():
            path = _present(directory / f"{name}.safetensors")
            try:
                weights[name] = load_file(path)
            except (SafetensorError, ValueError) as error:
                raise ValueError(f"'{path}' is damaged ({error}): take another checkpoint") from error
            _compare(path, weights[name], _leaves(module))
        return weights

    def _check_optimizer(self) -> None:
        known = {id(p) for p in self.trained}
        for name, module in self.modules.items():
            wanted = [p for p in module.parameters() if p.requires_grad]
            if wanted and not any(id(p) in known for p in wanted):
                raise ValueError(
                    f"the optimizer trains no parameter of {name}: "
                    f"make it over {' + '.join(f'list({other}.parameters())' for other in self.modules)}"
                )


def device_named(device: Any) -> torch.device:
    """torch.device of a name; ValueError for one that torch does not know or that is not there."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f'device must be "auto", "cpu", "cuda" or another of torch, got {device!r}') from error
    if found.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f'device is {device!r}, but torch finds no CUDA: give device="auto" or "cpu"')
    return found


def _fuse(optimizer: torch.optim.Optimizer) -> None:
    """Adam in one kernel, three times as fast on small networks, where the choice was left to torch."""
    if type(optimizer) not in (torch.optim.Adam, torch.optim.AdamW):
        return
    for group in optimizer.param_groups:
        open_choice = group.get("fused") is None and group.get("foreach") is None
        plain = not (group.get("capturable") or group.get("differentiable"))
        if open_choice and plain and all(p.is_floating_point() and p.device.type == "cpu" for p in group["params"]):
            group["fused"] = True


def _leaves(module: nn.Module) -> dict[str, Tensor]:
    return {name: value for name, value in module.state_dict().items() if isinstance(value, Tensor)}


def _compare(path: Path, saved: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
    """ValueError at the first leaf that is missing, unknown, or of another shape."""
    for leaf in [*own, *saved]:
        if leaf not in saved:
            raise ValueError(f"'{path}' has no leaf '{leaf}', which the network has: it is of another network")
        if leaf not in own:
            raise ValueError(f"'{path}' has a leaf '{leaf}', which the network has not: it is of another network")
        if saved[leaf].shape != own[leaf].shape:
            shapes = f"{list(saved[leaf].shape)}, the network's has {list(own[leaf].shape)}"
            raise ValueError(f"leaf '{leaf}' in '{path}' has shape {shapes}: it is of another network")


def _present(path: Path) -> Path:
    if not path.is_file():
        raise FileNotFoundError(f"'{path}' is missing: expected a directory that save_weights wrote")
    return path


def _unique(parameters: Iterator[nn.Parameter]) -> list[nn.Parameter]:
    return list({id(p): p for p in parameters}.values())
