"""RaR-Medicine and RaR-Science, which the paper released: Parquet files of the Hub, fetched once.

A commit is pinned, so that everybody trains on the same rows. Its files lie in the cache folder under the
commit's name, all of them or none, and no network is asked for what lies there.
"""

import re
import tempfile
from pathlib import Path

from rar_mini import pretrained
from rar_mini.files import cache_folder
from rar_mini.redact import redact

RELEASED = {
    "medical": ("ScaleAI/RaR-Medicine", "66f9c8f"),
    "science": ("ScaleAI/RaR-Science", "4b69f832234a7b10a2fe24d82616872e725115fb"),
}
"""By domain: the repository, and the commit that is read by default, by its hash or the beginning of it."""

HASH = re.compile("[0-9a-f]{7,40}")


def fetch(domain: str, revision: str | None = None) -> tuple[Path, str]:
    """Return the folder of a domain's Parquet files (37 to 41 MB), and the full hash of their commit.

    `revision` is a commit, of seven hexadecimal digits or more, or a branch or tag, whose commit the Hub is
    asked for every time. Raises ValueError that says what failed and what to do.
    """
    if domain not in RELEASED:
        raise ValueError(f"--data rar has no domain {domain!r}: expected one of {', '.join(RELEASED)}")
    repo, pinned = RELEASED[domain]
    revision = revision or pinned
    cache, name = cache_folder() / "datasets", repo.split("/")[-1]
    if folder := cached(domain, revision):
        return folder, folder.name.removeprefix(f"{name}-")
    pretrained.say(f"asking the Hub for {repo} at {revision}; what it sends is kept in {cache}")
    try:
        commit = _commit(repo, revision)
        if not re.fullmatch("[0-9a-f]{40}", str(commit)):  # it becomes the name of a folder
            raise ValueError(f"expected the hash of a commit, got {commit!r:.80}")
        target = cache / f"{name}-{commit}"
        if not target.is_dir():
            _download(repo, commit, target)
    except Exception as error:  # types change with the HTTP library underneath; the remedy is the same
        raise ValueError(
            f"could not get {repo} at {revision}: {type(error).__name__}: "
            f"{redact(str(error)).strip()}\n"
            "Check the network and the room in the cache folder; or set HF_ENDPOINT to a mirror; or pass "
            f"--revision main for what is newest; or fetch the files elsewhere (hf download {repo} "
            "--repo-type dataset --local-dir DIRECTORY) and pass --data DIRECTORY."
        ) from None  # the chain would show the URL, credentials included
    return target, commit


def cached(domain: str, revision: str | None = None) -> Path | None:
    """The folder of a commit that was fetched before; None if there is none, or if `revision` is a branch."""
    if domain not in RELEASED:
        return None
    repo, pinned = RELEASED[domain]
    revision = revision or pinned
    if not HASH.fullmatch(revision):
        return None
    folders = (cache_folder() / "datasets").glob(f"{repo.split('/')[-1]}-{revision}*")
    return min(folders, default=None)


def _commit(repo: str, revision: str) -> str:
    """The full hash that a revision stands for."""
    api = pretrained.client().HfApi()
    if not HASH.fullmatch(revision):
        return api.dataset_info(repo, revision=revision).sha
    api.dataset_info(repo)  # fails at once without a network, where what follows is tried for half a minute
    if len(revision) == 40:
        return revision
    for commit in api.list_repo_commits(repo, repo_type="dataset"):  # elsewhere the Hub wants whole hashes
        if commit.commit_id.startswith(revision):
            return commit.commit_id
    raise ValueError("expected the beginning of a commit of its main branch, found none")


def _download(repo: str, commit: str, target: Path) -> None:
    """Fetch beside `target`, then rename: what stands under that name is whole."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="fetching-", dir=target.parent) as workshop:
        options = {"repo_type": "dataset", "revision": commit, "allow_patterns": "data/*.parquet"}
        pretrained.client().snapshot_download(repo, local_dir=workshop, **options)
        pretrained.publish(Path(workshop) / "data", target)
