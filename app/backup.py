"""One file that holds everything: the database, the training files, the indexes and the uploaded models.

A backup is a plain tar of `whence-backup.json`, `database.dump` (Postgres's custom format) and the data directory
without its embedded cluster. The database is dumped first, at one moment; what lies in folders is written once under an
id of its own and never changed, so that all that the dump names is still there afterwards, or else was removed
meanwhile, which is refused. Nobody has to stop. What lies in the store alone is fetched into the data directory first.
"""

from __future__ import annotations

import asyncio
import json
import os
import tarfile
import tempfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

from app.refusals import Refusal
from app.shelf import Shelf
from app.start import UNFINISHED_RESTORE
from app.store import Damaged, Store
from storage.backup import dump, restore, superuser_url
from storage.embedded import embedded_postgres, made_data_dir

FACTS, DUMP, BESIDE = "whence-backup.json", "database.dump", "data"
CLUSTER = "postgres"
"""What begins like this in the data directory is the embedded cluster's own: its data, passwords, locks and log."""
UNFINISHED = (".building-", ".part")


@dataclass(frozen=True, slots=True)
class Backup:
    """What a file holds; `data_dir` is where it was made."""

    whence: str
    revision: str
    data_dir: str
    contents: int
    bytes: int


def back_up(data_dir: Path, url: str | None, target: Path, store: Store | None = None) -> Backup:
    """Writes everything into the new file `target`, readable by its owner alone, whole or not at all.

    `url` is that of a role above row-level security in a database of one's own; None: the embedded one. Raises Refusal
    for a target that exists, or when something was removed meanwhile.
    """
    if target.exists():
        raise Refusal(f"{target} exists: name a new file")
    part = target.with_name(f"{target.name}.part")
    try:
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600), "wb") as file:
            with tarfile.open(fileobj=file, mode="w") as archive:
                made = _write(Shelf(data_dir.resolve(), store), url, archive)
            file.flush()
            os.fsync(file.fileno())
        part.rename(target)
    finally:
        part.unlink(missing_ok=True)
    return made


def _write(shelf: Shelf, url: str | None, archive: tarfile.TarFile) -> Backup:
    data_dir = shelf.folder
    with tempfile.TemporaryDirectory() as folder:
        dumped = Path(folder) / DUMP
        if url is not None:
            found = dump(url, dumped)
        else:
            with embedded_postgres(data_dir):
                found = dump(superuser_url(data_dir), dumped)
        asyncio.run(bring_all(shelf, found.contents))
        paths = list(kept(data_dir))
        _refuse_missing(data_dir, found.contents)
        size = dumped.stat().st_size + sum(path.stat().st_size for path in paths)
        made = Backup(version("whence"), found.revision, str(data_dir), len(found.contents), size)
        facts = Path(folder) / FACTS
        facts.write_text(json.dumps(asdict(made), indent=1) + "\n")
        for path, name in ((facts, FACTS), (dumped, DUMP)):
            archive.add(path, name)
        for path in paths:
            archive.add(path, f"{BESIDE}/{path.relative_to(data_dir)}", recursive=False)
        _refuse_missing(data_dir, found.contents)
    return made


async def bring_all(shelf: Shelf, contents: Mapping[str, str]) -> None:
    """Fetches what lies in the store alone. Raises Refusal for what is damaged there."""
    if shelf.store is None:
        return
    for name, digest in contents.items():
        bring = shelf.bring_folder if name.startswith("indexes/") else shelf.bring
        try:
            await bring(name, shelf.folder / name, digest)
        except Damaged:
            raise Refusal(f"{name} in the store is damaged: remove it over HTTP, and send or build it again") from None
        except FileNotFoundError:  # told with all others that are missing
            continue
    await shelf.bring_models()


def kept(data_dir: Path) -> Iterator[Path]:
    """The files of a data directory that a backup holds. Raises Refusal for a link: it would lack what is there."""
    for path in sorted(data_dir.rglob("*")):
        parts = path.relative_to(data_dir).parts
        unfinished = any(part.startswith(UNFINISHED[0]) or part.endswith(UNFINISHED[1]) for part in parts)
        if parts[0].startswith(CLUSTER) or unfinished:
            continue
        if path.is_symlink():
            raise Refusal(f"{path} is a link, and a backup would lack what it leads to: put that in its place")
        if path.is_file():
            yield path


def _refuse_missing(data_dir: Path, contents: Collection[str]) -> None:
    gone = [content for content in contents if not (data_dir / content).exists()]
    if gone:
        raise Refusal(
            f"{len(gone)} of {len(contents)} training files and indexes are not in {data_dir}, such as {gone[0]}: name "
            "the folder they are kept in with --data-dir, or back up again if they were just removed"
        )


def bring_back(source: Path, data_dir: Path, url: str | None) -> Backup:
    """Fills an empty data directory, and the database (None: the embedded one), from a backup.

    Raises Refusal where the directory holds something, or the file is no backup.
    """
    if data_dir.exists() and any(data_dir.iterdir()):
        raise Refusal(f"{data_dir} is not empty: name a new folder with --data-dir")
    with tempfile.TemporaryDirectory() as folder, opened(source) as archive:
        unpacked = Path(folder)
        for name in (FACTS, DUMP):
            archive.extract(name, unpacked, filter="data")
        made = Backup(**json.loads((unpacked / FACTS).read_text()))
        moved = {f"{made.data_dir}/": f"{data_dir.resolve()}/"}
        with begun(data_dir):
            _unpack(archive, data_dir)
            if url is not None:
                restore(url, unpacked / DUMP, moved)
            else:
                with embedded_postgres(data_dir):
                    restore(superuser_url(data_dir), unpacked / DUMP, moved)
    return made


@contextmanager
def begun(data_dir: Path) -> Iterator[None]:
    """Marks a data directory that is being filled: no server starts on one that was left half full."""
    made_data_dir(data_dir)
    mark = data_dir / UNFINISHED_RESTORE
    mark.touch(mode=0o600)
    yield
    mark.unlink()


def opened(source: Path) -> tarfile.TarFile:
    """Raises Refusal for a file that is no backup."""
    try:
        archive = tarfile.open(source)  # noqa: SIM115 - the caller closes it
    except (OSError, tarfile.TarError) as error:
        raise Refusal(f"{source} cannot be read as a backup ({type(error).__name__})") from None
    if not {FACTS, DUMP} <= set(archive.getnames()):
        archive.close()
        raise Refusal(f"{source} is not a backup of Whence")
    return archive


def _unpack(archive: tarfile.TarFile, data_dir: Path) -> None:
    for member in archive.getmembers():
        if member.name.startswith(f"{BESIDE}/") and member.isreg():
            member.name = member.name.removeprefix(f"{BESIDE}/")
            archive.extract(member, data_dir, filter="data")
    for folder in data_dir.rglob("*"):
        if folder.is_dir() and folder.relative_to(data_dir).parts[0] in ("files", "indexes", "models"):
            folder.chmod(0o700)
