"""Packages that only some files need."""

import importlib
from typing import Any

from flowsim.errors import FlowsimError


def package(module: str, name: str, extra: str = "features") -> Any:
    """A module of an optional package.

    Args:
        module: The module, e.g. "pyarrow.parquet".
        name: The package as pip knows it.
        extra: The extra of flowsim that has it.

    Returns:
        The module.

    Raises:
        FlowsimError: If it is not installed, with the command that installs it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise FlowsimError(
            f"Files of this kind need the package {name}. Install it with: pip install 'flowsim[{extra}]'"
        ) from error
