"""The GPUs of a machine, divided among jobs that run side by side."""

from __future__ import annotations

import importlib
import os
from collections.abc import Sequence

from varscale.app.config import ConfigError

VISIBLE = "CUDA_VISIBLE_DEVICES"


def visible_devices() -> tuple[str, ...]:
    """The names by which ``CUDA_VISIBLE_DEVICES`` calls the GPUs that this process may use."""
    count: int = importlib.import_module("torch").cuda.device_count()
    given = [name.strip() for name in os.environ.get(VISIBLE, "").split(",") if name.strip()]
    return tuple(given[:count]) if given else tuple(str(number) for number in range(count))


class DevicePool:
    """Which devices each job gets: the ones that the fewest jobs are using.

    Args:
        devices: their names.
        shared: whether several jobs may use a device at a time.
    """

    def __init__(self, devices: Sequence[str], *, shared: bool) -> None:
        self.users = dict.fromkeys(devices, 0)
        self.shared = shared

    def check(self, count: int) -> None:
        """Raise ``ConfigError`` when a job wants more devices than there are."""
        if count > len(self.users):
            raise ConfigError(
                f"trainer.devices={count}, but this machine offers {len(self.users)} GPUs "
                f"({', '.join(self.users) or 'none'}); lower it, or use trainer=cpu"
            )

    def take(self, count: int) -> tuple[str, ...] | None:
        """``count`` devices, or None when that many are not free at present."""
        chosen = sorted(self.users, key=lambda name: self.users[name])[:count]  # ties: in the order of the devices
        if not self.shared and any(self.users[name] for name in chosen):
            return None
        for name in chosen:
            self.users[name] += 1
        return tuple(chosen)

    def give_back(self, devices: Sequence[str]) -> None:
        """The job that had these devices has ended."""
        for name in devices:
            self.users[name] -= 1
