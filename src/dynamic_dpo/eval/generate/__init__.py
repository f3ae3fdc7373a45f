"""Writing outputs: the promised ``dynamic_dpo.eval.generate``, which is a package and a function.

``dynamic_dpo.eval.generate(model, tokenizer, prompts)`` is `batched.generate`; it and torch are loaded when they are
first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dynamic_dpo.utils.callable_module import make_module_callable
from dynamic_dpo.utils.lazy import lazy_names

if TYPE_CHECKING:
    from dynamic_dpo.eval.generate.batched import Generation as Generation
    from dynamic_dpo.eval.generate.batched import generate as generate

__all__ = ["Generation", "generate"]

__getattr__, __dir__ = lazy_names(__name__, {"Generation": "batched", "generate": "batched"})

make_module_callable(__name__, "generate")
