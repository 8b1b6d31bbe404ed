"""Fetch the released vocabulary, merges and weights over the network, and check them.

A file is downloaded to ``.NAME.part`` in the same directory; a later attempt or run continues with
this part. It is renamed to ``NAME`` only when its content has the id that git gave the file in
OpenAI's repository, so that a file under its final name is always complete and correct.
"""

from __future__ import annotations

import hashlib
import os
import re
import ssl
import sys
from collections.abc import Callable, Mapping
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from time import sleep
from typing import Any
from urllib import request
from urllib.error import HTTPError, URLError

from filelock import FileLock, Timeout
from tqdm import tqdm

from gpt1 import __version__
from gpt1.runtime.errors import Gpt1Error, InputError
from gpt1.runtime.files import check_writable, read_bytes

# The commit is given by its short name, which GitHub resolves as git does. If the name should ever
# become that of another commit, the object ids below still refuse any other content.
RELEASED_URL = "https://raw.githubusercontent.com/openai/finetune-transformer-lm/a69b5c4/model/"

RELEASED_FILES = {
    "encoder_bpe_40000.json": "9dc3f0af5a80956e57dc8d9401e16dfadcade7c2",
    "vocab_40000.bpe": "0023a687b3d4d0b795a5e97cc914bdabb5a253df",
    "params_shapes.json": "29fac299ae848d7e447be84a33345edcf1b5353c",
    "params_0.npy": "84d83ac1f1cc878f56f33b167482c184491875d2",
    "params_1.npy": "0f19f4d4cda3d8f908e3faffd2cb2a8b9a4039da",
    "params_2.npy": "25bc19c72fdff69505a828ec6d73b32063532148",
    "params_3.npy": "5b2e6958d42a930966c9d602a012eb846ca67c83",
    "params_4.npy": "87ad158987e307e6aa64952610f466d750b73bc7",
    "params_5.npy": "74f3853316bba327229605dbedfe921996f11448",
    "params_6.npy": "5ef44e40bc076d0c9686d1273d54cbc16c3f0980",
    "params_7.npy": "d8d5c8d3bee9b20a677605ac1fe6c7af4df57c94",
    "params_8.npy": "f980f4b393716f396ae5ae6401708dcf4f270dc9",
    "params_9.npy": "d389eb2074dd74754444b8062aba78b49f6a9053",
}


def download(
    files: Mapping[str, str],
    base_url: str,
    model_dir: str | Path,
    *,
    force: bool = False,
    timeout: float = 30.0,
    retries: int = 5,
) -> list[str]:
    """Download the files that a directory does not have yet, and check each of them.

    The first file that cannot be fetched ends the download. The files before it stay, and so does
    the part of this file that has arrived; the next call continues with it.

    Args:
        files: git object id (see :func:`git_object_id`) of each file, by its name.
        base_url: http or https URL of the directory that holds the files.
        model_dir: the directory to write to; made if it does not exist.
        force: fetch and replace files that exist, too.
        timeout: seconds without a byte after which a connection is given up.
        retries: attempts in a row, after the first, that may bring no new byte before giving up.

    Returns:
        Names of the files that were fetched.

    Raises:
        InputError: ``base_url`` is not such a URL, or a file exists with other content and
            ``force`` is not given (then nothing is fetched).
        Gpt1Error: the server, the network or the disk fails; the content that arrives is not that
            of the file; or another download into the directory is running.
    """
    # Scheme, host or address in brackets, port, path of printable ASCII without ? and #.
    pattern = r"https?://(\[[\da-f:.]+\]|[\w.-]+)(:\d{1,5})?(/[!\"$->@-~]*)?"
    match = re.fullmatch(pattern, base_url, re.ASCII | re.IGNORECASE)
    if not match or int((match[2] or ":80")[1:]) >= 1 << 16:
        raise InputError(
            f"--base_url {base_url!r}: must be the http or https URL of a directory, without user "
            f"name, query or spaces, such as {RELEASED_URL}"
        )
    model_dir = Path(model_dir)
    if not _missing(files, model_dir, force):
        return []
    check_writable(model_dir)
    try:
        lock = FileLock(model_dir / ".download.lock").acquire(timeout=0)
    except OSError as error:
        reason = f"cannot be locked: {error.strerror}; name another directory with --model_dir."
        if isinstance(error, Timeout):
            reason = "another download into it is running; wait for its end, or stop it."
        raise Gpt1Error(f"{model_dir}: {reason}") from error
    with lock:
        # Look again: another download may have fetched the files before it released the lock.
        missing = _missing(files, model_dir, force)
        for name in missing:
            url = f"{base_url.rstrip('/')}/{name}"
            _fetch(url, model_dir / name, files[name], timeout, retries)
    return missing


def git_object_id(path: str | Path) -> str:
    """Return git's id of a file: the SHA-1 of ``blob LENGTH``, a zero byte and the content.

    Raises:
        InputError: the file cannot be read.
    """
    content = read_bytes(path, "the file")
    digest = hashlib.sha1(b"blob %d\0" % len(content), usedforsecurity=False)
    digest.update(content)
    return digest.hexdigest()


def _missing(files: Mapping[str, str], model_dir: Path, force: bool) -> list[str]:
    """Return the names of the files that must be fetched.

    Raises:
        InputError: a file exists with other content, and ``force`` is not given.
    """
    there = [] if force else [name for name in files if os.path.exists(model_dir / name)]
    wrong = [name for name in there if git_object_id(model_dir / name) != files[name]]
    if wrong:
        raise InputError(
            f"{model_dir}: {', '.join(wrong)}: damaged, or of another checkpoint; name another "
            "directory with --model_dir, or replace the files with --force."
        )
    return [name for name in files if name not in there]


def _fetch(url: str, path: Path, object_id: str, timeout: float, retries: int) -> None:
    """Download one file to ``path``.

    Raises:
        Gpt1Error: the download failed; the message says how to go on.
    """
    part = path.with_name(f".{path.name}.part")
    try:
        for _ in range(2):  # The second time from nothing: the part may be of another file.
            if not _has_id(part, object_id):
                _transfer(url, part, timeout, retries)
            if _has_id(part, object_id):
                with open(part, "rb+") as file:
                    os.fsync(file.fileno())  # The data must be on the disk before the new name.
                part.replace(path)
                return
            part.unlink(missing_ok=True)
    except OSError as error:  # of the disk: _network catches the network's errors
        raise Gpt1Error(
            f"{path}: cannot be written: {error.strerror}; free space, or name another directory "
            "with --model_dir. The same command goes on where this one stopped."
        ) from error
    raise Gpt1Error(
        f"{url}: not the released file, whose git object id is {object_id}; the content was "
        "discarded. Open the URL in a browser: a proxy may answer in the server's place, or the "
        "mirror has other files (--base_url names another one)."
    )


class _BrokenTransfer(Exception):
    """A failure of the network or the server that another attempt may not meet."""


def _transfer(url: str, part: Path, timeout: float, retries: int) -> None:
    """Complete the part over as many connections as needed.

    Raises:
        Gpt1Error: more than ``retries`` attempts in a row brought no new byte.
    """
    failures, furthest = 0, _size(part)
    while True:
        try:
            return _continue(url, part, timeout)
        except _BrokenTransfer as broken:
            # The size is compared with the largest so far, not with the last one: otherwise a
            # server that begins the file anew each time would keep this loop running for ever.
            failures = 1 if _size(part) > furthest else failures + 1
            furthest = max(furthest, _size(part))
            if failures > retries:
                raise Gpt1Error(
                    f"{url}: {broken}; gave up (--retries {retries}). What has arrived is kept: "
                    "when the network is well, the same command goes on from there; --base_url "
                    "names a mirror."
                ) from broken
            pause = min(2 ** min(failures - 1, 5), 30)  # seconds
            note = f"{url}: {broken}; trying again in {pause} s"
            print(f"gpt1 download: {note}", file=sys.stderr, flush=True)
            sleep(pause)


def _has_id(part: Path, object_id: str) -> bool:
    return part.exists() and git_object_id(part) == object_id


def _size(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def _continue(url: str, part: Path, timeout: float) -> None:
    """Request once the bytes that the part lacks, and write them.

    Nothing is written if the answer holds other bytes than those requested.

    Raises:
        _BrokenTransfer: the transfer ended early.
        Gpt1Error: the server refuses the request.
    """
    start = _size(part)
    query = request.Request(url, headers={"User-Agent": f"gpt1/{__version__}"})
    if start:
        query.add_header("Range", f"bytes={start}-")
    response = _network(url, request.urlopen, query, None, timeout)
    if not isinstance(response, HTTPResponse):  # the part is complete, or a redirect led to ftp:
        return
    with response:
        if response.status != 206:
            start = 0  # The server sends the whole file, although a range was requested.
        elif not response.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
            return
        name, total = part.stem[1:], None if response.length is None else start + response.length
        bar = tqdm(None, name, total, initial=start, unit="B", unit_scale=True, disable=None)
        with open(part, "ab" if start else "wb") as file, bar:
            while chunk := _network(url, response.read1, 1 << 18):
                file.write(chunk)
                bar.update(len(chunk))
            # HTTPResponse reports no error when a body ends early.
            if total is not None and file.tell() != total:
                raise _BrokenTransfer(f"ended after {file.tell()} of {total} bytes")


def _network(url: str, call: Callable[..., Any], *args: object) -> Any:
    """Call a function that uses the connection, and translate its errors.

    Returns:
        The result; None if the server has no bytes in the requested range (status 416).

    Raises:
        _BrokenTransfer: the failure may pass.
        Gpt1Error: another attempt would fail, too.
    """
    try:
        return call(*args)
    except HTTPError as error:
        error.close()
        if error.code == 416:
            return None
        answer = f"the server answered {error.code} {error.reason}".split("\n")[0].strip()
        if error.code >= 500 or error.code in (408, 429):
            raise _BrokenTransfer(answer) from error
        raise Gpt1Error(
            f"{url}: {answer}; open the URL in a browser to see whether your network lets it "
            "through, or name a mirror that has the files with --base_url."
        ) from error
    except (OSError, HTTPException, ValueError) as error:  # ValueError: a redirect without a URL
        reason = error.reason if isinstance(error, URLError) else error
        if isinstance(reason, ssl.SSLCertVerificationError):
            raise Gpt1Error(
                f"{url}: the server's certificate cannot be trusted: {reason.verify_message}; "
                "correct the clock, name your network's certificates with the environment variable "
                "SSL_CERT_FILE, or name a mirror with --base_url."
            ) from error
        text = reason.strerror or str(reason) if isinstance(reason, OSError) else repr(reason)
        raise _BrokenTransfer(text) from error
