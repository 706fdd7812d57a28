"""``python -m varscale``: the same as the command ``varscale``."""

from __future__ import annotations

import sys

from varscale.app.cli import main

if __name__ == "__main__":
    sys.exit(main())
