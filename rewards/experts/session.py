"""The rating service that a run asks: one that is there already, or its own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx

from cluster.folders import write_private
from rewards.experts.client import RunClient
from rewards.experts.config import FOLDER
from rewards.experts.opinions import Say
from rewards.experts.panel import Panel
from rewards.experts.serve import Server, alone
from rewards.experts.simulated_raters import careful
from rewards.term_config import ExpertsConfig
from rewards.types import RewardError

ADMIN_LINK = "admin-link"  # of the folder: it lets in whoever has it, and is in no log


@contextmanager
def rating_session(config: ExpertsConfig, run_directory: Path, seed: int, say: Say) -> Iterator[RunClient]:
    """The client of the service at `config.url`; else of the service on RUN/experts, which `attune rate` may have started,
    and which is started here otherwise and ends with the block, simulated raters with it.

    Raises ValueError when the token is missing or the service does not start.
    """
    if config.url:
        token = os.environ.get(config.token_env, "")
        if not token:
            raise ValueError(
                f"rewards.experts.url needs the run's token in the environment variable {config.token_env}, it is not set; "
                f"take it from the service's service.json: export {config.token_env}=..."
            )
        try:
            RunClient(config.url, token, timeout_s=10.0, retries=1).close_from(run_directory.name, 0)
        except RewardError as error:
            raise ValueError(
                f"rewards.experts.url must be a rating service that takes the token in {config.token_env}: {error}. The service's "
                "service.json has its address and the token"
            ) from error
        yield RunClient(config.url, token)
        return
    folder = run_directory / FOLDER
    if _in_use(folder) and not config.simulated:
        say(f"raters are asked by the service that runs on {folder} already")
        yield RunClient.of_folder(folder)
        return
    with ExitStack() as stack:
        link = folder / ADMIN_LINK
        server = stack.enter_context(
            Server(folder, config.service, new_admin_link=bool(config.simulated) or not link.exists())
        )
        if server.admin_link:
            write_admin_link(folder, server.admin_link)
        if config.simulated:
            raters = careful(config.simulated, seed)
            tokens = [_invite(server, rater.name) for rater in raters]
            stack.enter_context(Panel(server.url, tokens, raters=raters))
            say(f"{config.simulated} simulated raters answer at {server.url}: no person is asked")
        else:
            say(f"raters are asked at {server.url}; invite them at the address in {link}")
        yield RunClient(server.url, server.token)


def write_admin_link(folder: Path, link: str) -> None:
    """Keep the link for whoever may read the folder's files, and nobody else."""
    write_private(folder / ADMIN_LINK, link + "\n")


def _in_use(folder: Path) -> bool:
    try:
        with alone(folder):
            return False
    except ValueError:
        return True


def _invite(server: Server, name: str) -> str:
    headers = {"Authorization": f"Bearer {server.admin_link.rpartition('#')[2]}"}
    body = {"name": f"simulated {name}", "crisis": True, "days": None}
    answer = httpx.post(f"{server.url}/api/admin/raters", json=body, headers=headers, trust_env=False)
    answer.raise_for_status()
    return str(answer.json()["token"])
