"""Our declarations of XLA's foreign-function interface are those of its headers."""

import shutil
import subprocess
from pathlib import Path

import jax
import pytest

# Structures as we declare them and as XLA does, and which of their fields are ours.
STRUCTURES = {
    ("Extension", "Extension_Base"): "struct_size type next",
    ("Version", "Api_Version"): (
        "struct_size extensions:extension_start major:major_version minor:minor_version"
    ),
    ("Metadata", "Metadata"): "struct_size api_version traits",
    ("MetadataExtension", "Metadata_Extension"): "base:extension_base metadata",
    ("ErrorCreateArgs", "Error_Create_Args"): (
        "struct_size extensions:extension_start message code:errc"
    ),
    ("ErrorDestroyArgs", "Error_Destroy_Args"): (
        "struct_size extensions:extension_start error"
    ),
    ("ScheduleArgs", "ThreadPool_Schedule_Args"): (
        "struct_size extensions:extension_start context:ctx task data"
    ),
    ("NumThreadsArgs", "ThreadPool_NumThreads_Args"): (
        "struct_size extensions:extension_start context:ctx num_threads"
    ),
    ("Api", "Api"): (
        "struct_size extensions:extension_start api_version internal:internal_api "
        "error_create:XLA_FFI_Error_Create error_destroy:XLA_FFI_Error_Destroy "
        "schedule:XLA_FFI_ThreadPool_Schedule "
        "num_threads:XLA_FFI_ThreadPool_NumThreads"
    ),
    ("Buffer", "Buffer"): (
        "struct_size extensions:extension_start dtype data rank dims"
    ),
    ("Array", "Array"): "dtype size data",
    ("ByteSpan", "ByteSpan"): "data:ptr size:len",
    ("Values", "Args"): (
        "struct_size extensions:extension_start size types values:args"
    ),
    ("Values", "Rets"): (
        "struct_size extensions:extension_start size types values:rets"
    ),
    ("Attributes", "Attrs"): (
        "struct_size extensions:extension_start size types names values:attrs"
    ),
    ("CallFrame", "CallFrame"): (
        "struct_size extensions:extension_start api context:ctx stage args rets attrs"
    ),
}
# To these XLA may append fields; the others are parts of structures, or ours to fill.
GROWING = ("Metadata", "Api", "CallFrame")
CONSTANTS = {
    "kMetadataExtension": "Extension_Metadata",
    "kInvalidArgument": "Error_Code_INVALID_ARGUMENT",
    "kExecute": "ExecutionStage_EXECUTE",
    "11": "DataType_F32",  # as handlers.h has it
    "kMajor": "API_MAJOR",
}


def declarations():
    lines = ["#include <cstddef>", '#include "xla_ffi.h"']
    lines += ['#include "xla/ffi/api/c_api.h"', "using namespace xla_ffi;"]
    for (ours, theirs), fields in STRUCTURES.items():
        theirs = f"XLA_FFI_{theirs}"
        compare = "<=" if ours in GROWING else "=="
        lines.append(f"static_assert(sizeof({ours}) {compare} sizeof({theirs}));")
        for field in fields.split():
            a, _, b = field.partition(":")
            a, b = f"{ours}, {a}", f"{theirs}, {b or a}"
            lines.append(f"static_assert(offsetof({a}) == offsetof({b}));")
            a, b = (f"sizeof({x.replace(', ', '::')})" for x in (a, b))
            lines.append(f"static_assert({a} == {b});")
    for ours, theirs in CONSTANTS.items():
        lines.append(f"static_assert({ours} == static_cast<int>(XLA_FFI_{theirs}));")
    return "\n".join(lines)


def test_declarations_are_those_of_xla(tmp_path):
    compiler = shutil.which("c++") or shutil.which("g++")
    headers = Path(jax.ffi.include_dir())
    sources = Path(__file__).parents[2] / "l2o" / "kernels" / "cpp"
    if compiler is None:
        pytest.skip("there is no C++ compiler")
    if not (headers / "xla" / "ffi" / "api" / "c_api.h").exists():
        pytest.skip("jaxlib came without its headers")
    path = tmp_path / "declarations.cc"
    path.write_text(declarations())
    includes = [f"-I{headers}", f"-I{sources}"]
    done = subprocess.run(
        [compiler, "-std=c++17", "-fsyntax-only", *includes, str(path)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
