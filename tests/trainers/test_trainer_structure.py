"""What the Hugging Face trainer does is overridden in one place each: no meaning hangs on the order of bases."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections import defaultdict

from transformers import Trainer

import dynamic_dpo.trainers
from dynamic_dpo.trainers import PreferenceTrainer
from dynamic_dpo.trainers.resumable_trainer import ResumableTrainer
from dynamic_dpo.trainers.sft_trainer import ResumableSFTTrainer

# Not the constructor: every class has its own.
HOOKS = {name for name, _ in inspect.getmembers(Trainer, inspect.isfunction) if name != "__init__"}


def is_ours(cls: type) -> bool:
    return cls.__module__.split(".")[0] == "dynamic_dpo"


def our_trainers() -> set[type]:
    """Every class of ours that is a Hugging Face trainer, or a base of one."""
    package = dynamic_dpo.trainers
    modules = [
        importlib.import_module(module.name)
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
    ]
    return {
        base
        for module in modules
        for _, cls in inspect.getmembers(module, inspect.isclass)
        if issubclass(cls, Trainer)
        for base in cls.__mro__
        if is_ours(base)
    }


def test_no_hook_of_the_hugging_face_trainer_is_overridden_in_two_classes() -> None:
    places = defaultdict(set)
    for cls in our_trainers():
        for name in HOOKS & vars(cls).keys():
            places[name].add(cls.__name__)
    assert {name: classes for name, classes in places.items() if len(classes) > 1} == {}
    assert {"train", "_maybe_log_save_evaluate", "_save_checkpoint", "training_step"} <= places.keys()


def test_both_trainers_stand_on_one_base_of_ours() -> None:
    assert {PreferenceTrainer, ResumableSFTTrainer, ResumableTrainer} <= our_trainers()
    for trainer in (PreferenceTrainer, ResumableSFTTrainer):
        assert [cls for cls in trainer.__mro__[1:] if is_ours(cls)] == [ResumableTrainer]
