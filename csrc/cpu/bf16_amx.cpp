#include "bf16_amx.h"

#include <cmath>
#include <cstring>

#include "bf16_layout.h"

#ifdef SMARTCS_HAVE_AMX
#include <cpuid.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace smartcs {
namespace {

// A tile: 16 rows of 64 bytes, that is of 32 bf16 numbers or 16 float32 sums.
constexpr int64_t kTile = 16;
// Which register holds what: C in 0 to 3 as [row half][column half], A's halves in 4 and 5, B's in 6 and 7.
constexpr int kA = 4, kB = 6;

// What LDTILECFG reads.
struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t bytes_per_row[16] = {};
  uint8_t rows[16] = {};

  TileConfig(int64_t rows0, int64_t rows1) {
    set(0, rows0);
    set(1, rows0);
    set(kA, rows0);
    if (rows1 > 0) {
      set(2, rows1);
      set(3, rows1);
      set(kA + 1, rows1);
    }
    set(kB, kTile);
    set(kB + 1, kTile);
  }

 private:
  void set(int tile, int64_t count) {
    bytes_per_row[tile] = 64;
    rows[tile] = static_cast<uint8_t>(count);
  }
};

// What the instructions do, to arrays. A product of tiles that do not fit gives NaN; the instruction would fault.
class EmulatedTiles {
 public:
  void configure(const TileConfig& config) {
    config_ = config;
    std::memset(data_, 0, sizeof data_);
  }
  void release() {}
  template <int t>
  void zero() {
    std::memset(data_[t], 0, sizeof data_[t]);
  }
  template <int t>
  void load(const void* from, int64_t stride) {
    zero<t>();
    for (int64_t i = 0; i < config_.rows[t]; ++i) {
      std::memcpy(data_[t][i], static_cast<const char*>(from) + i * stride, config_.bytes_per_row[t]);
    }
  }
  template <int t>
  void store(void* to, int64_t stride) const {
    for (int64_t i = 0; i < config_.rows[t]; ++i) {
      std::memcpy(static_cast<char*>(to) + i * stride, data_[t][i], config_.bytes_per_row[t]);
    }
  }
  template <int c, int a, int b>
  void multiply() {
    const bool fits = config_.palette == 1 && config_.rows[c] == config_.rows[a] && config_.rows[a] > 0 &&
                      config_.bytes_per_row[a] == 4 * config_.rows[b] &&
                      config_.bytes_per_row[c] == config_.bytes_per_row[b];
    for (int64_t i = 0; i < config_.rows[c]; ++i) {
      for (int64_t j = 0; j < config_.bytes_per_row[c] / 4; ++j) {
        float sum = fits ? value(data_[c][i][j]) : NAN;
        for (int64_t k = 0; k < config_.rows[b]; ++k) {
          const uint32_t x = data_[a][i][k], y = data_[b][k][j];
          sum += value(x << 16) * value(y << 16);
          sum += value(x & 0xFFFF0000u) * value(y & 0xFFFF0000u);
        }
        std::memcpy(&data_[c][i][j], &sum, sizeof sum);
      }
    }
  }
  void prefetch(const void*) const {}

 private:
  static float value(uint32_t bits) {
    float x;
    std::memcpy(&x, &bits, sizeof x);
    return x;
  }

  TileConfig config_{kTile, kTile};
  uint32_t data_[8][kTile][kTile];
};

// (16 or fewer rows, or twice that) x 32 columns of C. All loads of a step stand before its products, and the next
// step's lines are asked for in between.
template <bool kBothRows, class Tiles>
inline void tile_block(Tiles& tiles, const PanelProduct& p, int64_t row, int64_t rows, int64_t column) {
  const uint16_t* a = p.a + row * p.a_stride;
  const uint16_t* b = p.panel + 2 * column;
  const int64_t a_bytes = p.a_stride * 2, b_bytes = kPanel * 4, c_bytes = p.c_stride * 4;
  if (p.bias == nullptr) {
    tiles.template zero<0>();
    tiles.template zero<1>();
    if constexpr (kBothRows) {
      tiles.template zero<2>();
      tiles.template zero<3>();
    }
  } else {  // a stride of 0: the same row in all rows
    tiles.template load<0>(p.bias + column, 0);
    tiles.template load<1>(p.bias + column + kTile, 0);
    if constexpr (kBothRows) {
      tiles.template load<2>(p.bias + column, 0);
      tiles.template load<3>(p.bias + column + kTile, 0);
    }
  }
  const int64_t depth = padded_depth(p.depth);
  for (int64_t k = 0; k < depth; k += kDepthStep, a += kDepthStep, b += kDepthStep * kPanel) {
    tiles.template load<kA>(a, a_bytes);
    if constexpr (kBothRows) tiles.template load<kA + 1>(a + kTile * p.a_stride, a_bytes);
    tiles.template load<kB>(b, b_bytes);
    tiles.template load<kB + 1>(b + 2 * kTile, b_bytes);
    if (k + kDepthStep < depth) {
      for (int64_t i = 0; i < rows; ++i) tiles.prefetch(a + kDepthStep + i * p.a_stride);
      for (int64_t i = 0; i < kTile; ++i) {
        tiles.prefetch(b + kDepthStep * kPanel + i * 2 * kPanel);
        tiles.prefetch(b + kDepthStep * kPanel + i * 2 * kPanel + 2 * kTile);
      }
    }
    tiles.template multiply<0, kA, kB>();
    tiles.template multiply<1, kA, kB + 1>();
    if constexpr (kBothRows) {
      tiles.template multiply<2, kA + 1, kB>();
      tiles.template multiply<3, kA + 1, kB + 1>();
    }
  }
  float* c = p.c + row * p.c_stride + column;
  tiles.template store<0>(c, c_bytes);
  tiles.template store<1>(c + kTile, c_bytes);
  if constexpr (kBothRows) {
    c += kTile * p.c_stride;
    tiles.template store<2>(c, c_bytes);
    tiles.template store<3>(c + kTile, c_bytes);
  }
}

template <class Tiles>
void tile_product(Tiles& tiles, const PanelProduct& p) {
  int64_t row = 0;
  if (p.rows >= 2 * kTile) tiles.configure(TileConfig(kTile, kTile));
  for (; row + 2 * kTile <= p.rows; row += 2 * kTile) {
    for (int64_t column = 0; column < kPanel; column += 2 * kTile) {
      tile_block<true>(tiles, p, row, 2 * kTile, column);
    }
  }
  const int64_t rest = p.rows - row;
  if (rest > 0) tiles.configure(TileConfig(rest < kTile ? rest : kTile, rest < kTile ? 0 : rest - kTile));
  for (int64_t column = 0; rest > 0 && column < kPanel; column += 2 * kTile) {
    if (rest > kTile) {
      tile_block<true>(tiles, p, row, rest, column);
    } else {
      tile_block<false>(tiles, p, row, rest, column);
    }
  }
  tiles.release();
}

}  // namespace

void bf16_product_amx_emulated(const PanelProduct& product) {
  EmulatedTiles tiles;
  tile_product(tiles, product);
}

#ifdef SMARTCS_HAVE_AMX

namespace {

// In assembly: GCC's intrinsics are macros that take no template's parameter.
struct AmxTiles {
  void configure(const TileConfig& config) { __asm__ volatile("ldtilecfg %0" ::"m"(config) : "memory"); }
  void release() { __asm__ volatile("tilerelease" ::: "memory"); }
  template <int t>
  void zero() {
    __asm__ volatile("tilezero %%tmm%c0" ::"i"(t) : "memory");
  }
  template <int t>
  void load(const void* from, int64_t stride) {
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(stride), "i"(t) : "memory");
  }
  template <int t>
  void store(void* to, int64_t stride) {
    __asm__ volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(stride), "i"(t) : "memory");
  }
  template <int c, int a, int b>
  void multiply() {
    __asm__ volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(c), "i"(a), "i"(b));
  }
  void prefetch(const void* line) { __builtin_prefetch(line); }
};

// Leaf 7 alone: leaf 0x1D, which describes the tiles, reads zero on hypervisors where they work.
bool amx_announced() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d >> 22 & 1) == 0 || (d >> 24 & 1) == 0) return false;
  if (!__get_cpuid(1, &a, &b, &c, &d) || (c >> 27 & 1) == 0) return false;  // XGETBV may be executed
  unsigned low, high;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (low >> 17 & 3) == 3;  // the system saves tiles and their configuration
}

// 17 rows, so that both configurations run; sums of small integers are exact.
bool amx_multiplies() {
  constexpr int64_t kRows = kTile + 1;
  uint16_t a[kRows * kDepthStep], panel[kDepthStep * kPanel];
  float wanted[kRows * kPanel], c[kRows * kPanel];
  const uint16_t numbers[] = {0x3F80, 0x4000, 0xC040, 0x4080, 0xBF80};  // 1, 2, -3, 4, -1
  for (int64_t i = 0; i < kRows * kDepthStep; ++i) a[i] = numbers[i % 5];
  for (int64_t i = 0; i < kDepthStep * kPanel; ++i) panel[i] = numbers[i % 3 + i % 2];
  PanelProduct product{kRows, kDepthStep, a, kDepthStep, panel, nullptr, wanted, kPanel};
  bf16_product_amx_emulated(product);
  product.c = c;
  bf16_product_amx(product);
  return std::memcmp(c, wanted, sizeof c) == 0;
}

thread_local sigjmp_buf* probing = nullptr;
struct sigaction previous_handler[2];
constexpr int kSignals[2] = {SIGILL, SIGSEGV};

void on_fault(int signal, siginfo_t*, void*) {
  if (probing != nullptr) siglongjmp(*probing, 1);
  // Another thread's: put the handler that was there before back and return, to fault again.
  sigaction(signal, &previous_handler[signal == SIGSEGV], nullptr);
}

}  // namespace

void bf16_product_amx(const PanelProduct& product) {
  AmxTiles tiles;
  tile_product(tiles, product);
}

const char* amx_problem() {
  if (!amx_announced()) return "this CPU has no AMX";
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  if (syscall(SYS_arch_prctl, kRequestPermission, kTileData) != 0) return "the kernel gives no permission for AMX";
  static pthread_mutex_t one_at_a_time = PTHREAD_MUTEX_INITIALIZER;
  pthread_mutex_lock(&one_at_a_time);
  struct sigaction handler = {};
  handler.sa_sigaction = on_fault;
  handler.sa_flags = SA_SIGINFO | SA_ONSTACK;
  sigemptyset(&handler.sa_mask);
  for (int i = 0; i < 2; ++i) sigaction(kSignals[i], &handler, &previous_handler[i]);
  sigjmp_buf back;
  const char* problem = "AMX is announced but its instructions fault";
  volatile bool configured = false;  // to be read after a fault
  if (sigsetjmp(back, 1) == 0) {
    probing = &back;
    __atomic_signal_fence(__ATOMIC_SEQ_CST);  // before the first instruction that may fault
    AmxTiles().configure(TileConfig(kTile, kTile));
    configured = true;
    problem = amx_multiplies() ? nullptr : "AMX is announced but its products are wrong";
  } else if (configured) {  // the thread would carry its tiles along
    configured = false;     // should this fault, too
    AmxTiles().release();
  }
  __atomic_signal_fence(__ATOMIC_SEQ_CST);
  probing = nullptr;
  for (int i = 0; i < 2; ++i) sigaction(kSignals[i], &previous_handler[i], nullptr);
  pthread_mutex_unlock(&one_at_a_time);
  return problem;
}

#else

const char* amx_problem() {
  return "AMX was not compiled in";
}

#endif

}  // namespace smartcs
