"""The Hugging Face hub: read from it quietly, and without waiting where it cannot be reached."""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit
from urllib.request import getproxies

from runner.errors import ConfigError
from runner.training.pretrained.wording import not_downloaded

SECONDS = 5.0  # to connect; the hub's own client tries again for most of a minute


@contextmanager
def reading_from_hub(asked: str, instead: str) -> Iterator[None]:
    """In the block, what is read from the hub comes from its cache where the hub cannot be reached.

    `asked`: the setting that asks for it, such as `model.name=bert-base-uncased`; `instead`: what to give without a network.
    Raises ConfigError if the hub cannot be reached and the cache does not have it.
    """
    from huggingface_hub import constants
    from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled

    was_offline, logger = constants.HF_HUB_OFFLINE, logging.getLogger("huggingface_hub")
    is_offline, level = was_offline or not _answers(constants.ENDPOINT), logger.level
    constants.HF_HUB_OFFLINE = is_offline
    logger.setLevel(logging.ERROR)
    try:
        yield
    except OSError as error:
        if is_offline and _has_cause(error, (LocalEntryNotFoundError, OfflineModeIsEnabled)):
            raise ConfigError(not_downloaded(asked, f"{constants.ENDPOINT} cannot be reached", instead)) from error
        raise
    finally:
        constants.HF_HUB_OFFLINE = was_offline
        logger.setLevel(level)


def _answers(address: str) -> bool:
    """Return whether the host of an address can be reached; True where there is a proxy, which alone could tell."""
    parts = urlsplit(address)
    if getproxies():
        return True
    try:
        socket.create_connection((parts.hostname, parts.port or (80 if parts.scheme == "http" else 443)), SECONDS).close()
    except OSError:
        return False
    return True


def _has_cause(error: BaseException | None, kinds: tuple[type[BaseException], ...]) -> bool:
    """Return whether an error, or one that it came from, is of these kinds."""
    while error is not None and not isinstance(error, kinds):
        error = error.__cause__ or error.__context__
    return error is not None
