"""Build hook: puts ``conf/`` and ``sweeps/`` into the wheel as ``varscale/_resources``.

Only into the standard wheel: an editable install reads the checkout (varscale.app.resources finds both).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class ResourcesHook(BuildHookInterface):  # type: ignore[type-arg]
    """Force-includes the configuration folders."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Called by hatchling before the build; ``version`` is ``standard`` or ``editable``."""
        if version == "standard":
            for folder in ("conf", "sweeps"):
                build_data["force_include"][str(Path(self.root) / folder)] = f"varscale/_resources/{folder}"
