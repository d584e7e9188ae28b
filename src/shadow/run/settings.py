"""What the numbers and files of an audit depend on, and what a pair was asked for."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from shadow.checkpoints.pairing import Filter
from shadow.reports.metadata import SettingsMetadata
from shadow.run.devices import CPU, DeviceChoice
from shadow.run.runtime import Runtime
from shadow.spectra.delta import Method
from shadow.targets.families import Pair


@dataclass(frozen=True)
class Settings:
    """Everything about an audit that its numbers or files depend on, except the two checkpoints.

    Only the label depends on the optimiser. Of the device, only the kind is a setting of the
    report.
    """

    method: Method
    chosen: Filter
    spectra: bool = True
    device: DeviceChoice = CPU

    def as_json(self) -> SettingsMetadata:
        """What a report says of them.

        Of the device nothing where it is the CPU, and of subjects where all are measured, as in
        reports before these settings.
        """
        as_in_files: SettingsMetadata = json.loads(
            json.dumps({**asdict(self), "device": self.device.kind})
        )
        if self.device.kind == CPU.kind:
            del as_in_files["device"]
        if self.method.subjects == "all":
            del as_in_files["method"]["subjects"]
        return as_in_files


# what a report was made with that does not say so, being older than the setting
_DEFAULTS = Settings(Method(), Filter()).as_json()
DEFAULTS: SettingsMetadata = {
    **_DEFAULTS,
    "method": {**_DEFAULTS["method"], "subjects": "all"},
    "relation": "tuned",
    "device": "cpu",
}


@dataclass(frozen=True)
class Asked:
    """What `run_pair` was asked for, the folder of the report, and the one for byte ranges and raw
    copies, which is removed at the end.
    """

    pair: Pair
    settings: Settings
    runtime: Runtime
    folder: Path
    scratch: Path
