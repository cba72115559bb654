// Index maps over millions of documents and samples. Every function has a twin in helpers_twin.py, tested equal.
//
// Arrays that come straight from an .idx file start at an odd multiple of two bytes, so they are read with memcpy,
// which compilers turn into plain loads. No floating-point contraction (-ffp-contract=off): the twin must round alike.

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <vector>

namespace py = pybind11;

namespace {

constexpr int64_t kPrefetchDistance = 32;

template <typename T>
using Input = py::array_t<T, py::array::c_style | py::array::forcecast>;

template <typename T>
using InPlace = py::array_t<T, py::array::c_style>;  // bound with noconvert(): a silent copy would lose the result

template <typename T>
inline T load(const T* base, int64_t index) {
    T value;
    std::memcpy(&value, base + index, sizeof(T));
    return value;
}

// Row i = (position in doc_idx, token offset) of the first token of sample i; consecutive samples share one token.
template <typename Row>
py::array_t<Row> build_sample_idx(const Input<int32_t>& sizes, const Input<int32_t>& doc_idx, int64_t seq_length,
                                  int64_t num_epochs, int64_t tokens_per_epoch) {
    if (seq_length < 1 || num_epochs < 1 || tokens_per_epoch < 1)
        throw std::invalid_argument("seq_length, num_epochs and tokens_per_epoch must be positive");
    const int64_t num_rows = (num_epochs * tokens_per_epoch - 1) / seq_length + 1;
    const int64_t num_docs = doc_idx.size(), num_sizes = sizes.size();
    py::array_t<Row> result({num_rows, static_cast<int64_t>(2)});
    const int32_t* size_of = sizes.data();
    const int32_t* docs = doc_idx.data();
    Row* row = result.mutable_data();
    Row* const end = row + 2 * num_rows;
    py::gil_scoped_release release;
    *row++ = 0;
    *row++ = 0;
    int64_t start = seq_length;  // of the next sample, counted from the first token of the document at hand
    for (int64_t position = 0; row != end; ++position) {
        if (position == num_docs) throw std::out_of_range("doc_idx has fewer tokens than tokens_per_epoch says");
        const int64_t ahead = std::min(position + kPrefetchDistance, num_docs - 1);
        __builtin_prefetch(size_of + load(docs, ahead));
        const int32_t doc = load(docs, position);
        if (doc < 0 || doc >= num_sizes) throw std::out_of_range("doc_idx names a document that sizes lacks");
        const int64_t size = load(size_of, doc);
        // Whether a sample starts in a document is a coin toss that no predictor learns: write always, keep if it does.
        row[0] = static_cast<Row>(position);
        row[1] = static_cast<Row>(start);
        const int64_t starts_here = start < size;
        row += 2 * starts_here;
        start += seq_length & -starts_here;
        while (start < size && row != end) {
            *row++ = static_cast<Row>(position);
            *row++ = static_cast<Row>(start);
            start += seq_length;
        }
        start -= size;
    }
    return result;
}

// Greedy blend: sample t goes to the member with the largest weight * max(t, 1) - used; the first one wins ties.
template <typename Member>
void build_blending_indices(InPlace<Member> dataset_index, InPlace<int64_t> dataset_sample_index,
                            const Input<double>& weights, int64_t num_datasets, int64_t size, bool verbose) {
    if (dataset_index.size() < size || dataset_sample_index.size() < size)
        throw std::invalid_argument("the output arrays are shorter than size");
    if (num_datasets < 1 || weights.size() != num_datasets)
        throw std::invalid_argument("there must be one weight per dataset");
    if (num_datasets - 1 > static_cast<int64_t>(std::numeric_limits<Member>::max()))
        throw std::invalid_argument("the type of dataset_index cannot count that many datasets");
    const std::vector<double> share(weights.data(), weights.data() + num_datasets);
    std::vector<double> used(num_datasets, 0.0), error(num_datasets);
    Member* member_out = dataset_index.mutable_data();
    int64_t* sample_out = dataset_sample_index.mutable_data();
    {
        py::gil_scoped_release release;
        for (int64_t t = 0; t < size; ++t) {
            const double seen = static_cast<double>(std::max<int64_t>(t, 1));
            for (int64_t d = 0; d < num_datasets; ++d) error[d] = share[d] * seen - used[d];
            int64_t best = 0;
            for (int64_t d = 1; d < num_datasets; ++d)
                if (error[d] > error[best]) best = d;
            member_out[t] = static_cast<Member>(best);
            sample_out[t] = static_cast<int64_t>(used[best]);
            used[best] += 1.0;
        }
    }
    if (verbose) {
        for (int64_t d = 0; d < num_datasets; ++d)
            py::print("dataset", d, "asked", share[d], "got", used[d] / static_cast<double>(std::max<int64_t>(size, 1)));
    }
}

// One pass over documents in the given order; returns where in the order each finished sample ends (exclusive) and the
// tokens of the unfinished last one. A sample is closed by the first document that would lift it above `limit` tokens.
py::tuple pack_one_pass(const Input<int32_t>& sizes, const Input<int64_t>& order, int64_t limit, int64_t filled,
                        int64_t max_samples) {
    std::vector<int64_t> ends;
    const int32_t* size_of = sizes.data();
    const int64_t* docs = order.data();
    const int64_t num_docs = order.size(), num_sizes = sizes.size();
    {
        py::gil_scoped_release release;
        for (int64_t i = 0; i < num_docs && static_cast<int64_t>(ends.size()) < max_samples; ++i) {
            const int64_t doc = load(docs, i);
            if (doc < 0 || doc >= num_sizes) throw std::out_of_range("the order names a document that sizes lacks");
            const int64_t tokens = load(size_of, doc);
            if (filled >= 0 && filled + tokens > limit) {
                ends.push_back(i);
                filled = tokens;
            } else {
                filled = std::max<int64_t>(filled, 0) + tokens;
            }
        }
    }
    py::array_t<int64_t> result(static_cast<py::ssize_t>(ends.size()));
    std::copy(ends.begin(), ends.end(), result.mutable_data());
    return py::make_tuple(result, filled);
}

// The generator behind numpy.random.RandomState, continued from its state (key and position).
class MersenneTwister {
   public:
    static constexpr int kWords = 624, kShift = 397;

    MersenneTwister(uint32_t* key, int position) : key_(key), position_(position) {
        if (position < 0 || position > kWords) throw std::invalid_argument("the position is within the 624 words");
        temper();
    }

    uint32_t next() {
        if (position_ == kWords) refill();
        return tempered_[position_++];
    }

    int position() const { return position_; }

   private:
    static uint32_t mix(uint32_t high, uint32_t low) {
        const uint32_t y = (high & 0x80000000u) | (low & 0x7fffffffu);
        return (y >> 1) ^ ((0u - (low & 1u)) & 0x9908b0dfu);
    }

    void refill() {
        for (int i = 0; i < kWords - kShift; ++i) key_[i] = key_[i + kShift] ^ mix(key_[i], key_[i + 1]);
        for (int i = kWords - kShift; i < kWords - 1; ++i)
            key_[i] = key_[i + kShift - kWords] ^ mix(key_[i], key_[i + 1]);
        key_[kWords - 1] = key_[kShift - 1] ^ mix(key_[kWords - 1], key_[0]);
        position_ = 0;
        temper();
    }

    // All words at once, which vectorises.
    void temper() {
        for (int i = 0; i < kWords; ++i) {
            uint32_t y = key_[i];
            y ^= y >> 11;
            y ^= (y << 7) & 0x9d2c5680u;
            y ^= (y << 15) & 0xefc60000u;
            tempered_[i] = y ^ (y >> 18);
        }
    }

    uint32_t* key_;
    int position_;
    uint32_t tempered_[kWords];
};

// RandomState.shuffle of a 1-D array, same draws and same result: swap i with a uniform j <= i from the end down, j drawn
// by masking and rejecting. Draws do not depend on the data, so a block of them is made first and its targets are
// prefetched: on arrays beyond the processor's cache this is what makes it fast. Returns the generator's new position.
template <typename T>
int shuffle(InPlace<T> values, InPlace<uint32_t> key, int position) {
    constexpr int kBlock = 256;
    if (key.size() != MersenneTwister::kWords) throw std::invalid_argument("the state has 624 words");
    T* data = values.mutable_data();
    const int64_t count = values.size();
    MersenneTwister generator(key.mutable_data(), position);
    py::gil_scoped_release release;
    uint64_t draws[kBlock + 1];
    int64_t i = count - 1;
    while (i > 0) {
        uint64_t mask = static_cast<uint64_t>(i);
        for (int shift = 1; shift < 64; shift *= 2) mask |= mask >> shift;
        // The mask holds while i is above its lower half.
        const int64_t block = std::min<int64_t>(kBlock, i - static_cast<int64_t>(mask >> 1));
        int64_t made = 0;
        if (mask <= 0xffffffffu) {
            const uint32_t mask32 = static_cast<uint32_t>(mask);
            while (made < block) {  // no branch on acceptance: it is a coin toss that no predictor learns
                const uint32_t value = generator.next() & mask32;
                draws[made] = value;
                made += value <= static_cast<uint64_t>(i - made);
            }
        } else {
            while (made < block) {
                const uint64_t high = generator.next();
                const uint64_t value = ((high << 32) | generator.next()) & mask;
                draws[made] = value;
                made += value <= static_cast<uint64_t>(i - made);
            }
        }
        for (int64_t k = 0; k < block; ++k) __builtin_prefetch(data + draws[k], 1);
        for (int64_t k = 0; k < block; ++k) std::swap(data[i - k], data[draws[k]]);
        i -= block;
    }
    return generator.position();
}

template <typename Member>
void bind_blending(py::module_& module) {
    module.def("build_blending_indices", &build_blending_indices<Member>, py::arg("dataset_index").noconvert(),
               py::arg("dataset_sample_index").noconvert(), py::arg("weights"), py::arg("num_datasets"),
               py::arg("size"), py::arg("verbose"));
}

template <typename T>
void bind_shuffle(py::module_& module) {
    module.def("shuffle", &shuffle<T>, py::arg("values").noconvert(), py::arg("key").noconvert(),
               py::arg("position"));
}

template <typename Row>
void bind_sample_idx(py::module_& module, const char* name) {
    module.def(name, &build_sample_idx<Row>, py::arg("sizes"), py::arg("doc_idx"), py::arg("seq_length"),
               py::arg("num_epochs"), py::arg("tokens_per_epoch"));
}

}  // namespace

PYBIND11_MODULE(neox_data_helpers, module) {
    bind_sample_idx<int32_t>(module, "build_sample_idx_int32");
    bind_sample_idx<int64_t>(module, "build_sample_idx_int64");
    bind_blending<uint8_t>(module);
    bind_blending<int16_t>(module);
    bind_blending<int32_t>(module);
    bind_shuffle<int32_t>(module);
    bind_shuffle<uint32_t>(module);
    bind_shuffle<int64_t>(module);
    module.def("pack_one_pass", &pack_one_pass, py::arg("sizes"), py::arg("order"), py::arg("limit"),
               py::arg("filled"), py::arg("max_samples"));
}
