"""Where the hub cannot be reached, only its cache is read, and what it lacks is refused at once."""

from __future__ import annotations

import pytest
from huggingface_hub import constants, hf_hub_download

from runner.errors import ConfigError
from runner.training.pretrained.hub import reading_from_hub


@pytest.fixture
def unreachable(monkeypatch, tmp_path):
    """Give the hub an address where nothing answers, and an empty cache."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    return str(tmp_path)


def test_what_must_be_downloaded_is_refused_at_once(unreachable, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: pytest.fail("the request is tried again"))
    with (
        pytest.raises(ConfigError, match=r"^model.name=a/b must be downloaded, .* cannot be reached.; give a folder$"),
        reading_from_hub("model.name=a/b", "a folder"),
    ):
        hf_hub_download("a/b", "config.json", cache_dir=unreachable)
    assert not constants.HF_HUB_OFFLINE


def test_other_errors_are_passed_on_unchanged(unreachable):
    with pytest.raises(OSError, match=r"^disk$"), reading_from_hub("model.name=a/b", "a folder"):
        raise OSError("disk")
    assert not constants.HF_HUB_OFFLINE
