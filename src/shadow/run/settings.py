"""What the numbers and files of an audit depend on."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from shadow.checkpoints.pairing import Filter
from shadow.reports.metadata import SettingsMetadata
from shadow.run.devices import CPU, DeviceChoice
from shadow.spectra.method import Method


@dataclass(frozen=True)
class Settings:
    """Everything about an audit that its numbers or files depend on, except the two checkpoints.

    Of the device, only the kind is a setting of the report.
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
    "method": {**_DEFAULTS["method"], "subjects": "all", "seed": 0},
    "relation": "tuned",
    "device": "cpu",
}
