#include <nanobind/nanobind.h>

#include "arrays.hpp"
#include "dispatch.hpp"
#include "pool.hpp"

NB_MODULE(_cpu, m) {
    m.def("isa", [] { return halfbyte::kernels().name; });
    m.def("set_threads", [](int count) {
        const nanobind::gil_scoped_release release;
        halfbyte::set_thread_count(count);
    });
    m.def("fma_loop", [](int64_t rounds) { return halfbyte::kernels().fma_loop(rounds); });
    m.def("threads", &halfbyte::thread_count);
    halfbyte::bind_linear(m);
    halfbyte::bind_codebooks(m);
    halfbyte::bind_encode(m);
    halfbyte::bind_nn(m);
    halfbyte::bind_conv(m);
    halfbyte::bind_product(m);
    halfbyte::bind_tensor(m);
    halfbyte::bind_select(m);
    halfbyte::bind_integers(m);
    halfbyte::bind_solve(m);
}
