// Row numbers brought together: which places of a list name the same row.
#pragma once

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <vector>

namespace smartcs {

// The groups are in ascending order of their row, and within a group the places in the order given.
struct RowGroups {
  std::vector<int64_t> order;    // places, group by group
  std::vector<int64_t> offsets;  // group g is order[offsets[g]] up to order[offsets[g + 1]], excluded

  RowGroups(const int64_t* rows, int64_t count) : order(static_cast<size_t>(count)), offsets{0} {
    std::iota(order.begin(), order.end(), int64_t{0});
    if (!std::is_sorted(rows, rows + count)) {
      std::stable_sort(order.begin(), order.end(), [rows](int64_t a, int64_t b) { return rows[a] < rows[b]; });
    }
    for (int64_t k = 1; k <= count; ++k) {
      if (k == count || rows[order[k]] != rows[order[k - 1]]) offsets.push_back(k);
    }
  }

  int64_t size() const { return static_cast<int64_t>(offsets.size()) - 1; }
};

}  // namespace smartcs
