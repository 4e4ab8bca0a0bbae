"""Models by Hub name: finds the commit that a revision means, from the network or the local cache."""

from __future__ import annotations

import re
from pathlib import Path

from schemas.errors import MissingError, ModelError

_COMMIT = re.compile(r"[0-9a-f]{40}")


def resolve_commit(name: str, revision: str) -> str:
    """The commit hash of ``revision``; a full hash is itself, and needs no network.

    Raises:
        MissingError: no such model or revision, or neither the Hub nor the local cache answers.
        ModelError: the model needs an access token.
    """
    if _COMMIT.fullmatch(revision):
        return revision
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        config = Path(hf_hub_download(name, "config.json", revision=revision))
    except GatedRepoError as error:
        raise ModelError(f"model {name!r} asks for an access token on the Hub; log in with `hf auth login`") from error
    except LocalEntryNotFoundError as error:
        raise MissingError(
            f"model {name!r} is no folder here and not in the local Hub cache, and the Hub was not asked or did not "
            f"answer (revision {revision!r}); check the path, or download it once where there is a network"
        ) from error
    except (HfHubHTTPError, HFValidationError) as error:
        first_line = (str(error).strip().splitlines() or [""])[0]
        raise MissingError(
            f"model {name!r} at revision {revision!r} is no folder here and was not found on the Hub: {first_line}"
        ) from error
    return _snapshot_commit(config)


def _snapshot_commit(config: Path) -> str:
    """A cached file lies in ``snapshots/COMMIT/``, whether or not the network was asked."""
    commit = config.parent.name
    assert _COMMIT.fullmatch(commit), f"the Hub cache keeps commits as folders; got {config}"
    return commit
