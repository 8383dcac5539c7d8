"""Load all kinds of tables and figures."""

import importlib
import pkgutil

from portllm.reporting import exhibits
from portllm.study.exhibits import Registry, registered


def load() -> Registry:
    """Import every module of `portllm.reporting.exhibits` and return the kinds that they register.

    A new file in that package is all that a new kind needs.
    """
    for module in pkgutil.iter_modules(exhibits.__path__):
        importlib.import_module(f"{exhibits.__name__}.{module.name}")
    return registered()
