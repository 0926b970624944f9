// The part of XLA's foreign-function ABI that the kernels use.
//
// Declared here, so that building needs neither JAX nor its headers. A version of the ABI
// is supported for a year or more after the next, and refused afterwards: then plain JAX
// is used. tests/kernels/test_declarations.py holds these declarations against the
// headers of the installed jaxlib.
#pragma once

#include <cstddef>
#include <cstdint>

namespace xla_ffi {

struct Extension {
  size_t struct_size;
  int32_t type;
  Extension* next;
};
constexpr int32_t kMetadataExtension = 1;

struct Version {
  size_t struct_size;
  Extension* extensions;
  int32_t major;
  int32_t minor;
};

constexpr int32_t kMajor = 0, kMinor = 3;  // what is declared here

struct Metadata {
  size_t struct_size;
  Version api_version;
  uint32_t traits;
};

struct MetadataExtension {
  Extension base;
  Metadata* metadata;
};

struct Error;
struct Context;

struct ErrorCreateArgs {
  size_t struct_size;
  Extension* extensions;
  const char* message;
  int32_t code;
};
constexpr int32_t kInvalidArgument = 3;

struct ErrorDestroyArgs {
  size_t struct_size;
  Extension* extensions;
  Error* error;
};

struct ScheduleArgs {
  size_t struct_size;
  Extension* extensions;
  Context* context;
  void (*task)(void*);
  void* data;
};

struct NumThreadsArgs {
  size_t struct_size;
  Extension* extensions;
  Context* context;
  int64_t* num_threads;
};

struct Api {
  size_t struct_size;
  Extension* extensions;
  Version api_version;
  const void* internal;
  Error* (*error_create)(ErrorCreateArgs*);
  void* error_message;
  void (*error_destroy)(ErrorDestroyArgs*);
  void* unused[8];  // registration, streams, state, device memory
  Error* (*schedule)(ScheduleArgs*);
  Error* (*num_threads)(NumThreadsArgs*);
};

struct Buffer {
  size_t struct_size;
  Extension* extensions;
  int32_t dtype;
  void* data;
  int64_t rank;
  int64_t* dims;
};

struct Array {
  int32_t dtype;
  size_t size;
  void* data;
};

struct ByteSpan {
  const char* data;
  size_t size;
};

struct Values {
  size_t struct_size;
  Extension* extensions;
  int64_t size;
  int32_t* types;
  void** values;
};

struct Attributes {
  size_t struct_size;
  Extension* extensions;
  int64_t size;
  int32_t* types;
  ByteSpan** names;  // sorted
  void** values;
};

struct CallFrame {
  size_t struct_size;
  Extension* extensions;
  const Api* api;
  Context* context;
  int32_t stage;
  Values args;
  Values rets;
  Attributes attrs;
};
constexpr int32_t kExecute = 3;

}  // namespace xla_ffi
