// Large pages for results that are written for the first time.
#pragma once

#include <cstdint>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace {

// Asks for large pages where a result of so many bytes will be written.
//
// XLA returns what it needed during a step to the system, so that all of it is new in
// the next one: with small pages, faults make an update a quarter dearer. Advice is
// for whole large pages, those at the ends too, and changes nothing for what else
// lies there.
inline void advise_large_pages(void* data, int64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr uintptr_t kPage = 1 << 21;
  if (bytes < static_cast<int64_t>(kPage / 2)) return;
  const uintptr_t from = reinterpret_cast<uintptr_t>(data);
  const uintptr_t start = from & -kPage, end = (from + bytes + kPage - 1) & -kPage;
  // Where it is refused, nothing is lost.
  (void)madvise(reinterpret_cast<void*>(start), end - start, MADV_HUGEPAGE);
#else
  (void)data, (void)bytes;
#endif
}

}  // namespace
