"""The example of the playbook works as it stands."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
from omegaconf import OmegaConf

from varscale.data.loader import train_loader


def test_the_data_set_of_the_playbook(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (repository / "docs" / "playbooks" / "add-a-dataset.md").read_text()
    source_code, test_code = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    module = ModuleType("varscale.data.stripes")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(source_code, module.__dict__)
    tests: dict[str, object] = {}
    exec(test_code, tests)
    run = [test for name, test in tests.items() if name.startswith("test_")]
    assert len(run) == 2
    for test in run:
        test()  # type: ignore[operator]
    (yaml,) = re.findall(r"```yaml\n(.*?)```", text, flags=re.DOTALL)
    settings = dict(OmegaConf.create(yaml))
    assert settings.pop("_target_") == "varscale.data.stripes.Stripes"
    source = module.Stripes(**settings)
    (batch,) = train_loader(source, seed=0, batch=50, first_step=0, last_step=1)
    assert batch.labels.bincount().min() > 0 and {-1.0, 1.0} == set(batch.pixels.unique().tolist())
