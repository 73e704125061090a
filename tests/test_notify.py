import http.server
import smtplib
import ssl
from threading import Thread
from typing import ClassVar

import pytest

from eelsflow import notify
from eelsflow.errors import InputError
from eelsflow.notify import Notices


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("EELSFLOW_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("EELSFLOW_NOTIFY", raising=False)
    return tmp_path / "home"


def written():
    return notify.log_path().read_text()


@pytest.fixture
def webhook(webhook_url, monkeypatch):
    """The messages that a webhook got."""
    url, got = webhook_url
    monkeypatch.setenv("EELSFLOW_NOTIFY", url)
    return got


class Mail:
    """What a mail server is asked."""

    sent: ClassVar[list] = []

    def __init__(self, host, port, timeout):
        self.asked = [f"connect {host}:{port}"]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def starttls(self, context):
        assert context.verify_mode == ssl.CERT_REQUIRED
        self.asked.append("starttls")

    def login(self, user, password):
        self.asked.append(f"login {user} {password}")

    def send_message(self, message):
        Mail.sent.append((self.asked, message))


def test_without_a_destination_it_is_written_down():
    notify.notify("a run failed", ["study x: no\nspace"])
    assert written().endswith("  study x: no space\n")


def test_a_webhook_gets_text_that_chats_show(webhook):
    notify.notify("a run failed", ["study x: no space"])
    assert [one["text"] for one in webhook] == ["eelsflow: a run failed\nstudy x: no space"]


def test_a_mail_is_sent_with_a_password_only_over_tls(monkeypatch):
    monkeypatch.setattr(smtplib, "SMTP", Mail)
    monkeypatch.setattr(Mail, "sent", [])
    monkeypatch.setenv("EELSFLOW_NOTIFY", "mailto:lab%40x@example.org")
    monkeypatch.setenv("EELSFLOW_SMTP", "smtp://me:p%3Aw@mail.example.org:587")
    notify.notify("a run failed", ["study x"])
    ((asked, message),) = Mail.sent
    assert asked == ["connect mail.example.org:587", "starttls", "login me p:w"]
    assert message["Subject"] == "eelsflow: a run failed"
    assert message.get_content() == "study x\n"


def test_who_cannot_be_told_stands_in_nobody_s_way_and_no_secret_is_written_down(monkeypatch, caplog):
    monkeypatch.setenv("EELSFLOW_NOTIFY", "http://127.0.0.1:9/secret-token mailto:me@example.org")
    monkeypatch.setenv("EELSFLOW_SMTP", "smtp://me:secret-password@127.0.0.1:9")
    notify.notify("a run failed", ["study x"])
    assert "127.0.0.1 could not be told" in written()
    assert "the mail server could not be told" in written()
    assert "secret" not in written() + caplog.text


def test_what_is_no_webhook_or_cannot_be_written_down_stands_in_nobody_s_way(monkeypatch, caplog, home):
    class Odd(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            self.wfile.write(b"no HTTP at all\r\n")

        def log_message(self, *_):
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Odd)
    Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("EELSFLOW_NOTIFY", f"http://127.0.0.1:{server.server_port}/")
    notify.notify("a run failed", ["study x"])
    assert "could not be told (BadStatusLine)" in written()
    (home / "notifications.log").unlink()
    (home / "notifications.log").mkdir()
    notify.notify("a run failed", ["study x"])
    assert "cannot be written down" in caplog.text
    server.shutdown()
    server.server_close()


def test_the_same_is_news_once_an_hour(monkeypatch, home):
    home.mkdir()
    assert notify.is_news("inbox", "no model")
    assert not notify.is_news("inbox", "no model")
    assert notify.is_news("inbox", "no space")
    assert notify.is_news("study", "no space")
    monkeypatch.setattr(notify, "AGAIN_SECONDS", 0.0)
    assert notify.is_news("inbox", "no space")


def test_a_destination_of_another_kind_is_refused_without_showing_it(monkeypatch):
    monkeypatch.setenv("EELSFLOW_NOTIFY", "https://x/y slack-token-123")
    with pytest.raises(InputError, match="as number 2 that is neither") as raised:
        Notices()
    assert "123" not in str(raised.value)


def test_what_comes_up_is_written_down_at_once_and_sent_together(webhook, monkeypatch):
    notices = Notices()
    notices.flush()
    for name in "abc":
        notices.add(f"{name}: quarantined")
    assert written().count("quarantined") == 3
    notices.flush()
    notices.add("d: quarantined")
    notices.flush()  # within the minute
    assert [one["subject"] for one in webhook] == ["eelsflow: 3 acquisitions want a look"]
    notices.flush(now=True)
    assert webhook[1]["text"] == "eelsflow: an acquisition wants a look\nd: quarantined"
