"""torchrun in front of a run of several devices: ends with its parent, and hands on how the run ended.

Plain ``torchrun`` leaves its workers running when it is killed, and turns every exit code into 1. Usage, by the
launcher: ``python -m varscale.app.torchrun COUNT COMMAND...`` starts ``COMMAND`` once for each device.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from varscale.app.processes import PARENT_VARIABLE, follow_parent


def main(argv: Sequence[str]) -> int:
    """Run ``COUNT COMMAND...``. Returns the exit code of the first worker that failed, 130 after an interruption."""
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import parse_args, run

    count, *command = argv
    os.environ[PARENT_VARIABLE] = str(os.getpid())  # the workers follow this process, as it follows the launcher
    try:
        run(parse_args(["--standalone", f"--nproc-per-node={count}", "--no-python", *command]))
    except ChildFailedError as error:
        code: int = error.get_first_failure()[1].exitcode
        return code if code >= 0 else 128 - code
    except SignalException:
        return 130
    return 0


if __name__ == "__main__":
    follow_parent()
    sys.exit(main(sys.argv[1:]))
