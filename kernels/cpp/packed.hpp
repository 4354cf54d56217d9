// Float memory of the extension: aligned, with room to read past the end.
#pragma once

#include <cstdint>
#include <cstring>
#include <memory>
#include <new>

#include "nets.hpp"

namespace halfbyte {

class Floats {
  public:
    explicit Floats(int64_t count = 0)
        : data_(static_cast<float*>(::operator new(static_cast<size_t>(4 * (count + 2 * kStep)),
                                                   std::align_val_t(kAlign)))) {}
    float* get() const { return data_.get(); }

  private:
    struct Free {
        void operator()(float* p) const { ::operator delete(p, std::align_val_t(kAlign)); }
    };
    std::unique_ptr<float, Free> data_;
};

}  // namespace halfbyte
