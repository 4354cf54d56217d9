#include <algorithm>
#include <string>
#include <vector>

#include "arrays.hpp"
#include "dispatch.hpp"
#include "parallel_rows.hpp"

namespace halfbyte {
namespace {

constexpr int64_t kParallelValues = 1 << 15;  // below this a second thread costs more than it saves
constexpr int64_t kCacheBytes = 1 << 20;      // rows of x that a task goes over again and again
constexpr int64_t kTasksPerThread = 4;

// Arrays of one call; kept until the kernels have run.
struct LinearCall {
    std::vector<LinearOutput> outputs;
    std::vector<Array> held;
    LinearJob job;
};

void add_output(LinearCall& call, const Weight& weight, nb::handle bias, nb::handle out) {
    const WeightView& w = weight.view();
    LinearOutput output;
    output.weight = w;
    if (w.columns != call.job.columns) {
        reject("linear", "weight has " + std::to_string(w.columns) + " columns, x has " +
                             std::to_string(call.job.columns) + "; they must agree");
    }
    if (!bias.is_none()) {
        call.held.emplace_back("linear", "bias", bias, "f");
        require_size("linear", "bias", call.held.back(), w.rows);
        output.bias = call.held.back().data<const float>();
    }
    if (!out.is_none()) {
        call.held.emplace_back("linear", "out", out, "f", true);
        require_size("linear", "out", call.held.back(), call.job.m * w.rows);
        output.y = call.held.back().data<float>();
    }
    output.stride = w.rows;
    call.outputs.push_back(output);
}

void choose_tiles(LinearJob& job, int64_t total_rows) {
    const int64_t multiple = kernels().linear_rows;
    if (job.m == 1) {
        const int64_t tasks = kTasksPerThread * thread_count();
        job.row_tile = round_up((total_rows + tasks - 1) / tasks, multiple);
        job.m_tile = 1;
        return;
    }
    job.row_tile = multiple;
    const int64_t fitting = std::max<int64_t>(48, kCacheBytes / (4 * job.padded) / 12 * 12);
    // Few weight rows on many threads: cut x into more pieces.
    const int64_t row_tiles = (total_rows + multiple - 1) / multiple;
    const int64_t pieces = (kTasksPerThread * thread_count() + row_tiles - 1) / row_tiles;
    const int64_t piece = round_up((job.m + pieces - 1) / pieces, 12);
    job.m_tile = std::min({job.m, fitting, std::max<int64_t>(24, piece)});
}

void allocate_rows(LinearJob& job, bool floats, bool codes) {
    const int64_t blocks = job.padded / kStep;
    if (floats) {
        job.packed = static_cast<float*>(thread_scratch(Scratch::packed, 4 * job.m * job.padded));
    }
    if (!codes) return;
    const int64_t bytes = job.m * job.padded, pairs = job.m * blocks;
    auto* memory = static_cast<uint8_t*>(thread_scratch(Scratch::codes, bytes + 16 * pairs));
    job.codes = reinterpret_cast<int8_t*>(memory);
    job.code_scales = reinterpret_cast<float*>(memory + bytes);
    job.code_offsets = job.code_scales + pairs;
    job.code_sums = reinterpret_cast<int32_t*>(job.code_offsets + pairs);
    job.code_pairs = job.code_sums + pairs;
}

void run_linear(LinearCall& call) {
    LinearJob& job = call.job;
    job.outputs = call.outputs.data();
    job.output_count = static_cast<int64_t>(call.outputs.size());
    bool floats = false, codes = false;
    int64_t total_rows = 0;
    for (const LinearOutput& o : call.outputs) {
        (job.int8 && meets_int8(o.weight) ? codes : floats) = true;
        total_rows += o.weight.rows;
    }
    job.padded = round_up(job.columns, kStep);
    allocate_rows(job, floats, codes);
    choose_tiles(job, job.swiglu ? total_rows / 2 : total_rows);
    const KernelTable& table = kernels();
    parallel_rows(job.m, job.columns, kParallelValues,
                  [&](int64_t from, int64_t to) { table.pack_rows(job, from, to); });
    const int64_t m_tiles = (job.m + job.m_tile - 1) / job.m_tile;
    int64_t tasks = 0;
    for (const LinearOutput& o : call.outputs) {
        tasks += m_tiles * ((o.weight.rows + job.row_tile - 1) / job.row_tile);
        if (job.swiglu) break;
    }
    parallel(tasks, [&](int64_t task) { table.linear_task(job, task); });
}

// outs: one array per weight, or with swiglu one array for both.
void linear(nb::object x, nb::tuple weights, nb::tuple biases, nb::tuple outs, bool int8,
            bool swiglu) {
    LinearCall call;
    call.held.reserve(1 + 2 * weights.size());
    call.held.emplace_back("linear", "x", x, "f");
    const Array& input = call.held.front();
    if (input.dimensions() < 1) reject("linear", "x is 0-d, required [..., columns]");
    call.job.x = input.data<const float>();
    call.job.columns = input.shape(-1);
    if (call.job.columns <= 0) reject("linear", "x has no columns, required at least one");
    call.job.m = input.size() / call.job.columns;
    call.job.int8 = int8;
    call.job.swiglu = swiglu;
    for (size_t i = 0; i < weights.size(); ++i) {
        const Weight& weight = nb::cast<const Weight&>(weights[i]);
        add_output(call, weight, biases[i], swiglu && i == 1 ? nb::handle(nb::none()) : outs[i]);
    }
    if (swiglu &&
        (call.outputs.size() != 2 || call.outputs[0].weight.rows != call.outputs[1].weight.rows)) {
        reject("linear", "swiglu needs exactly two weights (gate, up) with equal rows");
    }
    if (call.job.m == 0) return;
    const nb::gil_scoped_release release;
    run_linear(call);
}

void decode(const Weight& weight, int64_t row0, int64_t row1, nb::object out) {
    const WeightView& w = weight.view();
    if (row0 < 0 || row1 < row0 || row1 > w.rows) {
        reject("decode", "rows [" + std::to_string(row0) + ", " + std::to_string(row1) +
                             ") of a weight with " + std::to_string(w.rows) + " rows");
    }
    const Array target("decode", "out", out, "f", true);
    require_size("decode", "out", target, (row1 - row0) * w.columns);
    const nb::gil_scoped_release release;
    parallel_rows(row1 - row0, w.columns, 2 * kParallelValues, [&](int64_t from, int64_t to) {
        kernels().decode(w, row0 + from, row0 + to, target.data<float>() + from * w.columns);
    });
}

void gather_rows(const Weight& weight, nb::object ids, nb::object out) {
    const WeightView& w = weight.view();
    const Array index("gather_rows", "ids", ids, "ql");
    const Array target("gather_rows", "out", out, "f", true);
    require_size("gather_rows", "out", target, index.size() * w.columns);
    const auto* rows = index.data<const int64_t>();
    for (int64_t i = 0; i < index.size(); ++i) {
        if (rows[i] < 0 || rows[i] >= w.rows) {
            reject("gather_rows", "id " + std::to_string(rows[i]) + ", required 0 to " +
                                      std::to_string(w.rows - 1) + "; check the ids");
        }
    }
    const nb::gil_scoped_release release;
    parallel_rows(index.size(), w.columns, 2 * kParallelValues, [&](int64_t from, int64_t to) {
        for (int64_t i = from; i < to; ++i) {
            kernels().decode(w, rows[i], rows[i] + 1, target.data<float>() + i * w.columns);
        }
    });
}

}  // namespace

void bind_linear(nb::module_& m) {
    nb::class_<Weight>(m, "Weight")
        .def(nb::init<int, nb::object, int64_t, int64_t, int, int64_t, nb::object, int, nb::object,
                      int, nb::object>(),
             nb::arg("kind"), nb::arg("data"), nb::arg("rows"), nb::arg("columns"), nb::arg("bits"),
             nb::arg("group_size"), nb::arg("scales").none(), nb::arg("scale_type"),
             nb::arg("zero_points").none(), nb::arg("zero_type"), nb::arg("g_idx").none());
    m.def("linear", &linear);
    m.def("decode", &decode);
    m.def("gather_rows", &gather_rows);
}

}  // namespace halfbyte
