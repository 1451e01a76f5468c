import purerpc
import trio_broker._proto.replicas_pb2 as replicas__pb2


class ReplicasServicer(purerpc.Servicer):
    async def Tail(self, input_messages):
        raise NotImplementedError()

    async def Append(self, input_message):
        raise NotImplementedError()

    async def Settle(self, input_message):
        raise NotImplementedError()

    @property
    def service(self) -> purerpc.Service:
        service_obj = purerpc.Service(
            "broker.Replicas"
        )
        service_obj.add_method(
            "Tail",
            self.Tail,
            purerpc.RPCSignature(
                purerpc.Cardinality.STREAM_STREAM,
                replicas__pb2.TailRequest,
                replicas__pb2.TailResponse,
            )
        )
        service_obj.add_method(
            "Append",
            self.Append,
            purerpc.RPCSignature(
                purerpc.Cardinality.UNARY_UNARY,
                replicas__pb2.AppendRequest,
                replicas__pb2.AppendResponse,
            )
        )
        service_obj.add_method(
            "Settle",
            self.Settle,
            purerpc.RPCSignature(
                purerpc.Cardinality.UNARY_UNARY,
                replicas__pb2.SettleRequest,
                replicas__pb2.SettleResponse,
            )
        )
        return service_obj


class ReplicasStub:
    def __init__(self, channel):
        self._client = purerpc.Client(
            "broker.Replicas",
            channel
        )
        self.Tail = self._client.get_method_stub(
            "Tail",
            purerpc.RPCSignature(
                purerpc.Cardinality.STREAM_STREAM,
                replicas__pb2.TailRequest,
                replicas__pb2.TailResponse,
            )
        )
        self.Append = self._client.get_method_stub(
            "Append",
            purerpc.RPCSignature(
                purerpc.Cardinality.UNARY_UNARY,
                replicas__pb2.AppendRequest,
                replicas__pb2.AppendResponse,
            )
        )
        self.Settle = self._client.get_method_stub(
            "Settle",
            purerpc.RPCSignature(
                purerpc.Cardinality.UNARY_UNARY,
                replicas__pb2.SettleRequest,
                replicas__pb2.SettleResponse,
            )
        )