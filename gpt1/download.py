"""Fetching the released vocabulary, merges and weights: ``python -m gpt1.download``.

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
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from time import sleep
from typing import Any
from urllib import request
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit

from gpt1 import __version__
from gpt1.arguments import Parser, number
from gpt1.errors import Gpt1Error, InputError, report_errors
from gpt1.files import check_regular, check_writable

# The commit by its short name, which GitHub resolves as git does. Should it ever stand for
# something else, the object ids below still let no other content in.
RELEASED_URL = "https://raw.githubusercontent.com/openai/finetune-transformer-lm/a69b5c4/model/"

_SHARD_IDS = (
    "84d83ac1f1cc878f56f33b167482c184491875d2",
    "0f19f4d4cda3d8f908e3faffd2cb2a8b9a4039da",
    "25bc19c72fdff69505a828ec6d73b32063532148",
    "5b2e6958d42a930966c9d602a012eb846ca67c83",
    "87ad158987e307e6aa64952610f466d750b73bc7",
    "74f3853316bba327229605dbedfe921996f11448",
    "5ef44e40bc076d0c9686d1273d54cbc16c3f0980",
    "d8d5c8d3bee9b20a677605ac1fe6c7af4df57c94",
    "f980f4b393716f396ae5ae6401708dcf4f270dc9",
    "d389eb2074dd74754444b8062aba78b49f6a9053",
)
RELEASED_FILES = {
    "encoder_bpe_40000.json": "9dc3f0af5a80956e57dc8d9401e16dfadcade7c2",
    "vocab_40000.bpe": "0023a687b3d4d0b795a5e97cc914bdabb5a253df",
    "params_shapes.json": "29fac299ae848d7e447be84a33345edcf1b5353c",
    **{f"params_{index}.npy": object_id for index, object_id in enumerate(_SHARD_IDS)},
}

_LOCK_FILE = ".download.lock"
_CHUNK = 1 << 18  # bytes read at once
_LONGEST_PAUSE = 30.0  # seconds between two tries, unless the server asks for more ...
_LONGEST_WISH = 300.0  # ... and what it may ask for


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

    The first file that cannot be had ends it: files before it stay, and so does what has come of
    this one, for the next call to go on with.

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
        Gpt1Error: the server or the network fails, what comes is not the file, the disk cannot
            take it, or another download into the directory is running.
    """
    base_url = _directory_url(base_url)
    model_dir = Path(model_dir)
    missing = _missing(files, model_dir, force)
    if not missing:
        return []
    check_writable(model_dir)
    with _lock(model_dir):
        # Asked again: another download may have brought them before it gave the lock back.
        missing = _missing(missing, model_dir, force)
        for name, object_id in missing.items():
            _fetch(base_url + name, model_dir / name, object_id, timeout, retries)
    return list(missing)


def git_object_id(path: str | Path) -> str:
    """The id by which git names a file's content: SHA-1 of ``blob LENGTH``, a zero byte, and it.

    Raises:
        InputError: the file cannot be read.
    """
    check_regular(path, "the file")
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            digest = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}.") from error
    return digest.hexdigest()


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status, 1 if the network or the disk fails."""
    return report_errors("gpt1.download", lambda: _run(_parser().parse_args(argv)))


def _run(args: argparse.Namespace) -> int:
    _check_heads(args.model_dir)
    try:
        fetched = download(
            RELEASED_FILES,
            args.base_url,
            args.model_dir,
            force=args.force,
            timeout=args.timeout,
            retries=args.retries,
        )
    except KeyboardInterrupt:
        _note("what has arrived is kept: the same command goes on from there")
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
  python -m gpt1.download

  # from a mirror, to another place
  python -m gpt1.download --base_url https://example.org/gpt1/ --model_dir /data/gpt1""",
    )
    add = parser.add_argument
    add(
        "--model_dir",
        metavar="DIR",
        type=Path,
        default=Path("model"),
        help="where they go [model/]",
    )
    add("--base_url", metavar="URL", default=RELEASED_URL, help="directory with the files [GitHub]")
    add("--force", action="store_true", help="fetch again, and replace, what is there")
    add(
        "--timeout",
        metavar="SECONDS",
        type=number(float, 0.1, 86400),
        default=30.0,
        help="give a silent connection up after this time [30]",
    )
    add(
        "--retries",
        metavar="N",
        type=number(int, 0),
        default=5,
        help="further tries, while they bring nothing new, before giving up [5]",
    )
    return parser


def _check_heads(model_dir: Path) -> None:
    """Refuse a directory whose own settings would be read as those of the released weights."""
    from gpt1.weights import CONFIG_FILE, RELEASED_N_HEAD, read_n_head

    if read_n_head(model_dir) not in (None, RELEASED_N_HEAD):
        raise InputError(
            f"{model_dir / CONFIG_FILE}: belongs to another checkpoint, the released one has "
            f"{RELEASED_N_HEAD} heads; remove it, or name another directory with --model_dir."
        )


# The directory


def _missing(files: Mapping[str, str], model_dir: Path, force: bool) -> dict[str, str]:
    """Those of the files that must be fetched."""
    if force:
        return dict(files)
    there = [name for name in files if os.path.exists(model_dir / name)]
    wrong = [name for name in there if git_object_id(model_dir / name) != files[name]]
    if wrong:
        raise InputError(
            f"{model_dir}: {', '.join(wrong)}: there, but damaged or of another checkpoint; name "
            "another directory with --model_dir, or replace the files with --force."
        )
    return {name: object_id for name, object_id in files.items() if name not in there}


@contextmanager
def _lock(model_dir: Path) -> Iterator[None]:
    """Keep other downloads out of the directory; the system undoes it however we end."""
    if os.name != "posix":  # no flock: two would spoil each other's parts, which the check finds
        yield
        return
    import fcntl

    # The file stays: were it removed, a second download could lock the old one, a third a new one.
    path = model_dir / _LOCK_FILE
    with ExitStack() as stack:
        try:
            file = stack.enter_context(open(path, "ab"))
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise Gpt1Error(
                f"{model_dir}: another download into it is running; wait for its end, or stop it."
            ) from error
        except OSError as error:
            raise Gpt1Error(
                f"{path}: cannot be locked: {error.strerror}; name another directory with "
                "--model_dir."
            ) from error
        yield


def _fetch(url: str, path: Path, object_id: str, timeout: float, retries: int) -> None:
    """Bring one file to its place, or raise a :class:`Gpt1Error` that says how to go on."""
    part = path.with_name(f".{path.name}.part")
    try:
        for _ in range(2):  # once more, from nothing: the part may be of another file
            if not (part.exists() and git_object_id(part) == object_id):
                _transfer(url, part, timeout, retries)
            found = git_object_id(part)
            if found == object_id:
                _install(part, path)
                return
            size = _size(part)
            part.unlink()
    except OSError as error:  # the network's are caught where they arise
        raise Gpt1Error(
            f"{path}: cannot be written: {error.strerror}; free space, or name another directory "
            "with --model_dir. The same command goes on where this one stopped."
        ) from error
    raise Gpt1Error(
        f"{url}: not the released file: {size} bytes with git object id {found}, expected "
        f"{object_id}; nothing of it is kept. Open the URL in a browser: a proxy may answer in the "
        "server's place, or the mirror has other files (--base_url names another one)."
    )


def _install(part: Path, path: Path) -> None:
    """Give a complete part its name, its data on the disk first."""
    with open(part, "rb+") as file:
        os.fsync(file.fileno())
    os.replace(part, path)


def _size(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def _note(message: str) -> None:
    print(f"gpt1.download: {message}", file=sys.stderr, flush=True)


# The network


class _BrokenTransfer(Exception):
    """A try that failed in a way that may pass.

    Attributes:
        pause: seconds that the server asks to wait, 0 if it does not.
    """

    def __init__(self, reason: str, pause: float = 0.0) -> None:
        super().__init__(reason)
        self.pause = pause


def _directory_url(base_url: str) -> str:
    """The URL with a slash at its end, or an :class:`InputError`."""
    try:
        parts = urlsplit(base_url)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # brackets or a port that are none
        good = False
    plain = base_url.isascii() and base_url.isprintable() and not re.search(r"[ ?#]", base_url)
    if not (good and plain and "@" not in parts.netloc):
        raise InputError(
            f"--base_url {base_url!r}: must be the http or https URL of a directory, without user "
            f"name, query or spaces, such as {RELEASED_URL}"
        )
    return base_url.rstrip("/") + "/"


def _transfer(url: str, part: Path, timeout: float, retries: int) -> None:
    """Fill the part up, over as many connections as it takes while they bring something new."""
    failures, furthest = 0, _size(part)
    while True:
        try:
            _continue(url, part, timeout)
            return
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
            pause = max(broken.pause, min(2.0 ** min(failures - 1, 10), _LONGEST_PAUSE))
            _note(f"{url}: {broken}; trying again in {pause:g} s")
            sleep(pause)


def _continue(url: str, part: Path, timeout: float) -> None:
    """Ask once for what the part lacks, and write it.

    Raises:
        _BrokenTransfer: not all of it came.
        Gpt1Error: the server refuses.
    """
    with _open(url, part, timeout) as response:
        start, total = _extent(response, part)
        with open(part, "ab" if start else "wb") as file, _bar(part, start, total) as bar:
            size = start
            # Counted here: HTTPResponse takes a body that ends early for a whole one.
            while size != total:
                with _network(url):
                    chunk = response.read1(_CHUNK if total is None else min(_CHUNK, total - size))
                if not chunk:
                    break
                file.write(chunk)
                bar.update(len(chunk))
                size += len(chunk)
    if total is not None and size != total:
        raise _BrokenTransfer(f"ended after {size} of {total} bytes")


def _open(url: str, part: Path, timeout: float) -> HTTPResponse:
    """The answer to a request for the rest of the part, or for all if there is none."""
    headers = {"User-Agent": f"gpt1/{__version__}"}
    if size := _size(part):
        headers["Range"] = f"bytes={size}-"
    try:
        with _network(url):
            response: HTTPResponse = _opener().open(
                request.Request(url, headers=headers), None, timeout
            )
            return response
    except HTTPError as error:
        error.close()
        if error.code == 416 and size:
            part.unlink()
            raise _BrokenTransfer("nothing comes after what was here: starting again") from error
        raise _refusal(url, error) from error


def _opener() -> request.OpenerDirector:
    """Without urllib's handlers for file:, ftp: and data:, which a redirect could lead to."""
    opener = request.OpenerDirector()
    opener.add_handler(request.ProxyHandler())
    opener.add_handler(request.HTTPHandler())
    opener.add_handler(request.HTTPSHandler())
    opener.add_handler(request.HTTPRedirectHandler())
    opener.add_handler(request.HTTPErrorProcessor())
    opener.add_handler(request.HTTPDefaultErrorHandler())
    opener.add_handler(request.UnknownHandler())
    return opener


@contextmanager
def _network(url: str) -> Iterator[None]:
    """Tell what the connection raises from what the disk raises; HTTPError passes."""
    try:
        yield
    except HTTPError:
        raise
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


def _refusal(url: str, error: HTTPError) -> Exception:
    """What an answer that is not the file means: to be tried again, or final."""
    answer = f"{error.code} {error.reason}".split("\n")[0].strip()
    if error.code >= 500 or error.code in (408, 429):
        wish = error.headers.get("Retry-After", "")
        pause = min(float(wish), _LONGEST_WISH) if wish.isdecimal() else 0.0
        return _BrokenTransfer(f"the server answered {answer}", pause)
    return Gpt1Error(
        f"{url}: the server answered {answer}; open the URL in a browser to see whether your "
        "network lets it through, or name a mirror that has the files with --base_url."
    )


def _extent(response: HTTPResponse, part: Path) -> tuple[int, int | None]:
    """Where in the file the body begins, and how long the whole file is, if the server says."""
    if response.status != 206:
        return 0, response.length  # the whole file, whatever was asked for
    given = response.headers.get("Content-Range", "")
    match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", given)
    if match is None or int(match[1]) != _size(part):
        part.unlink(missing_ok=True)
        raise _BrokenTransfer(f"another part came than was asked for ({given}): starting again")
    return int(match[1]), None if match[2] == "*" else int(match[2])


def _bar(part: Path, start: int, total: int | None) -> Any:
    """A progress bar in bytes, on a terminal only."""
    from tqdm import tqdm

    return tqdm(
        desc=part.name.removeprefix(".").removesuffix(".part"),
        initial=start,
        total=total,
        unit="B",
        unit_scale=True,
        disable=not sys.stderr.isatty(),
    )


if __name__ == "__main__":
    sys.exit(main())
