"""``python -m tests.soak.ordinary ADDRESS``: grpcio's clients, which know nothing of the attacks.

Owns:      publishes, fetches, subscriptions and streams of publishes, by threads in a process of their own.
Not here:  the broker, who attacks it.
Threads:   one for each client.

Each second it prints a line of JSON: calls that were answered since, those that failed, and the slowest of a hundred.
When its standard input is closed the clients end, and one last line says what failed.
"""

import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
from e2e_peers import OWN_CONNECTION

from trio_broker._proto import broker_pb2 as pb

CALL_S = 60
"""A deadline that no call comes near, on a machine that does much else."""
SUBJECTS = 4
PUBLISHERS = 3
SUBSCRIBERS = 8
PAUSE_S = 0.03
LIVES_S = 20
"""A subscription is cancelled after so long, and made again."""
EXPIRATION_S = 5
BODY = bytes(500)


class Clients:
    """What they have been told."""

    def __init__(self, channel: Callable[[], grpc.Channel]) -> None:
        self._channel = channel
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._seconds: list[float] = []
        self.calls = self.received = 0
        self.failed: list[str] = []

    def run(self) -> None:
        work = [self.publish] * PUBLISHERS + [self.subscribe] * SUBSCRIBERS + [self.fetch, self.stream]
        threads = [threading.Thread(target=self._guard, args=(each, n)) for n, each in enumerate(work)]
        threads.append(threading.Thread(target=self._tell))
        for thread in threads:
            thread.start()
        sys.stdin.read()
        self._over.set()
        for thread in threads:
            thread.join(2 * CALL_S)
        self._say(failures=self.failed[:20], received=self.received, calls_in_all=self.calls)

    def _guard(self, work: Callable[[grpc.Channel, int], None], number: int) -> None:
        with self._channel() as channel:
            while not self._over.is_set():
                try:
                    work(channel, number)
                except (grpc.RpcError, AssertionError) as error:
                    what = f"{error.code()} {error.details()}" if isinstance(error, grpc.Call) else repr(error)
                    with self._lock:
                        self.failed.append(f"{work.__name__}: {what}")
                    self._over.wait(1)

    def _call(self, call: Callable[..., object], request: object) -> object:
        began = time.monotonic()
        answer = call(request, timeout=CALL_S)
        with self._lock:
            self.calls += 1
            self._seconds.append(time.monotonic() - began)
        return answer

    def publish(self, channel: grpc.Channel, number: int) -> None:
        call = _unary(channel, "Publish", pb.PublishRequest, pb.PublishResponse)
        request = pb.PublishRequest(subject=f"soak.{number % SUBJECTS}", body=BODY, expirationSeconds=EXPIRATION_S)
        while not self._over.wait(PAUSE_S):
            self._call(call, request)

    def fetch(self, channel: grpc.Channel, number: int) -> None:
        """What was just published."""
        publish = _unary(channel, "Publish", pb.PublishRequest, pb.PublishResponse)
        fetch = _unary(channel, "Fetch", pb.FetchRequest, pb.MessageResponse)
        kept = pb.PublishRequest(subject="soak.fetched", body=BODY, expirationSeconds=2 * CALL_S)
        while not self._over.wait(PAUSE_S):
            id_ = self._call(publish, kept).id
            assert self._call(fetch, pb.FetchRequest(subject="soak.fetched", id=id_)).body == BODY

    def subscribe(self, channel: grpc.Channel, number: int) -> None:
        call = channel.unary_stream(
            "/broker.Broker/Subscribe", pb.SubscribeRequest.SerializeToString, pb.MessageResponse.FromString
        )
        stream = call(pb.SubscribeRequest(subject=f"soak.{number % SUBJECTS}"))
        ends = threading.Timer(LIVES_S, stream.cancel)
        ends.start()
        last = 0
        try:
            for message in stream:
                assert last in (0, message.id - 1), "a gap"
                last = message.id
                self.received += 1
                if self._over.is_set():
                    break
        except grpc.RpcError:
            if stream.code() != grpc.StatusCode.CANCELLED:
                raise
        finally:
            ends.cancel()
            stream.cancel()

    def stream(self, channel: grpc.Channel, number: int) -> None:
        """Publish in one stream, for as long as a subscription lives."""
        call = channel.stream_stream(
            "/broker.Broker/PublishStream",
            pb.PublishStreamRequest.SerializeToString,
            pb.PublishStreamResponse.FromString,
        )
        sent = 0

        def requests() -> Iterator[pb.PublishStreamRequest]:
            nonlocal sent
            ends = time.monotonic() + LIVES_S
            message = pb.PublishRequest(subject="soak.0", body=BODY, expirationSeconds=EXPIRATION_S)
            while time.monotonic() < ends and not self._over.wait(PAUSE_S):
                sent += 1
                yield pb.PublishStreamRequest(messages=[message])

        acks = 0
        for response in call(requests(), timeout=LIVES_S + CALL_S):
            for ack in response.acks:
                assert not ack.HasField("failed"), ack
                acks += ack.count
        assert acks == sent, "messages without an acknowledgement"
        with self._lock:
            self.calls += acks

    def _tell(self) -> None:
        before = 0
        while not self._over.wait(1):
            with self._lock:
                seconds, self._seconds = sorted(self._seconds), []
                calls, before = self.calls - before, self.calls
            slow = seconds[len(seconds) * 99 // 100] * 1000 if seconds else 0.0
            self._say(calls=calls, failed=len(self.failed), p99_ms=round(slow, 1))

    @staticmethod
    def _say(**what: object) -> None:
        print(json.dumps(what), flush=True)


def _unary(channel: grpc.Channel, method: str, request: type, response: type) -> Callable[..., object]:
    return channel.unary_unary(f"/broker.Broker/{method}", request.SerializeToString, response.FromString)


def main() -> None:
    address, *authority = sys.argv[1:]
    if authority:
        credentials = grpc.ssl_channel_credentials(Path(authority[0]).read_bytes())
        Clients(lambda: grpc.secure_channel(address, credentials, OWN_CONNECTION)).run()
    else:
        Clients(lambda: grpc.insecure_channel(address, OWN_CONNECTION)).run()


if __name__ == "__main__":
    main()
