#!/usr/bin/env python3
"""Write a container image of one layer as a docker-archive tar on standard output.

usage: image.py NAME:TAG PATH=FILE... -- ENTRYPOINT [ARG...]

Each PATH=FILE puts FILE at PATH in the image, readable by everyone. There is no base
image: a static binary needs none, and none has to be pulled. It runs as user 65532,
named by number so that Kubernetes can see that it is not root. Times and owners are
fixed: the same input gives the same image, byte for byte.
"""
import hashlib
import io
import json
import os
import platform
import sys
import tarfile

ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


def layer_of(files: list[str]) -> bytes:
    """The layer: each file at its path, owned by root."""
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as tar:
        for item in files:
            path, equals, source = item.partition("=")
            if not equals:
                sys.exit(f"image.py: '{item}' is not PATH=FILE")
            info = tarfile.TarInfo(path.lstrip("/"))
            info.size = os.path.getsize(source)
            info.mode = 0o755 if os.access(source, os.X_OK) else 0o644
            with open(source, "rb") as file:
                tar.addfile(info, file)
    return layer.getvalue()


def write_image(reference: str, layer: bytes, entrypoint: list[str], out) -> None:
    """The archive: configuration, layer, and the manifest that names both."""
    config = json.dumps({
        "architecture": ARCHITECTURES[platform.machine()],
        "os": "linux",
        "created": "1970-01-01T00:00:00Z",
        "config": {"Entrypoint": entrypoint, "User": "65532:65532"},
        "rootfs": {"type": "layers", "diff_ids": ["sha256:" + hashlib.sha256(layer).hexdigest()]},
        "history": [{"created": "1970-01-01T00:00:00Z"}],
    }).encode()
    config_name = hashlib.sha256(config).hexdigest() + ".json"
    manifest = json.dumps([{"Config": config_name, "RepoTags": [reference], "Layers": ["layer.tar"]}]).encode()
    with tarfile.open(fileobj=out, mode="w|") as tar:
        for name, data in ((config_name, config), ("layer.tar", layer), ("manifest.json", manifest)):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def main() -> None:
    """Read the arguments and write the image."""
    if len(sys.argv) < 5 or "--" not in sys.argv:
        sys.exit(__doc__)
    split = sys.argv.index("--")
    write_image(sys.argv[1], layer_of(sys.argv[2:split]), sys.argv[split + 1:], sys.stdout.buffer)


main()
