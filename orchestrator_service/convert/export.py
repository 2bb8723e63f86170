"""Parts of a dataset to the contract's stream."""

from __future__ import annotations

from parley.v1 import orchestrator_pb2

from orchestrator_service.exports.dataset import Footer, Header, Summary


def part_message(part: Header | bytes | Footer | Summary) -> orchestrator_pb2.ExportDatasetResponse:
    match part:
        case Header(file_name=name, media_type=media_type):
            header = orchestrator_pb2.ExportFileHeader(file_name=name, media_type=media_type)
            return orchestrator_pb2.ExportDatasetResponse(header=header)
        case bytes():
            return orchestrator_pb2.ExportDatasetResponse(data=part)
        case Footer(sha256=sha256, size_bytes=size, rows=rows):
            footer = orchestrator_pb2.ExportFileFooter(sha256=sha256, size_bytes=size, rows=rows)
            return orchestrator_pb2.ExportDatasetResponse(footer=footer)
        case Summary(rows=rows, left_out=left_out):
            summary = orchestrator_pb2.ExportSummary(rows=rows, left_out=left_out)
            return orchestrator_pb2.ExportDatasetResponse(summary=summary)
