"""Asks a cluster whether it can be joined, before anything joins it, and names what is wrong.

Ray itself asks a head that is not there, or that refuses the token, for 20 s, and in both cases
ends with the same words.
"""

from __future__ import annotations

import http.client
import json
import os
import socket
import urllib.error
import urllib.request
from importlib import metadata
from pathlib import Path
from urllib.parse import urlsplit

from drift_ray.errors import ClusterError

TIMEOUT_S = 5.0
"""For a head that does not answer."""

_QUESTION = "/ray.rpc.NodeInfoGcsService/GetClusterId"
"""What every driver asks a head first."""
_UNSET = "Or unset RAY_ADDRESS to use this machine alone."


def check_head(address: str) -> None:
    """See that ``RAY_ADDRESS`` names a head that listens and takes the token of this environment.

    Raises:
        ClusterError: The address is none, or nobody answers there, or the token is missing or
            refused.
    """
    if address in ("auto", "local"):
        return
    shown = token()
    host, port = _host_and_port(address)
    try:
        socket.create_connection((host, port), timeout=TIMEOUT_S).close()
    except OSError as reason:
        raise ClusterError(
            f"No Ray head answers at RAY_ADDRESS {address}: {reason}.",
            "Start the head, or correct the address: HOST:PORT of the head's own port (6379 by "
            f"default), as seen from this machine. {_UNSET}",
        ) from reason
    if _refuses(address, shown):
        raise refused_token(address, is_shown=shown is not None)


def _refuses(address: str, shown: str | None) -> bool:
    """Whether a head answers that the token is wrong or missing; what else is wrong Ray will say.

    Ray asks again and again for 20 s, and then only says that it has failed to connect.
    """
    import grpc

    who = [("authorization", f"Bearer {shown}")] if shown else []
    with grpc.insecure_channel(address, [("grpc.enable_http_proxy", 0)]) as channel:
        try:
            channel.unary_unary(_QUESTION)(b"", timeout=TIMEOUT_S, metadata=who)
        except grpc.RpcError as error:
            return bool(error.code() is grpc.StatusCode.UNAUTHENTICATED)
    return False


def _host_and_port(address: str) -> tuple[str, int]:
    scheme, _, rest = address.rpartition("://")
    if scheme in ("http", "https"):
        raise ClusterError(
            f"RAY_ADDRESS {address} is where jobs are submitted to, not where a driver joins.",
            "Set RAY_API_SERVER_ADDRESS to it and submit a job (jobs/README.md). " + _UNSET,
        )
    if scheme == "ray":
        raise ClusterError(
            f"RAY_ADDRESS {address} is for Ray Client, with which a run would end when the "
            "connection to this machine does.",
            "Submit a job, which runs on the cluster (jobs/README.md), or set RAY_ADDRESS to "
            f"HOST:PORT of the head (6379 by default) on one of its nodes. {_UNSET}",
        )
    try:
        parts = urlsplit(f"//{rest}")
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    if not host or port is None:
        raise ClusterError(
            f"RAY_ADDRESS {address!r} is no HOST:PORT.",
            f"Set it to the head's (port 6379 by default). {_UNSET}",
        )
    return host, port


def token() -> str | None:
    """The token that Ray shows by the settings of the environment; None if it shows none.

    Raises:
        ClusterError: It is to show one, and there is none.
    """
    if os.environ.get("RAY_AUTH_MODE", "").lower() != "token":
        return None
    if text := os.environ.get("RAY_AUTH_TOKEN", "").strip():
        return text
    path = os.environ.get("RAY_AUTH_TOKEN_PATH")
    file = Path(path) if path else Path.home() / ".ray" / "auth_token"
    try:
        text, why = file.read_text().strip(), f"{file} is empty"
    except (OSError, UnicodeDecodeError) as reason:
        text, why = "", str(reason)
    if not text:
        raise ClusterError(
            f"RAY_AUTH_MODE is token, but there is no token to show: {why}.",
            "Copy the head's token: set RAY_AUTH_TOKEN_PATH to its file.",
        )
    return text


def check_job_server(url: str) -> None:
    """See that jobs can be submitted to a head: it is there, takes the token, and has this Ray.

    Args:
        url: Of its dashboard, as in ``RAY_API_SERVER_ADDRESS``.

    Raises:
        ClusterError: Nobody answers, or not Ray; the token is refused; or the cluster runs another
            version of Ray, so that a job would meet other packages than its code was made for.
    """
    if urlsplit(url).scheme not in ("http", "https"):
        raise _no_address(url)
    refuse_other_version(url, _version_of(url))


class _Stay(urllib.request.HTTPRedirectHandler):
    """Follows no redirection: the token would go along, wherever that leads."""

    def redirect_request(self, *_: object) -> None:
        return None


def _version_of(url: str) -> str:
    shown = token()
    headers = {"Authorization": f"Bearer {shown}"} if shown else {}
    request = urllib.request.Request(f"{url.rstrip('/')}/api/version", headers=headers)
    try:
        with urllib.request.build_opener(_Stay).open(request, timeout=TIMEOUT_S) as answer:
            return str(json.load(answer)["ray_version"])
    except urllib.error.HTTPError as reason:
        if reason.code in (401, 403):
            raise refused_token(url, is_shown=shown is not None) from reason
        raise _no_job_server(url, str(reason)) from reason
    except http.client.InvalidURL as reason:
        raise _no_address(url) from reason
    except OSError as reason:
        raise ClusterError(
            f"No Ray head answers at {url}: {getattr(reason, 'reason', reason)}.",
            "Start the head, or correct RAY_API_SERVER_ADDRESS (port 8265 by default); from "
            "outside the cluster a tunnel leads there (cluster/README.md).",
        ) from reason
    except (http.client.HTTPException, ValueError, KeyError, TypeError) as reason:
        # The head's other ports do not even speak HTTP.
        raise _no_job_server(url, "its answer is not one of Ray's") from reason


def _no_address(url: str) -> ClusterError:
    return ClusterError(
        f"{url!r} is no address to submit jobs to.",
        "It looks like http://HOST:8265: set RAY_API_SERVER_ADDRESS to it.",
    )


def _no_job_server(url: str, why: str) -> ClusterError:
    return ClusterError(
        f"What answers at {url} takes no Ray jobs: {why}.",
        "Set RAY_API_SERVER_ADDRESS to the head's dashboard (port 8265 by default).",
    )


def refused_token(address: str, *, is_shown: bool) -> ClusterError:
    """The error of a head that does not take the token of this environment, or wants one."""
    hint = "Set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH to a file with the cluster's token."
    if not is_shown:
        what = "asks for a token, and RAY_AUTH_MODE is not token"
    elif os.environ.get("RAY_AUTH_TOKEN", "").strip():
        what = "does not take the token in RAY_AUTH_TOKEN"
        hint = "Set it to the cluster's token, or unset it: it goes before RAY_AUTH_TOKEN_PATH."
    else:
        what = (
            "does not take the token in "
            f"{os.environ.get('RAY_AUTH_TOKEN_PATH') or '~/.ray/auth_token'}"
        )
    return ClusterError(f"The Ray head at {address} {what}.", hint)


def refuse_other_version(address: str, theirs: str) -> None:
    """Compare a cluster's version of Ray with that of this environment.

    Raises:
        ClusterError: They differ.
    """
    try:
        ours = metadata.version("ray")
    except metadata.PackageNotFoundError:
        raise ClusterError(
            "Ray is not installed here.", f"Run: pip install 'ray[default]=={theirs}'"
        ) from None
    if theirs != ours:
        raise ClusterError(
            f"The cluster at {address} runs Ray {theirs}, this environment Ray {ours}.",
            f"Install what the cluster has (pip install 'ray[default]=={theirs}'), or give the "
            f"cluster an image with Ray {ours} (cluster/Dockerfile).",
        )
