"""The trackers that a training can report to: those of the installed ``transformers``, and what each of them needs.

transformers is imported only where a tracker is named.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

Report = str | Sequence[str] | None

# A tracker of transformers' -> the name it asks for it by, and what makes it answer yes.
_ASKED_FOR = {
    "azure_ml": ("azureml", "pip install azureml-core"),
    "clearml": ("clearml", "pip install clearml"),
    "codecarbon": ("codecarbon", "pip install codecarbon"),
    "comet_ml": ("comet", "pip install comet-ml, then set COMET_API_KEY"),
    "dagshub": ("dagshub", "pip install dagshub mlflow"),
    "dvclive": ("dvclive", "pip install dvclive"),
    "flyte": ("flytekit", "pip install flytekit"),
    "kubeflow": (
        "kubeflow",
        "it reports from within a TrainJob of Kubeflow, which sets KUBEFLOW_TRAINER_SERVER_URL",
    ),
    "mlflow": ("mlflow", "pip install mlflow, and leave DISABLE_MLFLOW_INTEGRATION unset"),
    "neptune": ("neptune", "pip install neptune"),
    "swanlab": ("swanlab", "pip install swanlab"),
    "tensorboard": ("tensorboard", "pip install 'dynamic-dpo[tracking]'"),
    "trackio": ("trackio", "pip install trackio"),
    "wandb": ("wandb", "pip install 'dynamic-dpo[wandb]'"),
}


class UnusableTracker(NamedTuple):
    """A tracker that was asked for and cannot be had here.

    Attributes:
        name: Its name.
        remedy: What to install or set.
    """

    name: str
    remedy: str


def known_trackers() -> list[str]:
    """Return the names of the trackers that the installed transformers reports to."""
    from transformers.integrations import INTEGRATION_TO_CALLBACK

    return sorted(INTEGRATION_TO_CALLBACK)


def tracker_names(report: Report) -> list[str]:
    """Return the trackers that a setting names; ``None`` and ``none`` name none, ``all`` those that are installed.

    Example:
        >>> tracker_names(None), tracker_names("none"), tracker_names(["wandb", "mlflow"])
        ([], [], ['wandb', 'mlflow'])
    """
    names = [report] if isinstance(report, str) else list(report or ())
    if names == ["all"]:
        from transformers.integrations import get_available_reporting_integrations

        return list(get_available_reporting_integrations())
    return [name for name in dict.fromkeys(names) if name != "none"]


def report_fault(report: Report) -> str | None:
    """Return what a setting that names trackers must be, if it is not.

    Example:
        >>> report_fault("none"), report_fault("all"), report_fault(["tensorboard", "mlflow"])
        (None, None, None)
        >>> report_fault("tensorbord")  # doctest: +ELLIPSIS
        'must be null, none, all or trackers of transformers: azure_ml, ... wandb'
    """
    names = tracker_names(report)
    if not names:
        return None
    known = known_trackers()
    if all(name in known for name in names):
        return None
    return f"must be null, none, all or trackers of transformers: {', '.join(known)}"


def unusable_trackers(names: Sequence[str]) -> list[UnusableTracker]:
    """Return those of some trackers that are not installed or not set up; one that is new to us is taken as it is."""
    from transformers.integrations import integration_utils

    found = []
    for name in names:
        asked, remedy = _ASKED_FOR.get(name, (name, ""))
        is_usable: Callable[[], bool] = getattr(integration_utils, f"is_{asked}_available", lambda: True)
        if not is_usable():
            found.append(UnusableTracker(name, remedy))
    return found
