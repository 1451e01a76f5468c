"""Where a server listens, and what it says when it cannot."""

import socket
from contextlib import closing

import pytest

from trio_broker.rpc.listeners import format_address, listen_tcp, listen_unix


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_free_port(host):
    with closing(listen_tcp(host, 0)) as listener:
        port = listener.getsockname()[1]
        assert port > 0
        assert not listener.getblocking()
        with socket.create_connection((host, port)):
            pass


def test_a_port_that_is_taken():
    with closing(listen_tcp("127.0.0.1", 0)) as first:
        port = first.getsockname()[1]
        with pytest.raises(OSError, match=rf"cannot listen on 127\.0\.0\.1:{port}: Address already in use"):
            listen_tcp("127.0.0.1", port)


def test_an_ipv6_listener_leaves_ipv4_to_others():
    with closing(listen_tcp("::1", 0)) as six, closing(listen_tcp("127.0.0.1", six.getsockname()[1])):
        pass


def test_a_port_that_was_just_used():
    """Connections of a server that has ended, in TIME_WAIT, do not keep the next one from starting."""
    listener = listen_tcp("127.0.0.1", 0)
    port = listener.getsockname()[1]
    with socket.create_connection(("127.0.0.1", port)) as client:
        listener.setblocking(True)
        accepted, _ = listener.accept()
        accepted.close()
        listener.close()
        assert client.recv(1) == b""
    listen_tcp("127.0.0.1", port).close()


def test_a_name_that_does_not_resolve():
    with pytest.raises(OSError, match=r"cannot resolve no\.such\.host\.invalid: "):
        listen_tcp("no.such.host.invalid", 0)


def test_a_unix_socket(tmp_path):
    path = str(tmp_path / "socket")
    with closing(listen_unix(path)), socket.socket(socket.AF_UNIX) as client:
        client.connect(path)
        with pytest.raises(OSError, match=f"cannot listen on unix:{path}: Address already in use"):
            listen_unix(path)


def test_a_unix_socket_that_nobody_listens_on_is_replaced(tmp_path):
    path = str(tmp_path / "socket")
    listen_unix(path).close()
    with closing(listen_unix(path)), socket.socket(socket.AF_UNIX) as client:
        client.connect(path)


def test_a_file_that_is_no_socket_is_left_alone(tmp_path):
    path = tmp_path / "file"
    path.write_text("precious")
    with pytest.raises(OSError, match="cannot listen on unix:"):
        listen_unix(str(path))
    assert path.read_text() == "precious"


@pytest.mark.parametrize(
    ("address", "text"),
    [
        (("127.0.0.1", 80), "127.0.0.1:80"),
        (("::1", 80, 0, 0), "[::1]:80"),
        ("/run/socket", "unix:/run/socket"),
        ("", "unix:"),
    ],
)
def test_addresses_as_one_writes_them(address, text):
    assert format_address(address) == text
