"""What goes wrong at Hugging Face, as a sentence that says what to do."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import errors, utils

from engine.describing.footprint import size
from engine.errors import ModelDownloadError, ModelError, ModelResourceError
from engine.hub.address import HubAddress

_LONGEST_REASON, _LONGEST_DETAIL = 120, 300


@dataclass(frozen=True, slots=True)
class Faults:
    """endpoint, token, cache: those of the hub that is asked."""

    endpoint: str
    token: str | None
    cache: Path

    @property
    def host(self) -> str:
        """Return the server, as people know it."""
        return self.endpoint.partition("://")[2]

    @contextlib.contextmanager
    def told(
        self, address: HubAddress, what: str = "", partial: Path | None = None, num_bytes: int = 0
    ) -> Iterator[None]:
        """Raise what goes wrong inside as a `ModelDownloadError` or a `ModelResourceError`.

        what: is being fetched, `num_bytes` in all, of which those in `partial` are here.
        """
        try:
            yield
        except ModelError:
            raise
        except (errors.HfHubHTTPError, errors.HTTPError, errors.OfflineModeIsEnabled) as error:
            raise ModelDownloadError(self._sentence(error, address, what, partial, num_bytes)) from error
        except (errors.EntryNotFoundError, errors.FileMetadataError) as error:
            raise ModelDownloadError(
                f"{address.repository}: {what} could not be fetched. Try again later."
            ) from error
        except ValueError as error:
            detail = " ".join(str(error).split())[:_LONGEST_DETAIL]
            raise ModelDownloadError(f"{address.repository}: {detail}") from error
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise ModelResourceError(
                    f"The disk of {self.cache} is full. Free some space and run this again, and it continues."
                ) from error
            if error.errno is not None:
                raise
            raise ModelDownloadError(_broken(what, partial, num_bytes)) from error

    def _sentence(
        self, error: Exception, address: HubAddress, what: str, partial: Path | None, num_bytes: int
    ) -> str:
        repository, page = address.repository, f"{self.endpoint}/{address.repository}"
        match error:
            case errors.OfflineModeIsEnabled():
                return "HF_HUB_OFFLINE is set, so nothing is fetched. Unset it, or set MODEL to a folder."
            case errors.GatedRepoError():
                return self._gated(repository, page)
            case errors.RevisionNotFoundError():
                return f"{repository} has no revision {address.revision}. {page}/tree/main lists them."
            case errors.RepositoryNotFoundError():
                private = "it is private, which needs HF_TOKEN"
                hint = "the token has no access to it" if self._has_token else private
                return f"There is no model {repository} at {self.host}, or {hint}. Check the spelling."
            case errors.HfHubHTTPError():
                return self._refused(error, repository, what)
        if what:
            return _broken(what, partial, num_bytes)
        reason = " ".join(str(error).split())[:_LONGEST_REASON] or type(error).__name__
        return (
            f"{self.host} cannot be reached ({reason}). Check the network, and the proxy (HTTPS_PROXY) or "
            "mirror (HF_ENDPOINT) if you need one."
        )

    def _gated(self, repository: str, page: str) -> str:
        if self._has_token:
            return (
                f"{repository} is gated, and the token's account has no access. Accept its conditions at "
                f"{page} with that account; some authors take a while to agree."
            )
        return (
            f"{repository} is gated: log in at {page} and accept its conditions, create a token with read "
            f"access at {self._tokens_page}, and set HF_TOKEN to it."
        )

    def _refused(self, error: errors.HfHubHTTPError, repository: str, what: str) -> str:
        match error.response.status_code:
            case 401:
                return (
                    f"{self.host} does not accept the token. Create a new one at {self._tokens_page} and set "
                    "HF_TOKEN to it."
                )
            case 403:
                return (
                    f"{self.host} refuses access to {repository} (403). The token must be allowed to "
                    f"read it: see its rights at {self._tokens_page}."
                )
            case 404:
                return f"{repository} does not have {what or 'that'} (404). Check the spelling."
            case 429:
                after = error.response.headers.get("Retry-After", "")
                wait = f"in {after} seconds" if after.isdecimal() else "in a few minutes"
                return (
                    f"{self.host} gets too many requests from here (429). Run this again {wait}, and it "
                    "continues. With HF_TOKEN set, more are allowed."
                )
            case status:
                return (
                    f"{self.host} has an error of its own ({status}). Try again later; what is here is kept."
                )

    @property
    def _has_token(self) -> bool:
        return (self.token or utils.get_token_to_send(None)) is not None

    @property
    def _tokens_page(self) -> str:
        return f"{self.endpoint}/settings/tokens"


def _broken(what: str, partial: Path | None, num_bytes: int) -> str:
    there = partial.stat().st_size if partial is not None and partial.exists() else 0
    share = f" at {size(there)} of {size(num_bytes)}" if num_bytes else ""
    return f"The connection broke{share}, in {what}. Run this again, and it continues from there."
