"""Importing the package is light, and its public names all resolve."""

import subprocess
import sys

import pytest

import tensor_optix


def test_import_loads_no_framework():
    code = (
        "import sys, tensor_optix;"
        "print([m for m in ('torch','tensorflow','gymnasium','gymnax','optuna','matplotlib','distrax','orbax') "
        "if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", [name for name in tensor_optix.__all__ if name != "__version__"])
def test_public_names_resolve(name):
    assert getattr(tensor_optix, name) is not None


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no_such_name"):
        tensor_optix.no_such_name  # noqa: B018


def test_version_matches_the_metadata():
    import importlib.metadata

    assert importlib.metadata.version("tensor-optix") == tensor_optix.__version__
