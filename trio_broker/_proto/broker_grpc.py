import purerpc
import trio_broker._proto.broker_pb2 as broker__pb2
import trio_broker._proto.google.protobuf.duration_pb2 as google_dot_protobuf_dot_duration__pb2
import trio_broker._proto.google.protobuf.timestamp_pb2 as google_dot_protobuf_dot_timestamp__pb2


class BrokerServicer(purerpc.Servicer):
    async def Publish(self, input_message):
        raise NotImplementedError()

    async def Subscribe(self, input_message):
        raise NotImplementedError()

    async def Fetch(self, input_message):
        raise NotImplementedError()

    async def PublishBatch(self, input_message):
        raise NotImplementedError()

    async def PublishStream(self, input_messages):
        raise NotImplementedError()

    async def SubscribeBatch(self, input_message):
        raise NotImplementedError()

    async def FetchRange(self, input_message):
        raise NotImplementedError()

    @property
    def service(self) -> purerpc.Service:
        service_obj = purerpc.Service(
            "broker.Broker"
        )
        service_obj.add_method(
            "Publish",
            self.Publish,
            purerpc.RPCSignature(
                purerpc.Cardinality.UNARY_UNARY,
                broker__pb2.PublishRequest,
                broker__pb2.PublishResponse,
            )
        )
        service_obj.add_method(
            "Subscribe",
            self.Subscribe,
            purerpc.RPCSignature(
                purerpc.Cardinality.UNARY_STREAM,
                broker__pb2.SubscribeRequest,
                broker__pb2.MessageResponse,
            )
        )
        service_obj.add_method(
            "Fetch",
            self.Fetch,
            purerpc.RPCSignature(
                purerpc.Cardinality.UNARY_UNARY,
                broker__pb2.FetchRequest,
                broker__pb2.MessageResponse,
            )
        )
        service_obj.add_method(
            "PublishBatch",
            self.PublishBatch,
            purerpc.RPCSignature(
                purerpc.Cardinality.UNARY_UNARY,
                broker__pb2.PublishBatchRequest,
                broker__pb2.PublishBatchResponse,
            )
        )
        service_obj.add_method(
            "PublishStream",
            self.PublishStream,
            purerpc.RPCSignature(
                purerpc.Cardinality.STREAM_STREAM,
                broker__pb2.PublishStreamRequest,
                broker__pb2.PublishStreamResponse,
            )
        )
        service_obj.add_method(
            "SubscribeBatch",
            self.SubscribeBatch,
            purerpc.RPCSignature(
                purerpc.Cardinality.UNARY_STREAM,
                broker__pb2.SubscribeRequest,
                broker__pb2.MessageBatch,
            )
        )
        service_obj.add_method(
            "FetchRange",
            self.FetchRange,
            purerpc.RPCSignature(
                purerpc.Cardinality.UNARY_UNARY,
                broker__pb2.FetchRangeRequest,
                broker__pb2.FetchRangeResponse,
            )
        )
        return service_obj


class BrokerStub:
    def __init__(self, channel):
        self._client = purerpc.Client(
            "broker.Broker",
            channel
        )
        self.Publish = self._client.get_method_stub(
            "Publish",
            purerpc.RPCSignature(
                purerpc.Cardinality.UNARY_UNARY,
                broker__pb2.PublishRequest,
                broker__pb2.PublishResponse,
            )
        )
        self.Subscribe = self._client.get_method_stub(
            "Subscribe",
            purerpc.RPCSignature(
                purerpc.Cardinality.UNARY_STREAM,
                broker__pb2.SubscribeRequest,
                broker__pb2.MessageResponse,
            )
        )
        self.Fetch = self._client.get_method_stub(
            "Fetch",
            purerpc.RPCSignature(
                purerpc.Cardinality.UNARY_UNARY,
                broker__pb2.FetchRequest,
                broker__pb2.MessageResponse,
            )
        )
        self.PublishBatch = self._client.get_method_stub(
            "PublishBatch",
            purerpc.RPCSignature(
                purerpc.Cardinality.UNARY_UNARY,
                broker__pb2.PublishBatchRequest,
                broker__pb2.PublishBatchResponse,
            )
        )
        self.PublishStream = self._client.get_method_stub(
            "PublishStream",
            purerpc.RPCSignature(
                purerpc.Cardinality.STREAM_STREAM,
                broker__pb2.PublishStreamRequest,
                broker__pb2.PublishStreamResponse,
            )
        )
        self.SubscribeBatch = self._client.get_method_stub(
            "SubscribeBatch",
            purerpc.RPCSignature(
                purerpc.Cardinality.UNARY_STREAM,
                broker__pb2.SubscribeRequest,
                broker__pb2.MessageBatch,
            )
        )
        self.FetchRange = self._client.get_method_stub(
            "FetchRange",
            purerpc.RPCSignature(
                purerpc.Cardinality.UNARY_UNARY,
                broker__pb2.FetchRangeRequest,
                broker__pb2.FetchRangeResponse,
            )
        )


class AdminServicer(purerpc.Servicer):
    async def ListSubjects(self, input_message):
        raise NotImplementedError()

    async def GetSubject(self, input_message):
        raise NotImplementedError()

    async def PurgeSubject(self, input_message):
        raise NotImplementedError()

    async def DeleteSubject(self, input_message):
        raise NotImplementedError()

    @property
    def service(self) -> purerpc.Service:
        service_obj = purerpc.Service(
            "broker.Admin"
        )
        service_obj.add_method(
            "ListSubjects",
            self.ListSubjects,
            purerpc.RPCSignature(
                purerpc.Cardinality.UNARY_UNARY,
                broker__pb2.ListSubjectsRequest,
                broker__pb2.ListSubjectsResponse,
            )
        )
        service_obj.add_method(
            "GetSubject",
            self.GetSubject,
            purerpc.RPCSignature(
                purerpc.Cardinality.UNARY_UNARY,
                broker__pb2.GetSubjectRequest,
                broker__pb2.SubjectInfo,
            )
        )
        service_obj.add_method(
            "PurgeSubject",
            self.PurgeSubject,
            purerpc.RPCSignature(
                purerpc.Cardinality.UNARY_UNARY,
                broker__pb2.PurgeSubjectRequest,
                broker__pb2.SubjectInfo,
            )
        )
        service_obj.add_method(
            "DeleteSubject",
            self.DeleteSubject,
            purerpc.RPCSignature(
                purerpc.Cardinality.UNARY_UNARY,
                broker__pb2.DeleteSubjectRequest,
                broker__pb2.SubjectInfo,
            )
        )
        return service_obj


class AdminStub:
    def __init__(self, channel):
        self._client = purerpc.Client(
            "broker.Admin",
            channel
        )
        self.ListSubjects = self._client.get_method_stub(
            "ListSubjects",
            purerpc.RPCSignature(
                purerpc.Cardinality.UNARY_UNARY,
                broker__pb2.ListSubjectsRequest,
                broker__pb2.ListSubjectsResponse,
            )
        )
        self.GetSubject = self._client.get_method_stub(
            "GetSubject",
            purerpc.RPCSignature(
                purerpc.Cardinality.UNARY_UNARY,
                broker__pb2.GetSubjectRequest,
                broker__pb2.SubjectInfo,
            )
        )
        self.PurgeSubject = self._client.get_method_stub(
            "PurgeSubject",
            purerpc.RPCSignature(
                purerpc.Cardinality.UNARY_UNARY,
                broker__pb2.PurgeSubjectRequest,
                broker__pb2.SubjectInfo,
            )
        )
        self.DeleteSubject = self._client.get_method_stub(
            "DeleteSubject",
            purerpc.RPCSignature(
                purerpc.Cardinality.UNARY_UNARY,
                broker__pb2.DeleteSubjectRequest,
                broker__pb2.SubjectInfo,
            )
        )