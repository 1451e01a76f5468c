"""The descriptor pool of the generated messages: private, see protos/generate.py."""

from google.protobuf.descriptor_pool import DescriptorPool

POOL = DescriptorPool()
