// Kernels for CPUs with a plain C interface: exact one-dimensional k-means, and products by table lookup.

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

namespace {

// Prefix sums of weight, weight·value, weight·value² give the cost of any interval in constant time.
struct Row {
    std::vector<double> s0, s1, s2;

    void sum(const double* values, const double* weights, int64_t n) {
        s0.assign(n + 1, 0.0), s1.assign(n + 1, 0.0), s2.assign(n + 1, 0.0);
        for (int64_t i = 0; i < n; ++i) {
            const double w = weights[i], v = values[i];
            s0[i + 1] = s0[i] + w, s1[i + 1] = s1[i] + w * v, s2[i + 1] = s2[i] + w * v * v;
        }
    }

    double cost(int64_t left, int64_t right) const {
        const double mass = s0[right] - s0[left];
        if (mass <= 0) return 0.0;
        const double first = s1[right] - s1[left];
        const double rest = (s2[right] - s2[left]) - first * first / mass;
        return rest > 0 ? rest : 0.0;
    }
};

// Best last cut for every end in [low, high], knowing that cuts of the ends lie in [from, to]: it moves right with the end.
void divide(const Row& row, const std::vector<double>& before, std::vector<double>& after, int32_t* cut, int64_t low,
            int64_t high, int64_t from, int64_t to) {
    if (low > high) return;
    const int64_t middle = (low + high) / 2;
    double least = std::numeric_limits<double>::infinity();
    int64_t chosen = from;
    const int64_t last = middle < to ? middle : to;
    for (int64_t place = from; place <= last; ++place) {
        const double trial = before[place] + row.cost(place, middle);
        if (trial < least) least = trial, chosen = place;
    }
    after[middle] = least, cut[middle] = static_cast<int32_t>(chosen);
    divide(row, before, after, cut, low, middle - 1, from, chosen);
    divide(row, before, after, cut, middle + 1, high, chosen, to);
}

}  // namespace

// values, weights (rows, n), values ascending in a row; levels (rows, k) out, ascending.
extern "C" void graft_kmeans(const double* values, const double* weights, double* levels, int64_t rows, int64_t n,
                             int64_t k) {
    Row row;
    std::vector<double> before(n + 1), after(n + 1);
    std::vector<int32_t> cuts(k * (n + 1));
    for (int64_t r = 0; r < rows; ++r) {
        const double* v = values + r * n;
        row.sum(v, weights + r * n, n);
        for (int64_t end = 0; end <= n; ++end) before[end] = row.cost(0, end);
        for (int64_t number = 1; number < k; ++number) {
            divide(row, before, after, cuts.data() + number * (n + 1), 0, n, 0, n);
            before.swap(after);
        }
        int64_t right = n;
        for (int64_t number = k - 1; number >= 0; --number) {
            const int64_t left = number ? cuts[number * (n + 1) + right] : 0;
            const double mass = row.s0[right] - row.s0[left];
            const int64_t middle = (left + right) / 2 < n ? (left + right) / 2 : n - 1;
            levels[r * k + number] = mass > 0 ? (row.s1[right] - row.s1[left]) / mass : v[middle];
            right = left;
        }
    }
}
