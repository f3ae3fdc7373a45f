"""Let a module be called as its main function, for names that users know both ways.

``dynamic_dpo.eval.generate`` is a module and a function. Importing a submodule binds the module on its
package, whatever the package exported under that name before; a module that can be called makes both
readings right at any time. This file knows nothing of the modules that use it.
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

    def __repr__(self) -> str:
        """Say what the module is and that it can be called."""
        return f"<callable module {self.__name__!r}>"


def make_module_callable(module_name: str, function_name: str) -> None:
    """Make the module ``module_name`` callable as its own function ``function_name``.

    The function is looked up at each call, so a function replaced in the module is the one called.

    Args:
        module_name: Name of a module that is being or has been imported, normally ``__name__``.
        function_name: Name of a function that the module has defined by now.

    Raises:
        AttributeError: If the module has no such function yet: call this below its definition.

    Example:
        >>> import sys, types
        >>> module = sys.modules["lunch"] = types.ModuleType("lunch")
        >>> module.lunch = lambda dish: f"{dish}, please"
        >>> make_module_callable("lunch", "lunch")
        >>> module("soup"), module.lunch("bread")
        ('soup, please', 'bread, please')
        >>> del sys.modules["lunch"]
    """
    module = sys.modules[module_name]
    function = getattr(module, function_name)
    module.__class__ = CallableModule
    vars(module).update(__called__=function_name, __signature__=inspect.signature(function))
