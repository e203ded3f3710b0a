"""What a missing package is called, and how to have it."""

import sys

import pytest

from vlm import VLMError
from vlm.packages import missing, needed


def test_a_module_that_is_there_is_returned():
    assert needed("json.decoder", "a test").JSONDecoder


def test_a_missing_one_is_named_as_it_is_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "yaml", None)
    with pytest.raises(VLMError) as caught:
        needed("yaml", "run.yaml")
    assert caught.value.message == "run.yaml needs pyyaml, which is not installed; run: pip install pyyaml"
    assert "needs fastapi, prometheus-client, which are not" in missing("x", "fastapi", "prometheus_client").message
