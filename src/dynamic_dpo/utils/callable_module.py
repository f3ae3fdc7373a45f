"""Let a module be called as its main function, for names that users know both ways.

``dynamic_dpo.eval.generate`` is a package and a function. Importing a submodule binds the module on its
package, whatever the package exported under that name before; a module that can be called makes both
readings right at any time.
"""

from __future__ import annotations

import inspect
import sys
from types import ModuleType
from typing import Any


class CallableModule(ModuleType):
    """A module whose call goes to the function named in its ``__called__``."""

    __called__: str

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the module's main function."""
        return getattr(self, self.__called__)(*args, **kwargs)

    @property
    def __signature__(self) -> inspect.Signature:
        """The main function's signature."""
        return inspect.signature(getattr(self, self.__called__))

    def __repr__(self) -> str:
        """Say what the module is and that it can be called."""
        return f"<callable module {self.__name__!r}>"


def make_module_callable(module_name: str, function_name: str) -> None:
    """Make the module ``module_name`` callable as its own function ``function_name``.

    The function is looked up at each call: it may be defined later, loaded lazily, or replaced.

    Args:
        module_name: Name of a module that is being or has been imported, normally ``__name__``.
        function_name: Name of a function of that module.

    Example:
        >>> import sys, types
        >>> module = sys.modules["lunch"] = types.ModuleType("lunch")
        >>> make_module_callable("lunch", "lunch")
        >>> module.lunch = lambda dish: f"{dish}, please"
        >>> module("soup"), module.lunch("bread")
        ('soup, please', 'bread, please')
        >>> del sys.modules["lunch"]
    """
    module = sys.modules[module_name]
    module.__class__ = CallableModule
    vars(module)["__called__"] = function_name
