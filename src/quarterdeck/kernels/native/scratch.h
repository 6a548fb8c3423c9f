// Memory of one piece of work.
#pragma once

#include <cstdlib>

#include "quarterdeck.h"

namespace quarterdeck {
namespace {

constexpr size_t kAlignment = 64;

inline size_t aligned(size_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

// One allocation, handed out in aligned pieces.
class Scratch {
  public:
    explicit Scratch(size_t bytes) : memory_(static_cast<char*>(std::aligned_alloc(kAlignment, aligned(bytes)))) {}
    ~Scratch() { std::free(memory_); }
    Scratch(const Scratch&) = delete;
    Scratch& operator=(const Scratch&) = delete;
    explicit operator bool() const { return memory_ != nullptr; }
    template <class T>
    T* take(size_t count) {
        T* piece = reinterpret_cast<T*>(memory_ + used_);
        used_ += aligned(count * sizeof(T));
        return piece;
    }

  private:
    char* memory_;
    size_t used_ = 0;
};

}  // namespace
}  // namespace quarterdeck
