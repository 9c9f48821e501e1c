"""An arrow of import points down the house's list only; imports are read from the source, also the late ones."""

import ast
from pathlib import Path

import tensor_optix

ROOT = Path(tensor_optix.__file__).parent

# From the ground up. A file may import from its own layer and from those below.
LAYERS = [
    {"_lazy", "core", "notebook_figure", "figure_style"},
    {"optimizers"},
    {"envs"},
    {"networks"},
    {"neuroevo.graph"},
    {"neuroevo"},
    {"algorithms"},
    {"evolution"},
    {"loop"},
    {"pipeline"},
    {
        "statistics",
        "curves",
        "lineage",
        "growth",
        "growth_watch",
        "ensembles",
        "reporting",
        "figures",
        "results",
        "policy",
        "config",
        "config_checks",
        "plan",
        "host_config",
    }
    | {"default_networks"},
    {"adapters"},
    {"callbacks"},
    {"graph_agents"},
    {"checking", "finished", "compiled_run", "training", "factory"},
    {"host_defaults", "host_pipeline", "optimizer", "orchestrator", "trials"},
    {"building"},
    {"cli", "cli_host", "cli_request", "cli_tune", "__main__"},
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
FRAMEWORKS = {"torch", "tensorflow", "gymnasium", "optuna", "matplotlib", "wandb", "tensorboard"}


def imports_of(path: Path) -> set[str]:
    """Absolute module names imported anywhere in a file, but for those under TYPE_CHECKING."""
    found = set()
    hidden = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            hidden.update(id(n) for n in ast.walk(node))
        if id(node) in hidden:
            continue
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return found


FACES = ("flax_", "torch_", "tf_", "_torch", "_tf")  # agents: their addresses are in algorithms, their level is not


def layer_of(module: str) -> str:
    parts = module.split(".")
    if len(parts) > 2 and parts[1] == "algorithms" and parts[2].startswith(FACES):
        return "adapters"
    if parts[1:3] == ["neuroevo", "graph"]:
        return "neuroevo.graph"
    return parts[1] if len(parts) > 1 else "__init__"


def is_another_address(path: Path) -> bool:
    """A file of nothing but a docstring, imports and `__all__`, kept for an address that documents name."""
    body = ast.parse(path.read_text()).body
    return path.read_text().startswith('"""Another address of') and all(
        isinstance(node, ast.Expr | ast.ImportFrom | ast.Assign) for node in body
    )


def test_imports_point_down():
    wrong = []
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        if parts == ("__init__",):
            continue
        if is_another_address(path):
            continue
        own = layer_of(".".join(("tensor_optix", *parts)))
        assert own in LEVEL, f"{path.name}: give {own} a place in LAYERS"
        for module in imports_of(path):
            if module.startswith("tensor_optix."):
                target = layer_of(module)
                if target in LEVEL and LEVEL[target] > LEVEL[own]:
                    wrong.append(f"{'/'.join(parts)} imports {module}")
    assert not wrong, wrong


def test_core_knows_no_framework_but_jax():
    allowed = {"jax", "numpy", "flax", "optax", "chex", "tensor_optix"}
    wrong = []
    for path in sorted((ROOT / "core").glob("*.py")):
        for module in imports_of(path):
            top = module.split(".")[0]
            if top in FRAMEWORKS or (top in {"rich", "yaml", "orbax", "gymnax", "distrax"} and top not in allowed):
                wrong.append(f"{path.name} imports {module}")
    assert not wrong, wrong


def test_distrax_is_imported_in_one_file():
    files = [p.name for p in ROOT.rglob("*.py") if any(m.split(".")[0] == "distrax" for m in imports_of(p))]
    assert files == ["distributions.py"]


def test_no_pickle():
    for path in ROOT.rglob("*.py"):
        assert not {m.split(".")[0] for m in imports_of(path)} & {"pickle", "cloudpickle", "joblib", "dill"}, path
