"""Where the real data is present a test on it must not skip; where it is absent the test skips with the reason."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = """
import pytest

def test_that_skips(test_data):
    pytest.skip("no torchvision")

def test_that_reads(test_data):
    assert (test_data / "file").exists()

def test_without_data():
    pytest.skip("of no concern")
"""


@pytest.mark.parametrize(("present", "expected"), [(True, "1 failed, 1 passed, 1 skipped"), (False, "3 skipped")])
def test_a_skip_on_present_data_is_a_failure(repository: Path, tmp_path: Path, present: bool, expected: str) -> None:
    tests, data = tmp_path / "tests", tmp_path / "data"
    tests.mkdir()
    shutil.copy(repository / "tests/conftest.py", tests)
    (tests / "test_some.py").write_text(TESTS)
    if present:
        data.mkdir()
        (data / "file").touch()
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", str(tests)],
        cwd=tmp_path,
        env=os.environ | {"VARSCALE_TEST_DATA": str(data)},
        capture_output=True,
        text=True,
    )
    assert expected in done.stdout.splitlines()[-1], done.stdout
    assert present == (done.returncode == 1)
    assert present or f"no real data in {data}" in done.stdout
