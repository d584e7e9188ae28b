"""Settings that the numbers and files of an audit depend on."""

from __future__ import annotations

import json
import re
import warnings
from dataclasses import asdict, dataclass

from shadow.checkpoints.pairing import Filter
from shadow.errors import UsageError
from shadow.reports.provenance import SettingsMetadata
from shadow.spectra.measurement import Method

WORDS = "cpu, auto, cuda, or one card such as cuda:1"


@dataclass(frozen=True)
class DeviceChoice:
    """Device for Gram matrices. Two reports are comparable if their `kind` is the same."""

    kind: str = "cpu"
    """cpu or cuda."""
    place: str = "cpu"
    """As torch calls it: cpu, cuda:0."""
    name: str | None = None
    """What its maker calls the card."""


CPU = DeviceChoice()


def choose(device: str) -> DeviceChoice:
    """Choose the device named on this machine; `auto` falls back to the CPU. Raises UsageError."""
    if device == "cpu":
        return CPU
    if not re.fullmatch(r"auto|cuda(:\d{1,3})?", device, re.ASCII):
        raise UsageError(f"no device {device[:40]!r}", f"one of {WORDS}")
    import torch

    place = device if ":" in device else "cuda:0"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a driver that is too old
            return DeviceChoice("cuda", place, torch.cuda.get_device_name(place))
    except (RuntimeError, AssertionError) as error:  # such as a torch that is built without CUDA
        if device == "auto":
            return CPU
        note = str(error).strip().partition("\n")[0][:120]
        raise UsageError(f"--device {device}: {note}", "use --device cpu, or auto") from error


@dataclass(frozen=True)
class Settings:
    """Everything that the numbers and files of an audit depend on, except the two checkpoints.

    Of the device, only the kind is a setting of the report.
    """

    method: Method
    chosen: Filter
    spectra: bool = True
    device: DeviceChoice = CPU
    by_number: bool = False
    """Whether layers, experts and rows of a vocabulary are compared by number alone."""

    def as_json(self) -> SettingsMetadata:
        """The settings as reports have them: without the CPU and all subjects, as before;
        by number only where that was asked for.
        """
        as_in_files: SettingsMetadata = json.loads(
            json.dumps({**asdict(self), "device": self.device.kind})
        )
        if self.device.kind == CPU.kind:
            del as_in_files["device"]
        if self.method.subjects == "all":
            del as_in_files["method"]["subjects"]
        if not self.by_number:
            del as_in_files["by_number"]
        return as_in_files


# what a report was made with that does not say so, being older than the setting
_DEFAULTS = Settings(Method(), Filter()).as_json()
DEFAULTS: SettingsMetadata = {
    **_DEFAULTS,
    "method": {**_DEFAULTS["method"], "subjects": "all", "seed": 0},
    "relation": "tuned",
    "device": "cpu",
    "by_number": False,
}
