"""Directories that a hostile program may be changing: measured, read and removed through descriptors and no link."""

import base64
import os
import shutil
import stat
import subprocess

DEPTH = 64  # directories in each other


def tree_size(directory, most):
    """(bytes on disk, entries) below a directory; looking ends where they are more than `most` or too deep.

    Through descriptors and no link: the program may exchange directories meanwhile.
    """
    size = count = 0

    def walk(name, above, depth):
        nonlocal size, count
        try:
            descriptor = open_directory(name, above)
        except OSError:
            return
        try:
            with os.scandir(descriptor) as entries:
                for entry in entries:
                    try:
                        info = entry.stat(follow_symlinks=False)
                    except OSError:
                        continue
                    size, count = size + info.st_blocks * 512, count + 1
                    if depth > DEPTH:
                        count = most + 1
                    if count > most:
                        return
                    if stat.S_ISDIR(info.st_mode):
                        walk(entry.name, descriptor, depth + 1)
        finally:
            os.close(descriptor)

    walk(directory, None, 0)
    return size, count


def open_directory(name, above):
    """A descriptor of a directory below another; one that was locked is unlocked, so that its mode hides nothing."""
    flags = os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        return os.open(name, os.O_RDONLY | flags, dir_fd=above)
    except PermissionError:
        place = os.open(name, os.O_PATH | flags, dir_fd=above)
        try:
            os.chmod(f"/proc/self/fd/{place}", 0o700)
            return os.open(f"/proc/self/fd/{place}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        finally:
            os.close(place)


def put_files(directory, files):
    """Files of a request; paths were checked by the caller."""
    for name, content in files.items():
        path = os.path.join(directory, name)
        os.makedirs(os.path.dirname(path), 0o700, exist_ok=True)
        with open(path, "wb") as file:
            file.write(base64.b64decode(content))


def get_file(directory, name, most):
    """Content of a regular file below a directory, through no link; None if there is none, or it is larger."""
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        return None
    try:
        for part in name.split("/"):
            try:
                below = os.open(part, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=descriptor)
            except OSError:
                return None
            os.close(descriptor)
            descriptor = below
        info = os.fstat(descriptor)
        if not stat.S_ISREG(info.st_mode) or info.st_size > most:
            return None
        with os.fdopen(os.dup(descriptor), "rb") as file:
            return base64.b64encode(file.read(most)).decode()
    finally:
        os.close(descriptor)


def remove(path):
    """A directory with all that is in it, however deep and however locked."""
    try:
        shutil.rmtree(path)
        return
    except (OSError, RecursionError):
        pass
    if subprocess.run(["rm", "-rf", "--", path], stderr=subprocess.DEVNULL).returncode:
        subprocess.run(["chmod", "-R", "u+rwx", "--", path], stderr=subprocess.DEVNULL)
        subprocess.run(["rm", "-rf", "--", path], stderr=subprocess.DEVNULL)
