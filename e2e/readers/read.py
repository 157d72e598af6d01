#!/usr/bin/env python3
"""Read a topic with clients that are not the project's own, and print what they make of it.

usage: read.py BOOTSTRAP TOPIC json|connect-json|avro|protobuf COUNT [REGISTRY]

Messages are consumed by kafka-python, each partition from its beginning, until COUNT
were read or 30 seconds have passed. Avro is decoded by fastavro and Protobuf by Google's
runtime, after protoc has compiled the schema, both by the schema that REGISTRY has under
the message's number. One JSON object a line: {"key", "headers", "value"}, and with
connect-json also "schema". Times are RFC 3339 in milliseconds, decimals digits in text.
"""
import datetime
import decimal
import io
import json
import pathlib
import struct
import sys
import tempfile
import urllib.request

from kafka import KafkaConsumer

SCHEMAS = {}


def registered(registry: str, number: int) -> dict:
    """The registry's entry of a schema, asked for once."""
    if number not in SCHEMAS:
        with urllib.request.urlopen(f"{registry}/schemas/ids/{number}", timeout=10) as answer:
            SCHEMAS[number] = json.load(answer)
    return SCHEMAS[number]


def unframed(payload: bytes) -> tuple[int, bytes]:
    """The schema's number and what follows it."""
    zero, number = struct.unpack(">bI", payload[:5])
    assert zero == 0, payload[:5]
    return number, payload[5:]


def plain(value):
    """The value as JSON has it."""
    if isinstance(value, datetime.datetime):
        return value.astimezone(datetime.UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    if isinstance(value, decimal.Decimal):
        return str(value)
    return value


def avro(payload: bytes, registry: str) -> dict:
    """A record by fastavro."""
    import fastavro

    number, data = unframed(payload)
    schema = fastavro.parse_schema(json.loads(registered(registry, number)["schema"]))
    stream = io.BytesIO(data)
    record = fastavro.schemaless_reader(stream, schema, None)
    assert not stream.read(), "bytes are left over"
    return {name: plain(value) for name, value in record.items() if value is not None}


def compiled(text: str):
    """The first message class of a .proto file, compiled by protoc."""
    import grpc_tools
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
    from google.protobuf import timestamp_pb2
    from grpc_tools import protoc

    with tempfile.TemporaryDirectory() as folder:
        (pathlib.Path(folder) / "record.proto").write_text(text)
        known = pathlib.Path(grpc_tools.__file__).parent / "_proto"
        out = pathlib.Path(folder) / "out"
        failed = protoc.main(["protoc", f"-I{folder}", f"-I{known}", f"--descriptor_set_out={out}", "record.proto"])
        assert not failed, "protoc refuses the schema"
        files = descriptor_pb2.FileDescriptorSet.FromString(out.read_bytes())
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(timestamp_pb2.DESCRIPTOR.serialized_pb)
    for file in files.file:
        pool.Add(file)
    name = f"{files.file[0].package}.{files.file[0].message_type[0].name}"
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(name))


CLASSES = {}


def protobuf(payload: bytes, registry: str) -> dict:
    """A record by Google's runtime."""
    number, data = unframed(payload)
    assert data[0] == 0, "the first message type of its file"
    if number not in CLASSES:
        entry = registered(registry, number)
        assert entry["schemaType"] == "PROTOBUF", entry
        CLASSES[number] = compiled(entry["schema"])
    message = CLASSES[number].FromString(data[1:])
    assert not list(message_unknown(message)), "fields that the schema does not have"
    value = {}
    for field, content in message.ListFields():
        value[field.name] = content.ToJsonString() if field.message_type else content
    return value


def message_unknown(message):
    """The fields of a message that its schema does not have."""
    from google.protobuf import unknown_fields

    return unknown_fields.UnknownFieldSet(message)


def main() -> None:
    """Consume and print."""
    bootstrap, topic, form, count = sys.argv[1:5]
    registry = sys.argv[5] if len(sys.argv) > 5 else ""
    consumer = KafkaConsumer(
        topic,
        bootstrap_servers=bootstrap,
        auto_offset_reset="earliest",
        enable_auto_commit=False,
        group_id=None,
        consumer_timeout_ms=30_000,
    )
    left = int(count)
    for message in consumer:
        line = {
            "key": message.key.decode(),
            "headers": [[key, value.decode()] for key, value in message.headers],
        }
        if form == "json":
            line["value"] = json.loads(message.value)
        elif form == "connect-json":
            envelope = json.loads(message.value)
            line |= {"schema": envelope["schema"], "value": envelope["payload"]}
        else:
            line["value"] = {"avro": avro, "protobuf": protobuf}[form](message.value, registry)
        print(json.dumps(line), flush=True)
        left -= 1
        if not left:
            return
    sys.exit(f"{left} messages did not come")


if __name__ == "__main__":
    main()
