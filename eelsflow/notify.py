"""Tells people what wants a look: always in a file of eelsflow's home, and by webhook or mail where one is named.

``EELSFLOW_NOTIFY`` names where, separated by spaces: ``https://...`` gets a POST of JSON whose ``text`` chat programs
show; ``mailto:PERSON@HOST`` a mail through the server of ``EELSFLOW_SMTP`` (``smtp://USER:PASSWORD@HOST:PORT``, by
default the one of this machine). Addresses may be secrets: no more of them than the host is ever written down.
"""

from __future__ import annotations

import http.client
import json
import logging
import os
import smtplib
import socket
import ssl
import threading
import time
import urllib.request
from datetime import datetime
from email.message import EmailMessage
from pathlib import Path
from urllib.parse import unquote, urlsplit

from eelsflow.errors import InputError, OutputPathError
from eelsflow.store import home, make_directory, read_json, write_json

LOGGER = logging.getLogger("eelsflow.watch")

EVERY_SECONDS = 60.0
"""Messages are sent at most so often, each with all that came up meanwhile (ours)."""

TIMEOUT_SECONDS = 10.0
AGAIN_SECONDS = 3600.0
"""After which the same failure of a schedule is told again (ours)."""


def destinations() -> list[str]:
    """Return where messages go beside the file.

    Raises
    ------
    InputError
        If something else than a webhook or a mail address is named.
    """
    found = os.environ.get("EELSFLOW_NOTIFY", "").split()
    for number, one in enumerate(found, start=1):
        if urlsplit(one).scheme not in ("http", "https", "mailto"):
            raise InputError(
                f"EELSFLOW_NOTIFY names something as number {number} that is neither https://... nor mailto:...; "
                "nobody would be told by it"
            )
    return found


def notify(subject: str, lines: list[str]) -> None:
    """Write something down, and send it; what cannot be sent is written down as such.

    Parameters
    ----------
    subject
        In a few words.
    lines
        What there is to say.
    """
    write_down(lines)
    send(subject, lines)


def is_news(key: str, text: str) -> bool:
    """Tell whether something is told for the first time within an hour: a schedule may fail every minute."""
    path, now = home() / "told.json", time.time()
    try:
        told = read_json(path) if path.exists() else {}
        if told.get(key, {}).get("text") == text and now - told[key]["at"] < AGAIN_SECONDS:
            return False
        write_json(path, {**told, key: {"text": text, "at": now}})
    except (OSError, ValueError, KeyError):
        return True
    return True


def write_down(lines: list[str]) -> None:
    """Add lines to the file."""
    now = datetime.now().isoformat(sep=" ", timespec="seconds")
    try:
        with log_path().open("a") as stream:
            stream.writelines(f"{now}  {' '.join(line.split())}\n" for line in lines)
    except (OSError, OutputPathError) as error:  # a full disk: what is told of goes on
        LOGGER.warning("cannot be written down (%s): %s", error, "; ".join(lines))


def log_path() -> Path:
    """Return the file that everything is written down in."""
    return make_directory(home()) / "notifications.log"


def send(subject: str, lines: list[str]) -> None:
    """Send a message to every destination; one that fails stands in nobody's way."""
    for one in destinations():
        try:
            (_mail if one.startswith("mailto:") else _post)(one, f"eelsflow: {subject}", "\n".join(lines))
        except (OSError, smtplib.SMTPException, http.client.HTTPException, ValueError) as error:
            where = "the mail server" if one.startswith("mailto:") else urlsplit(one).hostname
            text = f"{where} could not be told ({type(error).__name__}): {subject}; it is in {log_path()}"
            LOGGER.warning("%s", text)
            write_down([text])


def _post(url: str, subject: str, text: str) -> None:
    body = json.dumps({"text": f"{subject}\n{text}", "subject": subject, "host": socket.gethostname()}).encode()
    request = urllib.request.Request(url, body, {"Content-Type": "application/json", "User-Agent": "eelsflow"})
    with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS):
        pass


def _mail(url: str, subject: str, text: str) -> None:
    server = urlsplit(os.environ.get("EELSFLOW_SMTP") or "smtp://localhost:25")
    message = EmailMessage()
    message["Subject"], message["To"] = subject, unquote(urlsplit(url).path)
    message["From"] = f"eelsflow@{socket.getfqdn()}"
    message.set_content(text)
    host, context = server.hostname or "localhost", ssl.create_default_context()
    connection: smtplib.SMTP
    if server.scheme == "smtps":
        connection = smtplib.SMTP_SSL(host, server.port or 0, timeout=TIMEOUT_SECONDS, context=context)
    else:
        connection = smtplib.SMTP(host, server.port or 0, timeout=TIMEOUT_SECONDS)
    with connection:
        if server.username:
            if server.scheme != "smtps":  # a password goes to nobody but that server, and encrypted
                connection.starttls(context=context)
            connection.login(unquote(server.username), unquote(server.password or ""))
        connection.send_message(message)


class Notices:
    """What came up, sent together once a minute; written down at once."""

    def __init__(self) -> None:
        destinations()  # a mistake is said at the start
        self._pending: list[str] = []
        self._sent = time.monotonic() - EVERY_SECONDS
        self._lock = threading.Lock()

    def add(self, line: str) -> None:
        """Take something in."""
        write_down([line])
        with self._lock:
            self._pending.append(line)

    def flush(self, *, now: bool = False) -> None:
        """Send what there is, if a minute has passed since the last message, or now."""
        with self._lock:
            if not self._pending or not (now or time.monotonic() - self._sent >= EVERY_SECONDS):
                return
            lines, self._pending, self._sent = self._pending, [], time.monotonic()
        send(f"{len(lines)} acquisitions want a look" if len(lines) > 1 else "an acquisition wants a look", lines)
