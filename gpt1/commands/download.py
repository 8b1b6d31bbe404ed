"""Fetching the released vocabulary, merges and weights: ``python -m gpt1 download``.

A file arrives as ``.NAME.part`` beside its place, from where a later try or run goes on. It takes
its name when its content has the id that git gave it in OpenAI's repository, and not before: what
stands under a name is whole and right, whatever happens on the way.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import ssl
import sys
from collections.abc import Callable, Mapping, Sequence
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from time import sleep
from typing import Any
from urllib import request
from urllib.error import HTTPError, URLError

from filelock import FileLock, Timeout
from tqdm import tqdm

from gpt1 import __version__
from gpt1.runtime.errors import Gpt1Error, InputError, report_errors
from gpt1.runtime.files import check_writable, read_bytes
from gpt1.settings.arguments import Parser, number
from gpt1.weights.locate import CONFIG_FILE, RELEASED_N_HEAD, read_n_head

# The commit by its short name, which GitHub resolves as git does. Should it ever stand for
# something else, the object ids below still let no other content in.
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
    """Fetch files into a directory and check each; those that are there and right are kept.

    The first file that cannot be fetched ends the download. The files before it stay, and so does
    the part of it that has arrived, for the next call to go on with.

    Args:
        files: git object id (see :func:`git_object_id`) of each file, by its name.
        base_url: http or https directory that holds them.
        model_dir: where they go; made if it is not there.
        force: fetch also what is there, and replace it.
        timeout: seconds without a byte after which a connection is given up.
        retries: tries in a row that bring nothing new, after the first, before giving up.

    Returns:
        Names of the files that were fetched.

    Raises:
        InputError: ``base_url`` is not such a URL, or a file is there with another content and
            ``force`` is not given (then nothing is fetched).
        Gpt1Error: the server, the network or the disk fails, what comes is not the file, or another
            download into the directory is running.
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
        # Asked again: another download may have brought them before it gave the lock back.
        missing = _missing(files, model_dir, force)
        for name in missing:
            url = f"{base_url.rstrip('/')}/{name}"
            _fetch(url, model_dir / name, files[name], timeout, retries)
    return missing


def git_object_id(path: str | Path) -> str:
    """The id by which git names a file's content: SHA-1 of ``blob LENGTH``, a zero byte, and it.

    Raises:
        InputError: the file cannot be read.
    """
    content = read_bytes(path, "the file")
    digest = hashlib.sha1(b"blob %d\0" % len(content), usedforsecurity=False)
    digest.update(content)
    return digest.hexdigest()


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status, 1 if the network or the disk fails."""
    return report_errors("gpt1 download", lambda: _run(_parser().parse_args(argv)))


def _run(args: argparse.Namespace) -> int:
    if read_n_head(args.model_dir) not in (None, RELEASED_N_HEAD):
        raise InputError(
            f"{args.model_dir / CONFIG_FILE}: belongs to another checkpoint, the released one has "
            f"{RELEASED_N_HEAD} heads; remove it, or name another directory with --model_dir."
        )
    try:
        fetched = download(RELEASED_FILES, **vars(args))
    except KeyboardInterrupt:
        note = "what has arrived is kept: the same command goes on from there"
        print(f"gpt1 download: {note}", file=sys.stderr)
        raise
    kept = len(RELEASED_FILES) - len(fetched)
    print(f"{args.model_dir}: the released files, {len(fetched)} fetched, {kept} already there")
    return 0


def _parser() -> Parser:
    parser = Parser(
        prog="gpt1 download",
        description="Fetch OpenAI's released vocabulary, merges and weights, 466 MB, checked.\n"
        "An interrupted download goes on where it stopped.",
        examples="""  # into model/, where the other programs look for them
  python -m gpt1 download

  # from a mirror, to another place
  python -m gpt1 download --base_url https://example.org/gpt1/ --model_dir /data/gpt1""",
    )
    add, seconds = parser.add_argument, number(float, 0.1, 86400)
    add("--model_dir", metavar="DIR", type=Path, default="model", help="where they go [model/]")
    add("--base_url", metavar="URL", default=RELEASED_URL, help="directory with the files [GitHub]")
    add("--force", action="store_true", help="fetch again, and replace, what is there")
    text = "give a silent connection up after this time [30]"
    add("--timeout", metavar="SECONDS", type=seconds, default=30.0, help=text)
    text = "further tries, while they bring nothing new, before giving up [5]"
    add("--retries", metavar="N", type=number(int, 0), default=5, help=text)
    return parser


def _missing(files: Mapping[str, str], model_dir: Path, force: bool) -> list[str]:
    """Names of the files that must be fetched."""
    there = [] if force else [name for name in files if os.path.exists(model_dir / name)]
    wrong = [name for name in there if git_object_id(model_dir / name) != files[name]]
    if wrong:
        raise InputError(
            f"{model_dir}: {', '.join(wrong)}: there, but damaged or of another checkpoint; name "
            "another directory with --model_dir, or replace the files with --force."
        )
    return [name for name in files if name not in there]


def _fetch(url: str, path: Path, object_id: str, timeout: float, retries: int) -> None:
    """Bring one file to its place, or raise a :class:`Gpt1Error` that says how to go on."""
    part = path.with_name(f".{path.name}.part")
    try:
        for _ in range(2):  # once more, from nothing: the part may be of another file
            if not _has_id(part, object_id):
                _transfer(url, part, timeout, retries)
            if _has_id(part, object_id):
                with open(part, "rb+") as file:
                    os.fsync(file.fileno())  # the data before the name
                part.replace(path)
                return
            part.unlink(missing_ok=True)
    except OSError as error:  # the network's are caught where they arise
        raise Gpt1Error(
            f"{path}: cannot be written: {error.strerror}; free space, or name another directory "
            "with --model_dir. The same command goes on where this one stopped."
        ) from error
    raise Gpt1Error(
        f"{url}: not the released file, whose git object id is {object_id}; nothing of what came "
        "is kept. Open the URL in a browser: a proxy may answer in the server's place, or the "
        "mirror has other files (--base_url names another one)."
    )


class _BrokenTransfer(Exception):
    """A failure of the network or the server that may pass."""


def _transfer(url: str, part: Path, timeout: float, retries: int) -> None:
    """Fill the part up, over as many connections as it takes while they bring something new."""
    failures, furthest = 0, _size(part)
    while True:
        try:
            return _continue(url, part, timeout)
        except _BrokenTransfer as broken:
            # Not compared with the last try: a server that always starts again must not go on
            # for ever.
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
    """Ask once for what the part lacks, and write it, unless the answer is something else.

    Raises:
        _BrokenTransfer: not all of it came.
        Gpt1Error: the server refuses.
    """
    start = _size(part)
    query = request.Request(url, headers={"User-Agent": f"gpt1/{__version__}"})
    if start:
        query.add_header("Range", f"bytes={start}-")
    response = _network(url, request.urlopen, query, None, timeout)
    if not isinstance(response, HTTPResponse):  # nothing comes after the part, or an ftp: redirect
        return
    with response:
        if response.status != 206:
            start = 0  # the whole file, whatever was asked for
        elif not response.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
            return
        name, total = part.stem[1:], None if response.length is None else start + response.length
        bar = tqdm(None, name, total, initial=start, unit="B", unit_scale=True, disable=None)
        with open(part, "ab" if start else "wb") as file, bar:
            while chunk := _network(url, response.read1, 1 << 18):
                file.write(chunk)
                bar.update(len(chunk))
            # HTTPResponse takes a body that ends early for a whole one.
            if total is not None and file.tell() != total:
                raise _BrokenTransfer(f"ended after {file.tell()} of {total} bytes")


def _network(url: str, call: Callable[..., Any], *args: object) -> Any:
    """Call what uses the connection, and sort its failures; None if there is no such range."""
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
    except (OSError, HTTPException, ValueError) as error:  # ValueError: a redirect to no URL
        reason = error.reason if isinstance(error, URLError) else error
        if isinstance(reason, ssl.SSLCertVerificationError):
            raise Gpt1Error(
                f"{url}: the server's certificate cannot be trusted: {reason.verify_message}; "
                "correct the clock, name your network's certificates with the environment variable "
                "SSL_CERT_FILE, or name a mirror with --base_url."
            ) from error
        text = reason.strerror or str(reason) if isinstance(reason, OSError) else repr(reason)
        raise _BrokenTransfer(text) from error
