"""Generates the Python stubs and the descriptor image from the contract; `--check` only tells if they are current."""

from __future__ import annotations

import argparse
import filecmp
import importlib
import subprocess
import sys
import tempfile
from importlib import resources
from pathlib import Path
from typing import Any, cast

ROOT = Path(__file__).resolve().parent.parent
CONTRACT = sorted(path.relative_to(ROOT / "protos") for path in (ROOT / "protos").glob("parley/v1/*.proto"))
OURS = Path("clients/python")
IMAGE = Path("build/contract.binpb")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 when a stub is not current")
    parser.add_argument("--image", type=Path, help="only write the contract's descriptor image to this file")
    arguments = parser.parse_args()
    if arguments.image is not None:
        with tempfile.TemporaryDirectory() as folder:
            write_image(arguments.image, dump_validate_descriptor(Path(folder)))
        return 0
    if arguments.check:
        return check()
    generate(ROOT / OURS)
    return 0


def check() -> int:
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder))
        fresh = {path.relative_to(folder) for path in Path(folder).rglob("*.py*")}
        differing = sorted(str(path) for path in fresh if not same(Path(folder) / path, ROOT / OURS / path))
    for path in differing:
        sys.stderr.write(f"{OURS / path} is not what the contract generates: run `make protos`\n")
    return 1 if differing else 0


def same(one: Path, other: Path) -> bool:
    return other.exists() and filecmp.cmp(one, other, shallow=False)


def generate(out: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        validate = dump_validate_descriptor(Path(folder))
        stubs = (f"--python_out={out}", f"--mypy_out={out}")
        protoc(f"--descriptor_set_in={validate}", *stubs, "buf/validate/validate.proto")
        protoc(
            *includes(validate),
            *stubs,
            *map(str, CONTRACT),
        )
        services = [str(path) for path in CONTRACT if "\nservice " in (ROOT / "protos" / path).read_text()]
        protoc(*includes(validate), f"--grpc_python_out={out}", f"--mypy_grpc_out=only_async:{out}", *services)


def write_image(image: Path, validate: Path) -> None:
    image.parent.mkdir(parents=True, exist_ok=True)
    protoc(
        *includes(validate),
        "--include_imports",
        "--include_source_info",
        f"--descriptor_set_out={image}",
        *map(str, CONTRACT),
    )


def includes(validate: Path) -> list[str]:
    # googleapis-common-protos ships its .proto files beside its modules.
    common = Path(cast(str, importlib.import_module("google.type.money_pb2").__file__)).parents[2]
    wellknown = resources.files("grpc_tools") / "_proto"
    return [f"-I{ROOT / 'protos'}", f"-I{common}", f"-I{wellknown}", f"--descriptor_set_in={validate}"]


def dump_validate_descriptor(folder: Path) -> Path:
    """protovalidate's wheel holds validate.proto as a descriptor only: protoc reads it in that form."""
    from google.protobuf import descriptor_pb2, duration_pb2, field_mask_pb2, timestamp_pb2

    generated = cast(Any, importlib.import_module("protovalidate._gen.buf.validate.validate_pb"))
    files = descriptor_pb2.FileDescriptorSet()
    for module in (descriptor_pb2, duration_pb2, field_mask_pb2, timestamp_pb2):
        files.file.add().ParseFromString(cast(bytes, module.DESCRIPTOR.serialized_pb))
    files.file.add().ParseFromString(generated._DESC.proto.to_binary())
    path = folder / "validate.binpb"
    path.write_bytes(files.SerializeToString())
    return path


def protoc(*arguments: str) -> None:
    bin_folder = Path(sys.executable).parent
    plugins = [f"--plugin=protoc-gen-{name}={bin_folder / f'protoc-gen-{name}'}" for name in ("mypy", "mypy_grpc")]
    command = [sys.executable, "-m", "grpc_tools.protoc", *plugins, *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)


if __name__ == "__main__":
    sys.exit(main())
