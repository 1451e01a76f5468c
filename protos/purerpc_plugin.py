#!/usr/bin/env python3
"""purerpc's plugin for protoc, made to say that it bears ``optional`` fields: it looks at services only."""

import sys

from google.protobuf.compiler.plugin_pb2 import CodeGeneratorResponse
from purerpc.protoc_plugin.plugin import main

main()
bears_optional = CodeGeneratorResponse(supported_features=CodeGeneratorResponse.FEATURE_PROTO3_OPTIONAL)
sys.stdout.buffer.write(bears_optional.SerializeToString())  # what follows a message of protobuf is merged into it
