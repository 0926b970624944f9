// What XLA calls: operands and results of a call, and the loop over its tensors.
#pragma once

#include <new>
#include <vector>

#include "backward.h"
#include "update.h"
#include "pages.h"
#include "statistics.h"

namespace {

// A call: tensors that share the kind of rule, with `batch` entries each.
struct Call {
  Settings settings;
  int flags;
  int64_t batch, tensors;
  std::vector<Tensor> entries;
  std::vector<Cotangents> cotangents;  // of the entries, in reverse mode
};

constexpr int64_t kWhole = 2 * kChunk;  // elements that one thread updates alone
constexpr int64_t kTask = 16384;        // elements that are worth another thread
constexpr int64_t kKept = 1 << 18;      // memory for larger ones is given back

template <int H>
void update(const Call& call, const Threads& threads) {
  static thread_local Scratch<H> scratch;
  std::vector<int64_t> ends;  // tasks of small tensors
  std::vector<const Tensor*> small;
  int64_t elements = 0;
  for (const Tensor& t : call.entries) {
    if (t.size() > kWhole) {
      Update<H>(t, call.settings, call.flags, scratch).run(threads);
      if (t.blocks() * (t.na * t.c + t.width()) > kKept) scratch = {};
      continue;
    }
    small.push_back(&t);
    elements += t.size();
    if (elements >= kTask) {
      ends.push_back(small.size());
      elements = 0;
    }
  }
  if (elements) ends.push_back(small.size());
  threads.each(ends.size(), [&](int64_t task) {
    static thread_local Scratch<H> own;
    for (int64_t i = task ? ends[task - 1] : 0; i < ends[task]; ++i)
      Update<H>(*small[i], call.settings, call.flags, own).run(Threads());
  });
}

int64_t size(const xla_ffi::Values& values, int64_t i) {
  const auto* buffer = static_cast<const xla_ffi::Buffer*>(values.values[i]);
  int64_t n = 1;
  for (int64_t d = 0; d < buffer->rank; ++d) n *= buffer->dims[d];
  return n;
}

// An operand of n floats; none if it is something else.
float* floats(const xla_ffi::Values& values, int64_t i, int64_t n) {
  const auto* buffer = static_cast<const xla_ffi::Buffer*>(values.values[i]);
  constexpr int32_t kFloat = 11;
  if (buffer->dtype != kFloat || size(values, i) != n) return nullptr;
  return static_cast<float*>(buffer->data);
}

// Reads the operands in the order that l2o/kernels/_native.py gives them.
class Reader {
 public:
  explicit Reader(const xla_ffi::CallFrame* frame) : frame_(frame) {}

  const char* read(Call* call, int* hidden, bool reverse) {
    const auto& attrs = frame_->attrs;
    if (attrs.size != 2) return "expected two attributes";
    const auto* settings = static_cast<const xla_ffi::Array*>(attrs.values[0]);
    const auto* spec = static_cast<const xla_ffi::Array*>(attrs.values[1]);
    if (settings->size * sizeof(float) != sizeof(Settings)) return "wrong settings";
    std::memcpy(&call->settings, settings->data, sizeof(Settings));
    const int64_t* s = static_cast<const int64_t*>(spec->data);
    if (spec->size < 5 || spec->size != 5 + 8 * static_cast<size_t>(s[2]))
      return "wrong spec: install l2o again";
    *hidden = s[0];
    call->flags = s[1];
    call->tensors = s[2];
    const int64_t networks = s[3], scales = s[4];  // one, or one per tensor
    s += 5;
    const int64_t h = *hidden, rows = call->flags & kClipped ? kPlanes : kPlanes - 2;
    const int64_t weights = rows * h + h + h * h + h + 2 * h + 2;
    call->batch = size(frame_->args, 0) / 7;
    const float* decays = input(call->batch * 7);
    const float* w = input(call->batch * networks * weights);
    const float* scale = input(call->batch * scales * 2);
    call->entries.clear();
    call->cotangents.clear();
    float *d_decays = nullptr, *d_weights = nullptr, *d_scales = nullptr;
    if (reverse) {
      d_decays = zeros(call->batch * 7);
      d_weights = zeros(call->batch * networks * weights);
      d_scales = zeros(call->batch * scales * 2);
    }
    call->entries.reserve(call->batch * call->tensors);
    for (int64_t i = 0; i < call->tensors; ++i, s += 8) {
      Tensor t{};
      t.factored = s[0];
      t.row_is_x = s[1];
      t.a = s[3], t.na = s[4], t.b = s[5], t.nb = s[6], t.c = s[7];
      // Blocks that are normalised apart are tensors of their own.
      const int64_t parts = s[2] ? t.a : 1;
      t.a /= parts;
      const int64_t n = t.size(), x = t.a * t.na * t.b * t.c, y = t.a * t.b * t.nb * t.c;
      const int64_t row = !t.factored ? n : t.row_is_x ? x : y;
      const int64_t col = !t.factored ? 0 : t.row_is_x ? y : x;
      const int64_t all = call->batch * parts;
      t.g = input(all * n);
      t.p = input(all * n);
      for (auto& m : t.m) m = input(all * n);
      t.rms = input(all * n);
      for (auto& r : t.row) r = input(all * row);
      for (auto& c : t.col) c = input(all * col);
      Cotangents c{};
      if (reverse) {
        if (t.c > 1) return "no derivative for this layout";
        c.u = input(all * n);
        for (auto& m : c.m) m = input(all * n);
        c.rms = input(all * n);
        for (auto& r : c.row) r = input(all * row);
        for (auto& x : c.col) x = input(all * col);
        c.out_g = output(all * n);
        c.out_p = output(all * n);
        for (auto& m : c.out_m) m = output(all * n);
        c.out_rms = output(all * n);
        for (auto& r : c.out_row) r = output(all * row);
        for (auto& x : c.out_col) x = output(all * col);
      } else {
        t.u = output(all * n, t.g);
        for (int d = 0; d < 3; ++d) t.new_m[d] = output(all * n, t.m[d]);
        t.new_rms = output(all * n, t.rms);
        for (auto& r : t.new_row) r = output(all * row);
        for (auto& x : t.new_col) x = output(all * col);
      }
      if (bad_) return "an operand has the wrong type or size";
      for (int64_t k = 0; k < all; ++k) {
        const int64_t b = k / parts;
        Tensor e = t;
        const int64_t network = b * networks + (networks > 1 ? i : 0);
        const int64_t factor = b * scales + (scales > 1 ? i : 0);
        e.decays = decays + b * 7;
        e.weights = w + network * weights;
        e.scales = scale + factor * 2;
        for (auto** x : {&e.g, &e.p, &e.rms, &e.m[0], &e.m[1], &e.m[2]}) *x += k * n;
        for (int d = 0; d < 3; ++d) {
          e.row[d] += k * row;
          if (t.factored) e.col[d] += k * col;
        }
        if (!reverse) {
          for (auto** x : {&e.u, &e.new_rms, &e.new_m[0], &e.new_m[1], &e.new_m[2]})
            *x += k * n;
          for (int d = 0; d < 3; ++d) {
            e.new_row[d] += k * row;
            if (t.factored) e.new_col[d] += k * col;
          }
        } else {
          Cotangents f = c;
          f.decays = d_decays + b * 7;
          f.weights = d_weights + network * weights;
          f.scales = d_scales + factor * 2;
          for (auto** x : {&f.u, &f.rms, &f.m[0], &f.m[1], &f.m[2]}) *x += k * n;
          for (auto** x : {&f.out_g, &f.out_p, &f.out_rms, &f.out_m[0], &f.out_m[1],
                           &f.out_m[2]})
            *x += k * n;
          for (int d = 0; d < 3; ++d) {
            f.row[d] += k * row, f.out_row[d] += k * row;
            if (t.factored) f.col[d] += k * col, f.out_col[d] += k * col;
          }
          call->cotangents.push_back(f);
        }
        call->entries.push_back(e);
      }
    }
    return nullptr;
  }

 private:
  float* next(const xla_ffi::Values& values, int64_t& i, int64_t n) {
    if (n == 0) return nullptr;  // a vector has no columns
    float* data = i < values.size ? floats(values, i, n) : nullptr;
    ++i;
    if (!data) bad_ = true;
    return data;
  }
  const float* input(int64_t n) { return next(frame_->args, arg_, n); }
  float* output(int64_t n) { return next(frame_->rets, ret_, n); }
  // One that may be in the place of an operand, which then has its pages.
  float* output(int64_t n, const float* operand) {
    float* x = output(n);
    if (x != operand) advise_large_pages(x, n * sizeof(float));
    return x;
  }
  float* zeros(int64_t n) {
    float* x = output(n);
    if (x) std::fill_n(x, n, 0.0f);
    return x;
  }

  const xla_ffi::CallFrame* frame_;
  int64_t arg_ = 0, ret_ = 0;
  bool bad_ = false;
};

template <int H>
void differentiate(const Call& call, const Threads& threads) {
  // Tensors of one batch entry add to the same cotangents.
  std::vector<std::vector<int64_t>> entries(call.batch);
  for (size_t i = 0; i < call.entries.size(); ++i)
    entries[(call.cotangents[i].decays - call.cotangents[0].decays) / 7].push_back(i);
  threads.each(call.batch, [&](int64_t b) {
    static thread_local ReverseScratch<H> scratch;
    for (int64_t i : entries[b]) {
      const Tensor& t = call.entries[i];
      Backward<H>(t, call.cotangents[i], call.settings, call.flags, scratch).run();
      if (t.size() > kKept) scratch = {};
    }
  });
}

xla_ffi::Error* failure(const xla_ffi::CallFrame* frame, const char* message) {
  xla_ffi::ErrorCreateArgs args{sizeof args, nullptr, message,
                                xla_ffi::kInvalidArgument};
  return frame->api->error_create(&args);
}

// Answers what is asked before a call is run; whether that was all.
bool answered(xla_ffi::CallFrame* frame) {
  if (frame->extensions && frame->extensions->type == xla_ffi::kMetadataExtension) {
    auto* metadata =
        reinterpret_cast<xla_ffi::MetadataExtension*>(frame->extensions)->metadata;
    metadata->api_version.major = xla_ffi::kMajor;
    metadata->api_version.minor = xla_ffi::kMinor;
    metadata->traits = 0;
    return true;
  }
  return frame->stage != xla_ffi::kExecute;
}

template <bool REVERSE>
xla_ffi::Error* handle(xla_ffi::CallFrame* frame) {
  if (answered(frame)) return nullptr;
  Call call;
  int hidden;
  if (const char* message = Reader(frame).read(&call, &hidden, REVERSE))
    return failure(frame, message);
  const Threads threads(frame);
  const auto run = [&](auto width) {
    constexpr int H = decltype(width)::value;
    if constexpr (!REVERSE) {
      update<H>(call, threads);
    } else if constexpr (H <= 8) {  // wider ones take long to compile and are rare
      differentiate<H>(call, threads);
    } else {
      return failure(frame, "no derivative for this width");
    }
    return static_cast<xla_ffi::Error*>(nullptr);
  };
  switch (hidden) {
    case 4:
      return run(Count<4>());
    case 8:
      return run(Count<8>());
    case 16:
      return run(Count<16>());
    case 32:
      return run(Count<32>());
  }
  return failure(frame, "no kernel of this width");
}

// Means and variances of all operands: results of shapes (batch, operands).
xla_ffi::Error* statistics(xla_ffi::CallFrame* frame) {
  if (answered(frame)) return nullptr;
  const auto* sizes = static_cast<const xla_ffi::Array*>(frame->attrs.values[0]);
  const int64_t* n = static_cast<const int64_t*>(sizes->data);
  const int64_t count = sizes->size, batch = size(frame->rets, 0) / count;
  float* means = floats(frame->rets, 0, batch * count);
  float* variances = floats(frame->rets, 1, batch * count);
  constexpr int64_t kPiece = 16 * kBlock;
  struct Piece {
    const float* from;
    int64_t size, result;
    Spread spread;
  };
  std::vector<Piece> pieces;
  for (int64_t i = 0; i < count; ++i) {
    const float* x = floats(frame->args, i, batch * n[i]);
    if (!x || !means || !variances)
      return failure(frame, "an operand has the wrong type or size");
    for (int64_t b = 0; b < batch; ++b)
      for (int64_t j = 0; j < n[i]; j += kPiece)
        pieces.push_back({x + b * n[i] + j, std::min(kPiece, n[i] - j), b * count + i, {}});
  }
  const auto work = [&](int64_t i) {
    pieces[i].spread = spread(pieces[i].from, pieces[i].size);
  };
  int64_t elements = 0;
  for (const Piece& piece : pieces) elements += piece.size;
  const Threads threads = elements < kTask ? Threads() : Threads(frame);
  threads.each(pieces.size(), work);
  std::vector<Spread> all(batch * count);
  for (const Piece& piece : pieces) all[piece.result].add(piece.spread);
  for (int64_t i = 0; i < batch * count; ++i) {
    means[i] = static_cast<float>(all[i].mean);
    variances[i] = static_cast<float>(all[i].squares / all[i].count);
  }
  return nullptr;
}

// XLA is not written for exceptions.
template <xla_ffi::Error* (*HANDLER)(xla_ffi::CallFrame*)>
xla_ffi::Error* caught(xla_ffi::CallFrame* frame) {
  try {
    return HANDLER(frame);
  } catch (const std::bad_alloc&) {
    return failure(frame, "out of memory");
  }
}

}  // namespace

#define L2O_EXPORT extern "C" __attribute__((visibility("default")))

L2O_EXPORT xla_ffi::Error* l2o_update(xla_ffi::CallFrame* frame) {
  return caught<handle<false>>(frame);
}

L2O_EXPORT xla_ffi::Error* l2o_update_vjp(xla_ffi::CallFrame* frame) {
  return caught<handle<true>>(frame);
}

L2O_EXPORT xla_ffi::Error* l2o_statistics(xla_ffi::CallFrame* frame) {
  return caught<statistics>(frame);
}

// The best instruction set of this processor: avx512, avx2 or the generic one.
L2O_EXPORT int l2o_instructions() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq")) return 2;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return 1;
#endif
  return 0;
}
