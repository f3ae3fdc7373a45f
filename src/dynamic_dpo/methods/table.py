"""The table of methods: one line each, in the order of the documentation.

A method's module is loaded when its class is first asked for, or when a file of settings is checked. That has to be
quick, so these modules load no torch: they import it for their annotations, or where they use it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping
from importlib import import_module

from dynamic_dpo.methods.base import PreferenceMethod


class MethodTable(MutableMapping[str, type[PreferenceMethod]]):
    """Classes of methods by name.

    Args:
        entries: Name to ``"module:Class"``.

    Example:
        >>> methods = MethodTable({"dpo": "dynamic_dpo.methods.dpo:DPO"})
        >>> list(methods), methods["dpo"].__name__
        (['dpo'], 'DPO')
    """

    def __init__(self, entries: Mapping[str, str]) -> None:
        self._entries: dict[str, str | type[PreferenceMethod]] = dict(entries)

    def __getitem__(self, name: str) -> type[PreferenceMethod]:
        entry = self._entries[name]
        if isinstance(entry, str):
            module, _, class_name = entry.partition(":")
            entry = self._entries[name] = getattr(import_module(module), class_name)
        return entry

    def __setitem__(self, name: str, method: type[PreferenceMethod]) -> None:
        self._entries[name] = method

    def __delitem__(self, name: str) -> None:
        del self._entries[name]

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)


METHODS = MethodTable(
    {
        "dpo": "dynamic_dpo.methods.dpo:DPO",
        "risk": "dynamic_dpo.methods.risk.controller:Risk",
        "schedule": "dynamic_dpo.methods.schedule:Schedule",
        "robust": "dynamic_dpo.methods.robust:Robust",
        "ipo": "dynamic_dpo.methods.ipo:IPO",
        "hinge": "dynamic_dpo.methods.hinge:Hinge",
        "simpo": "dynamic_dpo.methods.simpo:SimPO",
        "wpo": "dynamic_dpo.methods.wpo:WPO",
        "sft": "dynamic_dpo.methods.sft:SFT",
        "dpo_norm": "dynamic_dpo.methods.pairwise.dpo_norm:DPONorm",
        "exo_pair": "dynamic_dpo.methods.pairwise.exo_pair:EXOPair",
        "nca_pair": "dynamic_dpo.methods.pairwise.nca_pair:NCAPair",
        "bco_pair": "dynamic_dpo.methods.pairwise.bco_pair:BCOPair",
        "sppo_hard": "dynamic_dpo.methods.pairwise.sppo_hard:SPPOHard",
        "apo_zero": "dynamic_dpo.methods.pairwise.apo_zero:APOZero",
        "apo_down": "dynamic_dpo.methods.pairwise.apo_down:APODown",
        "discopop": "dynamic_dpo.methods.pairwise.discopop:DiscoPOP",
        "chi_po": "dynamic_dpo.methods.pairwise.chi_po:ChiPO",
        "alpha_po": "dynamic_dpo.methods.pairwise.alpha_po:AlphaPO",
        "hypo": "dynamic_dpo.methods.pairwise.hypo:HyPO",
        "aot": "dynamic_dpo.methods.coupled.aot:AOT",
        "aot_unpaired": "dynamic_dpo.methods.coupled.aot_unpaired:AOTUnpaired",
        "dr_dpo": "dynamic_dpo.methods.coupled.dr_dpo:DrDPO",
        "beta_dpo": "dynamic_dpo.methods.beta_dpo:BetaDPO",
        "epsilon_dpo": "dynamic_dpo.methods.epsilon_dpo:EpsilonDPO",
        "alpha_dpo": "dynamic_dpo.methods.alpha_dpo:AlphaDPO",
    }
)
