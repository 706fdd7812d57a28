"""Settings of all tests: one thread a process, and real data that may be absent but never silently skipped."""

from __future__ import annotations

import os
import sys

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: the tests run as two processes on two cores

from collections.abc import Generator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]


def real_data_folder() -> Path:
    """The folder of real data: VARSCALE_TEST_DATA, by default ../shared/data beside the repository."""
    return Path(os.environ.get("VARSCALE_TEST_DATA", REPOSITORY / "../shared/data")).resolve()


@pytest.fixture(autouse=True)
def one_thread() -> Generator[None]:
    """The next test has one thread again: two busy processes of two threads each would wait for each other."""
    yield
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout."""
    return REPOSITORY


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder of real data; the test is skipped where there is none, and must not skip where there is one."""
    folder = real_data_folder()
    if not folder.is_dir():
        pytest.skip(f"no real data in {folder}; set VARSCALE_TEST_DATA to the folder that holds cifar10 and the rest")
    return folder


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Turns the skip of a test on real data into a failure where the data is there."""
    report = yield
    on_data = "test_data" in getattr(item, "fixturenames", ())
    if on_data and report.skipped and not hasattr(report, "wasxfail") and real_data_folder().is_dir():
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} skipped, though {real_data_folder()} exists: {report.longrepr}"
    return report
